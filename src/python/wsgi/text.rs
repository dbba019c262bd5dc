//! Native strings of PEP 3333: Python `str` whose characters are bytes (latin-1).
//!
//! Converts between header bytes and such strings, both ways, and nothing else. Rule: PEP 3333
//! "Unicode Issues" and "A Note On String Types".
#![expect(unsafe_code, reason = "PyO3 has no safe call for decoding latin-1")]

use std::borrow::Cow;

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// Bytes as a native string. Every byte is a character of latin-1, so only memory can run out.
///
/// # Errors
/// `MemoryError`.
pub(super) fn native<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    // A slice is never longer than isize::MAX.
    let length = bytes.len().cast_signed();
    // SAFETY: this thread is attached, pointer and length are those of one slice, and the null
    // pointer asks for the default treatment of errors, which cannot occur in latin-1.
    let text =
        unsafe { ffi::PyUnicode_DecodeLatin1(bytes.as_ptr().cast(), length, std::ptr::null()) };
    // SAFETY: the result is a new reference, or null with an exception set.
    let text = unsafe { Bound::from_owned_ptr_or_err(py, text) }?;
    Ok(text.cast_into::<PyString>()?)
}

/// A native string as bytes; *what* names it in the error.
///
/// # Errors
/// `ValueError` when a character is outside latin-1.
pub(super) fn bytes_of<'a>(what: &str, text: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, [u8]>> {
    let utf8 = text.to_str()?;
    if utf8.is_ascii() {
        return Ok(Cow::Borrowed(utf8.as_bytes()));
    }
    utf8.chars()
        .map(|character| u8::try_from(u32::from(character)))
        .collect::<Result<Vec<u8>, _>>()
        .map(Cow::Owned)
        .map_err(|_| {
            PyValueError::new_err(format!(
                "{what} {utf8:?} holds a character outside latin-1; encode it \
                 (PEP 3333 \"Unicode Issues\")"
            ))
        })
}
