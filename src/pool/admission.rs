//! Admission: the promise that every job begins, whatever the tuning of the limit decides.
//!
//! Owns the order of the jobs that wait, when each of them began to wait, and the invariant of the
//! pool: **while fewer jobs run than the maximum, none waits longer than [`LONGEST_WAIT`]**, or than
//! [`LONGEST_WAIT_AT_FIRST`] until [`FIRST_JOBS`] have ended or one has waited for that long. The [gate](super::gate) may only choose
//! within it: it lets jobs in earlier. Pure: knows no thread and reads no clock. The rule is stated in
//! docs/server.md.
//!
//! The first jobs of a process make what all later ones use: tables of routes, mappings of a database,
//! modules that are imported late. Applications that were written for green threads do so without a
//! lock, or behind one that does not ask again whether the work is done. Begun side by side, each of the
//! first jobs does all of it.

use super::sync::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a job waits at most while fewer jobs run than the maximum.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(750);
/// The same until the pool is settled.
pub(super) const LONGEST_WAIT_AT_FIRST: Duration = Duration::from_secs(5);
/// After so many ends a pool is settled, if not before. More than one, as probes come before requests that do
/// everything.
pub(super) const FIRST_JOBS: u64 = 16;

/// Jobs in the order of their arrival, and since when each waits.
#[derive(Debug)]
pub(super) struct Waiting<J> {
    jobs: VecDeque<(Instant, J)>,
    longest_wait: Duration,
}

impl<J> Waiting<J> {
    pub(super) const fn new() -> Self {
        Self {
            jobs: VecDeque::new(),
            longest_wait: LONGEST_WAIT_AT_FIRST,
        }
    }

    /// [`FIRST_JOBS`] have ended, or one has waited for as long as any may.
    pub(super) fn settle(&mut self) {
        self.longest_wait = LONGEST_WAIT;
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
        self.jobs
            .front()
            .map(|(since, _)| *since + self.longest_wait)
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
            .partition_point(|(since, _)| *since + self.longest_wait <= now);
        tuned.max(overdue.min(room))
    }

    /// The job that waits longest, if one may begin `now`; see [`Waiting::admissible`].
    pub(super) fn admit(
        &mut self,
        running: usize,
        limit: usize,
        max: usize,
        now: impl FnOnce() -> Instant,
    ) -> Option<J> {
        // The clock is read only where the answer depends on it.
        let is_admitted = running < limit.min(max)
            || (running < max && self.due().is_some_and(|due| due <= now()));
        if is_admitted {
            self.jobs.pop_front().map(|(_, job)| job)
        } else {
            None
        }
    }
}
