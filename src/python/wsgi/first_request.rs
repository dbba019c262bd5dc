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
use crate::pool::{COMPUTES_FROM, LONGEST_WAIT_AT_FIRST, MOST_FIRST_JOBS};
use crate::threads::{cpu_time, own_cpu_time};

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
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    first: Option<First>,
    waiting: usize,
    /// First requests that were none: they made nothing, and no other one waited.
    light: u64,
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
        let mut state = self.state.lock();
        state.waiting += 1;
        let mut is_first = false;
        while !is_first && !self.is_over.load(Ordering::Acquire) {
            match &mut state.first {
                None => {
                    state.first = Some(First::begin());
                    is_first = true;
                }
                Some(first) => match first.holds_until(Instant::now()) {
                    Some(until) => drop(self.ended.wait_until(&mut state, until)),
                    None => self.end(),
                },
            }
        }
        state.waiting -= 1;
        is_first.then(|| Turn {
            of: self,
            began: own_cpu_time(),
        })
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.ended.notify_all();
    }
}

/// The first request; when it is dropped, panic or not, the others go ahead.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    of: &'a FirstRequest,
    /// CPU time of its thread.
    began: Duration,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Under the lock, or one that has just looked would sleep past it.
        let mut state = self.of.state.lock();
        let computed = own_cpu_time().saturating_sub(self.began);
        state.light += 1;
        if computed < COMPUTES_FROM && state.waiting == 0 && state.light < MOST_FIRST_JOBS {
            // A probe makes none of what the next request makes.
            state.first = None;
        } else {
            self.of.end();
        }
    }
}
