//! Decodes the framing of a chunked body, byte by byte where it is framing.
//!
//! Owns the rules of RFC 9112 section 7.1 and the bounds on what is not data: extensions and
//! trailers. Never keeps bytes: [`super::Decoder`] is told where the data lies.

use super::{Limits, Refusal, is_control, is_token};

/// Bytes of one chunk-size line, extension included.
const LINE_BYTES: u16 = 256;
/// Bytes of all extensions of one body.
const EXTENSION_BYTES: u32 = 16_384;
/// Bytes of all trailers of one body.
const TRAILER_BYTES: u32 = 16_384;
/// A size that may not take another digit: the next one could overflow what a file can hold.
const SIZE_FULL: u64 = 1 << 56;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the digits of a chunk's size.
    Size,
    /// In white space that only an extension may follow (RFC 9112 section 7.1.1, `BWS`).
    BeforeExtension,
    /// After the semicolon of an extension, in front of its name.
    BeforeName,
    Name,
    /// In white space after the name.
    AfterName,
    /// After the equals sign, in front of the value.
    BeforeValue,
    Token,
    Quoted,
    /// After a backslash in a quoted value.
    QuotedPair,
    /// After the quotation mark that ends a value.
    AfterQuoted,
    /// After the CR of a chunk-size line.
    SizeEnd,
    /// In a chunk's data.
    Data,
    /// After the data: a CR, then a LF.
    DataCr,
    DataLf,
    /// At the start of a trailer line, or the blank line that ends the body.
    Trailer,
    TrailerName,
    TrailerValue,
    /// After the CR of a trailer line.
    TrailerEnd,
    /// After the CR of the blank line.
    LastLf,
}

/// What follows in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// That many bytes of data.
    Data(usize),
    /// Nothing: the body is complete.
    End,
    /// More bytes have to come first.
    Missing,
}

/// How far a chunked body was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunked {
    at: At,
    /// The chunk's size while it is read, then what is left of its data.
    size: u64,
    /// Bytes of the current chunk-size line.
    line: u16,
    extensions: u32,
    trailers: u32,
    /// Bytes of data that may still be announced.
    room: u64,
    trailer_lines: usize,
    most_trailer_lines: usize,
}

impl Chunked {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            at: At::Size,
            size: 0,
            line: 0,
            extensions: 0,
            trailers: 0,
            room: limits.body.unwrap_or(u64::MAX),
            trailer_lines: 0,
            most_trailer_lines: limits.headers,
        }
    }

    /// Reads on in the body: how many bytes of framing stand at the start of `bytes`, and what
    /// follows them.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(usize, Next), Refusal> {
        let mut at = 0;
        while at < bytes.len() {
            if self.at == At::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let count = left.min(bytes.len() - at);
                self.size -= count as u64;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                return Ok((at, Next::Data(count)));
            }
            at += 1;
            if self.step(bytes[at - 1])? {
                return Ok((at, Next::End));
            }
        }
        Ok((at, Next::Missing))
    }

    /// One byte of framing; true when it is the body's last.
    fn step(&mut self, byte: u8) -> Result<bool, Refusal> {
        self.at = match self.at {
            At::Size => self.size_byte(byte)?,
            At::BeforeExtension
            | At::BeforeName
            | At::Name
            | At::AfterName
            | At::BeforeValue
            | At::Token
            | At::Quoted
            | At::QuotedPair
            | At::AfterQuoted => self.extension_byte(byte)?,
            At::SizeEnd if byte == b'\n' => {
                self.line = 0;
                self.room = self
                    .room
                    .checked_sub(self.size)
                    .ok_or(Refusal::BodyTooLarge)?;
                if self.size == 0 {
                    At::Trailer
                } else {
                    At::Data
                }
            }
            At::DataCr if byte == b'\r' => At::DataLf,
            At::DataLf if byte == b'\n' => At::Size,
            At::LastLf if byte == b'\n' => return Ok(true),
            At::Trailer | At::TrailerName | At::TrailerValue | At::TrailerEnd => {
                self.trailer_byte(byte)?
            }
            At::SizeEnd | At::Data | At::DataCr | At::DataLf | At::LastLf => {
                return Err(Refusal::Chunk);
            }
        };
        Ok(false)
    }

    fn size_byte(&mut self, byte: u8) -> Result<At, Refusal> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' | b'A'..=b'F' => (byte | 0x20) - b'a' + 10,
            b'\r' if self.line > 0 => return Ok(At::SizeEnd),
            b';' if self.line > 0 => return self.count(At::BeforeName),
            b' ' | b'\t' if self.line > 0 => return self.count(At::BeforeExtension),
            _ => return Err(Refusal::Chunk),
        };
        self.line += 1;
        if self.size >= SIZE_FULL || self.line > LINE_BYTES {
            return Err(Refusal::Chunk);
        }
        self.size = self.size << 4 | u64::from(digit);
        Ok(At::Size)
    }

    fn extension_byte(&mut self, byte: u8) -> Result<At, Refusal> {
        let is_blank = matches!(byte, b' ' | b'\t');
        let next = match (self.at, byte) {
            (At::Name | At::Token | At::AfterQuoted, b'\r') => return Ok(At::SizeEnd),
            (
                At::BeforeExtension | At::Name | At::AfterName | At::Token | At::AfterQuoted,
                b';',
            ) => At::BeforeName,
            (At::Name | At::AfterName, b'=') => At::BeforeValue,
            (At::BeforeValue, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::AfterQuoted,
            (At::Quoted, b'\\') => At::QuotedPair,
            (At::Quoted | At::QuotedPair, _) if !is_control(byte) => At::Quoted,
            (At::Name, _) if is_blank => At::AfterName,
            (At::Token | At::AfterQuoted, _) if is_blank => At::BeforeExtension,
            (
                same @ (At::BeforeExtension | At::BeforeName | At::AfterName | At::BeforeValue),
                _,
            ) if is_blank => same,
            (At::BeforeName | At::Name, _) if is_token(byte) => At::Name,
            (At::BeforeValue | At::Token, _) if is_token(byte) => At::Token,
            _ => return Err(Refusal::Chunk),
        };
        self.count(next)
    }

    /// Counts one byte of an extension.
    fn count(&mut self, next: At) -> Result<At, Refusal> {
        self.line += 1;
        self.extensions += 1;
        if self.line > LINE_BYTES || self.extensions > EXTENSION_BYTES {
            return Err(Refusal::Chunk);
        }
        Ok(next)
    }

    fn trailer_byte(&mut self, byte: u8) -> Result<At, Refusal> {
        let next = match (self.at, byte) {
            (At::Trailer, b'\r') => return Ok(At::LastLf),
            (At::Trailer, _) if is_token(byte) => {
                self.trailer_lines += 1;
                if self.trailer_lines > self.most_trailer_lines {
                    return Err(Refusal::HeadersTooLarge);
                }
                At::TrailerName
            }
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerName, _) if is_token(byte) => At::TrailerName,
            (At::TrailerValue, b'\r') => return Ok(At::TrailerEnd),
            (At::TrailerValue, _) if !is_control(byte) => At::TrailerValue,
            (At::TrailerEnd, b'\n') => return Ok(At::Trailer),
            _ => return Err(Refusal::Chunk),
        };
        self.trailers += 1;
        if self.trailers > TRAILER_BYTES {
            return Err(Refusal::HeadersTooLarge);
        }
        Ok(next)
    }
}
