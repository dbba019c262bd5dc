//! What is counted of the connections that one worker itself has with message brokers.
//!
//! Owns the counters and gauges; [`crate::amqp::client`] counts in them. As in [`super::row`],
//! everything is a relaxed atomic that a killed worker may leave as it is. Counters go on when a row
//! is assigned again, so that the sum over a slot never goes down; gauges begin at 0.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// See the module's text.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct BrokerFigures {
    sent: AtomicU64,
    resent: AtomicU64,
    reconnects: AtomicU64,
    connections: AtomicU32,
    channels: AtomicU32,
    queues: AtomicU32,
    unconfirmed: AtomicU32,
}

/// How many of each a worker, or one client of it, has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerGauges {
    /// Connections that are agreed on.
    pub connections: u32,
    /// Channels that are used on them.
    pub channels: u32,
    /// Queues that are consumed from.
    pub queues: u32,
    /// Messages that were published and that the broker has not confirmed yet.
    pub unconfirmed: u32,
}

/// A copy of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerSnapshot {
    /// Messages that were published, those that were published again included.
    pub sent: u64,
    /// Messages that were published again: their confirm did not come, or no queue took them.
    pub resent: u64,
    /// Connections that took the place of one that was lost.
    pub reconnects: u64,
    /// Of this process.
    pub gauges: BrokerGauges,
}

impl BrokerFigures {
    pub(super) const fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            resent: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            connections: AtomicU32::new(0),
            channels: AtomicU32::new(0),
            queues: AtomicU32::new(0),
            unconfirmed: AtomicU32::new(0),
        }
    }

    /// A message was published, for the first time or again.
    pub fn published(&self, is_again: bool) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.resent
            .fetch_add(u64::from(is_again), Ordering::Relaxed);
    }

    /// A connection has taken the place of one that was lost.
    pub fn reconnected(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    /// One client, which had `before`, has `after` now.
    pub fn change(&self, before: BrokerGauges, after: BrokerGauges) {
        for (gauge, before, after) in [
            (&self.connections, before.connections, after.connections),
            (&self.channels, before.channels, after.channels),
            (&self.queues, before.queues, after.queues),
            (&self.unconfirmed, before.unconfirmed, after.unconfirmed),
        ] {
            if after > before {
                gauge.fetch_add(after - before, Ordering::Relaxed);
            } else if after < before {
                // Never below 0: the parent clears the gauges of a worker that it has reaped.
                let fewer = before - after;
                let _ = gauge.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    Some(count.saturating_sub(fewer))
                });
            }
        }
    }

    pub(super) fn clear_gauges(&self) {
        for gauge in [
            &self.connections,
            &self.channels,
            &self.queues,
            &self.unconfirmed,
        ] {
            gauge.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn read(&self) -> BrokerSnapshot {
        BrokerSnapshot {
            sent: self.sent.load(Ordering::Relaxed),
            resent: self.resent.load(Ordering::Relaxed),
            reconnects: self.reconnects.load(Ordering::Relaxed),
            gauges: BrokerGauges {
                connections: self.connections.load(Ordering::Relaxed),
                channels: self.channels.load(Ordering::Relaxed),
                queues: self.queues.load(Ordering::Relaxed),
                unconfirmed: self.unconfirmed.load(Ordering::Relaxed),
            },
        }
    }
}

impl BrokerSnapshot {
    /// Adds the counters of another worker of the same slot; the gauges stay this one's.
    pub(super) fn add_counters(&mut self, other: &Self) {
        self.sent += other.sent;
        self.resent += other.resent;
        self.reconnects += other.reconnects;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_follow_each_client_and_never_wrap_and_counters_go_on() {
        let figures = BrokerFigures::new();
        let one = BrokerGauges {
            connections: 1,
            channels: 3,
            queues: 1,
            unconfirmed: 7,
        };
        let busy = BrokerGauges {
            unconfirmed: 9,
            ..one
        };
        figures.change(BrokerGauges::default(), one);
        figures.change(BrokerGauges::default(), one);
        figures.change(one, busy);
        figures.published(false);
        figures.published(true);
        figures.reconnected();

        let seen = figures.read();
        assert_eq!((seen.gauges.connections, seen.gauges.unconfirmed), (2, 16));
        assert_eq!((seen.sent, seen.resent, seen.reconnects), (2, 1, 1));

        figures.clear_gauges();
        figures.change(busy, BrokerGauges::default());
        let seen = figures.read();
        assert_eq!(seen.gauges, BrokerGauges::default());
        assert_eq!(seen.sent, 2);
    }
}
