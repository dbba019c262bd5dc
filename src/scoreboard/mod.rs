//! Counters that every process of a launcher shares, in a memfd that outsiders can read.
//!
//! Owns the layout of the shared memory: a header page, then one [`Row`] for each worker process,
//! then one table of named counters for each.
//! The parent writes who a row belongs to and its state; the worker counts in it with relaxed
//! atomics. Takes no lock and needs no live writer, so a worker that is killed in the middle of a
//! request leaves nothing broken; the parent clears its gauges when it reaps.
//! Sealing and naming: `memfd_create(2)`, `fcntl(2)` with `F_ADD_SEALS`.
#![expect(unsafe_code, reason = "mmap(2) and references into the mapping")]

mod broker;
mod figures;
mod methods;
#[cfg(test)]
mod probes;
mod queued;
mod row;
mod snapshot;
mod worn;

pub use broker::{BrokerFigures, BrokerGauges, BrokerSnapshot};
pub use figures::{FigureSnapshot, Figures, TIME_BOUNDS};
pub use methods::METHODS;
pub use queued::Queued;
pub use row::{Assignment, InFlight, Row, now};
pub use snapshot::{MethodSnapshot, Snapshot, State};
pub use worn::Worn;

use methods::Methods;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::ftruncate;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::{fs, io, ptr, slice};

/// Processes that one launcher can account for, workers that are being replaced included: a slot
/// keeps as many rows as it ever needed at once.
pub const CAPACITY: usize = 4096;

/// Requests in flight whose age is known, in one process; any above that are only counted.
const IN_FLIGHT_MAX: usize = 216;
const MEMFD_NAME: &str = "osloxide-scoreboard";
const MAGIC: u64 = u64::from_be_bytes(*b"osloxide");
const VERSION: u32 = 6;
const HEADER_BYTES: usize = 4096;
const METHODS_AT: usize = HEADER_BYTES + CAPACITY * size_of::<Row>();
const TOTAL_BYTES: usize = METHODS_AT + CAPACITY * size_of::<Methods>();
const NAME_BYTES: usize = 128;
const GROUP_NAME_BYTES: usize = 64;
/// Groups whose names are kept; those of any further ones are not shown.
const NAMED_GROUPS: usize = 60;

/// Why a scoreboard cannot be made, found or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {action} the scoreboard")]
    Os {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process has no scoreboard, or there is no such process.
    #[error("process {0} has no scoreboard; name the parent or a worker of an osloxide launcher")]
    NotFound(i32),
    /// A scoreboard with another layout.
    #[error(
        "the scoreboard of process {pid} is not of layout {VERSION}; use the osloxide that it runs"
    )]
    Foreign {
        /// The process that was looked at.
        pid: i32,
    },
    /// All rows are taken.
    #[error("the scoreboard is full: it has {CAPACITY} rows; use fewer workers")]
    Full,
    /// Only the owner and its workers may write.
    #[error("the scoreboard was attached and is read-only")]
    ReadOnly,
}

/// What a memfd of another process is that has the name of a scoreboard.
#[derive(Debug)]
enum Memory {
    Ready(Scoreboard),
    /// Its process is making it just now: sealed comes after sized, and the mark comes last.
    Unfinished,
    /// Of another layout.
    Foreign,
}

#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    capacity: AtomicU32,
    row_bytes: AtomicU32,
    pid: AtomicU32,
    started_at: AtomicU64,
    /// Rows that were ever used; readers stop there, which keeps the rest of the memory unmade.
    used: AtomicU32,
    name: [AtomicU8; NAME_BYTES],
    groups: [[AtomicU8; GROUP_NAME_BYTES]; NAMED_GROUPS],
}

/// The row of this process: what server and pool count in.
///
/// Before a worker claims its row, and in processes that never do, this is a private one that
/// nobody reads; so callers need no special case.
#[must_use]
pub fn current() -> &'static Row {
    static PRIVATE: Row = Row::new();
    let row = CURRENT.load(Ordering::Acquire);
    if row.is_null() {
        return &PRIVATE;
    }
    // SAFETY: claim() stores only rows of mappings that are never unmapped (see Drop).
    unsafe { &*row }
}

static CURRENT: AtomicPtr<Row> = AtomicPtr::new(ptr::null_mut());

/// The table beside [`current`].
fn current_methods() -> &'static Methods {
    static PRIVATE: Methods = Methods::new();
    let methods = CURRENT_METHODS.load(Ordering::Acquire);
    if methods.is_null() {
        return &PRIVATE;
    }
    // SAFETY: as for the row.
    unsafe { &*methods }
}

static CURRENT_METHODS: AtomicPtr<Methods> = AtomicPtr::new(ptr::null_mut());

/// The shared memory, made by a parent or attached read-only by an outsider.
#[derive(Debug)]
pub struct Scoreboard {
    memory: NonNull<u8>,
    writable: bool,
    /// Kept open so that others find the memory through `/proc/PID/fd`.
    memfd: OwnedFd,
}

// SAFETY: all shared state behind the pointer is atomic, and the mapping lives as long as self.
unsafe impl Send for Scoreboard {}
// SAFETY: as for Send; no method hands out a non-atomic reference.
unsafe impl Sync for Scoreboard {}

impl Scoreboard {
    /// Makes a scoreboard with all rows free. *name* is for display; it is cut at 128 bytes.
    ///
    /// # Errors
    /// [`Error::Os`] when memory or descriptors are exhausted.
    pub fn new(name: &str) -> Result<Self, Error> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memfd = memfd_create(MEMFD_NAME, flags).map_err(os("create"))?;
        let bytes = i64::try_from(TOTAL_BYTES).map_err(|_| Error::Full)?;
        let board = match ftruncate(&memfd, bytes) {
            // This process may make no file so long (RLIMIT_FSIZE).
            Err(Errno::EFBIG) => Self::map_unseen(memfd)?,
            sized => {
                sized.map_err(os("size"))?;
                // A reader must never see the memory shrink under it: that would be a SIGBUS.
                let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
                fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).map_err(os("seal"))?;
                Self::map(memfd, true)?
            }
        };
        let header = board.header();
        header.pid.store(std::process::id(), Ordering::Relaxed);
        header.started_at.store(now(), Ordering::Relaxed);
        header.version.store(VERSION, Ordering::Relaxed);
        header
            .capacity
            .store(u32::try_from(CAPACITY).unwrap_or(0), Ordering::Relaxed);
        header.row_bytes.store(
            u32::try_from(size_of::<Row>()).unwrap_or(0),
            Ordering::Relaxed,
        );
        write_name(&header.name, name);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(board)
    }

    /// Maps the scoreboard of process *pid* read-only. Where a process has several, the one that it
    /// made itself and made last.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Foreign`], or [`Error::Os`] when `/proc/PID` may not be read.
    pub fn attach(pid: i32) -> Result<Self, Error> {
        let listing = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NotFound(pid));
            }
            Err(source) => {
                return Err(Error::Os {
                    action: "look for",
                    source,
                });
            }
        };
        let prefix = format!("/memfd:{MEMFD_NAME}");
        let mut found: Option<Self> = None;
        let mut is_foreign = false;
        for entry in listing.flatten() {
            let is_memfd = fs::read_link(entry.path())
                .is_ok_and(|target| target.to_string_lossy().starts_with(&prefix));
            if !is_memfd {
                continue;
            }
            let Ok(memfd) = open(
                &entry.path(),
                OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            ) else {
                continue; // closed since
            };
            match Self::checked(memfd)? {
                Memory::Ready(board) => {
                    let rank =
                        |board: &Self| (board.pid().cast_signed() == pid, board.started_at());
                    if found.as_ref().is_none_or(|best| rank(&board) > rank(best)) {
                        found = Some(board);
                    }
                }
                Memory::Unfinished => {}
                Memory::Foreign => is_foreign = true,
            }
        }
        match found {
            Some(board) => Ok(board),
            None if is_foreign => Err(Error::Foreign { pid }),
            None => Err(Error::NotFound(pid)),
        }
    }

    /// Reserves a row for a worker that is about to be forked and returns its index. The row of the
    /// slot's previous worker is used again once that one is gone.
    ///
    /// Only one process, the owner, may reserve.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::ReadOnly`].
    pub fn reserve(&self, assignment: Assignment) -> Result<usize, Error> {
        let rows = self.rows_for_writing()?;
        let index = rows
            .iter()
            .position(|row| row.is_left_by(assignment.slot))
            .or_else(|| (rows.len() < CAPACITY).then_some(rows.len()))
            .ok_or(Error::Full)?;
        let used = u32::try_from(index + 1).map_err(|_| Error::Full)?;
        let row = &self.all_rows()[index];
        row.assign(assignment);
        row.mark(State::Starting);
        self.header().used.fetch_max(used, Ordering::Release);
        Ok(index)
    }

    /// The row that [`Scoreboard::reserve`] returned, or `None` for a read-only scoreboard.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<&Row> {
        self.rows_for_writing().ok()?.get(index)
    }

    /// Makes the row reserved for *slot* and *generation* the [`current`] one of this process, or a
    /// fresh row where none was reserved (a launcher that does not fork).
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::ReadOnly`].
    pub fn claim(&self, slot: u32, generation: u32) -> Result<&'static Row, Error> {
        let pid = std::process::id();
        let is_reserved = |row: &Row| row.is_reserved_for(slot, generation, pid);
        let index = match self.rows_for_writing()?.iter().position(is_reserved) {
            Some(index) => index,
            None => self.reserve(Assignment {
                slot,
                group: 0,
                generation,
                respawns: 0,
                last_exit: None,
            })?,
        };
        let row = &raw const self.all_rows()[index];
        // SAFETY: the row is inside the mapping, which from here on is never unmapped (see Drop).
        let row: &'static Row = unsafe { &*row };
        row.mark_forked(pid);
        let methods = &raw const self.all_methods()[index];
        // SAFETY: as for the row.
        let methods: &'static Methods = unsafe { &*methods };
        if row.names_methods() {
            methods.take_over();
        }
        CURRENT_METHODS.store(ptr::from_ref(methods).cast_mut(), Ordering::Release);
        CURRENT.store(ptr::from_ref(row).cast_mut(), Ordering::Release);
        Ok(row)
    }

    /// Copies of all rows with something to show, ordered by slot and then by generation.
    #[must_use]
    pub fn read(&self) -> Vec<Snapshot> {
        let mut rows: Vec<_> = self.used_rows().iter().map(Row::read).collect();
        self.read_methods(&mut rows);
        let mut served: HashMap<u32, u64> = HashMap::new();
        for row in &rows {
            *served.entry(row.slot).or_default() += row.slot_served;
        }
        let mut figures: HashMap<u32, (FigureSnapshot, BrokerSnapshot)> = HashMap::new();
        for row in &rows {
            let (sum, broker) = figures.entry(row.slot).or_default();
            sum.add_counters(&row.figures);
            broker.add_counters(&row.broker);
        }
        rows.retain(|row| !matches!(row.state, State::Free | State::Replaced));
        for row in &mut rows {
            row.slot_served = served.get(&row.slot).copied().unwrap_or_default();
            row.figures = row.figures.gauges();
            row.broker = BrokerSnapshot {
                gauges: row.broker.gauges,
                ..BrokerSnapshot::default()
            };
            if let Some((sum, broker)) = figures.get(&row.slot) {
                row.figures.add_counters(sum);
                row.broker.add_counters(broker);
            }
        }
        rows.sort_by_key(|row| (row.slot, row.generation));
        rows
    }

    /// Adds the named counters to copies of all used rows, summed up over each slot.
    fn read_methods(&self, rows: &mut [Snapshot]) {
        let mut sums: HashMap<(u32, String), (u64, u64)> = HashMap::new();
        for ((copy, row), methods) in rows
            .iter_mut()
            .zip(self.used_rows())
            .zip(self.all_methods())
        {
            if row.names_methods() {
                copy.methods = methods.read(row.began(), copy.pid != 0);
            }
            for method in &copy.methods {
                let sum = sums.entry((copy.slot, method.name.clone())).or_default();
                sum.0 += method.done;
                sum.1 += method.failed;
            }
        }
        for copy in rows {
            let slot = copy.slot;
            for method in &mut copy.methods {
                if let Some(sum) = sums.get(&(slot, method.name.clone())) {
                    (method.done, method.failed) = *sum;
                }
            }
        }
    }

    /// The name given to [`Scoreboard::new`].
    #[must_use]
    pub fn name(&self) -> String {
        read_name(&self.header().name)
    }

    /// Records what *group* is called, for display; a name is cut at 64 bytes. Does nothing where
    /// the scoreboard is read-only, or has no place for it.
    pub fn name_group(&self, group: usize, name: &str) {
        if self.writable
            && let Some(place) = self.header().groups.get(group)
        {
            write_name(place, name);
        }
    }

    /// What *group* is called; empty when it has no name.
    #[must_use]
    pub fn group_name(&self, group: usize) -> String {
        let place = self.header().groups.get(group);
        place.map_or_else(String::new, |place| read_name(place))
    }

    /// The process that made it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.header().pid.load(Ordering::Relaxed)
    }

    /// `CLOCK_MONOTONIC` nanoseconds when it was made.
    #[must_use]
    pub fn started_at(&self) -> u64 {
        self.header().started_at.load(Ordering::Relaxed)
    }

    fn map(memfd: OwnedFd, writable: bool) -> Result<Self, Error> {
        let bytes = NonZeroUsize::new(TOTAL_BYTES).ok_or(Error::Full)?;
        let write = if writable {
            ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_NONE
        };
        let protection = ProtFlags::PROT_READ | write;
        // SAFETY: a new mapping that aliases no Rust object; the size is that of the sealed file.
        let memory = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, &memfd, 0) }
            .map_err(os("map"))?;
        Ok(Self {
            memory: memory.cast(),
            writable,
            memfd,
        })
    }

    /// Memory that this process and its workers share, and that no other process finds: *memfd* stays
    /// empty.
    fn map_unseen(memfd: OwnedFd) -> Result<Self, Error> {
        let bytes = NonZeroUsize::new(TOTAL_BYTES).ok_or(Error::Full)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping that aliases no Rust object.
        let memory = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_SHARED) }
            .map_err(os("map"))?;
        Ok(Self {
            memory: memory.cast(),
            writable: true,
            memfd,
        })
    }

    /// Maps a memfd of another process if it is a scoreboard of this layout.
    fn checked(memfd: OwnedFd) -> Result<Memory, Error> {
        let bytes = fstat(&memfd).map_err(os("stat"))?.st_size;
        let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(os("read the seals of"))?;
        if !SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
            return Ok(Memory::Unfinished);
        }
        if usize::try_from(bytes) != Ok(TOTAL_BYTES) {
            return Ok(Memory::Foreign);
        }
        let board = Self::map(memfd, false)?;
        let header = board.header();
        let magic = header.magic.load(Ordering::Acquire);
        let is_ours = magic == MAGIC
            && header.version.load(Ordering::Relaxed) == VERSION
            && header.capacity.load(Ordering::Relaxed) as usize == CAPACITY
            && header.row_bytes.load(Ordering::Relaxed) as usize == size_of::<Row>();
        Ok(match magic {
            0 => Memory::Unfinished,
            _ if is_ours => Memory::Ready(board),
            _ => Memory::Foreign,
        })
    }

    fn header(&self) -> &Header {
        const { assert!(size_of::<Header>() <= HEADER_BYTES) };
        // SAFETY: the mapping begins with a header, is page-aligned and at least that long; all
        // fields are atomics, for which every bit pattern is valid.
        unsafe { self.memory.cast::<Header>().as_ref() }
    }

    fn all_methods(&self) -> &[Methods] {
        // SAFETY: the offset is inside the mapping (see TOTAL_BYTES).
        let first = unsafe { self.memory.add(METHODS_AT) };
        // SAFETY: CAPACITY page-aligned tables of atomics end the mapping; every bit pattern is valid.
        unsafe { slice::from_raw_parts(first.cast::<Methods>().as_ptr(), CAPACITY) }
    }

    fn all_rows(&self) -> &[Row] {
        // SAFETY: the offset is inside the mapping (see TOTAL_BYTES).
        let first = unsafe { self.memory.add(HEADER_BYTES) };
        // SAFETY: CAPACITY rows of atomics follow the header page; every bit pattern is valid.
        unsafe { slice::from_raw_parts(first.cast::<Row>().as_ptr(), CAPACITY) }
    }

    fn used_rows(&self) -> &[Row] {
        let used = self.header().used.load(Ordering::Acquire) as usize;
        &self.all_rows()[..used.min(CAPACITY)]
    }

    fn rows_for_writing(&self) -> Result<&[Row], Error> {
        if self.writable {
            Ok(self.used_rows())
        } else {
            Err(Error::ReadOnly)
        }
    }
}

impl AsFd for Scoreboard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Drop for Scoreboard {
    fn drop(&mut self) {
        let rows = self.all_rows().as_ptr_range();
        if rows.contains(&CURRENT.load(Ordering::Acquire).cast_const()) {
            return; // threads of this process count in it for ever
        }
        // SAFETY: the mapping was made by map() or map_unseen() with this size, and no row was handed
        // out for longer than self lives, for only claim() does that.
        let _ = unsafe { munmap(self.memory.cast(), TOTAL_BYTES) };
    }
}

fn write_name(place: &[AtomicU8], name: &str) {
    let bytes = name.bytes().chain(std::iter::repeat(0));
    for (place, byte) in place.iter().zip(bytes) {
        place.store(byte, Ordering::Relaxed);
    }
}

fn read_name(place: &[AtomicU8]) -> String {
    let bytes = place.iter().map(|byte| byte.load(Ordering::Relaxed));
    let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn os(action: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Os {
        action,
        source: errno.into(),
    }
}

/// Subtracts one unless that would wrap: a gauge that was cleared in between stays at 0.
fn decrement(gauge: &AtomicU32) {
    let less = |value: u32| value.checked_sub(1);
    let _ = gauge.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment(slot: u32, generation: u32) -> Assignment {
        Assignment {
            slot,
            group: 7,
            generation,
            respawns: 3,
            last_exit: Some(9),
        }
    }

    #[test]
    fn a_reserved_row_shows_whom_it_is_for() {
        let board = Scoreboard::new("cinder-api").unwrap();

        board.reserve(assignment(2, 5)).unwrap();

        let rows = board.read();
        assert_eq!(board.name(), "cinder-api");
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].slot, rows[0].group, rows[0].generation), (2, 7, 5));
        assert_eq!((rows[0].respawns, rows[0].last_exit), (3, Some(9)));
        assert_eq!((rows[0].state, rows[0].pid), (State::Starting, 0));
    }

    #[test]
    fn a_worker_that_is_told_to_leave_before_it_has_claimed_its_row_finds_it() {
        let board = Scoreboard::new("").unwrap();
        let reserved = board.reserve(assignment(0, 4)).unwrap();
        let row = board.row(reserved).unwrap();
        row.mark_forked(77);
        row.mark(State::Draining);

        assert!(row.is_reserved_for(0, 4, 77));
        assert!(!row.is_reserved_for(0, 4, 78), "another process");
    }

    #[test]
    fn the_row_of_a_slot_is_reused_only_after_its_worker_is_gone() {
        let board = Scoreboard::new("").unwrap();
        let old = board.reserve(assignment(0, 0)).unwrap();
        let new = board.reserve(assignment(0, 1)).unwrap();
        assert_ne!(old, new);

        board.row(old).unwrap().mark_ended(State::Gone, 0);

        assert_eq!(board.reserve(assignment(0, 2)).unwrap(), old);
    }

    #[test]
    fn what_a_slot_served_outlives_its_workers() {
        let board = Scoreboard::new("").unwrap();
        let serve = |index: usize, requests: usize| {
            let row = board.row(index).unwrap();
            (0..requests).for_each(|_| drop(row.begin()));
        };
        let seen = || {
            let rows = board.read();
            let of_slot = rows.iter().filter(|row| row.slot == 0);
            of_slot
                .map(|row| (row.served, row.slot_served))
                .collect::<Vec<_>>()
        };
        let old = board.reserve(assignment(0, 0)).unwrap();
        serve(old, 5);
        let new = board.reserve(assignment(0, 1)).unwrap();
        serve(new, 2);
        assert_eq!(seen(), [(5, 7), (2, 7)]);

        board.row(old).unwrap().mark_ended(State::Replaced, 0);
        assert_eq!(seen(), [(2, 7)]);
        assert_ne!(
            board.reserve(assignment(1, 1)).unwrap(),
            old,
            "its slot's alone"
        );

        board.row(new).unwrap().mark_ended(State::Gone, 9);
        assert_eq!(seen(), [(2, 7)]);
        serve(board.reserve(assignment(0, 1)).unwrap(), 1);
        serve(board.reserve(assignment(0, 2)).unwrap(), 1);
        let mut seen = seen();
        seen.sort_unstable();
        assert_eq!(seen, [(1, 9), (1, 9)]);
    }

    #[test]
    fn requests_in_flight_are_counted_and_aged_beyond_the_slots_too() {
        let board = Scoreboard::new("").unwrap();
        let index = board.reserve(assignment(0, 0)).unwrap();
        let row = board.row(index).unwrap();
        let before = now();
        let flying: Vec<_> = (0..IN_FLIGHT_MAX + 10).map(|_| row.begin()).collect();

        let seen = &board.read()[0];
        assert_eq!(seen.in_flight as usize, IN_FLIGHT_MAX + 10);
        let oldest = seen.oldest_since.unwrap();
        assert!(oldest + 1_000_000_000 > before && oldest < now() + 1_000_000_000);

        drop(flying);
        let seen = &board.read()[0];
        assert_eq!((seen.in_flight, seen.oldest_since), (0, None));
        assert_eq!(seen.served, IN_FLIGHT_MAX as u64 + 10);
    }

    #[test]
    fn an_attached_scoreboard_shows_live_figures_and_cannot_be_written() {
        let board = Scoreboard::new("attached").unwrap();
        let index = board.reserve(assignment(4, 0)).unwrap();
        let pid = std::process::id().cast_signed();

        let view = Scoreboard::attach(pid).unwrap();
        board.row(index).unwrap().connection_opened();

        if view.name() == "attached" {
            // Other tests of this process may own the youngest scoreboard.
            assert_eq!(view.read()[0].connections, 1);
        }
        assert!(matches!(
            view.reserve(assignment(0, 0)),
            Err(Error::ReadOnly)
        ));
        assert!(matches!(view.claim(0, 0), Err(Error::ReadOnly)));
        assert!(view.row(0).is_none());
    }

    #[test]
    fn groups_are_called_what_they_were_named_last() {
        let board = Scoreboard::new("").unwrap();
        board.name_group(1, "a longer name");
        board.name_group(1, "CinderAPI");
        board.name_group(NAMED_GROUPS, "beyond");

        let names = [0, 1, NAMED_GROUPS].map(|group| board.group_name(group));

        assert_eq!(names, ["", "CinderAPI", ""]);
    }

    #[test]
    fn a_process_without_a_scoreboard_is_named() {
        let error = Scoreboard::attach(i32::MAX).unwrap_err();

        assert!(matches!(error, Error::NotFound(i32::MAX)));
    }

    #[test]
    fn a_scoreboard_that_is_being_made_is_none_yet_and_not_a_foreign_one() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let memfd = memfd_create(MEMFD_NAME, flags).unwrap();
        let seen = || Scoreboard::checked(memfd.try_clone().unwrap()).unwrap();

        assert!(matches!(seen(), Memory::Unfinished), "made");
        ftruncate(&memfd, i64::try_from(TOTAL_BYTES).unwrap()).unwrap();
        assert!(matches!(seen(), Memory::Unfinished), "sized");
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&memfd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        assert!(matches!(seen(), Memory::Unfinished), "sealed");

        let board = Scoreboard::map(memfd.try_clone().unwrap(), true).unwrap();
        board.header().magic.store(MAGIC, Ordering::Release);
        assert!(matches!(seen(), Memory::Foreign), "of no version");
    }

    #[test]
    fn the_memory_cannot_be_shrunk_under_a_reader() {
        let board = Scoreboard::new("").unwrap();

        assert_eq!(ftruncate(&board, 0), Err(Errno::EPERM));
    }
}
