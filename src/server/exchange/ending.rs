//! How an exchange ends: what becomes of its answer and of its connection.
//!
//! Owns the ways in which an answer is not whole, and what its client is to see of that; also which
//! answer is a connection's last. Never waits for a client but where memory is used up. Rules:
//! RFC 9112 sections 8 (what is complete), 9.3 and 9.6 (persistence, and the end of a connection).

use super::{ConnectionExchange, DISCARD_BYTES, Outcome, Progress};
use crate::server::connection::Connection;
use crate::server::sending::{After, Note, Sending};
use crate::wsgi::{BodyError, ClientGone, Delivery, Exchange, GivenUp};
use http::{HeaderMap, Method, StatusCode};
use std::sync::atomic::Ordering;

impl ConnectionExchange<'_> {
    /// The handler has returned, or panicked. The connection is absent when it is lost.
    pub(in crate::server) fn into_outcome(
        mut self,
        has_panicked: bool,
    ) -> (Option<Box<Connection>>, Outcome) {
        if self.in_flight.is_none() {
            return (None, Outcome::GivenUp);
        }
        match self.progress {
            Progress::Nothing => {
                let _ = self.send_error(StatusCode::INTERNAL_SERVER_ERROR);
            }
            Progress::Started => self.abort(),
            Progress::Ended => {}
        }
        self.is_last |= has_panicked;
        if self.failed.is_none() && self.reclaim().is_some_and(|held| !held.link.is_flushed()) {
            let memory = self
                .connection
                .as_ref()
                .map_or(0, |held| held.link.memory());
            if self.reserve(memory) {
                self.reserved = memory;
            } else {
                // The memory for it is used up: this thread waits for the client.
                let _ = self.settle();
            }
        }
        let body = self.body;
        let note = self.note.take().map(|value| Note { value, body });
        let Some(connection) = self.connection.take() else {
            let failed = self
                .failed
                .unwrap_or_else(|| Delivery::of(body, body, false));
            return (None, Outcome::Failed(note.map(|note| (note, failed))));
        };
        let after = if self.is_cut {
            After::Cut
        } else if !self.is_last {
            After::Next
        } else if self.is_end_expected() {
            After::Close
        } else {
            After::Linger
        };
        let outcome = if let Some(delivery) = self.failed {
            Outcome::Failed(note.map(|note| (note, delivery)))
        } else if connection.link.is_flushed()
            && !(self.is_cut && connection.link.is_delimited_by_end())
        {
            Outcome::Sent(after, note)
        } else {
            let sending = Sending::new(after, note, self.reserved, connection.sent());
            Outcome::Sending(Box::new(sending))
        };
        (Some(connection), outcome)
    }

    /// Whether the answer has to announce that it is the connection's last.
    pub(super) fn must_close(&mut self) -> bool {
        if !self.terms.keep_alive
            || !self.received.is_persistent
            || self.terms.is_draining.load(Ordering::Relaxed)
        {
            return true;
        }
        // The client still holds the body back, and may send it or not (RFC 9110 10.1.1).
        let is_held_back = self.received.is_expecting && !self.has_continued;
        let Some(connection) = self.reclaim() else {
            return true;
        };
        let outstanding = connection.decoder.outstanding();
        !connection.decoder.is_body_read()
            // How many chunks follow is unknown; the beginning of the body is here already.
            && (is_held_back || outstanding.is_none_or(|count| count > DISCARD_BYTES as u64))
    }

    /// True where the client sends nothing behind this request: it has asked for the end, or is told of
    /// it in a drain, which is not to wait for clients that keep their connections open.
    fn is_end_expected(&self) -> bool {
        !self.received.is_persistent || self.terms.is_draining.load(Ordering::Relaxed)
    }

    /// An answer of the server's own; the connection closes after it.
    pub(super) fn send_error(&mut self, status: StatusCode) -> Result<(), ClientGone> {
        self.progress = Progress::Ended;
        self.is_last = true;
        let version = self.received.head.response_version();
        let is_to_head = self.received.head.method() == Method::HEAD;
        let connection = self.usable()?;
        let length = connection.send_error(status, is_to_head, version, HeaderMap::new());
        self.body = length as u64;
        self.push()
    }

    /// The link has failed: the client is gone, unless it was a file that ended too early.
    pub(super) fn lose(&mut self) -> Result<(), ClientGone> {
        match self
            .reclaim()
            .filter(|held| held.was_stopped_by_short_file())
        {
            Some(held) => {
                let lost = held.drop_unsent();
                self.body = self.body.saturating_sub(lost);
                self.cut()
            }
            None => self.fail(),
        }
    }

    /// The connection is of no use any more.
    pub(super) fn fail(&mut self) -> Result<(), ClientGone> {
        if self.failed.is_none() {
            let body = self.body;
            let unsent = self.reclaim().map_or(body, |held| held.link.unsent());
            self.failed = Some(Delivery::of(body, unsent, false));
        }
        self.progress = Progress::Ended;
        if let Some(connection) = self.reclaim() {
            connection.link.abort();
        }
        Err(ClientGone)
    }

    /// The answer goes no further than what is in the link, and its client may still be there.
    pub(super) fn cut(&mut self) -> Result<(), ClientGone> {
        self.is_cut = true;
        self.is_last = true;
        self.progress = Progress::Ended;
        Err(ClientGone)
    }

    /// What to say to those that go on with an answer that is over: nothing of it will be sent where it
    /// was broken off, or where the client was told of its broken body instead.
    pub(super) fn over(&self) -> Result<(), ClientGone> {
        if self.failed.is_some() || self.is_cut || self.failure.is_some() {
            return Err(ClientGone);
        }
        Ok(())
    }

    /// Gives the request up: the connection is none of this exchange's business from then on.
    pub(super) fn take_leave(&mut self) -> Option<GivenUp> {
        if self.failed.is_some() || self.progress == Progress::Ended {
            return None;
        }
        let status = StatusCode::GATEWAY_TIMEOUT;
        let is_answered = self.progress == Progress::Nothing && self.send_error(status).is_ok();
        if !is_answered {
            self.abort();
        }
        let body = self.body;
        let unsent = match self.reclaim() {
            Some(held) if !is_answered => held.link.unsent(),
            Some(_) => 0,
            None => body,
        };
        let of_rest = || Delivery::of(body, unsent, is_answered);
        let given_up = GivenUp {
            status: is_answered.then_some(status),
            delivery: self.failed.unwrap_or_else(of_rest),
        };
        self.failed = Some(given_up.delivery);
        self.progress = Progress::Ended;
        self.failure = Some(BodyError::Disconnected);
        // It is not in flight any more, whatever the application does.
        self.in_flight = None;
        self.received.permit = None;
        if let Some(connection) = self.connection.take() {
            // It was reserved until now. Where others have used it up meanwhile, the bound is exceeded
            // rather than the client deprived of what it was given.
            let memory = connection.link.memory();
            let has_room = self.terms.unsent.reserve(memory);
            let reserved = if has_room { memory } else { 0 };
            let after = if is_answered {
                After::Linger
            } else {
                After::Cut
            };
            self.keeper.end(connection, after, reserved);
        }
        Some(given_up)
    }
}
