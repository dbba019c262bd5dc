//! Which connection is closed for a new one when as many are open as may be.
//!
//! Owns the count of the process's connections and the order in which they give way: those on which
//! nothing is under way, those on which the server has said its last word, clients that take long to
//! say what they want, and clients that are slow to take what they have asked for. Never closes one
//! whose request is complete and has no whole answer yet: docs/server.md, "Accepting".

use super::making_memory::Slow;
use super::{Job, Reactor};
use crate::locks::forks;
use crate::server::client_wait::{SLOW_BYTES_PER_SECOND, rate};
use crate::server::connection::{Connection, Phase};
use crate::server::received_request::ReceivedRequest;
use crate::server::sending::Sending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::debug;

/// How long a connection must have been idle before it gives way: a request may be on its way.
const IDLE_ENOUGH: Duration = Duration::from_millis(250);
/// How long a request may take to come, an answer to be taken, and a client to hear the last word,
/// before it gives way.
const SLOW_ENOUGH: Duration = Duration::from_secs(2);

/// How often it is looked at who takes an answer slowly, at most.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Who takes an answer slowly, as it was seen last.
#[derive(Debug, Default)]
pub(super) struct LookAtReaders {
    /// When to look again; at once where that is none.
    next: Option<Instant>,
    slowest_last: Slow,
}

/// Which process it is, by its number of [`forks`], and below that how many connections all its servers
/// have. A child has the descriptors of those of its parent, but none of the connections. Each
/// connection asks several times, so the process is not asked for its pid: that is a system call.
static OPEN: AtomicU64 = AtomicU64::new(0);
const PROCESS_SHIFT: u32 = 32;

/// Connections of this process, of such a word.
fn own(word: u64) -> u64 {
    let process = u64::from(forks()) << PROCESS_SHIFT;
    word.checked_sub(process)
        .filter(|count| count >> PROCESS_SHIFT == 0)
        .unwrap_or(0)
}

/// Changes the number of this process's connections.
fn count(change: impl Fn(u64) -> u64) {
    let process = u64::from(forks()) << PROCESS_SHIFT;
    let changed = |word| Some(process | change(own(word)));
    let _ = OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed);
}

/// Why a connection may give way, the first to go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Idle,
    /// Everything was said; the client has not closed its end.
    Ended,
    /// A head or the beginning of a body is not complete, or an upload comes slowly that waits for
    /// its turn.
    Slow,
}

/// Why *connection* may give way, and since when; `None` where it may not.
fn reason(connection: &Connection, now: Instant) -> Option<(Reason, Instant)> {
    let (reason, since, enough) = match &connection.phase {
        Phase::Head { since: None } => (Reason::Idle, connection.active, IDLE_ENOUGH),
        Phase::Discarding { since, .. } => (Reason::Ended, *since, SLOW_ENOUGH),
        Phase::Lingering(lingering) => (Reason::Ended, lingering.since, SLOW_ENOUGH),
        Phase::Head { since: Some(since) } => (Reason::Slow, *since, SLOW_ENOUGH),
        Phase::Collecting(received) if is_slow(received, now) => {
            (Reason::Slow, received.since, SLOW_ENOUGH)
        }
        Phase::Collecting(_) | Phase::Producing | Phase::Sending(_) | Phase::Refused { .. } => {
            return None;
        }
    };
    (since + enough <= now).then_some((reason, since))
}

/// True where the client takes long to send a body: the beginning of it, or where that is here and
/// no thread is there for it yet, the rest.
fn is_slow(received: &ReceivedRequest, now: Instant) -> bool {
    let age = now.saturating_duration_since(received.since);
    received.waiting.as_ref().is_none_or(|waiting| {
        !waiting.is_full() && rate(received.collected as u64, age) < SLOW_BYTES_PER_SECOND
    })
}

impl Reactor {
    /// True while as many connections are open as may be.
    pub(super) fn is_full(&self) -> bool {
        own(OPEN.load(Ordering::Relaxed)) >= self.most_connections as u64
    }

    /// Closes a connection for another one, which waits; false when none gives way. What became of an
    /// answer that had to is among `jobs` then.
    pub(super) fn make_room(&self, jobs: &mut Vec<Job>) -> bool {
        let most = self.most_connections;
        let now = Instant::now();
        let found = {
            let mut slots = self.slots.lock();
            let first = slots
                .parked()
                .filter_map(|connection| Some((reason(connection, now)?, connection.token)))
                .min();
            first.and_then(|((reason, since), token)| {
                Some((reason, since, slots.find(token)?.connection.take()?))
            })
        };
        let Some((reason, since, mut connection)) = found else {
            return self.cut_off_the_slowest_reader(now, jobs);
        };
        debug!(server = %self.settings.name, peer = %connection.endpoints.shown_peer(), most, ?reason, for_s = now.saturating_duration_since(since).as_secs_f32(), "closed a connection for a new one: as many are open as may be");
        connection.link.finish();
        self.drop_connection(connection);
        true
    }

    /// The same for a client that takes its answer slowly, or not at all. All of them are looked at for
    /// it, a call for each, so this comes last, and one look serves for a while.
    fn cut_off_the_slowest_reader(&self, now: Instant, jobs: &mut Vec<Job>) -> bool {
        let mut look = self.look_at_readers.lock();
        if look.next.is_none_or(|next| now >= next) {
            look.slowest_last = self.slow_readers(now, SLOW_ENOUGH);
            look.slowest_last
                .sort_unstable_by(|one, other| other.cmp(one));
            look.next = Some(Instant::now() + LOOK_EVERY);
        }
        // One whose answer has ended since, or that is served at this moment, is passed over.
        let is_slow = |sending: &Sending| sending.slow_rate(now, SLOW_ENOUGH).is_some();
        let found = std::iter::from_fn(|| look.slowest_last.pop())
            .find_map(|(rate, token)| Some((rate, self.take_sending_if(token, is_slow)?)));
        drop(look);
        let Some((rate, (connection, sending))) = found else {
            return false;
        };
        debug!(server = %self.settings.name, peer = %connection.endpoints.shown_peer(), most = self.most_connections, bytes_per_second = rate, "cut off a client that takes its answer slowly for a new connection: as many are open as may be");
        self.cut(connection, *sending, jobs);
        true
    }

    /// A connection is open.
    pub(super) fn note_opened() {
        count(|open| open + 1);
    }

    /// A connection is closed.
    pub(super) fn note_closed() {
        count(|open| open.saturating_sub(1));
    }
}
