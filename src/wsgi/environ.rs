//! Request head to environ: names, paths and hosts as PEP 3333 and CGI (RFC 3875) spell them.
//!
//! Pure functions over bytes; builds no dictionary and keeps no state. The boundary turns their
//! results into Python strings. Rules: PEP 3333 "environ Variables", RFC 3875 section 4.1, RFC 9112
//! section 3.2 (request targets), and eventlet.wsgi for what PEP 3333 leaves open: header names
//! with an underscore are dropped, because `X-Auth` and `X_Auth` would share one environ key.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;

use http::Method;

use super::host::is_host;
use super::request::RequestHead;

/// What a request target says: where to, and for which host. Bytes as they were sent: a target may
/// hold characters that RFC 3986 wants escaped, as clients and servers have always let pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The path as it was sent, percent escapes included: `RAW_PATH_INFO`.
    pub raw_path: &'a [u8],
    /// What follows the first `?`, or nothing: `QUERY_STRING`.
    pub query: &'a [u8],
    /// Host and port of a target in absolute form; it outranks the `Host` header (RFC 9112
    /// section 3.2.2). Credentials in it are left out.
    pub host: Option<&'a [u8]>,
}

/// Why no environ can be made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// `CONNECT`: this server is no proxy.
    #[error("a tunnel was asked for; this server is no proxy")]
    Tunnel,
    /// `*` with a method other than `OPTIONS`.
    #[error("the request target * is only defined for OPTIONS")]
    Asterisk,
    /// None of the forms of RFC 9112 section 3.2.
    #[error("the request target is neither a path nor an absolute URI")]
    Form,
    /// A fragment, which clients keep to themselves (RFC 9110 section 7.1).
    #[error("the request target holds a fragment")]
    Fragment,
}

impl<'a> Target<'a> {
    /// Takes the target of *request* apart.
    ///
    /// # Errors
    /// [`TargetError`] for targets that mean something other than a resource of this server.
    pub fn of(request: &'a RequestHead) -> Result<Self, TargetError> {
        if request.method() == Method::CONNECT {
            return Err(TargetError::Tunnel);
        }
        let target = request.target();
        if memchr::memchr(b'#', target).is_some() {
            return Err(TargetError::Fragment);
        }
        match target {
            [b'/', ..] => {
                let (raw_path, query) = split_query(target);
                Ok(Self {
                    raw_path,
                    query,
                    host: None,
                })
            }
            b"*" if request.method() == Method::OPTIONS => Ok(Self {
                raw_path: target,
                query: b"",
                host: None,
            }),
            b"*" => Err(TargetError::Asterisk),
            _ => Self::absolute(target),
        }
    }

    /// `scheme://authority[/path][?query]`
    fn absolute(target: &'a [u8]) -> Result<Self, TargetError> {
        let colon = memchr::memchr(b':', target).ok_or(TargetError::Form)?;
        let (scheme, rest) = (&target[..colon], &target[colon + 1..]);
        let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && scheme
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
        let rest = rest.strip_prefix(b"//").ok_or(TargetError::Form)?;
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?'))
            .unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let host = match memchr::memrchr(b'@', authority) {
            Some(at) => &authority[at + 1..],
            None => authority,
        };
        if !is_scheme || !is_host(host) {
            return Err(TargetError::Form);
        }
        let (path, query) = split_query(rest);
        Ok(Self {
            raw_path: if path.is_empty() { b"/" } else { path },
            query,
            host: Some(host),
        })
    }

    /// `PATH_INFO` as bytes: percent escapes decoded once, nothing normalised. An escape that is
    /// not two hexadecimal digits stays as it is. Empty for `OPTIONS *`, since PEP 3333 wants a
    /// path that begins with a slash or none.
    #[must_use]
    pub fn path_info(&self) -> Cow<'a, [u8]> {
        if self.raw_path == b"*" {
            return Cow::Borrowed(b"");
        }
        percent_decoded(self.raw_path)
    }
}

/// What is before the first question mark, and what is after it.
fn split_query(target: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'?', target) {
        Some(mark) => (&target[..mark], &target[mark + 1..]),
        None => (target, b""),
    }
}

/// Decodes percent escapes; borrows when there are none. An escape that is none stays as it is.
#[must_use]
pub fn percent_decoded(raw: &[u8]) -> Cow<'_, [u8]> {
    percent_encoding::percent_decode(raw).into()
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

/// Finds the place of the header *name*, a token in any case.
#[must_use]
pub fn header_slot(name: &[u8]) -> HeaderSlot {
    if name.eq_ignore_ascii_case(b"content-type") {
        return HeaderSlot::ContentType;
    }
    if name.eq_ignore_ascii_case(b"content-length") {
        return HeaderSlot::ContentLength;
    }
    if name.eq_ignore_ascii_case(b"proxy") || name.contains(&b'_') {
        return HeaderSlot::Dropped;
    }
    let mut key = String::with_capacity(5 + name.len());
    key.push_str("HTTP_");
    key.extend(name.iter().map(|byte| match byte {
        b'-' => '_',
        other => char::from(other.to_ascii_uppercase()),
    }));
    HeaderSlot::Key(key)
}

/// What stands between the values of a repeated header: a comma as eventlet writes it, for cookies
/// a semicolon and a space (RFC 6265 section 5.4), because a comma may be part of a cookie.
#[must_use]
pub fn separator(name: &[u8]) -> &'static [u8] {
    if name.eq_ignore_ascii_case(b"cookie") {
        b"; "
    } else {
        b","
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, target: &str) -> RequestHead {
        let method = method.parse().unwrap();
        RequestHead::of(method, target.as_bytes(), http::Version::HTTP_11, &[])
    }

    #[test]
    fn origin_form_splits_at_the_first_question_mark() {
        let request = request("GET", "/a%20b?x=1?y");
        let target = Target::of(&request).unwrap();

        assert_eq!(target.raw_path, b"/a%20b");
        assert_eq!(target.query, b"x=1?y");
        assert_eq!(target.host, None);
        assert_eq!(&*target.path_info(), b"/a b");
    }

    #[test]
    fn characters_that_clients_should_escape_are_kept_as_they_came() {
        for text in [
            r#"/env?metadata={"k":"v"}"#,
            "/a<b>`c`|d^e\\f?\"<>",
            "//a//b",
            "/caf\u{e9}?\u{e9}",
            "/a?b?c@d:e",
        ] {
            let request = request("GET", text);
            let target = Target::of(&request).unwrap();
            let joined = [target.raw_path, target.query].join(&b'?');

            assert_eq!(
                joined.strip_suffix(b"?").unwrap_or(&joined),
                text.as_bytes()
            );
        }
    }

    #[test]
    fn absolute_form_names_the_host_without_credentials() {
        let request = request("GET", "http://user:pw@other:81/p?q");
        let target = Target::of(&request).unwrap();

        assert_eq!(target.host, Some(&b"other:81"[..]));
        assert_eq!(target.raw_path, b"/p");
        assert_eq!(target.query, b"q");
    }

    #[test]
    fn absolute_form_without_a_path_means_the_root() {
        for text in ["http://other", "HTTPS://other?q", "http://[::1]:80"] {
            assert_eq!(Target::of(&request("GET", text)).unwrap().raw_path, b"/");
        }
    }

    #[test]
    fn what_has_none_of_the_forms_is_refused() {
        for text in [
            "host:443",
            "host",
            "*/x",
            "http:///",
            "http://",
            "http:/x",
            "http://a:b/",
            "1http://a/",
            "http://a@/",
            "://a/",
            "?q",
        ] {
            assert_eq!(
                Target::of(&request("GET", text)),
                Err(TargetError::Form),
                "{text}"
            );
        }
    }

    #[test]
    fn a_fragment_is_refused_and_not_cut_off() {
        for text in ["/a#b", "/a?b#c", "http://a/#", "#"] {
            assert_eq!(
                Target::of(&request("GET", text)),
                Err(TargetError::Fragment),
                "{text}"
            );
        }
    }

    #[test]
    fn asterisk_is_for_options_alone() {
        let options = request("OPTIONS", "*");
        let get = request("GET", "*");

        assert_eq!(&*Target::of(&options).unwrap().path_info(), b"");
        assert_eq!(Target::of(&get), Err(TargetError::Asterisk));
    }

    #[test]
    fn tunnels_are_refused() {
        let connect = request("CONNECT", "host:443");

        assert_eq!(Target::of(&connect), Err(TargetError::Tunnel));
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
            header_slot(b"x-auth-token"),
            HeaderSlot::Key("HTTP_X_AUTH_TOKEN".to_owned())
        );
        assert_eq!(header_slot(b"content-type"), HeaderSlot::ContentType);
        assert_eq!(header_slot(b"content-length"), HeaderSlot::ContentLength);
    }

    #[test]
    fn headers_that_could_shadow_others_are_dropped() {
        assert_eq!(header_slot(b"x_auth_token"), HeaderSlot::Dropped);
        assert_eq!(header_slot(b"content_length"), HeaderSlot::Dropped);
        assert_eq!(header_slot(b"proxy"), HeaderSlot::Dropped);
    }
}
