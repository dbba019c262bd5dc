//! Values of a line whose keys have braces: `{NAME}i`, `{NAME}e` and `{FORMAT}t`.
//!
//! Owns what a header field, a CGI variable and a time look like there. Never writes a line and asks no
//! clock. Rules: gunicorn's `{NAME}i` and `{NAME}e`, of which the latter knows what follows from the
//! head and what a proxy sent (RFC 3875 section 4.1); Apache's `{FORMAT}t`, the time at which the
//! request arrived, with directives of strftime(3) in the C locale.

use super::{month_name, version_text};
use crate::wsgi::request::RequestHead;
use std::borrow::Cow;
use std::fmt::Write;

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
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
        .find(|(known, _)| *known == name.as_bytes());
    if let Some((_, value)) = sent {
        return Cow::Borrowed(value);
    }
    let target = request.target();
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let field = match name {
        "REQUEST_METHOD" => return Cow::Borrowed(request.method().as_str().as_bytes()),
        "REQUEST_URI" | "RAW_URI" => return Cow::Borrowed(target),
        "SERVER_PROTOCOL" => return Cow::Borrowed(version_text(request).as_bytes()),
        "QUERY_STRING" => return Cow::Borrowed(target.get(end + 1..).unwrap_or_default()),
        "PATH_INFO" => return percent_encoding::percent_decode(&target[..end]).into(),
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
#[derive(Debug, PartialEq, Eq)]
struct Moment {
    seconds: u64,
    offset_minutes: i32,
    year: i64,
    month: usize,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
    /// From Sunday on, 0 to 6.
    weekday: usize,
    /// From 1.
    day_of_year: i64,
}

const DAY_SECONDS: i64 = 24 * 60 * 60;
const ERA_DAYS: i64 = 146_097;
/// From the first of March of the year 0 to the epoch.
const EPOCH_DAYS: i64 = 719_468;

impl Moment {
    fn of(seconds: u64, offset_minutes: i32) -> Self {
        let local = i64::try_from(seconds).unwrap_or(i64::MAX / 2) + i64::from(offset_minutes) * 60;
        let (days, of_day) = (local.div_euclid(DAY_SECONDS), local.rem_euclid(DAY_SECONDS));
        // Years begin in March here, so that a leap day is the last day of its year.
        let era = (days + EPOCH_DAYS).div_euclid(ERA_DAYS);
        let of_era = (days + EPOCH_DAYS).rem_euclid(ERA_DAYS);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let is_next_year = month_from_march >= 10;
        let year = era * 400 + year_of_era + i64::from(is_next_year);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let number = |value: i64| usize::try_from(value).unwrap_or(0);
        Self {
            seconds,
            offset_minutes,
            year,
            month: number(if is_next_year {
                month_from_march - 9
            } else {
                month_from_march + 3
            }),
            day: of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
            weekday: number((days + 4).rem_euclid(7)),
            day_of_year: if is_next_year {
                of_year - 305
            } else {
                of_year + 60 + i64::from(is_leap)
            },
        }
    }

    fn write(&self, line: &mut String, letter: u8) {
        let hour_of_half = (self.hour + 11) % 12 + 1;
        // Writing to a String cannot fail.
        let _ = match letter {
            b'a' => write!(line, "{:.3}", WEEKDAYS[self.weekday]),
            b'A' => write!(line, "{}", WEEKDAYS[self.weekday]),
            b'b' | b'h' => write!(line, "{}", month_name(self.month)),
            b'B' => write!(line, "{}", MONTHS[self.month.clamp(1, 12) - 1]),
            b'C' => write!(line, "{:02}", self.year.div_euclid(100)),
            b'd' => write!(line, "{:02}", self.day),
            b'e' => write!(line, "{:2}", self.day),
            b'H' => write!(line, "{:02}", self.hour),
            b'k' => write!(line, "{:2}", self.hour),
            b'I' => write!(line, "{hour_of_half:02}"),
            b'j' => write!(line, "{:03}", self.day_of_year),
            b'm' => write!(line, "{:02}", self.month),
            b'M' => write!(line, "{:02}", self.minute),
            b'n' | b't' => write!(line, " "),
            b'p' => write!(line, "{}", if self.hour < 12 { "AM" } else { "PM" }),
            b's' => write!(line, "{}", self.seconds),
            b'S' => write!(line, "{:02}", self.second),
            b'y' => write!(line, "{:02}", self.year.rem_euclid(100)),
            b'Y' => write!(line, "{}", self.year),
            b'z' => {
                let offset = self.offset_minutes.unsigned_abs();
                let sign = if self.offset_minutes < 0 { '-' } else { '+' };
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
        let sent = vec![(Box::from(&b"PATH_INFO"[..]), Box::from(&b"/mine"[..]))];
        let request = head(b"/a").with_variables(sent);
        assert_eq!(variable(&request, "PATH_INFO").as_ref(), b"/mine");
    }
}
