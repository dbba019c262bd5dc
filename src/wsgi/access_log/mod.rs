//! The access log: what may stand in a line of what a client sent.
//!
//! Renders the fields that a client controls so that no byte of them can end a line, forge another
//! or move a terminal's cursor. Formats no line itself: where the log is Python's, `wsgi_log_format`
//! is a Python format string and Python applies it; where it is the server's own, `format` does, and
//! `file` writes. Keys and order: eventlet.wsgi, as documented by oslo.service's
//! option `wsgi_log_format`. Which requests have a line at all is `filter`'s part.

use std::fmt::Write;

pub mod file;
pub mod filter;
pub mod format;
mod values;

use super::request::RequestHead;
use http::Version;

/// Keys that a log format may name.
pub const KEYS: [&str; 7] = [
    "client_ip",
    "client_port",
    "date_time",
    "request_line",
    "status_code",
    "body_length",
    "wall_seconds",
];

/// What stands at the end of the line of an answer that its client did not take to its end.
pub const CUT_OFF: &str = " (cut off)";

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Appends *text* to *line*. Control characters and bytes above 127 become `\xNN`; a quotation mark
/// and a backslash get a backslash before them, so that a quoted field ends where it seems to.
pub fn escape_into(line: &mut String, text: &[u8]) {
    let is_plain = |byte: u8| matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\';
    let mut rest = text;
    while let Some(&byte) = rest.first() {
        let end = rest.iter().position(|byte| !is_plain(*byte));
        let (plain, others) = rest.split_at(end.unwrap_or(rest.len()));
        // ASCII: nothing is lost.
        line.push_str(&String::from_utf8_lossy(plain));
        rest = others;
        if !plain.is_empty() {
            continue;
        }
        match byte {
            b'"' | b'\\' => {
                line.push('\\');
                line.push(char::from(byte));
            }
            // Writing to a String cannot fail.
            _ => drop(write!(line, "\\x{byte:02x}")),
        }
        rest = &rest[1..];
    }
}

/// The request line as it arrived, escaped.
#[must_use]
pub fn request_line(request: &RequestHead) -> String {
    escaped(&plain_request_line(request))
}

/// The request line as it arrived.
#[must_use]
pub fn plain_request_line(request: &RequestHead) -> Vec<u8> {
    [
        request.method().as_str().as_bytes(),
        request.target(),
        version_text(request).as_bytes(),
    ]
    .join(&b' ')
}

fn version_text(request: &RequestHead) -> &'static str {
    if request.version() == Version::HTTP_10 {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    }
}

/// *text* as [`escape_into`] writes it.
#[must_use]
pub fn escaped(text: &[u8]) -> String {
    let mut line = String::with_capacity(text.len() + 8);
    escape_into(&mut line, text);
    line
}

/// The client's address, after those that `X-Forwarded-For` claims: without blanks, separated by
/// commas, escaped. *peer* is the address of the connection's other end, or `unix`.
#[must_use]
pub fn client_ip(request: &RequestHead, peer: &str) -> String {
    let mut line = String::new();
    for header in request.headers() {
        if !header.is(b"x-forwarded-for") {
            continue;
        }
        let claim: Vec<u8> = header
            .value
            .iter()
            .copied()
            .filter(|byte| *byte != b' ')
            .collect();
        if !claim.is_empty() {
            escape_into(&mut line, &claim);
            line.push(',');
        }
    }
    line.push_str(peer);
    line
}

/// `22/Nov/2026 15:08:03`, in the style of common log files. *month* counts from 1.
#[must_use]
pub fn date_time(year: i32, month: usize, day: u8, hour: u8, minute: u8, second: u8) -> String {
    let month = month_name(month);
    format!("{day:02}/{month}/{year:04} {hour:02}:{minute:02}:{second:02}")
}

fn month_name(month: usize) -> &'static str {
    MONTHS.get(month.wrapping_sub(1)).copied().unwrap_or("???")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, forwarded: &[&str]) -> RequestHead {
        let headers: Vec<(&[u8], &[u8])> = forwarded
            .iter()
            .map(|claim| (&b"X-Forwarded-For"[..], claim.as_bytes()))
            .collect();
        RequestHead::of(
            http::Method::GET,
            target.as_bytes(),
            Version::HTTP_11,
            &headers,
        )
    }

    #[test]
    fn control_bytes_cannot_reach_the_log() {
        let mut line = String::new();
        escape_into(&mut line, b"a\r\nb\x1b[2J\x7f\x00\xc2\x85");

        assert_eq!(line, r"a\x0d\x0ab\x1b[2J\x7f\x00\xc2\x85");
    }

    #[test]
    fn a_quoted_field_cannot_be_closed_from_outside() {
        let mut line = String::new();
        escape_into(&mut line, br#"" status: 200 \"#);

        assert_eq!(line, r#"\" status: 200 \\"#);
    }

    #[test]
    fn forwarded_addresses_come_first() {
        let request = request("/", &["10.0.0.1, 10.0.0.2", "", "10.0.0.3"]);

        assert_eq!(client_ip(&request, "::1"), "10.0.0.1,10.0.0.2,10.0.0.3,::1");
    }

    #[test]
    fn request_line_is_as_sent() {
        let request = request("/a%0a?b=c", &[]);

        assert_eq!(request_line(&request), "GET /a%0a?b=c HTTP/1.1");
    }

    #[test]
    fn dates_are_those_of_common_log_files() {
        assert_eq!(date_time(2026, 11, 2, 5, 8, 3), "02/Nov/2026 05:08:03");
    }
}
