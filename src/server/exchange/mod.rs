//! One request and its answer, on the thread that runs the application.
//!
//! Implements [`Exchange`]: reads the body, encodes the answer and gives it to the link. Blocks its
//! thread on the client only where PEP 3333 leaves no choice: to read a body, and before a further
//! piece of an answer while the one before has not been taken. What the kernel does not take at once
//! is left to the [`Keeper`], which sends on while the application works. How it ends, and whether
//! the connection survives that, is in [`ending`]; [`super::reactor`] acts on it.

mod ending;

use crate::scoreboard::{self, InFlight};
use crate::server::client_wait::{Direction, Lately, Waited};
use crate::server::connection::{BodyStep, Connection, Phase, Token};
use crate::server::encoding::{
    CHUNK_END, CONTINUE, Framing, LAST_CHUNK, Persistence, write_chunk_size, write_head,
};
use crate::server::link::Flushed;
use crate::server::received_request::ReceivedRequest;
use crate::server::sending::{After, Note, Sending, UnsentMemory};
use crate::server::slow_clients::SlowClients;
use crate::server::socket;
use crate::wsgi::request::RequestHead;
use crate::wsgi::{
    BodyError, ClientGone, Delivery, Endpoints, Exchange, FilePart, GivenUp, ResponseHead, Room,
};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Version};
use nix::poll::PollFlags;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How much of a body that the application left unread is thrown away to keep the connection.
pub(in crate::server) const DISCARD_BYTES: usize = 64 << 10;
/// A body of up to this many bytes is copied behind its head: that costs less than what the kernel
/// does to look at two buffers.
const SHORT: usize = 4 << 10;

/// Keeps connections, and sends on them, while no thread of theirs needs them.
pub(in crate::server) trait Keeper: Sync {
    /// Takes a connection that has something left to send.
    fn keep(&self, connection: Box<Connection>);
    /// More threads wait for clients than may while requests wait for a thread.
    fn relieve(&self);
    /// A thread waits no more for the client to send, and the next upload may have its permit.
    fn upload_ended(&self);
    /// Makes so much memory free for an answer that its client has not taken, if the thread is needed
    /// for other requests; false when it cannot.
    fn make_memory(&self, bytes: u64) -> bool;
    /// Ends a connection on which everything was said, whose exchange goes on without it. So many bytes
    /// of memory were reserved for what is left to send.
    fn end(&self, connection: Box<Connection>, after: After, reserved: u64);
    /// Gives it back; `None` when it is lost.
    fn reclaim(&self, token: Token) -> Option<Box<Connection>>;
}

/// What exchanges have in common.
#[derive(Debug)]
pub(in crate::server) struct Terms<'r> {
    /// How long a thread waits for a client that neither sends nor takes anything.
    pub(in crate::server) timeout: Option<Duration>,
    /// A connection may carry more than one request.
    pub(in crate::server) keep_alive: bool,
    pub(in crate::server) is_draining: &'r AtomicBool,
    pub(in crate::server) slow_clients: &'r SlowClients,
    pub(in crate::server) unsent: &'r UnsentMemory,
}

/// How far the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Nothing,
    Started,
    Ended,
}

/// What the connection can be used for after an exchange.
#[derive(Debug)]
pub(in crate::server) enum Outcome {
    /// Nothing: the client did not take the answer.
    Failed(Option<(Note, Delivery)>),
    /// Nothing, and the reactor has it already: the request was given up.
    GivenUp,
    /// The answer is with the kernel.
    Sent(After, Option<Note>),
    /// It is complete, and the client has not taken it yet.
    Sending(Box<Sending>),
}

/// See the module's text.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not a state machine"
)]
pub(in crate::server) struct ConnectionExchange<'r> {
    keeper: &'r dyn Keeper,
    terms: &'r Terms<'r>,
    token: Token,
    endpoints: Arc<Endpoints>,
    /// Absent while the keeper has it, and once it is lost.
    connection: Option<Box<Connection>>,
    is_kept: bool,
    /// Memory that was reserved for what the keeper sends.
    reserved: u64,
    received: Box<ReceivedRequest>,
    progress: Progress,
    framing: Framing,
    /// Bytes that a `Content-Length` leaves room for.
    room: u64,
    /// Reading the body failed; whatever the application answers, the client gets this.
    failure: Option<BodyError>,
    reading: Waited,
    writing: Waited,
    reading_lately: Lately,
    writing_lately: Lately,
    /// Bytes of the body that were put into the link.
    body: u64,
    /// The connection is of no use any more; so much of the body had been taken.
    failed: Option<Delivery>,
    /// The answer goes no further, and its client is to see that behind what it was given of it.
    is_cut: bool,
    /// The answer has announced that it is the connection's last.
    is_last: bool,
    has_continued: bool,
    note: Option<Box<dyn Any + Send>>,
    /// Counts the request as in flight. Absent once it was given up: the connection is none of this
    /// exchange's business any more then.
    in_flight: Option<InFlight<'static>>,
}

impl<'r> ConnectionExchange<'r> {
    pub(in crate::server) fn new(
        connection: Box<Connection>,
        received: Box<ReceivedRequest>,
        keeper: &'r dyn Keeper,
        terms: &'r Terms<'r>,
    ) -> Self {
        Self {
            keeper,
            terms,
            token: connection.token,
            endpoints: connection.endpoints.clone(),
            connection: Some(connection),
            is_kept: false,
            reserved: 0,
            received,
            progress: Progress::Nothing,
            framing: Framing::Bodiless,
            room: u64::MAX,
            failure: None,
            reading: Waited::default(),
            writing: Waited::default(),
            reading_lately: Lately::default(),
            writing_lately: Lately::default(),
            body: 0,
            failed: None,
            is_cut: false,
            is_last: false,
            has_continued: false,
            note: None,
            in_flight: Some(scoreboard::current().begin()),
        }
    }

    /// The connection, taken back from the keeper if need be.
    fn reclaim(&mut self) -> Option<&mut Connection> {
        if std::mem::take(&mut self.is_kept) {
            self.connection = self.keeper.reclaim(self.token);
            self.terms
                .unsent
                .release(std::mem::take(&mut self.reserved));
        }
        self.connection.as_deref_mut()
    }

    /// The connection, if it is of use.
    fn usable(&mut self) -> Result<&mut Connection, ClientGone> {
        if self.failed.is_some() {
            return Err(ClientGone);
        }
        self.reclaim().ok_or(ClientGone)
    }

    /// Encodes the head, with the word on the connection that follows from it.
    fn encode(&mut self, head: &ResponseHead, room: usize) -> Vec<u8> {
        let version = self.received.head.response_version();
        self.is_last |= self.must_close()
            || self.framing == Framing::Close
            || head.headers.get(CONNECTION).is_some_and(is_close);
        let persistence = match version {
            _ if self.is_last => Persistence::Close,
            Version::HTTP_10 => Persistence::Announced,
            _ => Persistence::Implied,
        };
        let mut out = Vec::with_capacity(256 + room);
        write_head(&mut out, head, version, self.framing, persistence);
        out
    }

    /// Puts a piece of the body into the link, as far as there is room for it, framed.
    fn put(&mut self, mut piece: Bytes) -> Result<(), ClientGone> {
        let framing = self.framing;
        piece.truncate(usize::try_from(self.room).unwrap_or(usize::MAX));
        if framing == Framing::Bodiless || piece.is_empty() {
            return Ok(());
        }
        if matches!(framing, Framing::Counted(_)) {
            self.room -= piece.len() as u64;
        }
        self.body += piece.len() as u64;
        let link = &mut self.usable()?.link;
        if framing == Framing::Chunked {
            let mut size = Vec::with_capacity(16);
            write_chunk_size(&mut size, piece.len());
            link.put(size.into());
            link.put(piece);
            link.put(Bytes::from_static(CHUNK_END));
        } else {
            link.put(piece);
        }
        Ok(())
    }

    /// Sends what was put into the link as far as the kernel takes it, and leaves the rest to the
    /// keeper.
    fn push(&mut self) -> Result<(), ClientGone> {
        loop {
            match self.usable()?.flush() {
                Ok(Flushed::Done) => return Ok(()),
                Ok(Flushed::Turn) => {}
                Ok(Flushed::Blocked) => return self.leave(),
                Err(_) => return self.lose(),
            }
        }
    }

    fn reserve(&self, memory: u64) -> bool {
        let unsent = self.terms.unsent;
        unsent.reserve(memory) || self.keeper.make_memory(memory) && unsent.reserve(memory)
    }

    /// Leaves the connection to the keeper, which sends on; waits where the memory for that is used
    /// up.
    fn leave(&mut self) -> Result<(), ClientGone> {
        let memory = self.usable()?.link.memory();
        if !self.reserve(memory) {
            return self.settle();
        }
        self.reserved = memory;
        if let Some(mut connection) = self.connection.take() {
            connection.phase = Phase::Producing;
            self.is_kept = true;
            self.keeper.keep(connection);
        }
        Ok(())
    }

    /// Waits until everything that was put into the link is with the kernel.
    fn settle(&mut self) -> Result<(), ClientGone> {
        loop {
            let connection = self.usable()?;
            match connection.flush() {
                Ok(Flushed::Done) => return Ok(()),
                Ok(Flushed::Turn) => {}
                Ok(Flushed::Blocked) => {
                    let before = connection.link.taken();
                    if !self.wait(PollFlags::POLLOUT, before) {
                        return self.fail();
                    }
                }
                Err(_) => return self.lose(),
            }
        }
    }

    /// Blocks until the socket is ready; false when it did not become so in time, when this client
    /// has held up threads for too long altogether, or when it had to make room for others.
    fn wait(&mut self, events: PollFlags, taken: u64) -> bool {
        let (direction, mut waited, lately) = if events.contains(PollFlags::POLLIN) {
            (Direction::Receiving, self.reading, &mut self.reading_lately)
        } else {
            (Direction::Sending, self.writing, &mut self.writing_lately)
        };
        let lately = lately.of(waited);
        let timeout = self.terms.timeout;
        let slow_clients = self.terms.slow_clients;
        let keeper = self.keeper;
        let beyond_share = || keeper.relieve();
        let Some(connection) = self.reclaim() else {
            return false;
        };
        let link = &mut connection.link;
        let began = Instant::now();
        let before = waited;
        let for_client = scoreboard::current().wait_for_client();
        let (is_ready, may_stay) =
            slow_clients.during(&link.transport, direction, lately, beyond_share, || {
                waited.wait(&link.transport, events, direction, timeout)
            });
        drop(for_client);
        waited.time += began.elapsed();
        if direction == Direction::Receiving {
            link.read_blocked = false;
        }
        link.write_blocked = false;
        if is_ready && may_stay && direction == Direction::Sending {
            let _ = link.flush();
            // Room for it was made by what the client has taken, whether that was seen or not.
            waited.bytes = waited.bytes.max(before.bytes + link.taken() - taken);
        }
        match direction {
            Direction::Receiving => self.reading.time = waited.time,
            Direction::Sending => self.writing = waited,
        }
        is_ready && may_stay
    }
}

impl ConnectionExchange<'_> {
    /// Lets the next upload begin where no more of this body is waited for.
    fn note_reading(&mut self) {
        let is_over = self.failure.is_some()
            || self
                .connection
                .as_ref()
                .is_none_or(|connection| connection.decoder.is_body_read());
        if is_over && self.received.permit.take().is_some() {
            self.keeper.upload_ended();
        }
    }
}

impl Exchange for ConnectionExchange<'_> {
    fn request(&self) -> &RequestHead {
        &self.received.head
    }

    fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    fn is_bodiless(&self) -> bool {
        self.received.is_bodiless
    }

    fn body_length(&self) -> Option<u64> {
        self.received.body_length
    }

    fn read(&mut self) -> Result<Option<Bytes>, BodyError> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        if let Some(piece) = self.received.pieces.pop_front() {
            return Ok(Some(piece));
        }
        if self.received.is_bodiless {
            return Ok(None);
        }
        if self.received.is_expecting && !self.has_continued && self.progress == Progress::Nothing {
            self.has_continued = true;
            if let Ok(connection) = self.usable()
                && !connection.decoder.is_body_read()
            {
                connection.link.put(Bytes::from_static(CONTINUE));
            }
        }
        loop {
            let Ok(connection) = self.usable() else {
                self.failure = Some(BodyError::Disconnected);
                return Err(BodyError::Disconnected);
            };
            // The interim answer, or a piece of this one that the client has not taken yet.
            let is_sent = connection.link.is_flushed() || connection.flush().is_ok();
            let error = match connection.next_piece() {
                Ok(BodyStep::Data(piece)) => {
                    self.reading.bytes += piece.len() as u64;
                    self.note_reading();
                    return Ok(Some(piece));
                }
                Ok(BodyStep::End) => {
                    self.note_reading();
                    return Ok(None);
                }
                Err(error) => error,
                Ok(BodyStep::Blocked) if !is_sent => BodyError::Disconnected,
                Ok(BodyStep::Blocked) => {
                    let mut events = PollFlags::POLLIN;
                    if connection.link.write_blocked {
                        events |= PollFlags::POLLOUT;
                    }
                    let taken = connection.link.taken();
                    if self.wait(events, taken) {
                        continue;
                    }
                    BodyError::TimedOut
                }
            };
            self.failure = Some(error);
            self.note_reading();
            return Err(error);
        }
    }

    fn read_into(&mut self, room: &mut Room<'_>) -> Result<usize, BodyError> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        let is_held_back = self.received.is_expecting && !self.has_continued;
        if is_held_back || self.received.is_bodiless || !self.received.pieces.is_empty() {
            return Ok(0);
        }
        let Ok(connection) = self.usable() else {
            return Ok(0);
        };
        // A piece of the answer that the client has not taken yet goes first.
        if !connection.link.is_flushed() {
            return Ok(0);
        }
        match connection.read_into(room) {
            Ok(count) => {
                self.reading.bytes += count as u64;
                self.note_reading();
                Ok(count)
            }
            Err(error) => {
                self.failure = Some(error);
                self.note_reading();
                Err(error)
            }
        }
    }

    fn respond(&mut self, mut head: ResponseHead, mut body: Bytes) -> Result<(), ClientGone> {
        if self.progress != Progress::Nothing {
            // A second answer would be taken for that of the next request.
            return Err(ClientGone);
        }
        if let Some(error) = self.failure {
            return self.send_error(error.status());
        }
        let request = &self.received.head;
        let (method, version) = (request.method(), request.response_version());
        self.framing = Framing::of(&head, method, version, Some(body.len() as u64));
        match self.framing {
            Framing::Counted(length) if length != body.len() as u64 => {
                // The client must not take this connection for a healthy one.
                head.headers
                    .insert(CONNECTION, HeaderValue::from_static("close"));
                self.start(head)?;
                self.write(body)?;
                return self.finish();
            }
            Framing::Bodiless => body = Bytes::new(),
            Framing::Counted(_) | Framing::Chunked | Framing::Close => {}
        }
        self.progress = Progress::Ended;
        self.body = body.len() as u64;
        let is_short = body.len() <= SHORT;
        let mut out = self.encode(&head, if is_short { body.len() } else { 0 });
        if is_short {
            out.extend_from_slice(&body);
            body = Bytes::new();
        }
        match self.usable()?.link.send(out, body) {
            Ok(Flushed::Done) => Ok(()),
            Ok(Flushed::Blocked | Flushed::Turn) => self.push(),
            Err(_) => self.fail(),
        }
    }

    fn start(&mut self, head: ResponseHead) -> Result<(), ClientGone> {
        if self.progress != Progress::Nothing {
            return Err(ClientGone);
        }
        if let Some(error) = self.failure {
            return self.send_error(error.status());
        }
        self.progress = Progress::Started;
        let request = &self.received.head;
        self.framing = Framing::of(&head, request.method(), request.response_version(), None);
        if let Framing::Counted(length) = self.framing {
            self.room = length;
        }
        let out = self.encode(&head, 0);
        let is_delimited_by_end = self.framing == Framing::Close;
        let link = &mut self.usable()?.link;
        if is_delimited_by_end {
            link.delimit_by_end();
        }
        link.put(out.into());
        // Leaves with the first piece of the body, which follows at once or is waited for.
        Ok(())
    }

    fn write(&mut self, piece: Bytes) -> Result<(), ClientGone> {
        if piece.is_empty() || self.progress != Progress::Started {
            return self.over();
        }
        if self.body > 0 {
            self.settle()?;
        }
        self.put(piece)?;
        self.push()
    }

    fn write_rest(&mut self, pieces: Vec<Bytes>) -> Result<(), ClientGone> {
        if self.progress != Progress::Started {
            return self.over();
        }
        for piece in pieces {
            self.put(piece)?;
        }
        self.push()
    }

    fn write_file(&mut self, mut part: FilePart) -> Result<u64, ClientGone> {
        if self.progress != Progress::Started {
            return self.over().map(|()| part.length);
        }
        debug_assert!(
            matches!(self.framing, Framing::Counted(_)),
            "what a file needs"
        );
        self.settle()?;
        part.length = part.length.min(self.room);
        let (before, length) = (self.body, part.length);
        self.room -= length;
        self.body += length;
        self.usable()?.link.put_file(part);
        match self.push() {
            Ok(()) => Ok(length),
            Err(_) if self.is_cut => Ok(self.body - before),
            Err(gone) => Err(gone),
        }
    }

    fn finish(&mut self) -> Result<(), ClientGone> {
        if self.progress != Progress::Started {
            return self.over();
        }
        self.progress = Progress::Ended;
        match self.framing {
            Framing::Chunked => self.usable()?.link.put(Bytes::from_static(LAST_CHUNK)),
            // Less than was promised: the client must see a cut.
            Framing::Counted(_) if self.room > 0 => return self.cut(),
            Framing::Counted(_) | Framing::Bodiless | Framing::Close => {}
        }
        self.push()
    }

    fn close(&mut self) {
        self.is_last = true;
    }

    fn abort(&mut self) {
        let has_told = self.failure.is_some() && self.progress == Progress::Ended;
        if self.failed.is_some() || has_told {
            return;
        }
        // What the application gave before it failed is the client's. Whatever is in the way of it is
        // found when the rest is sent.
        if let Some(connection) = self.reclaim() {
            drop(connection.flush());
        }
        let _ = self.cut();
    }

    fn is_client_gone(&mut self) -> bool {
        if self.failed.is_some() {
            return true;
        }
        self.reclaim()
            .is_none_or(|held| socket::is_dead(&held.link.transport))
    }

    fn give_up(&mut self) -> Option<GivenUp> {
        self.take_leave()
    }

    fn waited(&self) -> Duration {
        self.reading.time + self.writing.time
    }

    fn delivery(&mut self) -> Option<Delivery> {
        if self.failed.is_some() || self.progress != Progress::Ended {
            return self.failed;
        }
        let connection = self.connection.as_ref().filter(|_| !self.is_kept)?;
        (connection.link.is_flushed()).then(|| connection.delivered(self.body, !self.is_cut))
    }

    fn when_delivered(&mut self, note: Box<dyn Any + Send>) {
        self.note = Some(note);
    }
}

fn is_close(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"close")
}
