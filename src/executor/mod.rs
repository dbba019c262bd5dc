//! The executor under oslo.messaging: jobs in order of arrival, on elastic threads.
//!
//! Owns the queue of jobs that no thread has begun, its bound, and the end of an executor (drain or
//! cancel). Threads are the business of [`crate::pool`]; what a job is, that of a [`Work`]. Knows no
//! interpreter, no messages and no sockets.
//! The contract is that of Python's `concurrent.futures.Executor`; docs/rpc.md says what differs.
//!
//! The pool never sees a job. It passes *tickets*, each good for one turn at the queue, so that a
//! job which no thread has begun can still be taken back when the executor is cancelled.

mod queue;

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use crate::pool::{self, Pool};
use crate::scoreboard::InFlight;
use queue::Queue;
pub use queue::Refused;

/// What is done with jobs.
pub trait Work: Send + Sync + 'static {
    /// One job.
    type Job: Send;

    /// Does one job. May block, and may panic: the pool's thread survives. The job counts as in
    /// flight until `in_flight` is dropped.
    ///
    /// A job may go on without the thread: then [`Executor::hold`] is called before it does, and
    /// [`Executor::resume`] with what is left to do.
    fn run(&self, job: Self::Job, in_flight: InFlight<'static>);
    /// How many jobs can compute at once; see [`pool::Source::at_once`].
    fn at_once(&self) -> usize {
        1
    }
    /// Wraps the life of a thread.
    fn thread(&self, body: &mut dyn FnMut());
}

/// One consistent view of an executor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Threads alive.
    pub threads: usize,
    /// Jobs that run.
    pub busy: usize,
    /// Jobs that no thread has begun.
    pub queued: usize,
    /// Jobs that go on without a thread.
    pub held: usize,
    /// The most jobs that were ever queued at once.
    pub most_queued: usize,
    /// Jobs that were begun since the executor was made.
    pub begun: u64,
    /// Jobs that were given back by [`Executor::close`].
    pub cancelled: u64,
    /// How long the job that would be begun next has waited; zero when none waits.
    pub oldest_wait: Duration,
    /// Sum of the waits of all jobs that were begun.
    pub total_wait: Duration,
}

/// Runs jobs on at most `max_workers` threads at once.
pub struct Executor<W: Work> {
    queue: Arc<Queue<W>>,
    pool: Pool<Queue<W>>,
    max_workers: usize,
    /// The one that made it: its threads exist nowhere else.
    process: u32,
}

impl<W: Work> fmt::Debug for Executor<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("stats", &self.stats())
            .finish()
    }
}

impl<W: Work> Executor<W> {
    /// Makes an executor; starts no thread before the first job.
    ///
    /// `max_workers` 0 counts as 1; `max_queued` 0 means no bound.
    pub fn new(work: W, max_workers: usize, max_queued: usize) -> Self {
        let queue = Arc::new(Queue::new(work, max_queued));
        Self {
            pool: Pool::new("rpc", Arc::clone(&queue), max_workers),
            queue,
            max_workers: max_workers.max(1),
            process: std::process::id(),
        }
    }

    /// The process that made it, and in which alone it is to be used. In a child of it the locks
    /// may be held for ever.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process
    }

    /// True in the process that made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// Queues a job behind all others. With a *name* it is counted under it (docs/rpc.md).
    ///
    /// # Errors
    /// [`Refused`] gives the job back: the executor is closed, its queue full, or the kernel gave no
    /// thread to an executor that has none.
    pub fn submit(&self, job: W::Job, name: Option<&str>) -> Result<(), Refused<W::Job>> {
        if let Some(number) = self.queue.push(job, name)? {
            // No thread yet. A job that is queued without one would be lost in silence.
            match self.pool.start(|| ()) {
                Ok(()) => self.queue.started(),
                Err(source) => {
                    return match self.queue.take_back(number) {
                        Some(job) => Err(Refused::NoThread { job, source }),
                        None => Ok(()),
                    };
                }
            }
        }
        Ok(())
    }

    /// Says that a job goes on without the thread that runs it; called by that thread, before.
    /// Threads and held jobs together stay within `max_workers`.
    pub fn hold(&self) {
        let held = self.queue.hold();
        self.pool.resize(self.max_workers.saturating_sub(held));
    }

    /// Blocks a thread whose job goes on without it while as many jobs are held as may run at all:
    /// it would only begin one more.
    pub fn wait_for_resumed(&self) {
        self.queue.wait_for_resumed(self.max_workers);
    }

    /// Gives a held job back, to be run in front of all that wait, also by a closed executor.
    pub fn resume(&self, job: W::Job, in_flight: InFlight<'static>) {
        let mut held = 0;
        // Fails only where there is no thread at all and the kernel gives none: the next job that
        // is submitted, or the end of the process, finds this one in the queue.
        let started = self.pool.start(|| held = self.queue.resume(job, in_flight));
        self.pool.resize(self.max_workers.saturating_sub(held));
        drop(started);
    }

    /// Forgets a held job: nothing is left to do for it.
    pub fn release(&self) {
        let mut held = 0;
        let started = self.pool.start(|| held = self.queue.release());
        self.pool.resize(self.max_workers.saturating_sub(held));
        drop(started);
    }

    /// Waits until fewer jobs are queued than the bound, or the executor is closed. False when
    /// `timeout` passed first.
    #[must_use]
    pub fn wait_for_room(&self, timeout: Option<Duration>) -> bool {
        self.queue.wait_for_room(timeout)
    }

    /// Takes no more jobs. Queued ones are still run, or given back when `cancels`. Idempotent.
    #[must_use = "jobs that are given back are not run"]
    pub fn close(&self, cancels: bool) -> Vec<W::Job> {
        self.queue.close(cancels)
    }

    /// Readable once a closed executor has run what was queued and its threads have left.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn ended_fd(&self) -> io::Result<Arc<EventFd>> {
        self.queue.ended_fd()
    }

    /// One consistent view of the counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let pool::Stats { threads, busy, .. } = self.pool.stats();
        Stats {
            threads,
            busy,
            ..self.queue.stats()
        }
    }
}

impl<W: Work> Drop for Executor<W> {
    /// Lets the threads finish what is queued and leave. A child that was forked from them leaves
    /// all as it is, since the jobs and what is counted of them are the parent's.
    fn drop(&mut self) {
        if self.is_ours() {
            drop(self.queue.close(false));
        } else {
            let _stays = ManuallyDrop::new(Arc::clone(&self.queue));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::{Condvar, Mutex, children};
    use crate::scoreboard;
    use nix::poll::{PollFd, PollFlags, poll};
    use std::collections::HashSet;
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    type Job = Box<dyn FnOnce() + Send>;

    struct Calls;

    impl Work for Calls {
        type Job = Job;

        fn run(&self, job: Job, _in_flight: InFlight<'static>) {
            job();
        }

        fn thread(&self, body: &mut dyn FnMut()) {
            body();
        }
    }

    /// Counts arrivals and holds those who arrived until it is opened.
    #[derive(Default)]
    struct Gate {
        state: Mutex<(usize, bool)>,
        changed: Condvar,
    }

    impl Gate {
        fn pass(&self) {
            let mut state = self.state.lock();
            state.0 += 1;
            self.changed.notify_all();
            self.changed.wait_while(&mut state, |(_, open)| !*open);
        }

        fn await_arrivals(&self, count: usize) {
            let mut state = self.state.lock();
            let patience = Duration::from_secs(20);
            let late = self
                .changed
                .wait_while_for(&mut state, |(arrived, _)| *arrived < count, patience)
                .timed_out();
            assert!(!late, "{} of {count} arrived", state.0);
        }

        fn open(&self) {
            self.state.lock().1 = true;
            self.changed.notify_all();
        }
    }

    fn executor(max_workers: usize, max_queued: usize) -> Executor<Calls> {
        Executor::new(Calls, max_workers, max_queued)
    }

    fn submit(executor: &Executor<Calls>, job: impl FnOnce() + Send + 'static) {
        assert!(executor.submit(Box::new(job), None).is_ok());
    }

    fn end(executor: &Executor<Calls>) {
        drop(executor.close(false));
        assert!(has_ended(executor, 20_000));
    }

    fn has_ended(executor: &Executor<Calls>, milliseconds: u16) -> bool {
        let fd = executor.ended_fd().unwrap();
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, milliseconds).unwrap() == 1
    }

    fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "it never happened");
            thread::yield_now();
        }
    }

    #[test]
    fn an_unused_executor_has_no_thread_and_ends_at_once() {
        let executor = executor(64, 0);

        assert_eq!(executor.stats(), Stats::default());
        end(&executor);
    }

    #[test]
    fn a_child_forgets_the_executor_of_its_parent_whatever_its_threads_hold() {
        let executor = executor(1, 0);
        let ended = executor.ended_fd().unwrap();
        let queue = Arc::clone(&executor.queue);
        let (held, holds) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let holder = thread::Builder::new().spawn(move || {
            let _state = queue.state.lock();
            held.send(()).unwrap();
            let _ = released.recv();
        });
        holds.recv().unwrap();

        let mut of_each = Some(executor);
        let status = children::run(|| drop(of_each.take()));

        drop(release);
        holder.unwrap().join().unwrap();
        assert!(children::has_done(&status), "{status:?}");
        let mut fds = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, 0_u8).unwrap(), 0, "the child has ended it");
        end(&of_each.unwrap());
    }

    #[test]
    fn every_job_runs_once() {
        let executor = executor(8, 0);
        let seen = Arc::new(Mutex::new(Vec::new()));

        for number in 0..10_000 {
            let seen = Arc::clone(&seen);
            submit(&executor, move || seen.lock().push(number));
        }
        end(&executor);

        let seen = seen.lock();
        assert_eq!(seen.len(), 10_000);
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 10_000);
        assert_eq!(executor.stats().begun, 10_000);
    }

    #[test]
    fn blocked_jobs_get_company_up_to_the_bound_and_no_further() {
        let executor = executor(16, 0);
        let gate = Arc::new(Gate::default());
        for _ in 0..20 {
            let gate = Arc::clone(&gate);
            submit(&executor, move || gate.pass());
        }

        gate.await_arrivals(16);

        assert_eq!(executor.stats().busy, 16);
        assert_eq!(executor.stats().queued, 4);
        gate.open();
        end(&executor);
        assert_eq!(executor.stats().begun, 20);
    }

    #[test]
    fn jobs_one_after_the_other_need_no_crowd() {
        let executor = executor(64, 0);

        for _ in 0..500 {
            let gate = Arc::new(Gate::default());
            let arrived = Arc::clone(&gate);
            gate.open();
            submit(&executor, move || arrived.pass());
            gate.await_arrivals(1);
        }

        assert!(executor.stats().threads <= 3, "{:?}", executor.stats());
        end(&executor);
    }

    #[test]
    fn cancelling_gives_back_what_nobody_has_begun() {
        let executor = executor(1, 0);
        let gate = Arc::new(Gate::default());
        let running = Arc::clone(&gate);
        submit(&executor, move || running.pass());
        gate.await_arrivals(1);
        for _ in 0..5 {
            submit(&executor, || panic!("a cancelled job ran"));
        }

        let back = executor.close(true);

        assert_eq!(back.len(), 5);
        assert_eq!(executor.stats().cancelled, 5);
        assert!(!has_ended(&executor, 0), "a job still runs");
        gate.open();
        assert!(has_ended(&executor, 20_000));
    }

    #[test]
    fn a_closed_executor_gives_the_job_back() {
        let executor = executor(1, 0);
        end(&executor);

        let refused = executor.submit(Box::new(|| ()), None);

        assert!(matches!(refused, Err(Refused::Closed(_))));
    }

    #[test]
    fn a_full_queue_refuses_until_there_is_room() {
        let executor = executor(1, 2);
        let gate = Arc::new(Gate::default());
        let running = Arc::clone(&gate);
        submit(&executor, move || running.pass());
        gate.await_arrivals(1);
        submit(&executor, || ());
        submit(&executor, || ());

        let refused = executor.submit(Box::new(|| ()), None);

        assert!(matches!(refused, Err(Refused::Full { bound: 2, .. })));
        assert!(!executor.wait_for_room(Some(Duration::ZERO)));
        gate.open();
        assert!(executor.wait_for_room(Some(Duration::from_secs(20))));
        end(&executor);
    }

    #[test]
    fn closing_wakes_those_who_wait_for_room() {
        let executor = Arc::new(executor(1, 1));
        let gate = Arc::new(Gate::default());
        let running = Arc::clone(&gate);
        submit(&executor, move || running.pass());
        gate.await_arrivals(1);
        submit(&executor, || ());
        let waiting = Arc::clone(&executor);
        let waiter = thread::Builder::new()
            .spawn(move || waiting.wait_for_room(None))
            .unwrap();

        drop(executor.close(false));

        assert!(waiter.join().unwrap());
        gate.open();
        end(&executor);
    }

    #[test]
    fn a_panicking_job_costs_no_thread() {
        let executor = executor(2, 0);
        for _ in 0..10 {
            submit(&executor, || panic!("on purpose"));
        }
        let gate = Arc::new(Gate::default());
        let after = Arc::clone(&gate);
        gate.open();

        submit(&executor, move || after.pass());

        gate.await_arrivals(1);
        end(&executor);
    }

    #[test]
    fn dropping_an_executor_runs_what_is_queued() {
        let executor = executor(1, 0);
        let gate = Arc::new(Gate::default());
        gate.open();
        for _ in 0..10 {
            let gate = Arc::clone(&gate);
            submit(&executor, move || gate.pass());
        }

        drop(executor);

        gate.await_arrivals(10);
    }

    #[test]
    fn jobs_that_go_on_without_a_thread_need_none_and_are_waited_for() {
        let executor = Arc::new(executor(64, 0));
        let flights: Arc<Mutex<Vec<InFlight<'static>>>> = Arc::default();
        for _ in 0..50 {
            let (held, flights) = (Arc::clone(&executor), Arc::clone(&flights));
            submit(&executor, move || {
                held.hold();
                flights.lock().push(scoreboard::Queued::new(None).begin());
            });
        }
        until(|| executor.stats().held == 50 && executor.stats().busy == 0);
        assert!(executor.stats().threads < 10, "{:?}", executor.stats());

        drop(executor.close(true));

        assert!(!has_ended(&executor, 50), "jobs are held");
        let done = Arc::new(Mutex::new(0));
        for in_flight in flights.lock().drain(..) {
            let done = Arc::clone(&done);
            executor.resume(Box::new(move || *done.lock() += 1), in_flight);
        }
        assert!(has_ended(&executor, 20_000));
        assert_eq!((*done.lock(), executor.stats().held), (50, 0));
    }

    #[test]
    fn held_jobs_and_threads_stay_within_the_bound_together() {
        let executor = Arc::new(executor(4, 0));
        let flights: Arc<Mutex<Vec<InFlight<'static>>>> = Arc::default();
        for _ in 0..20 {
            let (held, flights) = (Arc::clone(&executor), Arc::clone(&flights));
            submit(&executor, move || {
                held.hold();
                flights.lock().push(scoreboard::Queued::new(None).begin());
                held.wait_for_resumed();
            });
        }
        until(|| executor.stats().held == 4 && executor.stats().busy == 1);
        for _ in 0..20 {
            until(|| !flights.lock().is_empty());
            assert!(executor.stats().held <= 4);
            let in_flight = flights.lock().pop().unwrap();
            executor.resume(Box::new(|| ()), in_flight);
        }

        end(&executor);

        assert_eq!(executor.stats().begun, 20);
    }

    #[test]
    fn waiting_jobs_are_measured() {
        let executor = executor(1, 0);
        let gate = Arc::new(Gate::default());
        let running = Arc::clone(&gate);
        submit(&executor, move || running.pass());
        gate.await_arrivals(1);
        submit(&executor, || ());

        until(|| executor.stats().oldest_wait > Duration::from_millis(1));

        gate.open();
        end(&executor);
        let stats = executor.stats();
        assert!(stats.total_wait >= Duration::from_millis(1));
        assert_eq!((stats.oldest_wait, stats.queued), (Duration::ZERO, 0));
        assert_eq!(stats.most_queued, 1);
    }
}
