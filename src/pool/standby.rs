//! The standby's watch: over a leader that is inside a job, and over jobs that wait for admission.
//!
//! Owns the decision to take leadership over and the looks on which the gate grows. It sleeps until
//! the alarm rings, and the alarm is put off while one short job follows the other: a busy pool wakes
//! its standby as little as an idle one.

use super::gate::Look;
use super::state::{AlarmTime, State};
use super::sync::{Instant, MutexGuard};
use super::threads;
use super::{Shared, Source, TICK};
use nix::unistd::Pid;
use std::sync::Arc;
use std::time::Duration;

/// Looks at all running jobs are the rarer the more they are, since each costs some microseconds:
/// one more [`TICK`] apart for each so many jobs; so much rarer while the limit cannot grow before the
/// load falls; and rarer still while no job waits for admission or looks keep finding one that
/// computes.
const JOBS_PER_TICK: u32 = 5;
const LOADED_LOOKS_FACTOR: u32 = 4;
const RARE_LOOKS_FACTOR: u32 = 8;
/// How soon the standby looks again at a pool that has just grown.
const LOOK_AGAIN_AFTER_GROWTH: Duration = Duration::from_micros(100);
/// How long a job may compute before it loses leadership.
const TAKE_OVER_AFTER: Duration = Duration::from_millis(20);

impl<S: Source> Shared<S> {
    /// Watches the leader and the queue; returns when leadership was taken or the pool ends.
    pub(super) fn stand_by(self: &Arc<Self>, state: &mut MutexGuard<'_, State<S::Job>>) {
        state.has_standby = true;
        // When the running jobs were looked at, and how many were done then.
        let mut looked = (Instant::now(), state.done);
        // How many jobs were done at the last look, and since when.
        let mut seen = (state.done, Instant::now());
        while state.is_led && !(state.is_ending && state.ready.is_empty()) {
            let now = Instant::now();
            if state.leader_call != 0 && Self::takes_over(state, now) {
                break;
            }
            if state.ready.is_empty() {
                seen = (state.done, now);
            } else if state.done != seen.0 {
                let jobs = state.done - seen.0;
                state.gate.count_ends(jobs, now - seen.1);
                seen = (state.done, now);
            }
            let due = state.next_look(looked);
            if due.is_some_and(|due| due <= now) {
                let after = now - looked.0;
                looked = (now, state.done);
                if Self::grows(state, after, now - seen.1) {
                    seen.1 = now;
                }
            }
            if state.leader_call == 0 && !state.ready.is_empty() {
                self.start_processing_threads(state);
            }
            let due = state.next_look(looked);
            self.sleep(state, due);
        }
        state.has_standby = false;
    }

    /// Has the leader been inside one and the same job for too long? Then leadership is vacant.
    fn takes_over(state: &mut MutexGuard<'_, State<S::Job>>, now: Instant) -> bool {
        let (call, age) = (state.leader_call, now - state.call_since);
        let Some(leader) = state.leader.filter(|_| age >= state.patience()) else {
            return false;
        };
        // Without the lock: a leader that waits for it would seem to block in its job.
        let computes = MutexGuard::unlocked(state, || threads::is_computing(leader));
        let is_same = state.leader_call == call && state.leader == Some(leader);
        let is_needed = state.gate.has_free_cpu(state.running.len());
        if !is_same || (computes && !is_needed && age < TAKE_OVER_AFTER) {
            return false;
        }
        state.takeovers += 1;
        if !computes {
            state.gate.taken_over(now);
        }
        state.is_led = false;
        state.leader = None;
        state.leader_call = 0;
        true
    }

    /// Looks at the running jobs: is there no room because all of them wait, or compute for long?
    fn grows(
        state: &mut MutexGuard<'_, State<S::Job>>,
        after: Duration,
        none_ended_for: Duration,
    ) -> bool {
        let is_wanted = state.is_room_wanted();
        let at_once = state.gate.at_once();
        let looked_at: Vec<_> = state.running.iter().map(|job| job.thread).collect();
        let mut spare = state.spare;
        let mut computing = Vec::new();
        let has_spare = MutexGuard::unlocked(state, || {
            let mut busy = looked_at
                .iter()
                .copied()
                .filter(|thread| threads::is_computing(*thread));
            // As many as can compute at once are evidence enough, unless a job waits that may run
            // beside those that compute.
            let most = if is_wanted { looked_at.len() } else { at_once };
            computing.extend(busy.by_ref().take(most));
            is_wanted && computing.len() < at_once && spare.is_there()
        });
        state.spare = spare;
        let computes = computing.len() >= at_once;
        if is_wanted {
            state.note_computing(&looked_at, &computing);
        }
        let look = Look {
            after,
            computes,
            released: state.released(Instant::now()),
            has_spare,
            running: looked_at.len(),
            is_wanted,
        };
        state.gate.look(look) || (is_wanted && computes && state.gate.let_one_in(none_ended_for))
    }

    /// Sleeps until there may be something to see, or for good.
    fn sleep(&self, state: &mut MutexGuard<'_, State<S::Job>>, due: Option<Instant>) {
        if state.alarm_time == AlarmTime::Now {
            // It was wanted during a look.
            state.alarm_time = AlarmTime::Never;
            return;
        }
        let now = Instant::now();
        let of_leader = (state.leader_call != 0).then(|| {
            // A job that computes is looked at less and less often.
            let (age, patience) = (now - state.call_since, state.patience());
            match patience.checked_sub(age) {
                Some(left) if !left.is_zero() => left,
                _ => patience.max(age / 2),
            }
        });
        let of_queue = due.map(|due| due.saturating_duration_since(now));
        let next = match (of_leader, of_queue) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        if let Some(delay) = next {
            self.set_alarm(state, now + delay, delay);
        } else {
            state.alarm_time = AlarmTime::Never;
            self.alarm.cancel();
        }
        MutexGuard::unlocked(state, || self.alarm.wait());
        state.alarm_time = AlarmTime::Never;
    }
}

impl<J> State<J> {
    /// How long a leader is inside a job before the standby looks at it. Where no second job may run,
    /// all that a new leader could do before the job ends is to see to slow clients.
    pub(super) fn patience(&self) -> Duration {
        if self.gate.is_of_one() {
            TAKE_OVER_AFTER
        } else {
            TICK
        }
    }

    /// Notes which of the threads that were looked at computed. A job that has taken the place of
    /// another one on the same thread since begins at its next look.
    fn note_computing(&mut self, looked_at: &[Pid], computing: &[Pid]) {
        let now = Instant::now();
        for job in &mut self.running {
            let is_seen = looked_at.contains(&job.thread) && computing.contains(&job.thread);
            job.computing.note(is_seen, now);
        }
    }

    /// True while a job waits for admission and could have it if the limit grew.
    fn is_room_wanted(&self) -> bool {
        // Room that no thread has taken yet tells nothing about those who will.
        !self.ready.is_empty() && !self.may_run() && self.gate.can_grow() && !self.is_ending
    }

    /// When the running jobs are to be looked at again, if at all.
    fn next_look(&self, looked: (Instant, u64)) -> Option<Instant> {
        let of_limit = self.next_look_at_limit(looked);
        // The promise of admission does not wait for a look that is rare.
        let now = Instant::now();
        let of_promise = (self.running.len() < self.gate.max())
            .then(|| self.ready.due())
            .flatten()
            .map(|due| if due > now { due } else { now + TICK });
        match (of_limit, of_promise) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    fn next_look_at_limit(&self, (looked, done): (Instant, u64)) -> Option<Instant> {
        let running = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let spacing = TICK * (1 + running / JOBS_PER_TICK);
        let is_on_a_run = self.gate.is_on_a_run();
        let is_plenty = self.gate.is_plenty();
        if self.is_room_wanted() {
            Some(
                looked
                    + if is_on_a_run {
                        LOOK_AGAIN_AFTER_GROWTH
                    } else if is_plenty {
                        spacing.max(TICK * RARE_LOOKS_FACTOR)
                    } else if self.gate.is_loaded() {
                        spacing.max(TICK * LOADED_LOOKS_FACTOR)
                    } else {
                        spacing
                    },
            )
        } else if self.gate.is_crowded(self.running.len()) && self.done != done && !self.is_ending {
            // Many that go on for long, and nothing else, are left in peace; many that compute are
            // too many.
            Some(looked + spacing * if is_plenty { 1 } else { RARE_LOOKS_FACTOR })
        } else if self.may_run() {
            // Those who were called may not have come. Where a job waits and none may begin, there is
            // nothing to see: the thread that ends a job takes the next one.
            Some(
                Instant::now()
                    + if is_on_a_run {
                        LOOK_AGAIN_AFTER_GROWTH
                    } else {
                        TICK
                    },
            )
        } else {
            None
        }
    }
}

#[cfg(all(test, not(simulate)))]
mod tests {
    use super::super::Pool;
    use super::super::gate::Streak;
    use super::super::state::Running;
    use super::*;

    struct Nothing;

    impl Source for Nothing {
        type Job = ();

        fn wait(&self, _: &mut Vec<()>, _: usize, _: usize) {}
        fn interrupt(&self) {}
        fn run(&self, (): ()) -> Option<()> {
            None
        }
        fn is_over(&self) -> bool {
            true
        }
        fn thread(&self, body: &mut dyn FnMut()) {
            body();
        }
        fn ended(&self) {}
    }

    /// When the standby of a pool looks again, in which so many jobs run and one waits.
    fn looks_after(max: usize, running: usize, loaded: bool) -> Option<Duration> {
        let pool = Pool::new("test", Arc::new(Nothing), max);
        let mut state = pool.shared.state.lock();
        let now = Instant::now();
        state.ready.settle(now);
        state.gate.settle_as(true);
        state.ready.extend([()], now);
        for _ in 0..running {
            state.running.push(Running {
                thread: threads::own_id(),
                computing: Streak::default(),
            });
        }
        // Five looks of six find that a job computes.
        for look in 0..if loaded { 600 } else { 0 } {
            state.gate.look(Look {
                after: TICK,
                computes: look % 6 != 0,
                released: 0,
                has_spare: false,
                running,
                is_wanted: true,
            });
        }
        let done = state.done;
        state
            .next_look_at_limit((now, done))
            .map(|due| due.saturating_duration_since(now))
    }

    #[test]
    fn the_leader_of_a_pool_of_one_is_left_in_peace_for_longer() {
        for (max, patience) in [(1, TAKE_OVER_AFTER), (2, TICK)] {
            let pool = Pool::new("test", Arc::new(Nothing), max);
            assert_eq!(pool.shared.state.lock().patience(), patience);
        }
    }

    #[test]
    fn a_full_pool_that_cannot_grow_is_not_looked_at() {
        assert_eq!(looks_after(1, 1, false), None);
        assert_eq!(looks_after(2, 2, false), None);
        assert_eq!(looks_after(2, 2, true), None);
    }

    #[test]
    fn looks_are_rare_while_the_limit_cannot_grow_before_the_load_falls() {
        assert_eq!(looks_after(64, 2, false), Some(TICK));
        assert_eq!(looks_after(64, 2, true), Some(TICK * LOADED_LOOKS_FACTOR));
    }
}
