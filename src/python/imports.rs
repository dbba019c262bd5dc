//! Python modules of osloxide that the boundary calls back into, in one place.
//!
//! Owns the names of those modules and of what is taken from them; docs/architecture.md lists the
//! files. Decides nothing. Modules of the standard library are imported where they are used.

use pyo3::prelude::*;

use super::parallel;

const EVENT_LOOP: &str = "osloxide.threads.event_loop";
const FORKED: &str = "osloxide.threads.forked";
const EXCEPTIONS: &str = "osloxide.exceptions";
const OVERDUE: &str = "osloxide.server.overdue";
const POOL_THREAD: &str = "osloxide.threads.pool_thread";

/// Imports what every server and executor uses: what a thread of the pool imported first would be
/// half imported, and its lock held for ever, in the child of a program that forks meanwhile.
pub(super) fn load(py: Python<'_>) -> PyResult<()> {
    for module in [EVENT_LOOP, FORKED, POOL_THREAD] {
        py.import(module)?;
    }
    Ok(())
}

/// Imports what a server uses whose requests may be given up.
pub(super) fn load_overdue(py: Python<'_>) -> PyResult<()> {
    for module in [EXCEPTIONS, OVERDUE] {
        py.import(module)?;
    }
    Ok(())
}

/// What the log says of a thread that is inside the request *line* since *age* seconds.
pub(super) fn describe_overdue<'py>(
    py: Python<'py>,
    thread: u64,
    line: &str,
    age: f64,
) -> PyResult<Bound<'py, PyAny>> {
    py.import(OVERDUE)?
        .call_method1("describe", (thread, line, age))
}

/// The exception that interrupts such a thread.
pub(super) fn request_timeout(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import(EXCEPTIONS)?.getattr("RequestTimeout")
}

/// Starts *coroutine* on the event loop of the process; *resume* is called with its outcome.
pub(super) fn start_coroutine<'py>(
    py: Python<'py>,
    coroutine: &Bound<'py, PyAny>,
    resume: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    py.import(EVENT_LOOP)?
        .call_method1("start", (coroutine, resume))
}

/// The class `Later`: an outcome that osloxide's own code delivers like a coroutine's.
pub(super) fn later(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import(EVENT_LOOP)?.getattr("Later")
}

/// The function that ends a process as a program ends whose main function has returned, or raised its
/// argument.
pub(super) fn leave_child(py: Python<'_>) -> PyResult<Py<PyAny>> {
    Ok(py.import(FORKED)?.getattr("leave_after")?.unbind())
}

/// Makes the calling thread one of Python's: listed, named, joined and traced like any other.
pub(super) fn register_thread<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    parallel::learn(py)?;
    py.import(POOL_THREAD)?
        .call_method1("register_thread", (name,))
}
