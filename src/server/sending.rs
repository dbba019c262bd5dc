//! An answer that is complete and that its client has not taken yet.
//!
//! The thread that made it has gone on to other requests; the reactor sends the rest as the client
//! takes it. Owns what has to be known about it until then, and the bound on the memory that such
//! answers hold together. Never sends anything itself.

use crate::scoreboard;
use crate::wsgi::Delivery;
use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The slowest client that is served for longer than `client_socket_timeout`.
pub(super) const BYTES_PER_MS: u64 = 1;

/// What follows once the answer was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The end of the connection, for which the client has asked.
    Close,
    /// The end of a connection that the client meant to keep, so that it may send more.
    Linger,
    /// The next request, behind what the application left of this one's body.
    Next,
}

/// What the handler wants back once it is known what became of the answer.
pub(super) struct Note {
    pub(super) value: Box<dyn Any + Send>,
    /// Bytes of the body that were put into the link.
    pub(super) body: u64,
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Note")
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) after: After,
    pub(super) note: Option<Note>,
    /// Memory that was reserved for it; given back when it is over.
    pub(super) reserved: u64,
    /// Only the end of the connection delimits the answer: a cut must be a reset.
    pub(super) resets: bool,
    /// Bytes of the client's that were thrown away meanwhile.
    pub(super) discarded: usize,
    since: Instant,
    /// When the kernel took some of it last.
    moved: Instant,
    /// What the link had sent when this began, and at that time.
    first: u64,
    last: u64,
}

impl Sending {
    pub(super) fn new(
        after: After,
        note: Option<Note>,
        reserved: u64,
        resets: bool,
        taken: u64,
    ) -> Self {
        let now = Instant::now();
        Self {
            after,
            note,
            reserved,
            resets,
            discarded: 0,
            since: now,
            moved: now,
            first: taken,
            last: taken,
        }
    }

    /// The link has sent `taken` bytes altogether.
    pub(super) fn note_progress(&mut self, taken: u64) {
        if taken > self.last {
            self.last = taken;
            self.moved = Instant::now();
        }
    }

    /// When a client is given up that takes nothing more.
    pub(super) fn deadline(&self, timeout: Option<Duration>) -> Option<Instant> {
        let timeout = timeout?;
        let allowance = Duration::from_millis((self.last - self.first) / BYTES_PER_MS);
        let altogether = self.since.checked_add(timeout.checked_add(allowance)?)?;
        Some(self.moved.checked_add(timeout)?.min(altogether))
    }
}

/// What became of an answer of which `unsent` bytes are left.
pub(super) fn delivery(body: u64, unsent: u64) -> Delivery {
    Delivery {
        sent: body.saturating_sub(unsent),
        is_whole: unsent == 0,
        is_file_short: false,
    }
}

/// Memory that unsent answers hold together, and how much they may.
#[derive(Debug)]
pub(super) struct UnsentMemory {
    held: AtomicU64,
    most: u64,
}

impl UnsentMemory {
    pub(super) fn new(most: u64) -> Self {
        Self {
            held: AtomicU64::new(0),
            most,
        }
    }

    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Reserves that many bytes; false when that would be too many.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        self.held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|sum| *sum <= self.most)
            })
            .is_ok()
            .then(|| scoreboard::current().figures().hold_unsent(bytes))
            .is_some()
    }

    pub(super) fn release(&self, bytes: u64) {
        if bytes > 0 {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            scoreboard::current().figures().release_unsent(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_reserved_up_to_its_bound_and_no_further() {
        let memory = UnsentMemory::new(100);

        assert!(memory.reserve(60));
        assert!(!memory.reserve(41));
        assert!(memory.reserve(40));
        memory.release(60);
        assert_eq!(memory.held(), 40);
        assert!(!memory.reserve(u64::MAX));
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up_after_the_timeout() {
        let sending = Sending::new(After::Close, None, 0, false, 500);
        let timeout = Duration::from_secs(10);

        let deadline = sending.deadline(Some(timeout)).unwrap();

        assert_eq!(deadline, sending.since + timeout);
        assert_eq!(sending.deadline(None), None);
        assert_eq!(sending.deadline(Some(Duration::MAX)), None);
    }

    #[test]
    fn a_client_that_keeps_taking_is_given_a_millisecond_for_each_byte() {
        let mut sending = Sending::new(After::Next, None, 0, false, 500);
        let timeout = Duration::from_secs(10);

        sending.note_progress(500 + 5_000);
        let deadline = sending.deadline(Some(timeout)).unwrap();

        assert!(deadline >= sending.since + timeout);
        assert!(deadline <= sending.since + timeout + Duration::from_secs(5));
    }
}
