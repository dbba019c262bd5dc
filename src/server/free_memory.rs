//! Memory that connections have left behind goes back to the system.
//!
//! Owns one call of the C library, and the least time between two of them. What many connections held
//! at once (heads, beginnings of bodies) lies in blocks that are too small to be mapped by themselves, and
//! in an arena for each thread that made some: the C library keeps them for later, which for a burst of
//! clients never comes. Never decides whether there is something to give back. Rules: `malloc_trim(3)`;
//! other C libraries than glibc have no such call, and musl needs none.
#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "the call is the C library's alone")
)]

use std::time::{Duration, Instant};

/// The least time between two calls: clients that come in bursts would have each burst pay for one.
const LEAST_DISTANCE: Duration = Duration::from_secs(10);

/// When memory was given back last.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
}

impl Pace {
    /// When memory may be given back: `None` is now, which counts from then on.
    pub(super) fn not_before(&mut self, now: Instant) -> Option<Instant> {
        let at = self.last.map(|last| last + LEAST_DISTANCE);
        if at.is_none_or(|at| at <= now) {
            self.last = Some(now);
            return None;
        }
        at
    }
}

/// Gives free memory back; takes some milliseconds for a hundred megabytes.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number, locks what it changes, and frees nothing that is in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_in_a_row_have_memory_given_back_once_in_a_while() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut given = 0;

        for burst in 0..100 {
            let now = start + burst * LEAST_DISTANCE / 10;
            given += u32::from(pace.not_before(now).is_none());
        }

        assert_eq!(given, 10);
    }

    #[test]
    fn what_comes_too_early_is_told_when_to_come_back() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.not_before(start), None);

        let later = pace.not_before(start + LEAST_DISTANCE / 2);

        assert_eq!(later, Some(start + LEAST_DISTANCE));
        assert_eq!(pace.not_before(start + LEAST_DISTANCE), None);
    }
}
