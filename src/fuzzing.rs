//! What is fuzzed: for each thing that we parse or decide ourselves, one function over bytes.
//!
//! Owns the properties that hold for every input; a function panics when one does not. Generates no
//! input: tests/fuzz.rs does, with the corpus in fuzz/corpus, and any other fuzzer may. No part of
//! what is shipped.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a property that does not hold is a panic"
)]

use crate::amqp::client::fuzzing::client;
use crate::amqp::frames;
use crate::server::fuzzing::{certificates, ciphers, framing, link, packet, proxy};

use crate::wsgi::access_log;
use crate::wsgi::environ::{self, HeaderSlot, Target};
use crate::wsgi::request::RequestHead;
use crate::wsgi::response::{Ending, Head, is_bodiless};
use http::{HeaderName, Method, Version};

/// A name, as the corpus has it, and its function.
pub type Entry = (&'static str, fn(&[u8]));

/// Everything that is fuzzed.
pub const TARGETS: [Entry; 11] = [
    ("certificates", certificates),
    ("ciphers", ciphers),
    ("client", client),
    ("environ", environ),
    ("frames", frames),
    ("framing", framing),
    ("link", link),
    ("log", log),
    ("packet", packet),
    ("proxy", proxy),
    ("response", response),
];

/// Calls the target of that name.
///
/// # Panics
/// When the property does not hold, or no target is called *name*.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("no target is called {name}"));
    target(input);
}

/// A request target and header names: what an application finds in its environ. First line: method
/// and target, the rest: header names.
pub fn environ(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let (method, target) = match first.iter().position(|byte| *byte == b' ') {
        Some(at) => (&first[..at], &first[at + 1..]),
        None => (&b"GET"[..], first),
    };
    assert_eq!(
        &*environ::percent_decoded(target),
        naively_decoded(target),
        "percent escapes"
    );
    if let Ok(method) = Method::from_bytes(method) {
        let head = RequestHead::of(method, target, Version::HTTP_11, &[]);
        if let Ok(found) = Target::of(&head) {
            let path = found.path_info();
            // PEP 3333: empty, or beginning with a slash.
            assert!(path.is_empty() || path.starts_with(b"/"), "{path:?}");
            assert!(!found.raw_path.contains(&b'?'));
            assert!(!target.contains(&b'#'), "a fragment passed");
            if let Some(host) = found.host {
                assert!(!host.contains(&b'@'), "credentials in {host:?}");
            } else if target.starts_with(b"/") {
                let joined = [found.raw_path, found.query].join(&b'?');
                assert_eq!(
                    joined.strip_suffix(b"?").unwrap_or(&joined),
                    target.strip_suffix(b"?").unwrap_or(target)
                );
            }
        }
        assert!(is_printable(&access_log::request_line(&head)));
    }
    for name in lines {
        let Ok(name) = HeaderName::from_bytes(name) else {
            continue;
        };
        if let HeaderSlot::Key(key) = environ::header_slot(name.as_str().as_bytes()) {
            let back = key.strip_prefix("HTTP_").unwrap().replace('_', "-");
            // Nothing but this very header can be found under its key.
            assert_eq!(back.to_ascii_lowercase(), name.as_str());
            assert!(!key.bytes().any(|byte| byte.is_ascii_lowercase()));
            assert_ne!(key, "HTTP_PROXY");
        }
    }
}

/// What a broker sends, after a byte that says where it was cut: nothing that is found in a part is
/// found otherwise in the whole, and what was used is whole frames.
pub fn frames(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let part = &stream[..stream.len() * usize::from(*cut) / 256];
    let (first, whole) = (frames::deliveries(part, 1), frames::deliveries(stream, 1));
    assert!(whole.found.starts_with(&first.found));
    assert_eq!(frames_in(&stream[..whole.used]), Some(whole.frames));
    let rest = frames::deliveries(&stream[first.used..], 1);
    assert_eq!(
        rest.used,
        whole.used - first.used,
        "read on where it stopped"
    );
    let (first, whole) = (frames::confirms(part, 1), frames::confirms(stream, 1));
    assert!(whole.found.starts_with(&first.found));
    assert_eq!(frames_in(&stream[..whole.used]), Some(whole.frames));
    // What we send is read back as it was meant, for any content.
    let text = String::from_utf8_lossy(stream);
    let size = usize::from(*cut);
    let sent = frames::publish(1, "q", "1", true, text.as_bytes(), size).unwrap();
    let content = sent.len() - text.len();
    assert!(frames_in(&sent).is_some_and(|count| count * frames::OVERHEAD <= content));
}

/// How many frames *bytes* are; none when they end inside of one.
fn frames_in(mut bytes: &[u8]) -> Option<usize> {
    let mut count = 0;
    while let Some(size) = bytes.get(3..7) {
        let size = u32::from_be_bytes(size.try_into().unwrap()) as usize;
        assert_eq!(bytes.get(7 + size), Some(&0xCE));
        bytes = &bytes[size + frames::OVERHEAD..];
        count += 1;
    }
    bytes.is_empty().then_some(count)
}

/// Another way to decode percent escapes, slow and plain.
fn naively_decoded(raw: &[u8]) -> Vec<u8> {
    let digit = |index: usize| {
        let byte = raw.get(index)?;
        char::from(*byte).to_digit(16)
    };
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        let escaped = digit(at + 1).zip(digit(at + 2)).filter(|_| raw[at] == b'%');
        if let Some((high, low)) = escaped {
            decoded.push(u8::try_from(high * 16 + low).unwrap());
            at += 3;
        } else {
            decoded.push(raw[at]);
            at += 1;
        }
    }
    decoded
}

/// What an application says: a status, headers, and sizes of the pieces of its body. Lines: method,
/// status, `name: value` for each header; after a blank line one byte for the size of each piece.
pub fn response(input: &[u8]) {
    let (text, pieces) = match input.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&input[..at], &input[at + 2..]),
        None => (input, &[][..]),
    };
    let mut lines = text.split(|byte| *byte == b'\n');
    let Ok(method) = Method::from_bytes(lines.next().unwrap_or_default()) else {
        return;
    };
    let Ok(mut head) = Head::new(lines.next().unwrap_or_default(), 4) else {
        return;
    };
    for line in lines {
        let at = line.iter().position(|byte| *byte == b':');
        let (name, value) = at.map_or((line, &[][..]), |at| (&line[..at], &line[at + 1..]));
        if head.header(name, value).is_ok() {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            assert!(!["connection", "transfer-encoding", "upgrade"].contains(&&*name));
            assert!(
                !value
                    .iter()
                    .any(|byte| matches!(byte, b'\r' | b'\n' | b'\0'))
            );
        }
    }
    let declared = head.length();
    let is_bodiless = is_bodiless(&method, head.status());
    let total: u64 = pieces.iter().map(|size| u64::from(*size)).sum();
    let known = (pieces.len() % 2 == 0).then_some(total);
    let (head, mut body) = head.into_parts(&method, known);

    assert!(!head.status.is_informational());
    let lengths: Vec<_> = head.headers.get_all("content-length").iter().collect();
    assert!(lengths.len() <= 1, "{lengths:?}");
    let mut admitted = 0;
    for size in pieces {
        let room = body.room(u64::from(*size));
        let count = body.admit(usize::from(*size)) as u64;
        assert_eq!(
            count, room,
            "a file and a piece of one size get the same room"
        );
        admitted += count;
    }
    assert_eq!(admitted, body.sent());
    assert!(!is_bodiless || admitted == 0);
    if let (Some(declared), false) = (declared, is_bodiless) {
        assert!(admitted <= declared);
        let expected = match total.cmp(&declared) {
            std::cmp::Ordering::Less => Ending::Short {
                declared,
                sent: total,
            },
            std::cmp::Ordering::Equal => Ending::Complete,
            std::cmp::Ordering::Greater => Ending::Excess { declared },
        };
        assert_eq!(body.ending(), expected);
    }
}

/// A request line and values of `X-Forwarded-For`: what reaches the access log.
pub fn log(input: &[u8]) {
    let line = access_log::escaped(input);
    assert!(is_printable(&line), "{line:?}");
    assert_eq!(unescaped(&line), input, "no two inputs share a line");
    let claims: Vec<(&[u8], &[u8])> = input
        .split(|byte| *byte == b'\n')
        .map(|value| (&b"X-Forwarded-For"[..], value))
        .collect();
    let head = RequestHead::of(Method::GET, b"/", Version::HTTP_11, &claims);
    let client = access_log::client_ip(&head, "peer");
    assert!(is_printable(&client), "{client:?}");
    assert!(client == "peer" || client.ends_with(",peer"), "{client:?}");
}

/// True for printable ASCII in which a quotation mark closes nothing.
fn is_printable(line: &str) -> bool {
    let mut is_escaped = false;
    line.bytes().all(|byte| {
        let is_open = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        matches!(byte, 0x20..=0x7e) && !is_open
    })
}

fn unescaped(line: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = line.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match (byte, tail) {
            (b'\\', [b'x', high, low, after @ ..]) => {
                let code = [*high, *low];
                let code = std::str::from_utf8(&code).unwrap();
                bytes.push(u8::from_str_radix(code, 16).unwrap());
                after
            }
            (b'\\', [other, after @ ..]) => {
                bytes.push(*other);
                after
            }
            _ => {
                bytes.push(byte);
                tail
            }
        };
    }
    bytes
}
