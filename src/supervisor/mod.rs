//! The parent of a launcher's workers: fork, reap, respawn, reload, drain.
//!
//! [`Supervisor::next`] is the only loop. It collects what happened (requests, notices, ended
//! processes, passed deadlines), lets the pure [`roster`] decide, sends the signals that come out,
//! and returns the next [`Command`] for Python or parks until something happens. It starts no
//! thread, blocks no signal and forks nothing: fork is a command, because CPython must do it.
//! Rules: oslo.service `ProcessLauncher`; tables in docs/lifecycle.md.

mod command;
pub mod pipes;
pub mod process;
pub mod roster;
pub mod slot;
pub mod state;

pub use command::{Command, Error};

use crate::locks::{Mutex, MutexGuard};
use crate::scoreboard::{self, Assignment, Scoreboard};
use crate::signals::{Pending, Request, Wakeup, poll_readable};
use nix::libc;
use pipes::Pipes;
use process::Processes;
use roster::{Phase, Roster};
use state::State;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Workers that one supervisor can have. Half of the scoreboard: during a reload a slot may need a
/// row for the worker that leaves beside that of the one that came.
pub const MOST_WORKERS: usize = scoreboard::CAPACITY / 2 - 1;

/// How often children are looked at where no pidfd tells of their end and SIGCHLD may be lost to a
/// handler of the application.
const POLL_WITHOUT_PIDFD: Duration = Duration::from_secs(1);

/// How long a tracer has to wait for a worker that has ended under it, and how often the parent looks
/// whether it has; then the worker's status is given up.
const TRACER_GRACE: Duration = Duration::from_secs(1);
const LOOK_AT_TRACED: Duration = Duration::from_millis(50);
/// How often the remains of workers are asked for that a tracer keeps for longer.
const FETCH_TRACED: Duration = Duration::from_secs(10);

/// How long process 1 leaves an ended child that is no worker to code that may be waiting for it.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(2);
/// When Python is asked again about an orphan that it did not want to be reaped.
const ORPHAN_AGAIN: Duration = Duration::from_secs(60);

/// Supervises workers. All methods take `&self`: signal handlers of the main thread call
/// [`Supervisor::request`] and [`Supervisor::signal_all`] while [`Supervisor::next`] is parked.
#[derive(Debug)]
pub struct Supervisor<P> {
    requests: Pending,
    /// Given with each request, so that one from another thread ends the wait of [`Self::next`].
    wakeup: Arc<Wakeup>,
    owner: u32,
    inner: Mutex<Inner<P>>,
}

#[derive(Debug)]
struct Inner<P> {
    is_init: bool,
    roster: Roster,
    processes: P,
    pipes: Pipes,
    board: Arc<Scoreboard>,
    /// What tells of the end of each live worker, and its row on the scoreboard.
    live: BTreeMap<i32, Live>,
    /// How long a worker may hang; `None` is for ever.
    hang_detector: Option<HangDetector>,
    /// Python is told that time passes, this often and next then.
    tick: Option<(Duration, Instant)>,
    /// Row reserved for the fork that was handed out.
    reserved: Option<usize>,
    /// Workers that have ended and that a tracer keeps from being reaped.
    traced: Vec<i32>,
    /// Children of process 1 that ended and are no workers, and when Python is asked about each.
    orphans: BTreeMap<i32, Instant>,
    /// Due workers wait: what they are to be forked from is not there yet.
    holds_forks: bool,
    /// Where templates of workers tell Python something.
    templates: Vec<Arc<OwnedFd>>,
}

#[derive(Debug, Clone, Copy)]
struct HangDetector {
    timeout: Duration,
    /// When workers are looked at next.
    look: Instant,
    /// When this process last woke up long after it meant to look. What seems to hang since before
    /// was held up with everything else: a paused container, a machine without time for anybody.
    awake_since: Option<Instant>,
}

impl HangDetector {
    fn new(timeout: Duration, now: Instant) -> Option<Self> {
        let look = now
            .checked_add(timeout / 4)
            .filter(|_| !timeout.is_zero())?;
        Some(Self {
            timeout,
            look,
            awake_since: None,
        })
    }

    /// True when it is time to look, which is then noted.
    fn is_due(&mut self, now: Instant) -> bool {
        let quarter = self.timeout / 4;
        if now < self.look {
            return false;
        }
        if now.saturating_duration_since(self.look) > quarter {
            self.awake_since = Some(now);
        }
        self.look = now + quarter;
        true
    }
}

#[derive(Debug)]
struct Live {
    watch: Option<Arc<OwnedFd>>,
    row: Option<usize>,
    /// When it was first seen stopped by a signal, while it is.
    stopped: Option<Instant>,
    /// Since when its end is known though it could not be reaped.
    unfetched: Option<Instant>,
}

enum Step {
    Do(Command),
    Park {
        fds: Vec<Arc<OwnedFd>>,
        deadline: Option<Instant>,
    },
    Ended,
}

impl<P: Processes> Supervisor<P> {
    /// A supervisor without workers. *`is_init`* says that this is process 1, which has to reap
    /// orphans too.
    ///
    /// # Errors
    /// [`Error::Pipes`] when no descriptors are left.
    pub fn new(processes: P, board: Arc<Scoreboard>, is_init: bool) -> Result<Self, Error> {
        let inner = Inner {
            is_init,
            roster: Roster::default(),
            processes,
            pipes: Pipes::new().map_err(Error::Pipes)?,
            board,
            live: BTreeMap::new(),
            hang_detector: None,
            tick: None,
            reserved: None,
            traced: Vec::new(),
            orphans: BTreeMap::new(),
            holds_forks: false,
            templates: Vec::new(),
        };
        Ok(Self {
            requests: Pending::new(),
            wakeup: Arc::new(Wakeup::new().map_err(Error::Pipes)?),
            owner: std::process::id(),
            inner: Mutex::new(inner),
        })
    }

    /// Adds a group of *workers* identical workers, 0 allowed, and returns its number. Any thread may: it
    /// wakes a parked [`Supervisor::next`].
    ///
    /// # Errors
    /// [`Error::TooManyWorkers`].
    pub fn add_group(&self, name: &str, workers: usize) -> Result<usize, Error> {
        let mut inner = self.lock();
        let wanted = inner.roster.slots().len().saturating_add(workers);
        if wanted > MOST_WORKERS {
            return Err(Error::TooManyWorkers { wanted });
        }
        let group = inner.roster.add_group(name, workers);
        inner.board.name_group(group, name);
        self.wakeup.wake();
        Ok(group)
    }

    /// Gives *group* so many workers: more are forked, or those in its highest slots drain and leave.
    ///
    /// # Errors
    /// [`Error::TooManyWorkers`].
    pub fn resize(&self, group: usize, workers: usize, now: Instant) -> Result<(), Error> {
        let mut inner = self.lock();
        let others = (inner.roster.slots().iter()).filter(|slot| slot.group != group);
        let wanted = others.count().saturating_add(workers);
        if wanted > MOST_WORKERS {
            return Err(Error::TooManyWorkers { wanted });
        }
        inner.roster.resize(group, workers, now);
        inner.act();
        Ok(())
    }

    /// How long workers may drain before SIGKILL; zero is for ever.
    pub fn set_grace(&self, grace: Duration) {
        self.lock().roster.set_grace(grace);
    }

    /// Replaces workers that are stopped, busy with one request, or have ceased to beat, for longer
    /// than this; zero is never. With it the parent looks at its workers four times in that span.
    pub fn set_worker_timeout(&self, timeout: Duration, now: Instant) {
        self.lock().hang_detector = HangDetector::new(timeout, now);
    }

    /// Hands out [`Command::Tick`] this often; zero is never, the default.
    pub fn set_tick(&self, interval: Duration, now: Instant) {
        let next = now.checked_add(interval).filter(|_| !interval.is_zero());
        self.lock().tick = next.map(|next| (interval, next));
    }

    /// Finds children that ended and are no workers, as process 1 does: workers are forked by a
    /// template, and the processes in between, or workers that never began, may be left here.
    pub fn adopt_orphans(&self) {
        self.lock().is_init = true;
    }

    /// While *held*, workers that are due are not forked; all else goes on.
    pub fn hold_forks(&self, held: bool) {
        self.lock().holds_forks = held;
    }

    /// Hands out [`Command::Template`] for as long as one of *templates* is readable, instead of
    /// those of the last call.
    pub fn watch_templates(&self, templates: Vec<OwnedFd>) {
        self.lock().templates = templates.into_iter().map(Arc::new).collect();
    }

    /// Begins a round of replacements without asking Python for the configuration, which it has
    /// read already.
    pub fn replace_workers(&self, now: Instant) {
        let mut inner = self.lock();
        inner.roster.replace_workers(now);
        inner.act();
    }

    /// Reaps an orphan whose end [`Command::Orphan`] told of; `None` when other code has.
    pub fn reap_orphan(&self, pid: i32) -> Option<i32> {
        let mut inner = self.lock();
        inner.orphans.remove(&pid)?;
        inner.processes.reap_orphan(pid)
    }

    /// Records a request for [`Supervisor::next`] and wakes it. Any thread and any context may
    /// call it: it takes no lock.
    pub fn request(&self, request: Request) {
        self.requests.record(request);
        if self.is_parent() {
            self.wakeup.wake();
        }
    }

    /// The process that made this supervisor; only there it may be used.
    #[must_use]
    pub const fn owner(&self) -> u32 {
        self.owner
    }

    fn is_parent(&self) -> bool {
        std::process::id() == self.owner
    }

    /// The next command; `None` once a stop was requested and every worker has left.
    ///
    /// *clock* tells the time. *wait* parks until one of the descriptors is readable, a signal
    /// handler ran or the deadline passed, and returns true in the second case.
    ///
    /// # Errors
    /// [`Error::Unanswered`], [`Error::NotTheParent`], or what *wait* returns.
    pub fn next<E: From<Error>>(
        &self,
        clock: impl Fn() -> Instant,
        mut wait: impl FnMut(&[BorrowedFd<'_>], Option<Instant>) -> Result<bool, E>,
    ) -> Result<Option<Command>, E> {
        let mut was_interrupted = false;
        loop {
            match self.step(clock())? {
                Step::Do(command) => return Ok(Some(command)),
                Step::Ended => return Ok(None),
                Step::Park { .. } if was_interrupted => return Ok(Some(Command::Interrupted)),
                Step::Park { fds, deadline } => {
                    let wakeup = std::iter::once(self.wakeup.as_ref().as_fd());
                    let fds: Vec<_> = wakeup.chain(fds.iter().map(AsFd::as_fd)).collect();
                    was_interrupted = wait(&fds, deadline)?;
                }
            }
        }
    }

    /// Like [`Supervisor::next`] without ever parking: `None` when nothing is due at *now*.
    ///
    /// # Errors
    /// [`Error::Unanswered`], [`Error::NotTheParent`].
    pub fn due(&self, now: Instant) -> Result<Option<Command>, Error> {
        match self.step(now)? {
            Step::Do(command) => Ok(Some(command)),
            Step::Ended | Step::Park { .. } => Ok(None),
        }
    }

    /// The fork of *slot* gave process *pid*. Returns false when the kernel cannot tell of its end
    /// by a descriptor: SIGCHLD must then have a handler.
    ///
    /// # Errors
    /// [`Error::NotForking`].
    pub fn forked(&self, slot: usize, pid: i32, now: Instant) -> Result<bool, Error> {
        let mut inner = self.lock();
        inner.roster.forked(slot, pid, now)?;
        let watch = inner.processes.watch(pid).map(Arc::new);
        let is_watched = watch.is_some();
        let row = inner.reserved.take();
        if let Some(row) = row.and_then(|row| inner.board.row(row)) {
            row.mark_forked(pid.unsigned_abs());
        }
        inner.live.insert(
            pid,
            Live {
                watch,
                row,
                stopped: None,
                unfetched: None,
            },
        );
        // Other code has reaped the one that had this pid.
        inner.traced.retain(|traced| *traced != pid);
        inner.act();
        Ok(is_watched)
    }

    /// The fork of *slot* failed; it is tried again after a back-off.
    ///
    /// # Errors
    /// [`Error::NotForking`].
    pub fn fork_failed(&self, slot: usize, now: Instant) -> Result<(), Error> {
        let mut inner = self.lock();
        inner.refused(slot, now)?;
        inner.act();
        Ok(())
    }

    /// The configuration command was carried out.
    pub fn configured(&self, now: Instant) {
        let mut inner = self.lock();
        inner.roster.configured(now);
        inner.act();
    }

    /// Live workers, in order of slot; none in a worker, whose siblings they would be.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        if self.is_parent() {
            self.lock().roster.pids().collect()
        } else {
            Vec::new()
        }
    }

    /// What the supervisor as a whole is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().roster.phase()
    }

    /// 0 when every worker left in time, 1 when one had to be killed at the deadline or the
    /// shutdown was an abort.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        i32::from(self.lock().roster.was_late())
    }

    /// Sends a signal to every live worker now. Does nothing in a worker, where a handler that it
    /// inherited may call it.
    pub fn signal_all(&self, number: i32) {
        if !self.is_parent() {
            return;
        }
        // Under one lock: none is reaped, and none forked, in the middle of it.
        let mut inner = self.lock();
        let pids: Vec<_> = inner.roster.pids().collect();
        for pid in pids {
            inner.signal(pid, number);
        }
    }

    /// Read end of the liveness pipe.
    #[must_use]
    pub fn liveness(&self) -> Arc<OwnedFd> {
        Arc::clone(self.lock().pipes.liveness())
    }

    /// Write end of the notice pipe.
    #[must_use]
    pub fn notices(&self) -> Arc<OwnedFd> {
        Arc::clone(self.lock().pipes.notices())
    }

    /// In a forked child: closes everything that only the parent may hold.
    pub fn become_worker(&self) {
        let mut inner = self.lock();
        inner.live.clear();
        inner.templates.clear();
        inner.pipes.keep_worker_ends();
    }

    fn step(&self, now: Instant) -> Result<Step, Error> {
        if !self.is_parent() {
            return Err(Error::NotTheParent {
                owner: self.owner,
                here: std::process::id(),
            });
        }
        let _ = self.wakeup.take(); // before looking, so that a later request wakes again
        let mut inner = self.lock();
        if let Some(slot) = inner.roster.unanswered() {
            if !self.shall_end(&inner) {
                return Err(Error::Unanswered { slot });
            }
            // Python gave up in the middle of it; the workers have to leave all the same.
            inner.refused(slot, now)?;
        }
        inner.roster.forget_configuring();
        for pid in inner.pipes.take_notices() {
            if let Some(asking) = pid.checked_neg().filter(|asking| *asking > 0) {
                let why = inner.why_worn(asking);
                inner.roster.worn_out(asking, why, now);
            } else {
                inner.roster.heard_from(pid, now);
            }
        }
        inner.reap(now);
        if inner.is_init {
            inner.look_for_orphans(now);
        }
        while let Some(request) = self.requests.take_most_urgent() {
            inner.roster.request(request, now);
        }
        inner.look_after_hung(now);
        inner.roster.tick(now);
        inner.act();
        Ok(inner.next_step(now))
    }

    fn shall_end(&self, inner: &Inner<P>) -> bool {
        self.requests.contains(Request::Stop)
            || self.requests.contains(Request::Abort)
            || matches!(inner.roster.phase(), Phase::Stopping { .. })
    }

    /// Held for the length of one step, with the interpreter attached and never while parked; so
    /// no child can inherit it locked.
    fn lock(&self) -> MutexGuard<'_, Inner<P>> {
        self.inner.lock()
    }
}

impl<P: Processes> Inner<P> {
    fn next_step(&mut self, now: Instant) -> Step {
        let command = self.roster.take_command();
        let command = command.or_else(|| self.orphan(now));
        let command = command.or_else(|| self.news_of_templates());
        if let Some(command) = command.or_else(|| self.tick(now)) {
            match command {
                Command::Reload => self.roster.begin_configuring(Request::Reload),
                Command::Mutate => self.roster.begin_configuring(Request::Mutate),
                Command::Fork { .. }
                | Command::Stopping { .. }
                | Command::Exited { .. }
                | Command::Orphan { .. }
                | Command::Backoff { .. }
                | Command::Late { .. }
                | Command::Hung { .. }
                | Command::Worn { .. }
                | Command::LeavesFirst { .. }
                | Command::AllReady
                | Command::Reloaded
                | Command::Template
                | Command::Tick
                | Command::Interrupted => {}
            }
            return Step::Do(command);
        }
        let fork = (!self.holds_forks).then(|| self.roster.hand_out_fork(now));
        if let Some((slot, command)) = fork.flatten() {
            if let Command::Fork { generation, .. } = command {
                self.reserve(slot, generation);
            }
            return Step::Do(command);
        }
        if self.roster.has_ended() {
            return Step::Ended;
        }
        // One whose end is known would be told of for ever.
        let awaited = self.live.values().filter(|live| live.unfetched.is_none());
        let watches = awaited.filter_map(|live| live.watch.clone());
        let fds = self.pipes.incoming().into_iter().chain(watches);
        let fds = fds.chain(self.templates.iter().cloned()).collect();
        let is_blind = self.live.values().any(|live| live.watch.is_none());
        let look_again = is_blind.then(|| now + POLL_WITHOUT_PIDFD);
        let fetch_by = if self.live.values().any(|live| live.unfetched.is_some()) {
            Some(now + LOOK_AT_TRACED)
        } else {
            (!self.traced.is_empty()).then(|| now + FETCH_TRACED)
        };
        let hung_by = self
            .hang_detector
            .filter(|_| !self.live.is_empty())
            .map(|hang_detector| hang_detector.look);
        let tick_by = self.tick.map(|(_, next)| next);
        let ask_by = self.orphans.values().min().copied();
        let deadline = self.roster.deadline().into_iter();
        let deadline = deadline
            .chain(
                [look_again, fetch_by, hung_by, tick_by, ask_by]
                    .into_iter()
                    .flatten(),
            )
            .min();
        Step::Park { fds, deadline }
    }

    fn why_worn(&self, pid: i32) -> Option<scoreboard::Worn> {
        let row = self.live.get(&pid)?.row?;
        self.board.row(row)?.worn()
    }

    fn refused(&mut self, slot: usize, now: Instant) -> Result<(), Error> {
        self.roster.fork_failed(slot, now)?;
        let row = self.reserved.take();
        if let Some(row) = row.and_then(|row| self.board.row(row)) {
            row.mark(scoreboard::State::Waiting);
        }
        Ok(())
    }

    fn reap(&mut self, now: Instant) {
        let pids: Vec<_> = self.live.keys().copied().collect();
        for pid in pids {
            if let Some(status) = self.processes.reap(pid) {
                self.ended(pid, status, now);
            }
        }
        self.reap_traced(now);
    }

    /// A worker whose end is told and which cannot be reaped has a tracer that has not waited for
    /// it: ptrace(2) lets the parent have it only after that. strace(1) waits at once; a debugger at its
    /// prompt does not. The worker runs no more, so after [`TRACER_GRACE`] it is gone for the roster,
    /// and its remains are fetched when they are to be had.
    fn reap_traced(&mut self, now: Instant) {
        self.traced
            .retain(|pid| self.processes.reap(*pid).is_none());
        for pid in self.told_to_have_ended() {
            // It may have ended only since it was looked at.
            let status = self.processes.reap(pid);
            if status.is_none() {
                let live = self.live.get_mut(&pid);
                let since = live.map_or(now, |live| *live.unfetched.get_or_insert(now));
                if now < since + TRACER_GRACE {
                    continue;
                }
                self.traced.push(pid);
            }
            self.ended(pid, status.unwrap_or(process::LOST_STATUS), now);
        }
    }

    /// Live workers whose descriptors tell of their end, or which have none and are seen to have ended.
    fn told_to_have_ended(&mut self) -> Vec<i32> {
        let (mut watched, mut ended) = (Vec::new(), Vec::new());
        for (pid, live) in &self.live {
            match live.watch.as_deref() {
                Some(watch) => watched.push((*pid, watch.as_fd())),
                None if self.processes.has_ended(*pid) => ended.push(*pid),
                None => {}
            }
        }
        let fds: Vec<_> = watched.iter().map(|(_, watch)| *watch).collect();
        let told = if fds.is_empty() {
            Vec::new()
        } else {
            poll_readable(&fds, Some(Instant::now())).unwrap_or_default()
        };
        let told = told.into_iter().filter_map(|index| watched.get(index));
        ended.extend(told.map(|(pid, _)| *pid));
        ended
    }

    /// Notes children that ended and are no workers, and forgets those that were waited for.
    fn look_for_orphans(&mut self, now: Instant) {
        let ended = self.processes.ended_children();
        self.orphans.retain(|pid, _| ended.contains(pid));
        for pid in ended {
            if !self.live.contains_key(&pid) && !self.traced.contains(&pid) {
                self.orphans.entry(pid).or_insert(now + ORPHAN_GRACE);
            }
        }
    }

    fn orphan(&mut self, now: Instant) -> Option<Command> {
        let (pid, ask_by) = self
            .orphans
            .iter_mut()
            .find(|(_, ask_by)| **ask_by <= now)?;
        *ask_by = now + ORPHAN_AGAIN;
        Some(Command::Orphan { pid: *pid })
    }

    fn news_of_templates(&self) -> Option<Command> {
        let fds: Vec<_> = self.templates.iter().map(AsFd::as_fd).collect();
        let has_news = !fds.is_empty()
            && poll_readable(&fds, Some(Instant::now())).is_ok_and(|it| !it.is_empty());
        has_news.then_some(Command::Template)
    }

    fn tick(&mut self, now: Instant) -> Option<Command> {
        let (interval, next) = self.tick.filter(|(_, next)| *next <= now)?;
        // Not from the last one: what was missed is not made up for.
        self.tick = Some((interval, next.max(now) + interval));
        Some(Command::Tick)
    }

    fn look_after_hung(&mut self, now: Instant) {
        let Some(hang_detector) = &mut self.hang_detector else {
            return;
        };
        if !hang_detector.is_due(now) {
            return;
        }
        let (timeout, longest) = (
            hang_detector.timeout,
            hang_detector
                .awake_since
                .map_or(Duration::MAX, |since| now.saturating_duration_since(since)),
        );
        for (pid, live) in &mut self.live {
            let is_stopped = self.processes.is_stopped(*pid);
            live.stopped = is_stopped.then(|| live.stopped.unwrap_or(now));
            let stopped = live
                .stopped
                .map(|since| now.saturating_duration_since(since));
            let row = live.row.and_then(|row| self.board.row(row));
            let busy = row
                .and_then(scoreboard::Row::oldest_busy)
                .map(Duration::from_nanos);
            // Promised for as long as the worker believes the timeout to be: it may have changed.
            let mute = row
                .and_then(scoreboard::Row::overdue)
                .map(|overdue| timeout.saturating_add(Duration::from_nanos(overdue)));
            let starting = self
                .roster
                .starting_since(*pid)
                .map(|since| now.saturating_duration_since(since));
            let silent = stopped.max(busy).max(mute).max(starting);
            let silent = silent.map(|it| it.min(longest));
            if let Some(silent) = silent.filter(|silent| *silent >= timeout) {
                self.roster.hung(*pid, silent, now);
            }
        }
    }

    fn ended(&mut self, pid: i32, status: i32, now: Instant) {
        let Some(live) = self.live.remove(&pid) else {
            return;
        };
        let departure = self.roster.exited(pid, status, now);
        let Some(row) = live.row.and_then(|row| self.board.row(row)) else {
            return;
        };
        let state = match departure {
            Some(departure) if departure.is_put_off => scoreboard::State::Waiting,
            Some(departure) if departure.is_respawned => scoreboard::State::Gone,
            Some(departure) if self.has_workers(departure.slot) => scoreboard::State::Replaced,
            Some(_) | None => scoreboard::State::Gone,
        };
        row.mark_ended(state, status);
    }

    fn has_workers(&self, slot: usize) -> bool {
        let slot = self.roster.slots().get(slot);
        slot.is_some_and(|slot| slot.workers().any(|(_, worker)| worker.pid().is_some()))
    }

    fn reserve(&mut self, slot: usize, generation: u32) {
        let Some(record) = self.roster.slots().get(slot) else {
            return;
        };
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        // Without a row the worker still runs; it is only not shown.
        self.reserved = self
            .board
            .reserve(Assignment {
                slot: number(slot),
                group: number(record.group),
                generation,
                respawns: record.respawns,
                last_exit: record.last_exit,
            })
            .ok();
    }

    /// Sends the signals that the roster decided on and shows its states on the scoreboard.
    fn act(&mut self) {
        for signal in self.roster.take_signals() {
            self.signal(signal.pid, signal.number);
        }
        for slot in self.roster.slots() {
            for (role, worker) in slot.workers() {
                let Some(pid) = worker.pid() else { continue };
                let row = self.live.get(&pid).and_then(|live| live.row);
                let Some(row) = row.and_then(|row| self.board.row(row)) else {
                    continue;
                };
                match worker.state {
                    State::Draining { .. } => row.mark(scoreboard::State::Draining),
                    State::Aborting { .. } | State::Killing { .. } => {
                        row.mark(scoreboard::State::Killing);
                    }
                    // The worker says itself that it is ready, or that it is leaving.
                    State::Starting { .. } | State::Running { .. } => {}
                    State::Due | State::Forking | State::Waiting { .. } | State::Gone => {
                        debug_assert!(false, "a {role:?} without a process has a pid");
                    }
                }
            }
        }
    }

    fn signal(&mut self, pid: i32, number: i32) {
        // One that was reaped since it was decided on: its pid may be another process's by now.
        let Some(live) = self.live.get(&pid) else {
            return;
        };
        let watch = live.watch.clone();
        let watch = watch.as_deref().map(AsFd::as_fd);
        self.processes.signal(pid, watch, number);
        if matches!(number, libc::SIGTERM | libc::SIGABRT) {
            // One that is stopped would never see it; systemd does the same. Without asking first,
            // for a SIGSTOP may be on its way; and others ignore SIGCONT unless they handle it.
            self.processes.signal(pid, watch, libc::SIGCONT);
        }
    }
}
