//! How connections end: in order, after what the client still sends, or cut off.
//!
//! Owns the last phase of a connection, and the rules by which a client is sure to see the server's
//! last word (RFC 9112 section 9.6) and cannot take a cut for an end in order (section 9.8).

use super::{Again, Job, Reactor};
use crate::scoreboard;
use crate::server::connection::{Connection, Lingering, Phase, Token};
use crate::server::sending::Sending;
use crate::server::socket;
use crate::wsgi::Delivery;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tracing::{debug, warn};

/// How much the server reads and drops behind its last word. A client that sends a whole body before
/// it looks at the answer, as http.client and nginx do, loses the answer otherwise: what arrives at
/// a closed socket resets the connection.
pub(super) const LINGER_BYTES: usize = 64 << 20;

impl Reactor {
    /// Ends a connection on which everything was said.
    pub(super) fn close(&self, mut connection: Box<Connection>) -> Again {
        connection.drop_body_left();
        // A client that has sent whole messages only has no reason to send more. The close then
        // ends both halves at once.
        let is_owed = !connection.decoder.is_between_messages();
        self.close_owed(connection, is_owed)
    }

    /// Ends a connection that its client meant to keep: what it has sent before it hears of the end
    /// would turn a close of both halves into a reset, which may cost it the answer.
    pub(super) fn close_unasked(&self, connection: Box<Connection>) -> Again {
        self.close_owed(connection, true)
    }

    /// Ends a connection that does not begin with the header that proxies put there, or on which no more
    /// of it comes.
    pub(super) fn close_without_proxy_header(&self, connection: Box<Connection>) {
        warn!(server = %self.settings.name, peer = %connection.endpoints.shown_peer(), "closed a connection that does not begin with a PROXY header; let the proxy send a whole one, or turn the PROXY protocol off");
        self.drop_connection(connection);
    }

    /// Ends a connection whose answer breaks off, behind what was sent of it. That is the client's, and
    /// so are earlier answers of a pipeline: a reset, to which its unread requests would lead as well,
    /// takes back what it has not got.
    pub(super) fn close_cut(&self, mut connection: Box<Connection>) -> Again {
        connection.drop_body_left();
        connection.link.abort();
        if connection.link.end_cut() {
            return self.close_unasked(connection);
        }
        self.drop_connection(connection);
        None
    }

    /// Ends a connection whose answer breaks off where only a reset tells its client so: once the client
    /// has what is with the kernel, and what it still sends meanwhile is read and dropped.
    pub(super) fn reset_once_taken(
        &self,
        mut connection: Box<Connection>,
        mut sending: Box<Sending>,
    ) -> Again {
        let mut buffer = [0; 16 << 10];
        while sending.discarded < LINGER_BYTES
            && let Ok(count @ 1..) = connection.link.receive_raw(&mut buffer)
        {
            sending.discarded += count;
        }
        let is_taken = connection.sent().unconfirmed == 0;
        if is_taken || socket::is_dead(&connection.link.transport) {
            return self.close_cut(connection);
        }
        sending.await_taking();
        connection.phase = Phase::Sending(sending);
        self.park(connection)
    }

    fn close_owed(&self, mut connection: Box<Connection>, is_owed: bool) -> Again {
        if connection.link.at_end {
            connection.link.finish();
            self.drop_connection(connection);
            return None;
        }
        // Whatever is known to be there was read; what has come since is not.
        connection.link.read_blocked = false;
        let now = Instant::now();
        let lingering = Lingering {
            since: now,
            active: now,
            budget: LINGER_BYTES,
            is_owed,
        };
        self.linger(connection, lingering)
    }

    /// Reads and drops what the client still sends after our last word.
    pub(super) fn linger(
        &self,
        mut connection: Box<Connection>,
        mut lingering: Lingering,
    ) -> Again {
        if lingering.is_owed
            || connection.endpoints.tls
            || connection.link.is_delimited_by_end()
            || !connection.link.is_flushed()
        {
            connection.link.finish();
        }
        let mut buffer = [0; 16 << 10];
        loop {
            match connection.link.receive_raw(&mut buffer) {
                Ok(count) if count > 0 && count <= lingering.budget => {
                    lingering.budget -= count;
                    lingering.active = Instant::now();
                    if !std::mem::replace(&mut lingering.is_owed, true) {
                        connection.link.finish();
                    }
                }
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && (lingering.is_owed || !connection.link.is_flushed()) =>
                {
                    connection.phase = Phase::Lingering(lingering);
                    return self.park(connection);
                }
                Ok(_) | Err(_) => {
                    self.drop_connection(connection);
                    return None;
                }
            }
        }
    }

    /// Cuts off an answer that its client does not take, and says so to the handler.
    pub(super) fn cut(
        &self,
        mut connection: Box<Connection>,
        sending: Sending,
        jobs: &mut Vec<Job>,
    ) {
        let link = &mut connection.link;
        if let Some(note) = sending.note {
            let delivery = Delivery::of(note.body, link.unsent(), false);
            jobs.push(Job::Deliver(note, delivery));
        }
        link.abort();
        self.unsent.release(sending.reserved);
        self.drop_connection(connection);
    }

    /// Closes the socket of a connection whose stream has ended, one way or the other.
    pub(super) fn drop_connection(&self, mut connection: Box<Connection>) {
        connection.count_sent();
        let token = connection.token;
        if let Some(reason) = connection.link.failure() {
            debug!(server = %self.settings.name, peer = %connection.endpoints.shown_peer(), reason, "TLS failed");
        }
        if let Some(armed) = connection.armed {
            self.deadlines.remove(armed, token);
        }
        // The socket first: closing takes it out of the epoll, so that no event can come for a
        // token whose slot is gone. (Tokens are never used again either.)
        drop(connection);
        self.forget(token);
    }

    /// A connection is closed: its slot is free, and the drain may be over.
    pub(super) fn forget(&self, token: Token) {
        let is_last = {
            let mut slots = self.slots.lock();
            if slots.remove(token) {
                scoreboard::current().connection_closed();
                Self::note_closed();
            }
            if slots.has_emptied() {
                self.has_emptied.store(true, Ordering::Relaxed);
            }
            slots.len() == 0
        };
        if is_last && self.is_draining.load(Ordering::Acquire) {
            self.wake_leader();
        }
    }
}
