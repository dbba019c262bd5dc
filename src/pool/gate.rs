//! The gate: an adaptive concurrency limit (admission control), and whether leadership is handed on
//! before each job.
//!
//! Pure arithmetic on looks and instants; knows no thread and reads no clock. Called by
//! [`super::Pool`] under its lock. It only tunes: that every job begins in time is the promise of
//! [`super::admission`], which no decision in here can break. Two findings shape it: threads that compute gain nothing from
//! company (they share one interpreter lock and, with real services, locks of logging and a small
//! database pool), and threads that wait cost nothing. So the limit grows only on evidence that
//! everything admitted is waiting, and shrinks on evidence that there always is one that computes.
//! Where there is no such lock (PEP 703), as many as there are CPUs compute at once, and all of this is
//! said of one more than these.
//! A thread that is ready to run but finds no CPU, because other processes have it, computes too:
//! a second one would not get any further. Nor would it where all CPUs are busy: what the threads
//! wait for, a database on the same machine, may itself wait for a CPU. There the evidence must be
//! the stronger.
//! Until the pool is [settled](super::admission) there is no company without evidence, not even where
//! several could compute at once: what the first jobs compute, each of them would compute again.

use super::sync::Instant;
use std::time::Duration;

/// Jobs that may run at once without any evidence, beyond those that can compute at once, in a pool
/// that is settled.
const SPARE: usize = 1;
/// How long jobs last on average from which on another thread is worth its wake-up, where more than
/// one can compute at once.
const LONG_JOB: Duration = Duration::from_micros(50);
/// Over how many jobs that average is taken.
const LENGTH_WINDOW_JOBS: u32 = 8;
/// The load is the share of time in which a job computes, as looks found it, over about so long.
const LOAD_WINDOW: Duration = Duration::from_millis(10);
/// Loads below which the limit doubles, below which it grows, and above which it shrinks.
const DOUBLE_BELOW: f32 = 0.1;
const GROW_BELOW: f32 = 0.4;
const SHRINK_ABOVE: f32 = 0.9;
/// Instead of `GROW_BELOW` where the machine has CPU to spare.
const GROW_BELOW_WITH_SPARE_CPU: f32 = 0.6;
/// Looks after growth during which another one that finds nobody ready doubles the limit, below this
/// load: those who were let in wait as well, and so soon that they will hardly do anything else.
const LOOKS_OF_A_RUN: u32 = 5;
const DOUBLE_BELOW_ON_A_RUN: f32 = 0.4;
/// How long no job may end while others wait before one more is let in: at least, and as a multiple of
/// what is usual; twice as long each time it did not help.
const STALL_AFTER: Duration = Duration::from_millis(20);
const STALL_FACTOR: f32 = 8.0;
/// What is usual before any job has ended, and over how many jobs it is averaged then.
const ASSUMED_PACE: f32 = 0.1;
const PACE_WINDOW_JOBS: f32 = 50.0;
/// Looks at plenty of load before the limit shrinks by an eighth.
const SHRINK_AFTER_LOOKS: u32 = 16;
/// A job computes without a pause that so many looks in a row have found computing, over so long: one
/// that waits for the interpreter, which changes hands every 5 ms, sleeps at some of them. On an
/// overloaded machine one that waits for a CPU would be taken for one that computes if looks alone
/// counted.
const FREE_LOOKS: u32 = 6;
const FREE_AFTER: Duration = Duration::from_millis(15);
/// What one takeover adds to the score, and the score at which leadership is handed on early. A
/// job that was not taken over takes one off: more than about one blocking job in fifty.
const TAKEOVER_SCORE: u32 = 50;
const EAGER_SCORE: u32 = 100;
/// How long early hand-over lasts before the pool tries again without.
const EAGER_FOR: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    max: usize,
    is_settled: bool,
    /// Jobs that can compute at once: 1 where they share an interpreter lock.
    at_once: usize,
    /// How long a job lasts on average; counted only where more than one computes at once.
    length: Duration,
    /// Jobs that take no part in the competition for the interpreter, as of the last look.
    released: usize,
    load: f32,
    /// Seconds from the end of one job to the next while others wait, over so many jobs.
    pace: f32,
    paced: f32,
    /// Jobs let in since one ended.
    let_in: i32,
    strain: u32,
    /// Looks that are left of a run of growth.
    run: u32,
    slack: u32,
    score: u32,
    eager_until: Option<Instant>,
}

/// The looks in a row that have found one and the same job computing, and since when.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Streak(Option<(Instant, u32)>);

impl Streak {
    /// Takes in one more look.
    pub(super) fn note(&mut self, computes: bool, now: Instant) {
        self.0 = computes.then(|| match self.0 {
            Some((since, looks)) => (since, looks.saturating_add(1)),
            None => (now, 1),
        });
    }

    fn is_long(self, now: Instant) -> bool {
        self.0.is_some_and(|(since, looks)| {
            looks >= FREE_LOOKS && now.saturating_duration_since(since) >= FREE_AFTER
        })
    }
}

/// Jobs that have computed for so long, each of them at every look, that all but `at_once` must do
/// so without the interpreter.
pub(super) fn released(jobs: impl Iterator<Item = Streak>, at_once: usize, now: Instant) -> usize {
    jobs.filter(|streak| streak.is_long(now))
        .count()
        .saturating_sub(at_once)
}

/// What a look at the running jobs found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Since the look before.
    pub(super) after: Duration,
    /// As many jobs as can compute at once were on a CPU or ready for one.
    pub(super) computes: bool,
    /// Jobs that compute beside another one, which they can only without the interpreter.
    pub(super) released: usize,
    /// The machine had CPU to spare.
    pub(super) has_spare: bool,
    pub(super) running: usize,
    /// Others wait for admission.
    pub(super) is_wanted: bool,
}

impl Gate {
    pub(super) fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            limit: 1,
            max,
            is_settled: false,
            at_once: 1,
            length: Duration::ZERO,
            released: 0,
            load: GROW_BELOW_WITH_SPARE_CPU,
            pace: ASSUMED_PACE,
            paced: 0.0,
            let_in: 0,
            strain: 0,
            run: 0,
            slack: 0,
            score: 0,
            eager_until: None,
        }
    }

    /// Takes in whether the pool is settled: from then on jobs have company without evidence.
    pub(super) fn settle_as(&mut self, is_settled: bool) {
        if is_settled != self.is_settled {
            self.is_settled = is_settled;
            self.resize(self.max);
        }
    }

    /// Changes the most that may ever run at once; 0 counts as 1.
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max.max(1);
        if self.is_of_one() {
            self.eager_until = None;
        }
        self.limit = self.limit.clamp(self.floor(), self.max);
    }

    /// Takes in how many jobs can compute at once; 0 counts as 1.
    pub(super) fn set_at_once(&mut self, jobs: usize) {
        self.at_once = jobs.max(1);
        self.resize(self.max);
    }

    /// Jobs that may compute at once: one until the pool is settled.
    pub(super) fn at_once(&self) -> usize {
        if self.is_settled { self.at_once } else { 1 }
    }

    /// A job has ended that lasted so long.
    pub(super) fn count_length(&mut self, length: Duration) {
        let kept = self.length.saturating_sub(self.length / LENGTH_WINDOW_JOBS);
        self.length = kept + length / LENGTH_WINDOW_JOBS;
    }

    /// True while `running` jobs leave a CPU to one more, and jobs last long enough for a second
    /// thread to be worth its wake-up. Never where one computes at once and one runs.
    pub(super) fn has_free_cpu(&self, running: usize) -> bool {
        running < self.at_once().min(self.max) && self.length >= LONG_JOB
    }

    fn floor(&self) -> usize {
        if self.is_settled {
            self.at_once.saturating_add(SPARE).min(self.max)
        } else {
            1
        }
    }

    /// Jobs that may run at once: those that compete for the interpreter, and those that do not.
    pub(super) fn limit(&self) -> usize {
        (self.limit + self.released).min(self.max)
    }

    /// The most that may ever run at once.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// True where no second job may ever run beside another one.
    pub(super) fn is_of_one(&self) -> bool {
        self.max == 1
    }

    pub(super) fn can_grow(&self) -> bool {
        self.limit < self.max
    }

    /// A job that [`Look::released`] may have counted has ended.
    pub(super) fn forget_released(&mut self, released: usize) {
        self.released = self.released.min(released);
    }

    /// True while more jobs run than need no evidence.
    pub(super) fn is_crowded(&self, running: usize) -> bool {
        running > self.at_once.saturating_add(SPARE)
    }

    /// Takes in a look. True when the limit grew.
    pub(super) fn look(&mut self, look: Look) -> bool {
        let before = self.limit();
        self.released = look.released;
        self.tune(look);
        self.limit() > before
    }

    fn tune(&mut self, look: Look) {
        let is_on_a_run = self.is_on_a_run();
        self.run = self.run.saturating_sub(1);
        let seen = if look.computes { 1.0 } else { 0.0 };
        // By time, not by number: looks are denser where they find that all wait.
        let after = look.after.min(LOAD_WINDOW).as_secs_f32();
        self.load += (seen - self.load) * after / (after + LOAD_WINDOW.as_secs_f32());
        if look.computes {
            self.strain += u32::from(self.is_plenty());
            if self.strain >= SHRINK_AFTER_LOOKS {
                self.strain = 0;
                self.limit = self.limit.min(look.running);
                self.shrink(self.limit / 8);
            }
            return;
        }
        self.strain = 0;
        let scarce = if look.has_spare {
            GROW_BELOW_WITH_SPARE_CPU
        } else {
            GROW_BELOW
        };
        if !look.is_wanted || self.load > scarce || !self.can_grow() {
            return;
        }
        self.slack = 0;
        let doubles =
            self.load < DOUBLE_BELOW || (is_on_a_run && self.load < DOUBLE_BELOW_ON_A_RUN);
        let step = if doubles { 1 } else { 4 };
        self.limit = (self.limit + (self.limit / step).max(1)).min(self.max);
        self.run = LOOKS_OF_A_RUN;
    }

    /// True while the limit is worth another look soon: it grew, and may have to grow much more.
    pub(super) fn is_on_a_run(&self) -> bool {
        self.run > 0 && self.can_grow()
    }

    /// True while the load is too high for the limit to grow, also where the machine has CPU to spare.
    pub(super) fn is_loaded(&self) -> bool {
        self.load > GROW_BELOW_WITH_SPARE_CPU
    }

    /// True while looks hardly ever find that all jobs wait: they may be the rarer.
    pub(super) fn is_plenty(&self) -> bool {
        self.load > SHRINK_ABOVE
    }

    /// So many jobs ended in this time, while others waited.
    pub(super) fn count_ends(&mut self, jobs: u64, over: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "few, and an average")]
        let jobs = jobs.max(1) as f32;
        self.paced = (self.paced + jobs).min(PACE_WINDOW_JOBS);
        self.pace += (over.as_secs_f32() / jobs - self.pace) * (jobs / self.paced).min(1.0);
        self.let_in = 0;
    }

    /// Jobs wait, and none has ended for so long, although some compute. If that is unusual, let the
    /// scheduler share the CPU among one more, or short jobs would wait behind long ones. Not among the
    /// first jobs, of which nothing is known to be usual. True when the limit grew.
    pub(super) fn let_one_in(&mut self, none_ended_for: Duration) -> bool {
        let patience =
            STALL_AFTER.as_secs_f32().max(self.pace * STALL_FACTOR) * 2_f32.powi(self.let_in);
        let is_time = none_ended_for.as_secs_f32() >= patience;
        let grows = self.is_settled && self.can_grow() && is_time;
        if grows {
            self.limit += 1;
            self.let_in += 1;
        }
        grows
    }

    /// A leader ended a job and still leads.
    pub(super) fn not_taken_over(&mut self) {
        self.score = self.score.saturating_sub(1);
    }

    /// A job ended, nothing waited, and `running` others go on: give back what is not used, slowly.
    pub(super) fn finished(&mut self, running: usize) {
        if running < self.limit / 2 {
            self.slack += 1;
            if self.slack > 512 {
                self.slack = 0;
                self.shrink(self.limit / 8);
            }
        }
    }

    /// Leadership was taken from a thread that was blocked inside a job.
    pub(super) fn taken_over(&mut self, now: Instant) {
        if self.is_of_one() {
            // The next leader could begin nothing: a wake-up for each job would gain nothing.
            return;
        }
        self.score += TAKEOVER_SCORE;
        if self.score >= EAGER_SCORE {
            self.eager_until = Some(now + EAGER_FOR);
        }
    }

    /// True while leadership should be handed on before a job rather than taken over during it.
    pub(super) fn is_eager(&mut self, now: Instant) -> bool {
        match self.eager_until {
            None => false,
            Some(until) if now < until => true,
            Some(_) => {
                // One more takeover makes it eager again, so that an application which always
                // blocks pays about a millisecond a second for the question.
                self.eager_until = None;
                self.score = EAGER_SCORE - TAKEOVER_SCORE;
                false
            }
        }
    }

    /// [`Gate::is_eager`] as of the last time it was asked.
    pub(super) fn was_eager(&self) -> bool {
        self.eager_until.is_some()
    }

    fn shrink(&mut self, by: usize) {
        self.limit = self.limit.saturating_sub(by.max(1)).max(self.floor());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: usize = 1 + SPARE;

    fn settled(max: usize) -> Gate {
        let mut gate = Gate::new(max);
        gate.settle_as(true);
        gate
    }

    /// A look that found everything waiting on a busy machine, with a job that wants admission.
    fn wanted(gate: &Gate) -> Look {
        Look {
            after: Duration::from_micros(700),
            computes: false,
            released: 0,
            has_spare: false,
            running: gate.limit(),
            is_wanted: true,
        }
    }

    /// Looks of which every `one_in`-th finds nothing that computes; jobs fill the limit.
    fn mostly_computing(gate: &mut Gate, looks: usize, one_in: usize, has_spare: bool) {
        for look in 1..=looks {
            gate.look(Look {
                computes: look % one_in != 0,
                has_spare,
                ..wanted(gate)
            });
        }
    }

    fn opened() -> Gate {
        let mut gate = settled(100);
        while gate.limit() < 100 {
            gate.look(wanted(&gate));
        }
        gate
    }

    #[test]
    fn doubles_to_its_maximum_while_everything_waits() {
        let mut gate = settled(100);

        let looks = (1..100).find(|_| {
            gate.look(wanted(&gate));
            gate.limit() == 100
        });

        assert!(looks < Some(16), "{looks:?} looks");
        assert!(!gate.look(wanted(&gate)));
    }

    #[test]
    fn does_not_grow_unless_a_job_waits_for_admission() {
        let mut gate = settled(100);

        for _ in 0..100 {
            let look = wanted(&gate);
            assert!(!gate.look(Look {
                is_wanted: false,
                ..look
            }));
        }

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn stays_at_its_floor_while_threads_compute() {
        let mut gate = settled(100);

        mostly_computing(&mut gate, 10_000, usize::MAX, true);

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn looks_count_by_the_time_between_them() {
        let mut gate = settled(100);
        mostly_computing(&mut gate, 100, usize::MAX, true);

        // Dense looks at short waits between rare ones at long computations.
        for _ in 0..100 {
            let look = wanted(&gate);
            gate.look(Look {
                after: 8 * look.after,
                computes: true,
                ..look
            });
            for _ in 0..4 {
                gate.look(wanted(&gate));
            }
        }

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn an_occasional_wait_of_all_does_not_grow_it() {
        let mut gate = settled(100);

        mostly_computing(&mut gate, 1_000, 10, true);

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn grows_while_there_is_cpu_to_spare() {
        let mut gate = settled(100);

        mostly_computing(&mut gate, 1_000, 2, true);

        assert_eq!(gate.limit(), 100);
    }

    #[test]
    fn stays_at_its_floor_while_the_machine_is_busy_unless_nearly_everything_waits() {
        let mut gate = settled(100);

        mostly_computing(&mut gate, 1_000, 2, false);
        assert_eq!(gate.limit(), FLOOR);
        for look in 1..=1_000 {
            gate.look(Look {
                computes: look % 5 == 0,
                ..wanted(&gate)
            });
        }

        assert_eq!(gate.limit(), 100);
    }

    #[test]
    fn shrinks_once_the_process_computes() {
        let mut gate = opened();

        mostly_computing(&mut gate, 1_000, usize::MAX, false);

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn shrinks_to_what_runs_when_the_limit_was_far_off() {
        let mut gate = opened();

        for _ in 0..4 * SHRINK_AFTER_LOOKS {
            gate.look(Look {
                computes: true,
                running: 16,
                ..wanted(&gate)
            });
        }

        assert!(gate.limit() < 16, "{}", gate.limit());
    }

    #[test]
    fn never_exceeds_a_small_pool() {
        let mut gate = settled(2);

        for _ in 0..10 {
            gate.look(wanted(&gate));
            gate.let_one_in(10 * STALL_AFTER);
        }
        assert_eq!(gate.limit(), 2);
        gate.resize(0);

        assert_eq!(gate.limit(), 1);
    }

    #[test]
    fn lets_one_more_in_when_no_job_ends_for_unusually_long() {
        let mut gate = settled(100);
        for _ in 0..100 {
            gate.count_ends(4, Duration::from_millis(4));
        }

        assert!(!gate.let_one_in(STALL_AFTER / 2));
        assert!(gate.let_one_in(STALL_AFTER));
        assert!(!gate.let_one_in(STALL_AFTER), "it did not help");
        assert!(gate.let_one_in(2 * STALL_AFTER));
        gate.count_ends(1, STALL_AFTER);
        assert!(gate.let_one_in(STALL_AFTER));

        assert_eq!(gate.limit(), FLOOR + 3);
    }

    #[test]
    fn the_first_jobs_have_no_company_without_evidence_that_they_wait() {
        let mut gate = Gate::new(100);

        mostly_computing(&mut gate, 10_000, 10, true);
        assert!(!gate.let_one_in(Duration::from_secs(60)));
        assert_eq!(gate.limit(), 1);
        for _ in 0..100 {
            gate.look(wanted(&gate));
        }
        assert_eq!(gate.limit(), 100);
        mostly_computing(&mut gate, 10_000, usize::MAX, true);
        assert_eq!(gate.limit(), 1);

        gate.settle_as(true);
        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn the_first_jobs_compute_one_at_a_time_also_where_several_could() {
        let mut gate = Gate::new(100);
        gate.set_at_once(4);
        gate.count_length(100 * LONG_JOB);

        assert_eq!((gate.limit(), gate.at_once()), (1, 1));
        assert!(!gate.has_free_cpu(1));

        gate.settle_as(true);
        assert_eq!((gate.limit(), gate.at_once()), (5, 4));
        assert!(gate.has_free_cpu(1));
    }

    #[test]
    fn what_is_long_depends_on_what_is_usual() {
        let mut gate = settled(100);

        assert!(!gate.let_one_in(10 * STALL_AFTER), "nothing has ended yet");
        for _ in 0..100 {
            gate.count_ends(4, Duration::from_secs(1));
        }
        assert!(!gate.let_one_in(Duration::from_secs(1)));
        assert!(gate.let_one_in(Duration::from_secs(2)));
    }

    #[test]
    fn frequent_takeovers_make_it_eager_and_the_question_is_asked_again() {
        let start = Instant::now();
        let mut gate = settled(100);
        assert!(!gate.is_eager(start));

        for _ in 0..3 {
            gate.taken_over(start);
        }

        assert!(gate.is_eager(start));
        assert!(!gate.is_eager(start + EAGER_FOR));
        gate.taken_over(start + EAGER_FOR);
        assert!(gate.is_eager(start + EAGER_FOR));
    }

    #[test]
    fn a_pool_of_one_is_never_eager() {
        let now = Instant::now();
        let mut gate = settled(1);
        for _ in 0..100 {
            gate.taken_over(now);
        }
        assert!(!gate.is_eager(now));

        gate.resize(2);
        for _ in 0..2 {
            gate.taken_over(now);
        }
        assert!(gate.is_eager(now));
        gate.resize(1);
        assert!(!gate.is_eager(now) && !gate.was_eager());
    }

    #[test]
    fn a_rare_takeover_does_not_make_it_eager() {
        let now = Instant::now();
        let mut gate = settled(100);

        for _ in 0..100 {
            gate.taken_over(now);
            for _ in 0..TAKEOVER_SCORE {
                gate.not_taken_over();
            }
        }

        assert!(!gate.is_eager(now));
    }

    #[test]
    fn the_floor_is_one_job_more_than_can_compute_at_once() {
        let mut gate = settled(100);

        for (at_once, floor) in [(4, 5), (1, 2), (0, 2)] {
            gate = Gate {
                limit: 1,
                ..settled(100)
            };
            gate.set_at_once(at_once);
            assert_eq!(gate.limit(), floor, "{at_once} at once");
        }
        gate.resize(3);
        gate.set_at_once(16);

        assert_eq!(gate.limit(), 3, "the maximum is kept");
    }

    #[test]
    fn shrinks_to_the_cpus_where_there_is_no_lock() {
        let mut gate = opened();
        gate.set_at_once(8);

        mostly_computing(&mut gate, 1_000, usize::MAX, false);

        assert_eq!(gate.limit(), 9);
    }

    #[test]
    fn another_thread_is_wanted_only_beside_long_jobs_and_a_free_cpu() {
        let mut gate = settled(100);
        gate.count_length(Duration::from_secs(1));
        assert!(!gate.has_free_cpu(1), "one interpreter lock");

        gate.set_at_once(2);
        assert!(gate.has_free_cpu(1));
        assert!(!gate.has_free_cpu(2), "both CPUs compute");
        for _ in 0..1_000 {
            gate.count_length(LONG_JOB / 4);
        }

        assert!(!gate.has_free_cpu(1), "jobs are short");
    }

    #[test]
    fn jobs_that_compute_beyond_the_cpus_do_so_without_the_interpreter() {
        let start = Instant::now();
        let mut streak = Streak::default();
        for look in 0..=FREE_LOOKS {
            streak.note(true, start + look * FREE_AFTER);
        }
        let now = start + FREE_LOOKS * FREE_AFTER;
        let jobs = || std::iter::repeat_n(streak, 3);

        assert_eq!(released(jobs(), 1, now), 2);
        assert_eq!(released(jobs(), 2, now), 1);
        assert_eq!(released(jobs(), 8, now), 0);
    }
}
