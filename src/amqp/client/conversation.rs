//! How a thread asks its broker for something, and what it does until the answer comes.
//!
//! Owns the limit of an answer's time. Goes on reading while it waits: what arrives in between is
//! for the one that asks to take.
//!
//! Rules: AMQP 0-9-1 section 2.2.1 (synchronous methods).

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;

use super::Options;
use super::assembler::Incoming;
use super::connection::{Connection, Fault};
use super::methods::{self, Method, PRECONDITION_FAILED, Refusal};

/// How often a thread that waits for an answer looks whether its owner is closed.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// How long a farewell may take. In tests longer than the test waits: there a clean close ends by the
/// broker's answer alone.
const FAREWELL: Duration = Duration::from_secs(if cfg!(test) { 3600 } else { 1 });
/// How long an answer may take at most where there are no heartbeats.
const UNHEARD: Duration = Duration::from_secs(60);

/// One side of what is said on a connection.
pub(super) trait Conversation {
    fn options(&self) -> &Options;
    /// Wakes the thread.
    fn bell(&self) -> &EventFd;
    /// The thread has to end.
    fn is_closing(&self) -> bool;
    /// Deals with what was not asked for.
    fn take(&mut self, connection: &mut Connection, incoming: Incoming) -> Result<(), Fault>;
    /// Nothing more has arrived for the moment, on *connection*.
    fn pause(&mut self, _connection: &Connection) {}

    /// The broker has closed a channel, and has not heard yet that this side knows.
    fn closed(&mut self, _channel: u16, _refusal: &Refusal) {}

    /// Sends *request* and waits for *answer*; goes on reading.
    fn ask(
        &mut self,
        connection: &mut Connection,
        channel: u16,
        request: Vec<u8>,
        answer: &Method,
    ) -> Result<(), Fault> {
        connection.link.queue(request)?;
        let mut patience = self.options().answers_within;
        if !connection.has_heartbeats() {
            patience = patience.min(UNHEARD);
        }
        let mut deadline = Instant::now() + patience;
        loop {
            match connection.next()? {
                Some(Incoming::Method(at, method)) if at == channel && method == *answer => {
                    return Ok(());
                }
                Some(Incoming::Method(at, Method::ChannelClose(refusal))) if at == channel => {
                    self.closed(channel, &refusal);
                    connection.channel_closed(channel)?;
                    return Err(Fault::Refused(refusal));
                }
                Some(incoming) => self.take(connection, incoming)?,
                None => {
                    self.pause(connection);
                    if self.is_closing() {
                        return Err(Fault::Lost("the transport is closed".to_owned()));
                    }
                    let now = Instant::now();
                    if connection.is_blocked {
                        deadline = now + patience;
                    }
                    if now > deadline {
                        return Err(Fault::Lost("the broker does not answer".to_owned()));
                    }
                    connection.read(Some(deadline.min(now + LOOK)), self.bell())?;
                }
            }
        }
    }

    /// Opens a channel.
    fn open_channel(&mut self, connection: &mut Connection) -> Result<u16, Fault> {
        self.open_free_channel(connection)
    }

    /// Opens a channel, of which one has to be free.
    fn open_free_channel(&mut self, connection: &mut Connection) -> Result<u16, Fault> {
        let channel = connection.new_channel()?;
        let request = methods::channel_open(channel);
        self.ask(connection, channel, request, &Method::ChannelOpenOk)?;
        Ok(channel)
    }

    /// Sleeps until the bell, or *until*.
    fn wait_for_bell(&self, until: Option<Instant>) {
        let mut fds = [PollFd::new(self.bell().as_fd(), PollFlags::POLLIN)];
        let left = until.map(|at| TimeSpec::from(at.saturating_duration_since(Instant::now())));
        let _ = ppoll(&mut fds, left, None);
        let _ = self.bell().read();
    }

    /// Says goodbye, and waits a moment for the answer.
    fn part(&self, connection: &mut Connection) {
        let deadline = Instant::now() + FAREWELL;
        if connection.link.queue(methods::close(200, "")).is_err() {
            return;
        }
        while Instant::now() < deadline {
            match connection.next() {
                Ok(Some(Incoming::Method(0, Method::CloseOk))) | Err(_) => return,
                Ok(Some(_)) => {}
                Ok(None) => {
                    if connection.read(Some(deadline), self.bell()).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// The broker has an exchange or a queue of this name that is durable, or is not.
pub(super) fn is_of_other_durability(outcome: &Result<(), Fault>) -> bool {
    matches!(
        outcome,
        Err(Fault::Refused(refusal)) if refusal.code == PRECONDITION_FAILED
            && refusal.text.contains("inequivalent arg 'durable'")
    )
}
