//! `wsgi.file_wrapper`: a file-like object as the body of an answer.
//!
//! Reads the file in blocks and closes it with the answer. Rule: PEP 3333 "Optional
//! Platform-Specific File Handling".

use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// What applications find as `environ["wsgi.file_wrapper"]`.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(crate) struct FileWrapper {
    file: Py<PyAny>,
    block_size: usize,
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
        let block = self
            .file
            .bind(py)
            .call_method1(pyo3::intern!(py, "read"), (self.block_size,))?;
        let is_empty = match block.cast::<PyBytes>() {
            Ok(block) => block.as_bytes().is_empty(),
            Err(_) => block.is_none(),
        };
        Ok((!is_empty).then_some(block))
    }

    /// Closes the file, if it can be closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(close) = self.file.bind(py).getattr_opt(pyo3::intern!(py, "close"))? {
            close.call0()?;
        }
        Ok(())
    }
}
