//! Whether a thread waits for the interpreter, told by the futex that it sleeps at.
//!
//! Owns the address of the interpreter's lock, learnt from two threads of its own that want it while
//! the caller has it. A thread that the kernel keeps from running for long while it wants the
//! interpreter looks like one that sleeps elsewhere, unless one knows where. Never tells of a thread
//! what it has not seen: without that address, or where the kernel hides system calls, no thread is
//! said to wait for the interpreter. Holds nothing that a forked child would have to learn again.
//!
//! Rules: proc(5) `/proc/pid/syscall`; futex(2); `take_gil` and `drop_gil` of CPython's `ceval_gil.c`,
//! whose conditions and mutexes lie side by side. A C library that lets the waiters of a condition sleep
//! at places of their own (musl) gives no address.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::unistd::gettid;
use pyo3::prelude::*;

use super::parallel;
use crate::threads::{self, Signals};

/// Bytes of the two conditions and two mutexes of the lock: how far two of its futexes can lie apart.
const SPAN: usize = 2 * (size_of::<libc::pthread_cond_t>() + size_of::<libc::pthread_mutex_t>());
/// How long the two threads get to come to the lock, the interpreter being held meanwhile.
const PATIENCE: Duration = Duration::from_millis(50);
/// They run no Python code.
const STACK_BYTES: usize = 256 << 10;

/// How often it is tried: what keeps the threads from the lock may be the machine, or may last.
const TRIES: usize = 10;

/// A futex of the interpreter's lock; 0 while it is not known.
static LOCK: AtomicUsize = AtomicUsize::new(0);
static TRIED: AtomicUsize = AtomicUsize::new(0);

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn learn_lock_waiters(py: Python<'_>) -> PyResult<bool> {
    parallel::learn(py)?;
    let is_known = || LOCK.load(Ordering::Relaxed) != 0;
    if parallel::has_lock() && !is_known() && TRIED.fetch_add(1, Ordering::Relaxed) < TRIES {
        LOCK.store(learn(py).unwrap_or(0), Ordering::Relaxed);
    }
    Ok(is_known())
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn waits_for_interpreter(native_id: i32) -> bool {
    let lock = LOCK.load(Ordering::Relaxed);
    lock != 0 && futex_of(native_id).is_some_and(|futex| futex.abs_diff(lock) <= SPAN)
}

fn learn(py: Python<'_>) -> Option<usize> {
    let (say, heard) = mpsc::channel();
    let deadline = Instant::now() + PATIENCE;
    let started = (0..2).filter(|number| {
        let say = say.clone();
        let body = move || {
            // The receiver lives until both threads have ended.
            let _ = say.send(gettid().as_raw());
            let _ = Python::try_attach(|_| ());
        };
        let name = format!("lock-waiter-{number}");
        threads::start(name, STACK_BYTES, Signals::None, body).is_ok()
    });
    let started = started.count();
    drop(say);
    let left = || deadline.saturating_duration_since(Instant::now());
    let waiters: Vec<_> = (0..started)
        .map_while(|_| heard.recv_timeout(left()).ok())
        .collect();
    let mut found = None;
    while let [one, other] = waiters[..] {
        if let (Some(one), Some(other)) = (futex_of(one), futex_of(other)) {
            // Else one of them has come no further than to another lock, or they have no place in common.
            found = (one.abs_diff(other) <= SPAN).then_some(one);
        }
        if found.is_some() || left().is_zero() {
            break;
        }
        thread::yield_now();
    }
    // Each drops its end of the channel once it has had the interpreter.
    py.detach(move || while heard.recv().is_ok() {});
    found
}

/// The address of the futex that a thread of this process sleeps at; `None` where it does not.
fn futex_of(native_id: i32) -> Option<usize> {
    let call = std::fs::read_to_string(format!("/proc/self/task/{native_id}/syscall")).ok()?;
    let mut words = call.split_whitespace();
    if words.next()?.parse() != Ok(libc::SYS_futex) {
        return None;
    }
    usize::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()
}
