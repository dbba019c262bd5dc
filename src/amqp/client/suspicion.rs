//! Messages over which connections end: which of them are sent alone, and when one is given up.
//!
//! Owns what the end of a connection says of the messages that were under way on it, and whose turn
//! it is while some of them are sent one by one. Sends nothing, and knows no message.
//!
//! Rules: AMQP 0-9-1, reply codes; the same as for the shared reply connection of
//! `python/osloxide/messaging/rabbit/reply_connection.py` (docs/rpc.md).

use std::time::{Duration, Instant};

use super::connection::Fault;
use super::methods::{BASIC_PUBLISH, CONNECTION_FORCED};

/// Connections that may end with a message under way beside others; then it is sent alone.
const MOST_SHARED: u32 = 3;
/// Connections that may end with a message under way that was sent alone; then it is given up.
const MOST_ALONE: u32 = 3;
/// How long others wait for a message that is sent alone, and it for those before it. A broker may
/// be unable to confirm for as long as it likes, a memory alarm or a queue without a majority for
/// one; what ends connections mostly does so at once.
pub(super) const HOLD: Duration = Duration::from_secs(5);
/// What the same message would meet again. Of other codes 320 is a broker that stops, or an
/// operator; the rest may pass.
const PERMANENT: [u16; 10] = [311, 402, 403, 406, 501, 502, 503, 505, 530, 540];

/// How a connection has ended, for what was under way on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The broker says that it is no matter of a message: it stops, an operator has closed it, or something
    /// was declared that it refuses.
    Forced,
    /// Without a word, or with one that says nothing of a message. One of them may be why.
    Unexplained,
    /// One of them is why.
    Refusal,
}

impl Loss {
    pub(super) fn of(fault: &Fault) -> Self {
        match fault {
            Fault::Closed(refusal) if refusal.code == CONNECTION_FORCED => Self::Forced,
            Fault::Closed(refusal) if refusal.is_of_another_method(BASIC_PUBLISH) => Self::Forced,
            Fault::Closed(refusal) if PERMANENT.contains(&refusal.code) => Self::Refusal,
            Fault::Closed(_)
            | Fault::Lost(_)
            | Fault::Refused(_)
            | Fault::Violation(_)
            | Fault::Unusable(_) => Self::Unexplained,
        }
    }
}

/// What is held against one message.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    /// Connections that have ended with it under way.
    losses: u32,
    /// One of them because of it, or of another one that was under way there.
    was_refused: bool,
    /// Those of them on which it was sent alone.
    losses_alone: u32,
    /// It is under way, and nothing else is.
    is_alone: bool,
}

impl Suspicion {
    /// It is sent while nothing else is under way, and nothing else is until the broker has settled
    /// it.
    pub(super) fn goes_alone(&self) -> bool {
        self.was_refused || self.losses >= MOST_SHARED
    }

    /// Nothing but it is under way; or it was, and others are from now on.
    pub(super) fn set_alone(&mut self, is_alone: bool) {
        self.is_alone = is_alone;
    }

    /// A connection has ended with it under way; false where it is given up.
    pub(super) fn lose(&mut self, loss: Loss) -> bool {
        let was_alone = std::mem::take(&mut self.is_alone);
        if loss == Loss::Forced {
            return true;
        }
        self.losses += 1;
        self.was_refused |= loss == Loss::Refusal;
        self.losses_alone += u32::from(was_alone);
        !was_alone || (loss != Loss::Refusal && self.losses_alone < MOST_ALONE)
    }

    /// How many connections have ended with it under way.
    pub(super) fn losses(&self) -> u32 {
        self.losses
    }
}

/// What may be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Turn {
    /// All that is under no suspicion.
    #[default]
    Others,
    /// Nothing, until what is under way is settled, or that time.
    Nobody(Instant),
    /// Nothing more than the message of this number, until it is settled, or that time. It is alone
    /// only where what was under way before is settled.
    Alone(u64, Instant),
}

impl Turn {
    /// When it ends though nothing arrives.
    pub(super) fn until(self) -> Option<Instant> {
        match self {
            Self::Others => None,
            Self::Nobody(until) | Self::Alone(_, until) => Some(until),
        }
    }
}
