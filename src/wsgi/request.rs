//! The head of a request, as it came: method, target, version and header fields.
//!
//! Owns the bytes of the head and where its parts lie in them; nothing is copied out of it, and
//! nothing is decoded. Never parses: the server room checks a head and says where its parts are.
//! Terms: RFC 9110 section 6 and RFC 9112 section 3.

use http::{Method, Version};

/// A stretch of the head: offset of its first byte and length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    length: u32,
}

impl Span {
    /// `length` bytes from `start` on.
    ///
    /// A head is shorter than 4 GiB by far; what does not fit becomes empty.
    #[must_use]
    pub fn new(start: usize, length: usize) -> Self {
        match (u32::try_from(start), u32::try_from(length)) {
            (Ok(start), Ok(length)) => Self { start, length },
            _ => Self::default(),
        }
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        let (start, length) = (self.start as usize, self.length as usize);
        bytes.get(start..start + length).unwrap_or_default()
    }
}

/// Where one header field lies in its head.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name, in the spelling of the client.
    pub name: Span,
    /// Its value, without the white space around it.
    pub value: Span,
    /// [`name_hash`] of its name.
    pub hash: u32,
}

/// One header field of a request.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Its name, in the spelling of the client; compare it without regard to case.
    pub name: &'a [u8],
    /// Its value, without the white space around it. Any bytes but control characters.
    pub value: &'a [u8],
    /// [`name_hash`] of the name: equal for names that differ in case only.
    pub hash: u32,
}

impl Header<'_> {
    /// True for fields of the same name.
    #[must_use]
    pub fn is(&self, name: &[u8]) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// FNV-1a of a field name in lower case.
#[must_use]
pub fn name_hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    })
}

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    bytes: Vec<u8>,
    method: Method,
    target: Span,
    version: Version,
    fields: Vec<Field>,
    variables: Option<Box<Variables>>,
}

/// CGI variables: names and values; of a name that is there twice the last counts.
pub type Variables = Vec<(Box<[u8]>, Box<[u8]>)>;

impl RequestHead {
    /// A head whose parts lie in `bytes` where the spans say.
    #[must_use]
    pub fn new(
        bytes: Vec<u8>,
        method: Method,
        target: Span,
        version: Version,
        fields: Vec<Field>,
    ) -> Self {
        Self {
            bytes,
            method,
            target,
            version,
            fields,
            variables: None,
        }
    }

    /// A head that is put together from its parts: what the environ of a test, or of a request that
    /// came over another protocol, is made from.
    #[must_use]
    pub fn of(method: Method, target: &[u8], version: Version, headers: &[(&[u8], &[u8])]) -> Self {
        let mut bytes = target.to_vec();
        let fields = headers
            .iter()
            .map(|(name, value)| {
                let start = bytes.len();
                bytes.extend_from_slice(name);
                bytes.extend_from_slice(value);
                Field {
                    name: Span::new(start, name.len()),
                    value: Span::new(start + name.len(), value.len()),
                    hash: name_hash(name),
                }
            })
            .collect();
        Self::new(bytes, method, Span::new(0, target.len()), version, fields)
    }

    /// The same request, which came from a proxy together with CGI variables (RFC 3875); they
    /// outrank what follows from the head.
    #[must_use]
    pub fn with_variables(mut self, variables: Variables) -> Self {
        self.variables = Some(Box::new(variables));
        self
    }

    /// The CGI variables that came with the request.
    pub fn variables(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let all = self.variables.iter().flat_map(|all| all.iter());
        all.map(|(name, value)| (&**name, &**value))
    }

    /// The version by whose rules the answer is framed. A proxy that speaks the uwsgi protocol knows
    /// no chunks: there the end of the connection is the end of the body.
    #[must_use]
    pub fn response_version(&self) -> Version {
        match self.variables {
            Some(_) => Version::HTTP_10,
            None => self.version,
        }
    }

    /// The method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The target as it came: any bytes but white space and control characters.
    #[must_use]
    pub fn target(&self) -> &[u8] {
        self.target.of(&self.bytes)
    }

    /// HTTP/1.0 or HTTP/1.1; a later minor version counts as 1.1 (RFC 9110 section 2.5).
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The header fields, in the order in which they came.
    #[must_use = "an iterator does nothing by itself"]
    pub fn headers(&self) -> impl ExactSizeIterator<Item = Header<'_>> + Clone {
        self.fields.iter().map(|field| Header {
            name: field.name.of(&self.bytes),
            value: field.value.of(&self.bytes),
            hash: field.hash,
        })
    }

    /// The first field of that name, whatever its case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers()
            .find(|header| header.is(name.as_bytes()))
            .map(|header| header.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_their_case() {
        let head = RequestHead::of(
            Method::GET,
            b"/",
            Version::HTTP_11,
            &[(b"X-One", b"1"), (b"x-two", b"2")],
        );

        assert_eq!(head.header("x-one"), Some(&b"1"[..]));
        assert_eq!(head.header("X-TWO"), Some(&b"2"[..]));
        assert_eq!(head.header("x-three"), None);
        assert_eq!(name_hash(b"X-Two"), name_hash(b"x-two"));
    }

    #[test]
    fn a_span_beyond_the_head_is_empty() {
        assert_eq!(Span::new(3, 9).of(b"abc"), b"");
        assert_eq!(Span::new(usize::MAX, 1).of(b"abc"), b"");
    }
}
