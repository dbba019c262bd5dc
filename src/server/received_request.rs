//! A request as it came out of a connection, with as much of its body as has come.
//!
//! Owns nothing of the connection, and never reads from it: [`super::connection`] fills it. Rules:
//! RFC 9110 section 10.1.1 (`Expect`).

use bytes::Bytes;
use http::header::EXPECT;
use http::request::Parts;
use http::{Request, Version};
use hyper::body::{Body, Incoming};
use std::collections::VecDeque;
use std::time::Instant;

/// A request, and as much of its body as has come.
#[derive(Debug)]
pub(super) struct ReceivedRequest {
    pub(super) parts: Parts,
    /// What has not come yet, if anything.
    pub(super) body: Option<Incoming>,
    pub(super) pieces: VecDeque<Bytes>,
    pub(super) collected: usize,
    pub(super) since: Instant,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) is_expecting: bool,
    pub(super) is_bodiless: bool,
}

impl ReceivedRequest {
    pub(super) fn new(request: Request<Incoming>, since: Instant) -> Self {
        let (parts, body) = request.into_parts();
        let is_bodiless = body.is_end_stream();
        let is_expecting = !is_bodiless
            && parts.version == Version::HTTP_11
            && parts
                .headers
                .get(EXPECT)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        Self {
            parts,
            body: (!is_bodiless).then_some(body),
            pieces: VecDeque::new(),
            collected: 0,
            since,
            is_expecting,
            is_bodiless,
        }
    }
}
