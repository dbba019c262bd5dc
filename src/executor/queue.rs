//! Jobs that no thread has begun, and the tickets by which pool threads come for them.
//!
//! One mutex, held for a few instructions. Never runs a job under it, and wakes nobody who does not
//! wait: submitting to a busy executor makes no system call.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Stats, Work};
use crate::pool::Source;
use crate::pool::sync::{Condvar, Instant, Mutex, MutexGuard};
use crate::scoreboard::{InFlight, Queued};

/// A job that was not queued, and why.
#[non_exhaustive]
pub enum Refused<J> {
    /// The executor takes no more jobs.
    Closed(J),
    /// As many jobs wait as may.
    Full {
        /// The job.
        job: J,
        /// How many may wait.
        bound: usize,
    },
    /// The executor has no thread and the kernel gave none.
    NoThread {
        /// The job.
        job: J,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl<J> fmt::Debug for Refused<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(_) => f.write_str("Closed"),
            Self::Full { bound, .. } => write!(f, "Full {{ bound: {bound} }}"),
            Self::NoThread { source, .. } => write!(f, "NoThread {{ source: {source} }}"),
        }
    }
}

/// One turn at the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket;

pub(super) struct Queue<W: Work> {
    work: W,
    max_queued: usize,
    pub(super) state: Mutex<QueueState<W::Job>>,
    /// The leader waits for tickets.
    arrived: Condvar,
    /// Submitters wait for room.
    left: Condvar,
    /// Threads wait for a held job to come back.
    resumed: Condvar,
}

/// How far the life of an executor is. Each phase is entered from the one before, except that an
/// unused executor ends as soon as it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// No job has come: there is no thread.
    Unused,
    /// Jobs are taken.
    Open,
    /// Jobs are refused; what was queued is run.
    Closed,
    /// The last thread has left.
    Ended,
}

/// A job and what it counts as.
struct Entry<J> {
    /// Numbers new jobs in order of arrival; 0 for one that comes back.
    number: u64,
    since: Instant,
    job: J,
    place: Place,
}

/// A job that is queued is new, or one that has gone on without a thread.
enum Place {
    Queued(Queued),
    InFlight(InFlight<'static>),
}

pub(super) struct QueueState<J> {
    jobs: VecDeque<Entry<J>>,
    /// Jobs that go on without a thread and will be queued again.
    held: usize,
    /// Tickets that the pool has not taken yet.
    tickets: usize,
    leader_waits: bool,
    is_interrupted: bool,
    submitters_wait: usize,
    phase: Phase,
    /// Jobs that have been queued since the executor was made.
    pushed: u64,
    /// The pool has been started.
    has_threads: bool,
    /// Submitters that are starting the pool.
    starters: usize,
    /// Readable once the executor has ended; made when it is first asked for.
    ended: Option<Arc<EventFd>>,
    most_queued: usize,
    begun: u64,
    cancelled: u64,
    total_wait: Duration,
}

impl<J> QueueState<J> {
    /// Closed, and nothing is left to come.
    fn is_over(&self) -> bool {
        self.phase >= Phase::Closed && self.tickets == 0 && self.held == 0
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        if let Some(ended) = &self.ended {
            // Fails only when the counter is at its maximum: then it is readable already.
            let _ = ended.write(1);
        }
    }
}

impl<W: Work> Queue<W> {
    pub(super) fn new(work: W, max_queued: usize) -> Self {
        Self {
            work,
            max_queued,
            state: Mutex::new(QueueState {
                jobs: VecDeque::new(),
                held: 0,
                tickets: 0,
                leader_waits: false,
                is_interrupted: false,
                submitters_wait: 0,
                phase: Phase::Unused,
                pushed: 0,
                has_threads: false,
                starters: 0,
                ended: None,
                most_queued: 0,
                begun: 0,
                cancelled: 0,
                total_wait: Duration::ZERO,
            }),
            arrived: Condvar::new(),
            left: Condvar::new(),
            resumed: Condvar::new(),
        }
    }

    /// Queues a job. While the pool has no thread, returns the number of the job: the pool has to be
    /// started, and [`Queue::started`] or [`Queue::take_back`] says what came of it.
    pub(super) fn push(
        &self,
        job: W::Job,
        name: Option<&str>,
    ) -> Result<Option<u64>, Refused<W::Job>> {
        let mut state = self.state.lock();
        if state.phase >= Phase::Closed {
            return Err(Refused::Closed(job));
        }
        if self.max_queued != 0 && state.jobs.len() >= self.max_queued {
            let bound = self.max_queued;
            return Err(Refused::Full { job, bound });
        }
        state.pushed += 1;
        let number = state.pushed;
        state.jobs.push_back(Entry {
            number,
            since: Instant::now(),
            job,
            place: Place::Queued(Queued::new(name)),
        });
        state.most_queued = state.most_queued.max(state.jobs.len());
        state.tickets += 1;
        let needs_start = (!state.has_threads).then_some(number);
        state.starters += usize::from(needs_start.is_some());
        let wakes = std::mem::take(&mut state.leader_waits);
        drop(state);
        if wakes {
            self.arrived.notify_one();
        }
        Ok(needs_start)
    }

    /// The pool has been started.
    pub(super) fn started(&self) {
        let mut state = self.state.lock();
        state.has_threads = true;
        state.starters -= 1;
        if state.phase == Phase::Unused {
            state.phase = Phase::Open;
        }
    }

    /// Takes back a job for which the pool could not be started; none when a thread that another
    /// submitter has started is at it, or it was given back by a close.
    pub(super) fn take_back(&self, number: u64) -> Option<W::Job> {
        let mut state = self.state.lock();
        let at = state.jobs.iter().position(|entry| entry.number == number);
        let job = at.and_then(|at| state.jobs.remove(at)).map(|it| it.job);
        state.tickets = state.tickets.saturating_sub(usize::from(job.is_some()));
        state.starters -= 1;
        if state.phase == Phase::Closed && !state.has_threads && state.starters == 0 {
            state.end();
        }
        job
    }

    /// Counts the calling thread's job as one that goes on without it; returns how many there are.
    pub(super) fn hold(&self) -> usize {
        let mut state = self.state.lock();
        state.held += 1;
        state.held
    }

    /// Waits until fewer than `most` jobs are held.
    pub(super) fn wait_for_resumed(&self, most: usize) {
        let mut state = self.state.lock();
        self.resumed
            .wait_while(&mut state, |state| state.held >= most);
    }

    /// Forgets a held job; returns how many are still held.
    pub(super) fn release(&self) -> usize {
        let mut state = self.state.lock();
        state.held = state.held.saturating_sub(1);
        state.leader_waits = false;
        let held = state.held;
        drop(state);
        self.arrived.notify_one(); // it may be over now
        self.resumed.notify_one();
        held
    }

    /// Queues a held job in front of all others, closed or not; returns how many are still held.
    pub(super) fn resume(&self, job: W::Job, in_flight: InFlight<'static>) -> usize {
        let mut state = self.state.lock();
        state.held = state.held.saturating_sub(1);
        state.jobs.push_front(Entry {
            number: 0,
            since: Instant::now(),
            job,
            place: Place::InFlight(in_flight),
        });
        state.tickets += 1;
        state.leader_waits = false;
        let held = state.held;
        drop(state);
        self.arrived.notify_one();
        self.resumed.notify_one();
        held
    }

    pub(super) fn wait_for_room(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state.lock();
        while state.phase < Phase::Closed
            && self.max_queued != 0
            && state.jobs.len() >= self.max_queued
        {
            state.submitters_wait += 1;
            let timed_out = wait_until(&self.left, &mut state, deadline);
            state.submitters_wait -= 1;
            if timed_out {
                return state.phase >= Phase::Closed || state.jobs.len() < self.max_queued;
            }
        }
        true
    }

    pub(super) fn close(&self, cancels: bool) -> Vec<W::Job> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Unused if state.starters == 0 => state.end(),
            Phase::Unused | Phase::Open => state.phase = Phase::Closed,
            Phase::Closed | Phase::Ended => {}
        }
        let mut back = Vec::new();
        if cancels {
            for entry in std::mem::take(&mut state.jobs) {
                match entry.place {
                    Place::Queued(_) => back.push(entry.job),
                    Place::InFlight(_) => state.jobs.push_back(entry),
                }
            }
        }
        state.cancelled += back.len() as u64;
        state.is_interrupted = true;
        state.leader_waits = false;
        drop(state);
        self.arrived.notify_all();
        self.left.notify_all();
        back
    }

    pub(super) fn ended_fd(&self) -> io::Result<Arc<EventFd>> {
        let mut state = self.state.lock();
        if let Some(ended) = &state.ended {
            return Ok(Arc::clone(ended));
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ended = Arc::new(EventFd::from_flags(flags)?);
        state.ended = Some(Arc::clone(&ended));
        if state.phase == Phase::Ended {
            state.end();
        }
        Ok(ended)
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.state.lock();
        Stats {
            queued: state.jobs.len(),
            held: state.held,
            most_queued: state.most_queued,
            begun: state.begun,
            cancelled: state.cancelled,
            oldest_wait: state
                .jobs
                .front()
                .map_or(Duration::ZERO, |entry| entry.since.elapsed()),
            total_wait: state.total_wait,
            ..Stats::default()
        }
    }

    /// The job that a ticket is good for; none when it was cancelled.
    fn take(&self) -> Option<(W::Job, InFlight<'static>)> {
        let mut state = self.state.lock();
        let Entry {
            since, job, place, ..
        } = state.jobs.pop_front()?;
        let begins = matches!(place, Place::Queued(_));
        state.begun += u64::from(begins);
        state.total_wait += since.elapsed();
        let wakes = state.submitters_wait > 0;
        drop(state);
        if wakes {
            self.left.notify_one();
        }
        let in_flight = match place {
            Place::Queued(queued) => queued.begin(),
            Place::InFlight(in_flight) => in_flight,
        };
        Some((job, in_flight))
    }
}

/// Waits once; true when `deadline` passed.
fn wait_until<J>(
    condvar: &Condvar,
    state: &mut MutexGuard<'_, QueueState<J>>,
    deadline: Option<Instant>,
) -> bool {
    if let Some(deadline) = deadline {
        condvar.wait_until(state, deadline).timed_out()
    } else {
        condvar.wait(state);
        false
    }
}

impl<W: Work> Source for Queue<W> {
    type Job = Ticket;

    fn wait(&self, tickets: &mut Vec<Ticket>, _: usize, _: usize) {
        let mut state = self.state.lock();
        while state.tickets == 0 && !state.is_interrupted && !state.is_over() {
            state.leader_waits = true;
            self.arrived.wait(&mut state);
        }
        state.leader_waits = false;
        state.is_interrupted = false;
        tickets.resize(state.tickets, Ticket);
        state.tickets = 0;
    }

    fn interrupt(&self) {
        let mut state = self.state.lock();
        state.is_interrupted = true;
        state.leader_waits = false;
        drop(state);
        self.arrived.notify_all();
    }

    fn run(&self, _ticket: Ticket) -> Option<Ticket> {
        if let Some((job, in_flight)) = self.take() {
            self.work.run(job, in_flight);
        }
        None
    }

    fn is_over(&self) -> bool {
        self.state.lock().is_over()
    }

    fn at_once(&self) -> usize {
        self.work.at_once()
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        let row = crate::scoreboard::current();
        row.thread_started();
        self.work.thread(body);
        row.thread_ended();
    }

    fn ended(&self) {
        let mut state = self.state.lock();
        // Else the last thread has left while its job goes on: the pool is started again for it.
        if state.is_over() {
            state.end();
        }
    }
}
