//! The pool as its sources see it: who runs jobs, how many at once, and how it ends.
#![cfg(feature = "pool")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use nix::time::{ClockId, clock_gettime};
use osloxide::pool::{Pool, Source, Stats};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce() -> Option<Follow> + Send>;

/// What a job leads to.
struct Follow(Job);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_interrupted: bool,
    is_over: bool,
}

/// A source that is a plain queue.
#[derive(Default)]
struct Jobs {
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Jobs that only a glance finds.
    aside: Mutex<VecDeque<Job>>,
    ended: AtomicUsize,
    /// Jobs that can compute at once; 0 counts as 1.
    at_once: AtomicUsize,
    /// Threads between the beginning and the end of what the source wraps around their lives.
    alive: AtomicUsize,
    /// What each wait was told of room.
    free: Mutex<Vec<usize>>,
    /// How often the source was told of room that there had not been.
    rooms: AtomicUsize,
}

impl Jobs {
    fn push(&self, job: impl FnOnce() + Send + 'static) {
        let job: Job = Box::new(|| {
            job();
            None
        });
        self.queue.lock().unwrap().jobs.push_back(job);
        self.changed.notify_one();
    }

    fn end(&self) {
        self.queue.lock().unwrap().is_over = true;
        self.interrupt();
    }
}

impl Source for Jobs {
    type Job = Job;

    fn wait(&self, jobs: &mut Vec<Job>, _: usize, free: usize) {
        self.free.lock().unwrap().push(free);
        let queue = self.queue.lock().unwrap();
        let mut queue = self
            .changed
            .wait_while(queue, |queue| {
                queue.jobs.is_empty() && !queue.is_interrupted
            })
            .unwrap();
        queue.is_interrupted = false;
        jobs.extend(queue.jobs.drain(..));
    }

    fn glance(&self, jobs: &mut Vec<Job>) {
        jobs.extend(self.aside.lock().unwrap().pop_front());
    }

    fn note_room(&self) {
        self.rooms.fetch_add(1, Ordering::SeqCst);
        self.interrupt();
    }

    fn interrupt(&self) {
        self.queue.lock().unwrap().is_interrupted = true;
        self.changed.notify_one();
    }

    fn run(&self, job: Job) -> Option<Job> {
        job().map(|follow| follow.0)
    }

    fn is_over(&self) -> bool {
        self.queue.lock().unwrap().is_over
    }

    fn at_once(&self) -> usize {
        self.at_once.load(Ordering::SeqCst)
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        self.alive.fetch_add(1, Ordering::SeqCst);
        body();
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }

    fn ended(&self) {
        assert_eq!(self.alive.load(Ordering::SeqCst), 0, "told before its time");
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

struct Running {
    jobs: Arc<Jobs>,
    pool: Pool<Jobs>,
}

impl Running {
    fn new(max: usize) -> Self {
        Self::on_cpus(1, max)
    }

    fn on_cpus(at_once: usize, max: usize) -> Self {
        let jobs = Arc::new(Jobs::default());
        jobs.at_once.store(at_once, Ordering::SeqCst);
        let pool = Pool::new("test", jobs.clone(), max);
        pool.start(|| {}).unwrap();
        Self { jobs, pool }
    }

    fn until(&self, what: &str, condition: impl Fn(Stats) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self.pool.stats()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.pool.stats());
            std::thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.jobs.end();
        if !std::thread::panicking() {
            self.until("threads leave", |stats| stats.threads == 0);
        }
    }
}

/// A job that says when it has begun and ends when it is told to.
fn held(jobs: &Jobs, begun: &Sender<()>) -> Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let begun = begun.clone();
    jobs.push(move || {
        begun.send(()).unwrap();
        let _ = released.recv();
    });
    release
}

fn wait(begun: &Receiver<()>, count: usize) {
    for _ in 0..count {
        begun.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn a_source_hears_of_room_once_there_is_some() {
    let running = Running::new(1);
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();

    running.jobs.push(move || {
        begun.send(()).unwrap();
        may_end.recv().unwrap();
    });
    wait(&has_begun, 1);
    // Another thread waits at the source, and is told that it has no room for what it finds.
    running.until("somebody waits", |_| {
        running.jobs.free.lock().unwrap().last() == Some(&0)
    });
    assert_eq!(running.jobs.rooms.load(Ordering::SeqCst), 0);

    end.send(()).unwrap();

    running.until("it waits with room", |_| {
        running.jobs.free.lock().unwrap().last() == Some(&1)
    });
    assert_eq!(running.jobs.rooms.load(Ordering::SeqCst), 1);
}

#[test]
fn a_job_that_was_given_up_takes_no_room() {
    let running = Running::new(1);
    let (begun, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel::<()>();

    running.jobs.push(move || {
        begun.send(nix::unistd::gettid()).unwrap();
        may_end.recv().unwrap();
    });
    let thread = has_begun.recv_timeout(PATIENCE).unwrap();
    running.until("somebody waits", |_| {
        running.jobs.free.lock().unwrap().last() == Some(&0)
    });

    running.pool.abandon().abandon(thread);

    running.until("it waits with room", |_| {
        running.jobs.free.lock().unwrap().last() == Some(&1)
    });
    end.send(()).unwrap();
}

#[test]
fn blocking_jobs_run_side_by_side_up_to_the_bound() {
    let running = Running::new(20);
    let barrier = Arc::new(Barrier::new(20));
    let (done, finished) = mpsc::channel();

    for _ in 0..40 {
        let (barrier, done) = (barrier.clone(), done.clone());
        running.jobs.push(move || {
            // Passes only once that many are inside at the same time.
            barrier.wait();
            done.send(()).unwrap();
        });
    }

    wait(&finished, 40);
    assert!(
        running.pool.stats().threads <= 22,
        "{:?}",
        running.pool.stats()
    );
}

/// Computes until *condition* holds.
fn compute_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() && Instant::now() < deadline {
        std::hint::spin_loop();
    }
}

fn own_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

#[test]
fn a_second_job_begins_beside_one_that_computes_where_two_can_at_once() {
    let running = Running::on_cpus(2, 10);
    // The first jobs run one at a time, and the pool learns that jobs are worth a second thread.
    let first = 16;
    for _ in 0..first {
        running.jobs.push(|| {
            let until = own_cpu_time() + Duration::from_millis(6);
            compute_until(|| own_cpu_time() >= until);
        });
    }
    running.until("the first are done", |stats| stats.done == first);
    // A pair on a busy machine may compute for so long that the lead is taken from one of them.
    let has_let_go = (1..=20).any(|pair| {
        let before = running.pool.stats().takeovers;
        let is_seen = Arc::new(AtomicBool::new(false));
        let (begun, beginnings) = mpsc::channel();
        for _ in 0..2 {
            let (begun, is_seen) = (begun.clone(), is_seen.clone());
            running.jobs.push(move || {
                begun.send(()).unwrap();
                compute_until(|| is_seen.load(Ordering::SeqCst));
            });
            // The second one comes while the first is inside.
            wait(&beginnings, 1);
        }
        let stats = running.pool.stats();
        is_seen.store(true, Ordering::SeqCst);
        running.until("both are done", |stats| stats.done == first + 2 * pair);
        stats.takeovers == before
    });

    assert!(has_let_go, "the first one never lets go of the lead before");
    assert!(running.pool.stats().limit >= 3);
}

#[test]
fn no_more_jobs_run_than_the_bound_allows() {
    let running = Running::new(3);
    let (begun, beginnings) = mpsc::channel();
    let releases: Vec<_> = (0..10).map(|_| held(&running.jobs, &begun)).collect();
    wait(&beginnings, 3);

    running.until("the rest is queued", |stats| stats.queued == 7);
    assert_eq!(running.pool.stats().busy, 3);

    drop(releases);
    wait(&beginnings, 7);
    running.until("all are done", |stats| stats.done == 10);
}

#[test]
fn a_larger_bound_lets_waiting_jobs_in() {
    let running = Running::new(1);
    let (begun, beginnings) = mpsc::channel();
    let releases: Vec<_> = (0..5).map(|_| held(&running.jobs, &begun)).collect();
    wait(&beginnings, 1);

    running.pool.resize(5);

    wait(&beginnings, 4);
    drop(releases);
}

#[test]
fn a_pool_of_one_keeps_to_its_thread_while_jobs_are_short() {
    let running = Running::new(1);
    let (told, threads) = mpsc::channel();

    let seen: Vec<_> = (0..200)
        .map(|_| {
            let told = told.clone();
            running.jobs.push(move || {
                std::thread::sleep(Duration::from_millis(1));
                told.send(std::thread::current().id()).unwrap();
            });
            threads.recv_timeout(PATIENCE).unwrap()
        })
        .collect();

    // A machine that is busy with something else may make some of them long.
    let changes = seen.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes < 100, "{changes} changes");
}

#[test]
fn short_jobs_pass_long_ones() {
    let running = Running::new(100);
    let (begun, beginnings) = mpsc::channel();
    let releases: Vec<_> = (0..50).map(|_| held(&running.jobs, &begun)).collect();
    wait(&beginnings, 50);
    let (done, finished) = mpsc::channel();

    for _ in 0..100 {
        let done = done.clone();
        running.jobs.push(move || done.send(()).unwrap());
    }

    wait(&finished, 100);
    drop(releases);
}

#[test]
fn where_jobs_block_the_end_of_one_looks_for_the_next() {
    let running = Running::new(8);
    let (begun, begins) = mpsc::channel();
    let (ran, found) = mpsc::channel();
    let aside: Job = Box::new(move || {
        ran.send(()).unwrap();
        None
    });
    running.jobs.aside.lock().unwrap().push_back(aside);

    // Nobody but a thread that has ended a job finds it, and only once taking leadership over from
    // blocked threads has become usual.
    let deadline = Instant::now() + PATIENCE;
    while found.try_recv().is_err() {
        assert!(Instant::now() < deadline, "{:?}", running.pool.stats());
        let taken = running.pool.stats().takeovers;
        let releases = [held(&running.jobs, &begun), held(&running.jobs, &begun)];
        wait(&begins, 2);
        drop(releases);
        running.until("jobs end", |stats| stats.busy == 0);
        assert!(running.pool.stats().takeovers >= taken);
    }
}

#[test]
fn jobs_that_compute_do_not_multiply_threads() {
    let running = Running::new(100);
    let (done, finished) = mpsc::channel();

    for _ in 0..300 {
        let done = done.clone();
        running.jobs.push(move || {
            let end = Instant::now() + Duration::from_micros(300);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            done.send(()).unwrap();
        });
    }

    wait(&finished, 300);
    assert!(
        running.pool.stats().threads <= 10,
        "{:?}",
        running.pool.stats()
    );
}

#[test]
fn a_job_that_computes_for_ever_does_not_stop_the_others() {
    let running = Running::new(10);
    let (done, finished) = mpsc::channel();
    let stop = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let stop = stop.clone();
        running.jobs.push(move || {
            while stop.load(Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
        });
    }

    running.jobs.push(move || done.send(()).unwrap());

    wait(&finished, 1);
    stop.store(1, Ordering::Relaxed);
}

#[test]
fn a_short_job_begins_beside_any_number_of_long_computations_below_the_bound() {
    for computations in [3, 8] {
        let running = Running::new(64);
        let (begun, beginnings) = mpsc::channel();
        let stop = Arc::new(AtomicUsize::new(0));
        for _ in 0..computations {
            let (stop, begun) = (stop.clone(), begun.clone());
            running.jobs.push(move || {
                begun.send(()).unwrap();
                while stop.load(Ordering::Relaxed) == 0 {
                    std::hint::spin_loop();
                }
            });
        }

        running.jobs.push(move || begun.send(()).unwrap());

        wait(&beginnings, computations + 1);
        stop.store(1, Ordering::Relaxed);
    }
}

#[test]
fn computations_fill_the_bound_one_and_all() {
    let running = Running::new(24);
    let (begun, beginnings) = mpsc::channel();
    let stop = Arc::new(AtomicUsize::new(0));
    for _ in 0..24 {
        let (stop, begun) = (stop.clone(), begun.clone());
        running.jobs.push(move || {
            begun.send(()).unwrap();
            while stop.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
        });
    }

    wait(&beginnings, 24);
    stop.store(1, Ordering::Relaxed);
}

#[test]
fn a_panic_costs_one_job_and_no_thread() {
    let running = Running::new(10);
    let (done, finished) = mpsc::channel();

    running.jobs.push(|| panic!("on purpose"));
    running.jobs.push(move || done.send(()).unwrap());

    wait(&finished, 1);
    running.until("both are counted", |stats| stats.done == 2);
    assert_eq!(running.pool.stats().panics, 1);
}

#[test]
fn what_a_job_leads_to_waits_its_turn() {
    let running = Running::new(1);
    let (order, orders) = mpsc::channel();
    let (first, other, follow) = (order.clone(), order.clone(), order);
    let (begun, beginnings) = mpsc::channel();
    let release = held(&running.jobs, &begun);
    wait(&beginnings, 1);
    let job: Job = Box::new(move || {
        first.send("first").unwrap();
        Some(Follow(Box::new(move || {
            follow.send("follow").unwrap();
            None
        })))
    });
    running.jobs.queue.lock().unwrap().jobs.push_back(job);
    running.jobs.push(move || other.send("other").unwrap());

    drop(release);

    let seen: Vec<_> = (0..3)
        .map(|_| orders.recv_timeout(PATIENCE).unwrap())
        .collect();
    assert_eq!(seen, ["first", "other", "follow"]);
}

#[test]
fn the_end_waits_for_jobs_is_told_once_and_can_be_taken_back() {
    let running = Running::new(10);
    let (begun, beginnings) = mpsc::channel();
    let release = held(&running.jobs, &begun);
    wait(&beginnings, 1);

    running.jobs.end();
    running.until("only the job is left", |stats| stats.threads == 1);
    assert_eq!(running.jobs.ended.load(Ordering::SeqCst), 0);
    drop(release);
    running.until("all threads have left", |stats| stats.threads == 0);
    assert_eq!(running.jobs.ended.load(Ordering::SeqCst), 1);

    running
        .pool
        .start(|| running.jobs.queue.lock().unwrap().is_over = false)
        .unwrap();
    let (done, finished) = mpsc::channel();
    running.jobs.push(move || done.send(()).unwrap());
    wait(&finished, 1);
}

#[test]
fn an_abandoned_job_leaves_its_place_and_its_thread_comes_back() {
    let running = Running::new(1);
    let (started, thread) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    running.jobs.push(move || {
        started.send(nix::unistd::gettid()).unwrap();
        held.recv().unwrap();
    });
    let thread = thread.recv_timeout(PATIENCE).unwrap();

    running.pool.abandon().abandon(thread);
    let (done, ended) = mpsc::channel();
    running.jobs.push(move || done.send(()).unwrap());
    ended.recv_timeout(PATIENCE).unwrap();
    running.until("the abandoned job is not counted", |stats| stats.busy == 0);

    release.send(()).unwrap();
    running.until("both are done", |stats| stats.done == 2);
    let (done, ended) = mpsc::channel();
    for _ in 0..20 {
        let done = done.clone();
        running.jobs.push(move || done.send(()).unwrap());
    }
    for _ in 0..20 {
        ended.recv_timeout(PATIENCE).unwrap();
    }
}

#[test]
fn a_pool_ends_without_the_threads_that_were_abandoned() {
    let jobs = Arc::new(Stuck::default());
    let pool = Pool::new("test", jobs.clone(), 2);
    pool.start(|| {}).unwrap();
    let (started, thread) = mpsc::channel();
    let (release, held) = mpsc::channel::<()>();
    jobs.0.push(move || {
        started.send(nix::unistd::gettid()).unwrap();
        held.recv().unwrap();
    });
    let thread = thread.recv_timeout(PATIENCE).unwrap();
    jobs.0.end();
    pool.abandon().abandon(thread);

    let deadline = Instant::now() + PATIENCE;
    while jobs.0.ended.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "{:?}", pool.stats());
        std::thread::yield_now();
    }
    release.send(()).unwrap();
}

/// Jobs of a pool that may end while some of them still run.
#[derive(Default)]
struct Stuck(Jobs);

impl Source for Stuck {
    type Job = Job;

    fn wait(&self, jobs: &mut Vec<Job>, most: usize, free: usize) {
        self.0.wait(jobs, most, free);
    }

    fn interrupt(&self) {
        self.0.interrupt();
    }

    fn run(&self, job: Job) -> Option<Job> {
        self.0.run(job)
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        body();
    }

    fn ended(&self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}
