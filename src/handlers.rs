//! C handlers of signals, for what must work while no Python code runs.
//!
//! Owns two. One ends process 1 at SIGTERM before a launcher has handlers: the kernel drops a signal
//! of process 1 that has none. The other is the guard of a process that has no thread which could
//! notice that its main thread hears no signal: it stands in front of CPython's own handler and arms
//! a timer of the kernel, which ends the process unless [`heard`] comes first. In a process that is
//! forked from there both do nothing. Also owns how a process is left with a last line, by a handler or
//! the watch thread of a worker. Nothing here allocates or takes a lock.
//! Rules: signal-safety(7), `timer_create(2)`, `pid_namespaces(7)`.
#![expect(
    unsafe_code,
    reason = "sigaction(2), timer_create(2), _exit(2), errno, and the call of CPython's handler"
)]

use nix::errno::Errno;
use nix::libc::{self, c_int};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;
use std::fmt::{self, Write};
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Signals that a launcher ends its process for.
const GUARDED: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGALRM];
const NEVER: u64 = u64::MAX;
const INIT: i32 = 1;

/// The process that is guarded; 0 is none. A child has the handlers of its parent and no timer.
static GUARDED_PID: AtomicI32 = AtomicI32::new(0);
/// Its timer: a number or a pointer, as the C library likes.
static TIMER: AtomicUsize = AtomicUsize::new(0);
/// Nanoseconds that a handler has to run, or [`NEVER`].
static PATIENCE: AtomicU64 = AtomicU64::new(NEVER);
static IS_ARMED: AtomicBool = AtomicBool::new(false);
/// The handlers that the guard stands in front of; 0 is none.
static BEHIND: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Ends this process with status 1 when, after SIGTERM, SIGINT or SIGALRM, [`heard`] is not called
/// within *patience*. Guards each of them that has a handler now; a handler that is installed later
/// takes the place of the guard. `None` ends it.
///
/// # Errors
/// When the kernel has no timer to give.
pub fn guard(patience: Option<Duration>) -> io::Result<()> {
    let Some(patience) = patience else {
        PATIENCE.store(NEVER, Ordering::Relaxed);
        heard();
        return Ok(());
    };
    let nanoseconds = u64::try_from(patience.as_nanos()).unwrap_or(NEVER);
    if GUARDED_PID.load(Ordering::Relaxed) != own_pid() {
        if !make_timer()? {
            return Ok(());
        }
        IS_ARMED.store(false, Ordering::Relaxed);
        GUARDED_PID.store(own_pid(), Ordering::Relaxed);
    }
    PATIENCE.store(nanoseconds, Ordering::Relaxed);
    for (signo, behind) in GUARDED.into_iter().zip(&BEHIND) {
        let mut action = action_of(signo)?;
        let is_plain = action.sa_flags & libc::SA_SIGINFO == 0;
        let handler = action.sa_sigaction;
        if is_plain && ![libc::SIG_DFL, libc::SIG_IGN, on_guarded()].contains(&handler) {
            behind.store(handler, Ordering::Relaxed);
            action.sa_sigaction = on_guarded();
            set_action(signo, &action)?;
        }
    }
    Ok(())
}

/// The handlers of all signals that arrived have run.
pub fn heard() {
    if GUARDED_PID.load(Ordering::Relaxed) == own_pid() && IS_ARMED.load(Ordering::Relaxed) {
        set_timer(0);
        IS_ARMED.store(false, Ordering::Relaxed);
    }
}

/// Has SIGTERM end this process, which is process 1, unless the signal has a handler or is ignored.
///
/// # Errors
/// What `sigaction(2)` gives.
pub fn end_init_at_sigterm() -> io::Result<()> {
    let mut action = action_of(libc::SIGTERM)?;
    if own_pid() == INIT && action.sa_sigaction == libc::SIG_DFL {
        let handler: extern "C" fn(c_int) = end_init;
        action.sa_sigaction = handler as usize;
        set_action(libc::SIGTERM, &action)?;
    }
    Ok(())
}

/// What the default does in any other process, and in a child of this one.
extern "C" fn end_init(signo: c_int) {
    if own_pid() == INIT {
        exit(128 + signo);
    }
    if let Ok(mut action) = action_of(signo) {
        action.sa_sigaction = libc::SIG_DFL;
        let _ = set_action(signo, &action);
        // SAFETY: the signal is blocked until this handler returns, and then ends the process.
        unsafe { libc::kill(own_pid(), signo) };
    }
}

fn on_guarded() -> usize {
    let handler: extern "C" fn(c_int) = arm;
    handler as usize
}

/// The guard: the timer runs from the first signal that is not heard.
extern "C" fn arm(signo: c_int) {
    let errno = Errno::last_raw();
    let patience = PATIENCE.load(Ordering::Relaxed);
    if patience != NEVER
        && GUARDED_PID.load(Ordering::Relaxed) == own_pid()
        && !IS_ARMED.swap(true, Ordering::Relaxed)
    {
        set_timer(patience.max(1));
    }
    Errno::set_raw(errno);
    let of_signal = GUARDED.iter().position(|guarded| *guarded == signo);
    let behind = of_signal.map_or(0, |index| BEHIND[index].load(Ordering::Relaxed));
    if behind != 0 {
        // SAFETY: sigaction(2) gave this address as that of a handler without SA_SIGINFO.
        let behind = unsafe { mem::transmute::<usize, extern "C" fn(c_int)>(behind) };
        behind(signo);
    }
}

/// The time is over.
extern "C" fn expire(_signo: c_int) {
    if GUARDED_PID.load(Ordering::Relaxed) != own_pid() || !IS_ARMED.load(Ordering::Relaxed) {
        return;
    }
    leave_unheard(Duration::from_nanos(PATIENCE.load(Ordering::Relaxed)));
}

/// Ends this process with status 1, with a line that no handler has run for so long.
pub(crate) fn leave_unheard(patience: Duration) -> ! {
    let mut line = Line::default();
    let _ = writeln!(
        line,
        "osloxide: process {}: a signal came {:.3} s ago, and what holds the interpreter or the main \
         thread has let no handler run since; exiting with status 1",
        own_pid(),
        patience.as_secs_f64()
    );
    leave(line.bytes.get(..line.length).unwrap_or_default(), 1)
}

/// Ends this process, with a last line where standard error takes it without blocking.
pub(crate) fn leave(line: &[u8], status: c_int) -> ! {
    let stderr = io::stderr();
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let is_polled = poll(&mut polled, PollTimeout::ZERO) == Ok(1);
    if is_polled && polled[0].revents() == Some(PollFlags::POLLOUT) {
        let _ = write(stderr.as_fd(), line);
    }
    exit(status)
}

/// Makes the timer of this process and the handler of its signal; false where the application uses
/// that signal.
fn make_timer() -> io::Result<bool> {
    let signo = libc::SIGRTMAX();
    let mut action = action_of(signo)?;
    let handler: extern "C" fn(c_int) = expire;
    if ![libc::SIG_DFL, handler as usize].contains(&action.sa_sigaction) {
        return Ok(false);
    }
    action.sa_sigaction = handler as usize;
    set_action(signo, &action)?;
    // SAFETY: all zeros is a value of both types.
    let (mut event, mut mask): (libc::sigevent, libc::sigset_t) = unsafe { mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = signo;
    let mut timer: libc::timer_t = ptr::null_mut();
    // SAFETY: both point to values of this frame.
    let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
    Errno::result(made)?;
    TIMER.store(timer.addr(), Ordering::Relaxed);
    // A process may be started with the signal blocked.
    // SAFETY: the set is of this frame.
    unsafe { libc::sigemptyset(&raw mut mask) };
    // SAFETY: as above.
    unsafe { libc::sigaddset(&raw mut mask, signo) };
    // SAFETY: as above; the earlier mask is not asked for.
    let unblocked =
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const mask, ptr::null_mut()) };
    debug_assert_eq!(unblocked, 0);
    Ok(true)
}

/// Has the timer pass once after so many nanoseconds; 0 is never.
fn set_timer(nanoseconds: u64) {
    let after = Duration::from_nanos(nanoseconds);
    // SAFETY: all zeros is a value of the type.
    let mut spec: libc::itimerspec = unsafe { mem::zeroed() };
    spec.it_value.tv_sec = after.as_secs().try_into().unwrap_or(libc::time_t::MAX);
    spec.it_value.tv_nsec = after.subsec_nanos().into();
    let timer = ptr::without_provenance_mut(TIMER.load(Ordering::Relaxed));
    // SAFETY: this process made the timer and never deletes it; the earlier value is not asked for.
    unsafe { libc::timer_settime(timer, 0, &raw const spec, ptr::null_mut()) };
}

fn action_of(signo: c_int) -> io::Result<libc::sigaction> {
    // SAFETY: all zeros is a value of the type.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: only reads the disposition, into a value of this frame.
    let got = unsafe { libc::sigaction(signo, ptr::null(), &raw mut action) };
    Errno::result(got)?;
    Ok(action)
}

fn set_action(signo: c_int, action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: the handler is one of this file, or the default, and lives as long as the process.
    let set = unsafe { libc::sigaction(signo, action, ptr::null_mut()) };
    Errno::result(set).map(drop).map_err(io::Error::from)
}

fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

fn exit(status: c_int) -> ! {
    // SAFETY: ends the process without running anything else; that is the point.
    unsafe { libc::_exit(status) }
}

/// A line of text without an allocation.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            length: 0,
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let room = room.get_mut(..text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}
