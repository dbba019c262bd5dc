//! When the reactor has to look at a connection again although nothing happened to it.
//!
//! Owns instants and tokens, one entry at most for each connection; never touches a connection.
//! Lazy: an entry is only made when a connection's deadline comes before the one it already has, and
//! whoever takes an entry out looks at the connection for the true deadline. So a busy keep-alive
//! connection costs nothing here, and one that is closed leaves nothing behind.

use super::connection::Token;
use crate::locks::Mutex;
use std::collections::BTreeSet;
use std::time::Instant;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeSet<(Instant, Token)>,
    /// When the thread that waits will look here next; `None` while it does not wait.
    watched_until: Option<Watch>,
}

#[derive(Debug, Clone, Copy)]
enum Watch {
    Until(Instant),
    ForEver,
}

impl Deadlines {
    /// Adds an entry in place of the one at `earlier`. True when the waiting thread would look too
    /// late and must be interrupted.
    pub(super) fn add(&self, at: Instant, token: Token, earlier: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        if let Some(earlier) = earlier {
            state.entries.remove(&(earlier, token));
        }
        state.entries.insert((at, token));
        match state.watched_until {
            None => false,
            Some(Watch::ForEver) => true,
            Some(Watch::Until(until)) => at < until,
        }
    }

    /// Takes out the entry of a connection that is over.
    pub(super) fn remove(&self, at: Instant, token: Token) {
        self.state.lock().entries.remove(&(at, token));
    }

    /// The earliest entry; the caller is going to wait until then, or until `other`.
    pub(super) fn watch(&self, other: Option<Instant>) -> Option<Instant> {
        let mut state = self.state.lock();
        let first = state.entries.first().map(|(at, _)| *at);
        let until = match (first, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        state.watched_until = Some(until.map_or(Watch::ForEver, Watch::Until));
        until
    }

    /// Takes out what is due; the caller has stopped waiting.
    pub(super) fn due(&self, now: Instant, due: &mut Vec<Token>) {
        let mut state = self.state.lock();
        state.watched_until = None;
        while let Some((at, token)) = state.entries.first().copied() {
            if at > now {
                break;
            }
            state.entries.pop_first();
            due.push(token);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.state.lock().entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn entries_come_out_in_order_when_due() {
        let now = Instant::now();
        let deadlines = Deadlines::default();
        for seconds in [3, 1, 2] {
            deadlines.add(now + Duration::from_secs(seconds), Token(seconds), None);
        }

        let mut due = Vec::new();
        deadlines.due(now + Duration::from_secs(2), &mut due);

        assert_eq!(due, [Token(1), Token(2)]);
        assert_eq!(deadlines.watch(None), Some(now + Duration::from_secs(3)));
    }

    #[test]
    fn only_an_earlier_entry_interrupts_a_waiting_thread() {
        let now = Instant::now();
        let deadlines = Deadlines::default();
        assert!(!deadlines.add(now + Duration::from_secs(5), Token(1), None));
        deadlines.watch(None);

        assert!(!deadlines.add(now + Duration::from_secs(6), Token(2), None));
        assert!(deadlines.add(now + Duration::from_secs(4), Token(3), None));
    }

    #[test]
    fn any_entry_interrupts_a_thread_that_waits_for_ever() {
        let deadlines = Deadlines::default();
        assert_eq!(deadlines.watch(None), None);

        let later = Instant::now() + Duration::from_secs(900);
        assert!(deadlines.add(later, Token(1), None));
    }

    #[test]
    fn a_connection_that_is_over_or_looked_at_anew_leaves_no_entry_behind() {
        let now = Instant::now();
        let deadlines = Deadlines::default();
        for number in 0..10_000 {
            let at = now + Duration::from_secs(900);
            deadlines.add(at, Token(number), None);
            deadlines.add(now, Token(number), Some(at));
            deadlines.remove(now, Token(number));
        }

        assert_eq!(deadlines.len(), 0);
    }
}
