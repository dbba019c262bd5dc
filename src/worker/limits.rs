//! The limits of a worker's life: requests, time, memory, stuck threads.
//!
//! Owns the numbers and the one request for a successor that follows when the first of them is
//! reached. The worker serves on until that successor is ready and the parent says SIGTERM, so no
//! request is lost. Memory is looked at behind a request, and time by the watch thread; neither needs
//! the interpreter. Names: gunicorn's `max_requests`, uWSGI's `max-worker-lifetime` and
//! `reload-on-rss`. Memory as the kernel counts it: proc(5), `status` and `smaps_rollup`.

use super::ask_for_successor;
use crate::scoreboard::{self, Worn};
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

const NEVER: u64 = u64::MAX;

/// Nanoseconds between two looks at the memory: `status` costs microseconds, `smaps_rollup`
/// milliseconds.
const RSS_INTERVAL: u64 = 100_000_000;
const ROLLUP_INTERVAL: u64 = 2_000_000_000;

static ARE_SET: AtomicBool = AtomicBool::new(false);
static HAS_ASKED: AtomicBool = AtomicBool::new(false);
static SERVED: AtomicU64 = AtomicU64::new(0);
static REQUESTS: AtomicU64 = AtomicU64::new(NEVER);
static STUCK: AtomicU64 = AtomicU64::new(NEVER);
static BEGAN: AtomicU64 = AtomicU64::new(0);
static ENDS: AtomicU64 = AtomicU64::new(NEVER);
static MEMORY: AtomicU64 = AtomicU64::new(NEVER);
static MEMORY_KIND: AtomicU8 = AtomicU8::new(0);
static LOOK: AtomicU64 = AtomicU64::new(0);

/// Which memory of a process is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Memory {
    /// All of it that is resident, what it shares with others included.
    Rss = 0,
    /// What it shares counts in proportion.
    Pss = 1,
    /// What it shares does not count.
    Uss = 2,
}

/// After what a worker asks to be replaced; `None` leaves it as it is, which is never at first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Requests.
    pub requests: Option<u64>,
    /// Time from now on.
    pub lifetime: Option<Duration>,
    /// Bytes of memory.
    pub memory: Option<(Memory, u64)>,
    /// Threads in requests that were given up.
    pub stuck: Option<u64>,
}

/// Sets those limits of this process that are given, before it serves.
pub fn set(limits: Limits) {
    if let Some(requests) = limits.requests {
        REQUESTS.store(requests, Ordering::Relaxed);
    }
    if let Some(stuck) = limits.stuck {
        STUCK.store(stuck, Ordering::Relaxed);
    }
    if let Some(lifetime) = limits.lifetime {
        let now = scoreboard::now();
        let lifetime = u64::try_from(lifetime.as_nanos()).unwrap_or(NEVER);
        BEGAN.store(now, Ordering::Relaxed);
        ENDS.store(now.saturating_add(lifetime), Ordering::Relaxed);
    }
    if let Some((kind, bytes)) = limits.memory {
        MEMORY_KIND.store(kind as u8, Ordering::Relaxed);
        MEMORY.store(bytes, Ordering::Relaxed);
    }
    if limits.requests.is_some() || limits.memory.is_some() {
        ARE_SET.store(true, Ordering::Release);
    }
    super::wake_watch();
}

/// A request has ended.
pub fn request_ended() {
    if !ARE_SET.load(Ordering::Acquire) {
        return;
    }
    let served = SERVED.fetch_add(1, Ordering::Relaxed) + 1;
    if served >= REQUESTS.load(Ordering::Relaxed) {
        ask(Worn::Requests(served));
    }
    let most = MEMORY.load(Ordering::Relaxed);
    if most == NEVER || HAS_ASKED.load(Ordering::Relaxed) {
        return;
    }
    let (now, look) = (scoreboard::now(), LOOK.load(Ordering::Relaxed));
    let is_rss = MEMORY_KIND.load(Ordering::Relaxed) == Memory::Rss as u8;
    let next = now
        + if is_rss {
            RSS_INTERVAL
        } else {
            ROLLUP_INTERVAL
        };
    // One thread looks, the others go on.
    let (ok, err) = (Ordering::Relaxed, Ordering::Relaxed);
    if now >= look
        && LOOK.compare_exchange(look, next, ok, err).is_ok()
        && let Some(held) = held().filter(|held| *held >= most)
    {
        ask(Worn::Memory(held));
    }
}

/// So many threads are in requests that were given up.
pub fn threads_stuck(count: u64) {
    if count >= STUCK.load(Ordering::Relaxed) {
        ask(Worn::Stuck(count));
    }
}

/// Asks for a successor when the time is up; returns when to look again, of [`scoreboard::now`]'s
/// clock. Called by the watch thread.
pub(super) fn look(now: u64) -> u64 {
    let ends = ENDS.load(Ordering::Relaxed);
    if now < ends {
        return ends;
    }
    ENDS.store(NEVER, Ordering::Relaxed);
    let lived = Duration::from_nanos(now - BEGAN.load(Ordering::Relaxed));
    ask(Worn::Lifetime(lived.as_secs()));
    NEVER
}

fn ask(why: Worn) {
    if !HAS_ASKED.swap(true, Ordering::Relaxed) {
        ask_for_successor(why);
    }
}

/// Bytes of memory of this process.
fn held() -> Option<u64> {
    let (file, names): (_, &[&str]) = match MEMORY_KIND.load(Ordering::Relaxed) {
        kind if kind == Memory::Pss as u8 => ("/proc/self/smaps_rollup", &["Pss:"]),
        kind if kind == Memory::Uss as u8 => ("/proc/self/smaps_rollup", PRIVATE),
        _ => ("/proc/self/status", &["VmRSS:"]),
    };
    sum_of(&fs::read_to_string(file).ok()?, names)
}

const PRIVATE: &[&str] = &["Private_Clean:", "Private_Dirty:", "Private_Hugetlb:"];

/// Bytes in the lines of those names.
fn sum_of(text: &str, names: &[&str]) -> Option<u64> {
    let mut found = None;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next().is_some_and(|name| names.contains(&name)) {
            let kilobytes: u64 = words.next()?.parse().ok()?;
            found = Some(found.unwrap_or(0) + kilobytes * 1024);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process_is_found_in_each_way() {
        assert!(held().unwrap() > 100_000);
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let (pss, uss) = (sum_of(&rollup, &["Pss:"]), sum_of(&rollup, PRIVATE));
        assert!(pss >= uss && uss > Some(10_000), "{rollup}");
    }

    #[test]
    fn private_pages_are_summed_up() {
        let text = "Rss: 90 kB\nPss: 50 kB\nPrivate_Clean: 10 kB\nPrivate_Dirty: 20 kB\n";

        assert_eq!(sum_of(text, &["Pss:"]), Some(50 * 1024));
        assert_eq!(sum_of(text, PRIVATE), Some(30 * 1024));
        assert_eq!(sum_of("", PRIVATE), None);
    }
}
