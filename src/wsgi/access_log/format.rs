//! What a line of the native access log looks like: a format, taken apart once.
//!
//! Owns the subset of Python's % formats that `wsgi_log_format` needs, the keys that it may name, and
//! the two formats that have a name of their own. Never writes a line anywhere. A value
//! whose key has braces is `super::values`' part. Rules: Python's "printf-style String
//! Formatting"; the combined log format of Apache and nginx; gunicorn's `{NAME}i` and `{NAME}e`;
//! Apache's `{FORMAT}t`.

use super::values::{Named, TimeFormat};
use super::{CUT_OFF, escape_into, month_name, plain_request_line, version_text};
use crate::wsgi::request::RequestHead;
use crate::wsgi::{Delivery, Endpoints, Refused};
use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

/// The formats that have a name.
const NAMED: [(&str, &str); 2] = [
    (
        "common",
        "%(client_ip)s - - [%(time_local)s] \"%(request_line)s\" %(status_code)s %(body_length)s",
    ),
    (
        "combined",
        "%(client_ip)s - - [%(time_local)s] \"%(request_line)s\" %(status_code)s %(body_length)s \
         \"%(referer)s\" \"%(user_agent)s\"",
    ),
];

/// Keys that a format may name, those of `wsgi_log_format` first.
const KEYS: [(&str, Key); 22] = [
    ("client_ip", Key::ClientIp),
    ("client_port", Key::ClientPort),
    ("date_time", Key::DateTime),
    ("request_line", Key::RequestLine),
    ("status_code", Key::Number(Number::StatusCode)),
    ("body_length", Key::Number(Number::BodyLength)),
    ("wall_seconds", Key::WallSeconds),
    ("time_local", Key::TimeLocal),
    ("referer", Key::Referer),
    ("user_agent", Key::UserAgent),
    ("delivery", Key::Delivery),
    ("method", Key::Method),
    ("target", Key::Target),
    ("protocol", Key::Protocol),
    ("request_length", Key::Number(Number::RequestLength)),
    ("wall_milliseconds", Key::Number(Number::WallMilliseconds)),
    ("wall_microseconds", Key::Number(Number::WallMicroseconds)),
    ("unix_seconds", Key::Number(Number::UnixSeconds)),
    (
        "arrival_milliseconds",
        Key::Number(Number::ArrivalMilliseconds),
    ),
    (
        "arrival_microseconds",
        Key::Number(Number::ArrivalMicroseconds),
    ),
    ("process_id", Key::Number(Number::ProcessId)),
    ("worker", Key::Number(Number::Worker)),
];
/// Keys of a kind, as messages have them.
const BRACED: &str = "{HEADER}i, {CGI_VARIABLE}e, {STRFTIME}t";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    ClientIp,
    ClientPort,
    DateTime,
    RequestLine,
    Method,
    Target,
    Protocol,
    Number(Number),
    WallSeconds,
    /// `22/Nov/2026:15:08:03 +0100`.
    TimeLocal,
    Referer,
    UserAgent,
    /// `complete` or `cut`.
    Delivery,
    /// A place in [`Format::named`].
    Named(usize),
    /// A place in [`Format::times`].
    Arrival(usize),
}

/// What is a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    StatusCode,
    BodyLength,
    /// What the request's `Content-Length` says, or 0.
    RequestLength,
    WallMilliseconds,
    WallMicroseconds,
    /// Since the epoch, of the line itself.
    UnixSeconds,
    /// Since the epoch, of the request's arrival.
    ArrivalMilliseconds,
    ArrivalMicroseconds,
    ProcessId,
    /// Of the worker among its siblings, from 1.
    Worker,
}

impl Number {
    fn of(self, subject: &Subject<'_>, event: &Event) -> u128 {
        match self {
            Self::StatusCode => event.status.into(),
            Self::BodyLength => event.delivery.sent.into(),
            Self::RequestLength => subject.request_length().into(),
            Self::WallMilliseconds => event.wall.as_millis(),
            Self::WallMicroseconds => event.wall.as_micros(),
            Self::UnixSeconds => event.since_epoch.as_secs().into(),
            Self::ArrivalMilliseconds => event.arrival().as_millis(),
            Self::ArrivalMicroseconds => event.arrival().as_micros(),
            Self::ProcessId => std::process::id().into(),
            Self::Worker => event.worker.into(),
        }
    }
}

/// How a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conversion {
    Text,
    Integer,
    Float,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Field {
        key: Key,
        conversion: Conversion,
        width: usize,
        precision: Option<usize>,
        is_left: bool,
        is_zero_padded: bool,
    },
}

/// Why a format was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{problem}; give combined, common, or a % format that may name {}",
    key_names()
)]
pub struct FormatError {
    problem: String,
}

/// A format, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    parts: Vec<Part>,
    named: Vec<Named>,
    times: Vec<TimeFormat>,
}

/// The client's side of a line. Borrowed from the request where the line is written while that is
/// there.
#[derive(Debug, Clone, Default)]
pub struct Subject<'a> {
    client_ip: Cow<'a, str>,
    client_port: Cow<'a, str>,
    line: Line<'a>,
    referer: Cow<'a, [u8]>,
    user_agent: Cow<'a, [u8]>,
    /// What a format names, and the length of the body, of a request that is gone.
    kept: Vec<Vec<u8>>,
    request_length: u64,
}

/// A request line as it came.
#[derive(Debug, Clone)]
enum Line<'a> {
    Of(&'a RequestHead),
    Plain(Cow<'a, [u8]>),
}

impl Default for Line<'_> {
    fn default() -> Self {
        Self::Plain(Cow::Borrowed(b""))
    }
}

impl<'a> Subject<'a> {
    /// What a request says about itself.
    #[must_use]
    pub fn of(request: &'a RequestHead, endpoints: &'a Endpoints) -> Self {
        let mut subject = Self::at(endpoints);
        let mut is_forwarded = false;
        subject.line = Line::Of(request);
        for header in request.headers() {
            // The lengths of the names tell most others apart at no price.
            match header.name.len() {
                7 if header.is(b"referer") && subject.referer.is_empty() => {
                    subject.referer = Cow::Borrowed(header.value);
                }
                10 if header.is(b"user-agent") && subject.user_agent.is_empty() => {
                    subject.user_agent = Cow::Borrowed(header.value);
                }
                15 => is_forwarded |= header.is(b"x-forwarded-for"),
                _ => {}
            }
        }
        if is_forwarded {
            subject.client_ip = Cow::Owned(super::client_ip(request, &subject.client_ip));
        }
        subject
    }

    /// A request that the server refused. What its head says about itself is left out: nothing of it
    /// was found fit to be believed.
    #[must_use]
    pub fn of_refused(refused: &'a Refused) -> Self {
        Self {
            line: Line::Plain(Cow::Borrowed(&refused.line)),
            ..Self::at(&refused.endpoints)
        }
    }

    fn at(endpoints: &'a Endpoints) -> Self {
        let (client_ip, client_port) = match endpoints.peer_text() {
            Some((address, port)) => (
                String::from_utf8_lossy(address),
                String::from_utf8_lossy(port),
            ),
            None => (Cow::Borrowed("unix"), Cow::Borrowed("")),
        };
        Self {
            client_ip,
            client_port,
            ..Self::default()
        }
    }

    /// The same, for a line of `format` that is written when the request is gone.
    #[must_use]
    pub fn into_owned(self, format: &Format) -> Subject<'static> {
        let (line, kept, request_length) = match self.line {
            Line::Of(request) => {
                let named = format.named.iter();
                let kept = named.map(|named| named.of(request).into_owned());
                let line = plain_request_line(request);
                (line, kept.collect(), request_length(request))
            }
            Line::Plain(line) => (line.into_owned(), self.kept, self.request_length),
        };
        Subject {
            kept,
            request_length,
            client_ip: Cow::Owned(self.client_ip.into_owned()),
            client_port: Cow::Owned(self.client_port.into_owned()),
            line: Line::Plain(Cow::Owned(line)),
            referer: Cow::Owned(self.referer.into_owned()),
            user_agent: Cow::Owned(self.user_agent.into_owned()),
        }
    }

    /// Method, target and version; of a line that was refused as much as can be told apart.
    fn line_parts(&self) -> [&[u8]; 3] {
        let line = match &self.line {
            Line::Of(request) => {
                let method = request.method().as_str().as_bytes();
                return [method, request.target(), version_text(request).as_bytes()];
            }
            Line::Plain(line) => &**line,
        };
        let is_space = |byte: &u8| *byte == b' ';
        let Some(first) = line.iter().position(is_space) else {
            return [line, b"", b""];
        };
        let (method, rest) = (&line[..first], &line[first + 1..]);
        match rest.iter().rposition(is_space) {
            Some(last) if rest[last + 1..].starts_with(b"HTTP/") => {
                [method, &rest[..last], &rest[last + 1..]]
            }
            Some(_) | None => [method, rest, b""],
        }
    }

    fn named(&self, format: &Format, place: usize) -> Cow<'_, [u8]> {
        match (&self.line, format.named.get(place)) {
            (Line::Of(request), Some(named)) => named.of(request),
            _ => Cow::Borrowed(self.kept.get(place).map_or(b"", Vec::as_slice)),
        }
    }

    fn request_length(&self) -> u64 {
        match self.line {
            Line::Of(request) => request_length(request),
            Line::Plain(_) => self.request_length,
        }
    }
}

fn request_length(request: &RequestHead) -> u64 {
    let text = request.header("content-length").unwrap_or_default();
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The server's side of a line.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// Status code.
    pub status: u16,
    /// What became of the answer.
    pub delivery: Delivery,
    /// From the request's arrival to the end of the answer.
    pub wall: Duration,
    /// When the line is written, by the local clock.
    pub now: LocalTime,
    /// The same, since the epoch.
    pub since_epoch: Duration,
    /// Number of the worker, from 1; 1 in a process that is none.
    pub worker: u32,
}

impl Event {
    /// When the request arrived, since the epoch.
    fn arrival(&self) -> Duration {
        self.since_epoch.saturating_sub(self.wall)
    }
}

/// A date and time of day, and how far it is from UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalTime {
    /// Year of our era.
    pub year: i32,
    /// From 1.
    pub month: usize,
    /// From 1.
    pub day: u8,
    /// From 0.
    pub hour: u8,
    /// From 0.
    pub minute: u8,
    /// From 0.
    pub second: u8,
    /// Minutes east of UTC.
    pub offset_minutes: i32,
}

impl Format {
    /// Takes a format apart; `text` is `combined`, `common` or a % format.
    ///
    /// # Errors
    /// [`FormatError`] for an unknown key and for what is no format.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let named = NAMED.iter().find(|(name, _)| *name == text);
        let mut rest = named.map_or(text, |(_, format)| *format);
        let mut format = Self {
            parts: Vec::new(),
            named: Vec::new(),
            times: Vec::new(),
        };
        while let Some(at) = rest.find('%') {
            push_literal(&mut format.parts, &rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                push_literal(&mut format.parts, "%");
                rest = after;
                continue;
            }
            let (part, after) = format.field(rest)?;
            format.parts.push(part);
            rest = after;
        }
        push_literal(&mut format.parts, rest);
        let is_literal = |part: &Part| matches!(part, Part::Literal(_));
        if format.parts.iter().all(is_literal) {
            return Err(refused(format!("{text:?} names no key")));
        }
        Ok(format)
    }

    /// Appends a line, its end included. An answer that was cut off is told apart by the end of its
    /// line, unless the format names `delivery`.
    pub fn write(&self, line: &mut String, subject: &Subject<'_>, event: &Event) {
        let mut tells_delivery = false;
        for part in &self.parts {
            match part {
                Part::Literal(text) => line.push_str(text),
                Part::Field {
                    key,
                    conversion,
                    width,
                    precision,
                    is_left,
                    is_zero_padded,
                } => {
                    tells_delivery |= *key == Key::Delivery;
                    let start = line.len();
                    self.write_field(line, *key, *conversion, *precision, subject, event);
                    pad(line, start, *width, *is_left, *is_zero_padded);
                }
            }
        }
        if !event.delivery.is_whole && !tells_delivery {
            line.push_str(CUT_OFF);
        }
        line.push('\n');
    }

    /// A field behind its percent sign, and what follows it.
    fn field<'t>(&mut self, text: &'t str) -> Result<(Part, &'t str), FormatError> {
        let named = text.strip_prefix('(').and_then(|text| text.split_once(')'));
        let Some((name, rest)) = named else {
            return Err(refused(format!("%{text} names no key")));
        };
        let key = self.key(name)?;
        let digits = |text: &str| {
            let end = text
                .find(|character: char| !character.is_ascii_digit())
                .unwrap_or(text.len());
            text[..end].len()
        };
        let flags = rest.len() - rest.trim_start_matches(['-', '0']).len();
        let (flags, rest) = rest.split_at(flags);
        let (width, rest) = rest.split_at(digits(rest));
        let (precision, rest) = match rest.strip_prefix('.') {
            Some(rest) => {
                let (precision, rest) = rest.split_at(digits(rest));
                (Some(precision.parse().unwrap_or(0)), rest)
            }
            None => (None, rest),
        };
        let is_number = matches!(key, Key::Number(_) | Key::WallSeconds);
        let conversion = match rest.chars().next() {
            Some('s') => Conversion::Text,
            Some('d' | 'i') if is_number => Conversion::Integer,
            Some('f') if is_number => Conversion::Float,
            found => {
                let found =
                    found.map_or_else(|| "nothing".to_owned(), |found| format!("{found:?}"));
                return Err(refused(format!(
                    "has {found} behind %({name}); give s, or d or f for a number"
                )));
            }
        };
        let width = width.parse().unwrap_or(0);
        if width > MOST_PADDING || precision.is_some_and(|precision| precision > MOST_PADDING) {
            return Err(refused(format!(
                "pads %({name}) to more than {MOST_PADDING} characters"
            )));
        }
        let part = Part::Field {
            key,
            conversion,
            width,
            precision,
            is_left: flags.contains('-'),
            is_zero_padded: flags.contains('0') && conversion != Conversion::Text,
        };
        Ok((part, &rest[1..]))
    }

    fn write_field(
        &self,
        line: &mut String,
        key: Key,
        conversion: Conversion,
        precision: Option<usize>,
        subject: &Subject<'_>,
        event: &Event,
    ) {
        let start = line.len();
        match key {
            Key::ClientIp => line.push_str(&subject.client_ip),
            Key::ClientPort => line.push_str(&subject.client_port),
            Key::RequestLine => match &subject.line {
                Line::Of(request) => {
                    line.push_str(request.method().as_str());
                    line.push(' ');
                    escape_into(line, request.target());
                    line.push(' ');
                    line.push_str(version_text(request));
                }
                Line::Plain(plain) => escape_into(line, plain),
            },
            Key::Referer => escape_or_dash(line, &subject.referer),
            Key::UserAgent => escape_or_dash(line, &subject.user_agent),
            Key::Delivery => line.push_str(if event.delivery.is_whole {
                "complete"
            } else {
                "cut"
            }),
            Key::Method => escape_or_dash(line, subject.line_parts()[0]),
            Key::Target => escape_or_dash(line, subject.line_parts()[1]),
            Key::Protocol => escape_or_dash(line, subject.line_parts()[2]),
            Key::Named(place) => escape_or_dash(line, &subject.named(self, place)),
            Key::Arrival(place) => {
                let seconds = event.arrival().as_secs();
                self.times[place].write(line, seconds, event.now.offset_minutes);
            }
            Key::DateTime => write_date_and_time(line, &event.now, ' '),
            Key::TimeLocal => write_time_local(line, &event.now),
            Key::Number(number) => {
                // Writing to a String cannot fail.
                let _ = write!(line, "{}", number.of(subject, event));
                if conversion == Conversion::Float && precision != Some(0) {
                    line.push('.');
                    line.extend(std::iter::repeat_n('0', precision.unwrap_or(6)));
                }
                return;
            }
            Key::WallSeconds => {
                let seconds = event.wall.as_secs_f64();
                let _ = match conversion {
                    Conversion::Float => write!(line, "{seconds:.*}", precision.unwrap_or(6)),
                    Conversion::Integer => write!(line, "{}", event.wall.as_secs()),
                    Conversion::Text => write!(line, "{seconds}"),
                };
                return;
            }
        }
        if let Some(precision) = precision
            && let Some((end, _)) = line[start..].char_indices().nth(precision)
        {
            line.truncate(start + end);
        }
    }

    /// The key of that name.
    fn key(&mut self, name: &str) -> Result<Key, FormatError> {
        if let Some((_, key)) = KEYS.iter().find(|(known, _)| *known == name) {
            return Ok(*key);
        }
        let braced = name
            .strip_prefix('{')
            .and_then(|text| text.rsplit_once('}'));
        match braced {
            Some((inner, "t")) if !inner.is_empty() => {
                let format = TimeFormat::parse(inner).map_err(|directive| {
                    refused(format!("has the unknown {directive} in {name:?}"))
                })?;
                self.times.push(format);
                Ok(Key::Arrival(self.times.len() - 1))
            }
            Some((inner, kind @ ("i" | "e"))) if !inner.is_empty() => {
                self.named.push(match kind {
                    "i" => Named::Header(inner.to_owned()),
                    _ => Named::Variable(inner.to_owned()),
                });
                Ok(Key::Named(self.named.len() - 1))
            }
            _ => Err(refused(format!("names the unknown key {name:?}"))),
        }
    }
}

fn push_literal(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Literal(literal)) => literal.push_str(text),
        Some(Part::Field { .. }) | None => parts.push(Part::Literal(text.to_owned())),
    }
}

/// The widest field.
const MOST_PADDING: usize = 1000;

fn refused(problem: String) -> FormatError {
    FormatError { problem }
}

fn key_names() -> String {
    format!("{}, {BRACED}", KEYS.map(|(name, _)| name).join(", "))
}

fn escape_or_dash(line: &mut String, text: &[u8]) {
    if text.is_empty() {
        line.push('-');
    } else {
        escape_into(line, text);
    }
}

fn write_date_and_time(line: &mut String, now: &LocalTime, separator: char) {
    push_two(line, now.day);
    line.push('/');
    line.push_str(month_name(now.month));
    // Writing to a String cannot fail.
    let _ = write!(line, "/{:04}", now.year);
    line.push(separator);
    push_two(line, now.hour);
    line.push(':');
    push_two(line, now.minute);
    line.push(':');
    push_two(line, now.second);
}

fn write_time_local(line: &mut String, now: &LocalTime) {
    let offset = now.offset_minutes.unsigned_abs();
    let small = |number: u32| u8::try_from(number).unwrap_or(0);
    write_date_and_time(line, now, ':');
    line.push(' ');
    line.push(if now.offset_minutes < 0 { '-' } else { '+' });
    push_two(line, small(offset / 60));
    push_two(line, small(offset % 60));
}

/// A number below 100, with two digits.
fn push_two(line: &mut String, number: u8) {
    line.push(char::from(b'0' + number / 10 % 10));
    line.push(char::from(b'0' + number % 10));
}

/// Pads what was written from `start` on.
fn pad(line: &mut String, start: usize, width: usize, is_left: bool, is_zero_padded: bool) {
    let length = line[start..].chars().count();
    if length >= width {
        return;
    }
    let missing = width - length;
    if is_left {
        line.extend(std::iter::repeat_n(' ', missing));
    } else {
        let filler = if is_zero_padded { "0" } else { " " };
        line.insert_str(start, &filler.repeat(missing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Version};

    fn subject() -> Subject<'static> {
        let headers: [(&[u8], &[u8]); 1] = [(b"User-Agent", b"curl \"x\"\n")];
        let request = RequestHead::of(Method::GET, b"/a", Version::HTTP_11, &headers);
        let endpoints = Endpoints::new(Some("10.0.0.1:5".parse().unwrap()), None, false);
        let subject = Subject::of(&request, &endpoints);
        let format = Format::parse("combined").unwrap();
        let (mut borrowed, mut owned) = (String::new(), String::new());
        format.write(&mut borrowed, &subject, &event(true));
        let subject = subject.into_owned(&format);
        format.write(&mut owned, &subject, &event(true));
        assert_eq!(borrowed, owned);
        subject
    }

    fn event(is_whole: bool) -> Event {
        Event {
            status: 200,
            delivery: Delivery {
                sent: 1234,
                is_whole,
                is_file_short: false,
            },
            wall: Duration::from_micros(1_500_250),
            now: LocalTime {
                year: 2026,
                month: 11,
                day: 2,
                hour: 5,
                minute: 8,
                second: 3,
                offset_minutes: -90,
            },
            since_epoch: Duration::from_millis(1_793_601_483_500),
            worker: 3,
        }
    }

    fn line(format: &str) -> String {
        let mut line = String::new();
        Format::parse(format)
            .unwrap()
            .write(&mut line, &subject(), &event(true));
        line
    }

    #[test]
    fn what_only_the_request_knows_is_the_same_when_the_request_is_gone() {
        let headers: [(&[u8], &[u8]); 3] = [
            (b"Host", b"a.example"),
            (b"X-Id", b"7\"8"),
            (b"Content-Length", b"12"),
        ];
        let request = RequestHead::of(Method::PUT, b"/a?b=c", Version::HTTP_10, &headers);
        let endpoints = Endpoints::new(None, None, false);
        let format = Format::parse(
            "%(method)s %(target)s %(protocol)s %({host}i)s %({X-Id}i)s %({absent}i)s \
             %({QUERY_STRING}e)s %({REMOTE_USER}e)s %(request_length)s",
        )
        .unwrap();
        let expected = "PUT /a?b=c HTTP/1.0 a.example 7\\\"8 - b=c - 12\n";
        let written = |subject: &Subject<'_>| {
            let mut line = String::new();
            format.write(&mut line, subject, &event(true));
            line
        };

        let subject = Subject::of(&request, &endpoints);
        assert_eq!(written(&subject), expected);
        assert_eq!(written(&subject.into_owned(&format)), expected);
    }

    #[test]
    fn times_and_numbers_are_those_of_the_request_and_its_worker() {
        for (format, expected) in [
            ("%(wall_milliseconds)s|", "1500|\n"),
            ("%(wall_microseconds)s|", "1500250|\n"),
            ("%(unix_seconds)s|", "1793601483|\n"),
            ("%(arrival_milliseconds)s|", "1793601481999|\n"),
            ("%(arrival_microseconds)s|", "1793601481999750|\n"),
            ("%({%d/%b/%Y:%T %z}t)s|", "02/Nov/2026:05:08:01 -0130|\n"),
            ("%(worker)3d|", "  3|\n"),
            ("%(method)s %(target)s %(protocol)s", "GET /a HTTP/1.1\n"),
        ] {
            assert_eq!(line(format), expected, "{format}");
        }
        let own = std::process::id();
        assert_eq!(line("%(process_id)s"), format!("{own}\n"));
    }

    #[test]
    fn a_refused_request_line_is_told_apart_as_far_as_it_goes() {
        let written = |line: &'static [u8]| {
            let subject = Subject {
                line: Line::Plain(Cow::Borrowed(line)),
                ..Subject::default()
            };
            let mut written = String::new();
            let format = Format::parse("%(method)s|%(target)s|%(protocol)s|%({host}i)s").unwrap();
            format.write(&mut written, &subject, &event(true));
            written
        };

        assert_eq!(written(b"GET /a b HTTP/1.1"), "GET|/a b|HTTP/1.1|-\n");
        assert_eq!(written(b"GET /a b"), "GET|/a b|-|-\n");
        assert_eq!(written(b"GET"), "GET|-|-|-\n");
        assert_eq!(written(b""), "-|-|-|-\n");
    }

    #[test]
    fn the_combined_format_is_that_of_apache_and_nginx() {
        assert_eq!(
            line("combined"),
            "10.0.0.1 - - [02/Nov/2026:05:08:03 -0130] \"GET /a HTTP/1.1\" 200 1234 \"-\" \
             \"curl \\\"x\\\"\\x0a\"\n"
        );
        assert!(line("common").ends_with("\" 200 1234\n"));
    }

    #[test]
    fn the_format_of_oslo_service_reads_as_from_python() {
        assert_eq!(
            line(
                "%(client_ip)s \"%(request_line)s\" status: %(status_code)s  len: %(body_length)s \
                 time: %(wall_seconds).7f"
            ),
            "10.0.0.1 \"GET /a HTTP/1.1\" status: 200  len: 1234 time: 1.5002500\n"
        );
        assert_eq!(line("[%(date_time)s]"), "[02/Nov/2026 05:08:03]\n");
    }

    #[test]
    fn fields_are_padded_cut_and_converted_as_python_does() {
        for (format, expected) in [
            ("%(status_code)5d|", "  200|\n"),
            ("%(status_code)-5d|", "200  |\n"),
            ("%(status_code)05d|", "00200|\n"),
            ("%(status_code).2f|", "200.00|\n"),
            ("%(status_code).0f|", "200|\n"),
            ("%(body_length)f|", "1234.000000|\n"),
            ("%(client_ip).4s|", "10.0|\n"),
            ("%(client_ip)10s|", "  10.0.0.1|\n"),
            ("%(wall_seconds)d|", "1|\n"),
            ("%(wall_seconds)f|", "1.500250|\n"),
            ("100%% %(delivery)s", "100% complete\n"),
        ] {
            assert_eq!(line(format), expected, "{format}");
        }
    }

    #[test]
    fn an_answer_that_was_cut_off_is_told_apart() {
        let format = |text: &str| {
            let mut line = String::new();
            let format = Format::parse(text).unwrap();
            format.write(&mut line, &subject(), &event(false));
            line
        };

        assert_eq!(format("%(status_code)s"), "200 (cut off)\n");
        assert_eq!(format("%(status_code)s %(delivery)s"), "200 cut\n");
    }

    #[test]
    fn what_is_no_format_is_refused_with_the_keys() {
        for text in [
            "",
            "plain",
            "%s",
            "%(unknown)s",
            "%(client_ip)d",
            "%(client_ip)",
            "%(client_ip",
            "%",
            "%(status_code)x",
            "%(status_code)5000d",
            "Combined",
            "%({host}x)s",
            "%({}i)s",
            "%({%Z}t)s",
            "%({host}i)d",
        ] {
            let message = Format::parse(text).unwrap_err().to_string();
            assert!(message.contains("client_ip, client_port"), "{message}");
        }
    }
}
