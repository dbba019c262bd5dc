//! Encodes what a client is sent: the head of an answer, and the framing of its body.
//!
//! Owns what the server itself says in an answer: `Date`, `Connection` and the field that delimits
//! the body. Never sends anything and never looks at the body. Rules: RFC 9110 sections 6.4.1, 6.6.1
//! and 8.6, RFC 9112 sections 6, 7.1 and 9.3.

use crate::wsgi::ResponseHead;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode, Version};
use nix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

/// What tells the client where the body of an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// The head: there is no body (RFC 9112 section 6.3, rule 1).
    Bodiless,
    /// `Content-Length`.
    Counted(u64),
    /// The last chunk.
    Chunked,
    /// The end of the connection.
    Close,
}

impl Framing {
    /// How an answer is framed whose body has `total` bytes, if that is known, or as many as the
    /// application has announced.
    pub(super) fn of(
        head: &ResponseHead,
        method: &Method,
        version: Version,
        total: Option<u64>,
    ) -> Self {
        let is_bodiless = *method == Method::HEAD
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        if is_bodiless {
            return Self::Bodiless;
        }
        match announced_length(&head.headers).or(total) {
            Some(length) => Self::Counted(length),
            None if version == Version::HTTP_10 => Self::Close,
            None => Self::Chunked,
        }
    }
}

/// What the answer says about the connection after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Nothing: HTTP/1.1 stays.
    Implied,
    /// `keep-alive`, for HTTP/1.0.
    Announced,
    /// `close`.
    Close,
}

/// `Content-Length` as the application gave it.
pub(super) fn announced_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Appends the head of an answer to `out`.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    version: Version,
    framing: Framing,
    persistence: Persistence,
) {
    out.extend_from_slice(if version == Version::HTTP_10 {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    });
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    if let Some(reason) = &head.reason {
        out.extend_from_slice(reason);
    } else {
        let reason = head.status.canonical_reason().unwrap_or_default();
        out.extend_from_slice(reason.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    let mut has_length = false;
    let mut has_date = false;
    for (name, value) in &head.headers {
        if *name == CONNECTION || *name == TRANSFER_ENCODING {
            continue; // the server's own word follows
        }
        has_length |= *name == CONTENT_LENGTH;
        has_date |= *name == DATE;
        write_name(out, name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    match framing {
        Framing::Counted(length) if !has_length => {
            out.extend_from_slice(b"Content-Length: ");
            write_number(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Counted(_) | Framing::Bodiless | Framing::Close => {}
    }
    match persistence {
        Persistence::Implied => {}
        Persistence::Announced => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        Persistence::Close => out.extend_from_slice(b"Connection: close\r\n"),
    }
    if !has_date {
        write_date(out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the size line of a chunk.
pub(super) fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    // Writing to a Vec cannot fail.
    drop(write!(out, "{size:x}\r\n"));
}

/// What ends a chunk's data.
pub(super) const CHUNK_END: &[u8] = b"\r\n";
/// The last chunk, and the end of the trailers that it could have.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// The interim answer to a client that waits with its body.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A field name in the spelling that eventlet and most servers use: `Content-Type`.
fn write_name(out: &mut Vec<u8>, name: &[u8]) {
    let mut is_first = true;
    out.extend(name.iter().map(|byte| {
        let upper = std::mem::replace(&mut is_first, *byte == b'-');
        if upper {
            byte.to_ascii_uppercase()
        } else {
            *byte
        }
    }));
}

fn write_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends the `Date` field; its text is made once a second on each thread.
fn write_date(out: &mut Vec<u8>) {
    thread_local! {
        static DATE: RefCell<(u64, Vec<u8>)> = const { RefCell::new((u64::MAX, Vec::new())) };
    }
    // The date of a message is the wall clock's, whatever that does (RFC 9110 section 6.6.1).
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec()).ok())
        .unwrap_or(0);
    DATE.with_borrow_mut(|(second, text)| {
        if *second != now {
            let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
            *text = format!("Date: {date}\r\n").into_bytes();
            *second = now;
        }
        out.extend_from_slice(text);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::HeaderValue;

    fn head(status: StatusCode, headers: &[(&'static str, &'static str)]) -> ResponseHead {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        ResponseHead {
            status,
            reason: None,
            headers: map,
        }
    }

    fn written(head: &ResponseHead, framing: Framing, persistence: Persistence) -> String {
        let mut out = Vec::new();
        write_head(&mut out, head, Version::HTTP_11, framing, persistence);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_head_has_one_date() {
        let own = written(
            &head(StatusCode::OK, &[]),
            Framing::Counted(0),
            Persistence::Implied,
        );
        let given = written(
            &head(StatusCode::OK, &[("date", "Thu, 01 Jan 1970 00:00:00 GMT")]),
            Framing::Counted(0),
            Persistence::Implied,
        );

        assert_eq!(own.matches("\r\nDate: ").count(), 1, "{own}");
        assert!(own.contains(" GMT\r\n"), "{own}");
        assert_eq!(given.matches("\r\nDate: ").count(), 1, "{given}");
        assert!(given.contains("\r\nDate: Thu, 01 Jan 1970"), "{given}");
    }

    #[test]
    fn names_are_spelled_as_usual_and_values_kept() {
        let text = written(
            &head(
                StatusCode::OK,
                &[("x-some-thing", "a B"), ("etag", "\"x\"")],
            ),
            Framing::Close,
            Persistence::Close,
        );

        assert!(text.starts_with("HTTP/1.1 200 OK\r\nX-Some-Thing: a B\r\nEtag: \"x\"\r\n"));
        assert!(text.contains("\r\nConnection: close\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n"), "{text}");
    }

    #[test]
    fn an_announced_length_is_sent_once() {
        let announced = head(StatusCode::OK, &[("content-length", "5")]);
        let framing = Framing::of(&announced, &Method::GET, Version::HTTP_11, Some(7));

        assert_eq!(framing, Framing::Counted(5));
        let text = written(&announced, framing, Persistence::Implied);
        assert_eq!(text.matches("Content-Length: 5\r\n").count(), 1, "{text}");
    }

    #[test]
    fn a_body_of_unknown_length_is_framed_as_the_client_can_read_it() {
        let unknown = head(StatusCode::OK, &[]);
        let of = |method, version| Framing::of(&unknown, method, version, None);

        assert_eq!(of(&Method::GET, Version::HTTP_11), Framing::Chunked);
        assert_eq!(of(&Method::GET, Version::HTTP_10), Framing::Close);
        assert_eq!(of(&Method::HEAD, Version::HTTP_11), Framing::Bodiless);
        let empty = head(StatusCode::NOT_MODIFIED, &[]);
        assert_eq!(
            Framing::of(&empty, &Method::GET, Version::HTTP_11, Some(0)),
            Framing::Bodiless
        );
    }

    #[test]
    fn an_own_reason_replaces_the_standard_one() {
        let mut answer = head(StatusCode::OK, &[]);
        answer.reason = Some(Bytes::from_static(b"Fine"));

        let text = written(&answer, Framing::Counted(12), Persistence::Announced);

        assert!(text.starts_with("HTTP/1.1 200 Fine\r\n"), "{text}");
        assert!(text.contains("Content-Length: 12\r\nConnection: keep-alive\r\n"));
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 9, 10, 65_536, u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }
}
