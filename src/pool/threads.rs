//! What the pool asks the kernel about its threads, and how it wakes its standby.
//!
//! Owns the size of their stacks, the question whether a thread computes, and the alarm. Never schedules anything.

use crate::threads::{self, Signals};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::{Pid, gettid};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::sync::OnceLock;
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

/// Wakes one sleeper at a chosen time. Unlike a wait with a timeout, whoever knows that there will
/// be nothing to see can put the alarm off without waking the sleeper.
#[derive(Debug, Default)]
pub(super) struct Alarm(OnceLock<TimerFd>);

impl Alarm {
    /// To be called before anything else; once is enough.
    pub(super) fn create(&self) -> io::Result<()> {
        if self.0.get().is_none() {
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
            // Another thread may have been quicker.
            let _ = self.0.set(timer);
        }
        Ok(())
    }

    /// Wakes the sleeper after `delay`, and not at the time set before. Zero wakes it at once.
    pub(super) fn set_in(&self, delay: Duration) {
        if let Some(timer) = self.0.get() {
            // A timer that is set to zero never expires.
            let delay = TimeSpec::from(delay.max(Duration::from_nanos(1)));
            // Fails only on values that no Duration has.
            let _ = timer.set(Expiration::OneShot(delay), TimerSetTimeFlags::empty());
        }
    }

    /// Takes back an alarm that has not been heard yet.
    pub(super) fn cancel(&self) {
        if let Some(timer) = self.0.get() {
            let _ = timer.unset();
        }
    }

    /// Sleeps until the alarm; returns at once when its time has passed already.
    pub(super) fn wait(&self) {
        match self.0.get().map(TimerFd::wait) {
            Some(Ok(())) => {}
            // EINTR: a signal handler ran here.
            Some(Err(_)) | None => thread::yield_now(),
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
