//! An answer that is complete and that its client has not taken yet.
//!
//! The thread that made it has gone on to other requests; the reactor sends the rest as the client
//! takes it. Owns what has to be known about it until then, and the bound on the memory that such
//! answers hold together. Never sends anything itself.

use super::client_wait::{LOOKS, SLOW_BYTES_PER_SECOND, allowance};
use crate::scoreboard;
use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two looks whether a client has taken what the kernel holds for it.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_secs(4);
/// During a drain: how long a client that has to take all of it may take none of it.
const LAST_QUIET: Duration = Duration::from_secs(5);

/// What follows once the answer was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The end of the connection, for which the client has asked.
    Close,
    /// The end of a connection that the client meant to keep, so that it may send more.
    Linger,
    /// The next request, behind what the application left of this one's body.
    Next,
    /// The end of the connection, by which the client sees that the answer is not whole.
    Cut,
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
    /// Bytes of the client's that were thrown away meanwhile.
    pub(super) discarded: usize,
    since: Instant,
    /// When the client was last seen to have taken some of it.
    moved: Instant,
    /// When that was last looked at.
    looked: Instant,
    /// What the link had sent when this began, and the client had not confirmed.
    first: Sent,
    /// Bytes that were sent since then, and that the client is known to have taken.
    sent: u64,
    confirmed: u64,
    /// When all of it was with the kernel, if the end has to wait until the client has it.
    awaited_since: Option<Instant>,
    /// The client has it.
    is_taken: bool,
}

/// What has gone out on a connection at some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Bytes that the link has sent.
    pub(super) taken: u64,
    /// Bytes of them that the kernel holds, because the client has not taken them.
    pub(super) unconfirmed: u64,
}

impl Sending {
    pub(super) fn new(after: After, note: Option<Note>, reserved: u64, first: Sent) -> Self {
        let now = Instant::now();
        Self {
            after,
            note,
            reserved,
            discarded: 0,
            since: now,
            moved: now,
            looked: now,
            first,
            sent: 0,
            confirmed: 0,
            awaited_since: None,
            is_taken: false,
        }
    }

    /// All of it is with the kernel: from now on it is looked at, soon and then less and less often,
    /// until the client has it.
    pub(super) fn await_taking(&mut self) {
        let now = Instant::now();
        self.awaited_since.get_or_insert(now);
        self.looked = now;
    }

    /// The link has sent `taken` bytes altogether, so the client has made room for them.
    pub(super) fn note_progress(&mut self, taken: u64) {
        let sent = taken - self.first.taken;
        if sent > self.sent {
            self.sent = sent;
            self.moved = Instant::now();
        }
    }

    /// Looks at what the client has taken of what the kernel holds. The kernel asks for more only when
    /// a third of its buffer is free: by that alone, a client that takes little but takes it all the
    /// time is like one that takes nothing.
    pub(super) fn look(&mut self, now: Instant, sent: Sent) {
        self.looked = now;
        let gone = self.first.unconfirmed + sent.taken - self.first.taken;
        let confirmed = gone.saturating_sub(sent.unconfirmed);
        if confirmed > self.confirmed {
            self.confirmed = confirmed;
            self.moved = self.moved.max(now);
        }
        self.is_taken = self.awaited_since.is_some() && sent.unconfirmed == 0;
    }

    /// Bytes a second that the client has taken, as far as it was seen, where it is slow by that; it is
    /// given `grace` before it is called so.
    pub(super) fn slow_rate(&self, now: Instant, grace: Duration) -> Option<u64> {
        let age = now.saturating_duration_since(self.since);
        let millis = u64::try_from(age.as_millis()).ok()?;
        let rate = self.sent.max(self.confirmed).saturating_mul(1000) / millis.max(1);
        (age >= grace && rate < SLOW_BYTES_PER_SECOND).then_some(rate)
    }

    /// True once the client has taken what was waited for.
    pub(super) fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// When the client is given up in a drain that began then, if its end was waited for alone.
    pub(super) fn last_deadline(&self, began: Instant) -> Option<Instant> {
        self.awaited_since?;
        Some(self.moved.max(began) + LAST_QUIET)
    }

    /// When the client is to be looked at again, or is given up because it has taken nothing for too
    /// long, or too little.
    pub(super) fn deadline(&self, timeout: Option<Duration>) -> Option<Instant> {
        let end = timeout.and_then(|timeout| self.end(timeout));
        let Some(since) = self.awaited_since else {
            return Some(end?.min(self.looked.checked_add(timeout? / LOOKS)?));
        };
        let pause = (self.looked - since).clamp(FIRST_LOOK, LAST_LOOK);
        let look = self.looked + pause;
        Some(end.map_or(look, |end| end.min(look)))
    }

    fn end(&self, timeout: Duration) -> Option<Instant> {
        let bytes = self.sent.max(self.confirmed);
        let altogether = timeout.checked_add(allowance(bytes))?;
        let altogether = self.since.checked_add(altogether)?;
        Some(self.moved.checked_add(timeout)?.min(altogether))
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

    pub(super) fn most(&self) -> u64 {
        self.most
    }

    /// True when nearly all of it is held.
    pub(super) fn is_short(&self) -> bool {
        self.held() > self.most - self.most / 8
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

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn sending() -> Sending {
        let first = Sent {
            taken: 500,
            unconfirmed: 400,
        };
        Sending::new(After::Close, None, 0, first)
    }

    /// When it is given up, if nothing more is seen of its client.
    fn end(sending: &mut Sending, mut now: Instant, unconfirmed: u64) -> Instant {
        let taken = sending.first.taken + sending.sent;
        while let Some(deadline) = sending.deadline(Some(TIMEOUT))
            && deadline > now
        {
            now = deadline;
            sending.look(now, Sent { taken, unconfirmed });
        }
        now
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up_after_the_timeout() {
        let mut sending = sending();
        let since = sending.since;

        assert_eq!(end(&mut sending, since, 400), since + TIMEOUT);
        assert_eq!(sending.deadline(None), None);
        assert_eq!(sending.deadline(Some(Duration::MAX)), None);
    }

    #[test]
    fn a_client_that_keeps_taking_is_given_a_millisecond_for_each_byte() {
        let mut sending = sending();
        let since = sending.since;

        sending.note_progress(500 + 5_000);
        let end = end(&mut sending, since, 5_400);

        assert!(end >= since + TIMEOUT);
        assert!(end <= since + TIMEOUT + Duration::from_secs(5));
    }

    #[test]
    fn what_a_client_takes_of_the_kernels_buffer_counts() {
        let mut sending = sending();
        sending.first.unconfirmed = 1_000_000;
        let since = sending.since;
        for second in 1..=60 {
            let now = since + Duration::from_secs(second);
            let unconfirmed = 1_000_000 - second * 1_100;
            sending.look(
                now,
                Sent {
                    taken: 500,
                    unconfirmed,
                },
            );
            assert!(sending.deadline(Some(TIMEOUT)).unwrap() > now, "{second}");
        }

        let now = since + Duration::from_secs(60);
        assert_eq!(end(&mut sending, now, 1_000_000 - 66_000), now + TIMEOUT);
    }

    #[test]
    fn a_client_is_called_slow_by_what_it_takes_and_after_a_moment() {
        let mut sending = sending();
        sending.first.unconfirmed = 1_000_000;
        let since = sending.since;
        let after = |seconds| since + Duration::from_secs(seconds);

        let grace = Duration::from_secs(2);
        assert_eq!(sending.slow_rate(since, grace), None);
        assert_eq!(sending.slow_rate(after(2), grace), Some(0));
        let unconfirmed = 880_000;
        let taken = 500;
        sending.look(after(2), Sent { taken, unconfirmed });
        assert_eq!(sending.slow_rate(after(2), grace), Some(60_000));
        assert_eq!(sending.slow_rate(after(1), grace), None);
    }

    #[test]
    fn a_client_that_has_to_take_all_is_looked_at_until_it_has_or_is_given_up() {
        let mut sending = sending();
        let since = sending.since;
        sending.await_taking();
        assert_eq!(sending.deadline(None), Some(sending.looked + FIRST_LOOK));

        assert_eq!(end(&mut sending, since, 400), since + TIMEOUT);

        let (now, taken) = (sending.looked, 500);
        let unconfirmed = 1;
        sending.look(now, Sent { taken, unconfirmed });
        assert_eq!(sending.deadline(None), Some(now + LAST_LOOK));
        let unconfirmed = 0;
        assert!(!sending.is_taken());
        sending.look(now, Sent { taken, unconfirmed });
        assert!(sending.is_taken());
    }

    #[test]
    fn a_client_that_takes_less_than_the_least_rate_of_it_is_given_up() {
        let mut sending = sending();
        sending.first.unconfirmed = 1_000_000;
        let since = sending.since;
        let mut is_over = |second: u64| {
            let now = since + Duration::from_secs(second);
            let unconfirmed = 1_000_000 - second * 100;
            sending.look(
                now,
                Sent {
                    taken: 500,
                    unconfirmed,
                },
            );
            sending.deadline(Some(TIMEOUT)).unwrap() <= now
        };

        assert_eq!((1..60).find(|second| is_over(*second)), Some(12));
    }
}
