//! What a supervisor asks of Python, tells it, and refuses.
//!
//! Owns the two enums at the boundary: [`Command`], handed out by [`super::Supervisor::next`], and
//! [`Error`]. Decides nothing. How Python answers each command is a table in docs/lifecycle.md.

use super::MOST_WORKERS;
use crate::scoreboard::Worn;
use nix::errno::Errno;
use std::time::Duration;

/// What Python is to do or know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Fork a worker; to be answered by [`super::Supervisor::forked`] or [`super::Supervisor::fork_failed`].
    Fork {
        /// Number of the group.
        group: usize,
        /// Slot, counted over all groups.
        slot: usize,
        /// Reload round.
        generation: u32,
    },
    /// Reload the configuration; to be answered by [`super::Supervisor::configured`].
    Reload,
    /// Mutate the configuration; to be answered by [`super::Supervisor::configured`].
    Mutate,
    /// Shutdown begins.
    Stopping {
        /// Live workers.
        count: usize,
    },
    /// A worker ended.
    Exited {
        /// The process.
        pid: i32,
        /// Number of its group.
        group: usize,
        /// Its slot.
        slot: usize,
        /// Wait status as `waitpid(2)` gives it.
        status: i32,
        /// Time since its fork.
        lifetime: Duration,
    },
    /// A child of process 1 that is no worker has ended, and no wait has reaped it since. Python
    /// knows whether the application still will; if not, it calls [`super::Supervisor::reap_orphan`].
    Orphan {
        /// The process.
        pid: i32,
    },
    /// A slot waits before its next fork.
    Backoff {
        /// Number of its group.
        group: usize,
        /// The slot.
        slot: usize,
        /// For how long.
        delay: Duration,
        /// Failures in a row.
        failures: u32,
    },
    /// A worker was still there at its deadline; SIGABRT was sent, so that it can say where it is, and
    /// SIGKILL follows. One that had got SIGABRT because it hung gets SIGKILL at once.
    Late {
        /// Its slot.
        slot: usize,
        /// The process.
        pid: i32,
        /// Time since SIGTERM.
        waited: Duration,
    },
    /// A worker hung; SIGABRT was sent, so that it can say where, and its slot will be forked again.
    Hung {
        /// Its slot.
        slot: usize,
        /// The process.
        pid: i32,
        /// How long it was stopped, busy with one request, or without a beat.
        silent: Duration,
    },
    /// A worker has asked to be replaced; its successor takes over before it leaves.
    Worn {
        /// Number of its group.
        group: usize,
        /// Its slot.
        slot: usize,
        /// The process.
        pid: i32,
        /// Why; `None` when it could not say.
        why: Option<Worn>,
    },
    /// A worker is told to leave before its successor serves, which may need what it has.
    LeavesFirst {
        /// Number of its group.
        group: usize,
        /// Its slot.
        slot: usize,
        /// The process.
        pid: i32,
        /// For how long the successor has been starting; `None` where successors have failed.
        waited: Option<Duration>,
    },
    /// Every slot has a ready worker, for the first time since the last group was added.
    AllReady,
    /// What the last `Reload` or `Mutate` began is complete: every worker is of the new generation and
    /// ready, or has mutated its configuration.
    Reloaded,
    /// A template of workers has told something, or has ended.
    Template,
    /// The interval of [`super::Supervisor::set_tick`] has passed.
    Tick,
    /// Signal handlers ran and requested nothing.
    Interrupted,
}

/// Why a supervisor refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More workers than there is room for.
    #[error("{wanted} workers are too many: a supervisor has room for {MOST_WORKERS}")]
    TooManyWorkers {
        /// Workers of all groups, the refused one included.
        wanted: usize,
    },
    /// An answer to a fork that was not handed out.
    #[error("slot {slot} has no fork to answer; answer each fork command of next() once")]
    NotForking {
        /// The slot.
        slot: usize,
    },
    /// The fork command was not answered.
    #[error("the fork of slot {slot} was not answered; call forked() or fork_failed() first")]
    Unanswered {
        /// The slot.
        slot: usize,
    },
    /// A worker used its parent's supervisor.
    #[error(
        "this supervisor belongs to process {owner}, not to process {here}; \
         make a new one in a worker that has workers of its own"
    )]
    NotTheParent {
        /// Process that made it.
        owner: u32,
        /// Process that used it.
        here: u32,
    },
    /// The kernel refused.
    #[error("cannot make the pipes of a supervisor")]
    Pipes(#[source] Errno),
}
