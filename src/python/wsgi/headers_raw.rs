//! `headers_raw`: the request's headers as pairs, as eventlet.wsgi offers them.
//!
//! Copies the header map, which is cheap, and makes Python objects only when somebody looks.
//! Differs from eventlet in one thing: names are in lower case.

use http::HeaderMap;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyString, PyTuple};

use super::text::native;

/// A sequence of (name, value) tuples.
#[pyclass(frozen, sequence, freelist = 16, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct RawHeaders {
    headers: HeaderMap,
}

type Pair<'py> = (Bound<'py, PyString>, Bound<'py, PyString>);

impl RawHeaders {
    pub(super) fn new(headers: &HeaderMap) -> Self {
        Self {
            headers: headers.clone(),
        }
    }

    fn pairs<'py>(&self, py: Python<'py>) -> impl Iterator<Item = Pair<'py>> {
        self.headers
            .iter()
            .map(move |(name, value)| (native(py, name.as_ref()), native(py, value.as_bytes())))
    }
}

#[pymethods]
impl RawHeaders {
    fn __len__(&self) -> usize {
        self.headers.len()
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: isize) -> PyResult<Pair<'py>> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.pairs(py).nth(index))
            .ok_or_else(|| PyIndexError::new_err("headers_raw index out of range"))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let pairs: Vec<_> = self.pairs(py).collect();
        PyTuple::new(py, pairs)?.try_iter()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let pairs: Vec<_> = self.pairs(py).collect();
        Ok(PyTuple::new(py, pairs)?.repr()?.to_string())
    }
}
