//! The bound on requests that wait: what comes beyond it is answered 503 instead of waiting.
//!
//! Owns the count of requests that are waiting or being answered, and the answer to those that are
//! one too many. Off unless `max_waiting` is set. Rules: RFC 9110 sections 15.6.4 and 10.2.3.

use super::{Again, Job, Reactor};
use crate::server::connection::Connection;
use crate::server::received_request::ReceivedRequest;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tracing::debug;

/// What clients are told to wait, in seconds.
const RETRY_SECONDS: &str = "1";
/// How often a worker that had work looks whether connections lie in the kernel.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long they lie there until it takes them, to wait or to be refused: a sibling that has a free
/// thread gets a processor in that time.
pub(super) const LEFT_TO_OTHERS: Duration = Duration::from_millis(200);
/// Connections accepted in one turn then.
pub(super) const ACCEPTS_PER_TURN: usize = 64;

/// Requests of which the application or the pool's queue has not been rid yet.
#[derive(Debug)]
pub(super) struct Overload {
    /// How many may wait beside those that are answered; `None`: any number.
    most_waiting: Option<usize>,
    most: AtomicUsize,
    taken: AtomicUsize,
}

impl Overload {
    pub(super) fn new(most_waiting: Option<usize>, pool_size: usize) -> Self {
        let overload = Self {
            most_waiting,
            most: AtomicUsize::new(usize::MAX),
            taken: AtomicUsize::new(0),
        };
        overload.resize(pool_size);
        overload
    }

    /// The pool answers so many at once now.
    pub(super) fn resize(&self, pool_size: usize) {
        if let Some(waiting) = self.most_waiting {
            let most = pool_size.max(1).saturating_add(waiting);
            self.most.store(most, Ordering::Relaxed);
        }
    }

    /// True where there is a bound at all.
    pub(super) fn is_bounded(&self) -> bool {
        self.most_waiting.is_some()
    }

    /// True when the next request would be refused.
    pub(super) fn is_full(&self) -> bool {
        self.is_bounded() && self.taken.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        if !self.is_bounded() {
            return true;
        }
        let most = self.most.load(Ordering::Relaxed);
        let is_taken = self.taken.fetch_add(1, Ordering::Relaxed) < most;
        if !is_taken {
            self.release();
        }
        is_taken
    }

    /// A request that was taken has been answered.
    pub(super) fn release(&self) {
        if self.is_bounded() {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Reactor {
    /// A request is ready for a thread: it gets into the queue, or is refused.
    pub(super) fn admit(
        &self,
        connection: Box<Connection>,
        received: Box<ReceivedRequest>,
        jobs: &mut Vec<Job>,
    ) -> Again {
        if self.overload.take() {
            jobs.push(Job::Answer(connection, received));
            return None;
        }
        debug!(server = %self.settings.name, peer = %connection.endpoints.shown_peer(), "request refused: as many wait as may");
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
        let status = StatusCode::SERVICE_UNAVAILABLE;
        self.give_up_with(connection, &received, status, headers, jobs)
    }
}
