//! Answers of the server's own to requests that no application gets to see.
//!
//! Owns what such a client is told, and that neither it nor its connection waits for a thread: only
//! the line in the access log does. Decides nothing about what is refused. Rules: RFC 9112 section 9.6
//! for the end of the connection.

use super::slots::Slot;
use super::{Again, Job, Reactor};
use crate::server::connection::{Connection, Phase, Token};
use crate::server::received_request::ReceivedRequest;
use crate::wsgi::{Refused, access_log};
use http::{HeaderMap, Method, StatusCode};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a connection waits for the line in the access log. A client that sees the end of its
/// connection finds that line where threads are free.
const PATIENCE: Duration = Duration::from_millis(50);
/// How many requests that were refused may wait to be told of without their connections. Each takes
/// some hundred bytes, a kilobyte at most. Beyond that the connection stays until then, which bounds them.
const MOST_REPORTS: usize = 4096;

impl Reactor {
    /// Answers a head of which no request was made with a status of the server's own.
    pub(super) fn refuse_with(
        &self,
        mut connection: Box<Connection>,
        status: StatusCode,
        since: Option<Instant>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        let line = connection.decoder.request_line().to_vec();
        let is_to_head = line.starts_with(b"HEAD ");
        let version = connection.decoder.refusal_version();
        let sent = connection.send_error(status, is_to_head, version, HeaderMap::new());
        self.end_refused(connection, line, status, sent, since, jobs)
    }

    /// Answers a request whose body no application will see with a status of the server's own.
    pub(super) fn give_up(
        &self,
        connection: Box<Connection>,
        received: &ReceivedRequest,
        status: StatusCode,
        jobs: &mut Vec<Job>,
    ) -> Again {
        self.give_up_with(connection, received, status, HeaderMap::new(), jobs)
    }

    /// ... and with these headers.
    pub(super) fn give_up_with(
        &self,
        mut connection: Box<Connection>,
        received: &ReceivedRequest,
        status: StatusCode,
        headers: HeaderMap,
        jobs: &mut Vec<Job>,
    ) -> Again {
        let mut line = access_log::plain_request_line(&received.head);
        line.truncate(Refused::LONGEST_LINE);
        let is_to_head = received.head.method() == Method::HEAD;
        let version = received.head.response_version();
        let sent = connection.send_error(status, is_to_head, version, headers);
        let since = Some(received.since);
        self.end_refused(connection, line, status, sent, since, jobs)
    }

    /// Has the handler told of a request that was refused, on a thread that may wait for it, and the
    /// connection ended then. All threads may be busy, and its client may read to the end: it does not
    /// wait for long.
    fn end_refused(
        &self,
        mut connection: Box<Connection>,
        line: Vec<u8>,
        status: StatusCode,
        sent: usize,
        since: Option<Instant>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        let refused = Box::new(Refused {
            endpoints: (*connection.endpoints).clone(),
            line,
            status,
            sent: sent as u64,
            wall: since.map_or(Duration::ZERO, |since| since.elapsed()),
        });
        let waiting = self.reports.fetch_add(1, Ordering::Relaxed);
        jobs.push(Job::Report(connection.token, refused));
        let until = (waiting < MOST_REPORTS).then(|| Instant::now() + PATIENCE);
        if until.is_none() {
            connection.link.finish();
        }
        connection.phase = Phase::Refused { until };
        self.park(connection)
    }

    /// Something happened to a connection whose request was refused, or its time is up.
    pub(super) fn end_refusal(
        &self,
        mut connection: Box<Connection>,
        until: Option<Instant>,
    ) -> Again {
        if until.is_some() {
            return self.close_unasked(connection);
        }
        let token = connection.token;
        connection.link.finish();
        connection.phase = Phase::Refused { until };
        let again = self.park(connection);
        // The report may have come while this thread had the connection, and found none to end.
        let reported = {
            let mut slots = self.slots.lock();
            let slot = slots.find(token).filter(|slot| slot.is_reported);
            slot.and_then(Slot::take_refused)
        };
        match reported {
            Some(connection) => self.close_unasked(connection),
            None => again,
        }
    }

    /// Tells the handler of a request that was refused, and ends its connection if that still waits.
    pub(super) fn report(&self, token: Token, refused: &Refused, jobs: &mut Vec<Job>) {
        self.reports.fetch_sub(1, Ordering::Relaxed);
        self.handler.refused(refused);
        let waiting = self.slots.lock().find(token).and_then(|slot| {
            slot.is_reported = true;
            slot.take_refused()
        });
        if let Some(connection) = waiting {
            self.drive(self.close_unasked(connection), jobs);
        }
    }
}
