//! What the pool asks the kernel about its threads, and how it wakes its standby.
//!
//! Owns the size of their stacks, the question whether a thread computes, and the alarm. Never schedules anything.

use crate::locks::{Condvar, Mutex};
use crate::threads::{self, Signals};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::{Pid, gettid};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// As large as a main thread's: applications recurse.
const STACK_BYTES: usize = 8 << 20;

/// The kernel's number of the calling thread.
pub(super) fn own_id() -> Pid {
    gettid()
}

/// True when the thread is on a CPU or ready to run; false when it sleeps, or is gone.
pub(super) fn is_computing(thread: Pid) -> bool {
    // Long enough for the first three fields: a number, a name of up to 64 bytes, the state.
    let mut stat = [0; 128];
    let Ok(count) = File::open(format!("/proc/self/task/{thread}/stat"))
        .and_then(|mut file| file.read(&mut stat))
    else {
        return false;
    };
    let stat = &stat[..count];
    // The name is in parentheses and may hold anything, parentheses too.
    let name_end = stat.iter().rposition(|byte| *byte == b')');
    name_end.and_then(|end| stat.get(end + 2)) == Some(&b'R')
}

pub(super) use crate::threads::own_cpu_time;

/// Whether the machine has CPU to spare, as of a moment ago.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct SpareCpu {
    /// How long all CPUs together had been idle, and when.
    seen: Option<(Instant, Duration)>,
    is_there: bool,
}

/// How long idle time is counted before it is judged, since the kernel tells it in hundredths of a
/// second; what was counted over longer says nothing of now.
const WINDOW: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(1);
/// The share of one CPU that must have been idle.
const SPARE: f32 = 0.25;

impl SpareCpu {
    /// Asks the kernel, or remembers. False until there was enough time to tell.
    pub(super) fn is_there(&mut self) -> bool {
        let now = Instant::now();
        let passed = self.seen.map_or(Duration::MAX, |(since, _)| now - since);
        if passed < *WINDOW.start() {
            return self.is_there;
        }
        let idle = idle_time();
        self.is_there = match (self.seen, idle) {
            (Some((_, before)), Some(idle)) if WINDOW.contains(&passed) => {
                idle.saturating_sub(before) >= passed.mul_f32(SPARE)
            }
            _ => false,
        };
        self.seen = idle.map(|idle| (now, idle));
        self.is_there
    }
}

/// How long all CPUs together have been idle, by the second number of /proc/uptime: cheap also
/// where there are hundreds of them, unlike /proc/stat.
fn idle_time() -> Option<Duration> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds = uptime.split_whitespace().nth(1)?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Timers of the kernel that a process's pools may have. Each is a descriptor, and a process may have
/// hundreds of pools.
const MOST_TIMERS: usize = 16;
static TIMERS: AtomicUsize = AtomicUsize::new(0);

/// Wakes one sleeper at a chosen time.
#[derive(Debug, Default)]
pub(super) struct Alarm(OnceLock<Means>);

/// What an alarm is made of.
#[derive(Debug)]
enum Means {
    /// Unlike a wait with a timeout, a thread that knows of nothing to see can put it off
    /// without waking the sleeper.
    Timer(TimerFd),
    /// Where the process has many: the sleeper that was put off wakes at the time set before, and sleeps
    /// on.
    Clock(Clock),
}

#[derive(Debug, Default)]
struct Clock {
    at: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Means {
    fn new() -> io::Result<Self> {
        if TIMERS.fetch_add(1, Ordering::Relaxed) >= MOST_TIMERS {
            TIMERS.fetch_sub(1, Ordering::Relaxed);
            return Ok(Self::Clock(Clock::default()));
        }
        TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)
            .map(Self::Timer)
            .map_err(|errno| {
                TIMERS.fetch_sub(1, Ordering::Relaxed);
                errno.into()
            })
    }
}

impl Drop for Means {
    fn drop(&mut self) {
        if let Self::Timer(_) = self {
            TIMERS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Clock {
    fn set_in(&self, delay: Duration) {
        let at = Instant::now() + delay;
        let before = self.at.lock().replace(at);
        if before.is_none_or(|before| at < before) {
            self.changed.notify_one();
        }
    }

    fn wait(&self) {
        let mut at = self.at.lock();
        loop {
            match *at {
                None => self.changed.wait(&mut at),
                Some(time) if Instant::now() >= time => {
                    *at = None;
                    return;
                }
                Some(time) => {
                    let _ = self.changed.wait_until(&mut at, time);
                }
            }
        }
    }
}

impl Alarm {
    /// To be called before anything else; once is enough.
    pub(super) fn create(&self) -> io::Result<()> {
        if self.0.get().is_none() {
            // Another thread may have been quicker.
            let _ = self.0.set(Means::new()?);
        }
        Ok(())
    }

    /// Wakes the sleeper after `delay`, and not at the time set before. Zero wakes it at once.
    pub(super) fn set_in(&self, delay: Duration) {
        match self.0.get() {
            Some(Means::Timer(timer)) => {
                // A timer that is set to zero never expires.
                let delay = TimeSpec::from(delay.max(Duration::from_nanos(1)));
                // Fails only on values that no Duration has.
                let _ = timer.set(Expiration::OneShot(delay), TimerSetTimeFlags::empty());
            }
            Some(Means::Clock(clock)) => clock.set_in(delay),
            None => {}
        }
    }

    /// Takes back an alarm that has not been heard yet.
    pub(super) fn cancel(&self) {
        match self.0.get() {
            Some(Means::Timer(timer)) => {
                let _ = timer.unset();
            }
            Some(Means::Clock(clock)) => *clock.at.lock() = None,
            None => {}
        }
    }

    /// Sleeps until the alarm; returns at once when its time has passed already.
    pub(super) fn wait(&self) {
        match self.0.get() {
            Some(Means::Clock(clock)) => clock.wait(),
            Some(Means::Timer(timer)) if timer.wait().is_ok() => {}
            // EINTR: a signal handler ran here.
            Some(Means::Timer(_)) | None => thread::yield_now(),
        }
    }
}

/// Starts a pool thread. It runs Python, so it takes the signals that its creator takes.
pub(super) fn start(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    threads::start(name, STACK_BYTES, Signals::AsCreator, body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_spinning_thread_computes_and_a_blocked_one_does_not() {
        let (id, ids) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        start("test-blocked".into(), move || {
            id.send(own_id()).unwrap();
            let _ = released.recv();
        })
        .unwrap();
        let blocked = ids.recv().unwrap();

        let deadline = Instant::now() + Duration::from_secs(10);
        while is_computing(blocked) {
            assert!(Instant::now() < deadline, "the thread never blocked");
            thread::yield_now();
        }

        assert!(is_computing(own_id()));
        drop(release);
    }

    #[test]
    fn alarms_of_many_pools_ring_too_and_cost_no_descriptor() {
        let alarms: Vec<_> = (0..3 * MOST_TIMERS).map(|_| Alarm::default()).collect();
        for alarm in &alarms {
            alarm.create().unwrap();
        }
        let has_timer = |alarm: &&Alarm| matches!(alarm.0.get(), Some(Means::Timer(_)));
        assert!(alarms.iter().filter(has_timer).count() <= MOST_TIMERS);
        for alarm in &alarms {
            alarm.set_in(Duration::from_secs(3600));
            alarm.cancel();
            thread::scope(|scope| {
                let sleeper = scope.spawn(|| alarm.wait());
                alarm.set_in(Duration::from_secs(3600));
                alarm.set_in(Duration::from_millis(1));
                let began = Instant::now();
                sleeper.join().unwrap();
                assert!(began.elapsed() < Duration::from_secs(60), "the later time");
            });
        }
    }

    #[test]
    fn the_kernel_tells_how_long_the_cpus_were_idle() {
        let before = idle_time().unwrap();

        assert!(before > Duration::ZERO);
        assert!(idle_time().unwrap() >= before);
    }

    #[test]
    fn spare_cpu_is_judged_over_a_window_that_is_neither_short_nor_stale() {
        let now = Instant::now();
        let ago = |passed| Some((now.checked_sub(passed).unwrap(), Duration::ZERO));

        // All CPUs have been idle for longer than the window since the machine started.
        for (passed, is_there) in [
            (Duration::from_millis(10), false),
            (Duration::from_millis(500), true),
            (Duration::from_secs(60), false),
        ] {
            let mut spare = SpareCpu {
                seen: ago(passed),
                is_there: false,
            };
            assert_eq!(spare.is_there(), is_there, "{passed:?}");
        }
        assert!(!SpareCpu::default().is_there());
    }
}
