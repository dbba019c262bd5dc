//! Context variables of one request.
//!
//! Pool threads serve one request after the other, so what one of them leaves in a `ContextVar`
//! (a request id, a tracing span) must not be seen by the next: each request runs in a context of
//! its own, empty as in a thread that has just been started. Rules: PEP 567.
#![expect(unsafe_code, reason = "PyO3 has no safe call for entering a context")]

use pyo3::ffi;
use pyo3::prelude::*;

/// A context that this thread has entered; dropping it leaves it.
#[derive(Debug)]
pub(super) struct Context<'py> {
    context: Bound<'py, PyAny>,
}

impl<'py> Context<'py> {
    /// Enters a new, empty context.
    pub(super) fn enter(py: Python<'py>) -> PyResult<Self> {
        // SAFETY: this thread is attached, which `py` proves.
        let context = unsafe { ffi::PyContext_New() };
        // SAFETY: this thread is attached, and the pointer is a new reference, or null with an
        // exception set.
        let context = unsafe { Bound::from_owned_ptr_or_err(py, context) }?;
        // SAFETY: this thread is attached, and the argument is a context that no thread has entered:
        // it was made above and is known to no other.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(Self { context })
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: the lifetime of the context shows that this thread is attached, and it has entered
        // the context.
        if unsafe { ffi::PyContext_Exit(self.context.as_ptr()) } != 0 {
            // Something in between entered a context and has not left it.
            PyErr::fetch(self.context.py()).write_unraisable(self.context.py(), None);
        }
    }
}
