//! Replies on their way to the broker, which no thread waits for.
//!
//! Owns how many of one listener's replies the broker has not confirmed, and what becomes of those that
//! it never will. Sends nothing.
//!
//! Rules: RabbitMQ's publisher confirms; docs/rpc.md.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::locks::{Condvar, Mutex};

use super::{Event, Message};

/// How many late replies there may be for each that may be unconfirmed: clients that are gone leave
/// many, and each is kept and sent now and then.
const MOST_LATE: usize = 16;

/// A reply that is not on its way any more: its queue, its body, and why.
#[derive(Debug)]
pub struct FailedReply {
    /// The client's.
    pub queue: String,
    /// As it was sent.
    pub body: Vec<u8>,
    /// The last word on it.
    pub end: Event,
}

type OnFailure = Box<dyn Fn(FailedReply) + Send + Sync>;

/// Failures that are still to be told, by the thread of a client, which holds no lock then.
pub(super) type Failures = Mutex<Vec<(Arc<Outbox>, FailedReply)>>;

/// The replies of one listener.
pub struct Outbox {
    counts: Mutex<Counts>,
    changed: Condvar,
    failures: Arc<Failures>,
    on_failure: OnFailure,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    unconfirmed: usize,
    /// Their queues were missing when they were sent; they are tried again now and then.
    late: usize,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("counts", &*self.counts.lock())
            .finish_non_exhaustive()
    }
}

impl Outbox {
    pub(super) fn new(failures: Arc<Failures>, on_failure: OnFailure) -> Self {
        Self {
            counts: Mutex::default(),
            changed: Condvar::new(),
            failures,
            on_failure,
        }
    }

    /// Waits until less than *most* replies are unconfirmed, and less than 16 times as many wait for
    /// queues that are missing, or *deadline*. False when there is no room.
    pub fn wait_for_room(&self, most: usize, deadline: Instant) -> bool {
        let most = most.max(1);
        self.wait(deadline, |counts| {
            counts.unconfirmed < most && counts.late < most.saturating_mul(MOST_LATE)
        })
    }

    /// Waits until all replies are confirmed, or *deadline*; how many are not, and how many wait for
    /// their queues.
    pub fn wait_confirmed(&self, deadline: Instant) -> (usize, usize) {
        self.wait(deadline, |counts| counts.unconfirmed == 0);
        let counts = *self.counts.lock();
        (counts.unconfirmed, counts.late)
    }

    fn wait(&self, deadline: Instant, is_done: impl Fn(&Counts) -> bool) -> bool {
        let mut counts = self.counts.lock();
        while !is_done(&counts) {
            if self.changed.wait_until(&mut counts, deadline).timed_out() {
                return is_done(&counts);
            }
        }
        true
    }

    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock());
        self.changed.notify_all();
    }

    pub(super) fn enter(&self) {
        self.change(|counts| counts.unconfirmed += 1);
    }

    /// The queue of a reply is missing.
    pub(super) fn put_off(&self) {
        self.change(|counts| {
            counts.unconfirmed = counts.unconfirmed.saturating_sub(1);
            counts.late += 1;
        });
    }

    /// A reply is confirmed, or has failed; it *was late*, or was not.
    pub(super) fn leave(&self, was_late: bool) {
        self.change(|counts| {
            let count = if was_late {
                &mut counts.late
            } else {
                &mut counts.unconfirmed
            };
            *count = count.saturating_sub(1);
        });
    }

    /// A reply has failed.
    pub(super) fn fail(self: &Arc<Self>, message: &Message, was_late: bool, end: Event) {
        self.leave(was_late);
        let failed = FailedReply {
            queue: message.routing_key.clone(),
            body: message.body.clone(),
            end,
        };
        self.failures.lock().push((Arc::clone(self), failed));
    }
}

/// Tells what has failed since the last time. No lock may be held.
pub(super) fn tell(failures: &Failures) {
    let failed = std::mem::take(&mut *failures.lock());
    for (outbox, failed) in failed {
        (outbox.on_failure)(failed);
    }
}
