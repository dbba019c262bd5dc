//! One request and its answer, on the thread that runs the application.
//!
//! Implements [`Exchange`]: reads the body, encodes the answer and gives it to the link. Blocks its
//! thread on the client only where PEP 3333 leaves no choice: to read a body, and before a further
//! piece of an answer while the one before has not been taken. What the kernel does not take at once
//! is left to the [`Keeper`], which sends on while the application works. Decides whether the
//! connection survives the exchange; [`super::reactor`] acts on it.

use super::client_wait::{Direction, Waited};
use super::connection::{BodyStep, Connection, Phase, Token};
use super::encoding::{
    CHUNK_END, CONTINUE, Framing, LAST_CHUNK, Persistence, write_chunk_size, write_head,
};
use super::link::Flushed;
use super::received_request::ReceivedRequest;
use super::sending::{After, Note, Sending, UnsentMemory, delivery};
use super::slow_clients::SlowClients;
use super::socket;
use crate::scoreboard::{self, InFlight};
use crate::wsgi::request::RequestHead;
use crate::wsgi::{
    BodyError, ClientGone, Delivery, Endpoints, Exchange, FilePart, GivenUp, ResponseHead, Room,
};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use nix::poll::PollFlags;
use std::any::Any;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How much of a body that the application left unread is thrown away to keep the connection.
pub(super) const DISCARD_BYTES: usize = 64 << 10;
/// Bytes of a file that are read in one step where it cannot be sent as it is.
const FILE_READ: usize = 64 << 10;
/// A body of up to this many bytes is copied behind its head: that costs less than what the kernel
/// does to look at two buffers.
const SHORT: usize = 4 << 10;

/// Keeps connections, and sends on them, while no thread of theirs needs them.
pub(super) trait Keeper: Sync {
    /// Takes a connection that has something left to send.
    fn keep(&self, connection: Box<Connection>);
    /// More threads wait for clients than may while requests wait for a thread.
    fn relieve(&self);
    /// Makes so much memory free for an answer that its client has not taken, if the thread is needed
    /// for other requests; false when it cannot.
    fn make_memory(&self, bytes: u64) -> bool;
    /// Closes a connection on which everything was said, whose exchange goes on without it.
    fn end(&self, connection: Box<Connection>, is_cut: bool);
    /// Gives it back; `None` when it is lost.
    fn reclaim(&self, token: Token) -> Option<Box<Connection>>;
}

/// What exchanges have in common.
#[derive(Debug)]
pub(super) struct Terms<'r> {
    /// How long a thread waits for a client that neither sends nor takes anything.
    pub(super) timeout: Option<Duration>,
    /// A connection may carry more than one request.
    pub(super) keep_alive: bool,
    pub(super) is_draining: &'r AtomicBool,
    pub(super) slow_clients: &'r SlowClients,
    pub(super) unsent: &'r UnsentMemory,
}

/// How far the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Nothing,
    Started,
    Ended,
}

/// Whose doing it is that an answer goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Application,
}

/// What the connection can be used for after an exchange.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing: the client did not take the answer.
    Failed(Option<(Note, Delivery)>),
    /// Nothing: the application has broken its answer off, and the client is to see that.
    Cut(Option<(Note, Delivery)>),
    /// Nothing, and the reactor has it already: the request was given up.
    GivenUp,
    /// The answer is with the kernel.
    Sent(After, Option<Note>),
    /// It is complete, and the client has not taken it yet.
    Sending(Box<Sending>),
}

/// See the module's text.
pub(super) struct ConnectionExchange<'r> {
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
    /// Bytes of the body that were put into the link.
    body: u64,
    /// The connection is of no use any more; so much of the body had been taken.
    failed: Option<Delivery>,
    failed_by: Side,
    /// The answer has announced that it is the connection's last.
    is_last: bool,
    has_continued: bool,
    note: Option<Box<dyn Any + Send>>,
    /// Counts the request as in flight. Absent once it was given up: the connection is none of this
    /// exchange's business any more then.
    in_flight: Option<InFlight<'static>>,
}

impl<'r> ConnectionExchange<'r> {
    pub(super) fn new(
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
            body: 0,
            failed: None,
            failed_by: Side::Client,
            is_last: false,
            has_continued: false,
            note: None,
            in_flight: Some(scoreboard::current().begin()),
        }
    }

    /// The handler has returned, or panicked. The connection is absent when it is lost.
    pub(super) fn into_outcome(mut self, has_panicked: bool) -> (Option<Box<Connection>>, Outcome) {
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
            let failed = self.failed.unwrap_or_else(|| delivery(body, body));
            return (None, Outcome::Failed(note.map(|note| (note, failed))));
        };
        let after = if !self.is_last {
            After::Next
        } else if self.is_end_expected() {
            After::Close
        } else {
            After::Linger
        };
        let outcome = if let Some(delivery) = self.failed {
            let note = note.map(|note| (note, delivery));
            match self.failed_by {
                Side::Client => Outcome::Failed(note),
                Side::Application => Outcome::Cut(note),
            }
        } else if connection.link.is_flushed() {
            Outcome::Sent(after, note)
        } else {
            let resets = self.framing == Framing::Close;
            let sent = connection.sent();
            let sending = Sending::new(after, note, self.reserved, resets, sent);
            Outcome::Sending(Box::new(sending))
        };
        (Some(connection), outcome)
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

    /// An answer of the server's own; the connection closes after it.
    fn send_error(&mut self, status: StatusCode) -> Result<(), ClientGone> {
        self.progress = Progress::Ended;
        self.is_last = true;
        let version = self.received.head.response_version();
        let is_to_head = self.received.head.method() == Method::HEAD;
        let connection = self.usable()?;
        let length = connection.send_error(status, is_to_head, version, HeaderMap::new());
        self.body = length as u64;
        self.push()
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

    /// Whether the answer has to announce that it is the connection's last.
    fn must_close(&mut self) -> bool {
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
                Err(_) => return self.fail(),
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
                Err(_) => return self.fail(),
            }
        }
    }

    /// The connection is of no use any more.
    fn fail(&mut self) -> Result<(), ClientGone> {
        if self.failed.is_none() {
            let body = self.body;
            let (unsent, is_file_short) = self.reclaim().map_or((body, false), |held| {
                (held.link.unsent(), held.link.has_short_file())
            });
            let mut delivery = delivery(body, unsent);
            delivery.is_whole = false;
            delivery.is_file_short = is_file_short;
            self.failed = Some(delivery);
        }
        self.progress = Progress::Ended;
        let resets = self.framing == Framing::Close;
        if let Some(connection) = self.reclaim() {
            connection.link.abort(resets);
        }
        Err(ClientGone)
    }

    /// The application's answer goes no further, and its client may still be there.
    fn cut(&mut self) -> Result<(), ClientGone> {
        if self.failed.is_none() {
            self.failed_by = Side::Application;
        }
        self.fail()
    }

    /// Blocks until the socket is ready; false when it did not become so in time, when this client
    /// has held up threads for too long altogether, or when it had to make room for others.
    fn wait(&mut self, events: PollFlags, taken: u64) -> bool {
        let (direction, mut waited) = if events.contains(PollFlags::POLLIN) {
            (Direction::Receiving, self.reading)
        } else {
            (Direction::Sending, self.writing)
        };
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
            slow_clients.during(&link.transport, direction, before, beyond_share, || {
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

    /// Reads the file and sends it like any other body.
    fn copy(&mut self, part: &FilePart) -> Result<u64, ClientGone> {
        let mut sent = 0;
        while sent < part.length {
            let mut piece = vec![0; FILE_READ];
            let most = usize::try_from(part.length - sent).map_or(FILE_READ, |n| n.min(FILE_READ));
            match part.file.read_at(&mut piece[..most], part.offset + sent) {
                Ok(0) => break,
                Ok(count) => {
                    piece.truncate(count);
                    self.write(piece.into())?;
                    sent += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        Ok(sent)
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
                    return Ok(Some(piece));
                }
                Ok(BodyStep::End) => return Ok(None),
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
                Ok(count)
            }
            Err(error) => {
                self.failure = Some(error);
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
        self.usable()?.link.put(out.into());
        // Leaves with the first piece of the body, which follows at once or is waited for.
        Ok(())
    }

    fn write(&mut self, piece: Bytes) -> Result<(), ClientGone> {
        if piece.is_empty() || self.progress != Progress::Started {
            return if self.failed.is_some() {
                Err(ClientGone)
            } else {
                Ok(())
            };
        }
        if self.body > 0 {
            self.settle()?;
        }
        self.put(piece)?;
        self.push()
    }

    fn write_rest(&mut self, pieces: Vec<Bytes>) -> Result<(), ClientGone> {
        if self.progress != Progress::Started {
            return if self.failed.is_some() {
                Err(ClientGone)
            } else {
                Ok(())
            };
        }
        for piece in pieces {
            self.put(piece)?;
        }
        self.push()
    }

    fn write_file(&mut self, mut part: FilePart) -> Result<u64, ClientGone> {
        if self.progress != Progress::Started {
            return if self.failed.is_some() {
                Err(ClientGone)
            } else {
                Ok(part.length)
            };
        }
        if self.framing == Framing::Chunked {
            return self.copy(&part);
        }
        self.settle()?;
        part.length = part.length.min(self.room);
        let length = part.length;
        if matches!(self.framing, Framing::Counted(_)) {
            self.room -= length;
        }
        self.body += length;
        self.usable()?.link.put_file(part);
        match self.push() {
            Ok(()) => Ok(length),
            Err(gone) => match self.failed {
                Some(delivery) if delivery.is_file_short => Ok(delivery.sent),
                _ => Err(gone),
            },
        }
    }

    fn finish(&mut self) -> Result<(), ClientGone> {
        if self.progress != Progress::Started {
            return if self.failed.is_some() {
                Err(ClientGone)
            } else {
                Ok(())
            };
        }
        self.progress = Progress::Ended;
        match self.framing {
            Framing::Chunked => self.usable()?.link.put(Bytes::from_static(LAST_CHUNK)),
            Framing::Counted(_) if self.room > 0 => {
                // Less than was promised: the client must see a cut.
                let _ = self.settle();
                return self.cut();
            }
            Framing::Counted(_) | Framing::Bodiless | Framing::Close => {}
        }
        self.push()
    }

    fn close(&mut self) {
        self.is_last = true;
    }

    fn abort(&mut self) {
        if self.failed.is_some() {
            return;
        }
        // What the application gave before it failed is the client's, if it can take it at once.
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
        if self.failed.is_some() || self.progress == Progress::Ended {
            return None;
        }
        let status = StatusCode::GATEWAY_TIMEOUT;
        let is_answered = self.progress == Progress::Nothing && self.send_error(status).is_ok();
        let body = self.body;
        let given_up = GivenUp {
            status: is_answered.then_some(status),
            delivery: if is_answered {
                delivery(body, 0)
            } else {
                self.abort();
                self.failed.unwrap_or(Delivery {
                    sent: 0,
                    is_whole: false,
                    is_file_short: false,
                })
            },
        };
        self.failed = Some(given_up.delivery);
        self.progress = Progress::Ended;
        self.failure = Some(BodyError::Disconnected);
        // It is not in flight any more, whatever the application does.
        self.in_flight = None;
        self.reclaim();
        if let Some(connection) = self.connection.take() {
            self.keeper.end(connection, !is_answered);
        }
        Some(given_up)
    }

    fn waited(&self) -> Duration {
        self.reading.time + self.writing.time
    }

    fn delivery(&mut self) -> Option<Delivery> {
        if self.failed.is_some() || self.progress != Progress::Ended {
            return self.failed;
        }
        let body = self.body;
        if self.is_kept {
            return None;
        }
        let connection = self.connection.as_ref()?;
        connection.link.is_flushed().then(|| delivery(body, 0))
    }

    fn when_delivered(&mut self, note: Box<dyn Any + Send>) {
        self.note = Some(note);
    }
}

fn is_close(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"close")
}
