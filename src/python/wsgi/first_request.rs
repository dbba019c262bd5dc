//! The first request of a server runs alone, for as long as [`PATIENCE`] allows.
//!
//! OpenStack services make singletons on first use without a lock (`if not enforcer: enforcer =
//! ...; enforcer.load()`), which was safe while green threads switched only at I/O. On native
//! threads a second request would find them half made: cinder answers 500 ("policy has not been
//! registered") when a fresh worker gets two requests at once. Knows neither Python nor HTTP.
//! While the first request computes, the pool lets no other one in anyway, and for longer
//! (`crate::pool`, admission); this is for one that waits in between, as for a database.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::locks::{Condvar, Mutex};

/// How long a request waits for the first one. A first request that takes longer (a client that
/// reads slowly, a long poll) must not hold up the others: they all go ahead then.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lets one request through and the others after it; from then on everybody at once.
#[derive(Debug, Default)]
pub(super) struct FirstRequest {
    is_over: AtomicBool,
    has_begun: Mutex<bool>,
    ended: Condvar,
}

impl FirstRequest {
    /// Waits until the first request has ended, unless this is it. Must not be called attached to
    /// the interpreter. To be held while the request is handled.
    pub(super) fn enter(&self) -> Option<Turn<'_>> {
        if self.is_over.load(Ordering::Acquire) {
            return None;
        }
        let mut has_begun = self.has_begun.lock();
        if !std::mem::replace(&mut *has_begun, true) {
            return Some(Turn(self));
        }
        let goes_on = |_: &mut bool| !self.is_over.load(Ordering::Acquire);
        let waited = self.ended.wait_while_for(&mut has_begun, goes_on, PATIENCE);
        if waited.timed_out() {
            self.end();
        }
        None
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.ended.notify_all();
    }
}

/// The first request; when it is dropped, panic or not, the others go ahead.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a FirstRequest);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Under the lock, or one that has just looked would sleep past it.
        let _has_begun = self.0.has_begun.lock();
        self.0.end();
    }
}
