//! What a connection still has to send, in order: bytes in memory and stretches of files.
//!
//! Owns the queue and its count of bytes. Never sends anything itself.

use crate::wsgi::FilePart;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Buffers that are sent with one call.
pub(super) const MOST_SLICES: usize = 16;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    segments: VecDeque<Segment>,
    memory: u64,
    files: u64,
}

#[derive(Debug)]
enum Segment {
    Bytes(Bytes),
    File(Box<FilePart>),
}

/// What is to be sent next.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for the length of one call, on the stack"
)]
pub(super) enum Front<'a> {
    Nothing,
    /// Some of the buffers at the front, none of them empty.
    Slices([IoSlice<'a>; MOST_SLICES], usize),
    File(&'a mut FilePart),
}

impl Outgoing {
    pub(super) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.memory += bytes.len() as u64;
            self.segments.push_back(Segment::Bytes(bytes));
        }
    }

    pub(super) fn push_file(&mut self, part: FilePart) {
        if part.length > 0 {
            self.files += part.length;
            self.segments.push_back(Segment::File(Box::new(part)));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes that are held in memory.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// All bytes.
    pub(super) fn len(&self) -> u64 {
        self.memory + self.files
    }

    pub(super) fn front(&mut self) -> Front<'_> {
        if self.segments.is_empty() {
            return Front::Nothing;
        }
        if matches!(self.segments[0], Segment::File(_)) {
            return match &mut self.segments[0] {
                Segment::File(part) => Front::File(part),
                Segment::Bytes(_) => Front::Nothing,
            };
        }
        let mut slices = [IoSlice::new(&[]); MOST_SLICES];
        let mut count = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            let Segment::Bytes(bytes) = segment else {
                break;
            };
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        Front::Slices(slices, count)
    }

    /// `count` bytes of what [`Outgoing::front`] gave were sent.
    pub(super) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let taken = match self.segments.front_mut() {
                None => return,
                Some(Segment::Bytes(bytes)) => {
                    let taken = count.min(bytes.len());
                    bytes.advance(taken);
                    self.memory -= taken as u64;
                    if bytes.is_empty() {
                        self.segments.pop_front();
                    }
                    taken
                }
                Some(Segment::File(part)) => {
                    let taken = usize::try_from(part.length).map_or(count, |left| left.min(count));
                    part.offset += taken as u64;
                    part.length -= taken as u64;
                    self.files -= taken as u64;
                    if part.length == 0 {
                        self.segments.pop_front();
                    }
                    taken
                }
            };
            count -= taken;
        }
    }

    /// Replaces `bytes.len()` bytes of the file at the front by these, which were read from it.
    pub(super) fn read_from_file(&mut self, bytes: Bytes) {
        self.advance(bytes.len());
        self.memory += bytes.len() as u64;
        self.segments.push_front(Segment::Bytes(bytes));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
