//! Requests whose bodies have not come: how many of them may have a thread.
//!
//! A thread that runs an application whose client does not send waits with it. Owns the permits for
//! such threads, the memory in which bodies are collected without a thread meanwhile, and how many
//! threads those requests need that wait for no client. Never touches a connection:
//! [`super::reactor`] has them. The rules are in docs/server.md, "Uploads".

use super::slow_clients;
use crate::scoreboard;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How much of a body is collected before a thread is spent on the request.
pub(super) const COLLECT_BYTES: usize = 64 << 10;
/// The same where the permits are used up.
pub(super) const HELD_BYTES: usize = 1 << 20;
/// Most memory that the bodies of such requests take together, beyond their first
/// [`COLLECT_BYTES`].
const HELD_BYTES_IN_ALL: usize = 64 << 20;
/// Others that have run together in this time are expected to do so again.
const PEAK_TIME: Duration = Duration::from_secs(1);
/// How soon a request is looked at again of which as much was collected as may be.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Uploads {
    /// Percent of the pool.
    share: usize,
    /// How many permits there are, at least 1.
    most: AtomicUsize,
    /// Permits that are out; they may be more for a while.
    taken: AtomicUsize,
    /// Bytes of bodies.
    memory: AtomicUsize,
    /// Memory was asked for that was not left.
    is_short: AtomicBool,
    /// Requests that wait for a permit.
    held: AtomicUsize,
    /// Those of them of which as much was collected as may be.
    full: AtomicUsize,
}

/// Lets one request have a thread, or wait for one, before its body has come.
#[derive(Debug)]
pub(super) struct Permit(Arc<Uploads>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A request that waits for a permit, and is counted as one until this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    uploads: Arc<Uploads>,
    is_full: bool,
}

impl Waiting {
    /// As much of its body was collected as may be: its client waits for the server.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Says whether that is so; returns true when it has become so.
    pub(super) fn set_full(&mut self, is_full: bool) -> bool {
        let was_full = std::mem::replace(&mut self.is_full, is_full);
        match (was_full, is_full) {
            (false, true) => self.uploads.full.fetch_add(1, Ordering::SeqCst),
            (true, false) => self.uploads.full.fetch_sub(1, Ordering::SeqCst),
            (true, true) | (false, false) => return false,
        };
        is_full
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.set_full(false);
        self.uploads.held.fetch_sub(1, Ordering::SeqCst);
        scoreboard::current().figures().release_upload();
    }
}

/// Memory for a body, until it is dropped.
#[derive(Debug)]
pub(super) struct Memory {
    uploads: Arc<Uploads>,
    bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.uploads.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Uploads {
    pub(super) fn new(pool_size: usize, share: usize) -> Self {
        let uploads = Self {
            share,
            most: AtomicUsize::new(1),
            taken: AtomicUsize::new(0),
            memory: AtomicUsize::new(0),
            is_short: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            full: AtomicUsize::new(0),
        };
        uploads.resize(pool_size);
        uploads
    }

    pub(super) fn resize(&self, pool_size: usize) {
        let most = slow_clients::threads(pool_size, self.share).max(1);
        self.most.store(most, Ordering::Relaxed);
    }

    /// Permits that are out.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// A permit, where fewer than `most` are out.
    fn permit_below(self: &Arc<Self>, most: usize) -> Option<Permit> {
        self.taken
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
                (taken < most).then_some(taken + 1)
            })
            .ok()
            .map(|_| Permit(self.clone()))
    }

    /// A permit of the clients' share.
    pub(super) fn permit(self: &Arc<Self>) -> Option<Permit> {
        self.permit_below(self.most.load(Ordering::Relaxed))
    }

    /// How many permits may be out for another one beyond the share: for a thread that others need
    /// not. `free` threads are idle of `pool_size`, and no more than `peak` others have run at once
    /// lately.
    fn most_beyond(free: usize, pool_size: usize, peak: usize) -> usize {
        if free == 0 {
            return 0;
        }
        pool_size.saturating_sub(peak)
    }

    /// A permit beyond that share: see [`Uploads::most_beyond`].
    pub(super) fn permit_beyond(
        self: &Arc<Self>,
        free: usize,
        pool_size: usize,
        peak: usize,
    ) -> Option<Permit> {
        self.permit_below(Self::most_beyond(free, pool_size, peak))
    }

    /// True while such a permit is left.
    pub(super) fn has_permit_beyond(&self, free: usize, pool_size: usize, peak: usize) -> bool {
        self.taken() < Self::most_beyond(free, pool_size, peak)
    }

    /// True while a permit of the clients' share is left.
    pub(super) fn has_permit(&self) -> bool {
        self.taken() < self.most.load(Ordering::Relaxed)
    }

    /// Counts a request that waits for a permit.
    pub(super) fn wait(self: &Arc<Self>) -> Waiting {
        self.held.fetch_add(1, Ordering::SeqCst);
        scoreboard::current().figures().hold_upload();
        Waiting {
            uploads: self.clone(),
            is_full: false,
        }
    }

    /// True while one waits for its thread because others have all permits, and some of them are to
    /// give way for it: not where uploads may have all threads.
    pub(super) fn is_one_kept_out(&self) -> bool {
        self.has_full() && !self.has_permit() && self.share < 100
    }

    /// True while requests wait for permits.
    pub(super) fn has_held(&self) -> bool {
        self.held.load(Ordering::SeqCst) > 0
    }

    /// True while there are some of which as much was collected as may be.
    pub(super) fn has_full(&self) -> bool {
        self.full.load(Ordering::SeqCst) > 0
    }

    /// True once memory is left again after some was asked for in vain.
    pub(super) fn has_memory_again(&self) -> bool {
        let is_left = self.memory.load(Ordering::Relaxed) + COLLECT_BYTES <= HELD_BYTES_IN_ALL;
        is_left && self.is_short.swap(false, Ordering::Relaxed)
    }

    /// Adds memory for so many more bytes of a body; false where too much is taken.
    pub(super) fn reserve(self: &Arc<Self>, held: &mut Option<Memory>, bytes: usize) -> bool {
        let is_reserved = self
            .memory
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                taken
                    .checked_add(bytes)
                    .filter(|sum| *sum <= HELD_BYTES_IN_ALL)
            })
            .is_ok();
        if is_reserved {
            let held = held.get_or_insert_with(|| Memory {
                uploads: self.clone(),
                bytes: 0,
            });
            held.bytes += bytes;
        } else {
            self.is_short.store(true, Ordering::Relaxed);
        }
        is_reserved
    }
}

/// How many requests have needed a thread at once, those with permits left out, in the last
/// [`PEAK_TIME`] to twice that.
#[derive(Debug)]
pub(super) struct Others {
    /// Those that had a thread when it was counted last, and the permits that were out then.
    busy: usize,
    taken: usize,
    since: Instant,
    peak: usize,
    peak_before: usize,
}

impl Others {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            busy: 0,
            taken: 0,
            since: now,
            peak: 0,
            peak_before: 0,
        }
    }

    /// So many requests have or await a thread `now`, and so many permits are out.
    pub(super) fn note_busy(&mut self, busy: usize, taken: usize, now: Instant) {
        // A permit ends a little before its thread is free: that is no other request.
        let uploads = taken.max(std::mem::replace(&mut self.taken, taken));
        self.busy = busy.saturating_sub(uploads);
        self.note_found(0, now);
    }

    /// So many more were found since then.
    pub(super) fn note_found(&mut self, more: usize, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age >= PEAK_TIME {
            self.peak_before = if age < 2 * PEAK_TIME { self.peak } else { 0 };
            self.peak = 0;
            self.since = now;
        }
        self.peak = self.peak.max(self.busy + more);
    }

    /// See the type's text.
    pub(super) fn peak(&self) -> usize {
        self.peak.max(self.peak_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_a_share_of_the_threads_and_one_at_least() {
        for (pool_size, share, most) in [(20, 50, 10), (1, 50, 1), (3, 100, 3)] {
            let uploads = Arc::new(Uploads::new(pool_size, share));

            let permits: Vec<_> = std::iter::from_fn(|| uploads.permit()).collect();
            assert_eq!(permits.len(), most);
            assert!(!uploads.has_permit());
            drop(permits);

            assert!(uploads.has_permit());
        }
    }

    #[test]
    fn uploads_that_may_have_all_threads_keep_none_out() {
        for (share, is_kept_out) in [(50, true), (100, false)] {
            let uploads = Arc::new(Uploads::new(2, share));
            let permits: Vec<_> = std::iter::from_fn(|| uploads.permit()).collect();
            let mut waiting = uploads.wait();
            waiting.set_full(true);

            assert_eq!(uploads.is_one_kept_out(), is_kept_out);

            drop(permits);
            assert!(!uploads.is_one_kept_out());
        }
    }

    #[test]
    fn beyond_the_share_are_threads_that_others_have_not_needed() {
        let uploads = Arc::new(Uploads::new(20, 50));
        let share: Vec<_> = std::iter::from_fn(|| uploads.permit()).collect();

        let beyond: Vec<_> = std::iter::from_fn(|| uploads.permit_beyond(1, 20, 8)).collect();

        assert_eq!((share.len(), beyond.len()), (10, 2));
        assert!(
            uploads.permit_beyond(0, 20, 0).is_none(),
            "no thread is idle"
        );
        assert!(uploads.permit_beyond(1, 20, 0).is_some());
    }

    #[test]
    fn the_most_that_others_have_needed_is_remembered_for_a_while() {
        let start = Instant::now();
        let mut others = Others::new(start);
        let ms = |ms| start + Duration::from_millis(ms);
        others.note_busy(7, 4, start);
        others.note_found(5, start);

        for (at, busy, seen) in [(900, 5, 8), (1_100, 6, 8), (2_200, 4, 2), (9_000, 5, 1)] {
            others.note_busy(busy, 4, ms(at));
            assert_eq!(others.peak(), seen, "after {at} ms");
        }
    }

    #[test]
    fn a_thread_whose_permit_has_just_ended_is_no_other_request() {
        let now = Instant::now();
        let mut others = Others::new(now);
        others.note_busy(4, 4, now);

        others.note_busy(4, 3, now);
        assert_eq!(others.peak(), 0);
        others.note_busy(4, 3, now);

        assert_eq!(others.peak(), 1);
    }

    #[test]
    fn memory_is_reserved_up_to_its_bound_and_given_back() {
        let uploads = Arc::new(Uploads::new(1, 50));
        let mut held = None;

        assert!(uploads.reserve(&mut held, HELD_BYTES_IN_ALL - 1));
        assert!(uploads.reserve(&mut held, 1));
        assert!(!uploads.reserve(&mut held, 1));
        assert!(!uploads.has_memory_again());
        drop(held);

        assert!(uploads.has_memory_again());
        assert!(!uploads.has_memory_again(), "nobody has asked since");
        assert!(uploads.reserve(&mut None, HELD_BYTES_IN_ALL));
    }

    #[test]
    fn requests_that_wait_are_counted_until_they_do_not() {
        let uploads = Arc::new(Uploads::new(1, 50));
        let (mut one, mut other) = (uploads.wait(), uploads.wait());

        assert!(one.set_full(true) && other.set_full(true));
        assert!(!one.set_full(true), "it was before");
        drop(one);
        assert!(uploads.has_full());
        assert!(!other.set_full(false));
        assert!(uploads.has_held() && !uploads.has_full());
        other.set_full(true);
        drop(other);

        assert!(!uploads.has_held() && !uploads.has_full());
    }
}
