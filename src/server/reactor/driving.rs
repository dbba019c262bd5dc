//! Driving connections from phase to phase, without waiting: what happens between two requests.
//!
//! Owns the deadlines of each phase and the ways in which a connection ends. Every function takes
//! the connection that it works on, and gives it back only if there is more to do at once.

use super::{Job, Reactor, Task};
use crate::scoreboard;
use crate::server::connection::{Connection, Phase, Step, Token};
use crate::server::exchange::status_of;
use crate::server::received_request::ReceivedRequest;
use crate::server::socket;
use crate::wsgi::{Refused, access_log};
use http::StatusCode;
use hyper::body::Incoming;
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};
use tracing::debug;

/// How much of a body is collected before a thread is spent on the request.
const COLLECT_BYTES: usize = 64 << 10;
/// The longest that a request head may take altogether.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// The longest that a TLS handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// The longest that an unread body may take to be thrown away.
const DISCARD_TIME: Duration = Duration::from_secs(5);
/// How long and how much the server reads after its last word, so that the word is not lost to a
/// reset (RFC 9112 section 9.6).
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// During a drain: how long an idle connection is kept in case a request is on its way, and how
/// long a head that has begun may still take.
const QUIET_TIME: Duration = Duration::from_millis(250);
const LAST_HEAD_TIME: Duration = Duration::from_secs(1);

/// A connection with which to go on at once, because something happened to it while it was checked out.
type Again = Option<Box<Connection>>;

impl Reactor {
    /// The kernel has news of a connection.
    pub(super) fn handle_event(&self, token: Token, events: EpollFlags, jobs: &mut Vec<Job>) {
        let parked = self.slots.lock().take(token, events);
        if let Some(connection) = parked {
            let again = if connection.note(events) {
                Some(connection)
            } else {
                self.park(connection)
            };
            self.drive(again, jobs);
        }
    }

    /// Drives a connection as far as it goes without a thread of its own.
    pub(super) fn drive(&self, mut again: Again, jobs: &mut Vec<Job>) {
        while let Some(mut connection) = again {
            let phase = std::mem::replace(&mut connection.phase, Phase::Head { since: None });
            again = match phase {
                Phase::Head { since } => match connection.advance() {
                    Step::Request(received) => self.begin(connection, received, jobs),
                    Step::Closed(in_order) => self.close(connection, in_order),
                    Step::Blocked => self.await_head(connection, since, jobs),
                },
                Phase::Collecting(received) => self.collect(connection, received, jobs),
                Phase::Discarding {
                    body,
                    budget,
                    since,
                } => self.discard(connection, body, budget, since),
                Phase::Lingering { since, budget } => self.linger(connection, budget, since),
            };
        }
    }

    /// hyper has nothing to do until a whole head has come.
    pub(super) fn await_head(
        &self,
        mut connection: Box<Connection>,
        since: Option<Instant>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        let (refusal, is_idle) = {
            let framing = &connection.link.state().framing;
            (framing.refusal(), framing.is_between_messages())
        };
        if let Some(refusal) = refusal {
            debug!(server = %self.settings.name, peer = ?connection.endpoints.peer, %refusal, "request refused");
            refuse(connection, refusal.status(), since, jobs);
            return None;
        }
        let since = if is_idle {
            None
        } else {
            since.or_else(|| Some(Instant::now()))
        };
        connection.phase = Phase::Head { since };
        self.park(connection)
    }

    /// A request's head is complete.
    pub(super) fn begin(
        &self,
        mut connection: Box<Connection>,
        received: Box<ReceivedRequest>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        connection.active = received.since;
        if received.body.is_none() || received.is_expecting {
            jobs.push(Job {
                connection,
                task: Task::Answer(received),
            });
            None
        } else {
            self.collect(connection, received, jobs)
        }
    }

    /// Collects the beginning of a body before a thread is spent on the request.
    fn collect(
        &self,
        mut connection: Box<Connection>,
        mut received: Box<ReceivedRequest>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        match connection.collect(&mut received, COLLECT_BYTES) {
            Ok(true) => {
                jobs.push(Job {
                    connection,
                    task: Task::Answer(received),
                });
                None
            }
            Ok(false) => {
                connection.phase = Phase::Collecting(received);
                self.park(connection)
            }
            Err(error) => {
                give_up(connection, &received, status_of(error), jobs);
                None
            }
        }
    }

    /// Throws away what the application left of a body, then goes on with the connection.
    pub(super) fn discard(
        &self,
        mut connection: Box<Connection>,
        body: Incoming,
        mut budget: usize,
        since: Instant,
    ) -> Again {
        let mut body = Some(body);
        loop {
            match connection.next_piece(&mut body) {
                Poll::Ready(Ok(Some(piece))) if piece.len() <= budget => budget -= piece.len(),
                Poll::Ready(Ok(None)) => {
                    connection.phase = Phase::Head { since: None };
                    return Some(connection);
                }
                Poll::Ready(Ok(Some(_)) | Err(_)) => return self.close(connection, true),
                Poll::Pending => {
                    let Some(body) = body else {
                        return self.close(connection, true);
                    };
                    connection.phase = Phase::Discarding {
                        body,
                        budget,
                        since,
                    };
                    return self.park(connection);
                }
            }
        }
    }

    /// Reads and drops what the client still sends after our last word.
    fn linger(&self, mut connection: Box<Connection>, mut budget: usize, since: Instant) -> Again {
        // A client that has sent whole messages only has no reason to send more.
        let is_owed = !connection.link.state().framing.is_between_messages();
        let mut buffer = [MaybeUninit::uninit(); 8192];
        loop {
            match socket::receive(&connection.link.socket, &mut buffer) {
                Ok(bytes) if !bytes.is_empty() && bytes.len() <= budget => budget -= bytes.len(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if is_owed => {
                    connection.phase = Phase::Lingering { since, budget };
                    return self.park(connection);
                }
                Ok(_) | Err(_) => {
                    self.drop_connection(connection);
                    return None;
                }
            }
        }
    }

    /// Puts a connection back; gives it back when something happened in between.
    pub(super) fn park(&self, mut connection: Box<Connection>) -> Again {
        self.arm(&mut connection, Instant::now());
        loop {
            let missed = {
                let mut slots = self.slots.lock();
                let slot = slots.find(connection.token)?;
                let missed = std::mem::replace(&mut slot.missed, EpollFlags::empty());
                if missed.is_empty() {
                    slot.connection = Some(connection);
                    return None;
                }
                missed
            };
            if connection.note(missed) {
                return Some(connection);
            }
        }
    }

    /// Makes sure that the connection is looked at when its deadline passes.
    fn arm(&self, connection: &mut Connection, now: Instant) {
        let deadline = match (self.deadline(connection), self.rest_at(connection)) {
            (Some(one), Some(other)) => one.min(other),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => return,
        };
        if connection
            .armed
            .is_none_or(|armed| deadline < armed || armed <= now)
        {
            connection.armed = Some(deadline);
            if self.deadlines.add(deadline, connection.token) {
                self.wake_leader();
            }
        }
    }

    /// When a connection that is not checked out has waited long enough.
    fn deadline(&self, connection: &Connection) -> Option<Instant> {
        let patience = self.settings.client_socket_timeout;
        let at_most = |time: Duration| patience.map_or(time, |patience| patience.min(time));
        let normal = match &connection.phase {
            Phase::Head { since: None }
                if connection.endpoints.tls && connection.link.state().is_handshaking() =>
            {
                Some(connection.active + at_most(HANDSHAKE_TIME))
            }
            Phase::Head { since: None } => patience.map(|patience| connection.active + patience),
            Phase::Head { since: Some(since) } => Some(*since + at_most(HEAD_TIME)),
            Phase::Collecting(received) => patience.map(|patience| received.since + patience),
            Phase::Discarding { since, .. } => Some(*since + at_most(DISCARD_TIME)),
            Phase::Lingering { since, .. } => Some(*since + LINGER_TIME),
        };
        if !self.is_draining.load(Ordering::Acquire) {
            return normal;
        }
        let last = match &connection.phase {
            Phase::Head { since: None } => connection.active + QUIET_TIME,
            Phase::Head { since: Some(since) } => *since + LAST_HEAD_TIME,
            Phase::Collecting(_) | Phase::Discarding { .. } | Phase::Lingering { .. } => {
                return normal;
            }
        };
        Some(normal.map_or(last, |normal| normal.min(last)))
    }

    /// When an idle connection has kept its memory for long enough.
    fn rest_at(&self, connection: &Connection) -> Option<Instant> {
        let is_idle = matches!(connection.phase, Phase::Head { since: None });
        (is_idle && !connection.is_resting()).then(|| connection.active + self.settings.rest_after)
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
            match self.deadline(connection) {
                Some(deadline) if deadline <= now => slot.connection.take(),
                _ => {
                    // An idle connection was parked by a hyper that wanted nothing but to read.
                    if self.rest_at(connection).is_some_and(|at| at <= now) {
                        connection.rest();
                    }
                    self.arm(connection, now);
                    None
                }
            }
        };
        let Some(connection) = late else {
            return;
        };
        let mut connection = connection;
        let phase = std::mem::replace(&mut connection.phase, Phase::Head { since: None });
        match phase {
            Phase::Head { since: None } | Phase::Discarding { .. } | Phase::Lingering { .. } => {
                self.drop_connection(connection);
            }
            Phase::Head { since } => {
                refuse(connection, StatusCode::REQUEST_TIMEOUT, since, jobs);
            }
            Phase::Collecting(received) => {
                give_up(connection, &received, StatusCode::REQUEST_TIMEOUT, jobs);
            }
        }
    }

    /// Ends a connection on which everything was said if `in_order`, and everything lost if not.
    pub(super) fn close(&self, connection: Box<Connection>, in_order: bool) -> Again {
        if in_order && !connection.link.state().at_end {
            connection.link.shut();
            return self.linger(connection, LINGER_BYTES, Instant::now());
        }
        self.drop_connection(connection);
        None
    }

    fn drop_connection(&self, connection: Box<Connection>) {
        let token = connection.token;
        if connection.endpoints.tls {
            connection.link.shut();
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
            }
            slots.len() == 0
        };
        if is_last && self.is_draining.load(Ordering::Acquire) {
            self.wake_leader();
        }
    }
}

/// Answers a head that hyper never saw with a status of the server's own.
fn refuse(
    mut connection: Box<Connection>,
    status: StatusCode,
    since: Option<Instant>,
    jobs: &mut Vec<Job>,
) {
    let line = connection.link.state().framing.request_line().to_vec();
    let sent = connection.send_error(status, false);
    report(connection, line, status, sent, since, jobs);
}

/// Answers a request whose body no code will read with a status of the server's own.
fn give_up(
    mut connection: Box<Connection>,
    received: &ReceivedRequest,
    status: StatusCode,
    jobs: &mut Vec<Job>,
) {
    let mut line = access_log::plain_request_line(&received.parts).into_bytes();
    line.truncate(Refused::LONGEST_LINE);
    let sent = connection.send_error(status, true);
    report(connection, line, status, sent, Some(received.since), jobs);
}

/// Has the handler told of a request that was refused, on a thread that may wait for it, and the
/// connection ended then.
fn report(
    connection: Box<Connection>,
    line: Vec<u8>,
    status: StatusCode,
    sent: usize,
    since: Option<Instant>,
    jobs: &mut Vec<Job>,
) {
    let refused = Refused {
        endpoints: connection.endpoints.clone(),
        line,
        status,
        sent: sent as u64,
        wall: since.map_or(Duration::ZERO, |since| since.elapsed()),
    };
    jobs.push(Job {
        connection,
        task: Task::Report(Box::new(refused)),
    });
}
