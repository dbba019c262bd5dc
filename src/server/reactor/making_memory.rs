//! Which answers are cut off when the memory for those that clients have not taken is used up.
//!
//! A thread whose answer finds no memory waits for its client. Owns the rule by which slow clients
//! give way to that answer instead: only while requests wait for a thread, and clients hold their
//! share of the threads already. docs/server.md, "The life of a connection".

use super::Reactor;
use crate::server::client_wait::PRESSED_GRACE;
use crate::server::connection::{Connection, Phase, Token};
use crate::server::sending::Sending;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::debug;

/// How long no other answer is looked for after none was found that could give way.
const PAUSE: Duration = Duration::from_millis(100);

/// Bytes a second that a client takes, and its connection.
pub(super) type Slow = Vec<(u64, Token)>;

impl Reactor {
    /// Makes sure that `bytes` more may be held; false when nobody gives way.
    pub(super) fn cut_off_slow_readers(&self, bytes: u64) -> bool {
        let is_needed = bytes <= self.unsent.most()
            && self.slow_clients.have_their_share()
            && (self.queued.load(Ordering::Relaxed) > 0 || self.has_left_some());
        let now = Instant::now();
        if !is_needed || self.next_making.lock().is_some_and(|at| now < at) {
            return false;
        }
        // More than is asked for: all answers are looked at for it.
        let wanted = bytes.max(self.unsent.most() / 8);
        let mut freed = 0;
        let (mut jobs, mut count) = (Vec::new(), 0);
        // The slowest first.
        let mut slow = self.slow_readers(now, PRESSED_GRACE);
        slow.sort_unstable();
        for (_, token) in slow {
            if freed >= wanted {
                break;
            }
            if let Some((connection, sending)) = self.take_sending_if(token, |it| it.reserved > 0) {
                freed += sending.reserved;
                count += 1;
                self.cut(connection, *sending, &mut jobs);
            }
        }
        *self.next_making.lock() = (freed == 0).then(|| now + PAUSE);
        if count > 0 {
            debug!(server = %self.settings.name, count, bytes = freed, "cut off clients that take their answers slowly: the memory for such answers is used up, and requests wait for a thread");
        }
        // What became of the answers is said by the leader: this thread is in the middle of one.
        for job in jobs {
            self.defer(job);
        }
        freed > 0
    }

    /// Clients that have taken their answers slowly for `grace` at least.
    pub(super) fn slow_readers(&self, now: Instant, grace: Duration) -> Slow {
        let mut slots = self.slots.lock();
        let slow = slots.parked().filter_map(|connection| {
            connection.look(now);
            let Phase::Sending(sending) = &connection.phase else {
                return None;
            };
            Some((sending.slow_rate(now, grace)?, connection.token))
        });
        slow.collect()
    }

    /// Takes a connection out whose client takes the rest of an answer, if that is the one meant.
    pub(super) fn take_sending_if(
        &self,
        token: Token,
        is_meant: impl Fn(&Sending) -> bool,
    ) -> Option<(Box<Connection>, Box<Sending>)> {
        let mut connection = {
            let mut slots = self.slots.lock();
            let slot = slots.find(token)?;
            slot.connection.take_if(
                |connection| matches!(&connection.phase, Phase::Sending(sending) if is_meant(sending)),
            )?
        };
        let phase = std::mem::replace(&mut connection.phase, Phase::Head { since: None });
        let Phase::Sending(sending) = phase else {
            return None;
        };
        Some((connection, sending))
    }
}
