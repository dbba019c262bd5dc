//! A supervisor between a simulated kernel and a simulated Python, and what happened so far.
//!
//! Owns the effect of each action and the record that promises are judged by (promises.rs). The
//! supervisor is the real one, with its real pipes and wakeup; the only clock is `now`.

use super::action::{Action, PASSES, STATUSES, requests};
use super::kernel::{Event, FIRST_PID, Faults, Kernel, Process, Tracer};
use osloxide::scoreboard::{self, Scoreboard};
use osloxide::signals::{Request, poll_readable};
use osloxide::supervisor::roster::Phase;
use osloxide::supervisor::{Command, Error, Supervisor};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How often `next()` may find its wait over before the parent counts as spinning.
const MOST_WAITS: usize = 20;

/// Where a trace starts.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub name: &'static str,
    pub slots: usize,
    /// Seconds that workers may drain; 0 is for ever.
    pub grace: u64,
    /// Seconds; 0 is never.
    pub worker_timeout: u64,
    pub is_init: bool,
    /// Actions that lead there, spelled as in a seed.
    pub prefix: &'static str,
}

/// What Python is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Python {
    /// Between two calls of `next()`.
    Free,
    /// A fork was handed out and is not answered.
    Forking { slot: usize },
    /// It loads the configuration.
    Configuring(Request),
    /// It was to fork and gave up.
    GaveUp,
    /// `next()` said that all is over.
    Ended,
}

/// What the parent was told and said, each by the number of the event.
#[derive(Debug, Default)]
pub struct Record {
    pub stop_asked: Option<Instant>,
    pub is_aborted: bool,
    pub reload_asked: Event,
    pub mutate_asked: Event,
    pub reload_handed: Event,
    pub mutate_handed: Event,
    /// A configuration command was answered with nothing: the configuration was unusable.
    pub dropped: Event,
    pub reload_configured: Event,
    pub mutate_configured: Event,
    pub reloaded: Event,
    /// How often `all_ready` was reported.
    pub all_ready: u32,
    pub stopping: u32,
    /// A worker was killed while stopping.
    pub is_late: bool,
    /// A worker that hung was killed while stopping.
    pub may_be_late: bool,
    /// Statuses of reaped workers that were not reported yet.
    pub unreported: Vec<(i32, i32)>,
    /// Workers that a tracer keeps, or has kept, and that were not reported yet.
    pub kept: BTreeSet<i32>,
}

pub struct World {
    pub setup: Setup,
    pub supervisor: Supervisor<Kernel>,
    pub kernel: Kernel,
    pub now: Instant,
    pub python: Python,
    /// The deadline that it last parked with, until something happens.
    pub parked: Option<Option<Instant>>,
    pub record: Record,
    /// What happened last.
    pub event: Event,
    next_pid: i32,
    /// Promises that do not hold.
    pub broken: Vec<String>,
}

/// Why a wait of `next()` is left.
enum Left {
    Parked(Option<Instant>),
    Spins,
    Refused(Error),
}

impl From<Error> for Left {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

thread_local! {
    /// One for all worlds of a thread, since making one is slow: a world leaves its rows empty.
    static BOARD: RefCell<Option<Arc<Scoreboard>>> = const { RefCell::new(None) };
}

fn board() -> Arc<Scoreboard> {
    BOARD.with_borrow_mut(|board| {
        let board = board.get_or_insert_with(|| Arc::new(Scoreboard::new("simulation").unwrap()));
        Arc::clone(board)
    })
}

/// The first instant of every world.
pub fn beginning() -> Instant {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    *BEGINNING.get_or_init(|| Instant::now() + Duration::from_secs(86_400))
}

impl Drop for World {
    fn drop(&mut self) {
        let board = board();
        for row in (0..).map_while(|index| board.row(index)) {
            row.mark_ended(scoreboard::State::Gone, 0);
        }
    }
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let kernel = Kernel::default();
        let supervisor = Supervisor::new(kernel.clone(), board(), setup.is_init).unwrap();
        let now = beginning();
        supervisor.set_grace(Duration::from_secs(setup.grace));
        supervisor.set_worker_timeout(Duration::from_secs(setup.worker_timeout), now);
        supervisor.add_group("simulated", setup.slots).unwrap();
        let mut world = Self {
            setup,
            supervisor,
            kernel,
            now,
            python: Python::Free,
            parked: None,
            record: Record::default(),
            event: Event(0),
            next_pid: FIRST_PID,
            broken: Vec::new(),
        };
        for action in setup.prefix.split('.').filter(|text| !text.is_empty()) {
            let action = action.parse().unwrap();
            assert!(world.is_possible(action), "{action} in {}", setup.prefix);
            world.act(action);
        }
        world
    }

    pub fn grace(&self) -> Option<Duration> {
        (self.setup.grace != 0).then(|| Duration::from_secs(self.setup.grace))
    }

    pub fn is_stopping(&self) -> bool {
        matches!(self.supervisor.phase(), Phase::Stopping { .. })
    }

    fn pid_of(&self, worker: usize) -> Option<i32> {
        self.kernel.tables().processes.keys().nth(worker).copied()
    }

    /// What *ask* says of a worker; false where there is none of this number.
    fn asks(&self, worker: usize, ask: impl Fn(&Process) -> bool) -> bool {
        let tables = self.kernel.tables();
        tables.processes.values().nth(worker).is_some_and(ask)
    }

    /// True when it does not get ready, for an older one of its slot has what it needs.
    fn waits(&self, worker: usize) -> bool {
        let tables = self.kernel.tables();
        let mut older = tables.processes.values().take(worker);
        let process = tables.processes.values().nth(worker);
        process.is_some_and(|process| {
            process.faults.is_waiting
                && !process.is_ready
                && older.any(|it| it.slot == process.slot && it.lives())
        })
    }

    fn change(&self, worker: usize, change: impl FnOnce(&mut Process)) {
        if let Some(process) = self.kernel.tables().processes.values_mut().nth(worker) {
            change(process);
        }
    }

    /// Every action that is possible now; with *all*, also variants that only change numbers.
    pub fn possible(&self, all: bool) -> Vec<Action> {
        let mut actions = vec![
            Action::Next,
            Action::Fork,
            Action::ForkDeaf,
            Action::ForkBlind,
            Action::ForkWaiting,
            Action::ForkFails,
            Action::Abandon,
            Action::Configured,
            Action::Stray,
            Action::Wait,
        ];
        actions.extend(requests().map(Action::Ask));
        actions.extend(requests().map(Action::NextHit));
        let passes = if all { &PASSES[..] } else { &PASSES[1..3] };
        actions.extend(passes.iter().map(|(time, _)| Action::Pass(*time)));
        let statuses = if all { &STATUSES[..] } else { &STATUSES[2..3] };
        let count = self.kernel.tables().processes.len();
        for worker in 0..count {
            let ends = statuses
                .iter()
                .map(|(status, _)| Action::Die(worker, *status));
            actions.extend(ends);
            actions.extend([
                Action::Report(worker),
                Action::Obey(worker),
                Action::Keep(worker),
                Action::Release(worker),
                Action::Freeze(worker),
                Action::Thaw(worker),
                Action::Harden(worker),
                Action::Stick(worker),
                Action::Unstick(worker),
            ]);
        }
        actions.retain(|action| self.is_possible(*action));
        actions
    }

    pub fn is_possible(&self, action: Action) -> bool {
        let python = self.python;
        if python == Python::Ended {
            return false;
        }
        match action {
            Action::Next => !matches!(python, Python::Forking { .. }),
            Action::NextHit(_) => python == Python::Free,
            Action::Fork
            | Action::ForkDeaf
            | Action::ForkBlind
            | Action::ForkWaiting
            | Action::ForkFails
            | Action::Abandon => matches!(python, Python::Forking { .. }),
            Action::Configured => matches!(python, Python::Configuring(_)),
            Action::Ask(_) | Action::Pass(_) => true,
            Action::Wait => matches!(self.parked, Some(Some(deadline)) if deadline > self.now),
            Action::Stray => self.setup.is_init && self.kernel.tables().strays.is_empty(),
            Action::Report(worker) => self.asks(worker, Process::may_report) && !self.waits(worker),
            Action::Obey(worker) => self.asks(worker, Process::may_obey),
            // What a signal of someone else does to a stuck process is seen when it wakes up.
            Action::Die(worker, _) | Action::Keep(worker) => {
                self.asks(worker, |it| it.lives() && !it.faults.is_stuck)
            }
            Action::Release(worker) => self.asks(worker, |it| it.tracer == Tracer::Keeps),
            Action::Freeze(worker) => self.asks(worker, |it| it.lives() && !it.faults.is_frozen),
            Action::Thaw(worker) => self.asks(worker, |it| it.faults.is_frozen),
            Action::Harden(worker) => self.asks(worker, |it| it.lives() && !it.faults.is_stubborn),
            Action::Stick(worker) => self.asks(worker, |it| it.lives() && !it.faults.is_stuck),
            Action::Unstick(worker) => self.asks(worker, |it| it.faults.is_stuck),
        }
    }

    pub fn act(&mut self, action: Action) {
        self.event.0 += 1;
        match action {
            Action::Next => self.next(None),
            Action::NextHit(request) => self.next(Some(request)),
            Action::Ask(request) => {
                self.note_asked(request);
                self.supervisor.request(request);
            }
            Action::Fork => self.fork(Faults::default(), false),
            Action::ForkDeaf => self.fork(
                Faults {
                    is_deaf: true,
                    ..Faults::default()
                },
                false,
            ),
            Action::ForkBlind => self.fork(Faults::default(), true),
            Action::ForkWaiting => self.fork(
                Faults {
                    is_waiting: true,
                    ..Faults::default()
                },
                false,
            ),
            Action::ForkFails => {
                if let Python::Forking { slot } = self.python {
                    self.python = Python::Free;
                    self.supervisor.fork_failed(slot, self.now).unwrap();
                }
            }
            Action::Abandon => self.python = Python::GaveUp,
            Action::Configured => self.configured(),
            Action::Report(worker) => self.report(worker),
            Action::Die(worker, status) => self.change(worker, |it| it.end(status)),
            Action::Keep(worker) => {
                self.record.kept.extend(self.pid_of(worker));
                self.change(worker, |it| {
                    it.tracer = Tracer::Keeps;
                    it.end(nix::libc::SIGKILL);
                });
            }
            Action::Release(worker) => self.change(worker, |it| it.tracer = Tracer::HasLetGo),
            Action::Obey(worker) => self.change(worker, |it| {
                let status = if it.killed {
                    nix::libc::SIGKILL
                } else if it.aborted {
                    nix::libc::SIGABRT
                } else {
                    0
                };
                it.end(status);
            }),
            Action::Freeze(worker) => {
                let now = self.now;
                self.change(worker, |it| {
                    it.faults.is_frozen = true;
                    it.frozen_since.get_or_insert(now);
                });
            }
            Action::Thaw(worker) => self.change(worker, |it| it.faults.is_frozen = false),
            Action::Harden(worker) => self.change(worker, |it| it.faults.is_stubborn = true),
            Action::Stick(worker) => self.change(worker, |it| it.faults.is_stuck = true),
            Action::Unstick(worker) => self.change(worker, |it| it.faults.is_stuck = false),
            Action::Stray => {
                let (pid, now) = (self.take_pid(), self.now);
                self.kernel.tables().strays.insert(pid, now);
            }
            Action::Wait => {
                if let Some(Some(deadline)) = self.parked {
                    self.now = self.now.max(deadline);
                }
            }
            Action::Pass(time) => self.now += Duration::from_millis(time),
        }
        self.judge_signals();
        self.judge_processes();
    }

    fn take_pid(&mut self) -> i32 {
        self.next_pid += 1;
        self.next_pid - 1
    }

    fn note_asked(&mut self, request: Request) {
        let record = &mut self.record;
        match request {
            Request::Stop => drop(record.stop_asked.get_or_insert(self.now)),
            Request::Abort => {
                record.stop_asked.get_or_insert(self.now);
                record.is_aborted = true;
            }
            Request::Reload => record.reload_asked = self.event,
            Request::Mutate => record.mutate_asked = self.event,
        }
    }

    fn fork(&mut self, faults: Faults, is_blind: bool) {
        let Python::Forking { slot } = self.python else {
            return;
        };
        let pid = self.take_pid();
        let process = Process::new(slot, self.event, self.now, faults, is_blind);
        self.kernel.tables().processes.insert(pid, process);
        self.python = Python::Free;
        let is_watched = self.supervisor.forked(slot, pid, self.now).unwrap();
        self.promise(
            is_watched != is_blind,
            "forked() says whether there is a pidfd",
            pid,
        );
    }

    fn configured(&mut self) {
        if let Python::Configuring(request) = self.python {
            self.python = Python::Free;
            self.supervisor.configured(self.now);
            if request == Request::Reload {
                self.record.reload_configured = self.event;
            } else {
                self.record.mutate_configured = self.event;
            }
        }
    }

    fn report(&mut self, worker: usize) {
        let Some(pid) = self.pid_of(worker) else {
            return;
        };
        let notices = self.supervisor.notices();
        nix::unistd::write(&*notices, &pid.to_ne_bytes()).unwrap();
        let event = self.event;
        self.change(worker, |it| {
            if it.is_ready {
                it.hung_up = false;
            } else {
                it.reported = event;
            }
            it.is_ready = true;
            it.faults.is_deaf = false;
        });
    }

    /// Python calls `next()`; when it parks, *hit* is requested by a signal handler.
    pub fn next(&mut self, mut hit: Option<Request>) {
        match self.python {
            Python::Configuring(_) => self.record.dropped = self.event,
            Python::Free | Python::GaveUp | Python::Forking { .. } | Python::Ended => {}
        }
        let gave_up = self.python == Python::GaveUp;
        let known = self.supervisor.pids();
        for (pid, process) in &mut self.kernel.tables().processes {
            process.is_known = known.contains(pid);
            process.was_heard = process.is_heard;
            process.is_heard |= process.is_ready && process.lives();
        }
        let (hit_by, mut late, mut is_unheard) = (hit, None, false);
        let past = Instant::now();
        let (now, supervisor, kernel, mut waits) = (self.now, &self.supervisor, &self.kernel, 0);
        let came = supervisor.next(
            || now,
            |fds, deadline| {
                waits += 1;
                if let Some(request) = hit.take() {
                    for signal in &mut kernel.tables().sent {
                        signal.is_before_hit = true;
                    }
                    supervisor.request(request);
                    is_unheard = poll_readable(fds, Some(past)).unwrap().is_empty();
                    // A handler breaks the wait off; a request of another thread only wakes it.
                    return Ok(matches!(request, Request::Stop | Request::Reload));
                }
                let is_woken = !poll_readable(fds, Some(past)).unwrap().is_empty();
                if waits > MOST_WAITS {
                    Err(Left::Spins)
                } else if is_woken || deadline.is_some_and(|deadline| deadline <= now) {
                    Ok(false)
                } else {
                    Err(Left::Parked(deadline))
                }
            },
        );
        match (hit, hit_by) {
            (None, Some(request)) => {
                self.note_asked(request);
                self.event.0 += 1;
            }
            // It never parked: the handler runs a moment later, unless all is over.
            (Some(request), _) if !matches!(came, Ok(None)) => {
                self.supervisor.request(request);
                late = Some(request);
            }
            (Some(_) | None, _) => {}
        }
        let reaped = std::mem::take(&mut self.kernel.tables().reaped);
        self.record.unreported.extend(reaped);
        self.promise(!is_unheard, "a request wakes a parked parent", "");
        self.judge_signals();
        self.parked = None;
        self.python = Python::Free;
        match came {
            Ok(Some(command)) => self.take(command),
            Ok(None) => {
                self.python = Python::Ended;
                self.judge_end();
            }
            Err(Left::Parked(deadline)) => {
                self.parked = Some(deadline);
                self.judge_park(deadline);
            }
            Err(Left::Spins) => self.promise(false, "a parked parent does not spin", waits),
            Err(Left::Refused(error)) => {
                let may = gave_up && !self.is_stopping();
                self.promise(
                    may,
                    "next() refuses only after a fork without answer",
                    error,
                );
                self.python = Python::GaveUp;
            }
        }
        if let Some(request) = late {
            self.event.0 += 1;
            self.note_asked(request);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Fork { slot, .. } => {
                self.python = Python::Forking { slot };
                self.judge_fork(slot);
            }
            Command::Reload => {
                self.python = Python::Configuring(Request::Reload);
                self.record.reload_handed = self.event;
            }
            Command::Mutate => {
                self.python = Python::Configuring(Request::Mutate);
                self.record.mutate_handed = self.event;
            }
            Command::Reloaded => self.record.reloaded = self.event,
            command => self.judge_command(command),
        }
    }
}
