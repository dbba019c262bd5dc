//! The gate and the promise of admission over generated traces, in virtual time.
//!
//! A model of the pool: jobs arrive, the standby looks, jobs end. What the kernel would tell of a
//! thread is computed from what its job does. A failing trace names its seed.

use super::admission::{LONGEST_WAIT, LONGEST_WAIT_AT_FIRST, Waiting};
use super::gate::{Gate, Look, Streak, released};
use std::time::{Duration, Instant};

/// How often the model looks and moves on.
const STEP: Duration = Duration::from_millis(1);
/// How long a thread keeps the interpreter while others want it.
const SWITCH_STEPS: usize = 5;
const CPUS: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Sleeps in the kernel.
    Blocks,
    /// Computes with the interpreter held.
    Holds,
    /// Computes in C with the interpreter released.
    Free,
}

#[derive(Debug, Clone, Copy)]
struct Job {
    kind: Kind,
    arrives: Duration,
    /// Of CPU time, or of sleep: in all, and what is left of it.
    length: Duration,
    left: Duration,
}

/// Marsaglia's xorshift64: the same trace for the same seed on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// From a fifth of a millisecond to 2.5 s, each order of magnitude as likely as the other.
    fn length(&mut self) -> Duration {
        let magnitude = self.below(4);
        Duration::from_micros(
            (200 + self.below(2300)) * 10_u64.pow(u32::try_from(magnitude).unwrap_or(0)),
        )
    }

    fn trace(&mut self) -> Vec<Job> {
        let kinds = [Kind::Blocks, Kind::Holds, Kind::Free];
        // Some traces hold one kind alone.
        let only = self.below(5);
        let mut arrives = Duration::ZERO;
        (0..5 + self.below(40))
            .map(|_| {
                if self.below(3) == 0 {
                    arrives += self.length() / 10;
                }
                let chosen = if only < 3 { only } else { self.below(3) };
                let length = self.length();
                Job {
                    kind: kinds[usize::try_from(chosen).unwrap_or(0)],
                    arrives,
                    length,
                    left: length,
                }
            })
            .collect()
    }
}

struct Model {
    max: usize,
    gate: Gate,
    begun: Instant,
    now: Instant,
    steps: usize,
    waiting: Waiting<Job>,
    running: Vec<(Job, Streak)>,
    /// Since when none has ended while others wait.
    none_ended: Instant,
    /// When jobs began, and how long the one that waited longest had waited.
    beginnings: Vec<Duration>,
    longest_wait: Duration,
    most_running: usize,
}

impl Model {
    fn new(max: usize) -> Self {
        let begun = Instant::now();
        Self {
            max,
            gate: Gate::new(max),
            begun,
            now: begun,
            steps: 0,
            waiting: Waiting::new(),
            running: Vec::new(),
            none_ended: begun,
            beginnings: Vec::new(),
            longest_wait: Duration::ZERO,
            most_running: 0,
        }
    }

    /// A pool whose first jobs have ended.
    fn settled(max: usize) -> Self {
        let mut model = Self::new(max);
        model.waiting.settle(model.now);
        model.gate.settle_as(true);
        model
    }

    /// Runs until every job of the trace has begun, and holds the promise to each step.
    fn run(&mut self, trace: &[Job], seed: u64) {
        let mut arrivals = trace.iter().copied().peekable();
        while arrivals.peek().is_some() || !self.waiting.is_empty() {
            let elapsed = self.now - self.begun;
            while let Some(job) = arrivals.next_if(|job| job.arrives <= elapsed) {
                self.waiting.extend([job], self.begun + job.arrives);
            }
            self.admit();
            if self.running.len() < self.max
                && let Some(due) = self.waiting.due()
            {
                assert!(
                    self.now <= due,
                    "seed {seed}: at {elapsed:?} a job waits for longer than promised while {} of {} run",
                    self.running.len(),
                    self.max
                );
            }
            self.look();
            self.admit();
            self.move_on();
        }
    }

    fn admit(&mut self) {
        loop {
            let (running, now) = (self.running.len(), self.now);
            let (limit, max) = (self.gate.limit(), self.gate.max());
            let Some(job) = self.waiting.admit(running, limit, max, || now) else {
                return;
            };
            let elapsed = now - self.begun;
            self.beginnings.push(elapsed);
            self.longest_wait = self.longest_wait.max(elapsed.saturating_sub(job.arrives));
            self.gate.settle_as(self.waiting.is_settled());
            self.running.push((job, Streak::default()));
            self.most_running = self.most_running.max(self.running.len());
        }
    }

    /// Which of the running jobs are on a CPU or ready for one.
    fn computing(&self) -> Vec<bool> {
        let holders = self
            .running
            .iter()
            .filter(|(job, _)| job.kind == Kind::Holds);
        let turn = (self.steps / SWITCH_STEPS).checked_rem(holders.count());
        let mut nth = 0;
        let is_computing = |(job, _): &(Job, Streak)| match job.kind {
            Kind::Blocks => false,
            Kind::Free => true,
            Kind::Holds => {
                nth += 1;
                turn == Some(nth - 1)
            }
        };
        self.running.iter().map(is_computing).collect()
    }

    fn look(&mut self) {
        if self.waiting.is_empty() {
            self.none_ended = self.now;
        }
        let computing = self.computing();
        let is_wanted = !self.waiting.is_empty();
        for ((_, streak), computes) in self.running.iter_mut().zip(&computing) {
            streak.note(*computes, self.now);
        }
        let computes = computing.contains(&true);
        let look = Look {
            after: STEP,
            computes,
            released: released(self.running.iter().map(|(_, streak)| *streak), 1, self.now),
            has_spare: false,
            running: self.running.len(),
            is_wanted,
        };
        let grew = self.gate.look(look)
            || (is_wanted && computes && self.gate.let_one_in(self.now - self.none_ended));
        if grew {
            self.none_ended = self.now;
        }
    }

    fn move_on(&mut self) {
        let computing = self.computing();
        let ready = computing.iter().filter(|computes| **computes).count();
        let share = CPUS
            .checked_div(u32::try_from(ready).unwrap_or(u32::MAX))
            .unwrap_or(1)
            .min(1);
        let slowed = if share == 1 {
            STEP
        } else {
            STEP * CPUS / u32::try_from(ready).unwrap_or(u32::MAX)
        };
        for ((job, _), computes) in self.running.iter_mut().zip(computing) {
            job.left = match job.kind {
                Kind::Blocks => job.left.saturating_sub(STEP),
                Kind::Holds | Kind::Free if computes => job.left.saturating_sub(slowed),
                Kind::Holds | Kind::Free => job.left,
            };
        }
        let before = self.running.len();
        for (job, _) in self.running.extract_if(.., |(job, _)| job.left.is_zero()) {
            let computed = match job.kind {
                Kind::Blocks => Duration::ZERO,
                Kind::Holds | Kind::Free => job.length,
            };
            self.waiting.count_first(computed, || self.now);
        }
        let ended = before - self.running.len();
        self.now += STEP;
        self.steps += 1;
        self.gate.settle_as(self.waiting.is_settled());
        if ended > 0 {
            self.gate.forget_released(released(
                self.running.iter().map(|(_, streak)| *streak),
                1,
                self.now,
            ));
            if self.waiting.is_empty() {
                self.gate.finished(self.running.len());
            } else {
                self.gate
                    .count_ends(ended as u64, self.now - self.none_ended);
            }
            self.none_ended = self.now;
        }
    }
}

fn burst(kind: Kind, jobs: usize, length: Duration) -> Vec<Job> {
    let job = Job {
        kind,
        arrives: Duration::ZERO,
        length,
        left: length,
    };
    vec![job; jobs]
}

#[test]
fn while_fewer_jobs_run_than_the_maximum_none_waits_longer_than_promised() {
    for seed in 1..=400 {
        let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let max = usize::try_from(1 + random.below(64)).unwrap_or(1);
        let trace = random.trace();
        Model::new(max).run(&trace, seed);
    }
}

#[test]
fn a_short_job_begins_within_tens_of_milliseconds_beside_computations_without_the_interpreter() {
    for jobs in 2..=6_u32 {
        let mut trace = burst(Kind::Free, jobs as usize, Duration::from_secs(25));
        trace.extend(burst(Kind::Holds, 1, Duration::from_millis(1)));
        let mut model = Model::settled(64);

        model.run(&trace, 0);

        let most = Duration::from_millis(20) * jobs;
        assert!(
            model.longest_wait <= most,
            "{jobs}: {:?}",
            model.longest_wait
        );
    }
}

#[test]
fn jobs_that_hold_the_interpreter_run_two_at_a_time_while_their_turn_comes_in_time() {
    // 30 jobs of 20 ms keep the last one waiting for 0.6 s.
    let trace = burst(Kind::Holds, 30, Duration::from_millis(20));
    let mut model = Model::settled(64);

    model.run(&trace, 0);

    assert!(model.most_running <= 3, "{}", model.most_running);
}

/// The first job makes tables for two seconds, which all others would make too beside it.
fn tables_and(others: usize, length: Duration) -> Vec<Job> {
    let mut trace = burst(Kind::Holds, 1, Duration::from_secs(2));
    trace.extend(burst(Kind::Holds, others, length));
    trace
}

#[test]
fn the_first_job_runs_alone_while_it_computes() {
    let mut model = Model::new(64);

    model.run(&tables_and(30, Duration::from_millis(20)), 0);

    let second = model.beginnings[1];
    assert!(second >= Duration::from_secs(2), "{second:?}");
    assert!(second < Duration::from_millis(2010), "{second:?}");
}

#[test]
fn jobs_that_waited_for_the_first_ones_do_not_begin_all_at_once() {
    let mut model = Model::new(64);

    // 60 jobs are over before the last one is due; those that wait when the 16th ends are not.
    model.run(&tables_and(40, Duration::from_millis(10)), 0);

    assert!(model.most_running <= 3, "{}", model.most_running);
}

#[test]
fn jobs_that_compute_next_to_nothing_do_not_settle_a_pool() {
    let mut trace = burst(Kind::Holds, 100, Duration::from_millis(1));
    let later = |job: &Job| Job {
        arrives: Duration::from_secs(1),
        ..*job
    };
    trace.extend(tables_and(7, Duration::from_millis(20)).iter().map(later));
    let mut model = Model::new(64);

    model.run(&trace, 0);

    let after_the_tables = model.beginnings[101];
    assert!(
        after_the_tables >= Duration::from_secs(3),
        "{after_the_tables:?}"
    );
}

#[test]
fn half_a_second_of_light_jobs_settles_a_pool() {
    for (jobs, is_settled) in [(499, false), (500, true)] {
        let mut model = Model::new(64);

        let mut trace = burst(Kind::Holds, jobs, Duration::from_millis(1));
        // One that arrives once all of them have ended, and computes nothing.
        trace.push(Job {
            kind: Kind::Blocks,
            arrives: Duration::from_secs(1),
            ..trace[0]
        });
        model.run(&trace, 0);

        assert_eq!(model.waiting.is_settled(), is_settled, "{jobs} jobs");
    }
}

#[test]
fn a_first_job_that_computes_for_ever_holds_others_up_once() {
    let mut trace = burst(Kind::Holds, 1, Duration::from_secs(3600));
    let short = burst(Kind::Holds, 1, Duration::from_millis(1))[0];
    let at = |seconds| Job {
        arrives: Duration::from_secs(seconds),
        ..short
    };
    trace.extend([at(1), at(10)]);
    let mut model = Model::new(64);

    model.run(&trace, 0);

    assert_eq!(model.longest_wait, LONGEST_WAIT_AT_FIRST);
    let last = model.beginnings[2].saturating_sub(trace[2].arrives);
    assert!(last <= LONGEST_WAIT, "{last:?}");
}

#[test]
fn jobs_that_block_all_run_after_a_few_milliseconds() {
    let trace = burst(Kind::Blocks, 64, Duration::from_secs(25));
    let mut model = Model::new(64);

    model.run(&trace, 0);

    assert!(
        model.longest_wait < Duration::from_millis(30),
        "{:?}",
        model.longest_wait
    );
}
