//! The watch over requests in which an application is busy for too long.
//!
//! Owns the thread that looks at them, where a server has a request timeout, and what follows for the
//! pool: a thread that is inside a request which was given up is left out of its counts, so that
//! another one takes its place. Which requests are overdue the handler knows; what their clients are
//! told is the exchange's part. Needs no interpreter, so that it goes on while an application holds it.

use super::reactor::Reactor;
use crate::pool::Abandon;
use crate::threads::{self, Signals};
use nix::unistd::Pid;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tracing::error;

const STACK_BYTES: usize = 512 * 1024;
/// Longest time between two looks: the end of the server is seen by then.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);
/// Shortest time, for requests that wait for their clients while their time is up.
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);

/// Starts the thread, which ends after the server has.
///
/// # Errors
/// When the kernel refuses a thread.
pub(super) fn start(
    reactor: Arc<Reactor>,
    pool: Abandon<Reactor>,
    timeout: Duration,
) -> io::Result<()> {
    let name = "osloxide-overdue".to_owned();
    threads::start(name, STACK_BYTES, Signals::AsCreator, move || {
        while !reactor.has_ended() {
            let look = || reactor.handler().give_up_overdue(timeout);
            // A panic costs this look, not the watch over all that are overdue after it.
            let (overdue, next) = catch_unwind(AssertUnwindSafe(look)).unwrap_or_else(|_| {
                error!("a panic while a request was given up");
                (Vec::new(), None)
            });
            for thread in overdue {
                pool.abandon(Pid::from_raw(thread));
            }
            let next = next.unwrap_or(timeout).min(timeout);
            std::thread::sleep(next.clamp(SHORTEST_SLEEP, LONGEST_SLEEP));
        }
    })
}
