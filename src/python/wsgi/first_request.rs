//! The first request of a server runs alone, for as long as [`PATIENCE`] allows.
//!
//! OpenStack services make singletons on first use without a lock (`if not enforcer: enforcer =
//! ...; enforcer.load()`), which was safe while green threads switched only at I/O. On native
//! threads a second request would find them half made: cinder answers 500 ("policy has not been
//! registered") when a fresh worker gets two requests at once. Knows neither Python nor HTTP.
//! What the pool holds back while the first jobs compute (docs/server.md, "The gate") does not come here;
//! a first request that waits in between, as for a database, is this one's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::{Pid, gettid};

use crate::locks::{Condvar, Mutex};
use crate::pool::LONGEST_WAIT_AT_FIRST;
use crate::threads::cpu_time;

/// How long the first request runs alone. One that takes longer (a client that reads slowly, a long
/// poll) must not hold up the others: they all go ahead then.
const PATIENCE: Duration = Duration::from_secs(1);
/// One that computes goes on alone for as long as the pool would hold others back. It is looked at so
/// often, and computes if it has had a CPU for this share of the time in between: beside many busy
/// processes it has no more.
const LOOK: Duration = Duration::from_millis(250);
const SHARE: u32 = 25;

/// Lets one request through and the others after it; from then on all at once.
#[derive(Debug, Default)]
pub(super) struct FirstRequest {
    is_over: AtomicBool,
    first: Mutex<Option<First>>,
    ended: Condvar,
}

/// The request that is alone.
#[derive(Debug)]
struct First {
    thread: Pid,
    since: Instant,
    /// At the last look: when it was, and what CPU time the thread had taken.
    looked: (Instant, Duration),
}

impl First {
    fn begin() -> Self {
        let now = Instant::now();
        Self {
            thread: gettid(),
            since: now,
            // Not asked here, where no other request waits: the first look decides nothing, or errs for
            // the time of one.
            looked: (now, Duration::ZERO),
        }
    }

    /// Until when the others wait for it at least; `None` when they go ahead.
    fn holds_until(&mut self, now: Instant) -> Option<Instant> {
        let (looked, before) = self.looked;
        if now < looked + LOOK {
            return Some(looked + LOOK);
        }
        let after = cpu_time(self.thread)?;
        self.looked = (now, after);
        let computes = after.saturating_sub(before) >= (now - looked) / SHARE;
        let age = now - self.since;
        (age < PATIENCE || (computes && age < LONGEST_WAIT_AT_FIRST)).then(|| now + LOOK)
    }
}

impl FirstRequest {
    /// Waits until the first request has ended, unless this is it. Must not be called attached to
    /// the interpreter. To be held while the request is handled.
    pub(super) fn enter(&self) -> Option<Turn<'_>> {
        if self.is_over.load(Ordering::Acquire) {
            return None;
        }
        let mut first = self.first.lock();
        while !self.is_over.load(Ordering::Acquire) {
            match &mut *first {
                None => {
                    *first = Some(First::begin());
                    return Some(Turn(self));
                }
                Some(it) => match it.holds_until(Instant::now()) {
                    Some(until) => drop(self.ended.wait_until(&mut first, until)),
                    None => self.end(),
                },
            }
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
        let _first = self.0.first.lock();
        self.0.end();
    }
}
