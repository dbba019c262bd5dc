//! The methods and content headers that a client and a broker exchange, as bytes.
//!
//! Owns their layout: what is sent is built, what arrives is read. Knows no socket, and keeps nothing
//! of earlier frames. Bytes that are none of these methods are a [`Violation`], never a guess.
//!
//! Rules: AMQP 0-9-1 sections 1.4 to 1.8 (classes and methods) and 4.2 (their wire format); RabbitMQ's
//! extensions `confirm.select`, `basic.nack`, `basic.cancel` to clients, `connection.blocked`, and its
//! types of table fields.

use crate::amqp::frames::{
    BASIC, BODY, CONTENT_ENCODING, CONTENT_TYPE, HAS_CONTENT_ENCODING, HAS_CONTENT_TYPE,
    HAS_CORRELATION_ID, HAS_DELIVERY_MODE, HAS_EXPIRATION, HAS_HEADERS, HAS_MESSAGE_ID, HAS_MORE,
    HAS_PRIORITY, HAS_REPLY_TO, HEADER, METHOD, OVERHEAD, PERSISTENT, Reader, put_frame,
};

/// What a client sends first.
pub(super) const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";

const CONNECTION: u16 = 10;
const CHANNEL: u16 = 20;
const EXCHANGE: u16 = 40;
const QUEUE: u16 = 50;
const CONFIRM: u16 = 85;

/// Reply codes of section 1.2 that are sent from here.
pub(super) const FRAME_ERROR: u16 = 501;
pub(super) const SYNTAX_ERROR: u16 = 502;
pub(super) const COMMAND_INVALID: u16 = 503;
pub(super) const UNEXPECTED_FRAME: u16 = 505;
/// A broker that stops, or an operator, closes connections; nothing is wrong with what was sent.
pub(super) const CONNECTION_FORCED: u16 = 320;
/// `basic.publish`.
pub(super) const BASIC_PUBLISH: (u16, u16) = (BASIC, 40);
/// Reply codes that are looked at here.
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const PRECONDITION_FAILED: u16 = 406;

/// The value of a table's field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Type `t`.
    Bool(bool),
    /// Type `I`, or `l` where it takes more than 32 bits.
    Int(i64),
    /// Type `S`.
    Text(String),
    /// Type `F`.
    Table(Table),
}

/// Fields in the order in which they are sent.
pub type Table = Vec<(String, Value)>;

/// Why a peer has closed a connection or a channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) text: String,
    /// Class and number of the method that is to blame; zeros where the peer names none.
    pub(super) method: (u16, u16),
    /// What was declared, where this is the answer to that.
    pub(super) what: String,
}

/// What arrived breaks the protocol; the code is the one to close the connection with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the broker's bytes are no AMQP 0-9-1 ({code}): {text}")]
pub(super) struct Violation {
    pub(super) code: u16,
    pub(super) text: String,
}

impl Violation {
    pub(super) fn new(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// Where a message was sent to; what is no UTF-8 in it is replaced. Empty where the broker does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// A method that a broker sends to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Method {
    Start {
        mechanisms: String,
    },
    Secure,
    Tune {
        channel_max: u16,
        frame_max: u32,
        heartbeat: u16,
    },
    OpenOk,
    Close(Refusal),
    CloseOk,
    Blocked(String),
    Unblocked,
    ChannelOpenOk,
    Flow {
        is_active: bool,
    },
    ChannelClose(Refusal),
    ChannelCloseOk,
    ExchangeDeclareOk,
    QueueDeclareOk,
    QueueBindOk,
    QueueDeleteOk,
    ConsumeOk,
    QosOk,
    /// The consumer's number; 0 for a tag that is none.
    Cancel {
        consumer: u16,
    },
    CancelOk,
    Return {
        code: u16,
        text: String,
    },
    Deliver {
        /// As that of [`Method::Cancel`].
        consumer: u16,
        tag: u64,
        source: Source,
    },
    Ack {
        tag: u64,
        is_multiple: bool,
    },
    Nack {
        tag: u64,
        is_multiple: bool,
    },
    SelectOk,
}

impl Method {
    /// A content follows.
    pub(super) fn has_content(&self) -> bool {
        matches!(self, Self::Return { .. } | Self::Deliver { .. })
    }

    /// Reads the payload of a method frame.
    pub(super) fn read(payload: &[u8]) -> Result<Self, Violation> {
        let mut reader = Reader(payload);
        let (Some(class), Some(method)) = (reader.u16(), reader.u16()) else {
            return Err(Violation::new(SYNTAX_ERROR, "a method without a number"));
        };
        Self::arguments(class, method, &mut reader)?.ok_or_else(|| {
            let text = format!("method {class}.{method} is cut short");
            Violation::new(SYNTAX_ERROR, text)
        })
    }

    /// None where the arguments are incomplete.
    fn arguments(
        class: u16,
        method: u16,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Self>, Violation> {
        Ok(match (class, method) {
            (CONNECTION, 10) => Self::start(reader),
            (CONNECTION, 20) => Some(Self::Secure),
            (CONNECTION, 30) => Self::tune(reader),
            (CONNECTION, 41) => Some(Self::OpenOk),
            (CONNECTION, 50) => refusal(reader).map(Self::Close),
            (CONNECTION, 51) => Some(Self::CloseOk),
            (CONNECTION, 60) => text(reader).map(Self::Blocked),
            (CONNECTION, 61) => Some(Self::Unblocked),
            (CHANNEL, 11) => Some(Self::ChannelOpenOk),
            (CHANNEL, 20) => reader.u8().map(|bits| Self::Flow {
                is_active: bits & 1 != 0,
            }),
            (CHANNEL, 40) => refusal(reader).map(Self::ChannelClose),
            (CHANNEL, 41) => Some(Self::ChannelCloseOk),
            (EXCHANGE, 11) => Some(Self::ExchangeDeclareOk),
            (QUEUE, 11) => Some(Self::QueueDeclareOk),
            (QUEUE, 21) => Some(Self::QueueBindOk),
            (QUEUE, 41) => Some(Self::QueueDeleteOk),
            (CONFIRM, 11) => Some(Self::SelectOk),
            (BASIC, 11) => Some(Self::QosOk),
            (BASIC, 21) => Some(Self::ConsumeOk),
            (BASIC, 30) => consumer(reader).map(|consumer| Self::Cancel { consumer }),
            (BASIC, 31) => Some(Self::CancelOk),
            (BASIC, 50) => {
                refusal(reader).map(|Refusal { code, text, .. }| Self::Return { code, text })
            }
            (BASIC, 60) => Self::deliver(reader),
            (BASIC, 80) => settled(reader).map(|(tag, is_multiple)| Self::Ack { tag, is_multiple }),
            (BASIC, 120) => {
                settled(reader).map(|(tag, is_multiple)| Self::Nack { tag, is_multiple })
            }
            _ => {
                let text = format!("method {class}.{method} is not known here");
                return Err(Violation::new(COMMAND_INVALID, text));
            }
        })
    }

    fn start(reader: &mut Reader<'_>) -> Option<Self> {
        let (_major, _minor) = (reader.u8()?, reader.u8()?);
        let properties = reader.u32()?;
        reader.bytes(properties as usize)?;
        let length = reader.u32()?;
        let mechanisms = String::from_utf8_lossy(reader.bytes(length as usize)?).into_owned();
        Some(Self::Start { mechanisms })
    }

    fn tune(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self::Tune {
            channel_max: reader.u16()?,
            frame_max: reader.u32()?,
            heartbeat: reader.u16()?,
        })
    }

    fn deliver(reader: &mut Reader<'_>) -> Option<Self> {
        let (consumer, tag) = (consumer(reader)?, reader.u64()?);
        let _is_redelivered = reader.u8();
        Some(Self::Deliver {
            consumer,
            tag,
            source: Source {
                exchange: text(reader).unwrap_or_default(),
                routing_key: text(reader).unwrap_or_default(),
            },
        })
    }
}

fn text(reader: &mut Reader<'_>) -> Option<String> {
    Some(String::from_utf8_lossy(reader.short()?).into_owned())
}

/// The number that [`consume`] has made a tag of.
fn consumer(reader: &mut Reader<'_>) -> Option<u16> {
    let number = str::from_utf8(reader.short()?).ok();
    Some(number.and_then(|tag| tag.parse().ok()).unwrap_or(0))
}

fn refusal(reader: &mut Reader<'_>) -> Option<Refusal> {
    Some(Refusal {
        code: reader.u16()?,
        text: text(reader)?,
        method: (reader.u16().unwrap_or(0), reader.u16().unwrap_or(0)),
        what: String::new(),
    })
}

fn settled(reader: &mut Reader<'_>) -> Option<(u64, bool)> {
    Some((reader.u64()?, reader.u8()? & 1 != 0))
}

/// What a content header says of its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// Of the body, in bytes.
    pub length: u64,
    /// Empty where the sender gave none.
    pub content_type: String,
    /// Empty where the sender gave none.
    pub content_encoding: String,
    /// The header `compression`, by which kombu says how a body was compressed.
    pub compression: Option<String>,
    /// The header `x-stream-offset`, by which a stream says where a message is in it.
    pub stream_offset: Option<i64>,
    /// The header `x-delivery-count`: how often a quorum queue has delivered a message before.
    pub delivery_count: Option<i64>,
    /// Empty where the sender gave none.
    pub message_id: String,
    /// The rest of the header cannot be read, and all but the length is empty. Brokers pass such headers
    /// on, each time that they deliver the message.
    pub is_unreadable: bool,
}

impl Properties {
    /// The body is JSON text as it stands.
    pub(super) fn is_plain_json(&self) -> bool {
        self.content_type == CONTENT_TYPE.1
            && self.content_encoding == CONTENT_ENCODING.1
            && self.compression.is_none()
            && !self.is_unreadable
    }

    /// Reads the payload of a content header frame. Only without a length is it unknown what follows.
    pub(super) fn read(payload: &[u8]) -> Result<Self, Violation> {
        let mut reader = Reader(payload);
        let (_class, _weight, length) = (reader.u16(), reader.u16(), reader.u64());
        let Some(length) = length else {
            let text = "a content header that is cut short";
            return Err(Violation::new(SYNTAX_ERROR, text));
        };
        Ok(Self::fields(length, &mut reader).unwrap_or_else(|| Self {
            length,
            is_unreadable: true,
            ..Self::default()
        }))
    }

    fn fields(length: u64, reader: &mut Reader<'_>) -> Option<Self> {
        let flags = reader.u16()?;
        let mut found = Self {
            length,
            ..Self::default()
        };
        if flags & HAS_MORE != 0 {
            return None;
        }
        if flags & HAS_CONTENT_TYPE != 0 {
            found.content_type = text(reader)?;
        }
        if flags & HAS_CONTENT_ENCODING != 0 {
            found.content_encoding = text(reader)?;
        }
        if flags & HAS_HEADERS != 0 {
            let size = reader.u32()?;
            found.read_headers(Reader(reader.bytes(size as usize)?))?;
        }
        for flag in [HAS_DELIVERY_MODE, HAS_PRIORITY] {
            if flags & flag != 0 {
                reader.u8()?;
            }
        }
        for flag in [HAS_CORRELATION_ID, HAS_REPLY_TO, HAS_EXPIRATION] {
            if flags & flag != 0 {
                reader.short()?;
            }
        }
        if flags & HAS_MESSAGE_ID != 0 {
            found.message_id = text(reader)?;
        }
        Some(found)
    }

    /// Notes the headers that are looked at here; none for bytes that are no table.
    fn read_headers(&mut self, mut table: Reader<'_>) -> Option<()> {
        while !table.0.is_empty() {
            let name = table.short()?;
            let kind = table.u8()?;
            let size = match kind {
                b't' | b'b' | b'B' => 1,
                b's' | b'u' | b'U' => 2,
                b'I' | b'i' | b'f' => 4,
                b'l' | b'L' | b'd' | b'T' => 8,
                b'D' => 5,
                b'V' => 0,
                b'S' | b'x' | b'F' | b'A' => table.u32()? as usize,
                _ => return None,
            };
            let value = table.bytes(size)?;
            match name {
                b"compression" if kind == b'S' && !value.is_empty() => {
                    self.compression = Some(String::from_utf8_lossy(value).into_owned());
                }
                b"x-stream-offset" => self.stream_offset = number(kind, value),
                b"x-delivery-count" => self.delivery_count = number(kind, value),
                _ => {}
            }
        }
        Some(())
    }
}

/// A signed number of a table, or one that RabbitMQ takes for signed.
fn number(kind: u8, value: &[u8]) -> Option<i64> {
    match (kind, value) {
        (b'b', &[byte]) => Some(i64::from(byte.cast_signed())),
        (b'B', &[byte]) => Some(i64::from(byte)),
        (b's' | b'U', &[a, b]) => Some(i64::from(i16::from_be_bytes([a, b]))),
        (b'u', &[a, b]) => Some(i64::from(u16::from_be_bytes([a, b]))),
        (b'I', &[a, b, c, d]) => Some(i64::from(i32::from_be_bytes([a, b, c, d]))),
        (b'i', &[a, b, c, d]) => Some(i64::from(u32::from_be_bytes([a, b, c, d]))),
        (b'l' | b'L', value) => Some(i64::from_be_bytes(value.try_into().ok()?)),
        _ => None,
    }
}

// ---- what is sent -------------------------------------------------------------------------------

pub(super) fn method(
    channel: u16,
    class: u16,
    id: u16,
    arguments: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    put_frame(&mut bytes, METHOD, channel, |bytes| {
        bytes.extend_from_slice(&class.to_be_bytes());
        bytes.extend_from_slice(&id.to_be_bytes());
        arguments(bytes);
    });
    bytes
}

/// A short string; what is beyond 255 bytes has been refused before, see [`fits`].
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let text = text.as_bytes();
    let text = text.get(..255).unwrap_or(text);
    bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(text);
}

/// A name that AMQP has room for.
pub(super) fn fits(name: &str) -> bool {
    u8::try_from(name.len()).is_ok()
}

fn put_long(bytes: &mut Vec<u8>, content: &[u8]) {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(content);
}

fn fields(table: &Table) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in table {
        put_text(&mut bytes, name);
        match value {
            Value::Bool(value) => bytes.extend_from_slice(&[b't', u8::from(*value)]),
            Value::Int(value) => {
                if let Ok(value) = i32::try_from(*value) {
                    bytes.push(b'I');
                    bytes.extend_from_slice(&value.to_be_bytes());
                } else {
                    bytes.push(b'l');
                    bytes.extend_from_slice(&value.to_be_bytes());
                }
            }
            Value::Text(value) => {
                bytes.push(b'S');
                put_long(&mut bytes, value.as_bytes());
            }
            Value::Table(value) => {
                bytes.push(b'F');
                put_long(&mut bytes, &fields(value));
            }
        }
    }
    bytes
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// RabbitMQ's own: a table of name and password.
    AmqPlain,
    /// RFC 4616.
    Plain,
    /// RFC 4422 appendix A: by the certificate of the connection.
    External,
}

impl Mechanism {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AmqPlain => "AMQPLAIN",
            Self::Plain => "PLAIN",
            Self::External => "EXTERNAL",
        }
    }

    fn response(self, user: &str, password: &str) -> Vec<u8> {
        match self {
            Self::AmqPlain => fields(&vec![
                ("LOGIN".to_owned(), Value::Text(user.to_owned())),
                ("PASSWORD".to_owned(), Value::Text(password.to_owned())),
            ]),
            Self::Plain => format!("\0{user}\0{password}").into_bytes(),
            Self::External => Vec::new(),
        }
    }
}

pub(super) fn start_ok(
    properties: &Table,
    mechanism: Mechanism,
    user: &str,
    password: &str,
) -> Vec<u8> {
    method(0, CONNECTION, 11, |bytes| {
        put_long(bytes, &fields(properties));
        put_text(bytes, mechanism.name());
        put_long(bytes, &mechanism.response(user, password));
        put_text(bytes, "en_US");
    })
}

pub(super) fn tune_ok(channel_max: u16, frame_max: u32, heartbeat: u16) -> Vec<u8> {
    method(0, CONNECTION, 31, |bytes| {
        bytes.extend_from_slice(&channel_max.to_be_bytes());
        bytes.extend_from_slice(&frame_max.to_be_bytes());
        bytes.extend_from_slice(&heartbeat.to_be_bytes());
    })
}

pub(super) fn open(virtual_host: &str) -> Vec<u8> {
    method(0, CONNECTION, 40, |bytes| {
        put_text(bytes, virtual_host);
        bytes.extend_from_slice(&[0, 0]); // reserved
    })
}

pub(super) fn close(code: u16, text: &str) -> Vec<u8> {
    method(0, CONNECTION, 50, |bytes| {
        bytes.extend_from_slice(&code.to_be_bytes());
        put_text(bytes, text);
        bytes.extend_from_slice(&[0; 4]); // no method is to blame
    })
}

pub(super) fn close_ok() -> Vec<u8> {
    method(0, CONNECTION, 51, |_| {})
}

pub(super) fn channel_open(channel: u16) -> Vec<u8> {
    method(channel, CHANNEL, 10, |bytes| bytes.push(0))
}

pub(super) fn flow_ok(channel: u16, is_active: bool) -> Vec<u8> {
    method(channel, CHANNEL, 21, |bytes| {
        bytes.push(u8::from(is_active));
    })
}

pub(super) fn channel_close(channel: u16) -> Vec<u8> {
    method(channel, CHANNEL, 40, |bytes| {
        bytes.extend_from_slice(&200_u16.to_be_bytes());
        bytes.extend_from_slice(&[0; 5]);
    })
}

pub(super) fn channel_close_ok(channel: u16) -> Vec<u8> {
    method(channel, CHANNEL, 41, |_| {})
}

/// How an exchange passes messages on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExchangeType {
    /// To the queues that are bound with the routing key.
    #[default]
    Topic,
    /// To all queues that are bound.
    Fanout,
}

impl ExchangeType {
    fn name(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Fanout => "fanout",
        }
    }
}

/// An exchange as it is declared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exchange {
    /// At most 255 bytes.
    pub name: String,
    /// Of `exchange.declare`.
    pub kind: ExchangeType,
    /// It outlives the broker's process.
    pub is_durable: bool,
    /// It goes with the last queue that is bound to it.
    pub is_auto_delete: bool,
}

pub(super) fn exchange_declare(channel: u16, exchange: &Exchange) -> Vec<u8> {
    method(channel, EXCHANGE, 10, |bytes| {
        bytes.extend_from_slice(&[0, 0]);
        put_text(bytes, &exchange.name);
        put_text(bytes, exchange.kind.name());
        bytes.push(u8::from(exchange.is_durable) << 1 | u8::from(exchange.is_auto_delete) << 2);
        put_long(bytes, &[]);
    })
}

/// Bits of `queue.declare`.
pub(super) const PASSIVE: u8 = 1;
pub(super) const DURABLE: u8 = 1 << 1;
pub(super) const AUTO_DELETE: u8 = 1 << 3;

pub(super) fn queue_declare(channel: u16, name: &str, bits: u8, arguments: &Table) -> Vec<u8> {
    method(channel, QUEUE, 10, |bytes| {
        bytes.extend_from_slice(&[0, 0]);
        put_text(bytes, name);
        bytes.push(bits);
        put_long(bytes, &fields(arguments));
    })
}

/// Has `queue` get what is sent to `exchange` with `routing_key`.
pub(super) fn queue_bind(channel: u16, queue: &str, exchange: &str, routing_key: &str) -> Vec<u8> {
    method(channel, QUEUE, 20, |bytes| {
        bytes.extend_from_slice(&[0, 0]);
        put_text(bytes, queue);
        put_text(bytes, exchange);
        put_text(bytes, routing_key);
        bytes.push(0);
        put_long(bytes, &[]);
    })
}

pub(super) fn queue_delete(channel: u16, name: &str) -> Vec<u8> {
    method(channel, QUEUE, 40, |bytes| {
        bytes.extend_from_slice(&[0, 0]);
        put_text(bytes, name);
        bytes.push(0);
    })
}

/// How many deliveries of each consumer may be unsettled.
pub(super) fn qos(channel: u16, count: u16) -> Vec<u8> {
    method(channel, BASIC, 10, |bytes| {
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&count.to_be_bytes());
        bytes.push(0);
    })
}

/// Has what is in `queue` delivered to the consumer of that number, from 1 on.
pub(super) fn consume(channel: u16, queue: &str, consumer: u16, arguments: &Table) -> Vec<u8> {
    method(channel, BASIC, 20, |bytes| {
        bytes.extend_from_slice(&[0, 0]);
        put_text(bytes, queue);
        put_text(bytes, &consumer.to_string());
        bytes.push(0);
        put_long(bytes, &fields(arguments));
    })
}

/// Acknowledges all deliveries up to `tag`.
pub(super) fn ack_up_to(channel: u16, tag: u64) -> Vec<u8> {
    method(channel, BASIC, 80, |bytes| {
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.push(1);
    })
}

pub(super) fn cancel(channel: u16, consumer: u16) -> Vec<u8> {
    method(channel, BASIC, 30, |bytes| {
        put_text(bytes, &consumer.to_string());
        bytes.push(0);
    })
}

/// Acknowledges one delivery.
pub(super) fn ack(channel: u16, tag: u64) -> Vec<u8> {
    method(channel, BASIC, 80, |bytes| {
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.push(0);
    })
}

/// Drops one delivery.
pub(super) fn reject(channel: u16, tag: u64) -> Vec<u8> {
    method(channel, BASIC, 90, |bytes| {
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.push(0);
    })
}

/// Gives one delivery back to its queue, by `basic.nack`: quorum queues count what `basic.reject`
/// gives back as an attempt that failed, this only up to RabbitMQ 4.2.
pub(super) fn requeue(channel: u16, tag: u64) -> Vec<u8> {
    method(channel, BASIC, 120, |bytes| {
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.push(2);
    })
}

pub(super) fn confirm_select(channel: u16) -> Vec<u8> {
    method(channel, CONFIRM, 10, |bytes| bytes.push(0))
}

/// What is published, beside its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publication<'a> {
    pub(super) exchange: &'a str,
    pub(super) routing_key: &'a str,
    pub(super) message_id: &'a str,
    /// The broker sends back what no queue takes.
    pub(super) is_mandatory: bool,
    /// Milliseconds in decimal digits.
    pub(super) expiration: Option<&'a str>,
    pub(super) body: &'a [u8],
}

/// A message, in frames of at most `frame_max` bytes; 0 means that there is no limit.
pub(super) fn put_publication(
    bytes: &mut Vec<u8>,
    channel: u16,
    what: Publication<'_>,
    frame_max: usize,
) {
    bytes.reserve(192 + what.body.len());
    put_frame(bytes, METHOD, channel, |bytes| {
        bytes.extend_from_slice(&BASIC.to_be_bytes());
        bytes.extend_from_slice(&40_u16.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        put_text(bytes, what.exchange);
        put_text(bytes, what.routing_key);
        bytes.push(u8::from(what.is_mandatory));
    });
    put_frame(bytes, HEADER, channel, |bytes| {
        bytes.extend_from_slice(&BASIC.to_be_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&(what.body.len() as u64).to_be_bytes());
        let mut flags = HAS_CONTENT_TYPE
            | HAS_CONTENT_ENCODING
            | HAS_HEADERS
            | HAS_DELIVERY_MODE
            | HAS_PRIORITY
            | HAS_MESSAGE_ID;
        if what.expiration.is_some() {
            flags |= HAS_EXPIRATION;
        }
        bytes.extend_from_slice(&flags.to_be_bytes());
        put_text(bytes, CONTENT_TYPE.1);
        put_text(bytes, CONTENT_ENCODING.1);
        bytes.extend_from_slice(&[0, 0, 0, 0, PERSISTENT, 0]); // no headers; priority 0
        if let Some(expiration) = what.expiration {
            put_text(bytes, expiration);
        }
        put_text(bytes, what.message_id);
    });
    let piece = match frame_max {
        0 => usize::MAX,
        size => size.saturating_sub(OVERHEAD).max(1),
    };
    for piece in what.body.chunks(piece) {
        put_frame(bytes, BODY, channel, |bytes| {
            bytes.extend_from_slice(piece);
        });
    }
}
