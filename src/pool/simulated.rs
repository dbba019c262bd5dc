//! What stands in for the operating system's threads, clock and timers under `cfg(simulate)`.
//!
//! Owns simulated types with the interfaces of [`crate::locks`], `std::time::Instant` and
//! [`super::threads`], on top of shuttle, which chooses at each operation which thread goes on. Time
//! is one number, moved to the next deadline by a thread that shuttle schedules like any other: so
//! any timeout may pass at any moment, as on a machine that is too busy. Whether a job computes is a
//! matter of chance at each look. No part of what is shipped.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::new_without_default,
    missing_debug_implementations,
    reason = "for tests alone"
)]

use nix::unistd::Pid;
use shuttle::rand::Rng;
use shuttle::sync as shuttled;
use std::io;
use std::ops::{Add, Deref, DerefMut, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

// ---- the clock

struct ClockState {
    now: Duration,
    timers: Vec<(Duration, u64, Arc<shuttled::Condvar>)>,
    next_timer: u64,
    is_over: bool,
}

struct Clock {
    state: shuttled::Mutex<ClockState>,
    changed: shuttled::Condvar,
    refusals: AtomicU32,
    threads: AtomicI32,
}

shuttle::lazy_static! {
    static ref CLOCK: Clock = Clock {
        state: shuttled::Mutex::new(ClockState {
            now: Duration::from_secs(1000),
            timers: Vec::new(),
            next_timer: 0,
            is_over: false,
        }),
        changed: shuttled::Condvar::new(),
        refusals: AtomicU32::new(0),
        threads: AtomicI32::new(1),
    };
}

shuttle::thread_local! {
    static OWN_ID: Pid = Pid::from_raw(CLOCK.threads.fetch_add(1, Ordering::Relaxed));
}

/// Lets time pass until it is dropped.
pub struct Time(Option<shuttle::thread::JoinHandle<()>>);

impl Time {
    pub fn start() -> Self {
        Self(Some(shuttle::thread::spawn(|| {
            let mut state = CLOCK.state.lock().unwrap();
            while !state.is_over {
                let next = state.timers.iter().map(|(at, ..)| *at).min();
                let Some(next) = next else {
                    state = CLOCK.changed.wait(state).unwrap();
                    continue;
                };
                // A thread wakes up late where the machine is busy.
                let mut chance = shuttle::rand::thread_rng();
                let late = if chance.gen_bool(0.5) {
                    Duration::from_millis(chance.gen_range(0..100))
                } else {
                    Duration::ZERO
                };
                state.now = state.now.max(next) + late;
                let now = state.now;
                let due = state.timers.iter().filter(|(at, ..)| *at <= now);
                let due: Vec<_> = due.map(|(.., sleepers)| sleepers.clone()).collect();
                drop(state);
                for sleepers in due {
                    sleepers.notify_all();
                }
                shuttle::thread::yield_now();
                state = CLOCK.state.lock().unwrap();
            }
        })))
    }
}

impl Drop for Time {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        CLOCK.state.lock().unwrap().is_over = true;
        CLOCK.changed.notify_all();
        if let Some(clock) = self.0.take() {
            clock.join().unwrap();
        }
    }
}

/// The kernel refuses the next *count* threads.
pub fn refuse_threads(count: u32) {
    CLOCK.refusals.store(count, Ordering::Relaxed);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    pub fn now() -> Self {
        Self(CLOCK.state.lock().unwrap().now)
    }

    pub fn elapsed(&self) -> Duration {
        Self::now() - *self
    }

    pub fn checked_add(&self, other: Duration) -> Option<Self> {
        self.0.checked_add(other).map(Self)
    }

    pub fn checked_sub(&self, other: Duration) -> Option<Self> {
        self.0.checked_sub(other).map(Self)
    }

    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, other: Duration) -> Self {
        Self(self.0 + other)
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier) // as std's does
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, other: Duration) -> Self {
        Self(self.0 - other)
    }
}

// ---- locks

#[derive(Debug, Default)]
pub struct Mutex<T>(shuttled::Mutex<T>);

pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    guard: Option<shuttled::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(shuttled::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.0.lock();
        MutexGuard {
            mutex: self,
            guard: Some(guard.unwrap_or_else(std::sync::PoisonError::into_inner)),
        }
    }
}

impl<T> MutexGuard<'_, T> {
    pub fn unlocked<U>(guard: &mut Self, work: impl FnOnce() -> U) -> U {
        drop(guard.guard.take());
        let done = work();
        guard.guard = guard.mutex.lock().guard.take();
        done
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().unwrap()
    }
}

#[derive(Default)]
pub struct Condvar(Arc<shuttled::Condvar>);

pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.guard.take().unwrap();
        let held = self.0.wait(held);
        guard.guard = Some(held.unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    pub fn wait_while<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) {
        while condition(&mut **guard) {
            self.wait(guard);
        }
    }

    pub fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        until: Instant,
    ) -> WaitTimeoutResult {
        let timer = {
            let mut clock = CLOCK.state.lock().unwrap();
            if clock.now >= until.0 {
                return WaitTimeoutResult(true);
            }
            clock.next_timer += 1;
            let timer = clock.next_timer;
            clock.timers.push((until.0, timer, Arc::clone(&self.0)));
            timer
        };
        CLOCK.changed.notify_all();
        self.wait(guard);
        let mut clock = CLOCK.state.lock().unwrap();
        clock.timers.retain(|(_, other, _)| *other != timer);
        WaitTimeoutResult(clock.now >= until.0)
    }

    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, time: Duration) -> WaitTimeoutResult {
        self.wait_until(guard, Instant::now() + time)
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

// ---- what the pool asks the kernel

pub(super) fn own_id() -> Pid {
    OWN_ID.with(|id| *id)
}

/// The kernel's answer may be either, and another one at the next look.
pub(super) fn is_computing(_: Pid) -> bool {
    shuttle::rand::thread_rng().gen_bool(0.5)
}

/// Nothing computes here: a pool is settled by the first job that waits for too long.
pub(super) fn own_cpu_time() -> Duration {
    Duration::ZERO
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct SpareCpu;

impl SpareCpu {
    pub(super) fn is_there(&mut self) -> bool {
        shuttle::rand::thread_rng().gen_bool(0.5)
    }
}

/// Like a timerfd: set again it forgets what it has expired, and a sleeper takes one expiry.
#[derive(Default)]
pub(super) struct Alarm {
    at: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Alarm {
    pub(super) fn create(&self) -> io::Result<()> {
        let _ = &self.at;
        Ok(())
    }

    pub(super) fn set_in(&self, delay: Duration) {
        let at = Instant::now() + delay;
        *self.at.lock() = Some(at);
        self.changed.notify_all();
    }

    pub(super) fn cancel(&self) {
        *self.at.lock() = None;
    }

    pub(super) fn wait(&self) {
        let mut at = self.at.lock();
        loop {
            match *at {
                None => self.changed.wait(&mut at),
                Some(until) if until <= Instant::now() => break,
                Some(until) => drop(self.changed.wait_until(&mut at, until)),
            }
        }
        *at = None;
    }
}

pub(crate) fn start(_name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let refusals = CLOCK.refusals.load(Ordering::Relaxed);
    if refusals > 0 {
        CLOCK.refusals.store(refusals - 1, Ordering::Relaxed);
        return Err(nix::errno::Errno::EAGAIN.into());
    }
    drop(shuttle::thread::spawn(body));
    Ok(())
}
