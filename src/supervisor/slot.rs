//! A slot: the worker that has it, the one that will, and those that had it and still drain.
//!
//! Pure data and questions about it. What happens to a slot is decided by [`super::roster`], what a
//! worker does by [`super::state`]; docs/lifecycle.md has the table of who is in a slot and when.

use super::state::{State, Worker};
use std::time::{Duration, Instant};

/// Workers of one slot that may drain for ever at a time; a reload waits for one of them then.
pub const MOST_DRAINING: usize = 8;

/// How many times as long as the longest recent start of its group a successor may take before it
/// counts as one that waits for what the current worker has.
pub const STARTS_OF_PATIENCE: u32 = 3;
/// It may take so long in any case: a start of a second takes as long as this while a database fails
/// over or caches are cold, and too early a leave costs capacity, where a late one costs only time.
pub const LEAST_PATIENCE: Duration = Duration::from_secs(30);
/// And never longer: a start that took minutes was held up with the whole machine.
pub const MOST_PATIENCE: Duration = Duration::from_secs(600);

/// Which of the workers of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The one that keeps the slot.
    Current,
    /// The one that starts while the current one still serves.
    Successor,
    /// One that drains after its successor became ready, counted from the one replaced first.
    Predecessor(usize),
}

/// A worker that ended, as [`super::roster::Roster::exited`] found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// Its slot.
    pub slot: usize,
    /// True when its place in the slot remains, for it will be forked again.
    pub is_respawned: bool,
    /// True when the slot waits before that fork.
    pub is_put_off: bool,
}

/// A place for one worker at a time, and for others while that one is being replaced.
#[derive(Debug)]
pub struct Slot {
    /// Number of its group.
    pub group: usize,
    /// How often it was forked again after its worker ended.
    pub respawns: u32,
    /// Wait status of its previous worker.
    pub last_exit: Option<i32>,
    /// Its group was made smaller: the worker leaves and none follows.
    pub(super) is_closed: bool,
    pub(super) current: Worker,
    pub(super) successor: Option<Worker>,
    pub(super) predecessors: Vec<Worker>,
    /// Successors failed beside the current worker in this round, so the next one waits for its end.
    pub(super) fails_beside: bool,
    /// The longest that a worker has taken to get ready, half as much with each later one.
    pub(super) longest_start: Duration,
    /// When a worker last ended beside one that was starting, which may have waited for that.
    alone_since: Option<Instant>,
}

impl Slot {
    /// A slot of *group* whose worker is to be forked.
    #[must_use]
    pub const fn new(group: usize, current: Worker) -> Self {
        Self {
            group,
            respawns: 0,
            last_exit: None,
            is_closed: false,
            current,
            successor: None,
            predecessors: Vec::new(),
            fails_beside: false,
            longest_start: Duration::ZERO,
            alone_since: None,
        }
    }

    /// Its workers, whoever has a process or will have one.
    pub fn workers(&self) -> impl Iterator<Item = (Role, &Worker)> {
        let current = [(Role::Current, &self.current)].into_iter();
        let successor = self.successor.iter().map(|it| (Role::Successor, it));
        let predecessors = self.predecessors.iter().enumerate();
        current
            .chain(successor)
            .chain(predecessors.map(|(index, it)| (Role::Predecessor(index), it)))
    }

    pub(super) fn worker(&mut self, role: Role) -> Option<&mut Worker> {
        match role {
            Role::Current => Some(&mut self.current),
            Role::Successor => self.successor.as_mut(),
            Role::Predecessor(index) => self.predecessors.get_mut(index),
        }
    }

    /// True when one more worker may come. One that has to leave by its deadline is waited for; of
    /// those that may drain for ever there can be [`MOST_DRAINING`].
    pub(super) fn has_room(&self) -> bool {
        let leaves_in_time = |worker: &Worker| {
            worker.deadline().is_some() || matches!(worker.state, State::Killing { .. })
        };
        self.predecessors.len() < MOST_DRAINING && !self.predecessors.iter().any(leaves_in_time)
    }

    /// When a successor that is not ready by then has the current worker leave first; `None` where no
    /// successor starts beside one that serves. *longest* is the longest recent start of the group.
    pub(super) fn leaves_first_at(&self, longest: Duration) -> Option<Instant> {
        let (State::Running { .. }, State::Starting { forked, .. }) =
            (self.current.state, self.successor?.state)
        else {
            return None;
        };
        let patience = longest.saturating_mul(STARTS_OF_PATIENCE);
        forked.checked_add(patience.clamp(LEAST_PATIENCE, MOST_PATIENCE))
    }

    /// A worker that was forked then is ready now. Of the time beside one that has ended since,
    /// [`LEAST_PATIENCE`] counts at most: else each wait would make the next one longer.
    pub(super) fn note_start(&mut self, forked: Instant, now: Instant) {
        let alone = self.alone_since.take().filter(|at| *at >= forked);
        let beside = alone.map_or(Duration::ZERO, |at| at.saturating_duration_since(forked));
        let since = now.saturating_duration_since(alone.unwrap_or(forked));
        let took = since.saturating_add(beside.min(LEAST_PATIENCE));
        self.longest_start = took.max(self.longest_start / 2);
    }

    /// A worker has ended beside the others.
    pub(super) fn note_departure(&mut self, now: Instant) {
        let is_starting = |worker: &Worker| matches!(worker.state, State::Starting { .. });
        if self.role_of(is_starting).is_some() {
            self.alone_since = Some(now);
        }
    }

    /// True when its worker was told to leave and another is to follow.
    pub(super) const fn is_leaving(&self) -> bool {
        !self.is_closed
            && matches!(
                self.current.state,
                State::Draining { .. } | State::Aborting { .. } | State::Killing { .. }
            )
    }

    pub(super) fn role_of(&self, is_wanted: impl Fn(&Worker) -> bool) -> Option<Role> {
        self.workers()
            .find(|(_, worker)| is_wanted(worker))
            .map(|(role, _)| role)
    }

    pub(super) fn live(&self) -> usize {
        self.workers()
            .filter(|(_, worker)| worker.pid().is_some())
            .count()
    }
}
