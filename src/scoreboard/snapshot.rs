//! A copy of one row, as readers of the scoreboard get it.
//!
//! Owns no memory and no counter: [`super::row`] fills it in. Its fields are what `osloxide status`
//! and the metrics show; docs/operating.md lists them.

use super::broker::BrokerSnapshot;
use super::figures::FigureSnapshot;
use super::worn::Worn;

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
    /// Why the worker asks to be replaced, once it does.
    pub worn: Option<Worn>,
    /// What was counted of requests and their answers: counters of the whole slot, gauges of this
    /// process.
    pub figures: FigureSnapshot,
    /// What was counted of its connections with message brokers: counters of the whole slot, gauges of
    /// this process.
    pub broker: BrokerSnapshot,
    /// The same requests by name, where they have one; `done` and `failed` of the whole slot.
    pub methods: Vec<MethodSnapshot>,
}

/// What a worker is doing, as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// The row is free.
    Free = 0,
    /// Forked, not ready yet.
    Starting = 1,
    /// Ready.
    Running = 2,
    /// SIGTERM was sent, or the process is leaving by itself.
    Draining = 3,
    /// SIGKILL was sent.
    Killing = 4,
    /// No process: the slot waits before its next fork.
    Waiting = 5,
    /// No process: it ended and was reaped.
    Gone = 6,
    /// As `Gone`, while others of the slot go on: not shown, and only that slot may have the row, so
    /// that what was served there is never lost from the slot's sum.
    Replaced = 7,
}

impl State {
    const ALL: [Self; 8] = [
        Self::Free,
        Self::Starting,
        Self::Running,
        Self::Draining,
        Self::Killing,
        Self::Waiting,
        Self::Gone,
        Self::Replaced,
    ];

    /// Lower-case name, for display.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Killing => "killing",
            Self::Waiting => "waiting",
            Self::Gone => "gone",
            Self::Replaced => "replaced",
        }
    }

    pub(super) fn from_raw(raw: u32) -> Self {
        Self::ALL.get(raw as usize).copied().unwrap_or(Self::Free)
    }
}

/// A copy of one method's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MethodSnapshot {
    /// Its name, cut at 96 bytes.
    pub name: String,
    /// Requests that no thread has begun.
    pub queued: u32,
    /// Requests in flight.
    pub running: u32,
    /// Requests finished by all workers that the slot ever had, failed ones included.
    pub done: u64,
    /// Those that ended in an unexpected error.
    pub failed: u64,
    /// `CLOCK_MONOTONIC` nanoseconds when the oldest one in flight began.
    pub oldest_since: Option<u64>,
}
