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
pub(super) const BYTES_PER_MS: u64 = 1;
/// How often a client that seems to take nothing is looked at before it is given up.
pub(super) const LOOKS: u32 = 4;
/// A client that moves at least this much is not slow, whatever it holds: half a megabit a second.
pub(super) const SLOW_BYTES_PER_SECOND: u64 = 64 << 10;
/// How long a client is looked at before it is called slow, where there are many.
pub(super) const PRESSED_GRACE: Duration = Duration::from_millis(400);

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
            let allowance = Duration::from_millis((self.bytes + held - least) / BYTES_PER_MS);
            let altogether = timeout.saturating_add(allowance);
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
