//! The few AMQP 0-9-1 frames that make up the traffic of an RPC server, read and written as bytes.
//!
//! Owns their layout and nothing else: no socket, no state, no memory of earlier calls. What is not
//! one of these frames, or looks unusual in any way, is called foreign and left to py-amqp, which
//! knows them all. So a broker with other habits costs speed, never a message.
//!
//! Rules: AMQP 0-9-1 section 2.3 (frames), 4.2 (their wire format); `basic.publish`,
//! `basic.deliver`, `basic.ack` of the same; RabbitMQ's publisher confirms.

use std::borrow::Cow;

pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;
pub(super) const END: u8 = 0xCE;
/// Type, channel, size; then the payload; then [`END`].
const BEFORE: usize = 7;
/// Bytes of a frame that are not payload.
pub const OVERHEAD: usize = BEFORE + 1;

pub(super) const BASIC: u16 = 60;
pub(super) const PUBLISH: u16 = 40;
pub(super) const DELIVER: u16 = 60;
pub(super) const ACK: u16 = 80;

pub(super) const HAS_CONTENT_TYPE: u16 = 1 << 15;
pub(super) const HAS_CONTENT_ENCODING: u16 = 1 << 14;
pub(super) const HAS_HEADERS: u16 = 1 << 13;
pub(super) const HAS_DELIVERY_MODE: u16 = 1 << 12;
pub(super) const HAS_PRIORITY: u16 = 1 << 11;
pub(super) const HAS_CORRELATION_ID: u16 = 1 << 10;
pub(super) const HAS_REPLY_TO: u16 = 1 << 9;
pub(super) const HAS_EXPIRATION: u16 = 1 << 8;
pub(super) const HAS_MESSAGE_ID: u16 = 1 << 7;
/// More flags follow; no client uses them.
pub(super) const HAS_MORE: u16 = 1;

/// The only content that oslo.messaging sends.
pub(super) const CONTENT_TYPE: Short<'_> = (16, "application/json");
pub(super) const CONTENT_ENCODING: Short<'_> = (5, "utf-8");
pub(super) const PERSISTENT: u8 = 2;

/// The longest that is waited for here. Each further piece has all that came before it looked at
/// again, which longer messages would make expensive.
pub const LONGEST: usize = 1 << 20;

/// What stands at the beginning of received bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan<T> {
    /// In the order of their arrival.
    pub found: Vec<T>,
    /// How many bytes, from the first on, [`Scan::found`] and heartbeats took.
    pub used: usize,
    /// How many frames stood in them.
    pub frames: usize,
    /// The bytes that are left begin with something for py-amqp. Otherwise they are the beginning
    /// of a frame or of a message of which the rest has not arrived.
    pub is_foreign: bool,
}

/// One message from a queue: `basic.deliver` and its content.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// By which it is acknowledged.
    pub tag: u64,
    /// The broker has delivered it before, to any consumer.
    pub is_redelivered: bool,
    /// JSON, as far as its sender says.
    pub body: Cow<'a, str>,
}

/// `basic.ack` from the broker: it is responsible for what was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirm {
    /// Counts what was published on the channel, from 1 on.
    pub tag: u64,
    /// All up to `tag` are meant, not only that one.
    pub is_multiple: bool,
}

/// A name is longer than the 255 bytes that AMQP has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a queue's name of {length} bytes; AMQP allows 255: shorten it")]
pub struct NameTooLong {
    /// In bytes.
    pub length: usize,
}

/// Messages that arrived on `channel`.
#[must_use]
pub fn deliveries(buffer: &[u8], channel: u16) -> Scan<Delivery<'_>> {
    scan(buffer, |bytes| delivery(bytes, channel))
}

/// Confirms that arrived on `channel`.
#[must_use]
pub fn confirms(buffer: &[u8], channel: u16) -> Scan<Confirm> {
    scan(buffer, |bytes| confirm(bytes, channel))
}

/// Acknowledges one delivery.
#[must_use]
pub fn ack(channel: u16, tag: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(21);
    put_frame(&mut bytes, METHOD, channel, |bytes| {
        put_method(bytes, ACK);
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.push(0);
    });
    bytes
}

/// Publishes `body`, which is JSON, to the queue `queue` through the default exchange, in frames of
/// at most `frame_max` bytes; 0 means that there is no limit. A mandatory message comes back when
/// there is no such queue.
///
/// # Errors
/// [`NameTooLong`]: `queue` or `message_id`.
pub fn publish(
    channel: u16,
    queue: &str,
    message_id: &str,
    is_mandatory: bool,
    body: &[u8],
    frame_max: usize,
) -> Result<Vec<u8>, NameTooLong> {
    let queue = short(queue)?;
    let message_id = short(message_id)?;
    let mut bytes = Vec::with_capacity(128 + queue.1.len() + body.len());
    put_frame(&mut bytes, METHOD, channel, |bytes| {
        put_method(bytes, PUBLISH);
        bytes.extend_from_slice(&[0, 0, 0]); // reserved, and the default exchange's empty name
        put_short(bytes, queue);
        bytes.push(u8::from(is_mandatory));
    });
    put_frame(&mut bytes, HEADER, channel, |bytes| {
        bytes.extend_from_slice(&BASIC.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        let flags = HAS_CONTENT_TYPE
            | HAS_CONTENT_ENCODING
            | HAS_HEADERS
            | HAS_DELIVERY_MODE
            | HAS_PRIORITY
            | HAS_MESSAGE_ID;
        bytes.extend_from_slice(&flags.to_be_bytes());
        put_short(bytes, CONTENT_TYPE);
        put_short(bytes, CONTENT_ENCODING);
        bytes.extend_from_slice(&[0, 0, 0, 0, PERSISTENT, 0]); // no headers; priority 0
        put_short(bytes, message_id);
    });
    let piece = match frame_max {
        0 => usize::MAX,
        size => size.saturating_sub(OVERHEAD).max(1),
    };
    for piece in body.chunks(piece) {
        put_frame(&mut bytes, BODY, channel, |bytes| {
            bytes.extend_from_slice(piece);
        });
    }
    Ok(bytes)
}

// ---- reading -----------------------------------------------------------------------------------

/// Why nothing more can be read.
enum Stop {
    /// The rest has not arrived.
    Incomplete,
    /// For py-amqp.
    Foreign,
}

/// What a function of [`scan`] found, and how many frames of how many bytes it was in.
struct Found<T> {
    what: T,
    used: usize,
    frames: usize,
}

fn scan<'a, T>(buffer: &'a [u8], next: impl Fn(&'a [u8]) -> Result<Found<T>, Stop>) -> Scan<T> {
    let mut scan = Scan {
        found: Vec::new(),
        used: 0,
        frames: 0,
        is_foreign: false,
    };
    while let Some(rest) = buffer.get(scan.used..).filter(|rest| !rest.is_empty()) {
        if let Ok(frame) = frame(rest)
            && frame.kind == HEARTBEAT
        {
            scan.used += frame.size();
            scan.frames += 1;
            continue;
        }
        match next(rest) {
            Ok(found) => {
                scan.found.push(found.what);
                scan.used += found.used;
                scan.frames += found.frames;
            }
            Err(stop) => {
                scan.is_foreign = matches!(stop, Stop::Foreign);
                break;
            }
        }
    }
    scan
}

struct Frame<'a> {
    kind: u8,
    channel: u16,
    payload: &'a [u8],
}

impl Frame<'_> {
    fn size(&self) -> usize {
        self.payload.len() + OVERHEAD
    }
}

fn frame(bytes: &[u8]) -> Result<Frame<'_>, Stop> {
    let mut reader = Reader(bytes);
    let head = (reader.u8(), reader.u16(), reader.u32());
    let (Some(kind), Some(channel), Some(size)) = head else {
        return Err(Stop::Incomplete);
    };
    let size = size as usize;
    match (reader.bytes(size), reader.u8()) {
        (Some(payload), Some(END)) => Ok(Frame {
            kind,
            channel,
            payload,
        }),
        (Some(_), Some(_)) => Err(Stop::Foreign),
        _ if size > LONGEST => Err(Stop::Foreign),
        _ => Err(Stop::Incomplete),
    }
}

/// The next frame, which belongs to a message that has begun.
fn content_frame(bytes: &[u8], kind: u8, channel: u16) -> Result<Frame<'_>, Stop> {
    let frame = frame(bytes)?;
    if (frame.kind, frame.channel) == (kind, channel) {
        Ok(frame)
    } else {
        Err(Stop::Foreign)
    }
}

fn method<'a>(frame: &Frame<'a>, channel: u16, method: u16) -> Result<Reader<'a>, Stop> {
    let mut reader = Reader(frame.payload);
    let is_it = frame.kind == METHOD
        && frame.channel == channel
        && reader.u16() == Some(BASIC)
        && reader.u16() == Some(method);
    if is_it {
        Ok(reader)
    } else {
        Err(Stop::Foreign)
    }
}

fn confirm(bytes: &[u8], channel: u16) -> Result<Found<Confirm>, Stop> {
    let frame = frame(bytes)?;
    let mut reader = method(&frame, channel, ACK)?;
    let (Some(tag), Some(bits)) = (reader.u64(), reader.u8()) else {
        return Err(Stop::Foreign);
    };
    Ok(Found {
        what: Confirm {
            tag,
            is_multiple: bits & 1 != 0,
        },
        used: frame.size(),
        frames: 1,
    })
}

fn delivery(bytes: &[u8], channel: u16) -> Result<Found<Delivery<'_>>, Stop> {
    let first = frame(bytes)?;
    let mut arguments = method(&first, channel, DELIVER)?;
    let (Some(_consumer), Some(tag), Some(bits)) =
        (arguments.short(), arguments.u64(), arguments.u8())
    else {
        return Err(Stop::Foreign);
    };
    let mut used = first.size();
    let header = content_frame(bytes.get(used..).unwrap_or_default(), HEADER, channel)?;
    let length = plain_json(header.payload).ok_or(Stop::Foreign)?;
    used += header.size();
    let mut frames = 2;
    let mut body = Cow::Borrowed(&[][..]);
    while body.len() < length {
        let piece = match content_frame(bytes.get(used..).unwrap_or_default(), BODY, channel) {
            Err(Stop::Incomplete) if length > LONGEST => return Err(Stop::Foreign),
            piece => piece?,
        };
        used += piece.size();
        frames += 1;
        if body.is_empty() {
            body = Cow::Borrowed(piece.payload);
        } else {
            body.to_mut().extend_from_slice(piece.payload);
        }
    }
    if body.len() != length {
        return Err(Stop::Foreign);
    }
    let text = match body {
        Cow::Borrowed(bytes) => str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    };
    Ok(Found {
        what: Delivery {
            tag,
            is_redelivered: bits & 1 != 0,
            body: text.ok_or(Stop::Foreign)?,
        },
        used,
        frames,
    })
}

/// The body's length, if the properties say that it is JSON as oslo.messaging sends it. Headers say
/// that there is more to know of it: its compression, its place in a stream.
fn plain_json(payload: &[u8]) -> Option<usize> {
    let mut reader = Reader(payload);
    let (class, _weight, length) = (reader.u16()?, reader.u16()?, reader.u64()?);
    let flags = reader.u16()?;
    let is_plain = class == BASIC
        && flags & HAS_MORE == 0
        && flags & HAS_CONTENT_TYPE != 0
        && reader.short()? == CONTENT_TYPE.1.as_bytes()
        && flags & HAS_CONTENT_ENCODING != 0
        && reader.short()? == CONTENT_ENCODING.1.as_bytes()
        && (flags & HAS_HEADERS == 0 || reader.u32()? == 0);
    is_plain.then(|| usize::try_from(length).ok()).flatten()
}

/// Takes values from the beginning of bytes.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.bytes(usize::from(length))
    }
}

// ---- writing -----------------------------------------------------------------------------------

pub(super) fn put_frame(
    bytes: &mut Vec<u8>,
    kind: u8,
    channel: u16,
    payload: impl FnOnce(&mut Vec<u8>),
) {
    bytes.push(kind);
    bytes.extend_from_slice(&channel.to_be_bytes());
    let size_at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    payload(bytes);
    let size = bytes.len() - size_at - 4;
    // A payload is a chunk of at most frame_max, a number of 32 bits.
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    if let Some(place) = bytes.get_mut(size_at..size_at + 4) {
        place.copy_from_slice(&size.to_be_bytes());
    }
    bytes.push(END);
}

fn put_method(bytes: &mut Vec<u8>, method: u16) {
    bytes.extend_from_slice(&BASIC.to_be_bytes());
    bytes.extend_from_slice(&method.to_be_bytes());
}

/// A text with its length, as AMQP's short strings begin with it.
pub(super) type Short<'a> = (u8, &'a str);

pub(super) fn short(text: &str) -> Result<Short<'_>, NameTooLong> {
    match u8::try_from(text.len()) {
        Ok(length) => Ok((length, text)),
        Err(_) => Err(NameTooLong { length: text.len() }),
    }
}

pub(super) fn put_short(bytes: &mut Vec<u8>, (length, text): Short<'_>) {
    bytes.push(length);
    bytes.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANNEL: u16 = 1;
    const HEARTBEAT_FRAME: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];

    fn framed(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, kind, channel, |bytes| {
            bytes.extend_from_slice(payload);
        });
        bytes
    }

    /// A delivery as RabbitMQ sends it: what was published, with `basic.deliver` in front.
    fn delivered(tag: u64, body: &[u8], frame_max: usize) -> Vec<u8> {
        let published = publish(CHANNEL, "q", "7", true, body, frame_max).unwrap();
        let content = &published[frame(&published).ok().unwrap().size()..];
        let mut payload = vec![0, 60, 0, 60, 1, b'1'];
        payload.extend_from_slice(&tag.to_be_bytes());
        payload.extend_from_slice(&[1, 0, 1, b'q']);
        [framed(METHOD, CHANNEL, &payload), content.to_vec()].concat()
    }

    #[test]
    fn every_delivery_is_found_with_its_tag_and_its_body() {
        let bytes = [
            delivered(3, b"{\"a\": 1}", 0),
            HEARTBEAT_FRAME.to_vec(),
            delivered(4, "\"ü\"".as_bytes(), 0),
            delivered(5, b"", 0),
        ]
        .concat();

        let scan = deliveries(&bytes, CHANNEL);

        let found: Vec<_> = scan
            .found
            .iter()
            .map(|it| (it.tag, it.body.as_ref()))
            .collect();
        assert_eq!(found, [(3, "{\"a\": 1}"), (4, "\"ü\""), (5, "")]);
        assert!(scan.found[0].is_redelivered);
        assert_eq!(
            (scan.used, scan.frames, scan.is_foreign),
            (bytes.len(), 9, false)
        );
    }

    #[test]
    fn a_body_in_several_frames_is_put_together() {
        let bytes = delivered(1, b"\"0123456789\"", 12);

        let scan = deliveries(&bytes, CHANNEL);

        assert_eq!(scan.found[0].body, "\"0123456789\"");
        assert_eq!((scan.used, scan.frames), (bytes.len(), 5));
    }

    #[test]
    fn what_has_not_arrived_whole_is_waited_for_wherever_it_was_cut() {
        let first = delivered(1, b"\"0123456789\"", 12);
        let bytes = [first.clone(), delivered(2, b"{}", 0)].concat();

        for cut in 0..bytes.len() {
            let scan = deliveries(&bytes[..cut], CHANNEL);
            let whole = usize::from(cut >= first.len());
            assert_eq!(scan.found.len(), whole, "cut at {cut}");
            assert_eq!(scan.used, whole * first.len(), "cut at {cut}");
            assert!(!scan.is_foreign, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_unusual_is_left_whole_to_py_amqp() {
        let good = delivered(1, b"{}", 0);
        let mut torn = good.clone();
        *torn.last_mut().unwrap() = 0;
        let mut not_text = good.clone();
        let at = not_text.len() - 3;
        not_text[at] = 0xFF;
        let mut gzip = good.clone();
        let at = gzip.windows(5).position(|it| it == b"utf-8").unwrap();
        gzip[at..at + 5].copy_from_slice(b"bytes");
        let cancel = framed(METHOD, CHANNEL, &[0, 60, 0, 30, 1, b'1', 0]);
        let interrupted = [&good[..good.len() - 10], &HEARTBEAT_FRAME[..]].concat();

        for (what, bytes) in [
            ("frame end", torn),
            ("not UTF-8", not_text),
            ("another encoding", gzip),
            ("another method", cancel),
            ("a heartbeat inside of a message", interrupted),
        ] {
            let bytes = [good.clone(), bytes].concat();
            let scan = deliveries(&bytes, CHANNEL);
            assert_eq!((scan.found.len(), scan.used), (1, good.len()), "{what}");
            assert!(scan.is_foreign, "{what}");
        }
        let scan = deliveries(&good, 2);
        assert_eq!((scan.used, scan.is_foreign), (0, true), "another channel");
    }

    #[test]
    fn a_delivery_with_headers_is_foreign() {
        let mut bytes = delivered(1, b"{}", 0);
        let at = bytes.windows(5).position(|it| it == b"utf-8").unwrap() + 5;
        bytes[at + 3] = 1;

        assert!(deliveries(&bytes, CHANNEL).is_foreign);
    }

    #[test]
    fn a_message_too_long_to_be_looked_at_again_and_again_is_foreign_until_it_is_there() {
        let body = vec![b'1'; LONGEST + 1];
        let bytes = delivered(1, &body, 131_072);

        assert!(deliveries(&bytes[..bytes.len() - 1], CHANNEL).is_foreign);
        assert_eq!(deliveries(&bytes, CHANNEL).found[0].body.len(), body.len());
    }

    #[test]
    fn confirms_are_found_and_nothing_else_is() {
        let mut multiple = ack(CHANNEL, 9);
        let at = multiple.len() - 2;
        multiple[at] = 1;
        let nack = framed(METHOD, CHANNEL, &[0, 60, 0, 120, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let bytes = [
            ack(CHANNEL, 7),
            HEARTBEAT_FRAME.to_vec(),
            multiple,
            nack.clone(),
        ]
        .concat();

        let scan = confirms(&bytes, CHANNEL);

        let found: Vec<_> = scan
            .found
            .iter()
            .map(|it| (it.tag, it.is_multiple))
            .collect();
        assert_eq!(found, [(7, false), (9, true)]);
        assert_eq!(
            (scan.used, scan.is_foreign),
            (bytes.len() - nack.len(), true)
        );
    }

    #[test]
    fn a_name_that_amqp_has_no_room_for_is_refused() {
        let refused = publish(CHANNEL, &"q".repeat(256), "1", true, b"{}", 0);

        assert_eq!(refused, Err(NameTooLong { length: 256 }));
    }
}
