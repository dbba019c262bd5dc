//! One connection: hyper's state machine, polled by hand by whichever thread has it checked out.
//!
//! Owns the hyper connection and the handoff through which requests come out of it and responses go in.
//! Never waits; [`super::exchange`] and [`super::reactor`] do. The application runs outside of
//! `poll`: hyper's service only leaves the request in the handoff, and its future stays pending until
//! a response is there.

use super::framing::Refusal;
use super::link::{Io, Link};
use super::received_request::ReceivedRequest;
use crate::wsgi::{BodyError, Endpoints};
use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::Service;
use nix::sys::epoll::EpollFlags;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

/// Names a connection for as long as it lives; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token(pub(super) u64);

/// What a connection that is not checked out is waiting for.
#[derive(Debug)]
pub(super) enum Phase {
    /// A request, or the rest of its head.
    Head {
        /// When the first byte of the head came; `None` before that.
        since: Option<Instant>,
    },
    /// The beginning of a body, so that a slow client costs no thread.
    Collecting(Box<ReceivedRequest>),
    /// The rest of a body that the application did not read.
    Discarding {
        body: Incoming,
        budget: usize,
        since: Instant,
    },
    /// The client's end of the stream, after our own.
    Lingering { since: Instant, budget: usize },
}

/// How far a connection got.
pub(super) enum Step {
    /// hyper is done with the connection; true when everything was sent.
    Closed(bool),
    /// A request's head is complete.
    Request(Box<ReceivedRequest>),
    /// The socket has to become ready first.
    Blocked,
}

/// See the module's text.
pub(super) struct Connection {
    pub(super) token: Token,
    pub(super) link: Arc<Link>,
    pub(super) endpoints: Endpoints,
    pub(super) phase: Phase,
    /// The last time that bytes came or a request ended.
    pub(super) active: Instant,
    /// When the reactor will look at the connection next, if nothing happens.
    pub(super) armed: Option<Instant>,
    builder: Arc<http1::Builder>,
    /// Absent until something comes, and again while the connection rests: its buffers are most of
    /// what a connection costs.
    http: Option<Pin<Box<http1::Connection<Io, HandoffService>>>>,
    handoff: Arc<Handoff>,
    waker: Waker,
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
        link: Link,
        endpoints: Endpoints,
        builder: Arc<http1::Builder>,
        now: Instant,
    ) -> Self {
        let handoff = Arc::new(Handoff::default());
        Self {
            token,
            link: Arc::new(link),
            endpoints,
            phase: Phase::Head { since: None },
            active: now,
            armed: None,
            builder,
            http: None,
            waker: Waker::from(handoff.clone()),
            handoff,
        }
    }

    /// Takes note of what the kernel said about the socket; false when nothing changes by it.
    pub(super) fn note(&self, events: EpollFlags) -> bool {
        let ends = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let mut state = self.link.state();
        state.is_half_closed |= events.intersects(ends);
        let can_read = events.intersects(ends | EpollFlags::EPOLLIN);
        let could_not_write = state.write_blocked;
        state.read_blocked &= !can_read;
        state.write_blocked = false;
        can_read || could_not_write
    }

    /// Why hyper could not go on with a body.
    pub(super) fn body_error(&self) -> BodyError {
        let state = self.link.state();
        if state.at_end && state.framing.refusal().is_none() {
            BodyError::Disconnected
        } else {
            BodyError::Framing
        }
    }

    /// Why the client's stream cannot go on, if it cannot. Counts only once hyper is blocked:
    /// before that it may still be busy with what came earlier.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.link.state().framing.refusal()
    }

    /// Takes what has come of a request's body, up to `bound` bytes. True once there is nothing to
    /// wait for: the body is whole or the bound is reached.
    pub(super) fn collect(
        &mut self,
        received: &mut ReceivedRequest,
        bound: usize,
    ) -> Result<bool, BodyError> {
        while received.collected < bound {
            match self.next_piece(&mut received.body) {
                Poll::Ready(Ok(Some(piece))) => {
                    received.collected += piece.len();
                    received.pieces.push_back(piece);
                }
                Poll::Ready(Ok(None)) => return Ok(true),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next piece of a body as far as it has come; drops the body at its end.
    pub(super) fn next_piece(
        &mut self,
        body: &mut Option<Incoming>,
    ) -> Poll<Result<Option<Bytes>, BodyError>> {
        let Some(incoming) = body else {
            return Poll::Ready(Ok(None));
        };
        let mut has_advanced = false;
        loop {
            match self.poll_body(incoming) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(piece) if piece.is_empty() => {}
                    Ok(piece) => return Poll::Ready(Ok(Some(piece))),
                    // Trailers are read and dropped: nothing in PEP 3333 could carry them.
                    Err(_) => {}
                },
                Poll::Ready(None) => {
                    *body = None;
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Some(Err(_))) => {
                    *body = None;
                    return Poll::Ready(Err(self.body_error()));
                }
                Poll::Pending if has_advanced => {
                    if self.refusal().is_none() {
                        return Poll::Pending;
                    }
                    *body = None;
                    return Poll::Ready(Err(BodyError::Framing));
                }
                Poll::Pending => match self.advance() {
                    // hyper may have put the next piece into its channel on the way.
                    Step::Blocked => has_advanced = true,
                    Step::Closed(_) | Step::Request(_) => {
                        *body = None;
                        return Poll::Ready(Err(self.body_error()));
                    }
                },
            }
        }
    }

    /// Answers with a status of the server's own, and ends this side of the connection.
    /// `is_asked`: hyper has a request that waits for its answer. Returns the length of the body.
    pub(super) fn send_error(&mut self, status: StatusCode, is_asked: bool) -> usize {
        let reason = status.canonical_reason().unwrap_or_default();
        let length = reason.len() + 1;
        if is_asked {
            let mut response = Response::new(ResponseBody::Whole(format!("{reason}\n").into()));
            *response.status_mut() = status;
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
            self.put_response(response);
            let _ = self.advance();
        } else {
            let code = status.as_u16();
            self.link.send_last(
                format!(
                    "HTTP/1.1 {code} {reason}\r\nContent-Type: text/plain\r\n\
                     Content-Length: {length}\r\nConnection: close\r\n\r\n{reason}\n"
                )
                .as_bytes(),
            );
        }
        self.link.shut();
        length
    }

    /// Lets hyper go as far as it can without waiting.
    pub(super) fn advance(&mut self) -> Step {
        let http = self.http.get_or_insert_with(|| {
            let service = HandoffService(self.handoff.clone());
            Box::pin(
                self.builder
                    .serve_connection(Io(self.link.clone()), service),
            )
        });
        let mut context = Context::from_waker(&self.waker);
        loop {
            self.handoff.is_woken.store(false, Ordering::Relaxed);
            match http.as_mut().poll(&mut context) {
                Poll::Ready(result) => return Step::Closed(result.is_ok()),
                Poll::Pending => {}
            }
            if let Some(request) = self.handoff.state.lock().request.take() {
                return Step::Request(Box::new(ReceivedRequest::new(request, Instant::now())));
            }
            if !self.handoff.is_woken.load(Ordering::Relaxed) {
                return Step::Blocked;
            }
        }
    }

    /// Gives up hyper and its memory until something comes. Only for an idle connection: hyper must
    /// have answered everything that it was given, and must have been given all that has come.
    pub(super) fn rest(&mut self) {
        self.http = None;
    }

    /// True while nothing has come since the connection was made, or has rested.
    pub(super) fn is_resting(&self) -> bool {
        self.http.is_none()
    }

    /// The next piece of a body, if hyper has one already.
    pub(super) fn poll_body(
        &self,
        body: &mut Incoming,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(body).poll_frame(&mut Context::from_waker(&self.waker))
    }

    pub(super) fn put_response(&self, answer: Response<ResponseBody>) {
        self.handoff.state.lock().answer = Some(answer);
    }

    /// An answer's body that is laid down piece by piece.
    pub(super) fn pieces(&self) -> ResponseBody {
        let mut state = self.handoff.state.lock();
        state.piece = None;
        state.is_ended = false;
        ResponseBody::Chunks(self.handoff.clone())
    }

    pub(super) fn put_chunk(&self, piece: Bytes) {
        self.handoff.state.lock().piece = Some(piece);
    }

    pub(super) fn end_chunks(&self) {
        self.handoff.state.lock().is_ended = true;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // An answer in pieces that hyper never took refers to the handoff that holds it.
        self.handoff.state.lock().answer = None;
    }
}

/// Where hyper and the thread that polls it leave things for each other.
#[derive(Default)]
pub(super) struct Handoff {
    state: Mutex<HandoffState>,
    is_woken: AtomicBool,
}

#[derive(Default)]
struct HandoffState {
    request: Option<Request<Incoming>>,
    answer: Option<Response<ResponseBody>>,
    piece: Option<Bytes>,
    is_ended: bool,
}

impl Wake for Handoff {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Relaxed);
    }
}

/// hyper's service: passes requests and responses through the handoff.
pub(super) struct HandoffService(Arc<Handoff>);

impl Service<Request<Incoming>> for HandoffService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = PendingResponse;

    fn call(&self, request: Request<Incoming>) -> PendingResponse {
        self.0.state.lock().request = Some(request);
        PendingResponse(self.0.clone())
    }
}

/// A response that will be in the handoff.
pub(super) struct PendingResponse(Arc<Handoff>);

impl Future for PendingResponse {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0.state.lock().answer.take() {
            Some(answer) => Poll::Ready(Ok(answer)),
            None => Poll::Pending,
        }
    }
}

/// The body of an answer.
pub(super) enum ResponseBody {
    /// All of it.
    Whole(Bytes),
    /// Pieces that come over the handoff.
    Chunks(Arc<Handoff>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Chunks(handoff) => {
                let mut state = handoff.state.lock();
                match state.piece.take() {
                    Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                    None if state.is_ended => Poll::Ready(None),
                    None => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Chunks(handoff) => {
                let state = handoff.state.lock();
                state.piece.is_none() && state.is_ended
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Chunks(_) => SizeHint::default(),
        }
    }
}
