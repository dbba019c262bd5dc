//! The pool, its gate and the executor under schedules chosen by shuttle.
//!
//! Owns the scenarios and their promises. Compiled under `cfg(simulate)` alone, where
//! `src/pool/simulated.rs` stands in for threads, locks and the clock; `make simulation` and
//! `make simulate` run it. A failing seed prints as one line. docs/simulation.md has the figures.
#![cfg(all(simulate, feature = "executor"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failed step fails the test, and says for which seed"
)]

use nix::poll::{PollFd, PollFlags, poll};
use osloxide::executor::{Executor, Refused, Work};
use osloxide::pool::simulated::{Condvar, Mutex, Time, refuse_threads};
use osloxide::scoreboard::{self, InFlight};
use shuttle::scheduler::{RandomScheduler, Scheduler, UrwRandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner, thread};
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seeds of each scenario in an everyday run, and schedules of each seed.
const SEEDS: u64 = 40;
const SCHEDULES: usize = 20;
/// A schedule that takes so many steps has stopped to get anywhere.
const MOST_STEPS: usize = 1_000_000;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Runs *scenario* under many schedules.
fn simulate(name: &'static str, scenario: fn()) {
    if let Some(seed) = variable("OSLOXIDE_SIM_SEED") {
        let wanted = seed.strip_prefix(name).and_then(|it| it.strip_prefix('/'));
        if let Some((scheduler, number)) = wanted.and_then(|it| it.split_once('/')) {
            run(name, scheduler, number.parse().unwrap(), scenario);
        }
        return;
    }
    let seconds: Option<u64> = variable("OSLOXIDE_SIM_SECONDS").map(|it| it.parse().unwrap());
    let since = Instant::now();
    let first = seconds.map_or(0, |_| RandomState::new().hash_one(name) >> 16);
    let is_over = |count| match seconds {
        None => count >= SEEDS,
        Some(seconds) => since.elapsed() >= Duration::from_secs(seconds),
    };
    let mut count = 0;
    while !is_over(count) {
        for scheduler in ["random", "urw"] {
            run(name, scheduler, first + count, scenario);
        }
        count += 1;
    }
    let schedules = count * 2 * SCHEDULES as u64;
    println!(
        "{name}: {schedules} schedules, {:.1} s",
        since.elapsed().as_secs_f32()
    );
}

fn run(name: &str, scheduler: &str, seed: u64, scenario: fn()) {
    let chosen: Box<dyn Scheduler + Send> = match scheduler {
        "random" => Box::new(RandomScheduler::new_from_seed(seed, SCHEDULES)),
        "urw" => Box::new(UrwRandomScheduler::new_from_seed(seed, SCHEDULES)),
        other => panic!("no scheduler is called {other}"),
    };
    let mut config = Config::new();
    config.stack_size = 256 << 10;
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.failure_persistence = FailurePersistence::None;
    let runner = Runner::new(chosen, config);
    if catch_unwind(AssertUnwindSafe(|| runner.run(scenario))).is_err() {
        panic!("{name} fails: OSLOXIDE_SIM_SEED={name}/{scheduler}/{seed} make simulate");
    }
}

// ---- what the jobs do

type Job = Box<dyn FnOnce(InFlight<'static>) + Send>;

/// Jobs that are calls.
struct Calls;

impl Work for Calls {
    type Job = Job;

    fn run(&self, job: Job, in_flight: InFlight<'static>) {
        job(in_flight);
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        body();
    }
}

/// Counts how often each job ran.
#[derive(Default)]
struct Tally(Mutex<Vec<u32>>);

impl Tally {
    fn of(jobs: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; jobs])))
    }

    fn count(&self, job: usize) {
        self.0.lock()[job] += 1;
    }

    fn counts(&self) -> Vec<u32> {
        self.0.lock().clone()
    }
}

/// Opens once, for all.
#[derive(Default)]
struct Latch {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Latch {
    fn open(&self) {
        *self.is_open.lock() = true;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut is_open = self.is_open.lock();
        self.opened.wait_while(&mut is_open, |is_open| !*is_open);
    }
}

fn has_ended(executor: &Executor<Calls>) -> bool {
    let fd = executor.ended_fd().unwrap();
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, 0_u16).unwrap() == 1
}

/// Waits for the end; one that never comes is more steps than a schedule may take.
fn wait_for_end(executor: &Executor<Calls>) {
    while !has_ended(executor) {
        thread::yield_now();
    }
    assert_eq!(executor.stats().threads, 0, "threads that outlive the end");
    assert_eq!((executor.stats().queued, executor.stats().held), (0, 0));
}

// ---- the scenarios

/// Two submitters, more jobs than threads, then the end.
fn every_job_once() {
    let time = Time::start();
    let executor = Arc::new(Executor::new(Calls, 2, 0));
    let tally = Tally::of(6);
    let submitters: Vec<_> = [0..3, 3..6]
        .into_iter()
        .map(|jobs| {
            let (executor, tally) = (Arc::clone(&executor), Arc::clone(&tally));
            thread::spawn(move || {
                for job in jobs {
                    let tally = Arc::clone(&tally);
                    let call: Job = Box::new(move |_| tally.count(job));
                    executor.submit(call, None).unwrap();
                    thread::yield_now();
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.join().unwrap();
    }
    drop(executor.close(false));
    wait_for_end(&executor);
    assert_eq!(tally.counts(), [1; 6]);
    assert_eq!(executor.stats().begun, 6);
    drop(time);
}

/// A close that cancels, beside a submitter: each job runs, is given back or is refused, once.
fn every_job_once_or_given_back() {
    let time = Time::start();
    let executor = Arc::new(Executor::new(Calls, 2, 0));
    let tally = Tally::of(4);
    let submitter = {
        let (executor, tally) = (Arc::clone(&executor), Arc::clone(&tally));
        thread::spawn(move || {
            let mut refused = 0;
            for job in 0..4 {
                let tally = Arc::clone(&tally);
                let call: Job = Box::new(move |_| tally.count(job));
                refused += usize::from(executor.submit(call, None).is_err());
            }
            refused
        })
    };
    thread::yield_now();
    let back = executor.close(true).len();
    let refused = submitter.join().unwrap();
    wait_for_end(&executor);
    let counts = tally.counts();
    let ran: u32 = counts.iter().sum();
    assert!(counts.iter().all(|count| *count <= 1), "{counts:?}");
    assert_eq!(ran as usize + back + refused, 4, "a job is lost");
    drop(time);
}

/// All jobs but the last block until the last has run: while fewer than the maximum run, nothing
/// waits for ever.
fn admission() {
    let time = Time::start();
    let executor = Executor::new(Calls, 4, 0);
    let latch = Arc::new(Latch::default());
    for _ in 0..3 {
        let latch = Arc::clone(&latch);
        executor
            .submit(Box::new(move |_| latch.pass()), None)
            .unwrap();
    }
    let last = Arc::clone(&latch);
    executor
        .submit(Box::new(move |_| last.open()), None)
        .unwrap();
    latch.pass();
    drop(executor.close(false));
    wait_for_end(&executor);
    drop(time);
}

/// Jobs that go on without their thread are waited for, and come back in front of all others.
fn held_jobs() {
    let time = Time::start();
    let executor = Arc::new(Executor::new(Calls, 2, 0));
    let tally = Tally::of(3);
    let flights = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..3 {
        let (held, flights) = (Arc::clone(&executor), Arc::clone(&flights));
        let call: Job = Box::new(move |in_flight| {
            held.hold();
            flights.lock().push(in_flight);
        });
        executor.submit(call, None).unwrap();
    }
    let resumer = {
        let (executor, tally, flights) = (
            Arc::clone(&executor),
            Arc::clone(&tally),
            Arc::clone(&flights),
        );
        thread::spawn(move || {
            let mut resumed = 0;
            while resumed < 3 {
                let flight = flights.lock().pop();
                if let Some(in_flight) = flight {
                    let (tally, job) = (Arc::clone(&tally), resumed);
                    if job == 2 {
                        tally.count(job);
                        drop(in_flight);
                        executor.release();
                    } else {
                        executor.resume(Box::new(move |_| tally.count(job)), in_flight);
                    }
                    resumed += 1;
                }
                thread::yield_now();
            }
        })
    };
    thread::yield_now();
    drop(executor.close(false));
    resumer.join().unwrap();
    wait_for_end(&executor);
    assert_eq!(tally.counts(), [1; 3]);
    drop(time);
}

/// The bound grows while the pool is full and a job waits, and nothing else happens then: it begins.
fn grown_bound() {
    let time = Time::start();
    let executor = Arc::new(Executor::new(Calls, 2, 0));
    let latch = Arc::new(Latch::default());
    let flights = Arc::new(Mutex::new(Vec::new()));
    let (held, kept) = (Arc::clone(&executor), Arc::clone(&flights));
    let call: Job = Box::new(move |in_flight| {
        held.hold();
        kept.lock().push(in_flight);
    });
    executor.submit(call, None).unwrap();
    while flights.lock().is_empty() {
        thread::yield_now();
    }
    let (first, second) = (Arc::clone(&latch), Arc::clone(&latch));
    executor
        .submit(Box::new(move |_| first.pass()), None)
        .unwrap();
    executor
        .submit(Box::new(move |_| second.open()), None)
        .unwrap();
    for _ in 0..20 {
        thread::yield_now();
    }
    flights.lock().clear();
    executor.release();
    latch.pass();
    drop(executor.close(false));
    wait_for_end(&executor);
    drop(time);
}

/// A full queue: whoever waits for room gets it, and nothing is lost.
fn bounded_queue() {
    let time = Time::start();
    let executor = Arc::new(Executor::new(Calls, 2, 1));
    let tally = Tally::of(6);
    let submitters: Vec<_> = [0..3, 3..6]
        .into_iter()
        .map(|jobs| {
            let (executor, tally) = (Arc::clone(&executor), Arc::clone(&tally));
            thread::spawn(move || {
                for job in jobs {
                    let counted = Arc::clone(&tally);
                    let mut call: Job = Box::new(move |_| counted.count(job));
                    loop {
                        match executor.submit(call, None) {
                            Ok(()) => break,
                            Err(Refused::Full { job: back, .. }) => {
                                call = back;
                                assert!(executor.wait_for_room(None));
                            }
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                }
            })
        })
        .collect();
    for submitter in submitters {
        submitter.join().unwrap();
    }
    drop(executor.close(false));
    wait_for_end(&executor);
    assert_eq!(tally.counts(), [1; 6]);
    drop(time);
}

/// The kernel refuses threads, also the first: a job is given back to the one who submitted it, or runs.
fn refused_threads() {
    submit_while_threads_are_refused(false);
}

/// The same beside a close.
fn refused_threads_and_close() {
    submit_while_threads_are_refused(true);
}

fn submit_while_threads_are_refused(closes_early: bool) {
    let time = Time::start();
    refuse_threads(2);
    let executor = Arc::new(Executor::new(Calls, 3, 0));
    let tally = Tally::of(4);
    let submitters: Vec<_> = [0..2, 2..4]
        .into_iter()
        .map(|jobs| {
            let (executor, tally) = (Arc::clone(&executor), Arc::clone(&tally));
            thread::spawn(move || {
                let mut taken = Vec::new();
                for job in jobs {
                    let counted = Arc::clone(&tally);
                    let call: Job = Box::new(move |_| counted.count(job));
                    if executor.submit(call, None).is_ok() {
                        taken.push(job);
                    }
                }
                taken
            })
        })
        .collect();
    if closes_early {
        thread::yield_now();
        drop(executor.close(false));
    }
    let mut taken: Vec<_> = Vec::new();
    for submitter in submitters {
        taken.extend(submitter.join().unwrap());
    }
    drop(executor.close(false));
    wait_for_end(&executor);
    let counts = tally.counts();
    let ran: Vec<_> = (0..4).filter(|job| counts[*job] == 1).collect();
    taken.sort_unstable();
    assert_eq!(ran, taken, "taken and run are the same jobs");
    drop(time);
}

fn board() {
    let _ = scoreboard::current();
}

macro_rules! scenarios {
    ($($test:ident: $scenario:ident;)*) => {
        $(
            #[test]
            fn $test() {
                board();
                simulate(stringify!($scenario), $scenario);
            }
        )*
    };
}

scenarios! {
    every_job_runs_exactly_once_and_the_end_comes: every_job_once;
    a_cancelling_close_loses_no_job: every_job_once_or_given_back;
    while_fewer_than_the_maximum_run_nothing_waits_for_ever: admission;
    held_jobs_come_back_and_the_end_waits_for_them: held_jobs;
    what_waits_for_a_bound_that_grows_begins: grown_bound;
    who_waits_for_room_gets_it: bounded_queue;
    a_job_that_no_thread_can_run_is_given_back_to_its_submitter: refused_threads;
    a_close_beside_a_refused_thread_ends_and_loses_no_job: refused_threads_and_close;
}
