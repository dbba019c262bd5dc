//! Messages of oslo.messaging: which call a reply belongs to, which request a delivery is.
//!
//! Owns the search for members in JSON text, without making values of the rest. Lenient where
//! Python's `json` is: `NaN` and `Infinity` are passed over. What it cannot read is left to the
//! caller's decoder, which may.
//!
//! Rules: RFC 8259; oslo.messaging's envelope: `{"oslo.version": ..., "oslo.message": "<JSON text>"}`.

use std::borrow::Cow;

const MESSAGE: &str = "oslo.message";
const VERSION: &str = "oslo.version";
/// The version of envelopes that is written; any other is the decoder's business.
const VERSION_2: &str = "\"2.0\"";
const MSG_ID: &str = "_msg_id";

/// What is known of a request before anything is made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The method that it asks for, behind its namespace if it has one.
    pub method: String,
    /// By which it is known when it is delivered twice.
    pub unique_id: Option<String>,
}

/// The text in an envelope; none where it is not exactly what oslo.messaging writes.
pub(super) fn message(body: &[u8]) -> Option<String> {
    let (mut version, mut message) = (None, None);
    let is_whole = each_member(str::from_utf8(body).ok()?, |name, value| {
        let place = match name {
            VERSION => &mut version,
            MESSAGE => &mut message,
            _ => return false,
        };
        place.replace(value).is_none()
    })?;
    if !is_whole || version? != VERSION_2 {
        return None;
    }
    Some(string(message?)?.into_owned())
}

/// What *message* asks for, the text of a request; none where it names no method.
pub(super) fn head(message: &str) -> Option<Head> {
    let (mut method, mut namespace, mut unique_id) = (None, None, None);
    each_member(message, |name, value| {
        // As with Python's `json`, the last of a name counts.
        match name {
            "method" => method = Some(value),
            "namespace" => namespace = Some(value),
            "_unique_id" => unique_id = Some(value),
            _ => {}
        }
        true
    })?;
    let method = string(method?)?;
    let method = match namespace.filter(|text| *text != "null") {
        Some(namespace) => format!("{}.{method}", string(namespace)?),
        None => method.into_owned(),
    };
    let unique_id = match unique_id {
        Some(text) => Some(string(text)?.into_owned()),
        None => None,
    };
    Some(Head { method, unique_id })
}

/// A reply's call, and the message itself out of its envelope; the body as it is where neither can be
/// told.
pub(super) fn reply(body: Vec<u8>) -> Result<(String, Vec<u8>), Vec<u8>> {
    if let Some(message) = message(&body) {
        let msg_id = member(&message, MSG_ID).and_then(string);
        if let Some(msg_id) = msg_id.map(Cow::into_owned) {
            return Ok((msg_id, message.into_bytes()));
        }
    }
    match msg_id(&body) {
        Some(msg_id) => Ok((msg_id, body)),
        None => Err(body),
    }
}

/// The member `_msg_id` of a reply; none where there is none, or the text is no such JSON.
pub(super) fn msg_id(body: &[u8]) -> Option<String> {
    let text = str::from_utf8(body).ok()?;
    if let Some(message) = member(text, MESSAGE) {
        let message = string(message)?;
        return Some(string(member(&message, MSG_ID)?)?.into_owned());
    }
    Some(string(member(text, MSG_ID)?)?.into_owned())
}

/// The text of the value of *name*, a member of the object *text*.
fn member<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    let _ = each_member(text, |key, value| {
        found = (key == name).then_some(value);
        found.is_none()
    });
    found
}

/// Shows the members of the object *text*, each with the text of its value, until `look` returns
/// false. Whether it never did; none where *text* is no object, or something follows it.
fn each_member<'a>(text: &'a str, mut look: impl FnMut(&str, &'a str) -> bool) -> Option<bool> {
    let bytes = text.as_bytes();
    let mut at = skip_space(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    at = skip_space(bytes, at + 1);
    if bytes.get(at) == Some(&b'}') {
        return (skip_space(bytes, at + 1) == bytes.len()).then_some(true);
    }
    loop {
        at = skip_space(bytes, at);
        let key_end = end_of_string(bytes, at)?;
        let key = string(text.get(at..key_end)?)?;
        at = skip_space(bytes, key_end);
        if bytes.get(at) != Some(&b':') {
            return None;
        }
        let start = skip_space(bytes, at + 1);
        let end = end_of_value(bytes, start)?;
        if !look(&key, text.get(start..end)?) {
            return Some(false);
        }
        at = skip_space(bytes, end);
        match bytes.get(at) {
            Some(b',') => at += 1,
            Some(b'}') => return (skip_space(bytes, at + 1) == bytes.len()).then_some(true),
            _ => return None,
        }
    }
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The place after the string that begins at *at*.
fn end_of_string(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The place after the value that begins at *at*.
fn end_of_value(bytes: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = start;
    loop {
        match bytes.get(at)? {
            b'"' => {
                at = end_of_string(bytes, at)?;
                if depth == 0 {
                    return Some(at);
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return (at > start).then_some(at),
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += 1;
    }
}

/// What a string with its quotes stands for; none for another value.
fn string(quoted: &str) -> Option<Cow<'_, str>> {
    let inner = quoted.strip_prefix('"')?.trim_end().strip_suffix('"')?;
    if inner.bytes().any(|byte| byte < b' ') {
        return None; // no JSON
    }
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    let mut plain = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        plain.push_str(rest.get(..at)?);
        let escape = *rest.as_bytes().get(at + 1)?;
        rest = rest.get(at + 2..)?;
        plain.push(match escape {
            b'"' | b'\\' | b'/' => char::from(escape),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut unit = hexadecimal(&mut rest)?;
                if (0xD800..0xDC00).contains(&unit)
                    && let Some(mut low) = rest.strip_prefix("\\u")
                    && let Some(second) = hexadecimal(&mut low)
                    && (0xDC00..0xE000).contains(&second)
                {
                    unit = 0x1_0000 + ((unit - 0xD800) << 10) + (second - 0xDC00);
                    rest = low;
                }
                // Half a pair is no text here; Python's is.
                char::from_u32(unit)?
            }
            _ => return None,
        });
    }
    plain.push_str(rest);
    Some(Cow::Owned(plain))
}

fn hexadecimal(rest: &mut &str) -> Option<u32> {
    let digits = rest.get(..4)?;
    *rest = rest.get(4..)?;
    // The library's function would take a sign.
    let are_digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    are_digits
        .then(|| u32::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_found_in_and_without_an_envelope() {
        for (body, expected) in [
            (r#"{"_msg_id": "7", "result": null}"#, Some("7")),
            (
                r#"{"oslo.version": "2.0", "oslo.message": "{\"result\": {\"_msg_id\": \"no\"}, \"ending\": true, \"_msg_id\": \"7\"}"}"#,
                Some("7"),
            ),
            (
                r#"{"oslo.message": "{\"result\": [NaN, -Infinity, \"}\\\"\\u00e9\\ud83d\\ude00\"], \"_msg_id\":\"7\"}", "oslo.version": "2.0"}"#,
                Some("7"),
            ),
            (r#"{"oslo.message": "{\"_msg_id\": null}"}"#, None),
            (r#"{"result": {"_msg_id": "7"}}"#, None),
            (r#"{"_msg_id": "7"#, None),
            (r"[]", None),
            ("", None),
            (r#"{"a":"#, None),
            (r#"{"a\u12"#, None),
            (r#"{"_msg_id": "\u+041"}"#, None),
        ] {
            assert_eq!(msg_id(body.as_bytes()).as_deref(), expected, "{body}");
        }
        assert_eq!(msg_id(b"{\"_msg_id\": \"\xff\"}"), None);
    }

    #[test]
    fn a_message_is_taken_out_of_an_envelope_as_oslo_messaging_writes_it_and_of_no_other() {
        let text = r#"{"args": {"x": "\u00e9 \"q\" \\ \n"}, "method": "m"}"#;
        let quoted = text.replace('\\', r"\\").replace('"', "\\\"");
        for (body, is_read) in [
            (
                format!(r#"{{"oslo.version": "2.0", "oslo.message": "{quoted}"}}"#),
                true,
            ),
            (
                format!(r#" {{ "oslo.message":"{quoted}" , "oslo.version":"2.0" }} "#),
                true,
            ),
            (
                format!(r#"{{"oslo.version": "2.1", "oslo.message": "{quoted}"}}"#),
                false,
            ),
            (
                format!(r#"{{"oslo.version": "2.0", "oslo.message": "{quoted}", "x": 1}}"#),
                false,
            ),
            (
                format!(r#"{{"oslo.version": "2.0", "oslo.message": "{quoted}"}} x"#),
                false,
            ),
            (
                format!(r#"{{"oslo.message": "{quoted}", "oslo.message": "{quoted}"}}"#),
                false,
            ),
            (
                r#"{"oslo.version": "2.0", "oslo.message": {"method": "m"}}"#.to_owned(),
                false,
            ),
            (
                r#"{"oslo.version": "2.0", "oslo.message": "\ud800"}"#.to_owned(),
                false,
            ),
            (
                "{\"oslo.version\": \"2.0\", \"oslo.message\": \"\n\"}".to_owned(),
                false,
            ),
            (r#"{"oslo.version": "2.0"}"#.to_owned(), false),
            ("{}".to_owned(), false),
            (text.to_owned(), false),
        ] {
            let expected = is_read.then(|| text.to_owned());
            assert_eq!(message(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn a_request_is_known_by_its_own_members_and_not_by_those_within() {
        let found = |method: &str, id: Option<&str>| {
            Some(Head {
                method: method.to_owned(),
                unique_id: id.map(str::to_owned),
            })
        };
        for (text, expected) in [
            (
                r#"{"args": {"method": "no", "_unique_id": "no"}, "method": "m", "_unique_id": "7"}"#,
                found("m", Some("7")),
            ),
            (r#"{"method": "m", "namespace": "n"}"#, found("n.m", None)),
            (
                r#"{"namespace": null, "method": "a", "method": "m"}"#,
                found("m", None),
            ),
            (r#"{"method": null}"#, None),
            (r#"{"method": "m", "_unique_id": 7}"#, None),
            (r#"{"method": "m""#, None),
            (r#"{"method": "m"} {}"#, None),
            ("{}", None),
            ("[]", None),
        ] {
            assert_eq!(head(text), expected, "{text}");
        }
    }
}
