//! Driving connections from phase to phase, without waiting: what happens between two requests.
//!
//! Owns the way from a connection's bytes to a request that a thread can run. Every function takes
//! the connection that it works on, and gives it back only if there is more to do at once. How a
//! connection ends is in [`super::ending`], when it has waited long enough in [`super::timing`].

use super::{Again, Job, Reactor};
use crate::server::connection::{BodyStep, Connection, Phase, Step, Token};
use crate::server::exchange::DISCARD_BYTES;
use crate::server::framing::Refusal;
use crate::server::link::Flushed;
use crate::server::received_request::ReceivedRequest;
use crate::server::sending::{After, Sending};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::time::Instant;
use tracing::{debug, warn};

impl Reactor {
    /// The kernel has news of a connection.
    pub(super) fn handle_event(&self, token: Token, events: EpollFlags, jobs: &mut Vec<Job>) {
        let parked = self.slots.lock().take(token, events);
        if let Some(mut connection) = parked {
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
                Phase::Head { since } => match connection.next_request() {
                    Step::Request(received) => self.begin(connection, received, jobs),
                    Step::Refused(refusal) => self.refuse(connection, refusal, since, jobs),
                    Step::NoProxyHeader => {
                        self.close_without_proxy_header(connection);
                        None
                    }
                    Step::Ended => self.close(connection),
                    Step::Blocked => self.await_head(connection, since),
                },
                Phase::Collecting(received) => self.collect(connection, received, jobs),
                Phase::Producing => self.send_produced(connection),
                Phase::Sending(sending) => self.send_rest(connection, sending, jobs),
                Phase::Discarding { budget, since } => self.discard(connection, budget, since),
                Phase::Refused { until } => self.end_refusal(connection, until),
                Phase::Lingering(lingering) => self.linger(connection, lingering),
            };
        }
    }

    /// Nothing can be done before a whole head has come.
    fn await_head(&self, mut connection: Box<Connection>, since: Option<Instant>) -> Again {
        let since = if connection.decoder.is_idle() {
            None
        } else {
            since.or_else(|| Some(Instant::now()))
        };
        connection.phase = Phase::Head { since };
        // Records of the handshake that the client has not taken yet.
        drop(connection.flush());
        self.park(connection)
    }

    /// A request's head is complete.
    fn begin(
        &self,
        mut connection: Box<Connection>,
        received: Box<ReceivedRequest>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        connection.active = received.since;
        connection.is_fresh = false;
        if received.is_bodiless {
            self.admit(connection, received, jobs)
        } else if received.is_expecting {
            self.begin_expecting(connection, received, jobs)
        } else {
            self.collect(connection, received, jobs)
        }
    }

    /// Sends what there is of an answer on which the application works.
    fn send_produced(&self, mut connection: Box<Connection>) -> Again {
        connection.phase = Phase::Producing;
        match connection.flush() {
            Ok(Flushed::Turn) => {
                self.defer(Job::Drive(connection));
                None
            }
            // The exchange finds out about a failure when it goes on.
            Ok(Flushed::Done | Flushed::Blocked) | Err(_) => self.park(connection),
        }
    }

    /// Sends the rest of a complete answer.
    pub(super) fn send_rest(
        &self,
        mut connection: Box<Connection>,
        mut sending: Box<Sending>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        let flushed = connection.flush();
        sending.note_progress(connection.link.taken());
        connection.count_sent();
        match flushed {
            Ok(Flushed::Done) => {
                self.unsent.release(std::mem::take(&mut sending.reserved));
                let after = sending.after;
                if let Some(note) = sending.note.take() {
                    let delivery = connection.delivered(note.body, after != After::Cut);
                    jobs.push(Job::Deliver(note, delivery));
                }
                connection.active = Instant::now();
                if after == After::Cut && connection.link.is_delimited_by_end() {
                    return self.reset_once_taken(connection, sending);
                }
                self.go_on(connection, after)
            }
            Ok(Flushed::Turn) => {
                connection.phase = Phase::Sending(sending);
                self.defer(Job::Drive(connection));
                None
            }
            Ok(Flushed::Blocked) => {
                drop_unread(&mut connection, &mut sending);
                connection.phase = Phase::Sending(sending);
                self.park(connection)
            }
            Err(_) if connection.was_stopped_by_short_file() => {
                let lost = connection.drop_unsent();
                if let Some(note) = &mut sending.note {
                    note.body = note.body.saturating_sub(lost);
                }
                sending.after = After::Cut;
                connection.phase = Phase::Sending(sending);
                Some(connection)
            }
            Err(_) => {
                self.cut(connection, *sending, jobs);
                None
            }
        }
    }

    /// An answer is with the kernel; what follows it.
    pub(super) fn go_on(&self, mut connection: Box<Connection>, after: After) -> Again {
        match after {
            After::Close => self.close(connection),
            After::Linger => self.close_unasked(connection),
            After::Cut => self.close_cut(connection),
            After::Next if connection.decoder.is_body_read() => {
                connection.phase = Phase::Head { since: None };
                Some(connection)
            }
            After::Next => {
                let since = connection.active;
                self.discard(connection, DISCARD_BYTES, since)
            }
        }
    }

    /// Throws away what the application left of a body, then goes on with the connection.
    fn discard(&self, mut connection: Box<Connection>, mut budget: usize, since: Instant) -> Again {
        loop {
            match connection.next_piece() {
                Ok(BodyStep::Data(piece)) if piece.len() <= budget => budget -= piece.len(),
                Ok(BodyStep::End) => {
                    connection.phase = Phase::Head { since: None };
                    return Some(connection);
                }
                Ok(BodyStep::Data(_)) | Err(_) => return self.close_unasked(connection),
                Ok(BodyStep::Blocked) => {
                    connection.phase = Phase::Discarding { budget, since };
                    return self.park(connection);
                }
            }
        }
    }

    /// Puts a connection back; gives it back when something happened in between.
    pub(super) fn park(&self, mut connection: Box<Connection>) -> Again {
        connection.in_a_row = 0;
        if !connection.is_watched && !self.watch(&mut connection) {
            self.drop_connection(connection);
            return None;
        }
        loop {
            let missed = {
                let mut slots = self.slots.lock();
                let slot = slots.find(connection.token)?;
                let missed = std::mem::replace(&mut slot.missed, EpollFlags::empty());
                if missed.is_empty() {
                    // Under the lock: who takes the entry out, or has just done so, and finds no
                    // connection does not come again.
                    self.arm(&mut connection, Instant::now());
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

    /// Asks the kernel for events, once in the life of a connection.
    fn watch(&self, connection: &mut Connection) -> bool {
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, connection.token.0);
        match self.epoll.add(&connection.link.transport, event) {
            Ok(()) => {
                connection.is_watched = true;
                true
            }
            Err(errno) => {
                warn!(server = %self.settings.name, error = %errno, "cannot watch a new connection; closing it");
                false
            }
        }
    }

    /// Answers a head that is not valid with a status of the server's own.
    fn refuse(
        &self,
        connection: Box<Connection>,
        refusal: Refusal,
        since: Option<Instant>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        debug!(server = %self.settings.name, peer = %connection.endpoints.shown_peer(), %refusal, "request refused");
        self.refuse_with(connection, refusal.status(), since, jobs)
    }
}

/// Throws away what the client sends of a body that the application did not read, so that a client
/// which sends it all before it reads anything comes to read its answer.
fn drop_unread(connection: &mut Connection, sending: &mut Sending) {
    let most = match sending.after {
        After::Next => DISCARD_BYTES,
        After::Close | After::Linger | After::Cut => super::ending::LINGER_BYTES,
    };
    while !connection.decoder.is_body_read()
        && sending.discarded < most
        && let Ok(BodyStep::Data(piece)) = connection.next_piece()
    {
        sending.discarded += piece.len();
    }
    if sending.discarded > DISCARD_BYTES && sending.after != After::Cut {
        sending.after = After::Linger;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Settings;
    use crate::server::connection::tests::connection_with;
    use crate::server::tests::Unused;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    /// Far more than any of them takes, also where other work has the processors.
    const LONG: Duration = Duration::from_secs(20);
    /// Deadlines lie so many nanoseconds behind the moment in which a thread begins to put a connection
    /// back: the reactor finds them while it does so.
    const NEAR: u64 = 1_000;
    /// How often that is tried, and for how long at most.
    const TIMES: u64 = 20_000;
    const AT_MOST: Duration = Duration::from_secs(5);

    /// The connection, once the reactor has found that its time was up.
    fn handled(reactor: &Reactor, token: Token) -> Option<Box<Connection>> {
        let mut slots = reactor.slots.lock();
        let is_over =
            |connection: &mut Box<Connection>| !matches!(connection.phase, Phase::Refused { .. });
        slots.find(token)?.connection.take_if(is_over)
    }

    #[test]
    fn a_deadline_that_passes_while_its_connection_is_put_back_is_not_lost() {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap().into());
        let reactor = Reactor::new(listener, Settings::default(), Arc::new(Unused)).unwrap();
        let (mut connection, _client) = connection_with(None);
        let token = reactor.slots.lock().add();
        connection.token = token;
        let mut held = Some(Box::new(connection));
        let is_over = AtomicBool::new(false);

        let lost = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut due, mut jobs) = (Vec::new(), Vec::new());
                while !is_over.load(Ordering::Relaxed) {
                    due.clear();
                    let now = Instant::now();
                    reactor.deadlines.due(now, &mut due);
                    for token in &due {
                        reactor.check_deadline(*token, now, &mut jobs);
                    }
                }
            });
            let began = Instant::now();
            let mut is_handled = |time: u64| {
                let until = Instant::now() + Duration::from_nanos(time % NEAR);
                let mut connection = held.take()?;
                connection.phase = Phase::Refused { until: Some(until) };
                held = reactor.park(connection);
                while held.is_none() && until.elapsed() < LONG {
                    std::thread::yield_now();
                    held = handled(&reactor, token);
                }
                held.is_some().then_some(())
            };
            let lost = (0..TIMES)
                .take_while(|_| began.elapsed() < AT_MOST)
                .find(|time| is_handled(*time).is_none());
            is_over.store(true, Ordering::Relaxed);
            lost
        });

        assert_eq!(lost, None);
    }
}
