//! A request that waits for a thread, counted by its method until it begins.
//!
//! Owns the step from waiting to in flight. The counters are those of [`super::methods`], the
//! in-flight slots those of [`super::row`].

use super::methods::Method;
use super::row::InFlight;

/// One request that waits, of a named kind or not. It leaves the count when dropped.
#[derive(Debug)]
#[must_use = "the request counts as waiting until this is dropped"]
pub struct Queued {
    method: Option<Method>,
}

impl Queued {
    /// A request that waits from now on. *name* is its kind's; without one it is not counted here.
    pub fn new(name: Option<&str>) -> Self {
        let method = name.map(Method::named);
        if let Some(method) = method {
            method.queued();
        }
        Self { method }
    }

    /// The request is begun now.
    pub fn begin(self) -> InFlight<'static> {
        super::current().begin_method(self.method)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(method) = self.method {
            method.dequeued();
        }
    }
}
