//! One request and its answer, on the thread that has the connection checked out.
//!
//! Implements [`Exchange`]: drives the connection for body bytes and for the answer, and blocks
//! that thread on the client's socket, bounded by `client_socket_timeout`. Decides whether the
//! connection survives the exchange; [`super::reactor`] acts on it.

use super::connection::{Connection, ResponseBody, Step};
use super::link::FileSent;
use super::received_request::ReceivedRequest;
use super::socket;
use crate::wsgi::{BodyError, ClientGone, Endpoints, Exchange, FilePart, ResponseHead};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use nix::poll::PollFlags;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

/// How much of a body that the application left unread is thrown away to keep the connection.
pub(super) const DISCARD_BYTES: usize = 64 << 10;

/// Bytes of a file that are sent in one step, and those that are read in one where they cannot be.
const FILE_STEP: usize = 1 << 20;
const FILE_READ: usize = 64 << 10;

/// Stands for bytes of a file that hyper counts and never sees; the pages are never touched.
static UNSEEN: [u8; FILE_STEP] = [0; FILE_STEP];

/// The slowest client that a thread is spent on for longer than `client_socket_timeout`.
const BYTES_PER_MS: usize = 1;

/// How far the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Nothing,
    Started,
    Ended,
}

/// What the connection can be used for after an exchange.
pub(super) enum Outcome {
    /// Nothing: close it, in order if true.
    Close(bool),
    /// The next request was already there.
    Next(Box<ReceivedRequest>),
    /// The next request; what is left of this one's body comes first.
    Wait(Option<Incoming>),
}

/// See the module's text.
pub(super) struct ConnectionExchange<'c> {
    connection: &'c mut Connection,
    received: Box<ReceivedRequest>,
    timeout: Option<Duration>,
    is_draining: &'c AtomicBool,
    progress: Progress,
    /// Reading the body failed; whatever the application answers, the client gets this.
    failure: Option<BodyError>,
    /// When this thread first waited for the body, and how much of it has come since.
    reading: Option<(Instant, usize)>,
    /// The connection ended: in order if true.
    end: Option<bool>,
    /// The answer has announced that it is the connection's last.
    is_last: bool,
    /// Only the end of the connection tells the client where the answer ends.
    is_ended_by_close: bool,
    /// A Content-Length delimits the answer: what hyper sends of its body is the body, unframed.
    is_counted: bool,
    next: Option<Box<ReceivedRequest>>,
}

impl<'c> ConnectionExchange<'c> {
    pub(super) fn new(
        connection: &'c mut Connection,
        received: Box<ReceivedRequest>,
        timeout: Option<Duration>,
        is_draining: &'c AtomicBool,
    ) -> Self {
        Self {
            connection,
            received,
            timeout,
            is_draining,
            progress: Progress::Nothing,
            failure: None,
            reading: None,
            end: None,
            is_last: false,
            is_ended_by_close: false,
            is_counted: false,
            next: None,
        }
    }

    /// The handler has returned, or panicked.
    pub(super) fn into_outcome(mut self, has_panicked: bool) -> Outcome {
        match self.progress {
            Progress::Nothing => {
                let _ = self.send_error(StatusCode::INTERNAL_SERVER_ERROR);
            }
            Progress::Started => self.abort(),
            Progress::Ended => {}
        }
        if (has_panicked || self.is_last) && self.end.is_none() {
            self.end = Some(true);
        }
        match (self.end, self.next) {
            (Some(in_order), _) => Outcome::Close(in_order),
            (None, Some(received)) => Outcome::Next(received),
            (None, None) => Outcome::Wait(self.received.body),
        }
    }

    /// An answer of the server's own; the connection closes after it.
    fn send_error(&mut self, status: StatusCode) -> Result<(), ClientGone> {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        self.progress = Progress::Ended;
        let body = format!("{}\n", status.canonical_reason().unwrap_or_default());
        self.lay(
            ResponseHead {
                status,
                reason: None,
                headers,
            },
            ResponseBody::Whole(body.into()),
        );
        self.push(0)
    }

    fn lay(&mut self, head: ResponseHead, body: ResponseBody) {
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        if let Some(reason) = head
            .reason
            .and_then(|reason| ReasonPhrase::try_from(reason).ok())
        {
            response.extensions_mut().insert(reason);
        }
        if self.must_close() || response.headers().get(CONNECTION).is_some_and(is_close) {
            self.is_last = true;
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.connection.put_response(response);
    }

    /// Whether the answer has to announce that it is the connection's last.
    fn must_close(&self) -> bool {
        self.is_draining.load(Ordering::Relaxed)
            || (self.received.body.is_some()
                // The client still holds the body back, and may send it or not (RFC 9110 10.1.1).
                && (self.received.is_expecting || self.is_too_much_left()))
    }

    /// True when more of the body is to come than is worth throwing away.
    fn is_too_much_left(&self) -> bool {
        let outstanding = self.connection.link.state().framing.outstanding();
        outstanding.is_some_and(|count| count > DISCARD_BYTES as u64)
    }

    /// Drives the connection until the kernel has everything that was laid down: `size` bytes, more
    /// or less.
    fn push(&mut self, size: usize) -> Result<(), ClientGone> {
        if let Some(in_order) = self.end {
            return if in_order { Ok(()) } else { Err(ClientGone) };
        }
        let mut since = None;
        loop {
            match self.connection.advance() {
                Step::Closed(in_order) => {
                    self.end = Some(in_order);
                    return if in_order { Ok(()) } else { Err(ClientGone) };
                }
                Step::Request(received) => {
                    self.next = Some(received);
                    return Ok(());
                }
                Step::Blocked => {
                    if !self.connection.link.state().write_blocked {
                        return Ok(());
                    }
                    let since = *since.get_or_insert_with(Instant::now);
                    if !self.wait(PollFlags::POLLOUT, since, size) {
                        self.end = Some(false);
                        return Err(ClientGone);
                    }
                }
            }
        }
    }

    /// Lets the kernel move the file to the socket. hyper keeps the count: it is given bytes that
    /// stand for those of the file, and the link sends the file in their place.
    fn hand_over(&mut self, part: FilePart) -> Result<u64, ClientGone> {
        let mut left = part.length;
        self.connection.link.lend_file(part.file, part.offset);
        while left > 0 {
            let step = usize::try_from(left).map_or(FILE_STEP, |left| left.min(FILE_STEP));
            self.connection
                .put_chunk(Bytes::from_static(&UNSEEN[..step]));
            if self.push(step).is_err() {
                break;
            }
            left -= step as u64;
        }
        let FileSent { bytes, has_ended } = self.connection.link.reclaim_file();
        if has_ended || bytes == part.length {
            return Ok(bytes);
        }
        // Whatever hyper still has to send stands for bytes that nobody can send any more.
        self.end = Some(false);
        Err(ClientGone)
    }

    /// Reads the file and sends it like any other body: encrypted, or in chunks.
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

    /// Blocks until the socket is ready; false when it did not become so in time, or when less than
    /// `bytes` in the time `since` would hold up this thread for too long altogether.
    fn wait(&self, events: PollFlags, since: Instant, bytes: usize) -> bool {
        let link = &self.connection.link;
        let allowance =
            Duration::from_millis(u64::try_from(bytes / BYTES_PER_MS).unwrap_or(u64::MAX));
        let limit = self.timeout.map(|timeout| {
            let altogether = timeout.saturating_add(allowance);
            timeout.min(altogether.saturating_sub(since.elapsed()))
        });
        let is_ready = socket::wait(&link.socket, events, limit).unwrap_or(false);
        let mut state = link.state();
        if events.contains(PollFlags::POLLIN) {
            state.read_blocked = false;
        }
        state.write_blocked = false;
        is_ready
    }
}

impl Exchange for ConnectionExchange<'_> {
    fn request(&self) -> &Parts {
        &self.received.parts
    }

    fn endpoints(&self) -> &Endpoints {
        &self.connection.endpoints
    }

    fn is_bodiless(&self) -> bool {
        self.received.is_bodiless
    }

    fn read(&mut self) -> Result<Option<Bytes>, BodyError> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        if let Some(piece) = self.received.pieces.pop_front() {
            return Ok(Some(piece));
        }
        let (since, mut bytes) = self.reading.unwrap_or_else(|| (Instant::now(), 0));
        loop {
            let error = match self.connection.next_piece(&mut self.received.body) {
                Poll::Ready(Ok(piece)) => {
                    bytes += piece.as_ref().map_or(0, Bytes::len);
                    self.reading = Some((since, bytes));
                    return Ok(piece);
                }
                Poll::Ready(Err(error)) => error,
                Poll::Pending => {
                    let mut events = PollFlags::POLLIN;
                    if self.connection.link.state().write_blocked {
                        events |= PollFlags::POLLOUT;
                    }
                    if self.wait(events, since, bytes) {
                        continue;
                    }
                    BodyError::TimedOut
                }
            };
            self.failure = Some(error);
            self.received.body = None;
            return Err(error);
        }
    }

    fn respond(&mut self, mut head: ResponseHead, body: Bytes) -> Result<(), ClientGone> {
        if self.progress != Progress::Nothing {
            // A second answer would be taken for that of the next request.
            return Err(ClientGone);
        }
        if let Some(error) = self.failure {
            return self.send_error(status_of(error));
        }
        let announced = announced_length(&head.headers);
        let is_silent = self.received.parts.method == Method::HEAD
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        match announced {
            Some(length) if !is_silent && length != body.len() as u64 => {
                // hyper cuts what is too long and fails what is too short; either way the client
                // must not take this connection for a healthy one.
                head.headers
                    .insert(CONNECTION, HeaderValue::from_static("close"));
                self.start(head)?;
                self.write(body)?;
                self.finish()
            }
            _ => {
                self.progress = Progress::Ended;
                let size = body.len();
                self.lay(head, ResponseBody::Whole(body));
                self.push(size)
            }
        }
    }

    fn start(&mut self, head: ResponseHead) -> Result<(), ClientGone> {
        if self.progress != Progress::Nothing {
            return Err(ClientGone);
        }
        if let Some(error) = self.failure {
            return self.send_error(status_of(error));
        }
        self.progress = Progress::Started;
        self.is_counted = announced_length(&head.headers).is_some();
        self.is_ended_by_close =
            self.received.parts.version == Version::HTTP_10 && !self.is_counted;
        let body = self.connection.pieces();
        self.lay(head, body);
        self.push(0)
    }

    fn write(&mut self, piece: Bytes) -> Result<(), ClientGone> {
        if piece.is_empty() || self.progress != Progress::Started {
            return if self.end == Some(false) {
                Err(ClientGone)
            } else {
                Ok(())
            };
        }
        let size = piece.len();
        self.connection.put_chunk(piece);
        self.push(size)
    }

    fn write_file(&mut self, part: FilePart) -> Result<u64, ClientGone> {
        if self.progress != Progress::Started {
            return if self.end == Some(false) {
                Err(ClientGone)
            } else {
                Ok(part.length)
            };
        }
        if self.is_counted && !self.connection.endpoints.tls {
            self.hand_over(part)
        } else {
            self.copy(&part)
        }
    }

    fn finish(&mut self) -> Result<(), ClientGone> {
        if self.progress != Progress::Started {
            return Ok(());
        }
        self.progress = Progress::Ended;
        self.connection.end_chunks();
        self.push(0)
    }

    fn abort(&mut self) {
        if self.progress == Progress::Started && self.is_ended_by_close {
            // An end in order would look like a whole answer.
            socket::reset_on_close(&self.connection.link.socket);
        }
        self.progress = Progress::Ended;
        self.end = Some(false);
    }

    fn is_client_gone(&mut self) -> bool {
        self.end == Some(false) || socket::is_dead(&self.connection.link.socket)
    }
}

/// What a client is told whose request body cannot be read.
pub(super) fn status_of(error: BodyError) -> StatusCode {
    match error {
        BodyError::Disconnected | BodyError::Framing => StatusCode::BAD_REQUEST,
        BodyError::TimedOut => StatusCode::REQUEST_TIMEOUT,
    }
}

fn is_close(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"close")
}

fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
