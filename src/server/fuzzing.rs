//! Fuzzing of what this room keeps to itself: the decoder, compared with hyper, the link, PROXY
//! headers, certificates and the mapping of ciphers. See [`crate::fuzzing`].
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a property that does not hold is a panic"
)]

use super::framing::{Decoder, Limits, Piece, Refusal};
use super::link;
use super::proxy_header::{self, Parsed};
use super::tls;
use crate::wsgi::FilePart;
use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

const LIMITS: Limits = Limits {
    request_line: 256,
    header_line: 256,
    headers: 20,
    body: None,
    is_lenient: false,
    is_uwsgi: false,
};

/// A proxy's stream of the uwsgi protocol. However it is cut, the decoder finds the same messages in
/// it and refuses the same.
pub(crate) fn packet(input: &[u8]) {
    let limits = Limits {
        is_uwsgi: true,
        ..LIMITS
    };
    let whole = decode(input, usize::MAX, limits);
    for piece in [1, 2, 7] {
        let cut = decode(input, piece, limits);
        assert_eq!(cut.messages, whole.messages, "cut by {piece}");
        assert_eq!(cut.refusal, whole.refusal, "cut by {piece}");
    }
}

/// A client's stream. However it is cut, the decoder finds the same messages in it and refuses the
/// same; and hyper finds the same ones, so that nothing can be smuggled past one of the two.
pub(crate) fn framing(input: &[u8]) {
    let whole = decode(input, usize::MAX, LIMITS);
    for piece in [1, 2, 7] {
        let cut = decode(input, piece, LIMITS);
        assert_eq!(cut.messages, whole.messages, "cut by {piece}");
        assert_eq!(cut.refusal, whole.refusal, "cut by {piece}");
    }

    let ours: Vec<Message> = whole.messages.iter().map(comparable).collect();
    let theirs = ask_hyper(&input[..whole.valid]);
    // hyper may refuse a message that we let pass (characters of a target, extensions of a chunk);
    // it never finds another.
    assert!(
        theirs.messages.len() <= ours.len()
            && theirs
                .messages
                .iter()
                .zip(&ours)
                .all(|(theirs, ours)| theirs == ours),
        "hyper sees {:?}, the decoder {ours:?}",
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

/// An answer, given in pieces to a wire that takes it in portions: the first bytes say how. Every other
/// piece is a stretch of a file. Whatever
/// they are, the client gets the answer whole, in order and once, and then the end.
pub(crate) fn link(input: &[u8]) {
    let Some(([step, room, cut], content)) = input.split_first_chunk::<3>() else {
        return;
    };
    let wire = Wire {
        step: usize::from(*step) + 1,
        room: Cell::new(usize::from(*room)),
        sent: RefCell::default(),
        has_ended: Cell::new(false),
    };
    let mut link = link::Link::new(wire, None);
    let (head, body) = content.split_at(content.len() * usize::from(*cut) / 256);
    if !head.is_empty() {
        link.send(head.to_vec(), Bytes::new()).unwrap();
    }
    let file = File::from(memfd_create("fuzzed", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all_at(body, 0).unwrap();
    let mut offset = 0;
    for (n, piece) in body.chunks(usize::from(*cut) + 1).enumerate() {
        let length = piece.len() as u64;
        if n % 2 == 0 {
            link.put(Bytes::copy_from_slice(piece));
        } else {
            let file = file.try_clone().unwrap();
            link.put_file(FilePart {
                file,
                offset,
                length,
            });
        }
        offset += length;
    }
    link.finish();
    let mut turns = 0;
    while link.flush().unwrap() == link::Flushed::Blocked {
        assert!(!link.transport.has_ended.get(), "ended before the rest");
        link.transport.room.set(usize::from(*room) + 1);
        turns += 1;
        assert!(turns <= content.len() + 1, "no progress");
    }
    assert_eq!(*link.transport.sent.borrow(), content);
    assert_eq!(link.taken(), content.len() as u64);
    assert!(link.transport.has_ended.get());
}

/// A wire that takes `room` bytes and then blocks, `step` of them with a call.
#[derive(Debug)]
struct Wire {
    step: usize,
    room: Cell<usize>,
    sent: RefCell<Vec<u8>>,
    has_ended: Cell<bool>,
}

impl Wire {
    /// How many of `offered` bytes are taken now.
    fn take(&self, offered: usize) -> nix::Result<usize> {
        let count = offered.min(self.step).min(self.room.get());
        if count == 0 {
            return Err(Errno::EAGAIN);
        }
        self.room.set(self.room.get() - count);
        Ok(count)
    }
}

impl link::Transport for Wire {
    fn receive(&self, _: &mut [u8]) -> nix::Result<usize> {
        Err(Errno::EAGAIN)
    }

    fn send(&self, pieces: &[IoSlice<'_>]) -> nix::Result<usize> {
        let offered: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        assert!(!offered.is_empty() && !self.has_ended.get());
        let count = self.take(offered.len())?;
        self.sent.borrow_mut().extend_from_slice(&offered[..count]);
        Ok(count)
    }

    fn send_file(&self, file: &File, offset: u64, most: usize) -> nix::Result<Option<usize>> {
        assert!(most > 0 && !self.has_ended.get());
        let mut bytes = vec![0; self.take(most)?];
        let count = file.read_at(&mut bytes, offset).unwrap();
        self.sent.borrow_mut().extend_from_slice(&bytes[..count]);
        Ok((count > 0).then_some(count))
    }

    fn end_sending(&self) {
        self.has_ended.set(true);
    }

    fn reset_on_close(&self, _: bool) {}
}

/// A cipher list. What is accepted names suites of rustls, each once, those of TLS 1.3 first.
pub(crate) fn ciphers(input: &[u8]) {
    let Ok(list) = std::str::from_utf8(input) else {
        return;
    };
    let all = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
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

/// A file with certificates and a key in PEM. It serves, or an option is named that it cannot serve
/// for; text around what is PEM changes neither.
pub(crate) fn certificates(input: &[u8]) {
    let result = loaded(input);
    match &result {
        Ok(_) => {}
        Err(tls::Error::Value { option, .. }) => {
            assert!(["cert_file", "key_file"].contains(option), "{option}");
        }
        Err(error @ tls::Error::Read { .. }) => panic!("{error}"),
    }
    // A byte order mark is one in front of everything only.
    if !input.starts_with(b"\xef\xbb\xbf") {
        let explained = [b"of the server\n", input, b"\nand no more\n"].concat();
        assert_eq!(loaded(&explained).is_ok(), result.is_ok());
    }
}

fn loaded(pem: &[u8]) -> Result<tls::Config, tls::Error> {
    let file = File::from(memfd_create("fuzzed", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all_at(pem, 0).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    tls::Config::load(&tls::Options {
        cert_file: path.clone(),
        key_file: path,
        ..tls::Options::default()
    })
}

/// The start of a stream with a PROXY header. What is found in a part is found in the whole, what is
/// refused in a part is refused in the whole, and a header is found when its last byte has come.
pub(crate) fn proxy(input: &[u8]) {
    let whole = proxy_header::parse(input);
    if let Ok(Parsed::Header { length, .. }) = whole {
        assert!(length <= input.len());
    }
    for end in 0..input.len() {
        match (proxy_header::parse(&input[..end]), whole) {
            (Ok(Parsed::Missing), Ok(Parsed::Header { length, .. })) => assert!(end < length),
            (Ok(Parsed::Missing), _) => {}
            (found, whole) => assert_eq!(found, whole, "after {end} bytes"),
        }
    }
}

/// Method, target and length of the body of one message.
type Message = (String, String, usize);

struct Decoded {
    /// Complete ones.
    messages: Vec<Message>,
    refusal: Option<Refusal>,
    /// Bytes of the stream that belong to complete messages; known for a stream in one piece.
    valid: usize,
}

fn decode(input: &[u8], piece: usize, limits: Limits) -> Decoded {
    let mut decoder = Decoder::new(Arc::new(limits));
    let mut seen = Decoded {
        messages: Vec::new(),
        refusal: None,
        valid: 0,
    };
    let mut open: Option<Message> = None;
    let mut given = 0;
    for bytes in input.chunks(piece) {
        decoder.give(bytes);
        given += bytes.len();
        loop {
            match decoder.body() {
                Ok(Piece::Data(data)) => {
                    if let Some(message) = &mut open {
                        message.2 += data.len();
                    }
                    continue;
                }
                Ok(Piece::End) => {
                    if let Some(message) = open.take() {
                        seen.messages.push(message);
                        seen.valid = given - decoder.held();
                    }
                }
                Ok(Piece::Missing) => break,
                Err(refusal) => {
                    seen.refusal = Some(refusal);
                    return seen;
                }
            }
            match decoder.head() {
                Ok(Some(received)) => {
                    let head = &received.head;
                    let target = String::from_utf8_lossy(head.target()).into_owned();
                    open = Some((head.method().to_string(), target, 0));
                }
                Ok(None) => break,
                Err(refusal) => {
                    seen.refusal = Some(refusal);
                    return seen;
                }
            }
        }
    }
    seen
}

/// A message as hyper shows it: an absolute target without a path gets one, a fragment is cut off.
fn comparable((method, target, length): &Message) -> Message {
    let target = target
        .parse()
        .map_or_else(|_| target.clone(), |uri: Uri| uri.to_string());
    (method.clone(), target, *length)
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
