//! Which call a reply belongs to.
//!
//! Owns the search for one member in JSON text, without making values of the rest. Lenient where
//! Python's `json` is: `NaN` and `Infinity` are passed over. What it cannot read is left to the
//! caller's decoder, which may.
//!
//! Rules: RFC 8259; oslo.messaging's envelope: `{"oslo.version": ..., "oslo.message": "<JSON text>"}`.

use std::borrow::Cow;

const MESSAGE: &str = "oslo.message";
const MSG_ID: &str = "_msg_id";

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
    let bytes = text.as_bytes();
    let mut at = skip_space(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    at += 1;
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
        if key == name {
            return text.get(start..end);
        }
        at = skip_space(bytes, end);
        match bytes.get(at) {
            Some(b',') => at += 1,
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
                // Half a pair stands in no name that is looked for.
                char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)
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
    u32::from_str_radix(digits, 16).ok()
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
        ] {
            assert_eq!(msg_id(body.as_bytes()).as_deref(), expected, "{body}");
        }
        assert_eq!(msg_id(b"{\"_msg_id\": \"\xff\"}"), None);
    }
}
