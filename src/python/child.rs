//! A process that code of the application has forked on a thread of the pool.
//!
//! Owns the calls of such code, the knowledge that the calling thread is such a process's only one,
//! and its end where that code leaves it, by a return or an exception. It would go on otherwise with
//! what its parent goes on with: it would answer on the client's socket, and take connections from
//! listening sockets that nobody stops.
//! Rules: `pthread_atfork(3)`; python/osloxide/threads/forked.py for the end.

use std::cell::Cell;

use pyo3::prelude::*;

use super::imports;
use super::kept::Kept;
use crate::{handlers, locks};

thread_local! {
    static HAS_FORKED: Cell<bool> = const { Cell::new(false) };
}

/// What ends such a process.
static LEAVE: Kept<Py<PyAny>> = Kept::new();

/// Notes forks from now on. Once is enough.
pub(super) fn note_forks() -> PyResult<()> {
    Ok(locks::at_forks(None, None, Some(note))?)
}

/// Has at hand what ends a child, and all that threads of the pool call; to be called before
/// application code is. A child must not import it: another thread may have held a lock of the
/// import system when it was forked.
pub(super) fn prepare(py: Python<'_>) -> PyResult<()> {
    imports::load(py)?;
    LEAVE.get_or_make(|| imports::leave_child(py)).map(drop)
}

/// In the child, on the thread that has forked.
extern "C" fn note() {
    HAS_FORKED.set(true);
}

/// Calls code of the application, and ends the process where it comes back in a child that the calling
/// thread has forked. For threads of the pool alone: workers are forked by main threads.
pub(super) fn call<R>(py: Python<'_>, code: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    let result = code();
    leave_if_forked(py, result.as_ref().err());
    result
}

fn leave_if_forked(py: Python<'_>, failure: Option<&PyErr>) {
    if !HAS_FORKED.get() {
        return;
    }
    let failure = failure.map(|failure| failure.clone_ref(py).into_value(py));
    if let Some(leave) = LEAVE.get()
        && let Err(error) = leave.call1(py, (failure,))
    {
        error.print(py);
    }
    handlers::leave(b"", 1)
}
