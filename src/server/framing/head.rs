//! Parses one request head, line by line, as its bytes come.
//!
//! Owns the rules of RFC 9112 sections 2 to 6 for a head, and finds out where its parts lie and how
//! long its body is. Never keeps bytes: [`super::Decoder`] gives it the head from its start each
//! time, and it remembers how far it has looked.

use super::{Limits, Refusal, has_control, is_control, is_token};
use crate::wsgi::host::is_host;
use crate::wsgi::request::{Field, RequestHead, Span, name_hash};
use http::{Method, Version};
use memchr::{memchr, memrchr};

/// Blank lines that a client may send before a request (RFC 9112 section 2.2).
const BLANK_LINES: u8 = 2;
/// Digits of a Content-Length. Applications turn it into a number, and CPython refuses more than 4,300.
const LENGTH_DIGITS_MAX: usize = 256;

/// A decimal number, as Content-Length is one; `None` for anything else, or one that is too long. Leading
/// zeros are digits like others (RFC 9110 section 8.6), as far as applications read them.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let zeros = text.iter().take_while(|byte| **byte == b'0').count();
    if text.is_empty() || text.len() - zeros > 18 || text.len() > LENGTH_DIGITS_MAX {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + u64::from(byte - b'0'))
    })
}

/// How the body after a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Length {
    None,
    Counted(u64),
    Chunked,
}

/// How far a head was read, and what it said so far.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the first line that is not complete yet begins.
    line_start: usize,
    /// Where the search for its end goes on.
    searched: usize,
    blank_lines: u8,
    request_line: Option<RequestLine>,
    fields: Vec<Field>,
    hosts: u8,
    content_length: Option<u64>,
    is_chunked: bool,
    connection: Persistence,
    is_expecting: bool,
}

#[derive(Debug)]
struct RequestLine {
    method: Method,
    target: Span,
    is_http_10: bool,
}

/// What the `Connection` fields of a head ask for (RFC 9112 section 9.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Persistence {
    close: bool,
    keep_alive: bool,
}

/// A head that is complete.
#[derive(Debug)]
pub(in crate::server) struct Received {
    pub(in crate::server) head: RequestHead,
    pub(in crate::server) length: Length,
    /// The client can take another answer on this connection.
    pub(in crate::server) is_persistent: bool,
    /// The client waits for `100 Continue` (RFC 9110 section 10.1.1).
    pub(in crate::server) is_expecting: bool,
    /// Where the request began, where a proxy tells it.
    pub(in crate::server) origin: Option<super::Origin>,
}

impl Received {
    /// True when no body follows.
    pub(in crate::server) fn is_bodiless(&self) -> bool {
        self.length == Length::None
    }

    /// How long the body is, where the client has said so.
    pub(in crate::server) fn body_length(&self) -> Option<u64> {
        match self.length {
            Length::None => Some(0),
            Length::Counted(length) => Some(length),
            Length::Chunked => None,
        }
    }
}

impl Head {
    /// Reads on in a head. `bytes` begin where the head does, also on later calls; `None` as long
    /// as it is not complete, otherwise its length. [`Head::received`] then makes a request of it.
    ///
    /// The verdict is that of the first byte which is wrong: it does not depend on how many bytes
    /// have come behind it.
    pub(super) fn read(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        while let Some(offset) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + offset;
            self.check_line(&bytes[..end], limits)?;
            let line = &bytes[self.line_start..end];
            self.line_start = end + 1;
            self.searched = end + 1;
            let line = line.strip_suffix(b"\r").ok_or(Refusal::LineEnd)?;
            if self.line_start > limits.head() {
                return Err(Refusal::HeadersTooLarge);
            }
            if !line.is_empty() {
                let start = end - line.len() - 1;
                self.line(line, start, limits)?;
            } else if self.request_line.is_some() {
                if self.hosts == 0 && !self.is_http_10() && !limits.is_lenient {
                    return Err(Refusal::Host);
                }
                if self.is_chunked && self.content_length.is_some() {
                    return Err(Refusal::TwoLengths);
                }
                return Ok(Some(self.line_start));
            } else {
                self.blank_lines += 1;
                if self.blank_lines > BLANK_LINES {
                    return Err(Refusal::RequestLine);
                }
            }
        }
        // What has come of the next line is looked at as well: a client that speaks another
        // protocol, or never ends its line, is not waited for.
        self.check_line(bytes, limits)?;
        // A trailing CR is looked at again, together with what follows it.
        self.searched = self
            .line_start
            .max(bytes.len() - usize::from(bytes.ends_with(b"\r")));
        Ok(None)
    }

    /// Checks what needs no whole line in the line that `bytes` end with, its LF left out: length,
    /// characters, and how a request line begins.
    fn check_line(&self, bytes: &[u8], limits: &Limits) -> Result<(), Refusal> {
        let line = &bytes[self.line_start..];
        let is_request_line = self.request_line.is_none();
        let longest = if is_request_line {
            limits.request_line
        } else {
            limits.header_line
        };
        // A CR is part of a line only if something else than LF follows.
        let content = line.strip_suffix(b"\r").unwrap_or(line);
        let fresh = &bytes[self.searched..self.line_start + content.len()];
        let begins_well = !is_request_line || content.first().is_none_or(|first| is_token(*first));
        if content.len() < longest
            && begins_well
            && !has_control(fresh)
            && bytes.len() <= limits.head()
        {
            return Ok(());
        }
        // Something is wrong: how many bytes of the line it takes to know each of the faults.
        let too_long = if is_request_line {
            Refusal::RequestLineTooLong
        } else {
            Refusal::HeadersTooLarge
        };
        // A CR in front of the bound does not count before its next byte has come.
        let ends_in_cr = longest > 0 && line.get(longest - 1) == Some(&b'\r');
        let control = content
            .iter()
            .position(|byte| is_control(*byte))
            .map(|at| at + 1 + usize::from(content[at] == b'\r'));
        let faults = [
            (content.len() >= longest).then(|| (longest + usize::from(ends_in_cr), too_long)),
            control.map(|length| (length, Refusal::Control)),
            (!begins_well).then_some((1, Refusal::RequestLine)),
            (bytes.len() > limits.head()).then(|| {
                let length = (limits.head() + 1).saturating_sub(self.line_start);
                (length, Refusal::HeadersTooLarge)
            }),
        ];
        let first = faults
            .into_iter()
            .flatten()
            .min_by_key(|(length, _)| *length);
        first.map_or(Ok(()), |(_, refusal)| Err(refusal))
    }

    /// The request of which `bytes` are the head, which was read to its end.
    pub(super) fn received(self, bytes: Vec<u8>) -> Option<Received> {
        let is_http_10 = self.is_http_10();
        let length = match (self.is_chunked, self.content_length) {
            (true, _) => Length::Chunked,
            (false, None | Some(0)) => Length::None,
            (false, Some(length)) => Length::Counted(length),
        };
        let RequestLine { method, target, .. } = self.request_line?;
        let version = if is_http_10 {
            Version::HTTP_10
        } else {
            Version::HTTP_11
        };
        Some(Received {
            head: RequestHead::new(bytes, method, target, version, self.fields),
            length,
            is_persistent: !self.connection.close && (!is_http_10 || self.connection.keep_alive),
            is_expecting: self.is_expecting && !is_http_10 && length != Length::None,
            origin: None,
        })
    }

    fn is_http_10(&self) -> bool {
        self.request_line
            .as_ref()
            .is_some_and(|line| line.is_http_10)
    }

    /// One line that is not blank and begins `start` bytes behind the start of the head.
    fn line(&mut self, line: &[u8], start: usize, limits: &Limits) -> Result<(), Refusal> {
        if self.request_line.is_none() {
            self.request_line = Some(request_line(line, start)?);
            return Ok(());
        }
        if self.fields.len() >= limits.headers {
            return Err(Refusal::HeadersTooLarge);
        }
        let (name, value) = split_header(line)?;
        let offset = line.len() - line[name.len() + 1..].trim_ascii_start().len();
        self.fields.push(Field {
            name: Span::new(start, name.len()),
            value: Span::new(start + offset, value.len()),
            hash: name_hash(name),
        });
        // Compared by length first: few headers concern framing.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            6 if name.eq_ignore_ascii_case(b"expect") => {
                // A list (RFC 9110 section 10.1.1); what else it holds is ignored.
                self.is_expecting |= value
                    .split(|byte| *byte == b',')
                    .any(|item| item.trim_ascii().eq_ignore_ascii_case(b"100-continue"));
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    self.connection.close |= option.eq_ignore_ascii_case(b"close");
                    self.connection.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.hosts += 1;
        if self.hosts > 1 || !(value.is_empty() || is_host(value)) {
            return Err(Refusal::Host);
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.content_length.is_some() {
            return Err(Refusal::ContentLength);
        }
        self.content_length = Some(decimal(value).ok_or(Refusal::ContentLength)?);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.is_http_10() || self.is_chunked {
            return Err(Refusal::TransferEncoding);
        }
        self.is_chunked = true;
        if value.eq_ignore_ascii_case(b"chunked") {
            return Ok(());
        }
        // A list of well-formed codings of which we do not know all is another matter (RFC 9112
        // section 6.1) than something malformed, or chunked anywhere but once and at the end.
        let mut codings = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        let is_list = codings
            .clone()
            .all(|coding| !coding.is_empty() && coding.iter().copied().all(is_token));
        let chunked = codings
            .clone()
            .filter(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        let ends_chunked = codings
            .next_back()
            .is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
        match (is_list, chunked.count()) {
            (true, 0) => Err(Refusal::UnknownCoding),
            (true, 1) if ends_chunked => Err(Refusal::UnknownCoding),
            _ => Err(Refusal::TransferEncoding),
        }
    }
}

fn request_line(line: &[u8], start: usize) -> Result<RequestLine, Refusal> {
    let first = memchr(b' ', line).ok_or(Refusal::RequestLine)?;
    let last = memrchr(b' ', line).ok_or(Refusal::RequestLine)?;
    // Without a version this is HTTP/0.9, which has no framing at all.
    if first == last {
        return Err(Refusal::RequestLine);
    }
    let (method, target, version) = (&line[..first], &line[first + 1..last], &line[last + 1..]);
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(Refusal::RequestLine);
    }
    if target.is_empty() || target.iter().any(|byte| matches!(byte, b' ' | b'\t')) {
        return Err(Refusal::RequestLine);
    }
    let is_http_10 = match version {
        b"HTTP/1.0" => true,
        // A later minor version is understood as the latest one known (RFC 9110 section 2.5).
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(Refusal::Version);
        }
        _ => return Err(Refusal::RequestLine),
    };
    Ok(RequestLine {
        method: Method::from_bytes(method).map_err(|_| Refusal::RequestLine)?,
        target: Span::new(start + first + 1, target.len()),
        is_http_10,
    })
}

/// Name and value of a header line, the value without the white space around it.
fn split_header(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr(b':', line).ok_or(Refusal::HeaderLine)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // A name that begins with white space is a folded line, one that ends with it is read
    // differently by different servers; neither is a token.
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Refusal::HeaderLine);
    }
    Ok((name, value.trim_ascii()))
}
