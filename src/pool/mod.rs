//! Leader/follower threads: elastic, gated, bounded.
//!
//! Owns threads and the queue of jobs that wait for one. Never knows what a job is: a [`Source`]
//! waits for jobs and runs them. docs/server.md describes the roles:
//!
//! - the **leader** waits at the source and runs what it finds itself, without a hop;
//! - the **standby** watches a leader that is inside a job, and takes over waiting when that job
//!   turns out to block; it sleeps for good while nothing happens;
//! - **processing threads** are those whose leadership was taken or handed on while they run a job;
//! - **idle** threads are kept in a stack, warmest on top, and leave after a while.

mod admission;
mod gate;
#[cfg(simulate)]
pub mod simulated;
mod standby;
pub(crate) mod sync;
#[cfg(not(simulate))]
mod threads;
#[cfg(test)]
mod traces;
#[cfg(simulate)]
use simulated as threads;

use admission::Waiting;
use gate::{Gate, Streak};
use nix::unistd::Pid;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sync::{Condvar, Instant, Mutex, MutexGuard};
use threads::{Alarm, SpareCpu};

/// How long a leader is inside a job before the standby looks at it, and how often it looks at jobs
/// that wait for admission.
const TICK: Duration = Duration::from_micros(400);
/// How long an idle thread stays beyond leader and standby.
const RETIRE_AFTER: Duration = Duration::from_secs(15);

/// Where jobs come from and what is done with them.
pub trait Source: Send + Sync + 'static {
    /// One piece of work for one thread.
    type Job: Send;

    /// Blocks until there are jobs or [`Source::interrupt`] was called; appends the jobs. Called by
    /// one thread at a time. May return without any.
    ///
    /// A source that works for what it appends should not do so for more than `most` of them: each
    /// will be given to another thread, and those that are ready should not wait for the rest.
    ///
    /// `free` is how many more jobs than those that run and wait may run at once, at most. Where it is
    /// 0, [`Source::note_room`] is called as soon as that changes.
    fn wait(&self, jobs: &mut Vec<Self::Job>, most: usize, free: usize);
    /// Appends a job if there is one, without blocking; another thread may be inside
    /// [`Source::wait`]. Called by threads that have just ended a job, where jobs block: what came
    /// meanwhile then begins in turn with what ends, instead of behind all of it.
    fn glance(&self, jobs: &mut Vec<Self::Job>) {
        let _ = jobs;
    }
    /// There is room for another job, which a thread inside [`Source::wait`] was told there is not.
    fn note_room(&self) {}
    /// Makes the thread inside [`Source::wait`], or the next one to enter it, return soon.
    fn interrupt(&self);
    /// Does one job; what it leads to next, if anything, queues behind the jobs that wait.
    fn run(&self, job: Self::Job) -> Option<Self::Job>;
    /// True when no job will ever come: threads leave once none is queued.
    fn is_over(&self) -> bool;
    /// How many jobs can compute at once: 1 where all of them need one lock to do so, else the number
    /// of CPUs. Asked when a thread begins its life; may change over time.
    fn at_once(&self) -> usize {
        1
    }
    /// Wraps the life of a thread.
    fn thread(&self, body: &mut dyn FnMut());
    /// The last thread has left.
    fn ended(&self);
}

/// One consistent view of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Threads alive.
    pub threads: usize,
    /// Threads inside a job.
    pub busy: usize,
    /// Jobs waiting for admission.
    pub queued: usize,
    /// Jobs done since the pool was made.
    pub done: u64,
    /// Jobs that may run at once at this moment.
    pub limit: usize,
    /// How often waiting was taken over from a thread that was inside a job.
    pub takeovers: u64,
    /// Panics that came out of [`Source::run`] or [`Source::wait`].
    pub panics: u64,
}

/// Threads for the jobs of one [`Source`].
pub struct Pool<S: Source> {
    shared: Arc<Shared<S>>,
}

impl<S: Source> fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("stats", &self.stats())
            .finish()
    }
}

impl<S: Source> Pool<S> {
    /// Makes a pool that runs at most `max` jobs at once (0 counts as 1); starts no thread.
    pub fn new(name: &'static str, source: Arc<S>, max: usize) -> Self {
        let state = State {
            ready: Waiting::new(),
            gate: Gate::new(max),
            spare: SpareCpu::default(),
            term: 0,
            is_led: false,
            leader: None,
            leader_call: 0,
            call_since: Instant::now(),
            calls: 0,
            told_free: None,
            running: Vec::new(),
            abandoned: Vec::new(),
            idle: Vec::new(),
            has_standby: false,
            alarm_time: AlarmTime::Never,
            threads: 0,
            leaving: 0,
            is_ending: false,
            done: 0,
            takeovers: 0,
        };
        let shared = Shared {
            name,
            source,
            alarm: Alarm::default(),
            state: Mutex::new(state),
            numbers: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Starts waiting for jobs, or goes on after the source was over. `resume` tells the source
    /// so, under the pool's lock: [`Source::ended`] is not called between it and the start.
    ///
    /// # Errors
    /// When the kernel refuses a thread or a timer.
    pub fn start(&self, resume: impl FnOnce()) -> io::Result<()> {
        self.shared.alarm.create()?;
        let mut state = self.shared.state.lock();
        resume();
        state.is_ending = false;
        if state.is_led {
            Ok(())
        } else {
            self.shared.start_leader(&mut state)
        }
    }

    /// What leaves threads out of it.
    #[must_use]
    pub fn abandon(&self) -> Abandon<S> {
        Abandon {
            shared: self.shared.clone(),
        }
    }

    /// Changes how many jobs may run at once; 0 counts as 1.
    pub fn resize(&self, max: usize) {
        let mut state = self.shared.state.lock();
        state.gate.resize(max);
        self.shared.tell_of_room(&mut state);
        if !state.ready.is_empty() {
            // No one looks at a pool that is full.
            self.shared.ensure_standby(&mut state);
        }
    }

    /// One consistent view of the counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.shared.state.lock();
        Stats {
            threads: state.threads + state.leaving,
            busy: state.running.len(),
            queued: state.ready.len(),
            done: state.done,
            limit: state.gate.limit(),
            takeovers: state.takeovers,
            panics: self.shared.panics.load(Ordering::Relaxed),
        }
    }
}

/// Leaves threads out of a pool that are inside jobs which were given up.
pub struct Abandon<S: Source> {
    shared: Arc<Shared<S>>,
}

impl<S: Source> fmt::Debug for Abandon<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Abandon").finish_non_exhaustive()
    }
}

impl<S: Source> Abandon<S> {
    /// Counts `thread` no more until its job has ended, if it is inside one: another thread may take
    /// its place, and the pool ends without it.
    pub fn abandon(&self, thread: Pid) {
        let mut state = self.shared.state.lock();
        let Some(at) = state.running.iter().position(|it| it.thread == thread) else {
            return;
        };
        state.running.swap_remove(at);
        state.abandoned.push(thread);
        state.threads -= 1;
        if state.leader == Some(thread) {
            // It computes, and nobody has taken over yet.
            state.leader = None;
            state.leader_call = 0;
            state.is_led = false;
            let _ = self.shared.start_leader(&mut state);
        }
        self.shared.tell_of_room(&mut state);
        self.shared.start_processing_threads(&mut state);
        if state.threads == 0 && state.leaving == 0 && state.is_ending {
            self.shared.source.ended();
        }
    }
}

struct Shared<S: Source> {
    name: &'static str,
    source: Arc<S>,
    /// Wakes the standby.
    alarm: Alarm,
    state: Mutex<State<S::Job>>,
    numbers: AtomicU64,
    panics: AtomicU64,
}

/// Where a thread sleeps while it is idle.
#[derive(Default)]
struct IdleThread {
    condvar: Condvar,
}

/// When the alarm wakes the standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AlarmTime {
    /// Nothing happens that it should look at.
    Never,
    At(Instant),
    /// It is wanted and must not be put off.
    Now,
}

/// A job that runs, and what the looks at it found.
#[derive(Debug, Clone, Copy)]
struct Running {
    thread: Pid,
    computing: Streak,
}

struct State<J> {
    ready: Waiting<J>,
    gate: Gate,
    spare: SpareCpu,
    /// Counts leaders, so that a thread can tell whether it still is the one.
    term: u64,
    /// False for the moment between two leaders.
    is_led: bool,
    leader: Option<Pid>,
    /// Number of the job that the leader is inside of, 0 while it waits.
    leader_call: u64,
    /// When that job began.
    call_since: Instant,
    calls: u64,
    /// What the leader was told of room when it entered [`Source::wait`]; `None` while it is not there,
    /// or has heard since that there is some.
    told_free: Option<usize>,
    running: Vec<Running>,
    /// Threads inside jobs that were given up; they count nowhere else.
    abandoned: Vec<Pid>,
    idle: Vec<Arc<IdleThread>>,
    has_standby: bool,
    alarm_time: AlarmTime,
    /// Threads that have or look for a role.
    threads: usize,
    /// Threads that are done but for what the source does at the end of their lives.
    leaving: usize,
    is_ending: bool,
    done: u64,
    takeovers: u64,
}

impl<J> State<J> {
    fn may_run(&self) -> bool {
        self.admissible(Instant::now()) > 0
    }

    /// How many more jobs than those that run and wait may run at once, whatever the gate allows now.
    fn free(&self) -> usize {
        let taken = self.running.len() + self.ready.len();
        self.gate.max().saturating_sub(taken)
    }

    /// How many of the jobs that wait may begin `now`.
    fn admissible(&self, now: Instant) -> usize {
        let (limit, max) = (self.gate.limit(), self.gate.max());
        self.ready.admissible(self.running.len(), limit, max, now)
    }

    /// Threads that were woken or started and have not found their role yet.
    fn arriving(&self) -> usize {
        let waits_as_leader = self.is_led && self.leader_call == 0;
        self.threads
            - self.running.len()
            - self.idle.len()
            - usize::from(self.has_standby)
            - usize::from(waits_as_leader)
    }

    fn admit(&mut self, thread: Pid) -> Option<J> {
        let (limit, max) = (self.gate.limit(), self.gate.max());
        let job = self
            .ready
            .admit(self.running.len(), limit, max, Instant::now)?;
        self.running.push(Running {
            thread,
            computing: Streak::default(),
        });
        Some(job)
    }

    /// A job for a thread that does not lead. While the leader is inside a job, what is queued is
    /// left to it: a second thread would only compete with it, and if it blocks, the standby takes
    /// over. Not so where that thread has a CPU of its own.
    fn help(&mut self, thread: Pid) -> Option<J> {
        if self.leader_call == 0 || self.gate.has_free_cpu(self.running.len()) {
            self.admit(thread)
        } else {
            None
        }
    }

    /// True while the leader is inside a job beside a CPU that is free: another thread should wait.
    fn may_relieve(&self) -> bool {
        self.leader_call != 0 && self.gate.has_free_cpu(self.running.len())
    }

    /// True while the leader waits and there is room for what it has not seen yet.
    fn may_glance(&self) -> bool {
        self.is_led
            && self.leader_call == 0
            && !self.is_ending
            && self.running.len() < self.gate.limit()
    }

    fn take_in(&mut self, batch: &mut Vec<J>) {
        if !batch.is_empty() {
            self.ready.extend(batch.drain(..), Instant::now());
        }
    }

    fn released(&self, now: Instant) -> usize {
        let at_once = self.gate.at_once();
        gate::released(self.running.iter().map(|job| job.computing), at_once, now)
    }

    /// A job has ended; false when it had been given up, and its thread has to find its place again.
    fn finish(&mut self, thread: Pid, next: Option<J>) -> bool {
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

impl<S: Source> Shared<S> {
    /// The life of one pool thread.
    fn live(self: &Arc<Self>) {
        let idle_thread = Arc::new(IdleThread::default());
        let own = threads::own_id();
        let mut batch = Vec::new();
        let at_once = self.source.at_once();
        let mut state = self.state.lock();
        state.gate.set_at_once(at_once);
        loop {
            if state.is_ending && state.ready.is_empty() {
                break;
            }
            if !state.is_led {
                self.lead(&mut state, own, &mut batch);
            } else if state.may_relieve() {
                state.takeovers += 1;
                self.lead(&mut state, own, &mut batch);
            } else if !state.has_standby {
                self.stand_by(&mut state);
            } else if let Some(job) = state.help(own) {
                self.work(&mut state, own, job, &mut batch);
            } else if !Self::idle(&mut state, &idle_thread) {
                break;
            }
        }
        state.threads -= 1;
        state.leaving += 1;
    }

    /// A thread is over, whatever the source had wrapped around its life.
    fn left(&self, has_lived: bool) {
        let mut state = self.state.lock();
        if has_lived {
            state.leaving = state.leaving.saturating_sub(1);
        } else {
            state.threads -= 1;
        }
        // The last one speaks under the lock: nobody may start the pool between the count and it.
        if state.threads == 0 && state.leaving == 0 && state.is_ending {
            self.source.ended();
        }
    }

    /// Waits at the source and runs what comes, until leadership is lost or handed on.
    fn lead(
        self: &Arc<Self>,
        state: &mut MutexGuard<'_, State<S::Job>>,
        own: Pid,
        batch: &mut Vec<S::Job>,
    ) {
        state.term += 1;
        state.is_led = true;
        state.leader = Some(own);
        state.leader_call = 0;
        let term = state.term;
        loop {
            while let Some(job) = state.admit(own) {
                let now = Instant::now();
                // Jobs that were let in by their age must not wait for each other as well.
                let is_stalled = state.running.len() > state.gate.limit();
                let has_free_cpu = state.gate.has_free_cpu(state.running.len());
                let hands_on = state.gate.is_eager(now) || is_stalled || has_free_cpu;
                if hands_on && self.hand_on(state) {
                    self.work(state, own, job, batch);
                    return;
                }
                state.calls += 1;
                state.leader_call = state.calls;
                state.call_since = now;
                self.put_off(state, now);
                self.ensure_standby(state);
                let next = self.run_counted(state, job);
                if !self.finish(state, own, next) || state.term != term {
                    return;
                }
                state.leader_call = 0;
                state.gate.not_taken_over();
            }
            if !state.ready.is_empty() {
                // Full: processing threads take what waits as they end, and the standby asks for more room.
                self.ensure_standby(state);
            }
            if state.is_ending {
                break;
            }
            // Jobs that block do not run one after the other: none should wait for its batch.
            let most = if state.gate.was_eager() {
                1
            } else {
                usize::MAX
            };
            let free = state.free();
            state.told_free = Some(free);
            MutexGuard::unlocked(state, || {
                self.contain(|| self.source.wait(batch, most, free));
            });
            state.told_free = None;
            state.take_in(batch);
            if state.ready.is_empty() && self.source.is_over() {
                state.is_ending = true;
                for idle_thread in &state.idle {
                    idle_thread.condvar.notify_one();
                }
                self.wake_standby(state);
                break;
            }
        }
        state.is_led = false;
        state.leader = None;
    }

    /// Runs jobs without leading, as long as there are any.
    fn work(
        self: &Arc<Self>,
        state: &mut MutexGuard<'_, State<S::Job>>,
        own: Pid,
        first: S::Job,
        batch: &mut Vec<S::Job>,
    ) {
        let mut job = Some(first);
        while let Some(current) = job {
            if state.leader_call != 0 || !state.ready.is_empty() {
                self.ensure_standby(state);
            }
            let next = self.run_counted(state, current);
            if !self.finish(state, own, next) || !state.is_led {
                return;
            }
            job = state.help(own);
            if job.is_none() && state.gate.was_eager() && state.may_glance() {
                MutexGuard::unlocked(state, || self.contain(|| self.source.glance(batch)));
                state.take_in(batch);
                job = state.help(own);
            }
        }
    }

    /// A job has ended; see [`State::finish`].
    fn finish(
        &self,
        state: &mut MutexGuard<'_, State<S::Job>>,
        thread: Pid,
        next: Option<S::Job>,
    ) -> bool {
        let is_counted = state.finish(thread, next);
        self.tell_of_room(state);
        is_counted
    }

    /// Tells the source where its leader waits without room for what it finds, and there is some now.
    fn tell_of_room(&self, state: &mut State<S::Job>) {
        if state.told_free == Some(0) && state.free() > 0 {
            state.told_free = None;
            self.source.note_room();
        }
    }

    /// Does something of the source's; a panic is counted and costs nothing else.
    fn contain<T: Default>(&self, work: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            self.panics.fetch_add(1, Ordering::Relaxed);
            T::default()
        })
    }

    /// Runs a job without the lock, and counts how long it lasts where that decides something.
    fn run_counted(
        &self,
        state: &mut MutexGuard<'_, State<S::Job>>,
        job: S::Job,
    ) -> Option<S::Job> {
        let since = (state.gate.at_once() > 1).then(Instant::now);
        let next = MutexGuard::unlocked(state, || self.run(job));
        if let Some(since) = since {
            let now = Instant::now();
            state
                .gate
                .count_length(now.saturating_duration_since(since));
        }
        next
    }

    fn run(&self, job: S::Job) -> Option<S::Job> {
        self.contain(|| self.source.run(job))
    }

    /// Sleeps until there is something to do; false when the thread should leave.
    fn idle(state: &mut MutexGuard<'_, State<S::Job>>, idle_thread: &Arc<IdleThread>) -> bool {
        state.idle.push(idle_thread.clone());
        let timed_out = idle_thread
            .condvar
            .wait_for(state, RETIRE_AFTER)
            .timed_out();
        // Whoever wakes a thread takes it off the stack; after a timeout it still is there.
        let was_woken = match state
            .idle
            .iter()
            .position(|other| Arc::ptr_eq(other, idle_thread))
        {
            Some(at) => {
                state.idle.remove(at);
                false
            }
            None => true,
        };
        was_woken || !timed_out
    }

    /// Gives up leadership to another thread; false when there is none to be had.
    fn hand_on(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) -> bool {
        let leader = state.leader.take();
        state.is_led = false;
        if self.start_leader(state).is_ok() {
            state.leader_call = 0;
            true
        } else {
            state.leader = leader;
            state.is_led = true;
            false
        }
    }

    /// Wakes or starts a thread that will find leadership vacant.
    fn start_leader(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) -> io::Result<()> {
        if state.arriving() > 0 {
            Ok(())
        } else if let Some(idle_thread) = state.idle.pop() {
            idle_thread.condvar.notify_one();
            Ok(())
        } else if state.has_standby {
            self.wake_standby(state);
            Ok(())
        } else {
            self.spawn(state)
        }
    }

    /// Wakes or starts as many threads as the gate admits jobs that wait.
    fn start_processing_threads(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) {
        let wanted = state
            .admissible(Instant::now())
            .saturating_sub(state.arriving());
        for _ in 0..wanted {
            if let Some(idle_thread) = state.idle.pop() {
                idle_thread.condvar.notify_one();
            } else if self.spawn(state).is_err() {
                break;
            }
        }
    }

    /// The leader begins a job `now`: an alarm that was set for an earlier one would come too early.
    /// Put off from time to time, the alarm stays silent while one short job follows the other.
    fn put_off(&self, state: &mut State<S::Job>, now: Instant) {
        let patience = state.patience();
        if let AlarmTime::At(at) = state.alarm_time
            && at < now + patience
            // Where more jobs run the gate wants its looks.
            && !state.gate.is_crowded(state.running.len())
            && (state.gate.is_of_one() || state.running.len() < state.gate.limit())
        {
            self.set_alarm(state, now + 2 * patience, 2 * patience);
        }
    }

    /// Makes sure that somebody looks at the leader's job, should it last, and at what is queued.
    fn ensure_standby(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) {
        if state.alarm_time == AlarmTime::Never {
            let patience = state.patience();
            self.set_alarm(state, Instant::now() + patience, patience);
        }
        if state.has_standby || state.arriving() > 0 {
            // There is one, or the first to arrive becomes it.
        } else if let Some(idle_thread) = state.idle.pop() {
            idle_thread.condvar.notify_one();
        } else {
            // Without a standby jobs run one by one, no worse.
            let _ = self.spawn(state);
        }
    }

    fn set_alarm(&self, state: &mut State<S::Job>, at: Instant, delay: Duration) {
        state.alarm_time = AlarmTime::At(at);
        self.alarm.set_in(delay);
    }

    /// Wakes the standby at once.
    fn wake_standby(&self, state: &mut State<S::Job>) {
        state.alarm_time = AlarmTime::Now;
        self.alarm.set_in(Duration::ZERO);
    }

    fn spawn(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) -> io::Result<()> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let shared = self.clone();
        threads::start(format!("{}-{number}", self.name), move || {
            let mut has_lived = false;
            let life = || {
                shared.source.thread(&mut || {
                    if !std::mem::replace(&mut has_lived, true) {
                        shared.live();
                    }
                });
            };
            if catch_unwind(AssertUnwindSafe(life)).is_err() {
                shared.panics.fetch_add(1, Ordering::Relaxed);
            }
            shared.left(has_lived);
        })?;
        state.threads += 1;
        Ok(())
    }
}
