//! The watch thread of a worker: what has to work without the interpreter.
//!
//! Owns the answer to three events: the parent's death (end-of-file on the liveness pipe), the
//! deadline of a shutdown, and a signal that ends programs and that no handler has heard of. It needs
//! neither the interpreter nor any lock, so an application that spins with the interpreter held
//! leaves in time all the same. Never runs in a process that still
//! forks: a child would inherit the state without the thread.
//! Also owns the limits after which a worker asks for a successor (`limits`).
//! Rules: oslo.service ends its workers when the parent is gone; see docs/lifecycle.md.
#![expect(
    unsafe_code,
    reason = "dup3(2) onto a descriptor that a thread writes to"
)]

pub mod limits;

use crate::handlers;
use crate::locks::{Mutex, MutexGuard, held_by_forks};
use crate::scoreboard;
use crate::scoreboard::Worn;
use crate::threads::{self, Signals};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::unistd::{Pid, gettid, pipe2, read, write};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How long a worker may go on after its parent's death: long enough to answer what is in flight,
/// and short enough that all is gone within three seconds.
pub const GRACE_AFTER_PARENT: Duration = Duration::from_millis(2500);

const NEVER: u64 = u64::MAX;
/// Nanoseconds that the end of the watch thread is waited for: it takes microseconds.
const LONGEST_END: u64 = 1_000_000_000;
const STACK_BYTES: usize = 128 * 1024;
/// Signals that a launcher ends its process for.
const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGALRM];

static WATCH: Mutex<Option<Watch>> = Mutex::new(None);
static PARENT_DIED: AtomicBool = AtomicBool::new(false);

/// What a worker got from its parent.
#[derive(Debug)]
pub struct Parent {
    /// Read end of the liveness pipe.
    pub liveness: Arc<OwnedFd>,
    /// Write end of the notice pipe.
    pub notices: Arc<OwnedFd>,
    /// Becomes readable when the parent ends. Sees its death also while a stray child of it keeps
    /// the liveness pipe open.
    pub pidfd: Option<OwnedFd>,
}

/// The handle on the watch thread of one process.
#[derive(Debug)]
struct Watch {
    pid: u32,
    orders: Arc<Orders>,
    is_worker: bool,
    notices: Option<Arc<OwnedFd>>,
    /// The parent knows that this worker is ready.
    is_announced: bool,
}

/// What the watch thread is told, without a lock.
#[derive(Debug)]
struct Orders {
    wakeup: EventFd,
    /// `CLOCK_MONOTONIC` nanoseconds when the process ends, or [`NEVER`].
    deadline: AtomicU64,
    /// Nanoseconds between arming and the deadline, for the message.
    allowed: AtomicU64,
    /// Exit status of a process that the deadline ends.
    status: AtomicI32,
    /// The thread is told to end.
    is_over: AtomicBool,
    /// Its kernel id, once it runs.
    thread: AtomicI32,
    /// Where the C handlers of signals write numbers, and where the thread reads them.
    arriving: OwnedFd,
    arrived: OwnedFd,
    /// Where they are passed on to: one number for the whole life of the thread, which may be
    /// writing there while another file takes its place.
    relay: OwnedFd,
    /// Whether they are passed on.
    is_relaying: AtomicBool,
    /// Nanoseconds that the handler of a signal that ends programs has to run, or [`NEVER`].
    patience: AtomicU64,
    /// When the process ends because such a handler has not run, or [`NEVER`].
    unheard: AtomicU64,
}

/// Starts the watch thread of a worker that was just forked.
///
/// # Errors
/// When descriptors or threads are exhausted.
pub fn enter(parent: Parent) -> io::Result<()> {
    PARENT_DIED.store(false, Ordering::Relaxed);
    let notices = Some(Arc::clone(&parent.notices));
    *lock() = Some(Watch::start(Some(parent), notices)?);
    Ok(())
}

/// Shows this process as running, and tells its parent, once. Without a parent only the scoreboard
/// changes.
///
/// # Errors
/// What writing to the notice pipe gives; a parent that is gone is no error.
pub fn announce_ready() -> io::Result<()> {
    scoreboard::current().mark_ready();
    let is_first = lock()
        .as_mut()
        .is_some_and(|watch| !std::mem::replace(&mut watch.is_announced, true));
    if is_first { notify_parent() } else { Ok(()) }
}

/// Tells the parent that the configuration was mutated, as its SIGHUP asked. Does nothing before
/// [`announce_ready`]: the parent would take the one for the other.
///
/// # Errors
/// As for [`announce_ready`].
pub fn announce_reconfigured() -> io::Result<()> {
    if lock().as_ref().is_some_and(|watch| watch.is_announced) {
        notify_parent()
    } else {
        Ok(())
    }
}

/// Has the parent start a successor, which takes over before this worker is told to leave. Does
/// nothing without a parent.
pub fn ask_for_successor(why: Worn) {
    scoreboard::current().mark_worn(why);
    // A parent that is gone, or a pipe that is full of notices, is no reason to fail a request.
    let _ = notify(-std::process::id().cast_signed());
}

fn notify_parent() -> io::Result<()> {
    notify(std::process::id().cast_signed())
}

fn notify(notice: i32) -> io::Result<()> {
    let notices = lock()
        .as_ref()
        .filter(|watch| watch.is_ours())
        .and_then(|it| it.notices.clone());
    let Some(notices) = notices else {
        return Ok(());
    };
    let notice = notice.to_ne_bytes();
    loop {
        match write(&notices, &notice) {
            Err(Errno::EINTR) => {}
            Ok(_) | Err(Errno::EPIPE) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The watch thread looks at the limits of this worker again.
fn wake_watch() {
    if let Some(watch) = lock().as_ref().filter(|watch| watch.is_ours()) {
        watch.orders.wake();
    }
}

/// True once the parent is known to be gone.
#[must_use]
pub fn parent_died() -> bool {
    PARENT_DIED.load(Ordering::Relaxed)
}

/// Ends this process with *status* after *allowed*, zero being at once, unless it left before. Of
/// several deadlines the nearest holds, with the status of the last call. Starts the watch thread
/// where there is none.
///
/// # Errors
/// When descriptors or threads are exhausted.
pub fn arm_deadline(allowed: Duration, status: i32) -> io::Result<()> {
    let mut current = lock();
    let watch = match current.take() {
        Some(watch) if watch.is_ours() => watch,
        Some(_) | None => Watch::start(None, None)?,
    };
    let watch = current.insert(watch);
    scoreboard::current().mark_leaving();
    let allowed = nanoseconds(allowed);
    let deadline = scoreboard::now().saturating_add(allowed);
    watch.orders.status.store(status, Ordering::Relaxed);
    if deadline < watch.orders.deadline.fetch_min(deadline, Ordering::Relaxed) {
        watch.orders.allowed.store(allowed, Ordering::Relaxed);
    }
    watch.orders.wake();
    Ok(())
}

/// Passes the number of each signal on to *to*, which does not block, and returns the descriptor that
/// the C handlers of signals are to write to. If a signal that ends programs is not acknowledged by
/// [`signals_heard`] within *patience*, this process ends with status 1. Starts the watch thread where
/// there is none. The descriptor is valid until [`stop_relaying`]; until then *to* is kept open.
///
/// # Errors
/// When descriptors or threads are exhausted.
pub fn relay_signals(to: &OwnedFd, patience: Duration) -> io::Result<RawFd> {
    let mut current = lock();
    let watch = match current.take() {
        Some(watch) if watch.is_ours() => watch,
        Some(_) | None => Watch::start(None, None)?,
    };
    let watch = current.insert(watch);
    let orders = &watch.orders;
    orders.unheard.store(NEVER, Ordering::Relaxed);
    orders
        .patience
        .store(nanoseconds(patience), Ordering::Relaxed);
    orders.pass_on_to(to.as_fd())?;
    orders.is_relaying.store(true, Ordering::Release);
    Ok(orders.arriving.as_raw_fd())
}

/// How long the handler of a signal that ends programs may take from now on.
pub fn bound_unheard(patience: Duration) {
    if let Some(watch) = lock().as_ref().filter(|watch| watch.is_ours()) {
        let patience = nanoseconds(patience);
        watch.orders.patience.store(patience, Ordering::Relaxed);
    }
}

/// The handlers of all signals that arrived have run.
pub fn signals_heard() {
    if let Some(watch) = lock().as_ref().filter(|watch| watch.is_ours()) {
        watch.orders.unheard.store(NEVER, Ordering::Relaxed);
    }
}

/// Signals are not passed on any more. C handlers must write elsewhere by then.
pub fn stop_relaying() {
    if let Some(watch) = lock().as_ref().filter(|watch| watch.is_ours()) {
        let orders = &watch.orders;
        orders.is_relaying.store(false, Ordering::Release);
        // Gives the other end back. The thread may be in the middle of a write: a few bytes in an
        // eventfd do no harm.
        let _ = orders.pass_on_to(orders.wakeup.as_fd());
        orders.unheard.store(NEVER, Ordering::Relaxed);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NEVER)
}

/// Takes an armed deadline back: the shutdown is complete and the process goes on with something
/// else. That of a dead parent stays. Outside a worker the watch thread is ended too, unless it relays
/// signals, and has ended on return, so that the process may fork again.
pub fn disarm_deadline() {
    let mut current = lock();
    let Some(watch) = current.take_if(|watch| watch.is_ours()) else {
        return;
    };
    watch.orders.deadline.store(NEVER, Ordering::Relaxed);
    let stays = watch.is_worker || watch.orders.is_relaying.load(Ordering::Relaxed);
    watch.orders.is_over.store(!stays, Ordering::Relaxed);
    watch.orders.wake();
    if stays {
        *current = Some(watch);
    } else {
        drop(current);
        watch.orders.await_end();
    }
}

impl Watch {
    fn start(parent: Option<Parent>, notices: Option<Arc<OwnedFd>>) -> io::Result<Self> {
        let (arrived, arriving) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let wakeup = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let orders = Arc::new(Orders {
            relay: wakeup.as_fd().try_clone_to_owned()?,
            wakeup,
            deadline: AtomicU64::new(NEVER),
            allowed: AtomicU64::new(0),
            status: AtomicI32::new(1),
            is_over: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            arriving,
            arrived,
            is_relaying: AtomicBool::new(false),
            patience: AtomicU64::new(NEVER),
            unheard: AtomicU64::new(NEVER),
        });
        let theirs = Arc::clone(&orders);
        let is_worker = parent.is_some();
        let name = "osloxide-watch".to_owned();
        threads::start(name, STACK_BYTES, Signals::None, move || {
            watch(&theirs, parent);
        })?;
        Ok(Self {
            pid: std::process::id(),
            orders,
            is_worker,
            notices,
            is_announced: false,
        })
    }

    fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl Orders {
    fn wake(&self) {
        let _ = self.wakeup.write(1);
    }

    /// Passes on what the C handlers of signals have written.
    fn pass_on(&self) {
        let mut numbers = [0_u8; 256];
        while let Ok(count @ 1..) = read(&self.arrived, &mut numbers) {
            let numbers = &numbers[..count];
            let ends = |number: &u8| ENDING.contains(&i32::from(*number));
            let patience = self.patience.load(Ordering::Relaxed);
            if numbers.iter().any(ends) && patience != NEVER {
                // Before the number is passed on: who reads it may acknowledge it at once.
                let deadline = scoreboard::now().saturating_add(patience);
                self.unheard.fetch_min(deadline, Ordering::Relaxed);
            }
            if self.is_relaying.load(Ordering::Acquire) {
                let _ = write(&self.relay, numbers); // a full pipe wakes its reader as well
            }
        }
    }

    /// Has the number of `relay` stand for the file of *to*, at once: there is no moment in which it
    /// stands for none.
    fn pass_on_to(&self, to: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: both are open, and what the second stood for is this struct's own and no other's.
        let made = unsafe { libc::dup3(to.as_raw_fd(), self.relay.as_raw_fd(), libc::O_CLOEXEC) };
        Errno::result(made).map(drop).map_err(io::Error::from)
    }

    /// Waits until the kernel has forgotten the thread. Joining it would end a moment earlier, and
    /// code that counts threads before a fork would still find it.
    fn await_end(&self) {
        let is_there = |thread: i32| Path::new(&format!("/proc/self/task/{thread}")).exists();
        let begun = scoreboard::now();
        while scoreboard::now() - begun < LONGEST_END {
            let thread = self.thread.load(Ordering::Relaxed);
            if thread != 0 && !is_there(thread) {
                return;
            }
            thread::sleep(Duration::from_micros(100));
        }
    }
}

/// Lets children use all of this whatever other threads do when they are forked: a thread that serves
/// asks for a successor without the interpreter. To be called before any other function.
///
/// # Errors
/// When memory is exhausted.
pub fn keep_free() -> io::Result<()> {
    held_by_forks!(WATCH, Option<Watch>)
}

/// Locked for moments and only by threads that do not fork under it; the watch thread never does.
fn lock() -> MutexGuard<'static, Option<Watch>> {
    WATCH.lock()
}

fn watch(orders: &Orders, mut parent: Option<Parent>) {
    orders.thread.store(gettid().as_raw(), Ordering::Relaxed);
    let mut end_after_parent = NEVER;
    while !orders.is_over.load(Ordering::Relaxed) {
        let armed = orders.deadline.load(Ordering::Relaxed);
        let now = scoreboard::now();
        if now >= end_after_parent {
            let line = format!(
                "osloxide: process {}: its parent is gone and it was still busy {} s later; \
                 exiting with status 1\n",
                std::process::id(),
                GRACE_AFTER_PARENT.as_secs_f64()
            );
            handlers::leave(line.as_bytes(), 1);
        }
        if now >= armed {
            let status = orders.status.load(Ordering::Relaxed);
            let line = format!(
                "osloxide: process {} had {:.3} s to leave and is still there; \
                 exiting with status {status}\n",
                std::process::id(),
                Duration::from_nanos(orders.allowed.load(Ordering::Relaxed)).as_secs_f64()
            );
            handlers::leave(line.as_bytes(), status);
        }
        let unheard = orders.unheard.load(Ordering::Relaxed);
        if now >= unheard {
            let patience = orders.patience.load(Ordering::Relaxed);
            handlers::leave_unheard(Duration::from_nanos(patience));
        }
        let by_limit = limits::look(now);
        let next = armed.min(end_after_parent).min(by_limit).min(unheard);
        if wait(orders, parent.as_ref(), next, now) {
            parent = None;
            PARENT_DIED.store(true, Ordering::Relaxed);
            end_after_parent = scoreboard::now().saturating_add(nanoseconds(GRACE_AFTER_PARENT));
            // The same way as any other shutdown: Python's handler drains.
            let _ = kill(Pid::this(), Signal::SIGTERM);
        }
    }
}

/// Waits for an order, the deadline, or the parent's end, and returns true for the last.
fn wait(orders: &Orders, parent: Option<&Parent>, deadline: u64, now: u64) -> bool {
    let mut polled = vec![
        readable(orders.wakeup.as_fd()),
        readable(orders.arrived.as_fd()),
    ];
    if let Some(parent) = parent {
        polled.push(readable(parent.liveness.as_fd()));
        polled.extend(parent.pidfd.as_ref().map(|pidfd| readable(pidfd.as_fd())));
    }
    let left = (deadline != NEVER)
        .then(|| TimeSpec::from(Duration::from_nanos(deadline.saturating_sub(now))));
    if ppoll(&mut polled, left, None).is_err() {
        return false; // EINTR cannot be: all signals are blocked; ENOMEM: try again
    }
    let is_readable = |fd: &PollFd<'_>| fd.any() == Some(true);
    if is_readable(&polled[0]) {
        let _ = orders.wakeup.read();
    }
    if is_readable(&polled[1]) {
        orders.pass_on();
    }
    polled[2..].iter().any(is_readable)
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "wsgi")]
    use crate::locks::children;
    use std::time::Instant;

    /// All tests have the process's one watch thread.
    static TURN: Mutex<()> = Mutex::new(());

    #[test]
    fn a_deadline_that_was_taken_back_leaves_no_thread() {
        let _turn = TURN.lock();
        let threads = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let names =
                tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
            names
                .filter(|name| name.starts_with("osloxide-watch"))
                .count()
        };
        for _ in 0..50 {
            arm_deadline(Duration::from_secs(3600), 1).unwrap();
            disarm_deadline();
            assert_eq!(threads(), 0);
        }
        disarm_deadline();
    }

    #[test]
    fn what_signals_are_relayed_to_is_closed_when_that_ends() {
        let _turn = TURN.lock();
        for _ in 0..50 {
            let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
            relay_signals(&write_end, Duration::from_secs(3600)).unwrap();
            // A second launcher of the same process takes it over.
            let (next_read_end, next_write_end) =
                pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
            relay_signals(&next_write_end, Duration::from_secs(3600)).unwrap();
            drop((write_end, next_write_end));
            let is_closed = |end: &OwnedFd| read(end, &mut [0]) == Ok(0);
            // A child that another test forks has a copy until its execve(2).
            let closes = |end: &OwnedFd| {
                let until = Instant::now() + Duration::from_secs(60);
                while !is_closed(end) && Instant::now() < until {
                    thread::yield_now();
                }
                is_closed(end)
            };
            assert!(closes(&read_end));
            assert!(!is_closed(&next_read_end));
            stop_relaying();
            assert!(closes(&next_read_end));
        }
        disarm_deadline();
    }

    #[cfg(feature = "wsgi")]
    #[test]
    fn a_child_arms_a_deadline_while_threads_of_its_parent_look_at_theirs() {
        let _turn = TURN.lock();
        keep_free().unwrap();
        let is_over = AtomicBool::new(false);

        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    wake_watch();
                }
            });
            let arm = || {
                arm_deadline(Duration::from_secs(3600), 1).unwrap();
                disarm_deadline();
            };
            let run = |_| children::run(arm);
            let failed = (0..50).map(run).find(|status| !children::has_done(status));
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }

    #[test]
    fn outside_a_worker_there_is_no_parent_to_tell_or_to_lose() {
        assert!(announce_ready().is_ok());
        assert!(!parent_died());
    }
}
