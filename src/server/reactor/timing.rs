//! When a connection has waited long enough, in each phase of its life.
//!
//! Owns the bounds that docs/server.md lists, those of a drain included, and what happens when one
//! has passed. Never looks at bytes.

use super::{Job, Reactor};
use crate::server::Settings;
use crate::server::client_wait::allowance;
use crate::server::connection::{Connection, Lingering, Phase, Token};
use http::StatusCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The longest that a request head may take altogether.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// The longest that a TLS handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// The longest that an unread body may take to be thrown away.
const DISCARD_TIME: Duration = Duration::from_secs(5);
/// How long the server reads and drops after its last word: in all, without a byte, and in all
/// during a drain.
const LINGER_TIME: Duration = Duration::from_secs(30);
const LINGER_QUIET: Duration = Duration::from_secs(5);
const LAST_LINGER_TIME: Duration = Duration::from_secs(2);
/// During a drain: how long an idle connection is kept in case a request is on its way, and how
/// long a head that has begun may still take.
const QUIET_TIME: Duration = Duration::from_millis(250);
/// During a drain: how long a connection is kept on which no request has come yet.
const FIRST_REQUEST_TIME: Duration = Duration::from_secs(2);
const LAST_HEAD_TIME: Duration = Duration::from_secs(1);

impl Reactor {
    /// Makes sure that the connection is looked at when its deadline passes.
    pub(super) fn arm(&self, connection: &mut Connection, now: Instant) {
        let Some(deadline) = self.deadline(connection) else {
            return;
        };
        if connection
            .armed
            .is_none_or(|armed| deadline < armed || armed <= now)
        {
            let earlier = connection.armed.replace(deadline);
            if self.deadlines.add(deadline, connection.token, earlier) {
                self.wake_leader();
            }
        }
    }

    /// When a connection that no thread has checked out has waited long enough.
    fn deadline(&self, connection: &Connection) -> Option<Instant> {
        let is_draining = self.is_draining.load(Ordering::Acquire);
        let began = is_draining.then(|| self.drain_began.lock().unwrap_or(connection.active));
        deadline(connection, &self.settings, began)
    }

    /// Brings every deadline forward to what a drain allows.
    pub(super) fn tighten_deadlines(&self) {
        let now = Instant::now();
        for connection in self.slots.lock().parked() {
            self.arm(connection, now);
        }
    }

    /// A deadline entry is due: does the connection's true deadline agree?
    pub(super) fn check_deadline(&self, token: Token, now: Instant, jobs: &mut Vec<Job>) {
        let late = {
            let mut slots = self.slots.lock();
            let Some(slot) = slots.find(token) else {
                return;
            };
            let Some(connection) = &mut slot.connection else {
                return;
            };
            connection.look(now);
            let is_taken =
                matches!(&connection.phase, Phase::Sending(sending) if sending.is_taken());
            match self.deadline(connection) {
                _ if is_taken => slot.connection.take(),
                Some(deadline) if deadline <= now => slot.connection.take(),
                _ => {
                    self.arm(connection, now);
                    None
                }
            }
        };
        let Some(mut connection) = late else {
            return;
        };
        let phase = std::mem::replace(&mut connection.phase, Phase::Head { since: None });
        match phase {
            // Where the server stops, it is not for the proxy that the rest is missing.
            Phase::Head { since: None }
                if connection.has_half_a_proxy_header()
                    && !self.is_draining.load(Ordering::Acquire) =>
            {
                self.close_without_proxy_header(connection);
            }
            Phase::Head { since: None } | Phase::Discarding { .. } | Phase::Lingering(_) => {
                connection.link.finish();
                self.drop_connection(connection);
            }
            Phase::Head { since } => {
                let again = self.refuse_with(connection, StatusCode::REQUEST_TIMEOUT, since, jobs);
                self.drive(again, jobs);
            }
            Phase::Collecting(received) => {
                let status = StatusCode::REQUEST_TIMEOUT;
                let again = self.give_up(connection, &received, status, jobs);
                self.drive(again, jobs);
            }
            Phase::Sending(sending) => self.cut(connection, *sending, jobs),
            Phase::Refused { until } => {
                let again = self.end_refusal(connection, until);
                self.drive(again, jobs);
            }
            Phase::Producing => {
                connection.phase = Phase::Producing;
                self.drive(self.park(connection), jobs);
            }
        }
    }
}

/// The same, where a drain began then.
fn deadline(
    connection: &Connection,
    settings: &Settings,
    drain_began: Option<Instant>,
) -> Option<Instant> {
    let patience = settings.client_socket_timeout;
    let at_most = |time: Duration| patience.map_or(time, |patience| patience.min(time));
    // Patience may be longer than time itself.
    let normal = match &connection.phase {
        Phase::Head { since: None }
            if connection.lacks_proxy_header() || connection.link.is_handshaking() =>
        {
            Some(connection.active + at_most(HANDSHAKE_TIME))
        }
        Phase::Head { since: None } => {
            let idle = settings.keep_alive_timeout.or(patience);
            let patience = if connection.is_fresh { patience } else { idle };
            patience.and_then(|patience| connection.active.checked_add(patience))
        }
        Phase::Head { since: Some(since) } => Some(*since + at_most(HEAD_TIME)),
        Phase::Collecting(received) => patience.and_then(|patience| match &received.waiting {
            None => received.since.checked_add(patience),
            // It waits for the server.
            Some(waiting) if waiting.is_full() => None,
            // As for a client that a thread waits for.
            Some(_) => {
                let altogether = patience.saturating_add(allowance(received.collected as u64));
                let altogether = received.since.checked_add(altogether)?;
                Some(altogether.min(connection.active.checked_add(patience)?))
            }
        }),
        // The exchange watches its own time.
        Phase::Producing => None,
        Phase::Sending(sending) => sending.deadline(patience),
        Phase::Discarding { since, .. } => Some(*since + at_most(DISCARD_TIME)),
        Phase::Refused { until } => *until,
        Phase::Lingering(Lingering { since, active, .. }) => {
            let longest = if drain_began.is_some() {
                LAST_LINGER_TIME
            } else {
                LINGER_TIME
            };
            Some((*since + at_most(longest)).min(*active + LINGER_QUIET))
        }
    };
    let Some(began) = drain_began else {
        return normal;
    };
    let last = match &connection.phase {
        // A request is on its way, and was before the drain began.
        Phase::Head { since: None }
            if connection.link.is_handshaking() && connection.link.has_greeted() =>
        {
            connection.active.max(began) + FIRST_REQUEST_TIME
        }
        // It was accepted out of the kernel's queue, and its client was promised an answer.
        Phase::Head { since: None } if connection.is_fresh => {
            connection.active + FIRST_REQUEST_TIME
        }
        Phase::Head { since: None } => connection.active + QUIET_TIME,
        Phase::Head { since: Some(since) } => (*since).max(began) + LAST_HEAD_TIME,
        Phase::Sending(sending) => match sending.last_deadline(began) {
            Some(last) => last,
            None => return normal,
        },
        Phase::Collecting(_)
        | Phase::Producing
        | Phase::Discarding { .. }
        | Phase::Refused { .. }
        | Phase::Lingering(_) => return normal,
    };
    Some(normal.map_or(last, |normal| normal.min(last)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connection::Step;
    use crate::server::connection::tests::connection_with;
    use crate::server::link::tests::{client, session};
    use crate::server::sending::{After, Sending};
    use crate::server::uploads::Uploads;
    use rustls::ClientConnection;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(20);

    fn last(connection: &Connection, began: Instant) -> Instant {
        deadline(connection, &Settings::default(), Some(began)).unwrap()
    }

    #[test]
    fn a_head_that_began_long_before_a_drain_may_still_end() {
        let (mut connection, _client) = connection_with(None);
        let began = connection.active + LONG;
        connection.phase = Phase::Head {
            since: Some(connection.active),
        };

        assert_eq!(last(&connection, began), began + LAST_HEAD_TIME);
    }

    /// Carries what each side of a handshake has to say to the other one, once.
    fn talk(connection: &mut Connection, tls: &mut ClientConnection, socket: &mut UnixStream) {
        while tls.wants_write() {
            tls.write_tls(socket).unwrap();
        }
        connection.link.read_blocked = false;
        assert!(matches!(connection.next_request(), Step::Blocked));
        connection.flush().unwrap();
    }

    #[test]
    fn a_handshake_that_began_long_before_a_drain_may_end_and_one_that_is_over_holds_nothing() {
        let (mut connection, mut socket) = connection_with(Some(session()));
        let mut tls = client();
        let began = connection.active + LONG;
        assert_eq!(
            last(&connection, began),
            connection.active + FIRST_REQUEST_TIME
        );

        talk(&mut connection, &mut tls, &mut socket);
        assert!(connection.link.is_handshaking());
        assert_eq!(last(&connection, began), began + FIRST_REQUEST_TIME);

        let accepted = connection.active;
        tls.read_tls(&mut socket).unwrap();
        tls.process_new_packets().unwrap();
        talk(&mut connection, &mut tls, &mut socket);
        assert!(!connection.link.is_handshaking());
        assert!(
            connection.active > accepted,
            "its first request is awaited from then on"
        );
        let began = connection.active + LONG;
        assert!(last(&connection, began) < began);
    }

    #[test]
    fn a_body_that_is_held_may_take_a_millisecond_for_each_byte_and_make_no_long_pause() {
        let (mut connection, mut client) = connection_with(None);
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
            .unwrap();
        let Step::Request(mut received) = connection.next_request() else {
            panic!("no request has come");
        };
        let since = received.since;
        let uploads = Arc::new(Uploads::new(1, 50));
        received.waiting = Some(uploads.wait());
        received.collected = 5_000;
        connection.phase = Phase::Collecting(received);
        let settings = Settings {
            client_socket_timeout: Some(Duration::from_secs(10)),
            ..Settings::default()
        };
        let second = Duration::from_secs(1);

        for (active, end) in [(2, Some(12)), (9, Some(15))] {
            connection.active = since + active * second;
            let deadline = deadline(&connection, &settings, None);
            assert_eq!(deadline, end.map(|end| since + end * second));
        }
        if let Phase::Collecting(received) = &mut connection.phase {
            received.waiting.as_mut().unwrap().set_full(true);
        }
        assert_eq!(
            deadline(&connection, &settings, None),
            None,
            "it waits for the server"
        );
    }

    #[test]
    fn a_client_that_stops_to_take_what_it_has_to_is_given_up_in_a_drain() {
        let (mut connection, _client) = connection_with(None);
        let mut sending = Sending::new(After::Cut, None, 0, connection.sent());
        let settings = Settings {
            client_socket_timeout: None,
            ..Settings::default()
        };
        let began = Instant::now() + LONG;
        sending.await_taking();
        sending.look(began, connection.sent());
        connection.phase = Phase::Sending(Box::new(sending));
        let mut looks = 0;
        let mut now = began;
        while looks < 10
            && let Some(next) = deadline(&connection, &settings, Some(began))
            && next > now
        {
            now = next;
            connection.look(now);
            looks += 1;
        }

        assert_eq!(now, began + Duration::from_secs(5));
        assert!(looks <= 3, "{looks} looks");
        assert_eq!(
            deadline(&connection, &settings, None),
            Some(now + Duration::from_secs(4)),
            "for ever otherwise"
        );
    }
}
