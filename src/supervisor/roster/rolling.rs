//! Rolling replacement: one worker after the other, each by one that serves already.
//!
//! Owns the round of a reload, and the workers that ask to be replaced outside of one. A round never
//! takes a serving worker away before its successor serves, but where the successor fails, or does not
//! come to the end of its start, for as long as the other lives. Code that cannot be loaded takes none
//! away. One that leaves is not waited for.
//! Rules: docs/lifecycle.md.

use super::{Phase, Roster};
use crate::signals::Request;
use crate::supervisor::Command;
use crate::supervisor::slot::Role;
use crate::supervisor::state::{Event, STABLE, State, Worker};
use std::time::{Duration, Instant};

impl Roster {
    pub(super) fn begin_round(&mut self, now: Instant) {
        self.generation += 1;
        // Even where workers may drain for ever: this one has nothing to drain, and the round waits.
        let grace = self.grace.map_or(STABLE, |grace| grace.min(STABLE));
        let deadline = Some(now + grace);
        for index in 0..self.slots.len() {
            self.slots[index].fails_beside = false; // what made them fail may be mended
            // Left over from a round that stalled: it never served.
            if let Some(unready) = self.slots[index].successor.take() {
                self.retire(index, unready, deadline, now);
            }
        }
        self.phase = Phase::Reloading { cursor: 0 };
        self.advance_round(now);
    }

    /// Goes as far with the replacement of workers as is possible now.
    pub(super) fn advance_round(&mut self, now: Instant) {
        self.replace_all(now);
        self.replace_worn(now);
        self.report_ready(); // a worker that took the place of one which was not
    }

    /// A worker that was told to leave first accepts nothing any more, and may drain for ever: the
    /// next one starts beside it, wherever the round is.
    fn follow_leaving(&mut self, now: Instant) {
        let Phase::Reloading { cursor } = self.phase else {
            return;
        };
        for index in cursor..self.slots.len() {
            let slot = &mut self.slots[index];
            if !slot.is_leaving() || self.hand_over(index, now) {
                continue;
            }
            let slot = &mut self.slots[index];
            if slot.successor.is_none() && !slot.fails_beside && slot.has_room() {
                slot.successor = Some(Worker::new(self.generation));
            }
        }
    }

    /// Has the successor in slot *index* take the place of the current worker, if it is ready.
    fn hand_over(&mut self, index: usize, now: Instant) -> bool {
        let slot = &mut self.slots[index];
        let is_running = |worker: &mut Worker| matches!(worker.state, State::Running { .. });
        let Some(successor) = slot.successor.take_if(is_running) else {
            return false;
        };
        let replaced = std::mem::replace(&mut slot.current, successor);
        self.retire(index, replaced, self.deadline_from(now), now);
        true
    }

    fn replace_all(&mut self, now: Instant) {
        self.follow_leaving(now);
        while let Phase::Reloading { cursor } = self.phase {
            let (generation, longest) = (self.generation, self.longest_start(cursor));
            let Some(slot) = self.slots.get_mut(cursor) else {
                self.phase = Phase::Running;
                if std::mem::take(&mut self.is_reload_owed) {
                    self.configure(Request::Reload);
                } else {
                    self.commands.push_back(Command::Reloaded);
                }
                return;
            };
            if slot.is_closed {
                self.phase = Phase::Reloading { cursor: cursor + 1 };
            } else if slot.current.generation == generation {
                if !matches!(slot.current.state, State::Running { .. }) {
                    return;
                }
                self.phase = Phase::Reloading { cursor: cursor + 1 };
            } else if slot.current.pid().is_none() {
                // No worker to replace: fork the new generation right away, also after failures.
                slot.current = slot.current.renewed(generation);
                return;
            } else if slot.is_leaving() {
                return; // the next worker starts beside it, or follows when it has left
            } else if slot.successor.is_none() {
                if slot.has_room() {
                    slot.successor = Some(Worker::new(generation));
                }
                return;
            } else if slot.leaves_first_at(longest).is_some_and(|at| at <= now) {
                let forked = slot.successor.and_then(|successor| successor.forked());
                let waited = forked.map(|forked| now.saturating_duration_since(forked));
                self.leave_first(cursor, waited, now);
                return;
            } else if self.hand_over(cursor, now) {
                self.phase = Phase::Reloading { cursor: cursor + 1 };
            } else {
                return;
            }
        }
    }

    /// Goes as far with the replacement of the worker that asked for it first as is possible now.
    pub(super) fn replace_worn(&mut self, now: Instant) {
        while self.phase == Phase::Running
            && let Some(pid) = self.worn.front().copied()
        {
            let Some((index, Role::Current)) = self.find(pid) else {
                self.worn.pop_front(); // it was replaced, or ended by itself
                continue;
            };
            let slot = &mut self.slots[index];
            if !matches!(slot.current.state, State::Running { .. }) || self.hand_over(index, now) {
                self.worn.pop_front(); // it is leaving, or hangs and is ended, or has been replaced
                continue;
            }
            let slot = &mut self.slots[index];
            if slot.successor.is_none() && slot.has_room() {
                slot.successor = Some(Worker::new(self.generation));
            }
            return;
        }
    }

    /// A successor that fails again and again while the current worker serves may need something that
    /// only one process can have, a port for one: then the current worker leaves first. Not called
    /// for one that ended with [`CANNOT_LOAD`](super::CANNOT_LOAD).
    pub(super) fn drain_first(&mut self, index: usize, now: Instant) {
        if !matches!(self.phase, Phase::Reloading { .. }) {
            // The worker that is to be replaced still serves, and what comes after it may not.
            return;
        }
        let slot = &mut self.slots[index];
        if slot.successor.is_some_and(|it| it.fails_again()) {
            slot.successor = None;
            slot.fails_beside = true;
            // Nothing is put off: the next fork waits for the current worker alone.
            self.commands.retain(
                |command| !matches!(command, Command::Backoff { slot, .. } if *slot == index),
            );
            self.leave_first(index, None, now);
        }
    }

    /// Has the current worker of slot *index* leave before another serves, and says why.
    fn leave_first(&mut self, index: usize, waited: Option<Duration>, now: Instant) {
        let slot = &self.slots[index];
        if let Some(pid) = slot.current.pid() {
            self.commands.push_back(Command::LeavesFirst {
                group: slot.group,
                slot: index,
                pid,
                waited,
            });
        }
        let slot = &mut self.slots[index];
        slot.successor = slot.successor.map(Worker::alone);
        let deadline = self.deadline_from(now);
        self.apply(index, Role::Current, Event::Stop { deadline }, now);
    }

    /// A successor that takes long beside the current worker may wait for something that only one
    /// process can have, a lock for one. When the current worker then leaves for it.
    pub(super) fn predecessor_leaves_at(&self) -> Option<Instant> {
        let Phase::Reloading { cursor } = self.phase else {
            return None;
        };
        let longest = self.longest_start(cursor);
        self.slots.get(cursor)?.leaves_first_at(longest)
    }

    /// The longest recent start in the group of slot *index*: what one slot has just shown to be usual
    /// holds for the others.
    fn longest_start(&self, index: usize) -> Duration {
        let group = self.slots.get(index).map(|slot| slot.group);
        let of_group = (self.slots.iter()).filter(|slot| Some(slot.group) == group);
        of_group
            .map(|slot| slot.longest_start)
            .max()
            .unwrap_or_default()
    }

    /// Has a worker leave that lost its place in slot *index*; one without a process is gone at once.
    pub(super) fn retire(
        &mut self,
        index: usize,
        worker: Worker,
        deadline: Option<Instant>,
        now: Instant,
    ) {
        let slot = &mut self.slots[index];
        let role = Role::Predecessor(slot.predecessors.len());
        slot.predecessors.push(worker);
        self.apply(index, role, Event::Stop { deadline }, now);
        let slot = &mut self.slots[index];
        slot.predecessors.retain(|worker| worker.pid().is_some());
    }

    /// True when the round waits for a worker that cannot get ready.
    pub(super) fn is_round_stalled(&self, cursor: usize, now: Instant) -> bool {
        let is_new = |worker: &Worker| worker.generation == self.generation;
        self.slots.get(cursor).is_some_and(|slot| {
            (slot.is_leaving() && slot.successor.is_none())
                || slot
                    .workers()
                    .any(|(_, worker)| is_new(worker) && worker.is_stalled(now))
        })
    }
}
