//! PEP 3333 as plain values: what a request offers an application and what it may answer.
//!
//! Knows neither sockets nor the interpreter. The server room lends an [`Exchange`] for each request; the
//! boundary implements [`Handler`] and calls the application with it.

pub mod access_log;
pub mod environ;
pub mod host;
pub mod request;
pub mod response;
mod room;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use request::RequestHead;
pub use room::Room;
use std::any::Any;
use std::fmt::Debug;
use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

/// Where a request came from and where it arrived, as the environ shows it.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// The client's address; `None` for a unix socket.
    pub peer: Option<SocketAddr>,
    /// The address that accepted the connection; `None` for a unix socket.
    pub local: Option<SocketAddr>,
    /// True when the connection is encrypted: `wsgi.url_scheme` is then `https`.
    pub tls: bool,
    /// Address and port of `peer` as text, made once for all requests of the connection.
    text: Option<(environ::ArrayText, environ::ArrayText)>,
}

impl Endpoints {
    /// Both ends of a connection; `None` for those of a unix socket.
    #[must_use]
    pub fn new(peer: Option<SocketAddr>, local: Option<SocketAddr>, tls: bool) -> Self {
        Self {
            peer,
            local,
            tls,
            text: peer.map(|peer| {
                (
                    environ::address_text(peer.ip()),
                    environ::port_text(peer.port()),
                )
            }),
        }
    }

    /// The client as a log shows it: `192.0.2.1:4660`, or `unix` for a unix socket.
    #[must_use]
    pub fn shown_peer(&self) -> String {
        self.peer
            .map_or_else(|| "unix".to_owned(), |peer| peer.to_string())
    }

    /// The client's address and port as text; `None` for a unix socket.
    #[must_use]
    pub fn peer_text(&self) -> Option<(&[u8], &[u8])> {
        let (address, port) = self.text.as_ref()?;
        Some((address.as_bytes(), port.as_bytes()))
    }
}

/// Why the body of a request could not be read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The client closed the connection or reset it before the body was complete.
    #[error("the client went away before the request body was complete")]
    Disconnected,
    /// The chunked framing was broken (RFC 9112 section 7.1).
    #[error("the request body is not valid chunked framing")]
    Framing,
    /// It is longer than the server accepts.
    #[error("the request body is longer than the limit on bodies")]
    TooLarge,
    /// Nothing arrived for `client_socket_timeout`.
    #[error("the client sent no body data within client_socket_timeout")]
    TimedOut,
}

impl BodyError {
    /// What the client is told.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Disconnected | Self::Framing => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// The connection can take no more of the answer; nothing that follows will be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client went away before the answer was sent")]
pub struct ClientGone;

/// The head of an answer, already checked against PEP 3333 and RFC 9110.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status code.
    pub status: StatusCode,
    /// Reason phrase as the application gave it, if it is not the standard one.
    pub reason: Option<Bytes>,
    /// Headers in the application's order. `Content-Length`, if present, is the application's word
    /// and has been checked to be a plain number.
    pub headers: HeaderMap,
}

/// A stretch of a regular file, to be sent as it is.
#[derive(Debug)]
pub struct FilePart {
    /// The file, under a descriptor of its own: the application may close its copy at any time, and
    /// the number could then stand for something else.
    pub file: File,
    /// Where to begin, in bytes from the start of the file.
    pub offset: u64,
    /// How many bytes to send.
    pub length: u64,
}

/// One request and its answer, lent by the server to a [`Handler`].
///
/// Every call may block the calling thread on the client's socket, bounded by
/// `client_socket_timeout`; call none of them while holding the interpreter. An application may
/// read its input from a thread of its own, so calls may come from any thread, one at a time.
pub trait Exchange: Send {
    /// Method, target, version and headers of the request. Framing has been checked already.
    fn request(&self) -> &RequestHead;
    /// Addresses of both ends.
    fn endpoints(&self) -> &Endpoints;
    /// True when the request has no body at all (then [`Exchange::read`] returns `None` at once).
    fn is_bodiless(&self) -> bool;
    /// How long the body is, where the client has said so.
    fn body_length(&self) -> Option<u64>;
    /// The next piece of the request body, or `None` at its end. Sends `100 Continue` first where
    /// the client asked for it (RFC 9110 section 10.1.1).
    ///
    /// # Errors
    /// [`BodyError`] when the body cannot be completed.
    fn read(&mut self) -> Result<Option<Bytes>, BodyError>;
    /// Writes what comes next of the body to `room`, where it can be had without waiting and goes
    /// there with one copy. Returns how many bytes that were; 0 says nothing but that
    /// [`Exchange::read`] has to be called next.
    ///
    /// # Errors
    /// [`BodyError`] when the body cannot be completed.
    fn read_into(&mut self, room: &mut Room<'_>) -> Result<usize, BodyError> {
        let _ = room;
        Ok(0)
    }
    /// Sends the head with a whole body: the common, cheapest answer. Returns without waiting for the
    /// client: what it does not take at once is sent on while the calling thread does something
    /// else. May be called once, and not after [`Exchange::start`].
    ///
    /// # Errors
    /// [`ClientGone`].
    fn respond(&mut self, head: ResponseHead, body: Bytes) -> Result<(), ClientGone>;
    /// Starts an answer whose body follows in pieces. The head leaves with the first of them.
    ///
    /// # Errors
    /// [`ClientGone`].
    fn start(&mut self, head: ResponseHead) -> Result<(), ClientGone>;
    /// Sends one piece. What the client does not take at once is sent on while the application makes
    /// the next one, which is how PEP 3333 wants it; that one then waits for the piece before it.
    ///
    /// # Errors
    /// [`ClientGone`].
    fn write(&mut self, piece: Bytes) -> Result<(), ClientGone>;
    /// Sends the rest of a body that is there in pieces, without waiting for the client.
    ///
    /// # Errors
    /// [`ClientGone`].
    fn write_rest(&mut self, pieces: Vec<Bytes>) -> Result<(), ClientGone>;
    /// Sends a part of a file as one piece, without copying it where the connection allows, and
    /// without waiting for the client. Returns how many bytes were sent or will be: fewer than asked
    /// for when the file was found to have become shorter or cannot be read; then nothing but
    /// [`Exchange::abort`] can follow. To be called only in an answer that was started with a
    /// `Content-Length`.
    ///
    /// # Errors
    /// [`ClientGone`].
    fn write_file(&mut self, part: FilePart) -> Result<u64, ClientGone>;
    /// Ends an answer begun with [`Exchange::start`].
    ///
    /// # Errors
    /// [`ClientGone`].
    fn finish(&mut self) -> Result<(), ClientGone>;
    /// Makes the answer the connection's last, whatever its head says.
    fn close(&mut self);
    /// Closes the connection without completing the answer, so that the client cannot mistake a
    /// truncated answer for a whole one.
    fn abort(&mut self);
    /// True once the client is known to be gone; costs one non-blocking look at the socket.
    fn is_client_gone(&mut self) -> bool;
    /// Gives the request up: a client that has heard nothing yet is told `504`, another one is cut
    /// off, and the connection is taken away from the exchange, where nothing can be sent any more.
    /// `None` when the answer is complete already, or has been given up before.
    fn give_up(&mut self) -> Option<GivenUp>;
    /// How long the request has waited for its client so far.
    fn waited(&self) -> Duration;
    /// What became of the answer, once it has ended; `None` while the client has not taken it yet.
    fn delivery(&mut self) -> Option<Delivery>;
    /// Has the handler told by [`Handler::delivered`], with this note, what became of the answer.
    fn when_delivered(&mut self, note: Box<dyn Any + Send>);
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Bytes of its body that the kernel, or TLS in front of it, has taken.
    pub sent: u64,
    /// It was taken to its end; otherwise it was cut off.
    pub is_whole: bool,
    /// It was cut off because a file ended before the length that was announced for it.
    pub is_file_short: bool,
}

impl Delivery {
    /// Of an answer with so many bytes of a body, behind which `unsent` bytes at the end of its
    /// connection, heads and the framing of chunks among them, were not taken.
    #[must_use]
    pub fn of(body: u64, unsent: u64, is_whole: bool) -> Self {
        Self {
            sent: body.saturating_sub(unsent),
            is_whole,
            is_file_short: false,
        }
    }
}

/// What a client was told whose request was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    /// The status; `None` when the answer had begun, and was cut off.
    pub status: Option<StatusCode>,
    /// What became of the body.
    pub delivery: Delivery,
}

/// A request that the server answered by itself, because it could not be passed on.
#[derive(Debug)]
pub struct Refused {
    /// Where it came from.
    pub endpoints: Endpoints,
    /// The request line as far as it came, cut off after [`Refused::LONGEST_LINE`] bytes; empty when
    /// nothing came. Anything may stand in it.
    pub line: Vec<u8>,
    /// What the client was told.
    pub status: StatusCode,
    /// Bytes of body that it was told with.
    pub sent: u64,
    /// How long the server had to do with it.
    pub wall: Duration,
}

impl Refused {
    /// How much is kept of the request line of a refused request.
    pub const LONGEST_LINE: usize = 1024;
}

/// Answers requests. One value serves all threads of a server.
pub trait Handler: Send + Sync + Debug {
    /// Answers one request. Called without the interpreter held, on a pool thread.
    ///
    /// When it returns without having answered, the server sends `500` and closes.
    fn handle(&self, exchange: &mut dyn Exchange);
    /// Takes note of a request that never came to [`Handler::handle`]. Called on a pool thread,
    /// after the answer was sent.
    fn refused(&self, refused: &Refused) {
        let _ = refused;
    }
    /// What became of an answer whose client was slow to take it, with the note that was left by
    /// [`Exchange::when_delivered`]. Called on a pool thread.
    fn delivered(&self, note: Box<dyn Any + Send>, delivery: Delivery) {
        drop((note, delivery));
    }
    /// Gives up, by [`Exchange::give_up`], each request in which the application has been busy for
    /// `timeout`. Returns the kernel's ids of the threads that are still inside of these, and how long
    /// it is until the next request may be due; `None` when nothing is in flight. Called without the
    /// interpreter held, by a thread of its own.
    fn give_up_overdue(&self, timeout: Duration) -> (Vec<i32>, Option<Duration>) {
        let _ = timeout;
        (Vec::new(), None)
    }
    /// True while the handler has put work off that [`Handler::catch_up`] does. Called often.
    fn has_put_off(&self) -> bool {
        false
    }
    /// Does what was put off: all of it when the server is idle, otherwise what has waited for long.
    /// Called without the interpreter held.
    fn catch_up(&self, is_idle: bool) {
        let _ = is_idle;
    }
    /// How many requests can compute at once; the pool asks when a thread begins its life.
    fn at_once(&self) -> usize {
        1
    }
    /// Wraps the life of a pool thread: keeps its interpreter thread state between requests.
    fn thread(&self, body: &mut dyn FnMut());
}
