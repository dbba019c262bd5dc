//! What a pool knows at one moment, under its lock: roles, jobs that run, jobs that wait.
//!
//! Owns the bookkeeping and the questions that are asked of it. Starts, wakes and ends no thread.

use super::admission::Waiting;
use super::gate::{self, Gate, Streak};
use super::sync::{Condvar, Instant};
use super::threads::SpareCpu;
use nix::unistd::Pid;
use std::sync::Arc;
use std::time::Duration;

/// Where a thread sleeps while it is idle.
#[derive(Default)]
pub(super) struct IdleThread {
    pub(super) condvar: Condvar,
}

/// When the alarm wakes the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AlarmTime {
    /// Nothing happens that it should look at.
    Never,
    At(Instant),
    /// It is wanted and must not be put off.
    Now,
}

/// A job that runs, and what the looks at it found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running {
    pub(super) thread: Pid,
    pub(super) computing: Streak,
}

pub(super) struct State<J> {
    pub(super) ready: Waiting<J>,
    pub(super) gate: Gate,
    pub(super) spare: SpareCpu,
    /// Counts leaders, so that a thread can tell whether it still is the one.
    pub(super) term: u64,
    /// False for the moment between two leaders.
    pub(super) is_led: bool,
    pub(super) leader: Option<Pid>,
    /// Number of the job that the leader is inside of, 0 while it waits.
    pub(super) leader_call: u64,
    /// When that job began.
    pub(super) call_since: Instant,
    pub(super) calls: u64,
    /// What the leader was told of room when it entered [`Source::wait`]; `None` while it is not there,
    /// or has heard since that there is some.
    pub(super) told_free: Option<usize>,
    pub(super) running: Vec<Running>,
    /// Threads inside jobs that were given up; they count nowhere else.
    pub(super) abandoned: Vec<Pid>,
    pub(super) idle: Vec<Arc<IdleThread>>,
    pub(super) has_standby: bool,
    pub(super) alarm_time: AlarmTime,
    /// Threads that have or look for a role.
    pub(super) threads: usize,
    /// Threads that are done but for what the source does at the end of their lives.
    pub(super) leaving: usize,
    pub(super) is_ending: bool,
    pub(super) done: u64,
    pub(super) takeovers: u64,
}

impl<J> State<J> {
    pub(super) fn may_run(&self) -> bool {
        self.admissible(Instant::now()) > 0
    }

    /// How many more jobs than those that run and wait may run at once, whatever the gate allows now.
    pub(super) fn free(&self) -> usize {
        let taken = self.running.len() + self.ready.len();
        self.gate.max().saturating_sub(taken)
    }

    /// How many of the jobs that wait may begin `now`.
    pub(super) fn admissible(&self, now: Instant) -> usize {
        let (limit, max) = (self.gate.limit(), self.gate.max());
        self.ready.admissible(self.running.len(), limit, max, now)
    }

    /// Threads that were woken or started and have not found their role yet.
    pub(super) fn arriving(&self) -> usize {
        let waits_as_leader = self.is_led && self.leader_call == 0;
        self.threads
            - self.running.len()
            - self.idle.len()
            - usize::from(self.has_standby)
            - usize::from(waits_as_leader)
    }

    pub(super) fn admit(&mut self, thread: Pid) -> Option<J> {
        let (running, limit, max) = (self.running.len(), self.gate.limit(), self.gate.max());
        let job = self.ready.admit(running, limit, max, Instant::now)?;
        self.gate.settle_as(self.ready.is_settled());
        self.running.push(Running {
            thread,
            computing: Streak::default(),
        });
        Some(job)
    }

    /// A job of a pool that was not settled has taken so much CPU time.
    pub(super) fn count_first(&mut self, computed: Duration) {
        self.ready.count_first(computed, Instant::now);
        self.gate.settle_as(self.ready.is_settled());
    }

    /// A job for a thread that does not lead. While the leader is inside a job, what is queued is
    /// left to it: a second thread would only compete with it, and if it blocks, the standby takes
    /// over. Not so where that thread has a CPU of its own.
    pub(super) fn help(&mut self, thread: Pid) -> Option<J> {
        if self.leader_call == 0 || self.gate.has_free_cpu(self.running.len()) {
            self.admit(thread)
        } else {
            None
        }
    }

    /// True while the leader is inside a job beside a CPU that is free: another thread should wait.
    pub(super) fn may_relieve(&self) -> bool {
        self.leader_call != 0 && self.gate.has_free_cpu(self.running.len())
    }

    /// True while the leader waits and there is room for what it has not seen yet.
    pub(super) fn may_glance(&self) -> bool {
        self.is_led
            && self.leader_call == 0
            && !self.is_ending
            && self.running.len() < self.gate.limit()
    }

    pub(super) fn take_in(&mut self, batch: &mut Vec<J>) {
        if !batch.is_empty() {
            self.ready.extend(batch.drain(..), Instant::now());
        }
    }

    pub(super) fn released(&self, now: Instant) -> usize {
        let at_once = self.gate.at_once();
        gate::released(self.running.iter().map(|job| job.computing), at_once, now)
    }

    /// A job has ended; false when it had been given up, and its thread has to find its place again.
    pub(super) fn finish(&mut self, thread: Pid, next: Option<J>) -> bool {
        let was_abandoned = self.abandoned.iter().position(|it| *it == thread);
        if let Some(at) = was_abandoned {
            self.abandoned.swap_remove(at);
            self.threads += 1;
        }
        let at = self.running.iter().position(|it| it.thread == thread);
        if let Some(ended) = at.map(|at| self.running.swap_remove(at))
            && ended.computing != Streak::default()
        {
            self.gate.forget_released(self.released(Instant::now()));
        }
        self.done += 1;
        if let Some(next) = next {
            self.ready.extend([next], Instant::now());
        }
        if self.ready.is_empty() {
            self.gate.finished(self.running.len());
        }
        was_abandoned.is_none()
    }
}
