//! A copy of one row, as readers of the scoreboard get it.
//!
//! Owns no memory and no counter: [`super::row`] fills it in. Its fields are what `osloxide status`
//! and the metrics show; docs/operating.md lists them.

use super::methods::MethodSnapshot;
use super::row::State;

/// A copy of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Slot of the worker, counted over all groups of its supervisor.
    pub slot: u32,
    /// Number of the slot's group.
    pub group: u32,
    /// Process, or 0 when there is none just now.
    pub pid: u32,
    /// Reload round that the process was forked in.
    pub generation: u32,
    /// What it is doing.
    pub state: State,
    /// `CLOCK_MONOTONIC` nanoseconds of the fork; 0 before it.
    pub started_at: u64,
    /// `CLOCK_MONOTONIC` nanoseconds when it became ready; 0 before that.
    pub ready_at: u64,
    /// Open client connections.
    pub connections: u32,
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests finished since the fork.
    pub served: u64,
    /// Requests finished by all workers that the slot ever had; it never goes down.
    pub slot_served: u64,
    /// `CLOCK_MONOTONIC` nanoseconds when the oldest request in flight began.
    pub oldest_since: Option<u64>,
    /// Pool threads.
    pub threads: u32,
    /// How often the slot was forked again after its worker ended.
    pub respawns: u32,
    /// Wait status of the slot's previous worker.
    pub last_exit: Option<i32>,
    /// The same requests by name, where they have one; `done` and `failed` of the whole slot.
    pub methods: Vec<MethodSnapshot>,
}
