//! Which pool threads are inside a request, and since when: what a traceback of slow requests needs.
//!
//! Costs a request one look at a coarse clock and two relaxed stores. Keeps nothing of the request:
//! the reader finds that in the thread's frames. Knows no HTTP.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use pyo3::prelude::*;

/// One pool thread.
#[derive(Debug)]
struct ThreadEntry {
    /// `threading.get_ident()`.
    thread: u64,
    /// Milliseconds of the clock when its request began; 0 between requests.
    since: AtomicU64,
}

static THREADS: Mutex<Vec<Arc<ThreadEntry>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: RefCell<Option<Arc<ThreadEntry>>> = const { RefCell::new(None) };
}

/// The calling thread will serve requests; `thread` is its number in Python.
pub(super) fn thread_begins(thread: u64) {
    let entry = Arc::new(ThreadEntry {
        thread,
        since: AtomicU64::new(0),
    });
    THREADS.lock().push(Arc::clone(&entry));
    OWN.with_borrow_mut(|own| *own = Some(entry));
}

/// It will not serve any more.
pub(super) fn thread_ends() {
    if let Some(own) = OWN.with_borrow_mut(Option::take) {
        THREADS.lock().retain(|entry| !Arc::ptr_eq(entry, &own));
    }
}

/// The calling thread is inside a request until this is dropped.
#[derive(Debug)]
#[must_use = "the request counts as over when this is dropped"]
pub(super) struct Inside(());

pub(super) fn enter() -> Inside {
    note(now().max(1));
    Inside(())
}

impl Drop for Inside {
    fn drop(&mut self) {
        note(0);
    }
}

fn note(since: u64) {
    OWN.with_borrow(|own| {
        if let Some(own) = own {
            own.since.store(since, Ordering::Relaxed);
        }
    });
}

/// Milliseconds; of the kernel's tick, which is a fifth of the price of the precise clock.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000).ok())
        .unwrap_or(0)
}

/// See `_native.pyi`.
#[pyfunction]
#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds since boot are far below 2^52"
)]
pub(crate) fn requests_in_flight() -> Vec<(u64, f64)> {
    let now = now();
    THREADS
        .lock()
        .iter()
        .filter_map(|entry| match entry.since.load(Ordering::Relaxed) {
            0 => None,
            since => Some((entry.thread, now.saturating_sub(since) as f64 / 1000.0)),
        })
        .collect()
}
