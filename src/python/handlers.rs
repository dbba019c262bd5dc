//! The boundary of the handlers room.

use crate::handlers;
use crate::python::errors::os_error;
use crate::python::signals::duration;
use pyo3::prelude::*;

/// Bounds the time in which a handler must run, in a process without a watch thread; see
/// `_native.pyi`.
#[pyfunction]
pub(super) fn guard_signals(patience: f64) -> PyResult<()> {
    let patience = duration("patience", patience)?;
    handlers::guard((!patience.is_zero()).then_some(patience))
        .map_err(|error| os_error("cannot make a timer", &error))
}

/// The handlers of all signals that arrived have run.
#[pyfunction]
pub(super) fn guard_heard() {
    handlers::heard();
}

/// Has SIGTERM end process 1; see `_native.pyi`.
#[pyfunction]
pub(super) fn end_init_at_sigterm() -> PyResult<()> {
    handlers::end_init_at_sigterm()
        .map_err(|error| os_error("cannot install a handler of SIGTERM", &error))
}
