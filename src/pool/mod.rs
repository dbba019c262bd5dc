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
mod life;
#[cfg(simulate)]
pub mod simulated;
mod standby;
mod state;
pub(crate) mod sync;
#[cfg(not(simulate))]
mod threads;
#[cfg(test)]
mod traces;
#[cfg(simulate)]
use simulated as threads;

pub use admission::LONGEST_WAIT_AT_FIRST;
use admission::Waiting;
use gate::Gate;
use nix::unistd::Pid;
use state::{AlarmTime, State};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sync::{Instant, Mutex};
use threads::{Alarm, SpareCpu};

/// How long a leader is inside a job before the standby looks at it, and how often it looks at jobs
/// that wait for admission.
const TICK: Duration = Duration::from_micros(400);

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
