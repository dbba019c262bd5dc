//! Which pool threads are inside a request, and since when: what a traceback of slow requests needs.
//!
//! Costs a request one look at a coarse clock and two relaxed stores. Keeps nothing of the request but
//! its call, and that only where requests have a timeout: the reader finds the rest in the thread's
//! frames. Knows no HTTP.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::locks::{Mutex, held_by_forks};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::gettid;
use pyo3::prelude::*;

use super::call::Call;

/// One pool thread.
#[derive(Debug)]
struct ThreadEntry {
    /// The one whose thread it is. A child inherits the entry without the thread, whose numbers and
    /// calls it may have for others.
    process: u32,
    /// `threading.get_ident()`.
    thread: u64,
    /// Milliseconds of the clock when its request began; 0 between requests.
    since: AtomicU64,
    /// Its number in the kernel.
    kernel_id: i32,
    /// The call that it is inside of, where requests have a timeout.
    watched: Mutex<Option<Watched>>,
}

/// A request that may be given up.
#[derive(Debug)]
struct Watched {
    /// The application whose request it is: several of a process have timeouts of their own.
    owner: Owner,
    call: Py<Call>,
    /// When it was given up, in milliseconds of the clock; 0 before that.
    given_up: u64,
}

/// Tells the applications of a process apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner(u64);

impl Owner {
    /// One that no other application has.
    pub(super) fn new() -> Self {
        static LATEST: AtomicU64 = AtomicU64::new(0);
        Self(LATEST.fetch_add(1, Ordering::Relaxed))
    }
}

/// A request that was given up just now.
#[derive(Debug)]
pub(super) struct Overdue {
    entry: Arc<ThreadEntry>,
    /// How long it has run.
    pub(super) age: Duration,
}

impl Overdue {
    pub(super) fn kernel_id(&self) -> i32 {
        self.entry.kernel_id
    }

    /// `threading.get_ident()` of its thread.
    pub(super) fn thread(&self) -> u64 {
        self.entry.thread
    }

    /// Calls `act` if the thread is still inside that request; it cannot leave meanwhile, for it
    /// waits in [`unwatch`]. `act` must not run Python code: that thread waits attached.
    pub(super) fn while_inside<R>(&self, _py: Python<'_>, act: impl FnOnce() -> R) -> Option<R> {
        let watched = self.entry.watched.lock();
        let is_inside = watched.as_ref().is_some_and(|it| it.given_up != 0);
        is_inside.then(act)
    }
}

static THREADS: Mutex<Vec<Arc<ThreadEntry>>> = Mutex::new(Vec::new());

/// Lets children use the list whatever other threads do when they are forked: the thread that gives
/// up requests reads it without the interpreter. To be called before any other function.
pub(crate) fn keep_free() -> io::Result<()> {
    held_by_forks!(THREADS, Vec<Arc<ThreadEntry>>)
}

/// The threads of this process.
fn own_threads() -> Vec<Arc<ThreadEntry>> {
    let process = std::process::id();
    let threads = THREADS.lock();
    let own = threads.iter().filter(|entry| entry.process == process);
    own.cloned().collect()
}

thread_local! {
    static OWN: RefCell<Option<Arc<ThreadEntry>>> = const { RefCell::new(None) };
}

/// The calling thread will serve requests; `thread` is its number in Python.
pub(super) fn thread_begins(thread: u64) {
    let entry = Arc::new(ThreadEntry {
        process: std::process::id(),
        thread,
        since: AtomicU64::new(0),
        kernel_id: gettid().as_raw(),
        watched: Mutex::new(None),
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

/// The calling thread's request may be given up from now on, by its owner.
pub(super) fn watch(owner: Owner, call: Py<Call>) {
    OWN.with_borrow(|own| {
        if let Some(own) = own {
            *own.watched.lock() = Some(Watched {
                owner,
                call,
                given_up: 0,
            });
        }
    });
}

/// `threading.get_ident()` of the calling thread, if it serves requests.
pub(super) fn own_thread() -> Option<u64> {
    OWN.with_borrow(|own| own.as_ref().map(|own| own.thread))
}

/// It may not any more. Returns how long ago it was, if it was.
pub(super) fn unwatch() -> Option<Duration> {
    let watched = OWN.with_borrow(|own| own.as_ref().and_then(|own| own.watched.lock().take()));
    let given_up = watched?.given_up;
    (given_up != 0).then(|| Duration::from_millis(now().saturating_sub(given_up)))
}

/// Gives up, by `give_up`, those requests of an owner that are overdue; that returns false for those
/// that are not, after all. Returns them, and how long it is until the next one may be.
pub(super) fn give_up_overdue(
    owner: Owner,
    timeout: Duration,
    mut give_up: impl FnMut(&Call, Duration) -> bool,
) -> (Vec<Overdue>, Option<Duration>) {
    let (mut overdue, mut next) = (Vec::new(), None);
    for entry in own_threads() {
        let mut guard = entry.watched.lock();
        let since = entry.since.load(Ordering::Relaxed);
        let Some(watched) = guard
            .as_mut()
            .filter(|watched| watched.owner == owner && since != 0 && watched.given_up == 0)
        else {
            continue;
        };
        let now = now();
        let age = Duration::from_millis(now.saturating_sub(since));
        let left = timeout.saturating_sub(age);
        if left.is_zero() && give_up(watched.call.get(), age) {
            watched.given_up = now.max(1);
            drop(guard);
            overdue.push(Overdue { entry, age });
        } else {
            next = Some(next.map_or(left, |next: Duration| next.min(left)));
        }
    }
    (overdue, next)
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
    own_threads()
        .iter()
        .filter_map(|entry| match entry.since.load(Ordering::Relaxed) {
            0 => None,
            since => Some((entry.thread, now.saturating_sub(since) as f64 / 1000.0)),
        })
        .collect()
}
