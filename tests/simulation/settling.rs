//! How a world comes to rest once its faults are over, and what then holds.
//!
//! Owns the two ends of every trace. *Recovery*: forks succeed, workers get ready and do what they
//! are told, time passes; then every slot is served by the newest configuration. *Stop*: a stop is
//! requested; then every process leaves within the grace period. What no parent can mend ends at
//! the beginning of both: a sleep in the kernel, and a stopped worker that no timeout watches.

use super::action::Action;
use super::kernel::Process;
use super::world::{Python, World};
use osloxide::signals::Request;
use osloxide::supervisor::roster::Phase;
use std::time::{Duration, Instant};

/// Far more than any world needs to come to rest.
const MOST_STEPS: usize = 10_000;
/// Two rounds in which each of two slots waits for a start as long as can be and for a drain, after the
/// longest back-off.
const LONGEST_RECOVERY: Duration = Duration::from_secs(3_000);
/// What a stop may take beyond the grace period: a look without a pidfd, the last words of a worker.
const STOP_SLACK: Duration = Duration::from_secs(3);

impl World {
    /// Does for the workers and for Python what is next. False when all wait for time to pass.
    fn proceed(&mut self) -> bool {
        match self.python {
            Python::Ended => return false,
            Python::Forking { .. } => self.act(Action::Fork),
            Python::Configuring(_) => self.act(Action::Configured),
            Python::Free | Python::GaveUp => {
                self.act(Action::Next);
                if self.parked.is_some() {
                    return self.workers_proceed();
                }
            }
        }
        true
    }

    fn workers_proceed(&mut self) -> bool {
        let mut is_any = false;
        let count = self.kernel.tables().processes.len();
        for worker in 0..count {
            for action in [Action::Report(worker), Action::Obey(worker)] {
                if self.is_possible(action) {
                    is_any = true;
                    self.act(action);
                }
            }
        }
        is_any
    }

    fn end_faults_that_no_parent_mends(&mut self) {
        let (is_watching, is_patient) = (self.setup.worker_timeout != 0, self.setup.grace == 0);
        let kernel = self.kernel.clone();
        for process in kernel.tables().processes.values_mut() {
            process.faults.is_stuck = false;
            let has_deadline = process.asked.is_some() && !is_patient;
            let is_watched = is_watching && process.is_ready;
            if !(has_deadline || is_watched) {
                process.faults.is_frozen = false;
            }
            if is_patient && process.faults.is_stubborn {
                // It may drain for ever, and at last it does leave.
                process.faults.is_stubborn = false;
                process.terminated |= process.asked.is_some();
            }
        }
    }

    /// Runs until *`is_at_rest`*; false when *limit* passes first.
    fn run_until(&mut self, limit: Instant, is_at_rest: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..MOST_STEPS {
            if !self.broken.is_empty() || is_at_rest(self) {
                return true;
            }
            if self.proceed() {
                continue;
            }
            self.end_faults_that_no_parent_mends();
            match self.parked {
                Some(Some(deadline)) if self.now.max(deadline) <= limit => {
                    self.act(Action::Wait);
                }
                _ => return is_at_rest(self),
            }
        }
        false
    }

    /// Nothing fails any more: the whole gets to full strength and to the newest configuration.
    /// Does nothing where a stop was requested.
    pub fn recover(&mut self) {
        if self.record.stop_asked.is_some() || matches!(self.python, Python::GaveUp) {
            return;
        }
        self.end_faults_that_no_parent_mends();
        let limit = self.now + LONGEST_RECOVERY;
        let is_over = self.run_until(limit, Self::has_recovered);
        if self.python == Python::GaveUp {
            return;
        }
        let detail = format!(
            "{:?}, phase {:?}, {:?}",
            self.record,
            self.supervisor.phase(),
            self.kernel.tables().processes
        );
        self.promise(
            is_over,
            "full strength comes back and a reload converges",
            detail,
        );
    }

    fn has_recovered(&self) -> bool {
        let record = &self.record;
        let tables = self.kernel.tables();
        let workers = || tables.processes.values().filter(|it| !it.is_remains());
        let mut slots: Vec<_> = workers().map(|it| it.slot).collect();
        slots.sort_unstable();
        let is_current = |it: &Process| {
            let is_mutated = it.born > record.mutate_configured
                || (it.hung_up_in >= record.mutate_configured && !it.hung_up);
            it.is_heard && it.asked.is_none() && it.born > record.reload_configured && is_mutated
        };
        let configured = record.reload_configured.max(record.mutate_configured);
        self.parked.is_some()
            && self.supervisor.phase() == Phase::Running
            && slots.into_iter().eq(0..self.setup.slots)
            && workers().all(is_current)
            && workers().all(|it| !it.faults.is_frozen)
            && tables.strays.is_empty()
            && record.all_ready == 1
            && record.reload_handed >= record.reload_asked
            && record.mutate_handed >= record.mutate_asked
            && (record.reloaded >= configured || record.dropped > configured)
    }

    /// A stop is requested, unless it was: everything ends within the grace period, well where every
    /// worker does what it is told.
    pub fn stop(&mut self) {
        let was_asked = self.record.stop_asked.is_some();
        if !was_asked {
            self.parked = None; // time may have passed since
            while self.python != Python::GaveUp && self.parked.is_none() && self.broken.is_empty() {
                self.proceed();
            }
        }
        self.end_faults_that_no_parent_mends();
        let is_obedient = self.kernel.tables().processes.values().all(|it| {
            let is_held_up = it.faults.is_frozen && it.asked.is_some();
            !it.faults.is_stubborn && !is_held_up
        });
        if !was_asked {
            self.act(Action::Ask(Request::Stop));
        }
        let limit = self.now + self.grace().unwrap_or_default() + STOP_SLACK;
        let is_over = self.run_until(limit, |world| world.python == Python::Ended);
        let detail = format!("{:?}", self.kernel.tables().processes);
        self.promise(is_over, "every stop ends within the grace period", detail);
        if !was_asked && is_obedient && self.broken.is_empty() {
            let status = self.supervisor.exit_status();
            self.promise(status == 0, "workers that obey are never killed", status);
        }
    }
}
