//! The gate: how many jobs may run at once, and whether leadership is handed on before each job.
//!
//! Pure arithmetic on looks and instants; knows no thread and reads no clock. Called by
//! [`super::Pool`] under its lock. Two findings shape it: threads that compute gain nothing from
//! company (they share one interpreter lock and, with real services, locks of logging and a small
//! database pool), and threads that wait cost nothing. So the limit grows only on evidence that
//! everything admitted is waiting, and shrinks on evidence that there always is one that computes.
//! A thread that is ready to run but finds no CPU, because other processes have it, computes too:
//! a second one would not get any further. Nor would it where all CPUs are busy: what the threads
//! wait for, a database on the same machine, may itself wait for a CPU. There the evidence must be
//! the stronger.

use std::time::{Duration, Instant};

/// Jobs that may run at once without any evidence.
const FLOOR: usize = 4;
/// How much one look counts in the load: the share of looks that found a job that computes.
const WEIGHT: f32 = 0.1;
/// Loads below which the limit doubles, below which it grows, and above which it shrinks.
const IDLE: f32 = 0.1;
const SCARCE: f32 = 0.4;
const PLENTY: f32 = 0.9;
/// Instead of `SCARCE` where the machine has CPU to spare.
const SCARCE_BUT_SPARE: f32 = 0.6;
/// Looks after growth during which another one that finds nobody ready doubles the limit, below this
/// load: those who were let in wait as well, and so soon that they will hardly do anything else.
const RUN: u32 = 5;
const RUN_LOAD: f32 = 0.4;
/// Looks at plenty of load before the limit shrinks by an eighth.
const STRAIN: u32 = 16;
/// What one takeover adds to the score, and the score at which leadership is handed on early. A
/// job that was not taken over takes one off: more than about one blocking job in fifty.
const TAKEOVER: u32 = 50;
const EAGER_AT: u32 = 100;
/// How long early hand-over lasts before the pool tries again without.
const EAGER_FOR: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    max: usize,
    load: f32,
    strain: u32,
    /// Looks that are left of a run of growth.
    run: u32,
    slack: u32,
    score: u32,
    eager_until: Option<Instant>,
}

impl Gate {
    pub(super) fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            limit: FLOOR.min(max),
            max,
            load: SCARCE_BUT_SPARE,
            strain: 0,
            run: 0,
            slack: 0,
            score: 0,
            eager_until: None,
        }
    }

    /// Changes the most that may ever run at once; 0 counts as 1.
    pub(super) fn resize(&mut self, max: usize) {
        self.max = max.max(1);
        self.limit = self.limit.clamp(FLOOR.min(self.max), self.max);
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn can_grow(&self) -> bool {
        self.limit < self.max
    }

    /// True while more jobs run than need no evidence.
    pub(super) fn is_crowded(running: usize) -> bool {
        running > FLOOR
    }

    /// A look at the `running` jobs: whether any was on a CPU or ready for one, whether the machine
    /// had CPU to spare, and whether others wait for admission. True when the limit grew.
    pub(super) fn look(
        &mut self,
        is_any_ready: bool,
        has_spare: bool,
        running: usize,
        is_wanted: bool,
    ) -> bool {
        let is_on_a_run = self.is_on_a_run();
        self.run = self.run.saturating_sub(1);
        let seen = if is_any_ready { 1.0 } else { 0.0 };
        self.load += (seen - self.load) * WEIGHT;
        if is_any_ready {
            self.strain += u32::from(self.is_plenty());
            if self.strain >= STRAIN {
                self.strain = 0;
                self.limit = self.limit.min(running);
                self.shrink(self.limit / 8);
            }
            return false;
        }
        self.strain = 0;
        let scarce = if has_spare { SCARCE_BUT_SPARE } else { SCARCE };
        if !is_wanted || self.load > scarce || !self.can_grow() {
            return false;
        }
        self.slack = 0;
        let doubles = self.load < IDLE || (is_on_a_run && self.load < RUN_LOAD);
        let step = if doubles { 1 } else { 4 };
        self.limit = (self.limit + (self.limit / step).max(1)).min(self.max);
        self.run = RUN;
        true
    }

    /// True while the limit is worth another look soon: it grew, and may have to grow much more.
    pub(super) fn is_on_a_run(&self) -> bool {
        self.run > 0 && self.can_grow()
    }

    /// True while looks hardly ever find that all jobs wait: they may be the rarer.
    pub(super) fn is_plenty(&self) -> bool {
        self.load > PLENTY
    }

    /// Jobs wait although one has been computing for long: let the scheduler share the CPU among
    /// one more, or short jobs would wait behind it. True when the limit grew.
    pub(super) fn admit_one(&mut self) -> bool {
        let grows = self.can_grow();
        if grows {
            self.limit += 1;
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
        self.score += TAKEOVER;
        if self.score >= EAGER_AT {
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
                self.score = EAGER_AT - TAKEOVER;
                false
            }
        }
    }

    /// [`Gate::is_eager`] as of the last time it was asked.
    pub(super) fn was_eager(&self) -> bool {
        self.eager_until.is_some()
    }

    fn shrink(&mut self, by: usize) {
        let floor = FLOOR.min(self.max);
        self.limit = self.limit.saturating_sub(by.max(1)).max(floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks of which every `one_in`-th finds nothing that computes; jobs fill the limit.
    fn mostly_computing(gate: &mut Gate, looks: usize, one_in: usize, has_spare: bool) {
        for look in 1..=looks {
            gate.look(look % one_in != 0, has_spare, gate.limit(), true);
        }
    }

    fn opened() -> Gate {
        let mut gate = Gate::new(100);
        while gate.limit() < 100 {
            gate.look(false, false, gate.limit(), true);
        }
        gate
    }

    #[test]
    fn doubles_to_its_maximum_while_everything_waits() {
        let mut gate = Gate::new(100);

        let looks = (1..100).find(|_| {
            gate.look(false, false, gate.limit(), true);
            gate.limit() == 100
        });

        assert!(looks < Some(16), "{looks:?} looks");
        assert!(!gate.look(false, false, 100, true));
    }

    #[test]
    fn does_not_grow_unless_a_job_waits_for_admission() {
        let mut gate = Gate::new(100);

        for _ in 0..100 {
            assert!(!gate.look(false, false, 4, false));
        }

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn stays_at_its_floor_while_threads_compute() {
        let mut gate = Gate::new(100);

        mostly_computing(&mut gate, 10_000, usize::MAX, true);

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn an_occasional_wait_of_all_does_not_grow_it() {
        let mut gate = Gate::new(100);

        mostly_computing(&mut gate, 1_000, 10, true);

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn grows_while_there_is_cpu_to_spare() {
        let mut gate = Gate::new(100);

        mostly_computing(&mut gate, 1_000, 2, true);

        assert_eq!(gate.limit(), 100);
    }

    #[test]
    fn stays_at_its_floor_while_the_machine_is_busy_unless_nearly_everything_waits() {
        let mut gate = Gate::new(100);

        mostly_computing(&mut gate, 1_000, 2, false);
        assert_eq!(gate.limit(), FLOOR);
        for look in 1..=1_000 {
            gate.look(look % 5 == 0, false, gate.limit(), true);
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

        for _ in 0..4 * STRAIN {
            gate.look(true, false, 16, false);
        }

        assert!(gate.limit() < 16, "{}", gate.limit());
    }

    #[test]
    fn never_exceeds_a_small_pool() {
        let mut gate = Gate::new(2);

        for _ in 0..10 {
            gate.look(false, false, 2, true);
            gate.admit_one();
        }
        assert_eq!(gate.limit(), 2);
        gate.resize(0);

        assert_eq!(gate.limit(), 1);
    }

    #[test]
    fn frequent_takeovers_make_it_eager_and_the_question_is_asked_again() {
        let start = Instant::now();
        let mut gate = Gate::new(100);
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
    fn a_rare_takeover_does_not_make_it_eager() {
        let now = Instant::now();
        let mut gate = Gate::new(100);

        for _ in 0..100 {
            gate.taken_over(now);
            for _ in 0..TAKEOVER {
                gate.not_taken_over();
            }
        }

        assert!(!gate.is_eager(now));
    }
}
