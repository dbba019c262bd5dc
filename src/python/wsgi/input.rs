//! `wsgi.input`: the request's body as a file, read from the client as the application asks.
//!
//! Keeps at most one piece of the body in memory. A body that breaks off raises; it never looks
//! like a shorter one. Safe to keep after the request and to use from other threads: it then
//! raises `ValueError`, as a closed file does. Rules: PEP 3333 "Input and Error Streams".
#![expect(
    unsafe_code,
    reason = "bytes are written to the memory of a new object, which PyO3 would clear first"
)]

use crate::locks::Mutex;
use bytes::{Buf, Bytes};
use pyo3::exceptions::{PyConnectionResetError, PyOSError, PyTimeoutError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::mem::MaybeUninit;
use std::slice;

use super::call::Call;
use super::loan::Revoked;
use crate::wsgi::{BodyError, Room};

/// Reads of this many bytes go straight into the object that the application gets, and need no
/// memory besides.
const LARGE: usize = 8 << 10;

/// The body of one request; without a call, the body of a request that has none.
#[pyclass(frozen, freelist = 16, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Input {
    call: Option<Py<Call>>,
    buffer: Mutex<Buffer>,
}

#[derive(Debug, Default)]
struct Buffer {
    /// Came from the client, but was not asked for yet.
    pending: Bytes,
    /// Bytes of the body that have not come into `pending`, where the client has said how many.
    left: Option<u64>,
    is_at_end: bool,
    /// A body that broke off stays broken.
    failed: Option<BodyError>,
}

/// Why a read failed.
enum ReadError {
    Body(BodyError),
    Revoked,
}

/// How much to read.
#[derive(Clone, Copy)]
enum Until {
    End,
    Bytes(usize),
    Line(usize),
}

impl Input {
    /// `length` is that of the body, where the client has said it.
    pub(super) fn new(call: Option<Py<Call>>, length: Option<u64>) -> Self {
        let is_at_end = call.is_none();
        Self {
            call,
            buffer: Mutex::new(Buffer {
                is_at_end,
                left: length,
                ..Buffer::default()
            }),
        }
    }

    /// Reads `length` bytes of a body of which at least as many are to come.
    fn take_large<'py>(
        &self,
        py: Python<'py>,
        call: &Call,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let size = ffi::Py_ssize_t::try_from(length)?;
        // SAFETY: the interpreter is held, and null asks for memory that is not written yet.
        let new = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) };
        // SAFETY: that call gives a new reference, or null with an exception set.
        let bytes = unsafe { Bound::from_owned_ptr_or_err(py, new) }?;
        // SAFETY: a call that makes bytes has made it.
        let bytes = unsafe { bytes.cast_into_unchecked::<PyBytes>() };
        // SAFETY: the argument is a bytes object.
        let begin = unsafe { ffi::PyBytes_AsString(bytes.as_ptr()) };
        // SAFETY: the object is `length` bytes long and lives to the end of this function. No other
        // code knows it yet, so that the interpreter need not be held while they are written.
        let memory = unsafe { slice::from_raw_parts_mut(begin.cast::<MaybeUninit<u8>>(), length) };
        let mut room = Room::new(&mut *memory);
        py.detach(|| self.buffer.lock().read_into(call, &mut room))
            .map_err(|error| raise(call, &error))?;
        let written = length - room.left();
        if written < length {
            // Another thread has read the rest.
            // SAFETY: a room counts what was written, from the beginning of its memory.
            let begin = unsafe { slice::from_raw_parts(memory.as_ptr().cast::<u8>(), written) };
            return Ok(PyBytes::new(py, begin));
        }
        Ok(bytes)
    }

    fn take<'py>(&self, py: Python<'py>, until: Until) -> PyResult<Bound<'py, PyBytes>> {
        let Some(call) = &self.call else {
            return Ok(PyBytes::new(py, b""));
        };
        let call = call.get();
        if call.loan.is_revoked() {
            return Err(ended());
        }
        // What is here already needs neither the client nor a wait; whoever holds the lock may be
        // waiting for the client.
        if let Some(mut buffer) = self.buffer.try_lock()
            && let Some(piece) = buffer.ready(until)
        {
            return Ok(PyBytes::new(py, &piece));
        }
        if let Some(length) = self.buffer.try_lock().and_then(|held| held.large(until)) {
            return self.take_large(py, call, length);
        }
        let pieces = py
            .detach(|| self.buffer.lock().read(call, until))
            .map_err(|error| raise(call, &error))?;
        match &*pieces {
            [piece] => Ok(PyBytes::new(py, piece)),
            pieces => {
                let total = pieces.iter().map(Bytes::len).sum();
                PyBytes::new_with(py, total, |mut room| {
                    for piece in pieces {
                        let (here, rest) = room.split_at_mut(piece.len());
                        here.copy_from_slice(piece);
                        room = rest;
                    }
                    Ok(())
                })
            }
        }
    }
}

impl Buffer {
    /// What was asked for, if the client need not be asked.
    fn ready(&mut self, until: Until) -> Option<Bytes> {
        let wanted = match until {
            Until::End => None,
            Until::Bytes(size) => (size <= self.pending.len()).then_some(size),
            Until::Line(limit) => line_end(&self.pending, limit),
        };
        match wanted {
            Some(wanted) => Some(self.pending.split_to(wanted)),
            None => self.is_at_end.then(|| std::mem::take(&mut self.pending)),
        }
    }

    /// Reads until there is enough. Waits for the client: call it without the interpreter.
    fn read(&mut self, call: &Call, until: Until) -> Result<Vec<Bytes>, ReadError> {
        let mut pieces = Vec::new();
        let mut until = until;
        loop {
            if let Some(piece) = self.ready(until) {
                if !piece.is_empty() {
                    pieces.push(piece);
                }
                return Ok(pieces);
            }
            if self.pending.has_remaining() {
                let piece = std::mem::take(&mut self.pending);
                until = match until {
                    Until::End => until,
                    Until::Bytes(size) => Until::Bytes(size - piece.len()),
                    Until::Line(limit) => Until::Line(limit - piece.len()),
                };
                pieces.push(piece);
            }
            if let Some(error) = self.failed {
                return Err(ReadError::Body(error));
            }
            let came = call.loan.with(|exchange| exchange.read());
            self.note(came)?;
        }
    }

    /// Reads until there is no room left, or the body is at its end. Waits for the client: call it
    /// without the interpreter.
    fn read_into(&mut self, call: &Call, room: &mut Room<'_>) -> Result<(), ReadError> {
        loop {
            let copied = room.put(&self.pending);
            self.pending.advance(copied);
            if room.left() == 0 || self.is_at_end {
                return Ok(());
            }
            if let Some(error) = self.failed {
                return Err(ReadError::Body(error));
            }
            let came = call.loan.with(|exchange| match exchange.read_into(room) {
                Ok(0) => exchange.read(),
                Ok(count) => {
                    self.left = self.left.map(|left| left.saturating_sub(count as u64));
                    Ok(Some(Bytes::new()))
                }
                Err(error) => Err(error),
            });
            self.note(came)?;
        }
    }

    /// Takes note of what has come.
    fn note(
        &mut self,
        came: Result<Result<Option<Bytes>, BodyError>, Revoked>,
    ) -> Result<(), ReadError> {
        match came {
            Ok(Ok(Some(piece))) => {
                self.left = self
                    .left
                    .map(|left| left.saturating_sub(piece.len() as u64));
                self.pending = piece;
            }
            Ok(Ok(None)) => self.is_at_end = true,
            Ok(Err(error)) => self.failed = Some(error),
            Err(Revoked) => return Err(ReadError::Revoked),
        }
        Ok(())
    }

    /// How many bytes a read will give that is worth reading straight into their place.
    fn large(&self, until: Until) -> Option<usize> {
        let here = self.pending.len() as u64 + self.left?;
        let length = match until {
            Until::End => usize::try_from(here).ok()?,
            Until::Bytes(size) => usize::try_from(here).map_or(size, |here| here.min(size)),
            Until::Line(_) => return None,
        };
        (length >= LARGE && self.failed.is_none() && !self.is_at_end).then_some(length)
    }
}

/// What the application sees of a read that failed.
fn raise(call: &Call, error: &ReadError) -> PyErr {
    let error = match error {
        ReadError::Revoked => return ended(),
        ReadError::Body(error) => *error,
    };
    call.record_body_error(error);
    match error {
        BodyError::Disconnected => PyConnectionResetError::new_err(error.to_string()),
        BodyError::TimedOut => PyTimeoutError::new_err(error.to_string()),
        BodyError::Framing | BodyError::TooLarge => PyOSError::new_err(error.to_string()),
    }
}

/// Length of the first line of *pending*, its newline included, cut at *limit*; `None` when the
/// line does not end here.
fn line_end(pending: &[u8], limit: usize) -> Option<usize> {
    let window = &pending[..limit.min(pending.len())];
    match memchr::memchr(b'\n', window) {
        Some(newline) => Some(newline + 1),
        None => (limit <= pending.len()).then_some(limit),
    }
}

/// The size argument of Python's file methods: `None` or a negative number means no limit.
fn limit(size: Option<isize>) -> Option<usize> {
    size.and_then(|size| usize::try_from(size).ok())
}

fn ended() -> PyErr {
    PyValueError::new_err("wsgi.input was read after its request had ended")
}

#[pymethods]
impl Input {
    /// Up to *size* bytes: fewer only at the end of the body. Without a size, all that is left.
    #[pyo3(signature = (size=None, /))]
    fn read<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        self.take(py, limit(size).map_or(Until::End, Until::Bytes))
    }

    /// The next line, with its newline; at most *size* bytes of it.
    #[pyo3(signature = (size=None, /))]
    fn readline<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        self.take(py, Until::Line(limit(size).unwrap_or(usize::MAX)))
    }

    /// The lines that are left; stops behind the one with which *hint* bytes are reached. No hint,
    /// or one that is not positive, reads them all.
    #[pyo3(signature = (hint=None, /))]
    fn readlines<'py>(&self, py: Python<'py>, hint: Option<isize>) -> PyResult<Bound<'py, PyList>> {
        let hint = limit(hint).filter(|hint| *hint > 0).unwrap_or(usize::MAX);
        let lines = PyList::empty(py);
        let mut total = 0;
        while total < hint {
            let line = self.readline(py, None)?;
            let length = line.as_bytes().len();
            if length == 0 {
                break;
            }
            total += length;
            lines.append(line)?;
        }
        Ok(lines)
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = self.readline(py, None)?;
        Ok((!line.as_bytes().is_empty()).then_some(line))
    }
}
