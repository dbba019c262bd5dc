//! When a connection has waited long enough, in each phase of its life.
//!
//! Owns the bounds that docs/server.md lists, those of a drain included, and what happens when one
//! has passed. Never looks at bytes.

use super::{Job, Reactor};
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
        let patience = self.settings.client_socket_timeout;
        let at_most = |time: Duration| patience.map_or(time, |patience| patience.min(time));
        let is_draining = self.is_draining.load(Ordering::Acquire);
        // Patience may be longer than time itself.
        let normal = match &connection.phase {
            Phase::Head { since: None }
                if connection.lacks_proxy_header() || connection.link.is_handshaking() =>
            {
                Some(connection.active + at_most(HANDSHAKE_TIME))
            }
            Phase::Head { since: None } => {
                let idle = self.settings.keep_alive_timeout.or(patience);
                let patience = if connection.is_fresh { patience } else { idle };
                patience.and_then(|patience| connection.active.checked_add(patience))
            }
            Phase::Head { since: Some(since) } => Some(*since + at_most(HEAD_TIME)),
            Phase::Collecting(received) => {
                patience.and_then(|patience| received.since.checked_add(patience))
            }
            // The exchange watches its own time.
            Phase::Producing => None,
            Phase::Sending(sending) => sending.deadline(patience),
            Phase::Discarding { since, .. } => Some(*since + at_most(DISCARD_TIME)),
            Phase::Refused { until } => *until,
            Phase::Lingering(Lingering { since, active, .. }) => {
                let longest = if is_draining {
                    LAST_LINGER_TIME
                } else {
                    LINGER_TIME
                };
                Some((*since + at_most(longest)).min(*active + LINGER_QUIET))
            }
        };
        if !is_draining {
            return normal;
        }
        let began = self.drain_began.lock().unwrap_or(connection.active);
        let last = match &connection.phase {
            // A request is on its way, and was before the drain began.
            Phase::Head { since: None } if connection.is_fresh && connection.link.has_greeted() => {
                connection.active.max(began) + FIRST_REQUEST_TIME
            }
            // It was accepted out of the kernel's queue, and its client was promised an answer.
            Phase::Head { since: None } if connection.is_fresh => {
                connection.active + FIRST_REQUEST_TIME
            }
            Phase::Head { since: None } => connection.active + QUIET_TIME,
            Phase::Head { since: Some(since) } => (*since).max(began) + LAST_HEAD_TIME,
            Phase::Collecting(_)
            | Phase::Producing
            | Phase::Sending(_)
            | Phase::Discarding { .. }
            | Phase::Refused { .. }
            | Phase::Lingering(_) => return normal,
        };
        Some(normal.map_or(last, |normal| normal.min(last)))
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
            match self.deadline(connection) {
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
