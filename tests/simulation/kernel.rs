//! The operating system of the simulation: processes, signals, pidfds.
//!
//! Owns what `Processes` promises the supervisor, by `signal(7)`, `pidfd_open(2)` and `waitpid(2)`, and
//! every way in which a worker may disappoint. Judges nothing but what a kernel can see: a signal
//! to a process that was reaped already. It can also lose what the supervisor does, as if the code
//! that does it were taken back: then a promise must be seen to break.

use nix::libc;
use nix::sys::eventfd::EventFd;
use osloxide::supervisor::process::Processes;
use osloxide::supervisor::state::{LAST_WORDS, LATE_LAST_WORDS};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// The first process; so large that no other number of a state looks like a process.
pub const FIRST_PID: i32 = 1_000_000;

/// What the supervisor does and a test takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// SIGCONT behind each SIGTERM.
    Continue,
    /// SIGTERM once more to a worker that was starting when it was told first.
    SecondTerm,
    /// SIGABRT.
    LastWords,
    /// SIGKILL.
    Kill,
}

thread_local! {
    static TAKEN_BACK: Cell<Option<TakenBack>> = const { Cell::new(None) };
}

/// Has all kernels of this thread lose that, or nothing.
pub fn take_back(what: Option<TakenBack>) {
    TAKEN_BACK.set(what);
}

/// How a worker behaves. Every flag is off in a worker that does what it is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Forked a moment ago: CPython forgets signals until it is ready.
    pub is_deaf: bool,
    /// Stopped by SIGSTOP.
    pub is_frozen: bool,
    /// Ignores SIGTERM and SIGABRT.
    pub is_stubborn: bool,
    /// In an uninterruptible sleep of the kernel: not even SIGKILL ends it.
    pub is_stuck: bool,
    /// Does not get ready while an older process of its slot lives.
    pub is_waiting: bool,
}

/// What a tracer has to do with the end of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tracer {
    /// There is none.
    #[default]
    Absent,
    /// It keeps the process, which has ended, from being reaped.
    Keeps,
    /// It did, and has let go.
    HasLetGo,
}

/// Numbers what happens in a trace, from 1; 0 is never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event(pub u64);

/// The first SIGTERM to a process.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub at: Instant,
    pub event: Event,
    /// The parent knew for certain that it was ready.
    pub was_ready: bool,
}

/// A process below the supervisor, from its fork until it is reaped.
#[derive(Debug)]
pub struct Process {
    pub slot: usize,
    /// The event in which it was forked.
    pub born: Event,
    pub forked_at: Instant,
    /// Its wait status, once it has ended.
    pub status: Option<i32>,
    pub faults: Faults,
    pub is_ready: bool,
    /// The event in which it reported that it is ready.
    pub reported: Event,
    /// It has reported that it is ready, and the parent has called `next()` since.
    pub is_heard: bool,
    /// The same before the call of `next()` that goes on.
    pub was_heard: bool,
    /// Signals that it has not acted on.
    pub terminated: bool,
    pub aborted: bool,
    pub killed: bool,
    pub hung_up: bool,
    /// The first SIGTERM.
    pub asked: Option<Asked>,
    pub terms: u32,
    pub aborted_at: Option<Instant>,
    /// It got SIGABRT at its deadline, not because it hung.
    pub is_late: bool,
    pub kills: u32,
    /// The event in which SIGHUP was last sent.
    pub hung_up_in: Event,
    /// Since when it has been stopped at each look of the supervisor.
    pub frozen_since: Option<Instant>,
    pub tracer: Tracer,
    /// The supervisor knew it before the call of `next()` that goes on; it gives one up that is kept.
    pub is_known: bool,
    /// The kernel gives no pidfd for it.
    is_blind: bool,
    watch: Option<Watch>,
}

/// The kernel's end of a pidfd.
pub struct Watch(OwnedFd);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Process {
    pub fn new(slot: usize, born: Event, now: Instant, faults: Faults, is_blind: bool) -> Self {
        Self {
            slot,
            born,
            forked_at: now,
            status: None,
            faults,
            is_ready: false,
            reported: Event(0),
            is_heard: false,
            was_heard: false,
            terminated: false,
            aborted: false,
            killed: false,
            hung_up: false,
            asked: None,
            terms: 0,
            aborted_at: None,
            is_late: false,
            kills: 0,
            hung_up_in: Event(0),
            frozen_since: None,
            tracer: Tracer::Absent,
            is_known: true,
            is_blind,
            watch: None,
        }
    }

    pub fn is_blind(&self) -> bool {
        self.is_blind
    }

    pub fn lives(&self) -> bool {
        self.status.is_none()
    }

    /// Ended, and left behind by a tracer: the supervisor may have given it up.
    pub fn is_remains(&self) -> bool {
        self.tracer != Tracer::Absent
    }

    fn runs(&self) -> bool {
        self.lives() && !self.faults.is_frozen && !self.faults.is_stuck
    }

    /// When SIGKILL follows the SIGABRT that it got.
    pub fn last_words_end(&self) -> Option<Instant> {
        let words = if self.is_late {
            LATE_LAST_WORDS
        } else {
            LAST_WORDS
        };
        self.aborted_at.map(|at| at + words)
    }

    /// True when a signal that it was sent will end it now.
    pub fn may_obey(&self) -> bool {
        (self.lives() && self.killed && !self.faults.is_stuck)
            || (self.runs() && (self.terminated || self.aborted))
    }

    /// True when it has something to report: that it is ready, or has mutated its configuration.
    pub fn may_report(&self) -> bool {
        self.runs() && (!self.is_ready || self.hung_up)
    }

    pub fn end(&mut self, status: i32) {
        self.status = Some(status);
        self.frozen_since = None;
        self.faults = Faults::default();
        if let Some(Watch(watch)) = &self.watch {
            nix::unistd::write(watch, &1_u64.to_ne_bytes()).unwrap();
        }
    }
}

/// A signal as it was sent.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub pid: i32,
    pub number: i32,
    /// Since when the process was stopped at that moment.
    pub frozen_since: Option<Instant>,
    /// It was sent before a handler that ran in the same call of `next()` requested something.
    pub is_before_hit: bool,
}

#[derive(Debug, Default)]
pub struct Tables {
    pub processes: BTreeMap<i32, Process>,
    /// Ended children of process 1 that are no workers, and when each ended.
    pub strays: BTreeMap<i32, Instant>,
    /// Signals since the last look.
    pub sent: Vec<Sent>,
    /// Wait statuses of the workers that were reaped since the last look.
    pub reaped: Vec<(i32, i32)>,
    /// What no kernel may be asked for.
    pub faults: Vec<String>,
}

/// Cheap to clone: all clones are the same kernel.
#[derive(Debug, Clone, Default)]
pub struct Kernel(Arc<Mutex<Tables>>);

impl Kernel {
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap()
    }
}

impl Processes for Kernel {
    fn watch(&mut self, pid: i32) -> Option<OwnedFd> {
        let mut tables = self.tables();
        let process = tables.processes.get_mut(&pid)?;
        if process.is_blind {
            return None;
        }
        let given = OwnedFd::from(EventFd::new().unwrap());
        process.watch = Some(Watch(given.try_clone().unwrap()));
        if let Some(status) = process.status {
            process.end(status);
        }
        Some(given)
    }

    fn signal(&mut self, pid: i32, _watch: Option<BorrowedFd<'_>>, number: i32) {
        let mut tables = self.tables();
        let Some(process) = tables.processes.get_mut(&pid) else {
            tables
                .faults
                .push(format!("signal {number} to {pid}, which was reaped"));
            return;
        };
        let is_lost = match TAKEN_BACK.get() {
            None => false,
            Some(TakenBack::Continue) => number == libc::SIGCONT,
            Some(TakenBack::SecondTerm) => number == libc::SIGTERM && process.asked.is_some(),
            Some(TakenBack::LastWords) => number == libc::SIGABRT,
            Some(TakenBack::Kill) => number == libc::SIGKILL,
        };
        if is_lost {
            return;
        }
        let (faults, frozen_since) = (process.faults, process.frozen_since);
        match number {
            libc::SIGTERM => process.terminated |= !faults.is_deaf && !faults.is_stubborn,
            libc::SIGABRT => process.aborted |= !faults.is_stubborn,
            libc::SIGKILL => process.killed = true,
            libc::SIGHUP => process.hung_up = true,
            libc::SIGCONT => process.faults.is_frozen = false,
            _ => tables.faults.push(format!("signal {number} to {pid}")),
        }
        tables.sent.push(Sent {
            pid,
            number,
            frozen_since,
            is_before_hit: false,
        });
    }

    fn reap(&mut self, pid: i32) -> Option<i32> {
        let mut tables = self.tables();
        if tables.strays.remove(&pid).is_some() {
            return Some(0);
        }
        let process = tables.processes.get(&pid)?;
        let (status, is_known) = (process.status?, process.is_known);
        if process.tracer == Tracer::Keeps {
            return None;
        }
        tables.processes.remove(&pid);
        if is_known {
            tables.reaped.push((pid, status));
        }
        Some(status)
    }

    fn has_ended(&mut self, pid: i32) -> bool {
        let tables = self.tables();
        tables.processes.get(&pid).is_some_and(|it| !it.lives())
    }

    fn is_stopped(&mut self, pid: i32) -> bool {
        let mut tables = self.tables();
        let Some(process) = tables.processes.get_mut(&pid) else {
            return false;
        };
        if !process.faults.is_frozen {
            process.frozen_since = None;
        }
        process.faults.is_frozen
    }

    fn ended_children(&mut self) -> Vec<i32> {
        let tables = self.tables();
        let ended = tables.processes.iter();
        let ended = ended.filter(|(_, process)| !process.lives());
        let ended = ended.map(|(pid, _)| *pid);
        ended.chain(tables.strays.keys().copied()).collect()
    }
}
