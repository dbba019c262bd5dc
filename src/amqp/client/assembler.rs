//! What has arrived on one connection: bytes in, methods and whole contents out.
//!
//! Owns the bytes of frames and contents that are not complete. Knows no socket and decides nothing.
//! What breaks the protocol ends it: nothing after a [`Violation`] is read.
//!
//! Rules: AMQP 0-9-1 sections 2.3.5 and 4.2 (frames, contents).

use std::collections::HashMap;

use super::methods::{FRAME_ERROR, Method, Properties, SYNTAX_ERROR, UNEXPECTED_FRAME, Violation};
use crate::amqp::frames::{BODY, END, HEADER, HEARTBEAT, METHOD, OVERHEAD, Reader};

/// Bytes that may be kept though they are read already.
const SLACK: usize = 64 * 1024;

/// Something whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Heartbeat,
    Method(u16, Method),
    /// A method with the content that followed it.
    Content(u16, Method, Properties, Vec<u8>),
}

/// A content of which frames are missing.
struct Partial {
    method: Method,
    properties: Option<Properties>,
    body: Vec<u8>,
}

impl Partial {
    fn is_whole(&self) -> bool {
        let length = self.properties.as_ref().map(|properties| properties.length);
        length == Some(self.body.len() as u64)
    }
}

/// See the head of this file.
pub(super) struct Assembler {
    bytes: Vec<u8>,
    /// How many of them are read.
    used: usize,
    /// The longest frame, in bytes.
    frame_max: usize,
    partial: HashMap<u16, Partial>,
}

impl Assembler {
    pub(super) fn new(frame_max: usize) -> Self {
        Self {
            bytes: Vec::new(),
            used: 0,
            frame_max,
            partial: HashMap::new(),
        }
    }

    /// Frames may be of `frame_max` bytes from now on.
    pub(super) fn agree(&mut self, frame_max: usize) {
        self.frame_max = frame_max;
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.used == self.bytes.len() || self.used > SLACK {
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next that is whole; none where the rest has not arrived.
    pub(super) fn next(&mut self) -> Result<Option<Incoming>, Violation> {
        loop {
            let Some((kind, channel, payload)) = self.frame()? else {
                return Ok(None);
            };
            let payload = self.bytes.get(payload).unwrap_or_default();
            let partial = self.partial.get_mut(&channel);
            match (kind, partial) {
                (HEARTBEAT, _) => return Ok(Some(Incoming::Heartbeat)),
                (METHOD, None) => {
                    let method = Method::read(payload)?;
                    if !method.has_content() {
                        return Ok(Some(Incoming::Method(channel, method)));
                    }
                    let partial = Partial {
                        method,
                        properties: None,
                        body: Vec::new(),
                    };
                    self.partial.insert(channel, partial);
                    continue;
                }
                // A broker may close in the middle of a content.
                (METHOD, Some(_)) => {
                    let method = Method::read(payload)?;
                    if !matches!(method, Method::ChannelClose(_) | Method::Close(_)) {
                        return Err(unexpected("a method inside a content", channel));
                    }
                    self.partial.remove(&channel);
                    return Ok(Some(Incoming::Method(channel, method)));
                }
                (HEADER, Some(partial)) if partial.properties.is_none() => {
                    partial.properties = Some(Properties::read(payload)?);
                }
                (BODY, Some(partial)) => {
                    let length = partial.properties.as_ref().map(|known| known.length);
                    let size = (partial.body.len() + payload.len()) as u64;
                    if length.is_none_or(|length| size > length) {
                        return Err(unexpected("a body that is longer than announced", channel));
                    }
                    partial.body.extend_from_slice(payload);
                }
                (HEADER | BODY, _) => {
                    return Err(unexpected("a content without a method", channel));
                }
                _ => {
                    let text = format!("a frame of type {kind}");
                    return Err(Violation::new(FRAME_ERROR, text));
                }
            }
            if self.partial.get(&channel).is_some_and(Partial::is_whole)
                && let Some(whole) = self.partial.remove(&channel)
            {
                let properties = whole.properties.unwrap_or_default();
                return Ok(Some(Incoming::Content(
                    channel,
                    whole.method,
                    properties,
                    whole.body,
                )));
            }
        }
    }

    /// Type, channel and place of the payload of the next frame.
    fn frame(&mut self) -> Result<Option<(u8, u16, std::ops::Range<usize>)>, Violation> {
        let rest = self.bytes.get(self.used..).unwrap_or_default();
        if rest.starts_with(b"AMQP") {
            let text = "the broker wants another version of the protocol";
            return Err(Violation::new(FRAME_ERROR, text));
        }
        let mut reader = Reader(rest);
        let head = (reader.u8(), reader.u16(), reader.u32());
        let (Some(kind), Some(channel), Some(size)) = head else {
            return Ok(None);
        };
        let size = size as usize;
        if size > self.frame_max.saturating_sub(OVERHEAD) {
            let text = format!("a frame of {size} bytes, agreed are {}", self.frame_max);
            return Err(Violation::new(FRAME_ERROR, text));
        }
        let (Some(_), Some(end)) = (reader.bytes(size), reader.u8()) else {
            return Ok(None);
        };
        if end != END {
            let text = format!("a frame that ends with {end:#04x}");
            return Err(Violation::new(FRAME_ERROR, text));
        }
        if kind == HEARTBEAT && (channel, size) != (0, 0) {
            return Err(Violation::new(
                SYNTAX_ERROR,
                "a heartbeat that has a content",
            ));
        }
        let start = self.used + OVERHEAD - 1;
        self.used += size + OVERHEAD;
        Ok(Some((kind, channel, start..start + size)))
    }
}

fn unexpected(what: &str, channel: u16) -> Violation {
    Violation::new(UNEXPECTED_FRAME, format!("{what}, on channel {channel}"))
}
