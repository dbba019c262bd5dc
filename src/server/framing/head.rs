//! Checks one request head, line by line, as its bytes come.
//!
//! Owns the rules of RFC 9112 sections 2 to 6 for a head and finds out how long its body is. Never
//! keeps bytes: [`super::Observer`] gives it the head from its start each time, and it remembers
//! how far it has looked.

use super::{Limits, Refusal, has_control, is_token};
use memchr::{memchr, memrchr};

/// Blank lines that a client may send before a request (RFC 9112 section 2.2).
const BLANK_LINES: u8 = 2;

/// How the body after a head is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
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
    has_request_line: bool,
    is_http_10: bool,
    headers: usize,
    hosts: u8,
    content_length: Option<u64>,
    is_chunked: bool,
}

impl Head {
    /// Reads on in a head. `bytes` begin where the head does, also on later calls; `None` as long
    /// as it is not complete, otherwise its length and that of the body.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        limits: &Limits,
    ) -> Result<Option<(usize, Length)>, Refusal> {
        while let Some(offset) = memchr(b'\n', &bytes[self.searched..]) {
            let end = self.searched + offset;
            let line = &bytes[self.line_start..end];
            self.line_start = end + 1;
            self.searched = end + 1;
            self.check_length(line.len().saturating_sub(1), limits)?;
            let line = line.strip_suffix(b"\r").ok_or(Refusal::LineEnd)?;
            if self.line_start > super::HEAD_BYTES {
                return Err(Refusal::HeadersTooLarge);
            }
            if !line.is_empty() {
                self.line(line, limits)?;
            } else if self.has_request_line {
                return self
                    .end(limits)
                    .map(|length| Some((self.line_start, length)));
            } else {
                self.blank_lines += 1;
                if self.blank_lines > BLANK_LINES {
                    return Err(Refusal::RequestLine);
                }
            }
        }
        // What has come of the next line is looked at as well: a client that speaks another
        // protocol, or never ends its line, is not waited for.
        let partial = &bytes[self.line_start..];
        let partial = partial.strip_suffix(b"\r").unwrap_or(partial);
        self.check_length(partial.len(), limits)?;
        let fresh = &bytes[self.searched..];
        let fresh = fresh.strip_suffix(b"\r").unwrap_or(fresh);
        if has_control(fresh) {
            return Err(Refusal::Control);
        }
        if !self.has_request_line && partial.first().is_some_and(|first| !is_token(*first)) {
            return Err(Refusal::RequestLine);
        }
        // A trailing CR is looked at again, together with what follows it.
        self.searched = self
            .line_start
            .max(bytes.len() - usize::from(bytes.ends_with(b"\r")));
        Ok(None)
    }

    fn check_length(&self, length: usize, limits: &Limits) -> Result<(), Refusal> {
        if self.has_request_line {
            if length >= limits.header_line {
                return Err(Refusal::HeadersTooLarge);
            }
        } else if length >= limits.request_line {
            return Err(Refusal::RequestLineTooLong);
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], limits: &Limits) -> Result<(), Refusal> {
        if has_control(line) {
            return Err(Refusal::Control);
        }
        if !self.has_request_line {
            self.has_request_line = true;
            return self.request_line(line);
        }
        self.headers += 1;
        if self.headers > limits.headers {
            return Err(Refusal::HeadersTooLarge);
        }
        let (name, value) = split_header(line)?;
        // Compared by length first: few headers concern framing.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
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
        match version {
            b"HTTP/1.1" => Ok(()),
            b"HTTP/1.0" => {
                self.is_http_10 = true;
                Ok(())
            }
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                Err(Refusal::Version)
            }
            _ => Err(Refusal::RequestLine),
        }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.hosts += 1;
        if self.hosts > 1 || !value.iter().copied().all(is_host) {
            return Err(Refusal::Host);
        }
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.content_length.is_some() || value.is_empty() || value.len() > 18 {
            return Err(Refusal::ContentLength);
        }
        let mut length = 0;
        for byte in value {
            if !byte.is_ascii_digit() {
                return Err(Refusal::ContentLength);
            }
            length = length * 10 + u64::from(byte - b'0');
        }
        self.content_length = Some(length);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.is_http_10 || self.is_chunked {
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

    fn end(&self, limits: &Limits) -> Result<Length, Refusal> {
        if self.hosts == 0 && !self.is_http_10 && !limits.is_lenient {
            return Err(Refusal::Host);
        }
        match (self.is_chunked, self.content_length) {
            (true, Some(_)) => Err(Refusal::TwoLengths),
            (true, None) => Ok(Length::Chunked),
            (false, None | Some(0)) => Ok(Length::None),
            (false, Some(length)) => Ok(Length::Counted(length)),
        }
    }
}

/// Name and value of a header line, the value without the white space around it.
/// Characters of a host and port (RFC 3986 section 3.2.2); that they are in order is not checked.
fn is_host(byte: u8) -> bool {
    const HOST: [bool; 256] = {
        let mut table = [false; 256];
        let others = b"-._~%!$&'()*+;=:[]";
        let mut at = 0;
        while at < others.len() {
            table[others[at] as usize] = true;
            at += 1;
        }
        let mut byte = 0;
        while byte < 128_u8 {
            table[byte as usize] |= byte.is_ascii_alphanumeric();
            byte += 1;
        }
        table
    };
    HOST[usize::from(byte)]
}

pub(super) fn split_header(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr(b':', line).ok_or(Refusal::HeaderLine)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // A name that begins with white space is a folded line, one that ends with it is read
    // differently by different servers; neither is a token.
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Refusal::HeaderLine);
    }
    Ok((name, value.trim_ascii()))
}
