//! Whether this interpreter has its lock, and so how many threads can run Python code at once.
//!
//! Owns the one answer that the process goes by. A free-threaded CPython may switch its lock on again
//! at any import of a module that asks for it, so the answer is renewed where a thread joins; the lock
//! is never switched off again. Rules: PEP 703, `sys._is_gil_enabled`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pyo3::prelude::*;

use super::kept::intern;

/// The lock is there for good.
static HAS_LOCK: AtomicBool = AtomicBool::new(false);
/// Threads that can run Python code at once.
static AT_ONCE: AtomicUsize = AtomicUsize::new(1);

/// Asks the interpreter whether it has its lock.
pub(super) fn learn(py: Python<'_>) -> PyResult<()> {
    if HAS_LOCK.load(Ordering::Relaxed) {
        return Ok(());
    }
    let is_enabled = py
        .import("sys")?
        .getattr_opt(intern!(py, "_is_gil_enabled"))?;
    let has_lock = match is_enabled {
        Some(ask) => ask.call0()?.is_truthy()?,
        None => true,
    };
    let at_once = if has_lock {
        1
    } else {
        // Counts the CPUs that the process may use: its affinity, and the quota of its cgroup.
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    };
    HAS_LOCK.store(has_lock, Ordering::Relaxed);
    AT_ONCE.store(at_once, Ordering::Relaxed);
    Ok(())
}

/// True where two threads never run Python code at once. False also where that has not been asked.
pub(super) fn has_lock() -> bool {
    HAS_LOCK.load(Ordering::Relaxed)
}

/// How many threads can run Python code at once.
pub(super) fn at_once() -> usize {
    AT_ONCE.load(Ordering::Relaxed)
}
