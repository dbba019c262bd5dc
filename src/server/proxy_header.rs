//! The PROXY protocol: what a proxy says of the client in front of the stream.
//!
//! Owns the two forms of the header, strictly: whoever may send one decides what the application
//! takes for the client's address. Never reads a socket and decides nothing about trust. Rules come
//! from haproxy's `doc/proxy-protocol.txt`, sections 2.1 (version 1) and 2.2 (version 2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const PREFIX: &[u8] = b"PROXY ";
/// Bytes of a header of version 1, the end of its line included.
const MOST_LINE: usize = 107;
/// Bytes of version 2 in front of the addresses.
const FIXED: usize = SIGNATURE.len() + 4;

/// A header that is none, or that says what cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection does not begin with a valid PROXY header")]
pub(super) struct Invalid;

/// The ends of the connection that the client made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    /// What the client connected to.
    pub(super) local: SocketAddr,
}

/// How far a header has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// More bytes have to come; all that are there belong to the header.
    Missing,
    /// That many bytes were the header. Without ends the proxy speaks for itself (a health check)
    /// or does not know them: the connection's own ends hold.
    Header { length: usize, ends: Option<Ends> },
}

/// Reads the header at the start of a stream.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Invalid> {
    if begins_like(bytes, SIGNATURE) {
        return second_version(bytes);
    }
    if begins_like(bytes, PREFIX) {
        return first_version(bytes);
    }
    Err(Invalid)
}

/// True when `bytes` are the beginning of `mark`, or begin with it.
fn begins_like(bytes: &[u8], mark: &[u8]) -> bool {
    bytes.iter().zip(mark).all(|(byte, wanted)| byte == wanted)
}

fn first_version(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let within = &bytes[..bytes.len().min(MOST_LINE)];
    let Some(end) = memchr::memmem::find(within, b"\r\n") else {
        return if within.len() < MOST_LINE {
            Ok(Parsed::Missing)
        } else {
            Err(Invalid)
        };
    };
    let line = std::str::from_utf8(&within[..end]).map_err(|_| Invalid)?;
    let ends = match line.split(' ').collect::<Vec<_>>()[..] {
        // What follows on this line is to be ignored.
        [_, "UNKNOWN", ..] => None,
        [_, "TCP4", client, local, client_port, local_port] => Some(Ends {
            client: address::<Ipv4Addr>(client, client_port)?,
            local: address::<Ipv4Addr>(local, local_port)?,
        }),
        [_, "TCP6", client, local, client_port, local_port] => Some(Ends {
            client: address::<Ipv6Addr>(client, client_port)?,
            local: address::<Ipv6Addr>(local, local_port)?,
        }),
        _ => return Err(Invalid),
    };
    Ok(Parsed::Header {
        length: end + 2,
        ends,
    })
}

fn address<T: FromStr + Into<IpAddr>>(ip: &str, port: &str) -> Result<SocketAddr, Invalid> {
    let is_plain = port.bytes().all(|byte| byte.is_ascii_digit());
    if !is_plain || (port.len() > 1 && port.starts_with('0')) {
        return Err(Invalid);
    }
    let ip: T = ip.parse().map_err(|_| Invalid)?;
    Ok(SocketAddr::new(
        ip.into(),
        port.parse().map_err(|_| Invalid)?,
    ))
}

fn second_version(bytes: &[u8]) -> Result<Parsed, Invalid> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Parsed::Missing);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    // The proxy's own connection, or that of a client.
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Invalid),
    };
    let Some(block) = rest.get(..length) else {
        return Ok(Parsed::Missing);
    };
    let ends = match family {
        // What the proxy says of the client then is to be ignored.
        _ if is_local => None,
        // One half is unspecified: the addresses mean nothing.
        0x00..=0x02 | 0x10 | 0x20 | 0x30 => None,
        // Unix sockets, whose paths are no addresses.
        0x31 | 0x32 if length >= 216 => None,
        // The client may have come by UDP to a proxy that speaks HTTP/3.
        0x11 | 0x12 => {
            let (client, rest) = block.split_first_chunk::<4>().ok_or(Invalid)?;
            let (local, ports) = rest.split_first_chunk::<4>().ok_or(Invalid)?;
            Some(ends(
                Ipv4Addr::from(*client).into(),
                Ipv4Addr::from(*local).into(),
                ports,
            )?)
        }
        0x21 | 0x22 => {
            let (client, rest) = block.split_first_chunk::<16>().ok_or(Invalid)?;
            let (local, ports) = rest.split_first_chunk::<16>().ok_or(Invalid)?;
            Some(ends(
                Ipv6Addr::from(*client).into(),
                Ipv6Addr::from(*local).into(),
                ports,
            )?)
        }
        _ => return Err(Invalid),
    };
    Ok(Parsed::Header {
        length: FIXED + length,
        ends,
    })
}

/// Both ends; what stands behind the ports is not read.
fn ends(client: IpAddr, local: IpAddr, ports: &[u8]) -> Result<Ends, Invalid> {
    let (client_port, rest) = ports.split_first_chunk::<2>().ok_or(Invalid)?;
    let (local_port, _) = rest.split_first_chunk::<2>().ok_or(Invalid)?;
    Ok(Ends {
        client: SocketAddr::new(client, u16::from_be_bytes(*client_port)),
        local: SocketAddr::new(local, u16::from_be_bytes(*local_port)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(length: usize, client: &str, local: &str) -> Parsed {
        Parsed::Header {
            length,
            ends: Some(Ends {
                client: client.parse().unwrap(),
                local: local.parse().unwrap(),
            }),
        }
    }

    fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, block].concat()
    }

    const FOUR: &[u8] = &[192, 0, 2, 9, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

    #[test]
    fn version_1_is_a_line() {
        let line = b"PROXY TCP4 192.0.2.9 10.0.0.1 4660 80\r\nGET / HTTP/1.1\r\n";
        assert_eq!(parse(line), Ok(header(39, "192.0.2.9:4660", "10.0.0.1:80")));
        let line = b"PROXY TCP6 2001:db8::9 ::1 4660 80\r\n";
        assert_eq!(
            parse(line),
            Ok(header(36, "[2001:db8::9]:4660", "[::1]:80"))
        );
        let line = b"PROXY UNKNOWN ffff:f... anything\r\n";
        let ends = None;
        assert_eq!(parse(line), Ok(Parsed::Header { length: 34, ends }));
        assert_eq!(
            parse(b"PROXY UNKNOWN\r\n"),
            Ok(Parsed::Header { length: 15, ends })
        );
    }

    #[test]
    fn version_2_is_binary_and_its_additions_are_skipped() {
        let expected = |length| Ok(header(length, "192.0.2.9:4660", "10.0.0.1:80"));
        assert_eq!(parse(&version_2(0x21, 0x11, FOUR)), expected(28));
        let added = [FOUR, &[1, 0, 2, b'h', b'2']].concat();
        assert_eq!(parse(&version_2(0x21, 0x11, &added)), expected(33));
        let long = [FOUR, &vec![b'x'; 65_523]].concat();
        assert_eq!(parse(&version_2(0x21, 0x11, &long)), expected(65_551));
        let by_udp = parse(&version_2(0x21, 0x12, FOUR));
        assert_eq!(by_udp, expected(28));
        let mut six = [0; 36];
        six[15] = 9;
        six[31] = 1;
        six[33] = 7;
        six[35] = 8;
        assert_eq!(
            parse(&version_2(0x21, 0x21, &six)),
            Ok(header(52, "[::9]:7", "[::1]:8"))
        );
    }

    #[test]
    fn a_proxy_may_speak_for_itself() {
        for (command, family, block) in [
            (0x20, 0x00, &[][..]),
            (0x20, 0x11, FOUR),
            (0x20, 0x41, FOUR),
            (0x21, 0x00, &[]),
            (0x21, 0x01, FOUR),
            (0x21, 0x10, &[]),
            (0x21, 0x31, &[0; 216]),
            (0x21, 0x32, &[0; 216]),
        ] {
            let bytes = version_2(command, family, block);
            let length = bytes.len();
            let ends = None;
            assert_eq!(parse(&bytes), Ok(Parsed::Header { length, ends }));
        }
    }

    #[test]
    fn the_verdict_is_that_of_the_whole_however_it_is_cut() {
        for whole in [
            b"PROXY TCP4 192.0.2.9 10.0.0.1 4660 80\r\n".to_vec(),
            version_2(0x21, 0x11, FOUR),
        ] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end]), Ok(Parsed::Missing), "{end}");
            }
            assert!(
                matches!(parse(&whole), Ok(Parsed::Header { length, .. }) if length == whole.len())
            );
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "PROXYTCP4 192.0.2.9 10.0.0.1 1 2\r\n",
            "PROXY  TCP4 192.0.2.9 10.0.0.1 1 2\r\n",
            "PROXY TCP4 192.0.2.9 10.0.0.1 1\r\n",
            "PROXY TCP4 192.0.2.9 10.0.0.1 1 2 3\r\n",
            "PROXY TCP4 192.0.2.9 10.0.0.1 1 65536\r\n",
            "PROXY TCP4 192.0.2.9 10.0.0.1 01 2\r\n",
            "PROXY TCP4 192.0.2.9 10.0.0.1 +1 2\r\n",
            "PROXY TCP4 192.0.2.9 10.0.0.1  2\r\n",
            "PROXY TCP4 192.0.2.09 10.0.0.1 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.9 10.0.0.1 1 2\r\n",
            "PROXY UDP4 192.0.2.9 10.0.0.1 1 2\r\n",
            "PROXY tcp4 192.0.2.9 10.0.0.1 1 2\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(Invalid), "{line}");
        }
        let long = [b"PROXY UNKNOWN ", &[b'x'; 100][..], b"\r\n"].concat();
        assert_eq!(parse(&long), Err(Invalid));
        for (command, family, block) in [
            (0x11, 0x11, FOUR),
            (0x22, 0x11, FOUR),
            (0x21, 0x11, &FOUR[..11]),
            (0x21, 0x12, &FOUR[..11]),
            (0x21, 0x13, FOUR),
            (0x21, 0x21, FOUR),
            (0x21, 0x22, FOUR),
            (0x21, 0x31, FOUR),
            (0x21, 0x41, FOUR),
        ] {
            assert_eq!(parse(&version_2(command, family, block)), Err(Invalid));
        }
    }
}
