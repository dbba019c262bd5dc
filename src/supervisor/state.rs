//! What one worker of a slot is doing, and how events change that.
//!
//! Pure: a value, an event and an instant in, a value and at most one action out. Forks nothing,
//! signals nothing and reads no clock; [`super::roster`] applies it to all slots. The table in
//! docs/lifecycle.md mirrors [`Worker::on`] row by row.
//! Rules: oslo.service `ProcessLauncher`, made never to sleep; the back-off replaces its throttle.

use std::time::{Duration, Instant};

/// A worker that ended sooner than this after its fork failed.
pub const SHORT_LIFE: Duration = Duration::from_secs(1);
/// A worker that was ready for this long is healthy: its earlier failures are forgotten.
pub const STABLE: Duration = Duration::from_secs(10);
/// Ready workers that may end so soon, one after the other, before their ends count as failures: what
/// kills them may come from outside, and clients wait.
pub const SPARED: u8 = 4;
/// Back-off after the second failure in a row; there is none after the first.
pub const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Longest back-off of a slot whose workers keep dying.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// Nor than this where it follows one that was told to leave before it served: clients wait, and that
/// was the supervisor's decision.
pub const LONGEST_BACKOFF_ALONE: Duration = Duration::from_secs(1);
/// Longest back-off while the system refuses to fork: trying is cheap, and strength is missing.
pub const LONGEST_FORK_BACKOFF: Duration = Duration::from_secs(2);

/// How long a hung worker may take to say where it hangs and to end, after SIGABRT.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

/// The same for a worker that is late: its deadline has passed, and the stop waits for it alone.
pub const LATE_LAST_WORDS: Duration = Duration::from_millis(250);

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No process; to be forked now.
    Due,
    /// Python was told to fork and has not answered yet.
    Forking,
    /// Forked, not ready.
    Starting {
        /// The process.
        pid: i32,
        /// When it was forked.
        forked: Instant,
    },
    /// Ready.
    Running {
        /// The process.
        pid: i32,
        /// When it was forked.
        forked: Instant,
        /// When it became ready.
        ready: Instant,
    },
    /// SIGTERM was sent.
    Draining {
        /// The process.
        pid: i32,
        /// When it was forked.
        forked: Instant,
        /// When SIGTERM was sent.
        asked: Instant,
        /// When SIGKILL follows; `None` is never.
        deadline: Option<Instant>,
        /// It was ready when asked, so its SIGTERM cannot have been lost in start-up.
        is_ready: bool,
    },
    /// Its deadline has passed, and SIGABRT was sent.
    Aborting {
        /// The process.
        pid: i32,
        /// When it was forked.
        forked: Instant,
        /// When SIGKILL follows.
        until: Instant,
    },
    /// SIGKILL was sent.
    Killing {
        /// The process.
        pid: i32,
        /// When it was forked.
        forked: Instant,
    },
    /// No process; the next fork is put off.
    Waiting {
        /// Until when.
        until: Instant,
    },
    /// No process, and none will follow.
    Gone,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The fork was handed to Python.
    ForkAsked,
    /// It succeeded.
    Forked {
        /// The new process.
        pid: i32,
    },
    /// It failed.
    ForkFailed,
    /// The worker reported that it is ready.
    Ready,
    /// The configuration was mutated.
    Mutated,
    /// The process ended and was reaped.
    Exited,
    /// The worker is told to leave.
    Stop {
        /// When SIGKILL follows; `None` is never.
        deadline: Option<Instant>,
    },
    /// The worker is to be ended at once.
    Abort,
    /// It is stopped, busy with one request, or without a beat for longer than the worker timeout.
    Hung {
        /// For how long.
        silent: Duration,
    },
    /// Time passed.
    Tick,
}

/// What a transition asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send SIGHUP.
    HangUp(i32),
    /// Send SIGTERM.
    Terminate(i32),
    /// Send SIGKILL.
    Kill(i32),
    /// Send SIGABRT and report that the deadline passed.
    AbortLate {
        /// The process.
        pid: i32,
        /// Time since SIGTERM.
        waited: Duration,
    },
    /// Send SIGKILL and report that the deadline passed: it got SIGABRT when it hung.
    KillLate {
        /// The process.
        pid: i32,
        /// Time since SIGTERM.
        waited: Duration,
    },
    /// Send SIGABRT and report that the worker hung.
    AbortHung {
        /// The process.
        pid: i32,
        /// For how long.
        silent: Duration,
    },
    /// Report that the next fork is put off.
    ReportBackoff {
        /// For how long.
        delay: Duration,
        /// Failures in a row.
        failures: u32,
    },
}

/// One worker of a slot, across its respawns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worker {
    /// Reload round it belongs to.
    pub generation: u32,
    /// Where it is in its life.
    pub state: State,
    /// Deaths in a row that were too early.
    failures: u32,
    /// Deaths in a row of ready workers that were too early and do not count as failures.
    spared: u8,
    /// Refused forks in a row.
    refusals: u32,
    /// Its predecessor was told to leave before it served, and it has not served since.
    is_alone: bool,
    /// The configuration was mutated after its fork and before it was ready.
    is_outdated: bool,
    /// It hung and SIGABRT was sent; SIGKILL follows then. It is forked again when it was reaped.
    given_up: Option<GivenUp>,
}

/// What is still to be done about a worker that hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GivenUp {
    /// SIGKILL is sent at this instant, in case SIGABRT does nothing.
    KilledAt(Instant),
    /// SIGKILL was sent.
    Killed,
}

impl Worker {
    /// A worker to be forked now.
    #[must_use]
    pub const fn new(generation: u32) -> Self {
        Self {
            generation,
            state: State::Due,
            failures: 0,
            spared: 0,
            refusals: 0,
            is_alone: false,
            is_outdated: false,
            given_up: None,
        }
    }

    /// The same, whose predecessor was told to leave before it serves. It is not put off for long.
    #[must_use]
    pub const fn alone(self) -> Self {
        Self {
            is_alone: true,
            ..self
        }
    }

    /// The one of another generation in its place, before it was forked or after it has ended.
    #[must_use]
    pub const fn renewed(self, generation: u32) -> Self {
        Self {
            is_alone: self.is_alone,
            ..Self::new(generation)
        }
    }

    /// The state after *event*, and what has to be done about it. An event that means nothing in a
    /// state leaves it as it is.
    #[must_use]
    pub fn on(self, event: Event, now: Instant) -> (Self, Option<Action>) {
        match event {
            Event::ForkAsked => match self.state {
                State::Due => self.enter(State::Forking),
                State::Forking
                | State::Starting { .. }
                | State::Running { .. }
                | State::Draining { .. }
                | State::Aborting { .. }
                | State::Killing { .. }
                | State::Waiting { .. }
                | State::Gone => (self, None),
            },
            Event::Forked { pid } => {
                let fresh = Self {
                    refusals: 0,
                    is_outdated: false,
                    given_up: None,
                    ..self
                };
                fresh.enter(State::Starting { pid, forked: now })
            }
            Event::ForkFailed => self.on_refusal(now),
            Event::Ready => self.on_ready(now),
            Event::Mutated => match self.state {
                State::Starting { .. } => (
                    Self {
                        is_outdated: true,
                        ..self
                    },
                    None,
                ),
                State::Running { pid, .. } => (self, Some(Action::HangUp(pid))),
                State::Due
                | State::Forking
                | State::Draining { .. }
                | State::Aborting { .. }
                | State::Killing { .. }
                | State::Waiting { .. }
                | State::Gone => (self, None),
            },
            Event::Exited => self.on_exit(now),
            Event::Stop { deadline } => self.on_stop(deadline, now),
            Event::Abort => match self.state {
                State::Starting { pid, forked }
                | State::Running { pid, forked, .. }
                | State::Draining { pid, forked, .. }
                | State::Aborting { pid, forked, .. } => (
                    Self {
                        state: State::Killing { pid, forked },
                        ..self
                    },
                    Some(Action::Kill(pid)),
                ),
                State::Due | State::Waiting { .. } => self.enter(State::Gone),
                State::Forking | State::Killing { .. } | State::Gone => (self, None),
            },
            Event::Hung { silent } => match self.state {
                State::Starting { pid, .. } | State::Running { pid, .. }
                    if self.given_up.is_none() =>
                {
                    (
                        Self {
                            given_up: Some(GivenUp::KilledAt(now + LAST_WORDS)),
                            ..self
                        },
                        Some(Action::AbortHung { pid, silent }),
                    )
                }
                // A worker that drains has a deadline.
                State::Due
                | State::Forking
                | State::Starting { .. }
                | State::Running { .. }
                | State::Draining { .. }
                | State::Aborting { .. }
                | State::Killing { .. }
                | State::Waiting { .. }
                | State::Gone => (self, None),
            },
            Event::Tick => self.on_tick(now),
        }
    }

    /// The process, while there is one.
    #[must_use]
    pub const fn pid(&self) -> Option<i32> {
        match self.state {
            State::Starting { pid, .. }
            | State::Running { pid, .. }
            | State::Draining { pid, .. }
            | State::Aborting { pid, .. }
            | State::Killing { pid, .. } => Some(pid),
            State::Due | State::Forking | State::Waiting { .. } | State::Gone => None,
        }
    }

    /// When the process was forked, while there is one.
    #[must_use]
    pub const fn forked(&self) -> Option<Instant> {
        match self.state {
            State::Starting { forked, .. }
            | State::Running { forked, .. }
            | State::Draining { forked, .. }
            | State::Aborting { forked, .. }
            | State::Killing { forked, .. } => Some(forked),
            State::Due | State::Forking | State::Waiting { .. } | State::Gone => None,
        }
    }

    /// When [`Event::Tick`] will change something.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Draining { deadline, .. } => match (deadline, self.kill_due()) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            },
            State::Aborting { until, .. } | State::Waiting { until } => Some(until),
            State::Starting { .. } | State::Running { .. } => self.kill_due(),
            State::Due | State::Forking | State::Killing { .. } | State::Gone => None,
        }
    }

    /// True when it was started and cannot get ready: it died, or it takes longer than [`STABLE`].
    #[must_use]
    pub fn is_stalled(&self, now: Instant) -> bool {
        let is_slow = |forked| now.saturating_duration_since(forked) >= STABLE;
        match self.state {
            State::Starting { forked, .. } => self.failures > 0 || is_slow(forked),
            State::Due | State::Forking | State::Waiting { .. } => {
                self.failures > 0 || self.refusals > 0
            }
            State::Running { .. }
            | State::Draining { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Gone => false,
        }
    }

    /// True when it died too early twice in a row or more often.
    #[must_use]
    pub const fn fails_again(&self) -> bool {
        self.failures >= 2
    }

    /// When SIGKILL follows SIGABRT.
    const fn kill_due(&self) -> Option<Instant> {
        match self.given_up {
            Some(GivenUp::KilledAt(at)) => Some(at),
            Some(GivenUp::Killed) | None => None,
        }
    }

    fn enter(self, state: State) -> (Self, Option<Action>) {
        (Self { state, ..self }, None)
    }

    fn on_ready(self, now: Instant) -> (Self, Option<Action>) {
        match self.state {
            State::Starting { pid, forked } => {
                let action = self.is_outdated.then_some(Action::HangUp(pid));
                let state = State::Running {
                    pid,
                    forked,
                    ready: now,
                };
                (
                    Self {
                        state,
                        is_alone: false,
                        is_outdated: false,
                        ..self
                    },
                    action,
                )
            }
            // A SIGTERM that arrives between fork() and the child's first handler is lost.
            State::Draining {
                pid,
                forked,
                asked,
                deadline,
                is_ready: false,
            } => {
                let state = State::Draining {
                    pid,
                    forked,
                    asked,
                    deadline,
                    is_ready: true,
                };
                (Self { state, ..self }, Some(Action::Terminate(pid)))
            }
            State::Due
            | State::Forking
            | State::Running { .. }
            | State::Draining { is_ready: true, .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Gone => (self, None),
        }
    }

    fn on_stop(self, wanted: Option<Instant>, now: Instant) -> (Self, Option<Action>) {
        let drain = |pid, forked, is_ready| {
            let state = State::Draining {
                pid,
                forked,
                asked: now,
                deadline: wanted,
                is_ready,
            };
            (Self { state, ..self }, Some(Action::Terminate(pid)))
        };
        match self.state {
            State::Due | State::Waiting { .. } => self.enter(State::Gone),
            State::Starting { pid, forked } => drain(pid, forked, false),
            State::Running { pid, forked, .. } => drain(pid, forked, true),
            // Already asked, by a reload: the nearer deadline holds, and one SIGTERM is enough.
            State::Draining {
                pid,
                forked,
                asked,
                deadline,
                is_ready,
            } => {
                let deadline = match (deadline, wanted) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
                self.enter(State::Draining {
                    pid,
                    forked,
                    asked,
                    deadline,
                    is_ready,
                })
            }
            State::Forking | State::Aborting { .. } | State::Killing { .. } | State::Gone => {
                (self, None)
            }
        }
    }

    fn on_exit(self, now: Instant) -> (Self, Option<Action>) {
        match self.state {
            State::Starting { .. } => self.after_failure(now),
            State::Running { forked, ready, .. } => {
                if now.saturating_duration_since(ready) >= STABLE {
                    Self {
                        failures: 0,
                        spared: 0,
                        ..self
                    }
                    .enter(State::Due)
                } else if now.saturating_duration_since(forked) >= SHORT_LIFE {
                    self.put_off(now)
                } else if self.spared < SPARED {
                    Self {
                        spared: self.spared + 1,
                        ..self
                    }
                    .put_off(now)
                } else {
                    self.after_failure(now)
                }
            }
            State::Draining { .. } | State::Aborting { .. } | State::Killing { .. } => {
                self.enter(State::Gone)
            }
            State::Due | State::Forking | State::Waiting { .. } | State::Gone => (self, None),
        }
    }

    fn after_failure(self, now: Instant) -> (Self, Option<Action>) {
        Self {
            failures: self.failures.saturating_add(1),
            ..self
        }
        .put_off(now)
    }

    fn put_off(self, now: Instant) -> (Self, Option<Action>) {
        let longest = if self.is_alone {
            LONGEST_BACKOFF_ALONE
        } else {
            LONGEST_BACKOFF
        };
        let delay = backoff(self.failures, longest);
        if delay.is_zero() {
            return self.enter(State::Due);
        }
        let report = Action::ReportBackoff {
            delay,
            failures: self.failures,
        };
        (
            Self {
                state: State::Waiting { until: now + delay },
                ..self
            },
            Some(report),
        )
    }

    fn on_refusal(self, now: Instant) -> (Self, Option<Action>) {
        let refusals = self.refusals.saturating_add(1);
        // Unlike a death, a refusal is never tried again at once: the reason is still there.
        let delay = backoff(refusals.saturating_add(1), LONGEST_FORK_BACKOFF);
        let report = Action::ReportBackoff {
            delay,
            failures: refusals,
        };
        (
            Self {
                state: State::Waiting { until: now + delay },
                refusals,
                ..self
            },
            Some(report),
        )
    }

    fn on_tick(self, now: Instant) -> (Self, Option<Action>) {
        match self.state {
            State::Draining {
                pid,
                forked,
                asked,
                deadline: Some(deadline),
                ..
            } if deadline <= now => {
                let waited = now.saturating_duration_since(asked);
                // SIGABRT is sent once: one that has hung had its time for last words.
                let (state, late) = if self.given_up.is_some() {
                    let state = State::Killing { pid, forked };
                    (state, Action::KillLate { pid, waited })
                } else {
                    let until = now + LATE_LAST_WORDS;
                    let state = State::Aborting { pid, forked, until };
                    (state, Action::AbortLate { pid, waited })
                };
                (Self { state, ..self }, Some(late))
            }
            State::Aborting { pid, forked, until } if until <= now => {
                let state = State::Killing { pid, forked };
                (Self { state, ..self }, Some(Action::Kill(pid)))
            }
            State::Waiting { until } if until <= now => self.enter(State::Due),
            State::Starting { pid, .. }
            | State::Running { pid, .. }
            | State::Draining { pid, .. }
                if self.kill_due().is_some_and(|at| at <= now) =>
            {
                (
                    Self {
                        given_up: Some(GivenUp::Killed),
                        ..self
                    },
                    Some(Action::Kill(pid)),
                )
            }
            State::Due
            | State::Forking
            | State::Starting { .. }
            | State::Running { .. }
            | State::Draining { .. }
            | State::Aborting { .. }
            | State::Killing { .. }
            | State::Waiting { .. }
            | State::Gone => (self, None),
        }
    }
}

/// How long to wait after *failures* in a row: nothing, then [`FIRST_BACKOFF`], doubling.
fn backoff(failures: u32, longest: Duration) -> Duration {
    let Some(doublings) = failures.checked_sub(2) else {
        return Duration::ZERO;
    };
    2_u32
        .checked_pow(doublings)
        .and_then(|factor| FIRST_BACKOFF.checked_mul(factor))
        .map_or(longest, |delay| delay.min(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_respawn_is_immediate_and_the_later_ones_back_off_to_a_cap() {
        let delays: Vec<_> = (1..=12)
            .map(|failures| backoff(failures, LONGEST_BACKOFF).as_millis())
            .collect();

        assert_eq!(
            delays,
            [
                0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000
            ]
        );
        assert_eq!(backoff(u32::MAX, LONGEST_BACKOFF), LONGEST_BACKOFF);
    }
}
