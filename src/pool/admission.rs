//! Admission: the promise that every job begins, whatever the tuning of the limit decides.
//!
//! Owns the order of the jobs that wait, when each of them began to wait, and the invariant of the
//! pool: **while fewer jobs run than the maximum, none waits longer than [`LONGEST_WAIT`]**. The
//! [gate](super::gate) may only choose within it: it lets jobs in earlier. Pure: knows no thread and
//! reads no clock. The rule is stated in docs/server.md.

use super::sync::Instant;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a job waits at most while fewer jobs run than the maximum.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(750);

/// Jobs in the order of their arrival, and since when each waits.
#[derive(Debug)]
pub(super) struct Waiting<J>(VecDeque<(Instant, J)>);

impl<J> Waiting<J> {
    pub(super) const fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes in jobs that arrived `now`.
    pub(super) fn extend(&mut self, jobs: impl IntoIterator<Item = J>, now: Instant) {
        self.0.extend(jobs.into_iter().map(|job| (now, job)));
    }

    /// When the oldest job must have been let in; `None` without one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.front().map(|(since, _)| *since + LONGEST_WAIT)
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
            .0
            .partition_point(|(since, _)| *since + LONGEST_WAIT <= now);
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
            self.0.pop_front().map(|(_, job)| job)
        } else {
            None
        }
    }
}
