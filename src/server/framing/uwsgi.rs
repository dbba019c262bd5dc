//! Decodes the head of a request of the uwsgi protocol: one packet of variables.
//!
//! Owns the packet's lengths and what its variables mean: which are header fields, which concern
//! framing, and which are passed on as CGI variables. A proxy speaks it, and a proxy may err: every
//! length must fit exactly. Rules: "The uwsgi Protocol" of uWSGI's documentation; RFC 3875 section
//! 4.1 for the variables.

use super::head::{Length, Received, decimal};
use super::{Refusal, has_control, is_token};
use crate::wsgi::request::{RequestHead, Variables};
use http::{Method, Version};
use std::net::{IpAddr, SocketAddr};

/// Bytes in front of the variables: a modifier, their length, another modifier.
const PREFIX: usize = 4;

/// Where a request began, as the proxy tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Origin {
    pub(in crate::server) peer: Option<SocketAddr>,
    pub(in crate::server) is_tls: bool,
}

/// What a packet says.
#[derive(Debug, Default)]
struct Packet<'a> {
    method: Option<&'a [u8]>,
    uri: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    script: Option<&'a [u8]>,
    query: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    protocol: Option<&'a [u8]>,
    address: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
    https: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    is_chunked: bool,
    fields: Vec<(Vec<u8>, &'a [u8])>,
    variables: Variables,
}

/// The request at the beginning of `bytes` and the length of its packet; `None` as long as the
/// packet is not complete.
pub(super) fn read(bytes: &[u8], most: usize) -> Result<Option<(usize, Received)>, Refusal> {
    // The first byte is looked at as soon as it is there: a client that speaks HTTP is not waited for.
    if bytes.first().is_some_and(|modifier| *modifier != 0) {
        return Err(Refusal::Packet);
    }
    let Some((prefix, rest)) = bytes.split_at_checked(PREFIX) else {
        return Ok(None);
    };
    let size = usize::from(u16::from_le_bytes([prefix[1], prefix[2]]));
    if prefix[3] != 0 || size == 0 {
        return Err(Refusal::Packet);
    }
    let Some(mut rest) = rest.get(..size) else {
        return Ok(None);
    };
    let mut packet = Packet::default();
    while !rest.is_empty() {
        let name = text(&mut rest)?;
        let value = text(&mut rest)?;
        packet.take(name, value)?;
        if packet.fields.len() > most {
            return Err(Refusal::HeadersTooLarge);
        }
    }
    Ok(Some((PREFIX + size, packet.received()?)))
}

/// A length and as many bytes, taken off the front.
fn text<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Refusal> {
    let (length, behind) = rest.split_first_chunk::<2>().ok_or(Refusal::Packet)?;
    let length = usize::from(u16::from_le_bytes(*length));
    let (text, behind) = behind.split_at_checked(length).ok_or(Refusal::Packet)?;
    *rest = behind;
    Ok(text)
}

impl<'a> Packet<'a> {
    fn take(&mut self, name: &'a [u8], value: &'a [u8]) -> Result<(), Refusal> {
        if name.is_empty() || !name.iter().copied().all(is_token) || value.contains(&0) {
            return Err(Refusal::Packet);
        }
        let last = match name {
            b"REQUEST_METHOD" => &mut self.method,
            b"REQUEST_URI" => &mut self.uri,
            b"PATH_INFO" => &mut self.path,
            b"SCRIPT_NAME" => &mut self.script,
            b"QUERY_STRING" => &mut self.query,
            b"CONTENT_LENGTH" => &mut self.length,
            b"SERVER_PROTOCOL" => &mut self.protocol,
            b"REMOTE_ADDR" => &mut self.address,
            b"REMOTE_PORT" => &mut self.port,
            b"HTTPS" => &mut self.https,
            b"REQUEST_SCHEME" => &mut self.scheme,
            _ => return self.take_other(name, value),
        };
        // Of two the last counts: the file of a web server may set again what its `uwsgi_params`
        // have set. But where a body ends is not left to a choice.
        let earlier = last.replace(value);
        if name == b"CONTENT_LENGTH" && earlier.is_some_and(|earlier| earlier != value) {
            return Err(Refusal::ContentLength);
        }
        if !matches!(name, b"REQUEST_METHOD" | b"CONTENT_LENGTH" | b"HTTPS") {
            self.keep(name, value);
        }
        Ok(())
    }

    fn take_other(&mut self, name: &'a [u8], value: &'a [u8]) -> Result<(), Refusal> {
        let field = match name.strip_prefix(b"HTTP_") {
            // They concern framing, which the proxy has taken care of, and CONTENT_* say it.
            Some(b"CONTENT_LENGTH" | b"CONTENT_TYPE") => return Ok(()),
            Some(b"TRANSFER_ENCODING") => {
                self.is_chunked = true;
                return Ok(());
            }
            Some(b"") => return Err(Refusal::Packet),
            Some(field) => field,
            None if name == b"CONTENT_TYPE" && value.is_empty() => return Ok(()),
            None if name == b"CONTENT_TYPE" => name,
            None if name.starts_with(b"wsgi.") => return Err(Refusal::Packet),
            None => {
                self.keep(name, value);
                return Ok(());
            }
        };
        if has_control(value) {
            return Err(Refusal::Control);
        }
        let field = field
            .iter()
            .map(|byte| if *byte == b'_' { b'-' } else { *byte })
            .collect();
        self.fields.push((field, value));
        Ok(())
    }

    fn keep(&mut self, name: &[u8], value: &[u8]) {
        self.variables.push((name.into(), value.into()));
    }

    fn received(mut self) -> Result<Received, Refusal> {
        let length = match self.length {
            None | Some(b"") if self.is_chunked => return Err(Refusal::TransferEncoding),
            None | Some(b"") => Length::None,
            Some(text) => match decimal(text).ok_or(Refusal::ContentLength)? {
                0 => Length::None,
                length => Length::Counted(length),
            },
        };
        if let Some(text) = self.length.filter(|text| !text.is_empty()) {
            self.fields.push((b"CONTENT-LENGTH".to_vec(), text));
        }
        let method = Method::from_bytes(self.method.unwrap_or_default())
            .map_err(|_| Refusal::RequestLine)?;
        let is_path = |path: &[u8]| path.is_empty() || path.starts_with(b"/");
        if !is_path(self.path.unwrap_or_default()) || !is_path(self.script.unwrap_or_default()) {
            return Err(Refusal::RequestLine);
        }
        let target = self.target();
        if has_control(&target) || target.contains(&b' ') || target.is_empty() {
            return Err(Refusal::RequestLine);
        }
        let version = match self.protocol {
            Some(b"HTTP/1.0") => Version::HTTP_10,
            _ => Version::HTTP_11,
        };
        let origin = self.origin();
        let fields: Vec<(&[u8], &[u8])> = self
            .fields
            .iter()
            .map(|(name, value)| (name.as_slice(), *value))
            .collect();
        let head = RequestHead::of(method, &target, version, &fields);
        Ok(Received {
            head: head.with_variables(self.variables),
            length,
            // The proxy opens a connection for each request and reads the answer to its end.
            is_persistent: false,
            is_expecting: false,
            origin: Some(origin),
        })
    }

    /// The target as the client sent it, or one that means the same.
    fn target(&self) -> Vec<u8> {
        if let Some(uri) = self.uri.filter(|uri| !uri.is_empty()) {
            return uri.to_vec();
        }
        let path = [
            self.script.unwrap_or_default(),
            self.path.unwrap_or_default(),
        ]
        .concat();
        let mut target = percent_encoding::percent_encode(&path, ESCAPED)
            .to_string()
            .into_bytes();
        if target.is_empty() {
            target.push(b'/');
        }
        if let Some(query) = self.query.filter(|query| !query.is_empty()) {
            target.push(b'?');
            target.extend_from_slice(query);
        }
        target
    }

    fn origin(&self) -> Origin {
        let address = std::str::from_utf8(self.address.unwrap_or_default())
            .ok()
            .and_then(|text| text.parse::<IpAddr>().ok());
        let port = decimal(self.port.unwrap_or_default())
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or_default();
        let is_on = |value: &[u8]| matches!(value, b"on" | b"ON" | b"1" | b"true" | b"https");
        Origin {
            peer: address.map(|address| SocketAddr::new(address, port)),
            is_tls: is_on(self.https.unwrap_or_default())
                || self.scheme == Some(b"https".as_slice()),
        }
    }
}

/// What a path may not hold as it is.
const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'?');

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(variables: &[(&str, &str)]) -> Vec<u8> {
        let mut inner = Vec::new();
        for text in variables.iter().flat_map(|(name, value)| [name, value]) {
            inner.extend_from_slice(&u16::try_from(text.len()).unwrap().to_le_bytes());
            inner.extend_from_slice(text.as_bytes());
        }
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u16::try_from(inner.len()).unwrap().to_le_bytes());
        bytes.push(0);
        bytes.extend_from_slice(&inner);
        bytes
    }

    const GET: [(&str, &str); 2] = [("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/a%20b?c")];

    fn with(more: &[(&str, &str)]) -> Vec<u8> {
        packet(&[&GET, more].concat())
    }

    #[test]
    fn variables_become_fields_and_variables() {
        let bytes = with(&[
            ("HTTP_X_AUTH_TOKEN", "t"),
            ("CONTENT_TYPE", "text/plain"),
            ("CONTENT_LENGTH", "3"),
            ("SCRIPT_NAME", "/compute"),
            ("REMOTE_ADDR", "192.0.2.1"),
            ("REMOTE_PORT", "99"),
            ("HTTPS", "on"),
            ("REMOTE_USER", "me"),
        ]);
        let (length, received) = read(&bytes, 100).unwrap().unwrap();

        assert_eq!(length, bytes.len());
        assert_eq!(received.head.target(), b"/a%20b?c");
        assert_eq!(received.head.header("x-auth-token"), Some(&b"t"[..]));
        assert_eq!(received.head.header("content-length"), Some(&b"3"[..]));
        assert_eq!(received.length, Length::Counted(3));
        let origin = received.origin.unwrap();
        assert_eq!(origin.peer, Some("192.0.2.1:99".parse().unwrap()));
        assert!(origin.is_tls);
        let names: Vec<&[u8]> = received.head.variables().map(|(name, _)| name).collect();
        assert!(names.contains(&b"SCRIPT_NAME".as_slice()));
        assert!(names.contains(&b"REMOTE_USER".as_slice()));
    }

    #[test]
    fn of_a_variable_that_is_there_twice_the_last_counts() {
        let bytes = with(&[
            ("HTTPS", ""),
            ("REMOTE_ADDR", "192.0.2.1"),
            ("CONTENT_LENGTH", "3"),
            ("HTTPS", "on"),
            ("REMOTE_ADDR", "192.0.2.2"),
            ("CONTENT_LENGTH", "3"),
            ("REQUEST_METHOD", "POST"),
        ]);
        let (_, received) = read(&bytes, 100).unwrap().unwrap();

        let origin = received.origin.unwrap();
        assert_eq!(origin.peer, Some("192.0.2.2:0".parse().unwrap()));
        assert!(origin.is_tls);
        assert_eq!(received.length, Length::Counted(3));
        assert_eq!(received.head.method(), "POST");
    }

    #[test]
    fn a_length_may_have_leading_zeros() {
        let text = format!("{}3", "0".repeat(30));
        let (_, received) = read(&with(&[("CONTENT_LENGTH", &text)]), 100)
            .unwrap()
            .unwrap();

        assert_eq!(received.length, Length::Counted(3));
    }

    #[test]
    fn a_part_of_a_packet_is_waited_for() {
        let bytes = with(&[("HTTP_HOST", "x")]);

        for end in 0..bytes.len() {
            assert!(read(&bytes[..end], 100).unwrap().is_none(), "{end}");
        }
    }

    #[test]
    fn a_packet_that_lies_about_a_length_is_refused() {
        let good = with(&[("HTTP_HOST", "x")]);
        for place in [4, 5, 20, 21] {
            let mut bad = good.clone();
            bad[place] = bad[place].wrapping_add(1);
            bad.extend(std::iter::repeat_n(0, 70_000));
            assert!(read(&bad, 100).is_err(), "{place}");
        }
        let mut short = good;
        short[1] -= 1;
        assert_eq!(read(&short, 100).err(), Some(Refusal::Packet));
        assert_eq!(read(&[0, 0, 0, 0], 100).err(), Some(Refusal::Packet));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let bad = [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0, 5, 0, 1],
            packet(&[("REQUEST_METHOD", "GE T"), ("REQUEST_URI", "/")]),
            packet(&[("REQUEST_URI", "/")]),
            with(&[("CONTENT_LENGTH", "-1")]),
            with(&[("CONTENT_LENGTH", "1"), ("CONTENT_LENGTH", "2")]),
            with(&[("HTTP_TRANSFER_ENCODING", "chunked")]),
            with(&[("HTTP_X", "a\r\nb")]),
            with(&[("wsgi.input", "x")]),
            with(&[("", "x")]),
            with(&[("PATH_INFO", "relative")]),
            with(&[("A", "\0")]),
        ];
        for bytes in bad {
            assert!(read(&bytes, 100).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn without_the_clients_target_one_is_made() {
        let bytes = packet(&[
            ("REQUEST_METHOD", "GET"),
            ("SCRIPT_NAME", "/compute"),
            ("PATH_INFO", "/a b"),
            ("QUERY_STRING", "c=d"),
        ]);
        let (_, received) = read(&bytes, 100).unwrap().unwrap();

        assert_eq!(received.head.target(), b"/compute/a%20b?c=d");
    }
}
