//! Decodes what a client sends: heads and bodies out of a stream of bytes, strictly.
//!
//! Owns message boundaries (head, counted body, chunked body with trailers) and limits on them.
//! Never reads a socket: bytes go in, heads and pieces of bodies come out. Rules come from RFC 9112,
//! strictly wherever it leaves a choice in framing: two parsers that disagree about one byte are
//! what request smuggling is made of. What concerns no framing, as the characters of a target, is
//! passed on as it came.

mod chunked;
mod head;
mod uwsgi;

use crate::wsgi::{Refused, Room, access_log};
use bytes::Bytes;
use chunked::{Chunked, Next};
pub(super) use head::Received;
use head::{Head, Length};
use http::{StatusCode, Version};
use std::sync::Arc;
pub(super) use uwsgi::Origin;

/// Bytes of one head, blank lines before it included, unless one line of it may be longer.
const HEAD_BYTES: usize = 65_536;

/// From this size on a piece of a body keeps the bytes in front of it in memory instead of being copied.
const LENT_BYTES: usize = 4096;

/// What a client may send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Request lines of this length or longer are refused with 414.
    pub(super) request_line: usize,
    /// Header lines of this length or longer are refused with 431.
    pub(super) header_line: usize,
    /// More header lines are refused with 431.
    pub(super) headers: usize,
    /// Longer bodies are refused with 413; `None`: none is.
    pub(super) body: Option<u64>,
    /// HTTP/1.1 without a Host header passes.
    pub(super) is_lenient: bool,
    /// Heads are packets of the uwsgi protocol.
    pub(super) is_uwsgi: bool,
}

impl Limits {
    /// Bytes of one head.
    fn head(&self) -> usize {
        let longest = self.request_line.saturating_add(self.header_line);
        HEAD_BYTES.max(longest)
    }
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
    #[error("the protocol version is not 1.x")]
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
    #[error("the body is longer than the limit on bodies")]
    BodyTooLarge,
    #[error("the chunked framing of the body is broken")]
    Chunk,
    #[error("the uwsgi packet is malformed")]
    Packet,
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
            | Self::Chunk
            | Self::Packet => StatusCode::BAD_REQUEST,
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::RequestLineTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
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

/// What a decoder has of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Some of it, never empty.
    Data(Bytes),
    /// Its end.
    End,
    /// Nothing before more bytes have come.
    Missing,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Decoder {
    limits: Arc<Limits>,
    state: State,
    head: Head,
    /// Bytes that have come; those before `at` are done with.
    held: Vec<u8>,
    at: usize,
    /// The request line of a refused head, as much of it as is kept.
    refused_line: Vec<u8>,
}

impl Decoder {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            state: State::Head,
            head: Head::default(),
            held: Vec::new(),
            at: 0,
            refused_line: Vec::new(),
        }
    }

    /// The request line of the head that was refused, or of the one that has begun, for the log: as
    /// it came, as far as it came, cut off where it is long.
    pub(super) fn request_line(&self) -> &[u8] {
        match self.state {
            State::Refused(_) => &self.refused_line,
            State::Head if self.limits.is_uwsgi => &[],
            State::Head => first_line(&self.held[self.at..]),
            State::Counted(_) | State::Chunked(_) => &[],
        }
    }

    /// The version of an answer to a head of which no request was made: the server's own
    /// (RFC 9112 section 2.3), and for a uwsgi packet that of all other answers to such.
    pub(super) fn refusal_version(&self) -> Version {
        if self.limits.is_uwsgi {
            Version::HTTP_10
        } else {
            Version::HTTP_11
        }
    }

    /// Takes the bytes that follow in the stream. To be called when [`Decoder::head`] or
    /// [`Decoder::body`] has nothing left to say; behind a refusal they are dropped.
    pub(super) fn give(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Refused(_)) {
            return;
        }
        if self.at > 0 {
            self.held.drain(..self.at);
            self.at = 0;
        }
        self.held.extend_from_slice(bytes);
    }

    /// The next head, once it is complete. The body of the one before must have been read to its
    /// end.
    pub(super) fn head(&mut self) -> Result<Option<Received>, Refusal> {
        match self.state {
            State::Head => {}
            State::Refused(refusal) => return Err(refusal),
            State::Counted(_) | State::Chunked(_) => return Ok(None),
        }
        if self.limits.is_uwsgi {
            return self.packet();
        }
        let rest = &self.held[self.at..];
        let length = match self.head.read(rest, &self.limits) {
            Ok(Some(length)) => length,
            Ok(None) if rest.len() <= self.limits.head() => return Ok(None),
            result => {
                self.refused_line = first_line(rest).to_vec();
                return Err(self.refuse(result.err().unwrap_or(Refusal::HeadersTooLarge)));
            }
        };
        let bytes = if self.at == 0 && length == self.held.len() {
            std::mem::take(&mut self.held)
        } else {
            let bytes = rest[..length].to_vec();
            self.advance(length);
            bytes
        };
        let Some(received) = std::mem::take(&mut self.head).received(bytes) else {
            return Err(self.refuse(Refusal::RequestLine));
        };
        self.expect_body(received).map(Some)
    }

    /// Goes on with the body that a head announces, unless it is longer than it may be.
    fn expect_body(&mut self, received: Received) -> Result<Received, Refusal> {
        self.state = match received.length {
            Length::None => State::Head,
            Length::Counted(count) if self.limits.body.is_some_and(|most| count > most) => {
                self.refused_line = access_log::plain_request_line(&received.head);
                self.refused_line.truncate(Refused::LONGEST_LINE);
                return Err(self.refuse(Refusal::BodyTooLarge));
            }
            Length::Counted(count) => State::Counted(count),
            Length::Chunked => State::Chunked(Chunked::new(&self.limits)),
        };
        Ok(received)
    }

    /// The next head of the uwsgi protocol, once it is complete.
    fn packet(&mut self) -> Result<Option<Received>, Refusal> {
        match uwsgi::read(&self.held[self.at..], self.limits.headers) {
            Ok(None) => Ok(None),
            Ok(Some((length, received))) => {
                self.advance(length);
                self.expect_body(received).map(Some)
            }
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// What follows of the body behind the head that came last.
    pub(super) fn body(&mut self) -> Result<Piece, Refusal> {
        let count = match &mut self.state {
            State::Head => return Ok(Piece::End),
            State::Refused(refusal) => return Err(*refusal),
            State::Counted(left) => {
                let here = self.held.len() - self.at;
                if here == 0 {
                    return Ok(Piece::Missing);
                }
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(here);
                *left -= count as u64;
                if *left == 0 {
                    self.state = State::Head;
                }
                count
            }
            State::Chunked(chunked) => {
                let (framing, next) = match chunked.read(&self.held[self.at..]) {
                    Ok(read) => read,
                    Err(refusal) => return Err(self.refuse(refusal)),
                };
                self.advance(framing);
                match next {
                    Next::Data(count) => count,
                    Next::Missing => return Ok(Piece::Missing),
                    Next::End => {
                        self.state = State::Head;
                        return Ok(Piece::End);
                    }
                }
            }
        };
        let is_rest = self.at + count == self.held.len();
        let data = if is_rest && (self.at == 0 || count >= LENT_BYTES) {
            let at = std::mem::take(&mut self.at);
            Bytes::from(std::mem::take(&mut self.held)).slice(at..)
        } else {
            let data = Bytes::copy_from_slice(&self.held[self.at..self.at + count]);
            self.advance(count);
            data
        };
        Ok(Piece::Data(data))
    }

    /// True when the last message is complete and nothing of the next one has come.
    pub(super) fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Head) && self.at == self.held.len()
    }

    /// True when no request has begun behind the last message: blank lines begin none (RFC 9112
    /// section 2.2), and a client that sends one behind a body is as idle as another.
    pub(super) fn is_idle(&self) -> bool {
        let mut rest = self.held[self.at..].iter();
        matches!(self.state, State::Head) && rest.all(|byte| matches!(byte, b'\r' | b'\n'))
    }

    /// True when the body of the last message was read to its end.
    pub(super) fn is_body_read(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Bytes of a counted body that were not read yet; `None` for any other state.
    pub(super) fn outstanding(&self) -> Option<u64> {
        match self.state {
            State::Counted(left) => Some(left),
            State::Head | State::Chunked(_) | State::Refused(_) => None,
        }
    }

    /// Copies what has come of a counted body to where it is wanted; returns how much.
    pub(super) fn body_into(&mut self, room: &mut Room<'_>) -> usize {
        let State::Counted(left) = &mut self.state else {
            return 0;
        };
        let here = &self.held[self.at..];
        let most = usize::try_from(*left).map_or(here.len(), |left| left.min(here.len()));
        let count = room.put(&here[..most]);
        *left -= count as u64;
        if *left == 0 {
            self.state = State::Head;
        }
        self.advance(count);
        count
    }

    /// Bytes of a counted body have come elsewhere. To be called only while [`Decoder::held`] is 0.
    pub(super) fn pass(&mut self, count: usize) {
        if let State::Counted(left) = &mut self.state {
            debug_assert!(count as u64 <= *left && self.held.is_empty());
            *left = left.saturating_sub(count as u64);
            if *left == 0 {
                self.state = State::Head;
            }
        }
    }

    /// Bytes that have come and were not looked at to their end.
    pub(super) fn held(&self) -> usize {
        self.held.len() - self.at
    }

    fn refuse(&mut self, refusal: Refusal) -> Refusal {
        self.state = State::Refused(refusal);
        self.held = Vec::new();
        self.at = 0;
        refusal
    }

    /// Bytes of `held` are done with. A connection may be idle for long: it keeps no memory for
    /// what has been read.
    fn advance(&mut self, count: usize) {
        self.at += count;
        if self.at == self.held.len() {
            self.held = Vec::new();
            self.at = 0;
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
