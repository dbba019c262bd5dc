//! A supervisor whose processes are fake and whose clock is the test's.
//!
//! [`Fake`] stands at the edge to the operating system and keeps a call log; [`Rig`] plays Python
//! (it answers forks and configuration commands) and moves time. Nothing here sleeps or forks.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a module of several test programs, outside the reach of allow-unwrap-in-tests"
)]

use osloxide::scoreboard::{Scoreboard, Snapshot};
use osloxide::signals::Request;
use osloxide::supervisor::process::Processes;
use osloxide::supervisor::{Command, Error, Supervisor};
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const HUP: i32 = nix::libc::SIGHUP;
pub const TERM: i32 = nix::libc::SIGTERM;
pub const KILL: i32 = nix::libc::SIGKILL;
pub const ABRT: i32 = nix::libc::SIGABRT;

/// What the fake operating system knows.
#[derive(Debug, Default)]
pub struct Book {
    /// Signals sent since the last look: pid and number.
    pub signals: Vec<(i32, i32)>,
    /// Processes that have ended and were not reaped, with their wait status.
    pub ended: BTreeMap<i32, i32>,
    /// How often anybody asked for any child at all.
    pub asked_for_any: usize,
    /// Processes stopped by a signal.
    pub stopped: Vec<i32>,
    /// Processes that have ended and that a tracer keeps from being reaped.
    pub kept: Vec<i32>,
    /// The kernel gives no descriptor for a process.
    pub is_blind: bool,
}

#[derive(Debug, Default, Clone)]
pub struct Fake(pub Arc<Mutex<Book>>);

impl Processes for Fake {
    fn watch(&mut self, _pid: i32) -> Option<OwnedFd> {
        // A descriptor that never becomes readable: the tests say themselves when to look.
        let is_blind = self.0.lock().unwrap().is_blind;
        let watch = (!is_blind).then(|| nix::sys::eventfd::EventFd::new().ok())?;
        watch.map(OwnedFd::from)
    }

    fn signal(&mut self, pid: i32, _watch: Option<BorrowedFd<'_>>, number: i32) {
        self.0.lock().unwrap().signals.push((pid, number));
    }

    fn reap(&mut self, pid: i32) -> Option<i32> {
        self.0.lock().unwrap().ended.remove(&pid)
    }

    fn has_ended(&mut self, pid: i32) -> bool {
        self.0.lock().unwrap().kept.contains(&pid)
    }

    fn is_stopped(&mut self, pid: i32) -> bool {
        self.0.lock().unwrap().stopped.contains(&pid)
    }

    fn ended_children(&mut self) -> Vec<i32> {
        let mut book = self.0.lock().unwrap();
        book.asked_for_any += 1;
        book.ended.keys().copied().collect()
    }
}

/// A supervisor, the fake processes below it and the fake Python above it.
pub struct Rig {
    pub supervisor: Supervisor<Fake>,
    pub board: Arc<Scoreboard>,
    pub now: Instant,
    fake: Fake,
    next_pid: i32,
}

impl Rig {
    /// One group of *workers*, none forked yet, with a grace period in seconds.
    pub fn new(workers: usize, grace: u64) -> Self {
        Self::make(workers, grace, false)
    }

    /// The same as process 1.
    pub fn init(workers: usize) -> Self {
        Self::make(workers, 60, true)
    }

    fn make(workers: usize, grace: u64, is_init: bool) -> Self {
        let (fake, board) = (Fake::default(), Arc::new(Scoreboard::new("rig").unwrap()));
        let supervisor = Supervisor::new(fake.clone(), Arc::clone(&board), is_init).unwrap();
        supervisor.set_grace(Duration::from_secs(grace));
        supervisor.add_group("rig", workers).unwrap();
        Self {
            supervisor,
            board,
            now: Instant::now(),
            fake,
            next_pid: 100,
        }
    }

    /// The same with all workers forked, ready and healthy; pids from 100 on.
    pub fn running(workers: usize, grace: u64) -> Self {
        let mut rig = Self::new(workers, grace);
        for pid in rig.fork_all() {
            rig.ready(pid);
        }
        assert_eq!(rig.run(), [Command::AllReady]);
        rig.advance(3600.0);
        rig
    }

    /// The next command, if one is due.
    pub fn due(&self) -> Option<Command> {
        self.supervisor.due(self.now).unwrap()
    }

    /// All commands that are due; forks succeed, configuration commands are carried out.
    pub fn run(&mut self) -> Vec<Command> {
        let mut commands = Vec::new();
        while let Some(command) = self.due() {
            if let Command::Fork { slot, .. } = command {
                self.forked(slot);
            } else if matches!(command, Command::Reload | Command::Mutate) {
                self.supervisor.configured(self.now);
            }
            commands.push(command);
            assert!(
                commands.len() < 1000,
                "an endless stream of commands: {:?}",
                &commands[990..]
            );
        }
        commands
    }

    /// Runs and returns the pids of the workers that were forked.
    pub fn fork_all(&mut self) -> Vec<i32> {
        let first = self.next_pid;
        self.run();
        (first..self.next_pid).collect()
    }

    /// Answers a fork and returns the new pid.
    pub fn forked(&mut self, slot: usize) -> i32 {
        let pid = self.next_pid;
        self.next_pid += 1;
        self.supervisor.forked(slot, pid, self.now).unwrap();
        pid
    }

    pub fn fork_failed(&self, slot: usize) {
        self.supervisor.fork_failed(slot, self.now).unwrap();
    }

    pub fn request(&self, request: Request) {
        self.supervisor.request(request);
    }

    /// Worker *pid* reports that it is ready.
    pub fn ready(&self, pid: i32) {
        nix::unistd::write(&*self.supervisor.notices(), &pid.to_ne_bytes()).unwrap();
    }

    /// Worker *pid* ends with this wait status.
    pub fn end(&self, pid: i32, status: i32) {
        self.fake.0.lock().unwrap().ended.insert(pid, status);
    }

    /// Other code waits for process *pid*, which has ended.
    pub fn waited_for(&self, pid: i32) {
        self.fake.0.lock().unwrap().ended.remove(&pid);
    }

    /// From now on no process has a descriptor.
    pub fn become_blind(&self) {
        self.fake.0.lock().unwrap().is_blind = true;
    }

    /// Process *pid* has ended, and a tracer keeps it.
    pub fn end_kept(&self, pid: i32) {
        self.fake.0.lock().unwrap().kept.push(pid);
    }

    /// Process *pid* is stopped by a signal.
    pub fn stop_process(&self, pid: i32) {
        self.fake.0.lock().unwrap().stopped.push(pid);
    }

    pub fn advance(&mut self, seconds: f64) {
        self.now += Duration::from_secs_f64(seconds);
    }

    /// Signals sent since the last call, without the SIGCONT that goes with each SIGTERM.
    pub fn signals(&self) -> Vec<(i32, i32)> {
        let mut signals = self.all_signals();
        signals.retain(|(_, number)| *number != nix::libc::SIGCONT);
        signals
    }

    /// All signals sent since the last call.
    pub fn all_signals(&self) -> Vec<(i32, i32)> {
        std::mem::take(&mut self.fake.0.lock().unwrap().signals)
    }

    pub fn asked_for_any(&self) -> usize {
        self.fake.0.lock().unwrap().asked_for_any
    }

    pub fn pids(&self) -> Vec<i32> {
        self.supervisor.pids()
    }

    pub fn rows(&self) -> Vec<Snapshot> {
        self.board.read()
    }

    /// What `next()` would do now: the command it returns, or the deadline it would park with.
    pub fn next(&self) -> Result<Option<Command>, Option<Duration>> {
        let now = self.now;
        self.supervisor
            .next(
                || now,
                |_, deadline| Err(Parked(deadline.map(|at| at - now))),
            )
            .map_err(|Parked(deadline)| deadline)
    }

    /// Moves time to the nearest deadline and returns how far that was, in milliseconds.
    pub fn sleep(&mut self) -> u128 {
        let Err(Some(left)) = self.next() else {
            panic!("it would not sleep until a deadline")
        };
        self.now += left;
        left.as_millis()
    }
}

/// What the wait of [`Rig::next`] breaks off with.
#[derive(Debug)]
pub struct Parked(pub Option<Duration>);

impl From<Error> for Parked {
    fn from(error: Error) -> Self {
        panic!("{error}")
    }
}

pub fn forks(commands: &[Command]) -> Vec<(usize, u32)> {
    let mut forks = Vec::new();
    for command in commands {
        if let Command::Fork {
            slot, generation, ..
        } = command
        {
            forks.push((*slot, *generation));
        }
    }
    forks
}
