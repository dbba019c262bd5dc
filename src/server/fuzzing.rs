//! Fuzzing of what this room keeps to itself: the framing observer, compared with hyper, and the
//! mapping of ciphers. See [`crate::fuzzing`].
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a property that does not hold is a panic"
)]

use super::framing::{Limits, Observer, Refusal};
use super::tls;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

const LIMITS: Limits = Limits {
    request_line: 256,
    header_line: 256,
    headers: 20,
    is_lenient: false,
};

/// A client's stream. However it is cut, the observer passes the same bytes and judges them the
/// same; and hyper finds the same messages in them, so that nothing can be smuggled between the two.
pub(crate) fn framing(input: &[u8]) {
    let whole = observe(input, usize::MAX);
    for piece in [1, 2, 7] {
        let cut = observe(input, piece);
        assert_eq!(cut.passed, whole.passed, "cut by {piece}");
        let statuses = [&cut, &whole].map(|seen| seen.refusal.map(Refusal::status));
        assert_eq!(statuses[0], statuses[1], "cut by {piece}");
    }
    assert!(input.starts_with(&whole.passed));

    let ours = observe(input, 1).messages;
    let theirs = ask_hyper(&whole.passed);
    // hyper may refuse a message that we let pass (characters of a target); it never finds another.
    assert!(
        theirs.messages.len() <= ours.len()
            && theirs
                .messages
                .iter()
                .zip(&ours)
                .all(|(theirs, ours)| theirs == ours),
        "hyper sees {:?}, the observer {ours:?}",
        theirs.messages,
    );
    if theirs.is_content && !theirs.has_ended {
        assert_eq!(
            theirs.messages.len(),
            ours.len(),
            "hyper has left something out"
        );
    }
}

/// A cipher list. What is accepted names suites of rustls, each once, those of TLS 1.3 first.
pub(crate) fn ciphers(input: &[u8]) {
    let Ok(list) = std::str::from_utf8(input) else {
        return;
    };
    let all = rustls::crypto::ring::ALL_CIPHER_SUITES;
    let Ok(suites) = tls::ciphers::parse(list, all) else {
        return;
    };
    assert!(!suites.is_empty());
    assert!(suites.iter().all(|suite| all.contains(suite)));
    let is_tls13 = |suite: &rustls::SupportedCipherSuite| suite.tls13().is_some();
    assert!(suites.is_sorted_by_key(|suite| !is_tls13(suite)));
    let mut once = suites.clone();
    once.sort_by_key(|suite| u16::from(suite.suite()));
    once.dedup();
    assert_eq!(once.len(), suites.len());
    // What is excluded for good does not come back, wherever in the list it stands.
    let excluded = format!("{list}:!AESGCM:ALL");
    if let Ok(rest) = tls::ciphers::parse(&excluded, all) {
        let is_aes = |suite: &rustls::SupportedCipherSuite| {
            !is_tls13(suite) && format!("{:?}", suite.suite()).contains("AES")
        };
        assert!(!rest.iter().any(is_aes), "{excluded}");
    }
}

/// Method, target and length of the body of one message.
type Message = (String, String, usize);

struct Observed {
    passed: Vec<u8>,
    refusal: Option<Refusal>,
    /// Complete ones; known only when the stream came byte by byte.
    messages: Vec<Message>,
}

fn observe(input: &[u8], piece: usize) -> Observed {
    let mut observer = Observer::new(LIMITS);
    let mut seen = Observed {
        passed: Vec::new(),
        refusal: None,
        messages: Vec::new(),
    };
    let mut begin = 0;
    for bytes in input.chunks(piece) {
        let before = seen.passed.len();
        let count = observer.observe(bytes);
        seen.passed.extend_from_slice(&bytes[..count]);
        let held = observer.held().to_vec();
        observer.release(held.len());
        seen.passed.extend_from_slice(&held);
        if piece == 1 && seen.passed.len() > before && observer.is_between_messages() {
            seen.messages.push(message(&seen.passed[begin..]));
            begin = seen.passed.len();
        }
    }
    seen.refusal = observer.refusal();
    seen
}

/// What a whole message says, by the plainest means.
fn message(bytes: &[u8]) -> Message {
    let begin = bytes
        .iter()
        .position(|byte| !b"\r\n".contains(byte))
        .unwrap();
    let bytes = &bytes[begin..];
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let (head, mut body) = (&bytes[..end], &bytes[end + 4..]);
    let head = String::from_utf8_lossy(head);
    let mut words = head.lines().next().unwrap().split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut length = body.len();
    if head.to_ascii_lowercase().contains("\r\ntransfer-encoding:") {
        length = 0;
        loop {
            let line = body.windows(2).position(|two| two == b"\r\n").unwrap();
            let size = String::from_utf8_lossy(&body[..line]);
            let size = size.split([';', ' ', '\t']).next().unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                break;
            }
            length += size;
            body = &body[line + 2 + size + 2..];
        }
    }
    // An absolute target without a path gets one.
    let target = target
        .parse()
        .map_or_else(|_| target.to_owned(), |uri: Uri| uri.to_string());
    (method.to_owned(), target, length)
}

struct Heard {
    messages: Vec<Message>,
    /// hyper took everything for valid.
    is_content: bool,
    /// The last message was to be the last: what follows it is not looked at.
    has_ended: bool,
}

/// What hyper makes of a stream, set up as the reactor does.
fn ask_hyper(stream: &[u8]) -> Heard {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let ends = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        let messages = messages.clone();
        let ends = &ends;
        async move {
            let (parts, mut body) = request.into_parts();
            ends.fetch_or(is_last(&parts), Ordering::Relaxed);
            let mut length = 0;
            let mut is_whole = true;
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                let Ok(frame) = frame else {
                    is_whole = false;
                    break;
                };
                length += frame.into_data().map_or(0, |data| data.len());
            }
            if is_whole {
                let target = parts.uri.to_string();
                let method = parts.method.to_string();
                messages.lock().unwrap().push((method, target, length));
            }
            Ok::<_, Infallible>(Response::new(String::new()))
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .half_close(true)
        .header_read_timeout(None)
        .max_headers(LIMITS.headers);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(woken.clone());
    let mut connection = pin!(builder.serve_connection(Memory { stream, at: 0 }, service));
    let mut result = None;
    while result.is_none() && woken.0.swap(false, Ordering::Relaxed) {
        if let Poll::Ready(end) = connection.as_mut().poll(&mut Context::from_waker(&waker)) {
            result = Some(end);
        }
    }
    let messages = messages.lock().unwrap().clone();
    Heard {
        messages,
        is_content: matches!(result, Some(Ok(()))),
        has_ended: ends.load(Ordering::Relaxed),
    }
}

/// True for requests behind which hyper may end a connection.
fn is_last(request: &Parts) -> bool {
    let says_close = |value: &HeaderValue| {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        value.split(',').any(|option| option.trim() == "close")
    };
    request.version == Version::HTTP_10
        || request.method == Method::CONNECT
        || request.headers.get_all(CONNECTION).iter().any(says_close)
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client that has sent everything and takes everything.
struct Memory<'s> {
    stream: &'s [u8],
    at: usize,
}

impl Read for Memory<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.stream[self.at..];
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..count]);
        self.at += count;
        Poll::Ready(Ok(()))
    }
}

impl Write for Memory<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
