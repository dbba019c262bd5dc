//! A process that code of the application has forked on a thread of the pool.
//!
//! Owns the knowledge that the calling thread is such a process's only one, and its end where that code
//! leaves it, by a return or an exception. It would go on otherwise with what its parent goes on with: it
//! would answer on the client's socket, and take connections from listening sockets that nobody stops.
//! Rules: `pthread_atfork(3)`; python/osloxide/threads/forked.py for the end.
#![expect(unsafe_code, reason = "pthread_atfork(3)")]

use std::cell::Cell;

use nix::libc;
use pyo3::prelude::*;

use super::imports;
use crate::handlers;

thread_local! {
    static HAS_FORKED: Cell<bool> = const { Cell::new(false) };
}

/// Notes forks from now on. Once is enough.
pub(super) fn note_forks() -> PyResult<()> {
    // SAFETY: the function is of this module, which CPython never unloads, and its type is right.
    match unsafe { libc::pthread_atfork(None, None, Some(note)) } {
        0 => Ok(()),
        error => Err(std::io::Error::from_raw_os_error(error).into()),
    }
}

/// In the child, on the thread that has forked.
extern "C" fn note() {
    HAS_FORKED.set(true);
}

/// Ends this process where the calling thread has forked it: application code has just returned, or
/// raised *failure*. Called on threads of the pool alone: workers are forked by main threads.
pub(super) fn leave_if_forked(py: Python<'_>, failure: Option<&PyErr>) {
    if !HAS_FORKED.get() {
        return;
    }
    let failure = failure.map(|failure| failure.clone_ref(py).into_value(py));
    if let Err(error) = imports::leave_child(py, failure) {
        error.print(py);
    }
    handlers::leave(b"", 1)
}
