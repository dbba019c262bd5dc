//! When the reactor has to look at a connection again although nothing happened to it.
//!
//! Owns instants and tokens; never touches a connection. Lazy: an entry is only made when a
//! connection's deadline comes before the one it already has, and whoever takes an entry out looks
//! at the connection for the true deadline. So a busy keep-alive connection costs nothing here.

use super::connection::Token;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BinaryHeap<Reverse<(Instant, Token)>>,
    /// When the thread that waits will look here next; `None` while it does not wait.
    watched_until: Option<Watch>,
}

#[derive(Debug, Clone, Copy)]
enum Watch {
    Until(Instant),
    ForEver,
}

impl Deadlines {
    /// Adds an entry. True when the waiting thread would look too late and must be interrupted.
    pub(super) fn add(&self, at: Instant, token: Token) -> bool {
        let mut state = self.state.lock();
        state.entries.push(Reverse((at, token)));
        match state.watched_until {
            None => false,
            Some(Watch::ForEver) => true,
            Some(Watch::Until(until)) => at < until,
        }
    }

    /// The earliest entry; the caller is going to wait until then.
    pub(super) fn watch(&self) -> Option<Instant> {
        let mut state = self.state.lock();
        let first = state.entries.peek().map(|Reverse((at, _))| *at);
        state.watched_until = Some(first.map_or(Watch::ForEver, Watch::Until));
        first
    }

    /// Takes out what is due; the caller has stopped waiting.
    pub(super) fn due(&self, now: Instant, due: &mut Vec<Token>) {
        let mut state = self.state.lock();
        state.watched_until = None;
        while let Some(Reverse((at, token))) = state.entries.peek().copied() {
            if at > now {
                break;
            }
            state.entries.pop();
            due.push(token);
        }
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
            deadlines.add(now + Duration::from_secs(seconds), Token(seconds));
        }

        let mut due = Vec::new();
        deadlines.due(now + Duration::from_secs(2), &mut due);

        assert_eq!(due, [Token(1), Token(2)]);
        assert_eq!(deadlines.watch(), Some(now + Duration::from_secs(3)));
    }

    #[test]
    fn only_an_earlier_entry_interrupts_a_waiting_thread() {
        let now = Instant::now();
        let deadlines = Deadlines::default();
        assert!(!deadlines.add(now + Duration::from_secs(5), Token(1)));
        deadlines.watch();

        assert!(!deadlines.add(now + Duration::from_secs(6), Token(2)));
        assert!(deadlines.add(now + Duration::from_secs(4), Token(3)));
    }

    #[test]
    fn any_entry_interrupts_a_thread_that_waits_for_ever() {
        let deadlines = Deadlines::default();
        assert_eq!(deadlines.watch(), None);

        assert!(deadlines.add(Instant::now() + Duration::from_secs(900), Token(1)));
    }
}
