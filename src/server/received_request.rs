//! A request as it came out of a connection, with as much of its body as has come.
//!
//! Owns nothing of the connection, and never reads from it: [`super::connection`] fills it.

use super::framing::Received;
use crate::wsgi::request::RequestHead;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Instant;

/// See the module's text.
#[derive(Debug)]
pub(super) struct ReceivedRequest {
    pub(super) head: RequestHead,
    /// What has come of the body and was not read by the application.
    pub(super) pieces: VecDeque<Bytes>,
    /// Bytes of the body that were put there.
    pub(super) collected: usize,
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
            since,
            is_expecting: received.is_expecting,
            is_persistent: received.is_persistent,
        }
    }
}
