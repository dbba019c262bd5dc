//! Admission: the promise that every job begins, whatever the tuning of the limit decides.
//!
//! Owns the order of the jobs that wait, when each of them began to wait, and the invariant of the
//! pool: **while fewer jobs run than the maximum, none waits longer than [`LONGEST_WAIT`]**, or than
//! [`LONGEST_WAIT_AT_FIRST`] until the pool is settled. The [gate](super::gate) may only choose within
//! it: it lets jobs in earlier. Pure: knows no thread and reads no clock. The rule, and why a new pool
//! has one of its own, is stated in docs/server.md.

use super::sync::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a job waits at most while fewer jobs run than the maximum.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(750);
/// The same in a pool that is not settled, where the first jobs make what the others use.
pub const LONGEST_WAIT_AT_FIRST: Duration = Duration::from_secs(5);
/// Jobs that have computed for as long as [`COMPUTES_FROM`] after which a pool is settled.
const FIRST_JOBS: u64 = 16;
/// CPU time from which on a job counts as one of them: a probe is none, nor is what only hands
/// something on.
const COMPUTES_FROM: Duration = Duration::from_millis(5);
/// CPU time of all lighter jobs together after which it is settled as well: hours of probes, or an
/// application whose requests are all light.
const LIGHT_JOBS: Duration = Duration::from_millis(500);

/// Jobs in the order of their arrival, and since when each waits.
#[derive(Debug)]
pub(super) struct Waiting<J> {
    jobs: VecDeque<(Instant, J)>,
    settled_at: Option<Instant>,
    /// Jobs that have computed, and the CPU time of all others, until the pool is settled.
    computed: u64,
    light: Duration,
}

impl<J> Waiting<J> {
    pub(super) const fn new() -> Self {
        Self {
            jobs: VecDeque::new(),
            settled_at: None,
            computed: 0,
            light: Duration::ZERO,
        }
    }

    /// A job has ended that took so much CPU time, at a moment when the pool was not settled.
    pub(super) fn count_first(&mut self, computed: Duration, now: impl FnOnce() -> Instant) {
        if computed >= COMPUTES_FROM {
            self.computed += 1;
        } else {
            self.light += computed;
        }
        if self.computed >= FIRST_JOBS || self.light >= LIGHT_JOBS {
            self.settle(now());
        }
    }

    /// The pool is settled from `now` on. Jobs that wait do not become due all at once by that.
    pub(super) fn settle(&mut self, now: Instant) {
        self.settled_at.get_or_insert(now);
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled_at.is_some()
    }

    /// When a job that waits since then must have been let in.
    fn due_of(&self, since: Instant) -> Instant {
        let at_first = since + LONGEST_WAIT_AT_FIRST;
        self.settled_at
            .map_or(at_first, |at| at_first.min(since.max(at) + LONGEST_WAIT))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Takes in jobs that arrived `now`.
    pub(super) fn extend(&mut self, jobs: impl IntoIterator<Item = J>, now: Instant) {
        self.jobs.extend(jobs.into_iter().map(|job| (now, job)));
    }

    /// When the oldest job must have been let in; `None` without one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.jobs.front().map(|(since, _)| self.due_of(*since))
    }

    /// How many jobs may begin `now`, where `running` run, the gate admits up to `limit` at once and
    /// `max` are the most that may ever run at once.
    pub(super) fn admissible(
        &self,
        running: usize,
        limit: usize,
        max: usize,
        now: Instant,
    ) -> usize {
        let room = max.saturating_sub(running).min(self.len());
        let tuned = limit.saturating_sub(running).min(room);
        if tuned == room || self.due().is_none_or(|due| due > now) {
            return tuned;
        }
        // Sorted by age: jobs are taken in as they arrive.
        let overdue = self
            .jobs
            .partition_point(|(since, _)| self.due_of(*since) <= now);
        tuned.max(overdue.min(room))
    }

    /// The job that waits longest, if one may begin `now`; see [`Waiting::admissible`]. One that begins
    /// by its age settles the pool: what runs instead is not over soon.
    pub(super) fn admit(
        &mut self,
        running: usize,
        limit: usize,
        max: usize,
        now: impl FnOnce() -> Instant,
    ) -> Option<J> {
        // The clock is read only where the answer depends on it.
        if running >= limit.min(max) {
            let due = self.due().filter(|_| running < max)?;
            let now = now();
            if due > now {
                return None;
            }
            self.settle(now);
        }
        self.jobs.pop_front().map(|(_, job)| job)
    }
}
