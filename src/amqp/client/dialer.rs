//! Which host of the URL is tried next, and after what pause.
//!
//! Owns the host that was connected with last, and how long the pauses between attempts have become.
//! Waits for nothing but the host that it tries.
//!
//! Rules: kombu's failover strategies and the retry options of `oslo_messaging_rabbit`.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::eventfd::EventFd;

use super::connection::Connection;
use super::{Host, Options};
use crate::amqp::heartbeat::Heartbeats;

/// See the head of this file.
pub(super) struct Dialer {
    /// The one that was connected with last.
    host: usize,
    has_connected: bool,
    pause: Duration,
}

impl Dialer {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            host: 0,
            has_connected: false,
            pause: options.pauses.first,
        }
    }

    /// A host has accepted a connection, now or before.
    pub(super) fn has_connected(&self) -> bool {
        self.has_connected
    }

    /// Tries each host once; what the last one said, and whether one refused for good.
    pub(super) fn connect(
        &mut self,
        options: &Options,
        heartbeats: &Heartbeats,
        bell: &EventFd,
        is_closing: &AtomicBool,
    ) -> Result<(Connection, String), (String, bool)> {
        let count = options.hosts.len();
        // As kombu, which leaves the host whose connection is lost: one that is being stopped, or has
        // no part in its cluster's majority, may accept the next one too.
        let first = match (self.has_connected, options.shuffles) {
            (false, _) => self.host,
            (true, false) => self.host + 1,
            (true, true) => self.host + 1 + below(count.saturating_sub(1).max(1)),
        };
        let mut reason = String::new();
        let mut is_permanent = false;
        for turn in 0..count {
            let index = (first + turn) % count;
            let Some(host) = options.hosts.get(index) else {
                continue;
            };
            let name = address(host);
            match Connection::open(options, host, heartbeats, bell) {
                Ok(connection) => {
                    self.host = index;
                    self.pause = options.pauses.first;
                    return Ok((connection, name));
                }
                Err(fault) => {
                    is_permanent |= fault.is_permanent();
                    reason = format!("{name}: {}", fault.text());
                }
            }
            if is_closing.load(Ordering::Acquire) {
                break;
            }
        }
        Err((reason, is_permanent))
    }

    /// A connection is used; true when there was one before.
    pub(super) fn begin(&mut self) -> bool {
        std::mem::replace(&mut self.has_connected, true)
    }

    /// Tells that the connection to *host* is lost; the pause before the next attempt.
    pub(super) fn after_loss(options: &Options, host: &str, reason: &str) -> Duration {
        let pause = delay(options, Duration::ZERO);
        tracing::error!(
            "AMQP server on {host} is unreachable: {reason}. Trying again in {:.1} seconds.",
            pause.as_secs_f64()
        );
        pause
    }

    /// Tells that no host could be connected with; the pause before the next round, which is longer
    /// each time.
    pub(super) fn after_failure(&mut self, options: &Options, reason: &str) -> Duration {
        let pauses = options.pauses;
        let pause = delay(options, self.pause);
        self.pause = (self.pause + pauses.step).min(pauses.longest.max(pauses.first));
        tracing::error!(
            "Connection failed: {reason} (retrying in {:.1} seconds)",
            pause.as_secs_f64()
        );
        pause
    }
}

fn delay(options: &Options, pause: Duration) -> Duration {
    pause + options.pauses.delay + options.pauses.splay.mul_f64(chance())
}

fn address(host: &Host) -> String {
    if host.name.contains(':') {
        format!("[{}]:{}", host.name, host.port)
    } else {
        format!("{}:{}", host.name, host.port)
    }
}

/// A number from 0 to 1, by chance; the standard library's keys of hash maps are.
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    #[expect(clippy::cast_precision_loss, reason = "32 of the bits are enough")]
    let fraction = (bits >> 32) as f64 / f64::from(u32::MAX);
    fraction
}

/// A number from 0 on that is less than *count*, by chance.
fn below(count: usize) -> usize {
    let bits = RandomState::new().build_hasher().finish();
    usize::try_from(bits % count.max(1) as u64).unwrap_or(0)
}
