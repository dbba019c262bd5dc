//! One connection: bytes from its link into requests, and where it is in its life.
//!
//! Owns the link and the decoder, and what the connection waits for. Never waits itself;
//! [`super::exchange`] and [`super::reactor`] do.

use super::encoding::{Framing, Persistence, write_head};
use super::framing::{Decoder, Limits, Piece, Refusal};
use super::link::{Flushed, Link};
use super::proxy_header::{self, Ends, Parsed};
use super::received_request::ReceivedRequest;
use super::sending::{Sending, Sent};
use super::socket::{self, Socket};
use crate::scoreboard;
use crate::wsgi::{BodyError, Delivery, Endpoints, ResponseHead, Room};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, StatusCode, Version};
use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Bytes that are received with one call.
const RECEIVE_BYTES: usize = 64 << 10;
/// The same where a head is expected: most heads are shorter, and what comes of a body behind one
/// is copied more often than what is received for itself.
const HEAD_RECEIVE_BYTES: usize = 8 << 10;

/// Names a connection for as long as it lives; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token(pub(super) u64);

/// What a connection that no thread has checked out is waiting for.
#[derive(Debug)]
pub(super) enum Phase {
    /// A request, or the rest of its head.
    Head {
        /// When the first byte of the head came; `None` before that.
        since: Option<Instant>,
    },
    /// The beginning of a body, or a permit for an upload, so that a slow client costs no thread.
    Collecting(Box<ReceivedRequest>),
    /// The client takes what there is of an answer, while the application works on it.
    Producing,
    /// The client takes the rest of an answer that is complete.
    Sending(Box<Sending>),
    /// The rest of a body that the application did not read.
    Discarding { budget: usize, since: Instant },
    /// The line in the access log of a request that was refused: until then at most, or without end.
    Refused { until: Option<Instant> },
    /// The client's end of the stream, after our own.
    Lingering(Lingering),
}

/// A connection on which the server has said its last word, and its client perhaps not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lingering {
    pub(super) since: Instant,
    /// When bytes came last.
    pub(super) active: Instant,
    /// Bytes that are still read and dropped.
    pub(super) budget: usize,
    /// The client may send more, and has to be heard to its end.
    pub(super) is_owed: bool,
}

/// How far a connection got.
#[derive(Debug)]
pub(super) enum Step {
    /// A request's head is complete.
    Request(Box<ReceivedRequest>),
    /// The client's stream cannot go on.
    Refused(Refusal),
    /// The stream does not begin with the header that proxies put there, or ends within it.
    NoProxyHeader,
    /// The client has ended its stream, or the stream has failed.
    Ended,
    /// The socket has to become ready first.
    Blocked,
}

/// What a connection has of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyStep {
    Data(Bytes),
    End,
    /// The socket has to become ready first.
    Blocked,
}

/// What there is of a request that a thread is to be spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collected {
    /// All of it: here, or with the kernel.
    Whole,
    /// Some of its body, and no more may be collected.
    Beginning,
    /// Too little: the socket has to become ready first.
    Missing,
}

/// What the kernel was found to hold of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Unknown,
    /// All that is missing of it, and more behind it.
    Body,
    /// All that is missing of it, and nothing else.
    BodyAlone,
}

/// What became of receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    Filled,
    Blocked,
    Ended,
}

/// See the module's text.
pub(super) struct Connection {
    pub(super) token: Token,
    pub(super) link: Link<Socket>,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) phase: Phase,
    /// The last time that bytes came, or a handshake or a request ended.
    pub(super) active: Instant,
    /// When the reactor will look at the connection next, if nothing happens.
    pub(super) armed: Option<Instant>,
    /// The kernel has been asked for events.
    pub(super) is_watched: bool,
    /// No request has come yet.
    pub(super) is_fresh: bool,
    /// Requests that were answered since the connection waited for anything.
    pub(super) in_a_row: u32,
    pub(super) decoder: Decoder,
    /// What the kernel holds of the body of the last request.
    left: Left,
    /// What has come of the header that a proxy puts in front of the stream; `None` once it is
    /// complete, or where there is none.
    proxy_header: Option<Vec<u8>>,
    /// Bytes that the link has sent and the scoreboard knows of.
    counted: u64,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("token", &self.token)
            .field("endpoints", &self.endpoints)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(
        token: Token,
        link: Link<Socket>,
        endpoints: Arc<Endpoints>,
        limits: Arc<Limits>,
        now: Instant,
    ) -> Self {
        Self {
            token,
            link,
            endpoints,
            phase: Phase::Head { since: None },
            active: now,
            armed: None,
            is_watched: false,
            is_fresh: true,
            in_a_row: 0,
            decoder: Decoder::new(limits),
            left: Left::Unknown,
            proxy_header: None,
            counted: 0,
        }
    }

    /// Expects a header of the PROXY protocol in front of everything else, TLS included.
    pub(super) fn expect_proxy_header(&mut self) {
        self.proxy_header = Some(Vec::new());
    }

    /// True until the proxy's header is complete.
    pub(super) fn lacks_proxy_header(&self) -> bool {
        self.proxy_header.is_some()
    }

    /// True where some of the proxy's header has come, and not all of it.
    pub(super) fn has_half_a_proxy_header(&self) -> bool {
        self.proxy_header
            .as_ref()
            .is_some_and(|held| !held.is_empty())
    }

    /// Reads the proxy's header as far as it has come, and not a byte of what follows it.
    fn read_proxy_header(&mut self, mut held: Vec<u8>) -> Result<(), Step> {
        // A header may be longer, up to 64 KiB with what proxies add; it comes in pieces then.
        let mut buffer = [0; 4 << 10];
        loop {
            if self.link.read_blocked {
                self.proxy_header = Some(held);
                return Err(Step::Blocked);
            }
            let count = match socket::peek(&self.link.transport, &mut buffer) {
                // A check of a load balancer's may open a connection and say nothing.
                Ok(0) if held.is_empty() => return Err(Step::Ended),
                Ok(0) => return Err(Step::NoProxyHeader),
                Ok(count) => count,
                Err(Errno::EAGAIN) => {
                    self.link.read_blocked = true;
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(_) if held.is_empty() => return Err(Step::Ended),
                Err(_) => return Err(Step::NoProxyHeader),
            };
            let before = held.len();
            held.extend_from_slice(&buffer[..count]);
            let (taken, header) = match proxy_header::parse(&held) {
                Ok(Parsed::Missing) => (count, None),
                Ok(Parsed::Header { length, ends }) => (length - before, Some(ends)),
                Err(proxy_header::Invalid) => return Err(Step::NoProxyHeader),
            };
            // They were seen there, so that they all come with one call.
            if socket::receive(&self.link.transport, &mut buffer[..taken]) != Ok(taken) {
                return Err(Step::Ended);
            }
            if let Some(ends) = header {
                if let Some(Ends { client, local }) = ends {
                    let tls = self.endpoints.tls;
                    self.endpoints = Arc::new(Endpoints::new(Some(client), Some(local), tls));
                }
                return Ok(());
            }
        }
    }

    /// What has gone out so far, and what the client has not taken of it.
    pub(super) fn sent(&self) -> Sent {
        sent(&self.link)
    }

    /// Looks at what the client has taken of an answer that is complete.
    pub(super) fn look(&mut self, now: Instant) {
        if let Phase::Sending(sending) = &mut self.phase {
            sending.look(now, sent(&self.link));
        }
    }

    /// Counts what was sent since the last call.
    pub(super) fn count_sent(&mut self) {
        let taken = self.link.taken();
        if taken > self.counted {
            scoreboard::current().figures().sent(taken - self.counted);
            self.counted = taken;
        }
    }

    /// Takes note of what the kernel said about the socket; false when nothing changes by it.
    pub(super) fn note(&mut self, events: EpollFlags) -> bool {
        let ends = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let link = &mut self.link;
        link.is_half_closed |= events.intersects(ends);
        let can_read = events.intersects(ends | EpollFlags::EPOLLIN);
        let could_not_write = link.write_blocked;
        link.read_blocked &= !can_read;
        link.write_blocked = false;
        can_read || could_not_write
    }

    /// The next request, as far as it has come.
    pub(super) fn next_request(&mut self) -> Step {
        if let Some(held) = self.proxy_header.take()
            && let Err(step) = self.read_proxy_header(held)
        {
            return step;
        }
        loop {
            match self.decoder.head() {
                Ok(Some(received)) => {
                    self.left = Left::Unknown;
                    if let Some(origin) = received.origin {
                        let Endpoints { peer, local, .. } = *self.endpoints;
                        // A packet that names no client has come from the socket's peer: it must
                        // not pass for one of a unix socket, which may be trusted.
                        let peer = origin.peer.or(peer);
                        self.endpoints = Arc::new(Endpoints::new(peer, local, origin.is_tls));
                    }
                    return Step::Request(Box::new(ReceivedRequest::new(received, Instant::now())));
                }
                Ok(None) => {}
                Err(refusal) => return Step::Refused(refusal),
            }
            match self.fill() {
                Fill::Filled => {}
                Fill::Blocked => return Step::Blocked,
                Fill::Ended => return Step::Ended,
            }
        }
    }

    /// The next piece of a body, as far as it has come.
    pub(super) fn next_piece(&mut self) -> Result<BodyStep, BodyError> {
        loop {
            match self.decoder.body() {
                Ok(Piece::Data(data)) => return Ok(BodyStep::Data(data)),
                Ok(Piece::End) => return Ok(BodyStep::End),
                Ok(Piece::Missing) => {}
                Err(Refusal::BodyTooLarge) => return Err(BodyError::TooLarge),
                Err(_) => return Err(BodyError::Framing),
            }
            match self.fill() {
                Fill::Filled => {}
                Fill::Blocked => return Ok(BodyStep::Blocked),
                Fill::Ended => return Err(BodyError::Disconnected),
            }
        }
    }

    /// Writes what comes next of a body straight to its place, where that needs no wait; returns how
    /// much. 0 says nothing but that [`Connection::next_piece`] is to be called.
    pub(super) fn read_into(&mut self, room: &mut Room<'_>) -> Result<usize, BodyError> {
        let copied = self.decoder.body_into(room);
        let Some(left) = self.decoder.outstanding() else {
            return Ok(copied);
        };
        if copied > 0 || self.link.is_encrypted() || room.left() == 0 {
            return Ok(copied);
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX);
        match self.link.receive_into(room, most) {
            Ok(0) => Err(BodyError::Disconnected),
            Ok(count) => {
                self.decoder.pass(count);
                // What has come since then causes an event of its own.
                let is_empty = self.left == Left::BodyAlone && self.decoder.is_body_read();
                self.link.read_blocked |= is_empty && !self.link.is_half_closed;
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(BodyError::Disconnected),
        }
    }

    /// True when the rest of a counted body, of `bound` bytes at most, has come and the kernel holds
    /// some of it. It can stay there until the application reads it: that spares memory and copies.
    fn is_body_left(&mut self, bound: usize) -> bool {
        let Some(left) = self.decoder.outstanding() else {
            return false;
        };
        let missing = left.saturating_sub(self.decoder.held() as u64);
        if missing == 0 || left > bound as u64 {
            return false;
        }
        let waiting = self.link.waiting();
        if waiting < missing {
            return false;
        }
        self.left = if waiting == missing {
            Left::BodyAlone
        } else {
            Left::Body
        };
        true
    }

    /// Throws away a body that was left to the kernel and that the application did not read.
    pub(super) fn drop_body_left(&mut self) {
        while self.left != Left::Unknown
            && !self.decoder.is_body_read()
            && matches!(self.next_piece(), Ok(BodyStep::Data(_)))
        {}
    }

    /// Takes what has come of a request's body, up to its bound, unless all of it is there.
    pub(super) fn collect(
        &mut self,
        received: &mut ReceivedRequest,
    ) -> Result<Collected, BodyError> {
        while received.collected < received.bound {
            if self.is_body_left(received.bound - received.collected) {
                return Ok(Collected::Whole);
            }
            match self.next_piece()? {
                BodyStep::Data(piece) => received.put(piece),
                BodyStep::End => return Ok(Collected::Whole),
                BodyStep::Blocked => return Ok(Collected::Missing),
            }
        }
        if self.decoder.is_body_read() || self.is_rest_here() {
            return Ok(Collected::Whole);
        }
        Ok(Collected::Beginning)
    }

    /// True when all that is missing of a counted body has come, as far as that is known.
    fn is_rest_here(&self) -> bool {
        self.decoder.outstanding().is_some_and(|left| {
            let missing = left.saturating_sub(self.decoder.held() as u64);
            missing == 0 || self.link.waiting() >= missing
        })
    }

    /// True when the client has left before all of a body has come, as far as that is known without
    /// receiving what is there.
    pub(super) fn has_left(&self) -> bool {
        let is_counted = self.decoder.outstanding().is_some() && !self.link.is_encrypted();
        self.link.is_half_closed
            && ((is_counted && !self.is_rest_here()) || socket::is_dead(&self.link.transport))
    }

    /// Receives once, and gives the decoder what came.
    fn fill(&mut self) -> Fill {
        thread_local! {
            // One for each thread and none for each connection: an idle connection costs no buffer.
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let most = if self.decoder.is_body_read() && !self.link.is_encrypted() {
            HEAD_RECEIVE_BYTES
        } else {
            RECEIVE_BYTES
        };
        let was_handshaking = self.link.is_handshaking();
        let fill = BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(RECEIVE_BYTES, 0);
            let buffer = &mut buffer[..most];
            loop {
                return match self.link.receive(buffer) {
                    Ok(0) => Fill::Ended,
                    Ok(count) => {
                        self.decoder.give(&buffer[..count]);
                        Fill::Filled
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fill::Blocked,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => Fill::Ended,
                };
            }
        });
        if was_handshaking && !self.link.is_handshaking() {
            // What the client has to say comes only now.
            self.active = Instant::now();
        }
        fill
    }

    /// Sends the head and the body of an answer of the server's own, which is the connection's last.
    /// Returns the length of the body. HEAD gets none (RFC 9110 section 9.3.2), only its length.
    pub(super) fn send_error(
        &mut self,
        status: StatusCode,
        is_to_head: bool,
        version: Version,
        headers: HeaderMap,
    ) -> usize {
        let body = format!("{}\n", status.canonical_reason().unwrap_or_default());
        let mut head = ResponseHead {
            status,
            reason: None,
            headers,
        };
        head.headers
            .entry(CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("text/plain"));
        let framing = Framing::Counted(body.len() as u64);
        let mut out = Vec::with_capacity(256);
        write_head(&mut out, &head, version, framing, Persistence::Close);
        let length = if is_to_head { 0 } else { body.len() };
        out.extend_from_slice(&body.as_bytes()[..length]);
        // Whether the client takes it makes no difference to what follows.
        drop(self.link.send(out, Bytes::new()));
        length
    }

    /// True where sending has failed because a file ended too early, and for no other reason: the
    /// client may still be there.
    pub(super) fn was_stopped_by_short_file(&self) -> bool {
        self.link.has_short_file() && self.link.unsent() > 0
    }

    /// What became of an answer with so many bytes of a body, nothing of which is left to send.
    pub(super) fn delivered(&self, body: u64, is_whole: bool) -> Delivery {
        Delivery {
            is_file_short: self.link.has_short_file(),
            ..Delivery::of(body, 0, is_whole)
        }
    }

    /// Gives up what is still to be sent; returns how many bytes those were.
    pub(super) fn drop_unsent(&mut self) -> u64 {
        let lost = self.link.unsent();
        self.link.abort();
        lost
    }

    /// True when everything that was to be sent is with the kernel; false when the client has to
    /// take some of it first.
    ///
    /// # Errors
    /// When the client is gone, or a file ended too early.
    pub(super) fn flush(&mut self) -> io::Result<Flushed> {
        self.link.flush()
    }
}

fn sent(link: &Link<Socket>) -> Sent {
    Sent {
        taken: link.taken(),
        unconfirmed: socket::unconfirmed(&link.transport),
    }
}

#[cfg(test)]
#[expect(
    unsafe_code,
    reason = "bytes of which a room says that they were written"
)]
pub(super) mod tests;
