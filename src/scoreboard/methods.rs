//! What each kind of request costs: counters by name, for one worker, beside its row.
//!
//! Owns the table's layout, the names in it and the ages of what runs. As in [`super::row`],
//! everything is a relaxed atomic that a killed worker may leave as it is. A name is written once and
//! stays, so that counters of a slot go on growing when its worker is replaced.
//! RPC methods are counted here (docs/rpc.md); HTTP requests are not told apart.

use super::snapshot::MethodSnapshot;
use super::{IN_FLIGHT_MAX, decrement};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Names that one worker can tell apart; what comes later is counted as the last one.
pub const METHODS: usize = 62;
/// The place of what found no room.
const LAST: usize = METHODS - 1;
/// Its name.
const OTHERS: &str = "(others)";
const NAME_BYTES: usize = 96;

/// The first byte of a name that a thread is about to write; UTF-8 has no such byte.
const CLAIMED: u8 = 0xff;
/// Looks at a claimed place, with a turn of other threads after each, until it is given up: its
/// writer was killed, or is no part of the process that was forked meanwhile.
const LOOKS: usize = 1000;

/// The places that the calling thread has looked up, of names that have one of their own. No lock: a
/// process may be forked at any moment by a thread that is not this one.
struct Known {
    of: *const Methods,
    places: HashMap<String, u8>,
}

impl Known {
    fn of(methods: *const Methods) -> Self {
        Self {
            of: methods,
            places: HashMap::new(),
        }
    }

    fn place(&mut self, methods: &Methods, name: &str) -> u8 {
        if !ptr::eq(self.of, methods) {
            *self = Self::of(methods); // the process has claimed its row since
        }
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let place = methods.enter(name);
        if usize::from(place) < LAST {
            // Names come from the network, and many may have one place: what is cut alike. Those that
            // are asked for are soon known again.
            if self.places.len() >= METHODS {
                self.places.clear();
            }
            self.places.insert(name.to_owned(), place);
        }
        place
    }
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::new(Known::of(ptr::null()));
}

/// One worker's table.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Methods {
    /// The method of the request in each of the row's in-flight slots, counted from 1; 0 for none.
    in_flight_slots: [AtomicU8; 256],
    table: [Counters; METHODS],
}

#[derive(Debug)]
#[repr(C, align(128))]
struct Counters {
    name: [AtomicU8; NAME_BYTES],
    done: AtomicU64,
    failed: AtomicU64,
    queued: AtomicU32,
}

const _: () = assert!(size_of::<Methods>() == 8192 && IN_FLIGHT_MAX <= 256);

/// A place in a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method {
    methods: &'static Methods,
    place: u8,
}

impl Method {
    /// The place of *name* in the table of this process; a new one on first use.
    pub(super) fn named(name: &str) -> Self {
        let methods = super::current_methods();
        let place = KNOWN.with_borrow_mut(|known| known.place(methods, name));
        super::current().name_methods();
        Self { methods, place }
    }

    /// One more request of this kind waits.
    pub(super) fn queued(self) {
        if let Some(counters) = self.counters() {
            counters.queued.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One that waited is begun, or was given up.
    pub(super) fn dequeued(self) {
        if let Some(counters) = self.counters() {
            decrement(&counters.queued);
        }
    }

    fn counters(self) -> Option<&'static Counters> {
        self.methods.table.get(usize::from(self.place))
    }

    pub(super) fn began(self, index: usize) {
        if let Some(mark) = self.methods.in_flight_slots.get(index) {
            mark.store(self.place + 1, Ordering::Relaxed);
        }
    }

    pub(super) fn ended(self, index: usize, failed: bool) {
        if let Some(mark) = self.methods.in_flight_slots.get(index) {
            mark.store(0, Ordering::Relaxed);
        }
        if let Some(counters) = self.counters() {
            counters.done.fetch_add(1, Ordering::Relaxed);
            counters
                .failed
                .fetch_add(u64::from(failed), Ordering::Relaxed);
        }
    }
}

impl Methods {
    pub(super) const fn new() -> Self {
        Self {
            in_flight_slots: [const { AtomicU8::new(0) }; 256],
            table: [const { Counters::new() }; METHODS],
        }
    }

    /// What the worker before left in the gauges is void, and so is a name that it has not written to
    /// its end: the place is free again. Called before anything runs.
    pub(super) fn take_over(&self) {
        for mark in &self.in_flight_slots {
            mark.store(0, Ordering::Relaxed);
        }
        for counters in &self.table {
            counters.queued.store(0, Ordering::Relaxed);
            counters.free_if_unfinished();
        }
    }

    /// The place of *name*: its own, a free one, or the last.
    fn enter(&self, name: &str) -> u8 {
        let name = match cut(name) {
            "" => "?",
            name => name,
        };
        for (place, counters) in (0..).zip(&self.table[..LAST]) {
            if counters.is_or_becomes(name) {
                return place;
            }
        }
        self.table[LAST].is_or_becomes(OTHERS);
        u8::try_from(LAST).unwrap_or_default()
    }

    /// Copies of all that are named. Gauges are shown only of a worker that lives.
    ///
    /// *began* says when the request in each of the row's in-flight slots began; 0 for none.
    pub(super) fn read(
        &self,
        began: impl Iterator<Item = u64>,
        is_alive: bool,
    ) -> Vec<MethodSnapshot> {
        let mut found: Vec<_> = self.table.iter().map(Counters::read).collect();
        if !is_alive {
            for method in &mut found {
                method.queued = 0;
            }
        }
        let marks = self.in_flight_slots.iter().zip(began);
        for (mark, began) in marks.take_while(|_| is_alive) {
            let place = usize::from(mark.load(Ordering::Relaxed));
            let method = place.checked_sub(1).and_then(|place| found.get_mut(place));
            if let (Some(method), true) = (method, began != 0) {
                method.running += 1;
                let oldest = method.oldest_since.unwrap_or(began);
                method.oldest_since = Some(oldest.min(began));
            }
        }
        found.retain(|method| !method.name.is_empty());
        found
    }
}

impl Counters {
    const fn new() -> Self {
        Self {
            name: [const { AtomicU8::new(0) }; NAME_BYTES],
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            queued: AtomicU32::new(0),
        }
    }

    /// Its writer has ended: a thread that lives could go on writing.
    fn free_if_unfinished(&self) {
        let [first, rest @ ..] = &self.name;
        if first.load(Ordering::Acquire) == CLAIMED {
            for byte in rest {
                byte.store(0, Ordering::Relaxed);
            }
            first.store(0, Ordering::Release);
        }
    }

    /// True where this is the place of *name*; a free one becomes it.
    fn is_or_becomes(&self, name: &str) -> bool {
        let [first, ..] = &self.name;
        let claim = first.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Acquire);
        if claim.is_ok() {
            // The first byte last: it says that the name is complete.
            for (place, byte) in self.name.iter().zip(name.bytes()).rev() {
                place.store(byte, Ordering::Release);
            }
            return true;
        }
        for _ in 0..LOOKS {
            if first.load(Ordering::Acquire) != CLAIMED {
                break;
            }
            std::thread::yield_now();
        }
        self.is_called(name)
    }

    fn is_called(&self, name: &str) -> bool {
        let wanted = name.bytes().chain([0]);
        let is_it = |(byte, wanted): (&AtomicU8, u8)| byte.load(Ordering::Acquire) == wanted;
        self.name.iter().zip(wanted).all(is_it)
    }

    /// Empty until it is complete.
    fn name(&self) -> String {
        if self.name[0].load(Ordering::Acquire) == CLAIMED {
            return String::new();
        }
        let bytes = self.name.iter().map(|byte| byte.load(Ordering::Relaxed));
        let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn read(&self) -> MethodSnapshot {
        MethodSnapshot {
            name: self.name(),
            queued: self.queued.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            ..MethodSnapshot::default()
        }
    }
}

/// *name* cut to what a table holds, between two letters: a NUL ends it there.
fn cut(name: &str) -> &str {
    let name = name.split('\0').next().unwrap_or_default();
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::super::row::Row;
    use super::*;

    fn method(methods: &'static Methods, name: &str) -> Method {
        let place = methods.enter(name);
        Method { methods, place }
    }

    fn leaked() -> &'static Methods {
        Box::leak(Box::new(Methods::new()))
    }

    #[test]
    fn requests_of_a_method_are_counted_from_queue_to_end() {
        let (row, methods) = (Row::new(), leaked());
        let build = method(methods, "build");
        let ping = method(methods, "ping");

        let first = row.begin_method(Some(build));
        let mut second = row.begin_method(Some(build));
        drop(row.begin_method(Some(ping)));
        second.fail();
        drop(second);

        let seen = methods.read(row.began(), true);
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].name.as_str(), seen[0].running), ("build", 1));
        assert_eq!((seen[0].done, seen[0].failed), (1, 1));
        assert!(seen[0].oldest_since.is_some());
        assert_eq!((seen[1].name.as_str(), seen[1].done), ("ping", 1));
        assert_eq!((seen[1].running, seen[1].oldest_since), (0, None));
        drop(first);
    }

    #[test]
    fn more_names_than_places_share_the_last_one() {
        let methods = leaked();

        let places: Vec<_> = (0..100).map(|n| methods.enter(&format!("m{n}"))).collect();

        assert_eq!(places[..61], (0..61).collect::<Vec<u8>>()[..]);
        assert!(places[61..].iter().all(|place| *place == 61));
        let seen = methods.read(Row::new().began(), true);
        assert_eq!(seen[61].name, OTHERS);
        assert_eq!(methods.enter("m7"), 7, "a known name keeps its place");
    }

    #[test]
    fn a_dead_workers_gauges_are_not_shown() {
        let (row, methods) = (Row::new(), leaked());
        let build = method(methods, "build");
        build.counters().unwrap().queued.store(5, Ordering::Relaxed);
        let _running = row.begin_method(Some(build));

        let seen = methods.read(row.began(), false);

        assert_eq!((seen[0].queued, seen[0].running), (0, 0));
    }

    #[test]
    fn a_name_that_several_threads_enter_at_once_has_one_place() {
        let methods = leaked();
        let names = ["a", "b", "c", "d", ""];
        let enter = || names.map(|name| methods.enter(name));

        let places = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(enter)).collect();
            let ended = threads.into_iter().map(|thread| thread.join().unwrap());
            ended.collect::<std::collections::HashSet<_>>()
        });

        assert_eq!(places.len(), 1);
        assert_eq!(methods.read(Row::new().began(), true).len(), names.len());
    }

    #[test]
    fn a_name_whose_writer_has_gone_holds_nobody_up() {
        let methods = leaked();
        methods.table[0].name[0].store(CLAIMED, Ordering::Relaxed);

        assert_eq!(methods.enter("build"), 1);
        let seen = methods.read(Row::new().began(), true);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].name, "build");
    }

    #[test]
    fn the_next_worker_has_the_place_of_a_name_that_was_not_written_to_its_end() {
        let methods = leaked();
        let [first, .., last] = &methods.table[0].name;
        first.store(CLAIMED, Ordering::Relaxed);
        last.store(b'x', Ordering::Relaxed);
        assert_eq!(methods.enter("build"), 1);

        methods.take_over();

        let seen = || methods.read(Row::new().began(), true);
        assert_eq!(seen().len(), 1, "a free place hides none behind it");
        assert_eq!([methods.enter("ping"), methods.enter("build")], [0, 1]);
        let found = seen();
        let names: Vec<_> = found.iter().map(|method| method.name.as_str()).collect();
        assert_eq!(names, ["ping", "build"]);
    }

    #[test]
    fn names_that_come_once_keep_none_from_being_known() {
        let (methods, mut known) = (leaked(), Known::of(ptr::null()));
        methods.enter("build");
        let long = "é".repeat(60); // cut, so each has the same place
        for number in 0..1000 {
            known.place(methods, &format!("{long}{number}"));
            known.place(methods, &format!("m{number}"));
        }

        known.place(methods, "build");

        assert!(known.places.contains_key("build"), "{:?}", known.places);
        assert!(known.places.len() <= METHODS);
        assert_eq!(known.place(methods, "m999"), 61);
        assert!(!known.places.contains_key("m999"), "it has no place");
    }

    #[test]
    fn a_name_ends_at_its_first_nul_and_has_one_place() {
        let methods = leaked();

        for _ in 0..3 {
            assert_eq!(methods.enter("\0build"), 0);
            assert_eq!(methods.enter("build\0x"), 1);
        }

        let seen = methods.read(Row::new().began(), true);
        let names: Vec<_> = seen.iter().map(|method| method.name.as_str()).collect();
        assert_eq!(names, ["?", "build"]);
    }

    #[test]
    fn a_long_name_is_cut_between_letters() {
        let methods = leaked();
        let name = "é".repeat(60);

        let place = methods.enter(&name);

        assert_eq!(methods.enter(&name), place);
        assert_eq!(
            methods.read(Row::new().began(), true)[0].name,
            "é".repeat(48)
        );
    }
}
