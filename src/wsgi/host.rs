//! Checks host and port as `Host` and an absolute target give them.
//!
//! Owns the grammar of RFC 3986 sections 3.2.2 and 3.2.3. Never resolves or normalises anything.

use std::net::Ipv6Addr;

/// True for `host [ ":" port ]` with a host that is not empty (RFC 9110 section 4.2.1). A comma,
/// which the grammar allows, is refused: it is what two fields look like once a proxy has joined
/// them.
#[must_use]
pub fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', rest @ ..] => {
            let Some(end) = memchr::memchr(b']', rest) else {
                return false;
            };
            if !is_ip_literal(&rest[..end]) {
                return false;
            }
            match &rest[end + 1..] {
                [] => return true,
                [b':', port @ ..] => return port.iter().all(u8::is_ascii_digit),
                _ => return false,
            }
        }
        _ => match memchr::memchr(b':', value) {
            Some(colon) => (&value[..colon], &value[colon + 1..]),
            None => (value, &[][..]),
        },
    };
    !host.is_empty() && is_name(host) && port.iter().all(u8::is_ascii_digit)
}

/// What may stand between brackets: an IPv6 address, or one of a version to come.
fn is_ip_literal(text: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = text {
        let Some(dot) = memchr::memchr(b'.', rest) else {
            return false;
        };
        let (version, address) = (&rest[..dot], &rest[dot + 1..]);
        return !version.is_empty()
            && version.iter().all(u8::is_ascii_hexdigit)
            && !address.is_empty()
            && address
                .iter()
                .all(|byte| *byte == b':' || (is_name_byte(*byte) && *byte != b'%'));
    }
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// A registered name or an IPv4 address.
fn is_name(text: &[u8]) -> bool {
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        if !is_name_byte(*byte) {
            return false;
        }
        rest = match (byte, tail) {
            (b'%', [high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                after
            }
            (b'%', _) => return false,
            _ => tail,
        };
    }
    true
}

/// Unreserved characters, sub-delimiters but the comma, and the percent sign.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_hosts_pass() {
        for host in [
            "a",
            "a:80",
            "a:",
            "a.b-c_d~e",
            "10.0.0.1:8080",
            "[::1]",
            "[::1]:80",
            "[::1]:",
            "[2001:db8::a:1]:443",
            "[v1.a:b]",
            "a%20b",
            "xn--bcher-kva.example",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn what_only_resembles_a_host_is_refused() {
        for host in [
            "",
            ":",
            ":80",
            "a:b",
            "a:80:90",
            "::1",
            "[::1",
            "[]",
            "[]:80",
            "[::1]80",
            "[::1]:x",
            "[1.2.3.4]",
            "[v.a]",
            "[v1.]",
            "[::1%eth0]",
            "a%2",
            "a%zz",
            "a/b",
            "a b",
            "a@b",
            "a,b",
            "a[b]",
            "[::1]]",
            "http://a",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }
}
