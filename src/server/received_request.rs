//! A request as it came out of a connection, with as much of its body as has come.
//!
//! Owns nothing of the connection, and never reads from it: [`super::connection`] fills it.

use super::framing::Received;
use super::uploads::{COLLECT_BYTES, Memory, Permit, Waiting};
use crate::wsgi::request::RequestHead;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::time::Instant;

/// Shorter pieces of a body are put together: each would take a block of memory for itself, or keep
/// one that is longer.
const SHORT_PIECE: usize = 16 << 10;

/// See the module's text.
#[derive(Debug)]
pub(super) struct ReceivedRequest {
    pub(super) head: RequestHead,
    /// What has come of the body and was not read by the application.
    pub(super) pieces: VecDeque<Bytes>,
    /// Bytes of the body that were put there.
    pub(super) collected: usize,
    /// How many bytes of it are to be collected before a thread is spent on the request.
    pub(super) bound: usize,
    /// It waits for a permit, and its body is collected meanwhile. `None` while the beginning of
    /// the body is awaited, and of a request that waits no more.
    pub(super) waiting: Option<Waiting>,
    /// Memory for what was collected beyond what every request may have.
    pub(super) memory: Option<Memory>,
    /// It may have a thread before its body has come.
    pub(super) permit: Option<Permit>,
    pub(super) since: Instant,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) is_expecting: bool,
    /// The client can take another answer on this connection.
    pub(super) is_persistent: bool,
    /// How long the body is, where the client has said so.
    pub(super) body_length: Option<u64>,
    /// There is no body at all.
    pub(super) is_bodiless: bool,
}

impl ReceivedRequest {
    pub(super) fn new(received: Received, since: Instant) -> Self {
        Self {
            is_bodiless: received.is_bodiless(),
            body_length: received.body_length(),
            head: received.head,
            pieces: VecDeque::new(),
            collected: 0,
            bound: COLLECT_BYTES,
            waiting: None,
            memory: None,
            permit: None,
            since,
            is_expecting: received.is_expecting,
            is_persistent: received.is_persistent,
        }
    }

    /// Keeps a piece of the body for the application.
    pub(super) fn put(&mut self, piece: Bytes) {
        self.collected += piece.len();
        let last = self.pieces.back().map_or(SHORT_PIECE, Bytes::len);
        if piece.len() >= SHORT_PIECE || last + piece.len() > SHORT_PIECE {
            self.pieces.push_back(piece);
            return;
        }
        // Nobody else has it.
        let last = self.pieces.pop_back().unwrap_or_default();
        let mut last = last.try_into_mut().unwrap_or_else(BytesMut::from);
        last.extend_from_slice(&piece);
        self.pieces.push_back(last.freeze());
    }
}
