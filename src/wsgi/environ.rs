//! Request head to environ: names, paths and hosts as PEP 3333 and CGI (RFC 3875) spell them.
//!
//! Pure functions over bytes; builds no dictionary and keeps no state. The boundary turns their
//! results into Python strings. Rules: PEP 3333 "environ Variables", RFC 3875 section 4.1, RFC 9112
//! section 3.2 (request targets), and eventlet.wsgi for what PEP 3333 leaves open: header names
//! with an underscore are dropped, because `X-Auth` and `X_Auth` would share one environ key.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;

use http::request::Parts;
use http::{Method, Uri};

/// What a request target says: where to, and for which host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path as it was sent, percent escapes included: `RAW_PATH_INFO`.
    pub raw_path: &'a str,
    /// What follows the first `?`, or the empty string: `QUERY_STRING`.
    pub query: &'a str,
    /// Host and port of a target in absolute form; it outranks the `Host` header (RFC 9112
    /// section 3.2.2). Credentials in it are left out.
    pub host: Option<&'a str>,
}

/// Why no environ can be made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// `CONNECT`, or a target in authority form: this server is no proxy.
    #[error("a tunnel was asked for; this server is no proxy")]
    Tunnel,
    /// `*` with a method other than `OPTIONS`.
    #[error("the request target * is only defined for OPTIONS")]
    Asterisk,
}

impl<'a> Target<'a> {
    /// Takes the target of *request* apart.
    ///
    /// # Errors
    /// [`TargetError`] for targets that mean something other than a resource of this server.
    pub fn of(request: &'a Parts) -> Result<Self, TargetError> {
        let uri: &'a Uri = &request.uri;
        if request.method == Method::CONNECT {
            return Err(TargetError::Tunnel);
        }
        let Some(target) = uri.path_and_query() else {
            return Err(TargetError::Tunnel);
        };
        if target.path() == "*" && request.method != Method::OPTIONS {
            return Err(TargetError::Asterisk);
        }
        Ok(Self {
            raw_path: target.path(),
            query: target.query().unwrap_or(""),
            host: uri.authority().map(|authority| {
                let text = authority.as_str();
                text.rsplit_once('@').map_or(text, |(_, host)| host)
            }),
        })
    }

    /// `PATH_INFO` as bytes: percent escapes decoded once, nothing normalised. An escape that is
    /// not two hexadecimal digits stays as it is. Empty for `OPTIONS *`, since PEP 3333 wants a
    /// path that begins with a slash or none.
    #[must_use]
    pub fn path_info(&self) -> Cow<'a, [u8]> {
        if self.raw_path == "*" {
            return Cow::Borrowed(b"");
        }
        percent_decoded(self.raw_path.as_bytes())
    }
}

/// Decodes percent escapes; borrows when there are none.
#[must_use]
pub fn percent_decoded(raw: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr::memchr(b'%', raw) else {
        return Cow::Borrowed(raw);
    };
    let mut decoded = Vec::with_capacity(raw.len());
    decoded.extend_from_slice(&raw[..first]);
    let mut rest = &raw[first..];
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%'
            && let [high, low, after @ ..] = tail
            && let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low))
        {
            decoded.push(high << 4 | low);
            rest = after;
        } else {
            decoded.push(byte);
            rest = tail;
        }
    }
    Cow::Owned(decoded)
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// An IP address as text; IPv4 by hand, since each request needs it and formatting is slow.
#[must_use]
pub fn address_text(address: IpAddr) -> ArrayText {
    let mut text = ArrayText::default();
    match address.to_canonical() {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    text.push(b'.');
                }
                text.push_number(u16::from(octet));
            }
        }
        // Longer than the array it cannot be.
        IpAddr::V6(address) => drop(write!(text, "{address}")),
    }
    text
}

/// A port as text.
#[must_use]
pub fn port_text(port: u16) -> ArrayText {
    let mut text = ArrayText::default();
    text.push_number(port);
    text
}

/// A short ASCII text without an allocation.
#[derive(Debug, Clone, Copy)]
pub struct ArrayText {
    bytes: [u8; 48], // the longest IPv6 address has 45 characters
    length: usize,
}

impl Default for ArrayText {
    fn default() -> Self {
        Self {
            bytes: [0; 48],
            length: 0,
        }
    }
}

impl ArrayText {
    /// The text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn push_number(&mut self, number: u16) {
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(b'0' + (number % 10) as u8);
    }
}

impl Write for ArrayText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}

/// Where a request header goes in the environ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderSlot {
    /// `CONTENT_TYPE`.
    ContentType,
    /// `CONTENT_LENGTH`.
    ContentLength,
    /// Under this key, `HTTP_` first.
    Key(String),
    /// Nowhere: the name holds an underscore and would shadow another header, or it is `Proxy`,
    /// which CGI programs take for their own `HTTP_PROXY` setting (CVE-2016-5385).
    Dropped,
}

/// Finds the place of the header *name*, which is in lower case as [`http::HeaderName`] keeps it.
#[must_use]
pub fn header_slot(name: &str) -> HeaderSlot {
    match name {
        "content-type" => HeaderSlot::ContentType,
        "content-length" => HeaderSlot::ContentLength,
        "proxy" => HeaderSlot::Dropped,
        _ if name.contains('_') => HeaderSlot::Dropped,
        _ => {
            let mut key = String::with_capacity(5 + name.len());
            key.push_str("HTTP_");
            key.extend(name.chars().map(|character| match character {
                '-' => '_',
                other => other.to_ascii_uppercase(),
            }));
            HeaderSlot::Key(key)
        }
    }
}

/// What stands between the values of a repeated header: a comma as eventlet writes it, for cookies
/// a semicolon and a space (RFC 6265 section 5.4), because a comma may be part of a cookie.
#[must_use]
pub fn separator(name: &str) -> &'static [u8] {
    if name == "cookie" { b"; " } else { b"," }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, target: &str) -> Parts {
        let (parts, ()) = http::Request::builder()
            .method(method)
            .uri(target)
            .body(())
            .unwrap()
            .into_parts();
        parts
    }

    #[test]
    fn origin_form_splits_at_the_first_question_mark() {
        let parts = parts("GET", "/a%20b?x=1?y");
        let target = Target::of(&parts).unwrap();

        assert_eq!(target.raw_path, "/a%20b");
        assert_eq!(target.query, "x=1?y");
        assert_eq!(target.host, None);
        assert_eq!(&*target.path_info(), b"/a b");
    }

    #[test]
    fn absolute_form_names_the_host_without_credentials() {
        let parts = parts("GET", "http://user:pw@other:81/p?q");
        let target = Target::of(&parts).unwrap();

        assert_eq!(target.host, Some("other:81"));
        assert_eq!(target.raw_path, "/p");
    }

    #[test]
    fn absolute_form_without_a_path_means_the_root() {
        let parts = parts("GET", "http://other");

        assert_eq!(Target::of(&parts).unwrap().raw_path, "/");
    }

    #[test]
    fn asterisk_is_for_options_alone() {
        let options = parts("OPTIONS", "*");
        let get = parts("GET", "*");

        assert_eq!(&*Target::of(&options).unwrap().path_info(), b"");
        assert_eq!(Target::of(&get), Err(TargetError::Asterisk));
    }

    #[test]
    fn tunnels_are_refused() {
        let connect = parts("CONNECT", "host:443");
        let authority = parts("GET", "host:443");

        assert_eq!(Target::of(&connect), Err(TargetError::Tunnel));
        assert_eq!(Target::of(&authority), Err(TargetError::Tunnel));
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(&*percent_decoded(b"%zz%2%"), b"%zz%2%");
        assert_eq!(&*percent_decoded(b"/%2F%e9%00"), b"//\xe9\x00");
        assert_eq!(&*percent_decoded(b"%%41"), b"%A");
        assert!(matches!(percent_decoded(b"/plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn addresses_and_ports_read_as_usual() {
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "255.10.100.9",
            "::1",
            "2001:db8:1111:2222:3333:4444:5555:6666",
        ] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_text(address).as_bytes(), text.as_bytes());
        }
        assert_eq!(
            address_text("::ffff:10.0.0.1".parse().unwrap()).as_bytes(),
            b"10.0.0.1"
        );
        for port in [0, 9, 10, 80, 8080, 65535] {
            assert_eq!(port_text(port).as_bytes(), port.to_string().as_bytes());
        }
    }

    #[test]
    fn header_names_become_cgi_keys() {
        assert_eq!(
            header_slot("x-auth-token"),
            HeaderSlot::Key("HTTP_X_AUTH_TOKEN".to_owned())
        );
        assert_eq!(header_slot("content-type"), HeaderSlot::ContentType);
        assert_eq!(header_slot("content-length"), HeaderSlot::ContentLength);
    }

    #[test]
    fn headers_that_could_shadow_others_are_dropped() {
        assert_eq!(header_slot("x_auth_token"), HeaderSlot::Dropped);
        assert_eq!(header_slot("content_length"), HeaderSlot::Dropped);
        assert_eq!(header_slot("proxy"), HeaderSlot::Dropped);
    }
}
