//! The gate: how many jobs may run at once, and whether leadership is handed on before each job.
//!
//! Pure arithmetic on samples and instants; knows no thread and reads no clock. Called by
//! [`super::Pool`] under its lock. Two findings shape it: threads that compute gain nothing from
//! company (they share one interpreter lock and, with real services, a small database pool), and
//! threads that wait cost nothing. So the limit grows only on evidence that everything admitted is
//! waiting, and shrinks on evidence that the process computes. A thread that is ready to run but
//! finds no CPU, because other processes have it, is evidence of neither.

use std::time::{Duration, Instant};

/// Jobs that may run at once without any evidence.
const FLOOR: usize = 4;
/// Samples in a row (net) that must show a waiting process before the limit grows.
const PATIENCE: u32 = 2;
/// Shares of a CPU below which a process is taken to wait, and above which to compute.
const SCARCE: f64 = 0.25;
const PLENTY: f64 = 0.75;
/// Busy samples before the limit shrinks by a sixteenth.
const STRAIN: u32 = 16;
/// What one takeover adds to the score, and the score at which leadership is handed on early. A
/// job that was not taken over takes one off: more than about one blocking job in fifty.
const TAKEOVER: u32 = 50;
const EAGER_AT: u32 = 100;
/// How long early hand-over lasts before the pool tries again without.
const EAGER_FOR: Duration = Duration::from_secs(1);

/// What a look at the running threads showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sample {
    /// No running thread was on a CPU or ready for one, or the process got next to none.
    Waiting,
    /// Some of both.
    Mixed,
    /// At least one was, and the process used most of a CPU.
    Computing,
}

impl Sample {
    /// Judges what was seen: whether a running thread was on a CPU or ready for one, and how much
    /// of a CPU the process used lately (1.0 is a whole one), if known.
    pub(super) fn new(is_any_ready: bool, usage: Option<f64>) -> Self {
        match usage {
            _ if !is_any_ready => Self::Waiting,
            Some(usage) if usage < SCARCE => Self::Waiting,
            Some(usage) if usage < PLENTY => Self::Mixed,
            Some(_) | None => Self::Computing,
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    max: usize,
    waiting: u32,
    computing: u32,
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
            waiting: 0,
            computing: 0,
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

    /// Jobs wait for admission and this is what the running ones do. True when the limit grew.
    pub(super) fn sample(&mut self, sample: Sample) -> bool {
        match sample {
            Sample::Waiting => {
                self.waiting += 1;
                self.computing = 0;
                if self.waiting >= PATIENCE && self.can_grow() {
                    self.waiting = 0;
                    self.slack = 0;
                    self.limit = (self.limit + (self.limit / 4).max(1)).min(self.max);
                    return true;
                }
            }
            Sample::Mixed => self.waiting = self.waiting.saturating_sub(1),
            Sample::Computing => {
                self.waiting = self.waiting.saturating_sub(1);
                self.computing += 1;
                if self.computing >= STRAIN {
                    self.computing = 0;
                    self.shrink(self.limit / 16);
                }
            }
        }
        false
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
        if self.score > EAGER_AT {
            self.eager_until = Some(now + EAGER_FOR);
        }
    }

    /// True while leadership should be handed on before a job rather than taken over during it.
    pub(super) fn is_eager(&mut self, now: impl FnOnce() -> Instant) -> bool {
        match self.eager_until {
            None => false,
            Some(until) if now() < until => true,
            Some(_) => {
                // One more takeover makes it eager again, so that an application which always
                // blocks pays about a millisecond a second for the question.
                self.eager_until = None;
                self.score = EAGER_AT - TAKEOVER + 1;
                false
            }
        }
    }

    fn shrink(&mut self, by: usize) {
        let floor = FLOOR.min(self.max);
        self.limit = self.limit.saturating_sub(by.max(1)).max(floor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum_while_everything_waits() {
        let mut gate = Gate::new(100);
        let mut samples = 0;

        while gate.limit() < 100 {
            gate.sample(Sample::Waiting);
            samples += 1;
        }

        assert!(samples < 60, "{samples} samples");
        assert!(!gate.sample(Sample::Waiting));
        assert_eq!(gate.limit(), 100);
    }

    #[test]
    fn stays_at_its_floor_while_threads_compute() {
        let mut gate = Gate::new(100);

        for _ in 0..10_000 {
            assert!(!gate.sample(Sample::Computing));
        }

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn an_occasional_wait_does_not_grow_it() {
        let mut gate = Gate::new(100);

        for _ in 0..1_000 {
            gate.sample(Sample::Computing);
            gate.sample(Sample::Waiting);
            gate.sample(Sample::Computing);
        }

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn shrinks_once_the_process_computes() {
        let mut gate = Gate::new(100);
        while gate.limit() < 100 {
            gate.sample(Sample::Waiting);
        }

        for _ in 0..10_000 {
            gate.sample(Sample::Computing);
        }

        assert_eq!(gate.limit(), FLOOR);
    }

    #[test]
    fn a_process_that_finds_no_cpu_is_not_taken_to_compute() {
        assert_eq!(Sample::new(false, Some(1.0)), Sample::Waiting);
        assert_eq!(Sample::new(true, Some(0.1)), Sample::Waiting);
        assert_eq!(Sample::new(true, Some(0.5)), Sample::Mixed);
        assert_eq!(Sample::new(true, Some(1.0)), Sample::Computing);
        assert_eq!(Sample::new(true, None), Sample::Computing);
    }

    #[test]
    fn never_exceeds_a_small_pool() {
        let mut gate = Gate::new(2);

        for _ in 0..10 {
            gate.sample(Sample::Waiting);
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
        assert!(!gate.is_eager(|| start));

        for _ in 0..3 {
            gate.taken_over(start);
        }

        assert!(gate.is_eager(|| start));
        assert!(!gate.is_eager(|| start + EAGER_FOR));
        gate.taken_over(start + EAGER_FOR);
        assert!(gate.is_eager(|| start + EAGER_FOR));
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

        assert!(!gate.is_eager(|| now));
    }
}
