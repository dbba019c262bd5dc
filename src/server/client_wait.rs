//! How a thread waits for its client, and what is called too slow.
//!
//! Owns the rule by which a client that moves too little is given up: nothing for the timeout, or
//! fewer than [`BYTES_PER_MS`] in all the time that threads have waited for it. Never reads or writes
//! a byte. Which of several slow clients have to go because others wait is decided elsewhere, in
//! `slow_clients` and `reactor::making_memory`.

use super::socket::{self, Socket};
use nix::poll::PollFlags;
use std::time::{Duration, Instant};

/// The slowest client that is served for longer than `client_socket_timeout`.
const BYTES_PER_MS: u64 = 1;
/// How often a client that seems to take nothing is looked at before it is given up.
pub(super) const LOOKS: u32 = 4;
/// A client that moves at least this much is not slow, whatever it holds: half a megabit a second.
pub(super) const SLOW_BYTES_PER_SECOND: u64 = 64 << 10;
/// A client that moves less has all but stopped.
pub(super) const STALLED_BYTES_PER_SECOND: u64 = 4 << 10;
/// How long a client is looked at before it is called slow, where there are many.
pub(super) const PRESSED_GRACE: Duration = Duration::from_millis(400);

/// How much longer than the timeout a client may take that has moved so much.
pub(super) const fn allowance(bytes: u64) -> Duration {
    Duration::from_millis(bytes / BYTES_PER_MS)
}

/// Bytes a second.
pub(super) fn rate(bytes: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    bytes.saturating_mul(1000) / millis.max(1)
}

/// What a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The client sends.
    Receiving,
    /// The client takes: what the kernel holds for it is told apart from what it has confirmed.
    Sending,
}

/// How long an exchange has waited for its client in one direction, and what has moved in that time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waited {
    pub(super) time: Duration,
    pub(super) bytes: u64,
}

impl Waited {
    /// Blocks until the socket is ready for `events`; false when the client is to be given up. Adds what
    /// the client has taken meanwhile.
    pub(super) fn wait(
        &mut self,
        socket: &Socket,
        events: PollFlags,
        direction: Direction,
        timeout: Option<Duration>,
    ) -> bool {
        let Some(timeout) = timeout else {
            return socket::wait(socket, events, None).unwrap_or(false);
        };
        // A client that takes some of the kernel's buffer does not make the socket ready by that.
        let (pause, held) = match direction {
            Direction::Receiving => (timeout, 0),
            Direction::Sending => (timeout / LOOKS, socket::unconfirmed(socket)),
        };
        let began = Instant::now();
        let (mut least, mut moved, mut now) = (held, began, began);
        let is_ready = loop {
            let altogether = timeout.saturating_add(allowance(self.bytes + held - least));
            let left = altogether
                .saturating_sub(self.time + (now - began))
                .min(timeout.saturating_sub(now - moved));
            if left.is_zero() {
                break false;
            }
            match socket::wait(socket, events, Some(left.min(pause))) {
                Ok(false) => {}
                Ok(true) => break true,
                Err(_) => break false,
            }
            now = Instant::now();
            if direction == Direction::Sending {
                let unconfirmed = socket::unconfirmed(socket);
                if unconfirmed < least {
                    (least, moved) = (unconfirmed, now);
                }
            }
        };
        self.bytes += held - least;
        is_ready
    }
}

/// So much of the waiting for a client counts when it is asked whether it is slow, and twice that
/// at most, so that what it has moved long ago does not make up for what it does now.
const LATELY: Duration = Duration::from_secs(2);

/// What an exchange has waited lately.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lately {
    /// What it had waited in all when what counts began, and the same for when that ends.
    began: Waited,
    next: Waited,
}

impl Lately {
    /// What counts of all that an exchange has waited so far.
    pub(super) fn of(&mut self, waited: Waited) -> Waited {
        if waited.time.saturating_sub(self.next.time) >= LATELY {
            self.began = std::mem::replace(&mut self.next, waited);
        }
        Waited {
            time: waited.time.saturating_sub(self.began.time),
            bytes: waited.bytes.saturating_sub(self.began.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes a second that count after so many waits of that time with so many bytes each.
    fn rate_after(mut waited: Waited, waits: u32, millis: u64, bytes: u64) -> u64 {
        let mut lately = Lately::default();
        for _ in 0..waits {
            lately.of(waited);
            waited.time += Duration::from_millis(millis);
            waited.bytes += bytes;
        }
        let Waited { time, bytes } = lately.of(waited);
        rate(bytes, time)
    }

    #[test]
    fn what_was_moved_long_ago_does_not_make_up_for_a_byte_now_and_then() {
        let quick = Waited {
            time: Duration::from_millis(100),
            bytes: 1 << 30,
        };

        assert!(rate_after(quick, 1, 1900, 1) > SLOW_BYTES_PER_SECOND);
        for waits in 5..20 {
            assert!(rate_after(quick, waits, 1900, 1) < 10, "{waits} waits");
        }
    }

    #[test]
    fn a_client_that_moves_as_much_all_the_time_is_as_quick_all_the_time() {
        for waits in [1, 9, 30, 100, 1000] {
            let rate = rate_after(Waited::default(), waits, 300, 30_000);
            assert_eq!(rate, 100_000, "{waits} waits");
        }
    }
}
