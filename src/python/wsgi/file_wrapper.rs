//! `wsgi.file_wrapper`: a file-like object as the body of an answer.
//!
//! A regular file is handed to the server, which lets the kernel send it; anything else is read in
//! blocks. Either way what is sent begins at the object's position, ends with the declared length,
//! and the object is closed with the answer. Never trusts a descriptor alone: a `GzipFile` has one
//! too, of the compressed file. Rule: PEP 3333 "Optional Platform-Specific File Handling".

use std::fs::File;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::python::kept::{Kept, intern};
use crate::python::parallel;
use crate::wsgi::FilePart;

/// Up to this many bytes are read and sent together with the head: one system call fewer, and one
/// packet for small files.
const SMALL: u64 = 64 * 1024;

/// What applications find as `environ["wsgi.file_wrapper"]`.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(crate) struct FileWrapper {
    file: Py<PyAny>,
    block_size: usize,
}

/// What can be sent without asking the object for it.
#[derive(Debug)]
pub(super) enum Content {
    /// All of it.
    Small(Bytes),
    /// Where it is.
    Large(FilePart),
}

#[pymethods]
impl FileWrapper {
    /// `block_size` is the application's suggestion, in bytes; each block costs a system call.
    #[new]
    #[pyo3(signature = (filelike, block_size=65536, /))]
    fn new(filelike: Py<PyAny>, block_size: usize) -> Self {
        Self {
            file: filelike,
            block_size: block_size.max(1),
        }
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.read(py, self.block_size)
    }

    /// Closes the file, if it can be closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(close) = self.file.bind(py).getattr_opt(intern!(py, "close"))? {
            close.call0()?;
        }
        Ok(())
    }
}

impl FileWrapper {
    /// The next block, of `most` bytes and of the suggested size at most; `None` at the end.
    pub(super) fn block<'py>(
        &self,
        py: Python<'py>,
        most: u64,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.read(py, self.block_size.min(most))
    }

    fn read<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Option<Bound<'py, PyAny>>> {
        let block = self
            .file
            .bind(py)
            .call_method1(intern!(py, "read"), (most,))?;
        let is_empty = match block.cast::<PyBytes>() {
            Ok(block) => block.as_bytes().is_empty(),
            Err(_) => block.is_none(),
        };
        Ok((!is_empty).then_some(block))
    }

    /// What is left of a regular file, `most` bytes of it if given; `None` when the object has to be
    /// read instead: it is no regular file, or not one of Python's own classes, whose `read()` may
    /// do more than the file says.
    pub(super) fn content(&self, py: Python<'_>, most: Option<u64>) -> PyResult<Option<Content>> {
        let file = self.file.bind(py);
        if !is_plain_file(file)? {
            return Ok(None);
        }
        let Some(copy) = duplicate(file) else {
            return Ok(None);
        };
        let Ok(about) = copy.metadata() else {
            return Ok(None);
        };
        // Files of /proc and /sys are regular, claim to be empty, and are not.
        if !about.is_file() || about.len() == 0 {
            return Ok(None);
        }
        // The object's position, which is not the descriptor's where it reads ahead.
        let offset: u64 = file.call_method0(intern!(py, "tell"))?.extract()?;
        let left = about.len().saturating_sub(offset);
        let part = FilePart {
            file: copy,
            offset,
            length: most.map_or(left, |most| most.min(left)),
        };
        if part.length > SMALL {
            return Ok(Some(Content::Large(part)));
        }
        Ok(py.detach(|| read_whole(&part)).map(Content::Small))
    }
}

/// True for what `open(..., "rb")` returns.
fn is_plain_file(file: &Bound<'_, PyAny>) -> PyResult<bool> {
    static RAW: Kept<Py<PyAny>> = Kept::new();
    static BUFFERED: Kept<Py<PyAny>> = Kept::new();

    let py = file.py();
    let class_of_io = |name| Ok(py.import("io")?.getattr(name)?.unbind());
    let raw = RAW.get_or_make(|| class_of_io("FileIO"))?;
    if file.get_type().is(raw) {
        return Ok(true);
    }
    let buffered = BUFFERED.get_or_make(|| class_of_io("BufferedReader"))?;
    Ok(file.get_type().is(buffered) && file.getattr(intern!(py, "raw"))?.get_type().is(raw))
}

/// The open file under a descriptor of our own; `None` where there is none to be had.
#[expect(
    unsafe_code,
    reason = "a descriptor that Python names by number is borrowed to be duplicated"
)]
fn duplicate(file: &Bound<'_, PyAny>) -> Option<File> {
    let number = descriptor(file)?;
    // SAFETY: the file object owned this descriptor a moment ago. Where the interpreter has a lock,
    // this thread holds it, and no other thread can close the file in between. Where it has none,
    // one may: then the number names no file, which is an error, or another file, whose copy is
    // dropped below.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = borrowed.try_clone_to_owned().ok().map(File::from)?;
    // A file object forgets its number before it closes the descriptor: one that still has it has
    // had it all along.
    let is_sure = parallel::has_lock() || descriptor(file) == Some(number);
    is_sure.then_some(copy)
}

/// What the file object names as its descriptor; `None` when it is closed or names none.
fn descriptor(file: &Bound<'_, PyAny>) -> Option<RawFd> {
    file.call_method0(intern!(file.py(), "fileno"))
        .and_then(|number| number.extract())
        .ok()
        .filter(|number| *number >= 0)
}

/// Reads the part; fewer bytes when the file is shorter by now, `None` when it cannot be read.
fn read_whole(part: &FilePart) -> Option<Bytes> {
    let mut content = vec![0; usize::try_from(part.length).ok()?];
    let mut filled = 0;
    while filled < content.len() {
        match part
            .file
            .read_at(&mut content[filled..], part.offset + filled as u64)
        {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    content.truncate(filled);
    Some(content.into())
}
