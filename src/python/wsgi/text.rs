//! Native strings of PEP 3333: Python `str` whose characters are bytes (latin-1).
//!
//! Converts between header bytes and such strings, both ways, and nothing else. Rule: PEP 3333
//! "Unicode Issues" and "A Note On String Types".

use std::borrow::Cow;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// Bytes as a native string. Never fails: every byte is a character of latin-1.
pub(super) fn native<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyString> {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.is_ascii() => PyString::new(py, text),
        _ => PyString::new(
            py,
            &bytes.iter().copied().map(char::from).collect::<String>(),
        ),
    }
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
