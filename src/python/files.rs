//! Files that an operator names, for Python.
//!
//! Converts around [`crate::files`]; decides nothing.

use std::path::PathBuf;

use nix::errno::Errno;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::files::{self, Unread};

/// The bytes of a file or a pipe.
#[pyfunction]
pub(super) fn read_file(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyBytes>> {
    let read = py.detach(|| files::read(&path));
    let bytes = read.map_err(|unread| {
        let (errno, text) = match &unread {
            Unread::Failed(error) => {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                (errno, errno.desc().to_owned())
            }
            Unread::Silent => (Errno::ETIMEDOUT, unread.to_string()),
            Unread::TooLong => (Errno::EFBIG, unread.to_string()),
        };
        PyOSError::new_err((errno as i32, text, path.into_os_string()))
    })?;
    Ok(PyBytes::new(py, &bytes))
}
