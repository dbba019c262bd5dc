//! Watches every byte a client sends, and refuses the framing that hyper would forgive.
//!
//! Owns message boundaries (head, counted body, chunked body with trailers) and limits on them.
//! Never reads a socket and builds no request: hyper parses again what has passed. Called by
//! [`super::link`] between the socket and hyper, so that hyper only ever sees whole, valid heads.
//! Rules come from RFC 9112, strictly wherever it leaves a choice: two parsers that disagree about
//! one byte are what request smuggling is made of.

mod chunked;
mod head;

use crate::wsgi::Refused;
use chunked::Chunked;
use head::{Head, Length};
use http::StatusCode;

/// Bytes of one head, blank lines before it included.
const HEAD_BYTES: usize = 65_536;

/// What a client may send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Request lines of this length or longer are refused with 414.
    pub(super) request_line: usize,
    /// Header lines of this length or longer are refused with 431.
    pub(super) header_line: usize,
    /// More header lines are refused with 431.
    pub(super) headers: usize,
    /// HTTP/1.1 without a Host header passes.
    pub(super) is_lenient: bool,
}

/// Why a stream cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a line ends without CRLF")]
    LineEnd,
    #[error("a control character where none may be")]
    Control,
    #[error("the request line is malformed")]
    RequestLine,
    #[error("the protocol version is not 1.0 or 1.1")]
    Version,
    #[error("a header line is malformed")]
    HeaderLine,
    #[error("the Host header is missing, repeated or malformed")]
    Host,
    #[error("the Content-Length header is malformed or repeated")]
    ContentLength,
    #[error("the Transfer-Encoding header is malformed, repeated or not allowed here")]
    TransferEncoding,
    #[error("the transfer coding is unknown")]
    UnknownCoding,
    #[error("Content-Length and Transfer-Encoding exclude each other")]
    TwoLengths,
    #[error("the request line is too long")]
    RequestLineTooLong,
    #[error("the headers are too many or too long")]
    HeadersTooLarge,
    #[error("the chunked framing of the body is broken")]
    Chunk,
}

impl Refusal {
    /// What the client is told.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::LineEnd
            | Self::Control
            | Self::RequestLine
            | Self::HeaderLine
            | Self::Host
            | Self::ContentLength
            | Self::TransferEncoding
            | Self::TwoLengths
            | Self::Chunk => StatusCode::BAD_REQUEST,
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::RequestLineTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

/// Where in the stream the next byte belongs.
#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    Counted(u64),
    Chunked(Chunked),
    Refused(Refusal),
}

/// See the module's text.
///
/// A head that has not come whole is kept here. So what passes of one call to
/// [`Observer::observe`] lies either at the start of the bytes given, or, if something was held
/// before, at the start of [`Observer::held`].
#[derive(Debug)]
pub(super) struct Observer {
    limits: Limits,
    state: State,
    head: Head,
    held: Vec<u8>,
    /// Bytes of `held` that may pass.
    passed: usize,
    /// The request line of a refused head, as much of it as is kept.
    refused_line: Vec<u8>,
}

impl Observer {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Head,
            head: Head::default(),
            held: Vec::new(),
            passed: 0,
            refused_line: Vec::new(),
        }
    }

    /// The request line of the head that was refused, or of the one that has begun, for the log: as
    /// it came, as far as it came, cut off where it is long.
    pub(super) fn request_line(&self) -> &[u8] {
        match self.state {
            State::Refused(_) => &self.refused_line,
            State::Head => first_line(&self.held[self.passed..]),
            State::Counted(_) | State::Chunked(_) => &[],
        }
    }

    /// Looks at the bytes that follow in the stream. Returns how many of them may pass now; 0 when
    /// bytes were held before, for then these join them, and [`Observer::held`] tells.
    pub(super) fn observe(&mut self, bytes: &[u8]) -> usize {
        if self.held.is_empty() {
            let passed = self.pass(bytes);
            if matches!(self.state, State::Head) {
                self.held.extend_from_slice(&bytes[passed..]);
            }
            return passed;
        }
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        self.passed += self.pass(&held[self.passed..]);
        self.held = held;
        0
    }

    /// Bytes that were held back and may pass now.
    pub(super) fn held(&self) -> &[u8] {
        &self.held[..self.passed]
    }

    /// The first `count` bytes of [`Observer::held`] have passed.
    pub(super) fn release(&mut self, count: usize) {
        self.held.drain(..count);
        self.passed -= count;
        if self.held.is_empty() {
            // A connection may be idle for long; the memory was for one head.
            self.held = Vec::new();
        }
    }

    /// Why the stream cannot go on, once everything before that has passed.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self.state {
            State::Refused(refusal) => Some(refusal),
            State::Head | State::Counted(_) | State::Chunked(_) => None,
        }
    }

    /// True when the last message is complete and nothing of the next one has come.
    pub(super) fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Head) && self.held.is_empty()
    }

    /// Bytes of a counted body that have not come yet; `None` for any other state.
    pub(super) fn outstanding(&self) -> Option<u64> {
        match self.state {
            State::Counted(left) => Some(left),
            State::Head | State::Chunked(_) | State::Refused(_) => None,
        }
    }

    /// Walks over `bytes` as far as they may pass.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let refused = match &mut self.state {
                State::Refused(_) => return at,
                State::Head => match self.head.read(rest, &self.limits) {
                    Ok(Some((length, body))) => {
                        at += length;
                        self.head = Head::default();
                        self.state = match body {
                            Length::None => State::Head,
                            Length::Counted(count) => State::Counted(count),
                            Length::Chunked => State::Chunked(Chunked::new(&self.limits)),
                        };
                        continue;
                    }
                    Ok(None) if rest.len() <= HEAD_BYTES => return at,
                    result => {
                        self.refused_line = first_line(rest).to_vec();
                        result.err().unwrap_or(Refusal::HeadersTooLarge)
                    }
                },
                State::Counted(left) => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    at += count;
                    *left -= count as u64;
                    if *left > 0 {
                        return at;
                    }
                    self.state = State::Head;
                    continue;
                }
                State::Chunked(chunked) => {
                    let (count, result) = chunked.read(rest);
                    at += count;
                    match result {
                        Ok(true) => {
                            self.state = State::Head;
                            continue;
                        }
                        Ok(false) => return at,
                        Err(refusal) => refusal,
                    }
                }
            };
            self.state = State::Refused(refused);
        }
    }
}

/// The first line that is not blank, without its end.
fn first_line(bytes: &[u8]) -> &[u8] {
    let begin = bytes
        .iter()
        .position(|byte| !matches!(byte, b'\r' | b'\n'))
        .unwrap_or(bytes.len());
    let line = &bytes[begin..];
    let line = &line[..line.len().min(Refused::LONGEST_LINE)];
    match memchr::memchr(b'\n', line) {
        Some(end) => line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]),
        None => line,
    }
}

/// True for control characters other than the horizontal tab.
fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

/// True when `bytes` hold a control character. Written without a branch, so that it vectorises.
fn has_control(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .fold(false, |found, byte| found | is_control(*byte))
}

/// Characters of a token (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 128_u8 {
            table[byte as usize] = byte.is_ascii_alphanumeric()
                || matches!(
                    byte,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            byte += 1;
        }
        table
    };
    TOKEN[usize::from(byte)]
}

#[cfg(test)]
mod tests;
