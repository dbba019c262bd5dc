//! A request as it came out of a connection, with as much of its body as has come.
//!
//! Owns nothing of the connection, and never reads from it: [`super::connection`] fills it.

use super::framing::Received;
use super::uploads::{COLLECT_BYTES, Memory, Permit};
use crate::wsgi::request::RequestHead;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Instant;

/// How far a request is whose body has not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upload {
    /// The beginning of its body is awaited, or it has a thread.
    Beginning,
    /// It waits for a permit, and its body is collected meanwhile.
    Held,
    /// As much was collected as may be: its client sends, and waits for the server.
    Sending,
}

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
    /// Where it is, if its body has not come.
    pub(super) upload: Upload,
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
            upload: Upload::Beginning,
            memory: None,
            permit: None,
            since,
            is_expecting: received.is_expecting,
            is_persistent: received.is_persistent,
        }
    }
}
