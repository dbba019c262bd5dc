//! What is counted of requests and their answers in one worker, beyond how many there are.
//!
//! Owns the counters and the bounds of the histogram of times. As in [`super::row`], everything is a
//! relaxed atomic that a killed worker may leave as it is. Counters go on when a row is assigned
//! again, so that the sum over a slot never goes down; gauges begin at 0.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the histogram of request times, in microseconds; the last bucket has none.
pub const TIME_BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];
const BUCKETS: usize = TIME_BOUNDS.len() + 1;
/// Classes of statuses: 1 to 5, and 0 for a request without an answer.
const CLASSES: usize = 6;

/// See the module's text.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct Figures {
    classes: [AtomicU64; CLASSES],
    exceptions: AtomicU64,
    timed_out: AtomicU64,
    bytes: AtomicU64,
    waited_us: AtomicU64,
    time_us: AtomicU64,
    times: [AtomicU64; BUCKETS],
    unsent: AtomicU64,
    queued: AtomicU32,
    stuck: AtomicU32,
    held_uploads: AtomicU32,
}

/// A copy of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FigureSnapshot {
    /// Answers by the class of their status: 1 to 5, and 0 for requests without an answer.
    pub classes: [u64; CLASSES],
    /// Requests whose application raised.
    pub exceptions: u64,
    /// Requests that were given up because they took too long.
    pub timed_out: u64,
    /// Bytes of answers that the kernel has taken, heads included.
    pub bytes: u64,
    /// Microseconds for which requests have waited for the interpreter before the application began.
    pub waited_us: u64,
    /// Microseconds of all requests.
    pub time_us: u64,
    /// Requests by their time, see [`TIME_BOUNDS`]; each is counted once.
    pub times: [u64; BUCKETS],
    /// Gauge: bytes of complete answers that clients have not taken yet.
    pub unsent: u64,
    /// Gauge: requests that wait for a thread.
    pub queued: u32,
    /// Gauge: threads in requests that were given up.
    pub stuck: u32,
    /// Gauge: uploads that get no thread yet, and whose bodies are collected.
    pub held_uploads: u32,
}

impl Figures {
    pub(super) const fn new() -> Self {
        Self {
            classes: [const { AtomicU64::new(0) }; CLASSES],
            exceptions: AtomicU64::new(0),
            timed_out: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            time_us: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; BUCKETS],
            unsent: AtomicU64::new(0),
            queued: AtomicU32::new(0),
            stuck: AtomicU32::new(0),
            held_uploads: AtomicU32::new(0),
        }
    }

    /// A request was answered with that status (0: not at all) in that time, after it had waited for
    /// the interpreter.
    pub fn answered(&self, status: u16, time: Duration, waited: Duration) {
        let class = self.classes.get(usize::from(status / 100));
        class
            .unwrap_or(&self.classes[0])
            .fetch_add(1, Ordering::Relaxed);
        let time = micros(time);
        let bucket = TIME_BOUNDS.partition_point(|bound| *bound < time);
        self.times[bucket].fetch_add(1, Ordering::Relaxed);
        self.time_us.fetch_add(time, Ordering::Relaxed);
        let waited = micros(waited);
        if waited > 0 {
            self.waited_us.fetch_add(waited, Ordering::Relaxed);
        }
    }

    /// The server refused a request with that status.
    pub fn refused(&self, status: u16) {
        let class = self.classes.get(usize::from(status / 100));
        class
            .unwrap_or(&self.classes[0])
            .fetch_add(1, Ordering::Relaxed);
    }

    /// The kernel has taken so many more bytes.
    pub fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The application raised.
    pub fn raised(&self) {
        self.exceptions.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was given up, and its thread with it.
    pub fn gave_up(&self) {
        self.timed_out.fetch_add(1, Ordering::Relaxed);
        self.stuck.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread that was given up has come back.
    pub fn came_back(&self) {
        super::decrement(&self.stuck);
    }

    /// Bytes of complete answers that wait for their clients have become more.
    pub fn hold_unsent(&self, bytes: u64) {
        self.unsent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// They have become less.
    pub fn release_unsent(&self, bytes: u64) {
        // Never below 0: the parent clears the gauge of a worker that it has reaped.
        let _ = self
            .unsent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                Some(held.saturating_sub(bytes))
            });
    }

    /// So many requests wait for a thread, over all servers of the process.
    pub fn queue(&self, more: u32) {
        if more > 0 {
            self.queued.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// One of them has begun.
    pub fn dequeue(&self) {
        super::decrement(&self.queued);
    }

    /// One more upload waits for a permit.
    pub fn hold_upload(&self) {
        self.held_uploads.fetch_add(1, Ordering::Relaxed);
    }

    /// One of them waits no more.
    pub fn release_upload(&self) {
        super::decrement(&self.held_uploads);
    }

    pub(super) fn clear_gauges(&self) {
        self.unsent.store(0, Ordering::Relaxed);
        self.queued.store(0, Ordering::Relaxed);
        self.stuck.store(0, Ordering::Relaxed);
        self.held_uploads.store(0, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> FigureSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FigureSnapshot {
            classes: self.classes.each_ref().map(load),
            exceptions: load(&self.exceptions),
            timed_out: load(&self.timed_out),
            bytes: load(&self.bytes),
            waited_us: load(&self.waited_us),
            time_us: load(&self.time_us),
            times: self.times.each_ref().map(load),
            unsent: load(&self.unsent),
            queued: self.queued.load(Ordering::Relaxed),
            stuck: self.stuck.load(Ordering::Relaxed),
            held_uploads: self.held_uploads.load(Ordering::Relaxed),
        }
    }
}

impl FigureSnapshot {
    /// Adds the counters of another worker of the same slot; the gauges stay this one's.
    pub(super) fn add_counters(&mut self, other: &Self) {
        for (mine, theirs) in self.classes.iter_mut().zip(other.classes) {
            *mine += theirs;
        }
        for (mine, theirs) in self.times.iter_mut().zip(other.times) {
            *mine += theirs;
        }
        self.exceptions += other.exceptions;
        self.timed_out += other.timed_out;
        self.bytes += other.bytes;
        self.waited_us += other.waited_us;
        self.time_us += other.time_us;
    }

    /// The gauges alone.
    pub(super) fn gauges(&self) -> Self {
        Self {
            unsent: self.unsent,
            queued: self.queued,
            stuck: self.stuck,
            held_uploads: self.held_uploads,
            ..Self::default()
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_counted_once_by_class_and_once_by_time() {
        let figures = Figures::new();
        figures.answered(200, Duration::from_micros(900), Duration::from_micros(7));
        figures.answered(404, Duration::from_millis(1), Duration::ZERO);
        figures.answered(0, Duration::from_secs(100), Duration::ZERO);
        figures.answered(999, Duration::from_micros(1001), Duration::ZERO);

        let seen = figures.read();

        assert_eq!(seen.classes, [2, 0, 1, 0, 1, 0]);
        assert_eq!((seen.times[0], seen.times[1], seen.times[15]), (2, 1, 1));
        assert_eq!(seen.times.iter().sum::<u64>(), 4);
        assert_eq!(seen.waited_us, 7);
        assert_eq!(seen.time_us, 900 + 1000 + 100_000_000 + 1001);
    }

    #[test]
    fn gauges_are_cleared_and_never_wrap_and_counters_go_on() {
        let figures = Figures::new();
        figures.gave_up();
        figures.hold_unsent(10);
        figures.queue(2);

        figures.clear_gauges();
        figures.came_back();
        figures.release_unsent(10);
        figures.dequeue();

        let seen = figures.read();
        assert_eq!((seen.stuck, seen.unsent, seen.queued), (0, 0, 0));
        assert_eq!(seen.timed_out, 1);
    }
}
