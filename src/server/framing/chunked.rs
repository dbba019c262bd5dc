//! Checks the framing of a chunked body, byte by byte where it is framing.
//!
//! Owns the rules of RFC 9112 section 7.1 and the bounds on what is not data: extensions and
//! trailers. Never keeps bytes: hyper decodes what has passed.

use super::{Limits, Refusal, is_control, is_token};

/// Bytes of one chunk-size line, extension included.
const LINE_BYTES: u16 = 256;
/// Bytes of all extensions of one body.
const EXTENSION_BYTES: u32 = 16_384;
/// Bytes of all trailers of one body.
const TRAILER_BYTES: u32 = 16_384;
/// Digits of a chunk's size; sixteen could overflow what a file can hold.
const SIZE_DIGITS: u16 = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the digits of a chunk's size.
    Size,
    /// In the extension behind it.
    Extension,
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
            trailer_lines: 0,
            most_trailer_lines: limits.headers,
        }
    }

    /// Reads on in the body: how many bytes may pass, and whether they end it.
    pub(super) fn read(&mut self, bytes: &[u8]) -> (usize, Result<bool, Refusal>) {
        let mut at = 0;
        while at < bytes.len() {
            if self.at == At::Data {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let count = left.min(bytes.len() - at);
                at += count;
                self.size -= count as u64;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            match self.step(bytes[at]) {
                Ok(false) => at += 1,
                Ok(true) => return (at + 1, Ok(true)),
                Err(refusal) => return (at, Err(refusal)),
            }
        }
        (at, Ok(false))
    }

    /// One byte of framing; true when it is the body's last.
    fn step(&mut self, byte: u8) -> Result<bool, Refusal> {
        self.at = match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') if self.line < SIZE_DIGITS => {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    _ => (byte | 0x20) - b'a' + 10,
                };
                self.size = self.size << 4 | u64::from(digit);
                self.line += 1;
                At::Size
            }
            (At::Size, b'\r') if self.line > 0 => At::SizeEnd,
            (At::Size, b';') if self.line > 0 => At::Extension,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::Extension, _) if !is_control(byte) => {
                self.line += 1;
                self.extensions += 1;
                if self.line > LINE_BYTES || self.extensions > EXTENSION_BYTES {
                    return Err(Refusal::Chunk);
                }
                At::Extension
            }
            (At::SizeEnd, b'\n') => {
                self.line = 0;
                if self.size == 0 {
                    At::Trailer
                } else {
                    At::Data
                }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::Trailer, b'\r') => At::LastLf,
            (At::Trailer, _) if is_token(byte) => {
                self.trailer_lines += 1;
                if self.trailer_lines > self.most_trailer_lines {
                    return Err(Refusal::HeadersTooLarge);
                }
                self.trailer_byte()?;
                At::TrailerName
            }
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerName, _) if is_token(byte) => {
                self.trailer_byte()?;
                At::TrailerName
            }
            (At::TrailerValue, b'\r') => At::TrailerEnd,
            (At::TrailerValue, _) if !is_control(byte) => {
                self.trailer_byte()?;
                At::TrailerValue
            }
            (At::TrailerEnd, b'\n') => At::Trailer,
            (At::LastLf, b'\n') => return Ok(true),
            _ => return Err(Refusal::Chunk),
        };
        Ok(false)
    }

    fn trailer_byte(&mut self) -> Result<(), Refusal> {
        self.trailers += 1;
        if self.trailers > TRAILER_BYTES {
            Err(Refusal::HeadersTooLarge)
        } else {
            Ok(())
        }
    }
}
