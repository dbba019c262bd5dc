//! What an application may answer: the head it gives to `start_response`, and the length it promised.
//!
//! [`Head`] checks status and headers as they come in; [`Body`] counts what follows them. Neither
//! sends anything: the boundary asks them what may be sent and hands it to the exchange. Rules:
//! PEP 3333 "The `start_response()` Callable" and "Handling the Content-Length Header", RFC 9110
//! sections 5.5 (field values), 6.4.1 and 8.6 (when there is no content), 15 (status codes).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

use super::{ClientGone, Exchange, ResponseHead};

/// Headers that only a server may set: those which speak of one connection (PEP 3333 "Other HTTP
/// Features" by way of RFC 2616 section 13.5.1). `Trailers` is that RFC's spelling of `Trailer`.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
];

/// Most header fields of an answer: no client takes nearly as many.
const MOST_HEADERS: usize = 10_000;

/// Why the head of an answer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// Not three digits, or not followed by a space and a reason.
    #[error("status {0:?} is not valid; give three digits, a space and a reason, as in \"200 OK\"")]
    Status(String),
    /// A status below 200.
    #[error("status {0} is not an application's to send; the server sends interim answers itself")]
    Interim(u16),
    /// Not a token (RFC 9110 section 5.1).
    #[error("response header name {0:?} is not valid; use letters, digits and -")]
    Name(String),
    /// A control character; CR and LF would start a header or an answer of the value's choosing.
    #[error(
        "value {value:?} of response header {name} holds a control character; remove or encode it"
    )]
    Value {
        /// Name of the header.
        name: String,
        /// The refused value.
        value: String,
    },
    /// More than `MOST_HEADERS`.
    #[error("the answer has more than {MOST_HEADERS} headers; no client takes as many")]
    TooMany,
    /// One of the headers that speak of the connection.
    #[error(
        "response header {0} is hop-by-hop and belongs to the server (PEP 3333); do not set it"
    )]
    HopByHop(String),
    /// Not a plain number, or two different ones.
    #[error(
        "Content-Length {0:?} is not one plain number; leave it out or give the body's length in bytes"
    )]
    Length(String),
}

/// Status and headers from `start_response`, checked.
#[derive(Debug, Clone)]
pub struct Head {
    status: StatusCode,
    reason: Option<Bytes>,
    headers: HeaderMap,
    length: Option<u64>,
}

impl Head {
    /// Checks *status* (latin-1) and makes room for *headers* headers.
    ///
    /// # Errors
    /// [`HeadError::Status`] and [`HeadError::Interim`].
    pub fn new(status: &[u8], headers: usize) -> Result<Self, HeadError> {
        let invalid = || HeadError::Status(readable(status));
        let (digits, rest) = status.split_at_checked(3).ok_or_else(invalid)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(invalid());
        }
        let reason = match rest {
            [] => rest,
            [b' ', reason @ ..] => reason,
            _ => return Err(invalid()),
        };
        if !reason.iter().copied().all(is_text) {
            return Err(invalid());
        }
        let status = StatusCode::from_bytes(digits).map_err(|_| invalid())?;
        if status.is_informational() {
            return Err(HeadError::Interim(status.as_u16()));
        }
        let is_standard = reason.is_empty()
            || status
                .canonical_reason()
                .is_some_and(|standard| standard.as_bytes() == reason);
        Ok(Self {
            status,
            reason: (!is_standard).then(|| Bytes::copy_from_slice(reason)),
            headers: HeaderMap::with_capacity(headers.min(MOST_HEADERS) + 2), // framing joins them
            length: None,
        })
    }

    /// The answer that this server gives in place of an application that failed: it ends the
    /// connection, since it is unknown what the application had left undone.
    #[must_use]
    pub fn failure(status: StatusCode) -> Self {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Self {
            status,
            reason: None,
            headers,
            length: None,
        }
    }

    /// Adds one header; name and value in latin-1.
    ///
    /// # Errors
    /// The other variants of [`HeadError`].
    pub fn header(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        let key = HeaderName::from_bytes(name).map_err(|_| HeadError::Name(readable(name)))?;
        if HOP_BY_HOP.contains(&key.as_str()) {
            return Err(HeadError::HopByHop(readable(name)));
        }
        let content = HeaderValue::from_bytes(value).map_err(|_| HeadError::Value {
            name: readable(name),
            value: readable(value),
        })?;
        if key == CONTENT_LENGTH {
            let length = plain_number(value).ok_or_else(|| HeadError::Length(readable(value)))?;
            if self.length.is_some_and(|earlier| earlier != length) {
                return Err(HeadError::Length(format!(
                    "{}, {length}",
                    self.length.unwrap_or_default()
                )));
            }
            self.length = Some(length);
            self.headers.insert(key, content);
        } else {
            if self.headers.len() >= MOST_HEADERS {
                return Err(HeadError::TooMany);
            }
            self.headers.append(key, content);
        }
        Ok(())
    }

    /// Sets the content type of a body that the server wrote itself.
    #[must_use]
    pub fn with_content_type(mut self, value: &'static str) -> Self {
        self.headers
            .insert(http::header::CONTENT_TYPE, HeaderValue::from_static(value));
        self
    }

    /// Status code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Asks for the connection to be closed behind this answer.
    pub fn close(&mut self) {
        self.headers
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }

    /// Turns into what the exchange sends, and into the count of the body behind it. *total* is
    /// the length of the whole body where that is known already.
    #[must_use]
    pub fn into_parts(mut self, method: &Method, total: Option<u64>) -> (ResponseHead, Body) {
        let is_bodiless = is_bodiless(method, self.status);
        if self.status == StatusCode::NO_CONTENT || self.status == StatusCode::RESET_CONTENT {
            self.headers.remove(CONTENT_LENGTH); // RFC 9110 section 8.6
        } else if self.length.is_none()
            && self.status != StatusCode::NOT_MODIFIED
            && let Some(total) = total
            // An application may leave out the body of an answer to HEAD; its length is then unknown.
            && (*method != Method::HEAD || total > 0)
        {
            self.length = Some(total);
            self.headers
                .insert(CONTENT_LENGTH, HeaderValue::from(total));
        }
        let body = Body {
            is_bodiless,
            declared: self.length,
            sent: 0,
            has_excess: false,
        };
        let head = ResponseHead {
            status: self.status,
            reason: self.reason,
            headers: self.headers,
        };
        (head, body)
    }

    /// `Content-Length` as the application gave it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }
}

/// True where HTTP allows no content behind the head (RFC 9110 section 6.4.1).
#[must_use]
pub fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD
        || matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        )
}

/// Counts a body against the length that was promised for it.
#[derive(Debug, Clone, Copy)]
pub struct Body {
    is_bodiless: bool,
    declared: Option<u64>,
    sent: u64,
    has_excess: bool,
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As promised.
    Complete,
    /// With bytes missing: the client must see a cut connection, not a whole answer.
    Short {
        /// Bytes promised by Content-Length.
        declared: u64,
        /// Bytes that the application gave.
        sent: u64,
    },
    /// With bytes to spare, which were not sent: the connection must end, as they would be taken
    /// for the next answer.
    Excess {
        /// Bytes promised by Content-Length.
        declared: u64,
    },
}

impl Body {
    /// How many of the next *offered* bytes may be sent; counts them as sent.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the result is at most `offered`, which is a usize"
    )]
    pub fn admit(&mut self, offered: usize) -> usize {
        if self.is_bodiless {
            return 0;
        }
        let room = self
            .declared
            .map_or(u64::MAX, |declared| declared - self.sent);
        let admitted = room.min(offered as u64);
        self.has_excess |= admitted < offered as u64;
        self.sent += admitted;
        admitted as usize
    }

    /// How many of the next *offered* bytes of a file may be sent. A file may be longer than its
    /// Content-Length, which then tells where to stop (PEP 3333 "Optional Platform-Specific File
    /// Handling"). Counts nothing; see [`Body::count`].
    #[must_use]
    pub fn room(&self, offered: u64) -> u64 {
        match self.declared {
            _ if self.is_bodiless => 0,
            Some(declared) => offered.min(declared - self.sent),
            None => offered,
        }
    }

    /// Counts bytes that were sent within [`Body::room`].
    pub fn count(&mut self, sent: u64) {
        self.sent += sent;
    }

    /// Bytes admitted so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// True when nothing may be added: the promised length is reached, or there is no body at all.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_bodiless || self.declared == Some(self.sent)
    }

    /// True when no body may follow the head at all.
    #[must_use]
    pub fn is_bodiless(&self) -> bool {
        self.is_bodiless
    }

    /// Judges the body at its end.
    #[must_use]
    pub fn ending(&self) -> Ending {
        match self.declared {
            Some(declared) if self.has_excess => Ending::Excess { declared },
            Some(declared) if !self.is_bodiless && self.sent < declared => Ending::Short {
                declared,
                sent: self.sent,
            },
            _ => Ending::Complete,
        }
    }
}

/// A whole answer, ready to be sent.
#[derive(Debug)]
pub struct Ready {
    head: ResponseHead,
    body: Bytes,
    count: Body,
}

impl Ready {
    /// Puts head and body together: cuts what the head does not promise, and announces the end of
    /// the connection where it does.
    #[must_use]
    pub fn new(mut head: Head, mut body: Bytes, method: &Method) -> Self {
        let offered = body.len() as u64;
        if head.length.is_some_and(|declared| declared < offered) {
            head.close();
        }
        let (head, mut count) = head.into_parts(method, Some(offered));
        body.truncate(count.admit(body.len()));
        Self { head, body, count }
    }

    /// Status code.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The count of the body.
    #[must_use]
    pub fn count(&self) -> Body {
        self.count
    }

    /// Sends it all; a body that is too short is followed by a cut.
    ///
    /// # Errors
    /// [`ClientGone`].
    pub fn send(self, exchange: &mut dyn Exchange) -> Result<(), ClientGone> {
        if !matches!(self.count.ending(), Ending::Short { .. }) {
            return exchange.respond(self.head, self.body);
        }
        let sent = exchange.start(self.head).and_then(|()| {
            if self.body.is_empty() {
                Ok(())
            } else {
                exchange.write(self.body)
            }
        });
        exchange.abort();
        sent
    }
}

/// Field text of RFC 9110 section 5.5: anything but control characters; a tab is allowed.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

fn plain_number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn readable(latin1: &[u8]) -> String {
    latin1.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&str, &str)]) -> Result<Head, HeadError> {
        let mut head = Head::new(b"200 OK", headers.len())?;
        for (name, value) in headers {
            head.header(name.as_bytes(), value.as_bytes())?;
        }
        Ok(head)
    }

    fn sent_length(head: Head, method: &Method, total: Option<u64>) -> Option<String> {
        let (head, _) = head.into_parts(method, total);
        head.headers
            .get(CONTENT_LENGTH)
            .map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn standard_reasons_are_not_carried_along() {
        assert_eq!(Head::new(b"200 OK", 0).unwrap().reason, None);
        assert_eq!(Head::new(b"404", 0).unwrap().reason, None);
        assert_eq!(Head::new(b"200 Fine", 0).unwrap().reason.unwrap(), "Fine");
    }

    #[test]
    fn malformed_status_is_refused() {
        for status in [
            "",
            "20",
            "OK",
            "2000 OK",
            "200OK",
            "+20 OK",
            "099 Low",
            "200 O\r\nX: y",
        ] {
            assert_eq!(
                Head::new(status.as_bytes(), 0).unwrap_err(),
                HeadError::Status(status.to_owned()),
            );
        }
    }

    #[test]
    fn interim_status_is_refused() {
        assert_eq!(
            Head::new(b"100 Continue", 0).unwrap_err(),
            HeadError::Interim(100)
        );
        assert_eq!(
            Head::new(b"101 Switching", 0).unwrap_err(),
            HeadError::Interim(101)
        );
    }

    #[test]
    fn control_characters_are_refused_in_names_and_values() {
        for value in [
            "a\r\nSet-Cookie: x",
            "a\rb",
            "a\nb",
            "a\0b",
            "a\x1bb",
            "a\x7fb",
        ] {
            assert!(
                matches!(head(&[("X-A", value)]), Err(HeadError::Value { .. })),
                "{value:?}"
            );
        }
        for name in ["", "X A", "X:A", "X\r\nA", "X\0A", "Xé"] {
            assert!(
                matches!(head(&[(name, "v")]), Err(HeadError::Name(_))),
                "{name:?}"
            );
        }
    }

    #[test]
    fn latin1_values_pass() {
        assert!(head(&[("X-A", "caf\u{e9}"), ("X-B", "a\tb"), ("X-C", "")]).is_ok());
    }

    #[test]
    fn hop_by_hop_headers_are_refused_in_any_case() {
        for name in [
            "Connection",
            "keep-alive",
            "TRANSFER-ENCODING",
            "Upgrade",
            "TE",
            "Trailer",
        ] {
            assert!(
                matches!(head(&[(name, "x")]), Err(HeadError::HopByHop(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn content_length_must_be_one_plain_number() {
        for value in ["-1", "+1", "1 ", "0x1", "1,1", "", "99999999999999999999"] {
            assert!(
                matches!(
                    head(&[("Content-Length", value)]),
                    Err(HeadError::Length(_))
                ),
                "{value:?}"
            );
        }
        assert!(head(&[("Content-Length", "1"), ("content-length", "2")]).is_err());
        assert_eq!(
            head(&[("Content-Length", "1"), ("Content-Length", "1")])
                .unwrap()
                .headers
                .len(),
            1
        );
    }

    #[test]
    fn repeated_headers_are_all_kept() {
        let head = head(&[("Set-Cookie", "a"), ("Set-Cookie", "b")]).unwrap();

        assert_eq!(head.headers.get_all("set-cookie").iter().count(), 2);
    }

    #[test]
    fn known_length_is_declared() {
        let plain = head(&[]).unwrap();

        assert_eq!(
            sent_length(plain.clone(), &Method::GET, Some(5)),
            Some("5".to_owned())
        );
        assert_eq!(
            sent_length(plain.clone(), &Method::GET, Some(0)),
            Some("0".to_owned())
        );
        assert_eq!(sent_length(plain, &Method::GET, None), None);
    }

    #[test]
    fn answers_without_content_declare_no_false_length() {
        let no_content = Head::new(b"204 No Content", 0).unwrap();
        let not_modified = Head::new(b"304 Not Modified", 0).unwrap();

        assert_eq!(sent_length(no_content, &Method::GET, Some(0)), None);
        assert_eq!(sent_length(not_modified, &Method::GET, Some(0)), None);
        assert_eq!(
            sent_length(head(&[]).unwrap(), &Method::HEAD, Some(0)),
            None
        );
        assert_eq!(
            sent_length(head(&[]).unwrap(), &Method::HEAD, Some(7)),
            Some("7".to_owned())
        );
    }

    #[test]
    fn no_content_loses_the_length_that_the_application_gave() {
        let mut head = Head::new(b"204 No Content", 1).unwrap();
        head.header(b"Content-Length", b"3").unwrap();

        assert_eq!(sent_length(head, &Method::GET, Some(3)), None);
    }

    #[test]
    fn nothing_passes_beyond_the_declared_length() {
        let (_, mut body) = head(&[("Content-Length", "5")])
            .unwrap()
            .into_parts(&Method::GET, None);

        assert_eq!(body.admit(3), 3);
        assert_eq!(body.admit(3), 2);
        assert_eq!(body.admit(1), 0);
        assert_eq!(body.sent(), 5);
        assert_eq!(body.ending(), Ending::Excess { declared: 5 });
    }

    /// Writes down what it is asked to do.
    #[derive(Default)]
    struct Record(Vec<String>);

    impl Exchange for Record {
        fn give_up(&mut self) -> Option<crate::wsgi::GivenUp> {
            None
        }

        fn waited(&self) -> std::time::Duration {
            std::time::Duration::ZERO
        }

        fn request(&self) -> &crate::wsgi::request::RequestHead {
            unimplemented!("a whole answer does not ask for the request")
        }
        fn endpoints(&self) -> &crate::wsgi::Endpoints {
            unimplemented!("a whole answer does not ask for addresses")
        }
        fn is_bodiless(&self) -> bool {
            true
        }
        fn body_length(&self) -> Option<u64> {
            Some(0)
        }
        fn read(&mut self) -> Result<Option<Bytes>, crate::wsgi::BodyError> {
            Ok(None)
        }
        fn respond(&mut self, head: ResponseHead, body: Bytes) -> Result<(), ClientGone> {
            let closes = head.headers.contains_key(CONNECTION);
            self.0.push(format!(
                "respond {} {body:?} closes={closes}",
                head.status.as_u16()
            ));
            Ok(())
        }
        fn start(&mut self, head: ResponseHead) -> Result<(), ClientGone> {
            self.0.push(format!("start {}", head.status.as_u16()));
            Ok(())
        }
        fn write(&mut self, piece: Bytes) -> Result<(), ClientGone> {
            self.0.push(format!("write {piece:?}"));
            Err(ClientGone)
        }
        fn write_rest(&mut self, pieces: Vec<Bytes>) -> Result<(), ClientGone> {
            self.0.push(format!("rest {pieces:?}"));
            Ok(())
        }
        fn write_file(&mut self, part: crate::wsgi::FilePart) -> Result<u64, ClientGone> {
            self.0.push(format!("file {}", part.length));
            Ok(part.length)
        }
        fn finish(&mut self) -> Result<(), ClientGone> {
            self.0.push("finish".to_owned());
            Ok(())
        }
        fn close(&mut self) {
            self.0.push("close".to_owned());
        }
        fn abort(&mut self) {
            self.0.push("abort".to_owned());
        }
        fn is_client_gone(&mut self) -> bool {
            false
        }
        fn delivery(&mut self) -> Option<crate::wsgi::Delivery> {
            None
        }
        fn when_delivered(&mut self, _: Box<dyn std::any::Any + Send>) {}
    }

    fn sent(headers: &[(&str, &str)], method: &Method) -> Vec<String> {
        let mut record = Record::default();
        let body = Bytes::from_static(b"12345");
        let _ = Ready::new(head(headers).unwrap(), body, method).send(&mut record);
        record.0
    }

    #[test]
    fn a_whole_answer_is_one_call() {
        let expected = ["respond 200 b\"12345\" closes=false"];

        assert_eq!(sent(&[], &Method::GET), expected);
        assert_eq!(sent(&[("Content-Length", "5")], &Method::GET), expected);
        assert_eq!(
            sent(&[("Content-Length", "9")], &Method::HEAD),
            ["respond 200 b\"\" closes=false"]
        );
    }

    #[test]
    fn an_answer_too_long_is_cut_and_the_last_one() {
        assert_eq!(
            sent(&[("Content-Length", "3")], &Method::GET),
            ["respond 200 b\"123\" closes=true"]
        );
    }

    #[test]
    fn an_answer_too_short_ends_in_a_cut_even_when_the_client_is_gone() {
        assert_eq!(
            sent(&[("Content-Length", "9")], &Method::GET),
            ["start 200", "write b\"12345\"", "abort"]
        );
    }

    #[test]
    fn a_file_ends_where_its_declared_length_does() {
        let (_, mut body) = head(&[("Content-Length", "5")])
            .unwrap()
            .into_parts(&Method::GET, None);

        assert_eq!(body.room(9), 5);
        body.count(5);

        assert_eq!(body.room(4), 0);
        assert_eq!(body.ending(), Ending::Complete);
    }

    #[test]
    fn missing_bytes_are_noticed() {
        let (_, mut body) = head(&[("Content-Length", "5")])
            .unwrap()
            .into_parts(&Method::GET, None);
        body.admit(3);

        assert_eq!(
            body.ending(),
            Ending::Short {
                declared: 5,
                sent: 3
            }
        );
    }

    #[test]
    fn bodies_where_none_may_be_are_dropped() {
        for (method, status) in [
            (Method::HEAD, "200 OK"),
            (Method::GET, "204 No"),
            (Method::GET, "304 No"),
        ] {
            let mut head = Head::new(status.as_bytes(), 0).unwrap();
            head.header(b"Content-Length", b"5").unwrap();
            let (_, mut body) = head.into_parts(&method, None);

            assert_eq!(body.admit(9), 0);
            assert_eq!(body.ending(), Ending::Complete);
        }
    }
}
