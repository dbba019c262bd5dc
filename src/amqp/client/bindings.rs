//! Which queues have taken a client's requests, and which of them are bound no more.
//!
//! Owns what a client knows of the bindings that servers have made. A server is not told when an operator
//! deletes an exchange, and with it all its bindings; a client is, by what comes back. Binds nothing, and
//! knows nothing of a binding by which nothing of its own has got to a queue.
//!
//! Rules: `declare_topic_consumer` of `oslo_messaging/_drivers/impl_rabbit.py`: a queue is bound by its
//! own name.

use std::collections::{HashMap, HashSet};

/// Places that are remembered; a client that sends to more of them knows nothing of the rest.
const MOST: usize = 4096;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    /// Routing keys by exchange.
    known: HashMap<String, HashSet<String>>,
    count: usize,
    /// Exchanges and routing keys: they were known, and are to be made again.
    missing: Vec<(String, String)>,
}

impl Bindings {
    /// A queue has taken what was sent there.
    pub(super) fn note(&mut self, exchange: &str, key: &str) {
        if self.known.get(exchange).is_some_and(|it| it.contains(key)) || self.count >= MOST {
            return;
        }
        let keys = self.known.entry(exchange.to_owned()).or_default();
        keys.insert(key.to_owned());
        self.count += 1;
    }

    /// No queue has taken what was sent there; whether one did before, so that it is to be bound again.
    pub(super) fn lose(&mut self, exchange: &str, key: &str) -> bool {
        if self.is_missing(exchange, key) {
            return true;
        }
        let was_known = self
            .known
            .get_mut(exchange)
            .is_some_and(|it| it.remove(key));
        if was_known {
            self.count -= 1;
            self.missing.push((exchange.to_owned(), key.to_owned()));
        }
        was_known
    }

    /// Nothing is sent there before the queue is bound again.
    pub(super) fn is_missing(&self, exchange: &str, key: &str) -> bool {
        let mut missing = self.missing.iter();
        missing.any(|(name, other)| name == exchange && other == key)
    }

    /// The broker has bound the queue again, or would not.
    pub(super) fn settle(&mut self, exchange: &str, key: &str, is_bound: bool) {
        self.missing
            .retain(|(name, other)| name != exchange || other != key);
        if is_bound {
            self.note(exchange, key);
        }
    }

    /// The connection is gone: what was missing is seen again when something comes back.
    pub(super) fn restart(&mut self) {
        for (exchange, key) in std::mem::take(&mut self.missing) {
            self.note(&exchange, &key);
        }
    }
}
