//! Values of a line whose keys have braces: `{NAME}i`, `{NAME}e` and `{FORMAT}t`.
//!
//! Owns what a header field, a CGI variable and a time look like there. Never writes a line and asks no
//! clock. Rules: gunicorn's `{NAME}i` and `{NAME}e`, of which the latter knows what follows from the
//! head and what a proxy sent (RFC 3875 section 4.1); Apache's `{FORMAT}t`, the time at which the
//! request arrived, with directives of strftime(3) in the C locale.

use super::version_text;
use crate::wsgi::environ::Target;
use crate::wsgi::request::RequestHead;
use std::borrow::Cow;
use std::fmt::Write;
use time::{OffsetDateTime, UtcOffset};

/// Directives of strftime(3) that a time may have.
const DIRECTIVES: &[u8] = b"aAbBCdDeFhHIjkmMnpRsStTyYz";

/// A value that only the request knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// The first header field of that name.
    Header(String),
    /// A CGI variable.
    Variable(String),
}

impl Named {
    /// What `request` says; nothing where it does not.
    pub(super) fn of<'a>(&self, request: &'a RequestHead) -> Cow<'a, [u8]> {
        match self {
            Self::Header(name) => Cow::Borrowed(request.header(name).unwrap_or_default()),
            Self::Variable(name) => variable(request, name),
        }
    }
}

/// A CGI variable: as the proxy sent it, or as it follows from the head.
fn variable<'a>(request: &'a RequestHead, name: &str) -> Cow<'a, [u8]> {
    let sent = request
        .variables()
        .filter(|(known, _)| *known == name.as_bytes())
        .last();
    if let Some((_, value)) = sent {
        return Cow::Borrowed(value);
    }
    // Of a target that is refused there is no environ either.
    let target = || Target::of(request).ok();
    let field = match name {
        "REQUEST_METHOD" => return Cow::Borrowed(request.method().as_str().as_bytes()),
        "REQUEST_URI" | "RAW_URI" => return Cow::Borrowed(request.target()),
        "SERVER_PROTOCOL" => return Cow::Borrowed(version_text(request).as_bytes()),
        "QUERY_STRING" => return Cow::Borrowed(target().map_or(b"", |target| target.query)),
        "PATH_INFO" => return target().map_or(Cow::Borrowed(b""), |target| target.path_info()),
        "CONTENT_TYPE" | "CONTENT_LENGTH" => name,
        _ => match name.strip_prefix("HTTP_") {
            Some(field) => field,
            None => return Cow::Borrowed(b""),
        },
    };
    Cow::Borrowed(request.header(&field.replace('_', "-")).unwrap_or_default())
}

/// A format of strftime(3), taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimeFormat(Vec<TimePart>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum TimePart {
    Literal(String),
    Directive(u8),
}

impl TimeFormat {
    /// Takes a format apart.
    ///
    /// # Errors
    /// The directive that is not known.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            parts.push(TimePart::Literal(rest[..at].to_owned()));
            let directive = rest[at + 1..].chars().next();
            match directive {
                Some('%') => parts.push(TimePart::Literal("%".to_owned())),
                Some(letter) if letter.is_ascii() && DIRECTIVES.contains(&(letter as u8)) => {
                    parts.push(TimePart::Directive(letter as u8));
                }
                Some(letter) => return Err(format!("%{letter}")),
                None => return Err("%".to_owned()),
            }
            rest = &rest[at + 2..];
        }
        parts.push(TimePart::Literal(rest.to_owned()));
        Ok(Self(parts))
    }

    /// Appends a time: seconds since the epoch, shown by a clock so many minutes east of UTC.
    pub(super) fn write(&self, line: &mut String, seconds: u64, offset_minutes: i32) {
        let moment = Moment::of(seconds, offset_minutes);
        for part in &self.0 {
            match part {
                TimePart::Literal(text) => line.push_str(text),
                TimePart::Directive(letter) => moment.write(line, *letter),
            }
        }
    }
}

/// A date and time of day.
#[derive(Debug)]
struct Moment(OffsetDateTime);

impl Moment {
    /// The epoch for what no calendar has; UTC for an offset that no clock has.
    fn of(seconds: u64, offset_minutes: i32) -> Self {
        let offset = UtcOffset::from_whole_seconds(offset_minutes.saturating_mul(60));
        let moment = i64::try_from(seconds)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|moment| moment.checked_to_offset(offset.unwrap_or(UtcOffset::UTC)));
        Self(moment.unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }

    fn write(&self, line: &mut String, letter: u8) {
        let at = self.0;
        let hour_of_half = (at.hour() + 11) % 12 + 1;
        // Writing to a String cannot fail.
        let _ = match letter {
            b'a' => write!(line, "{:.3}", at.weekday()),
            b'A' => write!(line, "{}", at.weekday()),
            b'b' | b'h' => write!(line, "{:.3}", at.month()),
            b'B' => write!(line, "{}", at.month()),
            b'C' => write!(line, "{:02}", at.year().div_euclid(100)),
            b'd' => write!(line, "{:02}", at.day()),
            b'e' => write!(line, "{:2}", at.day()),
            b'H' => write!(line, "{:02}", at.hour()),
            b'k' => write!(line, "{:2}", at.hour()),
            b'I' => write!(line, "{hour_of_half:02}"),
            b'j' => write!(line, "{:03}", at.ordinal()),
            b'm' => write!(line, "{:02}", u8::from(at.month())),
            b'M' => write!(line, "{:02}", at.minute()),
            b'n' | b't' => write!(line, " "),
            b'p' => write!(line, "{}", if at.hour() < 12 { "AM" } else { "PM" }),
            b's' => write!(line, "{}", at.unix_timestamp()),
            b'S' => write!(line, "{:02}", at.second()),
            b'y' => write!(line, "{:02}", at.year().rem_euclid(100)),
            b'Y' => write!(line, "{}", at.year()),
            b'z' => {
                let offset = at.offset().whole_minutes();
                let (sign, offset) = (if offset < 0 { '-' } else { '+' }, offset.unsigned_abs());
                write!(line, "{sign}{:02}{:02}", offset / 60, offset % 60)
            }
            b'D' => return self.write_all(line, b"m/d/y"),
            b'F' => return self.write_all(line, b"Y-m-d"),
            b'R' => return self.write_all(line, b"H:M"),
            b'T' => return self.write_all(line, b"H:M:S"),
            _ => Ok(()),
        };
    }

    /// Directives, and what stands between them.
    fn write_all(&self, line: &mut String, text: &[u8]) {
        for byte in text {
            if byte.is_ascii_alphabetic() {
                self.write(line, *byte);
            } else {
                line.push(char::from(*byte));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Version};

    /// As `date -u -d @SECONDS +FORMAT` has it.
    fn written(format: &str, seconds: u64, offset_minutes: i32) -> String {
        let mut line = String::new();
        let format = TimeFormat::parse(format).unwrap();
        format.write(&mut line, seconds, offset_minutes);
        line
    }

    #[test]
    fn a_time_is_written_as_strftime_does() {
        for (seconds, offset, format, expected) in [
            (0, 0, "%a %b %e %H:%M:%S %Y", "Thu Jan  1 00:00:00 1970"),
            (
                1_410_247_288,
                0,
                "%a %b %e %T %Y",
                "Tue Sep  9 07:21:28 2014",
            ),
            (951_782_400, 0, "%F %j", "2000-02-29 060"),
            (951_868_800, 0, "%F %j", "2000-03-01 061"),
            (978_220_800, 0, "%A %F %j", "Sunday 2000-12-31 366"),
            (
                1_100_000_000,
                0,
                "%d/%b/%Y:%T %z",
                "09/Nov/2004:11:33:20 +0000",
            ),
            (4_107_542_399, 0, "%F %D %j", "2100-02-28 02/28/00 059"),
            (4_107_542_400, 0, "%F %j", "2100-03-01 060"),
            (1_767_222_000, -90, "%F %R %z", "2025-12-31 21:30 -0130"),
            (1_767_222_000, 330, "%F %R %z", "2026-01-01 04:30 +0530"),
            (
                1_767_222_000,
                0,
                "%s %I %p %y %C %B %h %k%%",
                "1767222000 11 PM 25 20 December Dec 23%",
            ),
            (1_767_225_600, 0, "%I%p", "12AM"),
        ] {
            assert_eq!(written(format, seconds, offset), expected, "{format}");
        }
    }

    #[test]
    fn a_directive_that_is_not_known_is_named() {
        assert_eq!(TimeFormat::parse("%Y %Z"), Err("%Z".to_owned()));
        assert_eq!(TimeFormat::parse("%Y %é"), Err("%é".to_owned()));
        assert_eq!(TimeFormat::parse("%Y %"), Err("%".to_owned()));
    }

    #[test]
    fn a_variable_is_the_proxys_or_follows_from_the_head() {
        let head = |target: &[u8]| {
            let headers: [(&[u8], &[u8]); 2] = [(b"X-Id", b"7"), (b"Content-Length", b"3")];
            RequestHead::of(Method::PUT, target, Version::HTTP_11, &headers)
        };
        let request = head(b"/a%20b?c=d");
        let value = |name: &str| variable(&request, name).into_owned();

        assert_eq!(value("REQUEST_METHOD"), b"PUT");
        assert_eq!(value("REQUEST_URI"), b"/a%20b?c=d");
        assert_eq!(value("PATH_INFO"), b"/a b");
        assert_eq!(value("QUERY_STRING"), b"c=d");
        assert_eq!(value("SERVER_PROTOCOL"), b"HTTP/1.1");
        assert_eq!(value("HTTP_X_ID"), b"7");
        assert_eq!(value("CONTENT_LENGTH"), b"3");
        assert_eq!(value("REMOTE_USER"), b"");
        assert_eq!(variable(&head(b"/a"), "QUERY_STRING").as_ref(), b"");
        let request = head(b"http://b/a%20b?c=d");
        assert_eq!(variable(&request, "PATH_INFO").as_ref(), b"/a b");
        assert_eq!(variable(&request, "QUERY_STRING").as_ref(), b"c=d");
        let sent = [&b"/first"[..], &b"/mine"[..]];
        let sent = sent.map(|value| (Box::from(&b"PATH_INFO"[..]), Box::from(value)));
        let request = head(b"/a").with_variables(sent.to_vec());
        assert_eq!(variable(&request, "PATH_INFO").as_ref(), b"/mine");
    }
}
