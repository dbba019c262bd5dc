//! All slots of a supervisor: who is in them, and what a request means for the whole.
//!
//! Pure like [`super::state`]: instants come in, signals to send and commands for Python go out.
//! Forks nothing, sends nothing, reads no clock. The tables in docs/lifecycle.md mirror it.

mod rolling;

use super::slot::{Departure, Role, Slot};
use super::state::{Action, Event, State, Worker};
use super::{Command, Error};
use crate::scoreboard::Worn;
use crate::signals::Request;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

const HANGUP: i32 = nix::libc::SIGHUP;
const TERMINATE: i32 = nix::libc::SIGTERM;
const KILL: i32 = nix::libc::SIGKILL;
const ABORT: i32 = nix::libc::SIGABRT;

/// Wait status of a worker that exits with status 3: it could not load its code, and could not without
/// its predecessor either. `osloxide serve` uses it as gunicorn does (`WORKER_BOOT_ERROR`).
const CANNOT_LOAD: i32 = 3 << 8;

/// What the supervisor as a whole is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Keeps every slot filled.
    Running,
    /// Replaces the workers one by one; the slots before *cursor* are done.
    Reloading {
        /// The slot whose worker is being replaced.
        cursor: usize,
    },
    /// Lets the workers leave and forks no more.
    Stopping {
        /// When SIGKILL follows; `None` is never.
        deadline: Option<Instant>,
    },
}

/// A signal to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// To whom.
    pub pid: i32,
    /// Its number.
    pub number: i32,
}

/// All groups and slots, and the phase they are in.
#[derive(Debug)]
pub struct Roster {
    groups: Vec<String>,
    slots: Vec<Slot>,
    phase: Phase,
    generation: u32,
    /// How long workers may drain; `None` is for ever.
    grace: Option<Duration>,
    /// The configuration command that Python is working on.
    configuring: Option<Request>,
    /// A reload was asked for while one was under way.
    is_reload_owed: bool,
    /// [`Command::AllReady`] is still to be reported.
    is_ready_owed: bool,
    /// Workers that were told to mutate their configuration and have not said yet that they did.
    mutating: BTreeSet<i32>,
    /// Workers that ask to be replaced, the first one first.
    worn: VecDeque<i32>,
    /// A worker had to be killed during the shutdown.
    was_late: bool,
    signals: Vec<Signal>,
    commands: VecDeque<Command>,
}

impl Default for Roster {
    fn default() -> Self {
        Self {
            groups: Vec::new(),
            slots: Vec::new(),
            phase: Phase::Running,
            generation: 0,
            grace: None,
            configuring: None,
            is_reload_owed: false,
            is_ready_owed: false,
            mutating: BTreeSet::new(),
            worn: VecDeque::new(),
            was_late: false,
            signals: Vec::new(),
            commands: VecDeque::new(),
        }
    }
}

impl Roster {
    /// Adds a group of *workers* slots and returns its number. While stopping they stay empty.
    pub fn add_group(&mut self, name: &str, workers: usize) -> usize {
        let group = self.groups.len();
        self.groups.push(name.to_owned());
        self.is_ready_owed |= workers > 0;
        for _ in 0..workers {
            let mut current = Worker::new(self.generation);
            if matches!(self.phase, Phase::Stopping { .. }) {
                current.state = State::Gone;
            }
            self.slots.push(Slot::new(group, current));
        }
        group
    }

    /// Gives *group* so many workers from now on. New ones get the slots that were left last; those
    /// in the highest slots leave. Does nothing while stopping.
    pub fn resize(&mut self, group: usize, workers: usize, now: Instant) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        let mine = |slot: &Slot, is_closed| slot.group == group && slot.is_closed == is_closed;
        let count = self.slots.iter().filter(|slot| mine(slot, false)).count();
        for _ in count..workers {
            match self.slots.iter_mut().find(|slot| mine(slot, true)) {
                Some(slot) => {
                    slot.is_closed = false;
                    // One that still drains is followed when it has left.
                    if slot.current.state == State::Gone {
                        slot.current = Worker::new(self.generation);
                    }
                }
                None => (self.slots).push(Slot::new(group, Worker::new(self.generation))),
            }
        }
        let deadline = self.deadline_from(now);
        for _ in workers..count {
            let Some(index) = self.slots.iter().rposition(|slot| mine(slot, false)) else {
                break;
            };
            self.slots[index].is_closed = true;
            if let Some(successor) = self.slots[index].successor.take() {
                self.retire(index, successor, deadline, now);
            }
            self.apply(index, Role::Current, Event::Stop { deadline }, now);
        }
        self.advance_round(now);
    }

    /// How long workers may drain; zero is for ever. Holds for drains that begin later.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = (!grace.is_zero()).then_some(grace);
    }

    /// Acts on a request.
    pub fn request(&mut self, request: Request, now: Instant) {
        match request {
            Request::Abort => {
                self.was_late = true;
                self.begin_stop(Some(now), Event::Abort, now);
            }
            Request::Stop => {
                let deadline = self.deadline_from(now);
                self.begin_stop(deadline, Event::Stop { deadline }, now);
            }
            Request::Reload => match self.phase {
                Phase::Stopping { .. } => {}
                Phase::Reloading { cursor } if !self.is_round_stalled(cursor, now) => {
                    self.is_reload_owed = true;
                }
                Phase::Reloading { .. } | Phase::Running => self.configure(Request::Reload),
            },
            Request::Mutate => match self.phase {
                Phase::Stopping { .. } => {}
                Phase::Reloading { .. } | Phase::Running => self.configure(Request::Mutate),
            },
        }
    }

    /// Python has finished the configuration command it was given.
    pub fn configured(&mut self, now: Instant) {
        match self.configuring.take() {
            Some(Request::Reload) => self.begin_round(now),
            Some(Request::Mutate) => {
                self.mutating.clear();
                self.broadcast(Event::Mutated, now);
                self.report_mutated();
            }
            Some(Request::Stop | Request::Abort) | None => {}
        }
    }

    /// Begins a round at once: Python has read the configuration already. Not while stopping.
    pub fn replace_workers(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Stopping { .. }) {
            self.begin_round(now);
        }
    }

    /// Python went on without finishing it, because the new configuration is unusable.
    pub fn forget_configuring(&mut self) {
        self.configuring = None;
    }

    /// Takes a worker that is due, notes that its fork was handed out, and returns the command.
    pub fn hand_out_fork(&mut self, now: Instant) -> Option<(usize, Command)> {
        if matches!(self.phase, Phase::Stopping { .. }) {
            return None;
        }
        let due = |slot: &Slot| slot.role_of(|worker| worker.state == State::Due);
        let (index, role) = (self.slots.iter().enumerate())
            .find_map(|(index, slot)| due(slot).map(|role| (index, role)))?;
        self.apply(index, role, Event::ForkAsked, now);
        let generation = self.generation;
        let slot = &mut self.slots[index];
        // A fork always carries the newest configuration, also where an old worker died by itself.
        slot.worker(role)?.generation = generation;
        Some((
            index,
            Command::Fork {
                group: slot.group,
                slot: index,
                generation,
            },
        ))
    }

    /// The slot whose fork was handed out and not answered yet.
    #[must_use]
    pub fn unanswered(&self) -> Option<usize> {
        self.slots.iter().position(|slot| {
            slot.role_of(|worker| worker.state == State::Forking)
                .is_some()
        })
    }

    /// The fork of *slot* succeeded.
    ///
    /// # Errors
    /// [`Error::NotForking`] when none was handed out.
    pub fn forked(&mut self, slot: usize, pid: i32, now: Instant) -> Result<(), Error> {
        let role = self.forking(slot)?;
        self.apply(slot, role, Event::Forked { pid }, now);
        if let Phase::Stopping { deadline } = self.phase {
            self.apply(slot, role, Event::Stop { deadline }, now);
        }
        Ok(())
    }

    /// The fork of *slot* failed.
    ///
    /// # Errors
    /// [`Error::NotForking`] when none was handed out.
    pub fn fork_failed(&mut self, slot: usize, now: Instant) -> Result<(), Error> {
        let role = self.forking(slot)?;
        self.apply(slot, role, Event::ForkFailed, now);
        if let Phase::Stopping { deadline } = self.phase {
            self.apply(slot, role, Event::Stop { deadline }, now);
        }
        Ok(())
    }

    /// Process *pid* reported that it is ready, or that it has mutated its configuration: whichever
    /// is awaited. Reports of processes that ended are ignored.
    pub fn heard_from(&mut self, pid: i32, now: Instant) {
        if self.mutating.remove(&pid) {
            self.report_mutated();
        } else if let Some((slot, role)) = self.find(pid) {
            if let Some(forked) = self.starting_since(pid) {
                self.slots[slot].note_start(forked, now);
            }
            self.apply(slot, role, Event::Ready, now);
        }
        self.report_ready();
        self.advance_round(now);
    }

    pub(super) fn report_ready(&mut self) {
        let is_running =
            |slot: &Slot| slot.is_closed || matches!(slot.current.state, State::Running { .. });
        if self.is_ready_owed && self.slots.iter().all(is_running) {
            self.is_ready_owed = false;
            self.commands.push_back(Command::AllReady);
        }
    }

    /// Process *pid* asks to be replaced. One worker after the other is, each when its successor is
    /// ready; a round of reload, which replaces all of them, goes first.
    pub fn worn_out(&mut self, pid: i32, why: Option<Worn>, now: Instant) {
        let Some((slot, Role::Current)) = self.find(pid) else {
            return; // its successor is there already
        };
        if self.worn.contains(&pid) || matches!(self.phase, Phase::Stopping { .. }) {
            return;
        }
        self.worn.push_back(pid);
        let group = self.slots[slot].group;
        self.commands.push_back(Command::Worn {
            group,
            slot,
            pid,
            why,
        });
        self.replace_worn(now);
    }

    /// Process *pid* ended with *status*; `None` when it is not a worker.
    pub fn exited(&mut self, pid: i32, status: i32, now: Instant) -> Option<Departure> {
        let (index, role) = self.find(pid)?;
        if self.mutating.remove(&pid) {
            self.report_mutated();
        }
        let slot = &mut self.slots[index];
        slot.last_exit = Some(status);
        let forked = slot.worker(role)?.forked()?;
        self.commands.push_back(Command::Exited {
            pid,
            group: slot.group,
            slot: index,
            status,
            lifetime: now.saturating_duration_since(forked),
        });
        let left = match role {
            Role::Predecessor(index) => {
                slot.predecessors.remove(index);
                slot.note_departure(now);
                None
            }
            Role::Current if slot.successor.is_some() => {
                // Its successor is on the way already, so nothing is forked in its place.
                slot.current = slot.successor.take()?;
                slot.note_departure(now);
                None
            }
            Role::Current | Role::Successor => {
                self.apply(index, role, Event::Exited, now);
                let left = self.slots[index].worker(role).map(|worker| worker.state);
                if role == Role::Successor && status != CANNOT_LOAD {
                    self.drain_first(index, now);
                }
                let is_stopping = matches!(self.phase, Phase::Stopping { .. });
                let slot = &mut self.slots[index];
                if slot.current.state == State::Gone && !is_stopping && !slot.is_closed {
                    // It left first for the next one, which follows at once, wherever the round is.
                    slot.current = Worker::new(self.generation).alone();
                }
                left
            }
        };
        let slot = &mut self.slots[index];
        let departure = Departure {
            slot: index,
            is_respawned: matches!(left, Some(State::Due | State::Waiting { .. })),
            is_put_off: matches!(left, Some(State::Waiting { .. })),
        };
        if departure.is_respawned {
            slot.respawns = slot.respawns.saturating_add(1);
        }
        self.advance_round(now);
        Some(departure)
    }

    /// When process *pid* was forked, while it is not ready.
    #[must_use]
    pub fn starting_since(&self, pid: i32) -> Option<Instant> {
        let (slot, role) = self.find(pid)?;
        let worker = self.slots[slot].workers().find(|(its, _)| *its == role);
        worker.and_then(|(_, worker)| match worker.state {
            State::Starting { forked, .. } => Some(forked),
            State::Due
            | State::Forking
            | State::Running { .. }
            | State::Draining { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Gone => None,
        })
    }

    /// Process *pid* has not moved on for longer than the worker timeout.
    pub fn hung(&mut self, pid: i32, silent: Duration, now: Instant) {
        if let Some((slot, role)) = self.find(pid) {
            self.apply(slot, role, Event::Hung { silent }, now);
        }
    }

    /// Time passed: back-offs end and deadlines pass.
    pub fn tick(&mut self, now: Instant) {
        self.broadcast(Event::Tick, now);
        self.advance_round(now);
    }

    /// Signals to send, oldest first; they are handed out once.
    pub fn take_signals(&mut self) -> Vec<Signal> {
        std::mem::take(&mut self.signals)
    }

    /// The next command for Python, forks aside.
    pub fn take_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`Roster::tick`] will change something; `None` is never.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let of_workers = self.workers().filter_map(|(_, worker)| worker.deadline());
        of_workers.chain(self.predecessor_leaves_at()).min()
    }

    /// True when a stop was requested and no process is left.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Stopping { .. }) && self.live() == 0
    }

    /// True when a worker had to be killed during the shutdown.
    #[must_use]
    pub const fn was_late(&self) -> bool {
        self.was_late
    }

    /// What the supervisor as a whole is doing.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// All slots in order.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Live workers, in order of slot.
    pub fn pids(&self) -> impl Iterator<Item = i32> {
        self.workers().filter_map(|(_, worker)| worker.pid())
    }

    fn live(&self) -> usize {
        self.slots.iter().map(Slot::live).sum()
    }

    fn workers(&self) -> impl Iterator<Item = (usize, &Worker)> {
        let of_slot =
            |(index, slot): (usize, _)| Slot::workers(slot).map(move |(_, worker)| (index, worker));
        self.slots.iter().enumerate().flat_map(of_slot)
    }

    fn find(&self, pid: i32) -> Option<(usize, Role)> {
        let role_of = |slot: &Slot| slot.role_of(|worker| worker.pid() == Some(pid));
        (self.slots.iter().enumerate())
            .find_map(|(index, slot)| role_of(slot).map(|role| (index, role)))
    }

    fn forking(&self, slot: usize) -> Result<Role, Error> {
        self.slots
            .get(slot)
            .and_then(|slot| slot.role_of(|worker| worker.state == State::Forking))
            .ok_or(Error::NotForking { slot })
    }

    fn deadline_from(&self, now: Instant) -> Option<Instant> {
        self.grace.and_then(|grace| now.checked_add(grace))
    }

    /// One command at a time, and asking again for one that waits is asking once.
    fn configure(&mut self, request: Request) {
        let command = match request {
            Request::Reload => Command::Reload,
            Request::Mutate => Command::Mutate,
            Request::Stop | Request::Abort => return,
        };
        if !self.commands.contains(&command) {
            self.commands.push_back(command);
        }
    }

    /// Notes that a configuration command goes out to Python now.
    pub fn begin_configuring(&mut self, request: Request) {
        self.configuring = Some(request);
    }

    fn begin_stop(&mut self, deadline: Option<Instant>, event: Event, now: Instant) {
        let was_stopping = matches!(self.phase, Phase::Stopping { .. });
        if was_stopping && event != Event::Abort {
            return; // a second stop is ignored: the first one's deadline holds
        }
        self.phase = Phase::Stopping { deadline };
        self.configuring = None;
        self.is_reload_owed = false;
        self.mutating.clear();
        self.worn.clear();
        self.commands
            .retain(|command| !matches!(command, Command::Reload | Command::Mutate));
        self.broadcast(event, now);
        if !was_stopping {
            self.commands
                .push_back(Command::Stopping { count: self.live() });
        }
    }

    fn report_mutated(&mut self) {
        if self.mutating.is_empty() && !matches!(self.phase, Phase::Stopping { .. }) {
            self.commands.push_back(Command::Reloaded);
        }
    }

    fn broadcast(&mut self, event: Event, now: Instant) {
        for index in 0..self.slots.len() {
            let roles: Vec<_> = self.slots[index].workers().map(|(role, _)| role).collect();
            for role in roles {
                self.apply(index, role, event, now);
            }
        }
    }

    fn apply(&mut self, index: usize, role: Role, event: Event, now: Instant) {
        let slot = &mut self.slots[index];
        let group = slot.group;
        let Some(worker) = slot.worker(role) else {
            return;
        };
        let (next, action) = worker.on(event, now);
        *worker = next;
        match action {
            None => {}
            Some(Action::HangUp(pid)) => {
                self.mutating.insert(pid);
                self.signals.push(Signal {
                    pid,
                    number: HANGUP,
                });
            }
            Some(Action::Terminate(pid)) => self.signals.push(Signal {
                pid,
                number: TERMINATE,
            }),
            Some(Action::Kill(pid)) => self.signals.push(Signal { pid, number: KILL }),
            Some(Action::AbortLate { pid, waited }) => {
                self.report_late(index, Signal { pid, number: ABORT }, waited);
            }
            Some(Action::KillLate { pid, waited }) => {
                self.report_late(index, Signal { pid, number: KILL }, waited);
            }
            Some(Action::AbortHung { pid, silent }) => {
                self.signals.push(Signal { pid, number: ABORT });
                self.commands.push_back(Command::Hung {
                    slot: index,
                    pid,
                    silent,
                });
            }
            Some(Action::ReportBackoff { delay, failures }) => {
                self.commands.push_back(Command::Backoff {
                    group,
                    slot: index,
                    delay,
                    failures,
                });
            }
        }
    }

    /// A worker was still there at its deadline: *signal* ends it.
    fn report_late(&mut self, slot: usize, signal: Signal, waited: Duration) {
        self.was_late |= matches!(self.phase, Phase::Stopping { .. });
        self.signals.push(signal);
        self.commands.push_back(Command::Late {
            slot,
            pid: signal.pid,
            waited,
        });
    }
}
