//! One worker's share of the scoreboard: its layout, its counters and its states.
//!
//! Everything is a relaxed atomic: nothing here orders anything else, and a reader may see a request
//! in one counter and not yet in the other. Maps no memory; [`super`] does.

use super::broker::BrokerFigures;
use super::figures::Figures;
use super::methods::Method;
use super::snapshot::{Snapshot, State};
use super::worn::Worn;
use super::{IN_FLIGHT_MAX, decrement};
use nix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

const NO_EXIT: i64 = -1;

/// One worker's share of the memory. The first half is written by the parent, the rest by the
/// worker, each on cache lines of its own.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Row {
    state: AtomicU32,
    slot: AtomicU32,
    group: AtomicU32,
    generation: AtomicU32,
    pid: AtomicU32,
    respawns: AtomicU32,
    started_at: AtomicU64,
    ready_at: AtomicU64,
    last_exit: AtomicI64,
    /// What `served` was when the row was assigned. That one is never set back, so a reader sees the
    /// sum of a slot grow only, also with changes between two of its loads.
    served_before: AtomicU64,
    /// Why the worker asks to be replaced: what of [`Worn`] in the highest byte, how much below it.
    worn: AtomicU64,
    counters: Counters,
    figures: Figures,
    broker: BrokerFigures,
    in_flight_slots: [AtomicU64; IN_FLIGHT_MAX],
}

#[derive(Debug)]
#[repr(C, align(128))]
struct Counters {
    served: AtomicU64,
    connections: AtomicU32,
    threads: AtomicU32,
    beyond_slots: AtomicU32,
    /// Until when the worker promised to show again that its interpreter runs; 0 is no promise.
    beat_by: AtomicU64,
    /// 1 once a request with a name was counted; without any, readers leave that memory unmade.
    has_methods: AtomicU32,
}

/// Where probes outside of the crate read them.
#[cfg(test)]
pub(super) const STATE_AT: usize = std::mem::offset_of!(Row, state);
#[cfg(test)]
pub(super) const SLOT_AT: usize = std::mem::offset_of!(Row, slot);

const _: () = assert!(
    size_of::<Row>() == 4096,
    "rows of a fixed size, no page shared by two"
);

/// `CLOCK_MONOTONIC` in nanoseconds, as stored in rows. Precise.
#[must_use]
pub fn now() -> u64 {
    clock(ClockId::CLOCK_MONOTONIC)
}

fn clock(id: ClockId) -> u64 {
    clock_gettime(id)
        .ok()
        .and_then(|time| {
            let seconds = u64::try_from(time.tv_sec()).ok()?;
            Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
        })
        .unwrap_or(0)
}

/// In the beginning of a request: its thread waits for the client. A nanosecond more or less does not
/// count.
const WAITS: u64 = 1;

thread_local! {
    /// The slot of the request that this thread is inside of; [`IN_FLIGHT_MAX`] without one.
    static OWN: Cell<usize> = const { Cell::new(IN_FLIGHT_MAX) };
}

/// A wait for the client of a request; it ends when this is dropped, and the request counts as begun
/// so much later.
#[derive(Debug)]
#[must_use = "the wait is over when this is dropped"]
pub struct ClientWait<'row> {
    slot: Option<&'row AtomicU64>,
    began: u64,
    since: u64,
}

impl Drop for ClientWait<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            let waited = now().saturating_sub(self.since);
            slot.store(
                self.began.saturating_add(waited) & !WAITS,
                Ordering::Relaxed,
            );
        }
    }
}

/// One request in flight; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the request counts as finished when this is dropped"]
pub struct InFlight<'row> {
    row: &'row Row,
    index: usize,
    method: Option<Method>,
    failed: bool,
}

impl InFlight<'_> {
    /// The request has ended in an unexpected error.
    pub fn fail(&mut self) {
        self.failed = true;
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if OWN.get() == self.index {
            OWN.set(IN_FLIGHT_MAX);
        }
        if let Some(method) = self.method {
            // Before the index is free for another one.
            method.ended(self.index, self.failed);
        }
        match self.row.in_flight_slots.get(self.index) {
            Some(index) => index.store(0, Ordering::Relaxed),
            None => decrement(&self.row.counters.beyond_slots),
        }
        self.row.counters.served.fetch_add(1, Ordering::Relaxed);
    }
}

impl Row {
    pub(super) const fn new() -> Self {
        Self {
            state: AtomicU32::new(State::Free as u32),
            slot: AtomicU32::new(0),
            group: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            pid: AtomicU32::new(0),
            respawns: AtomicU32::new(0),
            started_at: AtomicU64::new(0),
            ready_at: AtomicU64::new(0),
            last_exit: AtomicI64::new(NO_EXIT),
            served_before: AtomicU64::new(0),
            worn: AtomicU64::new(0),
            figures: Figures::new(),
            broker: BrokerFigures::new(),
            counters: Counters {
                served: AtomicU64::new(0),
                connections: AtomicU32::new(0),
                threads: AtomicU32::new(0),
                beyond_slots: AtomicU32::new(0),
                beat_by: AtomicU64::new(0),
                has_methods: AtomicU32::new(0),
            },
            in_flight_slots: [const { AtomicU64::new(0) }; IN_FLIGHT_MAX],
        }
    }

    /// A client connected.
    pub fn connection_opened(&self) {
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A client's connection was closed.
    pub fn connection_closed(&self) {
        decrement(&self.counters.connections);
    }

    /// A pool thread began.
    pub fn thread_started(&self) {
        self.counters.threads.fetch_add(1, Ordering::Relaxed);
    }

    /// A pool thread ended.
    pub fn thread_ended(&self) {
        decrement(&self.counters.threads);
    }

    /// A request began just now. Costs one compare-and-swap, and its end two relaxed operations.
    pub fn begin(&self) -> InFlight<'_> {
        // Of millisecond resolution and a fifth of the price of the precise clock.
        self.begin_at(clock(ClockId::CLOCK_MONOTONIC_COARSE))
    }

    pub(super) fn begin_method(&self, method: Option<Method>) -> InFlight<'_> {
        let mut begun = self.begin();
        begun.method = method;
        if let Some(method) = method {
            method.began(begun.index);
        }
        begun
    }

    /// Requests with names are counted from now on.
    pub(super) fn name_methods(&self) {
        self.counters.has_methods.store(1, Ordering::Relaxed);
    }

    pub(super) fn names_methods(&self) -> bool {
        self.counters.has_methods.load(Ordering::Relaxed) != 0
    }

    /// A request began at this instant of [`now`]'s clock.
    pub fn begin_at(&self, began: u64) -> InFlight<'_> {
        thread_local! {
            /// The index that this thread used last: nearly always free again.
            static INDEX: Cell<usize> = Cell::new(first_index());
        }
        let began = began.max(2) & !WAITS;
        let preferred = INDEX.get();
        for index in (preferred..IN_FLIGHT_MAX).chain(0..preferred) {
            let (ok, err) = (Ordering::Relaxed, Ordering::Relaxed);
            if self.in_flight_slots[index]
                .compare_exchange(0, began, ok, err)
                .is_ok()
            {
                if index != preferred {
                    INDEX.set(index);
                }
                OWN.set(index);
                return self.in_flight(index);
            }
        }
        OWN.set(IN_FLIGHT_MAX);
        self.counters.beyond_slots.fetch_add(1, Ordering::Relaxed);
        self.in_flight(IN_FLIGHT_MAX)
    }

    const fn in_flight(&self, index: usize) -> InFlight<'_> {
        InFlight {
            row: self,
            index,
            method: None,
            failed: false,
        }
    }

    /// What is counted of requests and their answers.
    pub const fn figures(&self) -> &Figures {
        &self.figures
    }

    /// What is counted of connections with message brokers.
    pub const fn broker(&self) -> &BrokerFigures {
        &self.broker
    }

    /// The worker asks to be replaced.
    pub fn mark_worn(&self, why: Worn) {
        self.worn.store(why.to_raw(), Ordering::Relaxed);
    }

    /// Why it does; `None` while it does not.
    #[must_use]
    pub fn worn(&self) -> Option<Worn> {
        Worn::from_raw(self.worn.load(Ordering::Relaxed))
    }

    /// The calling thread waits for its client from now until the result is dropped. That time is not
    /// the application's: [`Row::oldest_busy`] leaves it out.
    pub fn wait_for_client(&self) -> ClientWait<'_> {
        let slot = self.in_flight_slots.get(OWN.get());
        let began = slot.map_or(0, |slot| slot.load(Ordering::Relaxed));
        let slot = slot.filter(|_| began != 0);
        if let Some(slot) = slot {
            slot.store(began | WAITS, Ordering::Relaxed);
        }
        ClientWait {
            slot,
            began,
            since: now(),
        }
    }

    /// Nanoseconds for which the application has been busy with the request that keeps it busy
    /// longest, waits for clients left out; `None` without one.
    #[must_use]
    pub fn oldest_busy(&self) -> Option<u64> {
        let oldest = self
            .began()
            .filter(|began| *began != 0 && began & WAITS == 0);
        Some(now().saturating_sub(oldest.min()?))
    }

    /// The worker's interpreter runs, and will show it again within *promise*; zero promises nothing.
    pub fn beat(&self, promise: Duration) {
        let promise = u64::try_from(promise.as_nanos()).unwrap_or(u64::MAX);
        let beat_by = if promise == 0 {
            0
        } else {
            now().saturating_add(promise)
        };
        self.counters.beat_by.store(beat_by, Ordering::Relaxed);
    }

    /// By how many nanoseconds a promised beat is overdue; `None` when it is not.
    #[must_use]
    pub fn overdue(&self) -> Option<u64> {
        let beat_by = self.counters.beat_by.load(Ordering::Relaxed);
        now().checked_sub(beat_by).filter(|_| beat_by != 0)
    }

    /// When the request in each of them began; 0 for none.
    pub(super) fn began(&self) -> impl Iterator<Item = u64> {
        self.in_flight_slots
            .iter()
            .map(|index| index.load(Ordering::Relaxed))
    }

    /// The worker is ready. Has no effect on a worker that is already being drained.
    pub fn mark_ready(&self) {
        self.ready_at.store(now(), Ordering::Relaxed);
        self.exchange(State::Starting, State::Running);
    }

    /// The process is leaving by itself. Has no effect once SIGKILL was sent.
    pub fn mark_leaving(&self) {
        for state in [State::Starting, State::Running] {
            self.exchange(state, State::Draining);
        }
    }

    /// The parent says what the worker is doing.
    pub fn mark(&self, state: State) {
        self.state.store(state as u32, Ordering::Relaxed);
    }

    /// The process was forked: both sides say so, and the first one tells when.
    pub fn mark_forked(&self, pid: u32) {
        if self.pid.load(Ordering::Relaxed) == pid {
            return;
        }
        self.started_at.store(now(), Ordering::Relaxed);
        self.pid.store(pid, Ordering::Relaxed);
    }

    /// The parent reaped the process: nothing is in flight there any more.
    pub fn mark_ended(&self, state: State, status: i32) {
        self.last_exit.store(i64::from(status), Ordering::Relaxed);
        self.pid.store(0, Ordering::Relaxed);
        self.clear_gauges();
        self.mark(state);
    }

    fn exchange(&self, from: State, to: State) {
        let (ok, err) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.state.compare_exchange(from as u32, to as u32, ok, err);
    }

    pub(super) fn state(&self) -> State {
        State::from_raw(self.state.load(Ordering::Relaxed))
    }

    /// The place of this row's worker among its siblings, from 0; 0 in a process that is no worker.
    #[must_use]
    pub fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    /// True when the last worker of *slot* had this row and is gone.
    pub(super) fn is_left_by(&self, slot: u32) -> bool {
        matches!(self.state(), State::Gone | State::Waiting | State::Replaced)
            && self.slot.load(Ordering::Relaxed) == slot
    }

    /// True when it was reserved for a worker that process *pid* can be. The parent may have told a
    /// worker to leave that has not come here yet.
    pub(super) fn is_reserved_for(&self, slot: u32, generation: u32, pid: u32) -> bool {
        let is_reserved = match self.pid.load(Ordering::Relaxed) {
            0 => self.state() == State::Starting,
            forked => forked == pid,
        };
        is_reserved
            && self.slot.load(Ordering::Relaxed) == slot
            && self.generation.load(Ordering::Relaxed) == generation
    }

    fn clear_gauges(&self) {
        self.counters.connections.store(0, Ordering::Relaxed);
        self.counters.threads.store(0, Ordering::Relaxed);
        self.counters.beyond_slots.store(0, Ordering::Relaxed);
        self.beat(Duration::ZERO);
        self.worn.store(0, Ordering::Relaxed);
        self.figures.clear_gauges();
        self.broker.clear_gauges();
        for index in &self.in_flight_slots {
            index.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn assign(&self, assignment: Assignment) {
        self.slot.store(assignment.slot, Ordering::Relaxed);
        self.group.store(assignment.group, Ordering::Relaxed);
        self.generation
            .store(assignment.generation, Ordering::Relaxed);
        self.respawns.store(assignment.respawns, Ordering::Relaxed);
        self.last_exit.store(
            assignment.last_exit.map_or(NO_EXIT, i64::from),
            Ordering::Relaxed,
        );
        self.pid.store(0, Ordering::Relaxed);
        self.started_at.store(0, Ordering::Relaxed);
        self.ready_at.store(0, Ordering::Relaxed);
        // No process counts in it now: it was reaped.
        let served = self.counters.served.load(Ordering::Relaxed);
        self.served_before.store(served, Ordering::Relaxed);
        self.clear_gauges();
    }

    /// The copy's `slot_served` is that of this row alone, and `methods` is empty.
    pub(super) fn read(&self) -> Snapshot {
        let served = self.counters.served.load(Ordering::Relaxed);
        let served_before = self.served_before.load(Ordering::Relaxed);
        let began = self
            .in_flight_slots
            .iter()
            .map(|index| index.load(Ordering::Relaxed));
        let (mut in_flight, mut oldest_since) = (0, None);
        for began in began.filter(|began| *began != 0) {
            in_flight += 1;
            oldest_since = Some(oldest_since.map_or(began, |oldest: u64| oldest.min(began)));
        }
        Snapshot {
            slot: self.slot.load(Ordering::Relaxed),
            group: self.group.load(Ordering::Relaxed),
            pid: self.pid.load(Ordering::Relaxed),
            generation: self.generation.load(Ordering::Relaxed),
            state: self.state(),
            started_at: self.started_at.load(Ordering::Relaxed),
            ready_at: self.ready_at.load(Ordering::Relaxed),
            connections: self.counters.connections.load(Ordering::Relaxed),
            in_flight: in_flight + self.counters.beyond_slots.load(Ordering::Relaxed),
            served: served.saturating_sub(served_before),
            slot_served: served,
            oldest_since,
            threads: self.counters.threads.load(Ordering::Relaxed),
            respawns: self.respawns.load(Ordering::Relaxed),
            last_exit: i32::try_from(self.last_exit.load(Ordering::Relaxed))
                .ok()
                .filter(|status| i64::from(*status) != NO_EXIT),
            worn: self.worn(),
            figures: self.figures.read(),
            broker: self.broker.read(),
            methods: Vec::new(),
        }
    }
}

/// Where a new thread looks first: eight slots from the thread before it, on a
/// cache line of its own.
fn first_index() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    let thread = THREADS.fetch_add(1, Ordering::Relaxed);
    (thread * 8 + thread * 8 / IN_FLIGHT_MAX) % IN_FLIGHT_MAX
}

/// Whom a row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// Slot, counted over all groups.
    pub slot: u32,
    /// Number of the slot's group.
    pub group: u32,
    /// Reload round.
    pub generation: u32,
    /// How often the slot was forked again before.
    pub respawns: u32,
    /// Wait status of the slot's previous worker.
    pub last_exit: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_request_is_the_one_that_began_first() {
        let row = Row::new();
        row.in_flight_slots[3].store(500, Ordering::Relaxed);
        row.in_flight_slots[9].store(200, Ordering::Relaxed);

        assert_eq!(row.read().oldest_since, Some(200));
        row.in_flight_slots[9].store(0, Ordering::Relaxed);
        assert_eq!(row.read().oldest_since, Some(500));
    }

    #[test]
    fn a_wait_for_the_client_does_not_keep_the_application_busy() {
        let row = Row::new();
        let request = row.begin_at(now() - 9_000_000_000);
        assert!(row.oldest_busy() >= Some(9_000_000_000));

        let wait = row.wait_for_client();

        assert_eq!(row.oldest_busy(), None);
        assert_eq!(row.read().in_flight, 1);
        drop(wait);
        assert!(row.oldest_busy() >= Some(8_000_000_000));
        drop(request);
        drop(row.wait_for_client());
        assert_eq!(row.read().in_flight, 0);
    }

    #[test]
    fn gauges_of_a_reaped_worker_are_cleared_and_never_wrap() {
        let row = Row::new();
        row.connection_opened();
        row.thread_started();
        let request = row.begin();

        row.mark_ended(State::Waiting, 9);
        drop(request);
        row.connection_closed();
        row.thread_ended();

        let seen = row.read();
        assert_eq!((seen.connections, seen.threads, seen.in_flight), (0, 0, 0));
        assert_eq!((seen.state, seen.last_exit), (State::Waiting, Some(9)));
    }

    #[test]
    fn readiness_does_not_undo_a_drain() {
        let row = Row::new();
        row.mark(State::Draining);

        row.mark_ready();

        assert_eq!(row.state(), State::Draining);
    }
}
