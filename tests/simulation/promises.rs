//! What the supervisor promises, judged after every action.
//!
//! Owns the checks that hold at any moment. What holds only once the world has come to rest is in
//! settling.rs. Each promise is a row or a sentence of docs/lifecycle.md; docs/simulation.md has
//! the table.

use super::kernel::{Asked, Event, Process, Sent};
use super::world::World;
use nix::libc;
use osloxide::supervisor::process::LOST_STATUS;
use osloxide::supervisor::slot::LEAST_PATIENCE;
use osloxide::supervisor::state::{
    FIRST_BACKOFF, LONGEST_BACKOFF, LONGEST_BACKOFF_ALONE, LONGEST_FORK_BACKOFF, STABLE,
};
use osloxide::supervisor::{Command, ORPHAN_GRACE};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::{Duration, Instant};

/// A parent without a pidfd for each worker looks at them this often.
const BLIND_LOOK: Duration = Duration::from_secs(1);
/// It asks for what a tracer keeps this often at first, and then.
const LOOK_AT_TRACED: Duration = Duration::from_millis(50);
const FETCH_TRACED: Duration = Duration::from_secs(10);
/// Workers of a slot at once: the current one and its successor or predecessor.
const MOST_OF_A_SLOT: usize = 2;
/// The same where workers may drain for ever.
const MOST_OF_A_SLOT_FOR_EVER: usize = 10;

impl World {
    /// Notes that *promise* does not hold unless *holds*.
    pub fn promise(&mut self, holds: bool, promise: &str, detail: impl Display) {
        if !holds {
            self.broken.push(format!("{promise}: {detail}"));
        }
    }

    /// Every signal that was sent had its reason.
    pub fn judge_signals(&mut self) {
        let sent = std::mem::take(&mut self.kernel.tables().sent);
        for signal in sent {
            self.judge_signal(signal);
        }
        let faults = std::mem::take(&mut self.kernel.tables().faults);
        for fault in faults {
            self.promise(false, "only live workers are signalled", fault);
        }
    }

    fn judge_signal(&mut self, sent: Sent) {
        let Sent { pid, number, .. } = sent;
        let (now, event, grace) = (self.now, self.event, self.grace());
        let is_stopping = self.is_stopping();
        let (is_aborted, is_mutated) = (
            self.record.is_aborted,
            self.record.mutate_configured > Event(0),
        );
        let timeout = Duration::from_secs(self.setup.worker_timeout);
        let kernel = self.kernel.clone();
        let mut tables = kernel.tables();
        let leaves_early = number == libc::SIGTERM
            && (tables.processes.get(&pid)).is_some_and(|it| {
                let successors = (tables.processes.values())
                    .filter(|other| other.slot == it.slot && other.born > it.born)
                    .filter(|other| other.lives() && other.asked.is_none());
                let is_early =
                    |other: &Process| !other.is_ready && other.forked_at + LEAST_PATIENCE > now;
                it.was_heard && it.asked.is_none() && successors.into_iter().any(is_early)
            });
        self.promise(
            is_stopping || !leaves_early,
            "a worker serves beside its successor until that is ready, or for 30 s",
            pid,
        );
        let Some(process) = tables.processes.get_mut(&pid) else {
            return;
        };
        if process.is_remains() {
            // Nothing comes of it, but that it may count as late.
            self.record.may_be_late |= is_stopping && number != libc::SIGHUP;
            return;
        }
        let is_due = |asked: Asked| {
            let unready = (!asked.was_ready).then_some(STABLE);
            let allowed = grace.into_iter().chain(unready).min();
            allowed.is_some_and(|allowed| asked.at + allowed <= now)
        };
        match number {
            libc::SIGTERM => {
                process.terms += 1;
                let asked = process.asked.get_or_insert(Asked {
                    at: now,
                    event,
                    was_ready: process.was_heard,
                });
                let most = if asked.was_ready { 1 } else { 2 };
                let holds = process.terms <= most;
                self.promise(holds, "SIGTERM once, and once more when ready", pid);
            }
            libc::SIGKILL => {
                process.kills += 1;
                let has_had_words = process.last_words_end().is_some_and(|at| at <= now);
                let is_hung = process.aborted_at.is_some() && !process.is_late;
                let is_due_and_hung = is_hung && process.asked.is_some_and(is_due);
                if is_stopping && !sent.is_before_hit && !process.is_late {
                    // One that hangs may be killed for that, or at the deadline of the stop.
                    self.record.is_late |= !has_had_words;
                    self.record.may_be_late |= has_had_words;
                }
                let holds = is_aborted || has_had_words || is_due_and_hung;
                self.promise(
                    holds,
                    "no SIGKILL before the deadline and the last words",
                    pid,
                );
            }
            libc::SIGABRT => {
                let is_stopped = sent.frozen_since.is_some_and(|at| at + timeout <= now);
                let is_slow = !process.was_heard && process.forked_at + timeout <= now;
                let is_hung = !timeout.is_zero() && (is_stopped || is_slow);
                let is_late = process.asked.is_some_and(is_due);
                let is_first = process.aborted_at.replace(now).is_none();
                process.is_late = is_late;
                self.record.is_late |= is_late && is_stopping && !sent.is_before_hit;
                let holds = (is_hung || is_late) && is_first;
                self.promise(
                    holds,
                    "SIGABRT once, to a worker that hangs or is late",
                    pid,
                );
            }
            libc::SIGHUP => {
                process.hung_up_in = event;
                let holds = is_mutated && process.is_heard;
                self.promise(holds, "SIGHUP only to ready workers, after mutate", pid);
            }
            _ => {}
        }
    }

    /// The supervisor knows exactly the processes that there are, and never too many.
    pub fn judge_processes(&mut self) {
        let known: BTreeSet<i32> = self.supervisor.pids().into_iter().collect();
        // What a tracer has kept is known until it is given up.
        let tables = self.kernel.tables();
        let is_kept = |pid: &i32| tables.processes.get(pid).is_some_and(Process::is_remains);
        let known: BTreeSet<i32> = known.into_iter().filter(|pid| !is_kept(pid)).collect();
        let real = tables.processes.keys().copied();
        let real: BTreeSet<i32> = real.filter(|pid| !is_kept(pid)).collect();
        let odd: Vec<_> = known.symmetric_difference(&real).copied().collect();
        drop(tables);
        self.promise(
            odd.is_empty(),
            "every process is known, until reaped",
            format!("{odd:?}"),
        );
        let most = if self.setup.grace == 0 {
            MOST_OF_A_SLOT_FOR_EVER
        } else {
            MOST_OF_A_SLOT
        };
        for slot in 0..self.setup.slots {
            let of_slot = self.workers_of(slot);
            self.promise(
                of_slot <= most,
                "a slot never has too many workers",
                of_slot,
            );
        }
    }

    fn workers_of(&self, slot: usize) -> usize {
        let tables = self.kernel.tables();
        tables
            .processes
            .values()
            .filter(|it| it.slot == slot && !it.is_remains())
            .count()
    }

    pub fn judge_fork(&mut self, slot: usize) {
        let is_stopping = self.is_stopping();
        self.promise(!is_stopping, "no fork after a stop", slot);
    }

    /// A command that is for the log.
    pub fn judge_command(&mut self, command: Command) {
        match command {
            Command::Exited { pid, status, .. } => {
                let unreported = &mut self.record.unreported;
                let at = unreported.iter().position(|it| *it == (pid, status));
                let was_kept = self.record.kept.remove(&pid);
                if let Some(at) = at {
                    unreported.swap_remove(at);
                }
                let is_known = at.is_some() || (was_kept && status == LOST_STATUS);
                self.promise(is_known, "each end is reported once, with its status", pid);
            }
            Command::Backoff {
                delay, failures, ..
            } => {
                let doubled = |doublings: Option<u32>, longest: Duration| {
                    let factor = doublings.map(|by| 2_u32.saturating_pow(by));
                    factor.map(|factor| FIRST_BACKOFF.saturating_mul(factor).min(longest))
                };
                let of_death = doubled(failures.checked_sub(2), LONGEST_BACKOFF);
                let of_fork = doubled(failures.checked_sub(1), LONGEST_FORK_BACKOFF);
                // Where the one before was told to leave first.
                let alone = doubled(failures.checked_sub(2), LONGEST_BACKOFF_ALONE);
                let holds = [of_death, of_fork, alone].contains(&Some(delay));
                self.promise(
                    holds,
                    "back-off doubles up to its bound",
                    format!("{delay:?}"),
                );
            }
            Command::AllReady => {
                self.record.all_ready += 1;
                let count = self.record.all_ready;
                self.promise(count == 1, "all_ready once for each group", count);
            }
            Command::Stopping { .. } => {
                self.record.stopping += 1;
                let count = self.record.stopping;
                self.promise(count == 1, "stopping is reported once", count);
            }
            Command::Orphan { pid } => {
                let ended = self.kernel.tables().strays.get(&pid).copied();
                let is_due = ended.is_some_and(|at| at + ORPHAN_GRACE <= self.now);
                self.promise(is_due, "an orphan is one, and was left time", pid);
                let status = self.supervisor.reap_orphan(pid);
                self.promise(status == Some(0), "an orphan is reaped", pid);
            }
            Command::LeavesFirst { slot, pid, .. } => {
                let was_told = (self.kernel.tables().processes.get(&pid))
                    .is_none_or(|it| it.slot == slot && (it.asked.is_some() || it.is_remains()));
                self.promise(was_told, "one that leaves first was told to", pid);
            }
            Command::Hung { .. } | Command::Late { .. } => {} // the signals are judged
            other => self.promise(
                other == Command::Interrupted,
                "no command without cause",
                format!("{other:?}"),
            ),
        }
    }

    /// What a tracer keeps, or has kept, is asked for again.
    fn judge_remains(&mut self, deadline: Option<Instant>) {
        let kernel = self.kernel.clone();
        for (pid, _) in (kernel.tables().processes.iter()).filter(|(_, it)| it.is_remains()) {
            let is_unreported = self.record.kept.contains(pid);
            let look = if is_unreported {
                LOOK_AT_TRACED
            } else {
                FETCH_TRACED
            };
            let holds = deadline.is_some_and(|deadline| deadline <= self.now + look);
            self.promise(holds, "what a tracer keeps is asked for", pid);
        }
    }

    /// A parent parks only when there is nothing to do, and with the deadline of what will be.
    pub fn judge_park(&mut self, deadline: Option<Instant>) {
        self.judge_remains(deadline);
        let (now, grace, is_stopping) = (self.now, self.grace(), self.is_stopping());
        let by = |limit: Instant| deadline.is_some_and(|deadline| deadline <= limit);
        let record = &self.record;
        let owed = matches!(
            self.supervisor.phase(),
            osloxide::supervisor::roster::Phase::Reloading { .. }
        );
        let is_heard = is_stopping
            || (record.stop_asked.is_none()
                && (record.reload_handed >= record.reload_asked || owed)
                && record.mutate_handed >= record.mutate_asked);
        let unreported = record.unreported.len();
        self.promise(is_heard, "no request is lost", format!("{:?}", self.record));
        self.promise(
            unreported == 0,
            "each end is reported once, with its status",
            unreported,
        );

        let kernel = self.kernel.clone();
        let tables = kernel.tables();
        for (pid, process) in tables.processes.iter().filter(|(_, it)| !it.is_remains()) {
            self.promise(
                process.lives(),
                "a parked parent has reaped all that ended",
                pid,
            );
            let is_asked = process.asked.is_some() || process.killed || process.kills > 0;
            self.promise(!is_stopping || is_asked, "a stop reaches every worker", pid);
            let is_killed = process.kills > 0;
            let must = self.record.is_aborted && is_stopping;
            self.promise(!must || is_killed, "an abort kills every worker", pid);
            if let (Some(asked), Some(grace), false) = (process.asked, grace, is_killed) {
                let late = process.last_words_end().filter(|_| process.is_late);
                let until = late.unwrap_or(asked.at + grace);
                self.promise(until > now, "a drain ends at its deadline", pid);
                self.promise(by(until), "a parked parent knows each deadline", pid);
                let was_ready = process.reported < asked.event;
                let again = process.terms == 2 || was_ready || !process.is_heard;
                self.promise(
                    again || process.is_late,
                    "SIGTERM again when it is ready",
                    pid,
                );
            }
            if let (Some(at), false) = (process.last_words_end(), is_killed) {
                let is_over = at <= now && (process.asked.is_none() || process.is_late);
                self.promise(
                    !is_over,
                    "a worker that got SIGABRT is killed after its last words",
                    pid,
                );
            }
        }
        let is_unreported = |pid: &i32| self.record.kept.contains(pid);
        let awaited = (tables.processes.iter())
            .filter(|(pid, process)| !process.is_remains() || is_unreported(pid));
        let count = awaited.count();
        let is_quiet = count == self.setup.slots
            && tables.processes.len() == count
            && !owed
            && tables.strays.is_empty()
            && self.setup.worker_timeout == 0
            && tables
                .processes
                .values()
                .all(|it| it.lives() && it.is_heard && it.asked.is_none())
            && tables.processes.values().all(|it| !it.is_blind());
        let is_blind = |it: &Process| it.is_blind() && it.lives();
        let is_blind = tables.processes.values().any(is_blind);
        let oldest = tables.strays.values().min().copied();
        drop(tables);
        self.promise(
            !is_blind || by(now + BLIND_LOOK),
            "without pidfd it looks each second",
            "",
        );
        self.promise(
            oldest.is_none() || deadline.is_some(),
            "a parked parent knows of orphans",
            "",
        );
        if is_stopping {
            self.promise(count > 0, "a stop ends after the last worker", count);
            return;
        }
        self.promise(
            !is_quiet || deadline.is_none(),
            "an idle parent is never woken",
            format!("{:?}", deadline.map(|at| at - now)),
        );
        for slot in 0..self.setup.slots {
            let is_empty = self.workers_of(slot) == 0;
            let holds = !is_empty || by(now + LONGEST_BACKOFF);
            self.promise(holds, "no respawn is lost", slot);
        }
    }

    /// `next()` said that all is over.
    pub fn judge_end(&mut self) {
        let tables = self.kernel.tables();
        let left = tables.processes.values().filter(|it| !it.is_remains());
        let count = left.count();
        drop(tables);
        self.promise(count == 0, "no orphan is left behind", count);
        let is_asked = self.record.stop_asked.is_some();
        self.promise(is_asked, "it ends only after a stop", "");
        let (status, record) = (self.supervisor.exit_status(), &self.record);
        let wanted = i32::from(record.is_aborted || record.is_late);
        let unreported = record.unreported.len();
        let is_open = record.may_be_late;
        self.promise(
            status == wanted || is_open,
            "the exit status says whether all left",
            status,
        );
        self.promise(
            unreported == 0,
            "each end is reported once, with its status",
            unreported,
        );
    }
}
