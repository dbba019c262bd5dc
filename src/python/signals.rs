//! The boundary of the signals room: `signal.set_wakeup_fd`, parking, and every wait of a main
//! thread.
//!
//! CPython keeps the dispositions and runs the handlers; this file only makes sure that a main
//! thread parked in Rust wakes up and lets it (`PyErr_CheckSignals`). Where a control thread nudges the main
//! thread after each signal, the kernel ends the wait and nothing else is needed; elsewhere the wait
//! takes the wakeup fd, and an earlier owner, such as an asyncio loop, keeps receiving its bytes.
//!
//! INVARIANT: the mutexes here are locked only while the interpreter is attached, and no Python
//! code runs under them. The thread that forks is attached too, so a child never inherits one
//! that is locked.

use crate::locks::Mutex;
use crate::signals::{Wakeup, WakeupPipe, poll_readable};
use nix::errno::Errno;
use nix::unistd::gettid;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::IntoPyDict;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What `signal.set_wakeup_fd` says for "none".
const NO_FD: RawFd = -1;

/// How long a wait lasts at most that no pipe could be made for: a signal may have come just before.
const BLIND: Duration = Duration::from_millis(250);

/// The process whose control thread nudges its main thread after each signal; 0 is none.
static NUDGED: AtomicU32 = AtomicU32::new(0);
static INSTALLED: Mutex<Option<Arc<InstalledPipe>>> = Mutex::new(None);
static WAKEUP: Mutex<Option<(u32, Arc<Wakeup>)>> = Mutex::new(None);

/// The wakeup pipe of one process, as long as it is installed.
#[derive(Debug)]
struct InstalledPipe {
    pid: u32,
    /// Thread that installed it: the only one that may read it, and the one that runs handlers.
    main_thread: i32,
    pipe: WakeupPipe,
    /// Who owned `set_wakeup_fd` before.
    earlier: Mutex<Option<Owner>>,
}

/// Another owner of the wakeup fd. Its file is remembered too, since it may close the descriptor
/// without a word and its number be given to a file that must not get our bytes.
#[derive(Debug, Clone, Copy)]
struct Owner {
    fd: RawFd,
    file: (u64, u64),
}

/// What ended a wait. Nothing ready and no signals means that the deadline passed.
#[derive(Debug, Default)]
pub(super) struct Woken {
    /// Signals arrived, and their Python handlers have run.
    pub(super) signals: bool,
    /// Indexes of the descriptors that are readable.
    pub(super) ready: Vec<usize>,
}

/// Owns `signal.set_wakeup_fd` from now on (main thread only). Idempotent.
#[pyfunction]
pub(super) fn install_wakeup(py: Python<'_>) -> PyResult<()> {
    let installed = INSTALLED.lock().clone();
    if let Some(wakeup) = installed.as_ref().filter(|wakeup| wakeup.is_ours()) {
        return wakeup.claim(py);
    }
    let wakeup = Arc::new(InstalledPipe::new()?);
    wakeup.claim(py)?;
    if let Some(inherited) = installed {
        // After a fork set_wakeup_fd returned the parent's pipe, or whoever the parent was
        // forwarding to: neither may hear of this process' signals.
        let inherited_fds = [
            Some(inherited.write_fd()),
            inherited.earlier().map(|it| it.fd),
        ];
        if inherited_fds.contains(&wakeup.earlier().map(|owner| owner.fd)) {
            wakeup.set_earlier(None);
        }
    }
    *INSTALLED.lock() = Some(wakeup);
    Ok(())
}

/// Gives `signal.set_wakeup_fd` back to its earlier owner. Does nothing when not installed.
#[pyfunction]
pub(super) fn uninstall_wakeup(py: Python<'_>) -> PyResult<()> {
    let installed = INSTALLED.lock().clone();
    let Some(wakeup) = installed.filter(|wakeup| wakeup.is_ours()) else {
        return Ok(());
    };
    wakeup.release(py)?;
    *INSTALLED.lock() = None;
    Ok(())
}

/// Whether each signal ends the system call that the main thread waits in; see `_native.pyi`.
#[pyfunction]
pub(super) fn nudge_main_thread(is_nudged: bool) -> PyResult<()> {
    wakeup()?; // made now: later there may be no descriptor left
    let process = if is_nudged { std::process::id() } else { 0 };
    NUDGED.store(process, Ordering::Relaxed);
    Ok(())
}

/// Parks the calling thread until `wake()` or the timeout; see `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (timeout=None))]
pub(super) fn park(py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
    let deadline = deadline_in(timeout)?;
    loop {
        let wakeup = wakeup()?;
        if wakeup.take() {
            return Ok(true);
        }
        let woken = wait_once(py, &[wakeup.as_fd()], deadline)?;
        if woken.ready.is_empty() && !woken.signals {
            return Ok(wakeup.take());
        }
    }
}

/// Makes `park()` return, now or when it is entered next.
#[pyfunction]
pub(super) fn wake() -> PyResult<()> {
    wakeup()?.wake();
    Ok(())
}

/// Waits until one of *fds* is readable and returns the indexes of those that are; none means that
/// *deadline* passed. `None` waits for ever.
///
/// The interpreter is released. On the main thread Python signal handlers run promptly, whether or
/// not a wakeup pipe is installed, and an exception that they raise is returned. On any other
/// thread it only polls.
pub(super) fn wait_readable(
    py: Python<'_>,
    fds: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> PyResult<Vec<usize>> {
    loop {
        let woken = wait_once(py, fds, deadline)?;
        if !woken.ready.is_empty() || !woken.signals {
            return Ok(woken.ready);
        }
    }
}

/// Like [`wait_readable`], but returns after signals too, so that the caller can look at what their
/// handlers changed.
pub(super) fn wait_once(
    py: Python<'_>,
    fds: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> PyResult<Woken> {
    let installed = INSTALLED.lock().clone();
    if let Some(wakeup) = &installed
        && wakeup.is_ours()
    {
        if wakeup.main_thread != gettid().as_raw() {
            return poll_only(py, fds, deadline);
        }
        // Other code, such as asyncio, may have taken the wakeup fd: take it back.
        wakeup.claim(py)?;
        return wakeup.wait(py, fds, deadline);
    }
    if !is_main_thread(py)? {
        return poll_only(py, fds, deadline);
    }
    if installed.is_some() {
        install_wakeup(py)?; // forked since: the pipe is the parent's
        return wait_once(py, fds, deadline);
    }
    if NUDGED.load(Ordering::Relaxed) == std::process::id() {
        return poll_until_signal(py, fds, deadline);
    }
    // Without a pipe, a signal that another thread receives would not end the poll.
    let Ok(wakeup) = InstalledPipe::new() else {
        let soon = Instant::now() + BLIND;
        let until = deadline.map_or(soon, |deadline| deadline.min(soon));
        let mut woken = poll_until_signal(py, fds, Some(until))?;
        woken.signals |= woken.ready.is_empty() && deadline.is_none_or(|it| Instant::now() < it);
        return Ok(woken);
    };
    wakeup.claim(py)?;
    let woken = wakeup.wait(py, fds, deadline);
    wakeup.release(py)?;
    woken
}

/// The instant *timeout* seconds from now. `None`, which is for ever, gives `None`, and so does a time
/// that the clock cannot express.
///
/// # Errors
/// `ValueError` for a negative number or NaN.
pub(super) fn deadline_in(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = timeout else {
        return Ok(None);
    };
    Ok(Instant::now().checked_add(duration("timeout", seconds)?))
}

/// *seconds* as a duration; infinity is the longest one there is.
///
/// # Errors
/// `ValueError` for a negative number or NaN.
pub(super) fn duration(name: &str, seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(PyValueError::new_err(format!(
            "{name} must be a number of seconds, 0 or more, not {seconds}"
        )));
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

impl InstalledPipe {
    fn new() -> PyResult<Self> {
        Ok(Self {
            pid: std::process::id(),
            main_thread: gettid().as_raw(),
            pipe: WakeupPipe::new().map_err(os_error)?,
            earlier: Mutex::new(None),
        })
    }

    fn is_ours(&self) -> bool {
        self.pid == std::process::id()
    }

    fn write_fd(&self) -> RawFd {
        self.pipe.write_end().as_raw_fd()
    }

    /// The earlier owner, if its descriptor still is what it was.
    fn earlier(&self) -> Option<Owner> {
        self.earlier
            .lock()
            .filter(|owner| file_of(owner.fd) == Some(owner.file))
    }

    fn set_earlier(&self, owner: Option<Owner>) {
        *self.earlier.lock() = owner;
    }

    /// Takes the wakeup fd and remembers whom it was taken from.
    fn claim(&self, py: Python<'_>) -> PyResult<()> {
        let before = set_wakeup_fd(py, self.write_fd(), false)?;
        if before != self.write_fd() {
            // No one else, where this pipe was: the last owner has given up, as asyncio does at its end.
            self.set_earlier(file_of(before).map(|file| Owner { fd: before, file }));
        }
        Ok(())
    }

    /// Gives the wakeup fd back to its earlier owner, if that one still lives.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let before = set_wakeup_fd(py, NO_FD, true)?;
        self.drain();
        let heir = if before == self.write_fd() {
            self.earlier().map_or(NO_FD, |owner| owner.fd)
        } else {
            before
        };
        if heir != NO_FD && set_wakeup_fd(py, heir, true).is_err() {
            set_wakeup_fd(py, NO_FD, true)?; // it is being closed just now
        }
        Ok(())
    }

    fn wait(
        &self,
        py: Python<'_>,
        fds: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> PyResult<Woken> {
        let mut polled = Vec::with_capacity(fds.len() + 1);
        polled.push(self.pipe.read_end());
        polled.extend_from_slice(fds);
        py.check_signals()?; // what arrived before the pipe was ours left no byte in it
        loop {
            let ready = match py.detach(|| poll_readable(&polled, deadline)) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => vec![0],
                Err(errno) => return Err(os_error(errno)),
            };
            let signals = ready.first() == Some(&0) && self.drain() > 0;
            py.check_signals()?;
            let interrupted_by_nothing = ready == [0] && !signals;
            if !interrupted_by_nothing {
                let ready = ready
                    .into_iter()
                    .filter_map(|index| index.checked_sub(1))
                    .collect();
                return Ok(Woken { signals, ready });
            }
        }
    }

    /// Empties the pipe, passes the bytes on, and returns how many there were.
    fn drain(&self) -> usize {
        self.pipe.drain(|bytes| {
            if let Some(owner) = self.earlier() {
                forward(owner.fd, bytes);
            }
        })
    }
}

/// A wait that a signal ends which the kernel gives to this thread.
fn poll_until_signal(
    py: Python<'_>,
    fds: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> PyResult<Woken> {
    py.check_signals()?; // what has arrived already interrupts no system call
    let polled = py.detach(|| poll_readable(fds, deadline));
    py.check_signals()?;
    match polled {
        Ok(ready) => Ok(Woken {
            signals: false,
            ready,
        }),
        Err(Errno::EINTR) => Ok(Woken {
            signals: true,
            ready: Vec::new(),
        }),
        Err(errno) => Err(os_error(errno)),
    }
}

fn poll_only(py: Python<'_>, fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> PyResult<Woken> {
    loop {
        match py.detach(|| poll_readable(fds, deadline)) {
            Ok(ready) => {
                return Ok(Woken {
                    signals: false,
                    ready,
                });
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(os_error(errno)),
        }
    }
}

/// The wakeup of this process; a child makes its own, since an eventfd is shared across fork.
fn wakeup() -> PyResult<Arc<Wakeup>> {
    let mut current = WAKEUP.lock();
    match current.as_ref() {
        Some((pid, wakeup)) if *pid == std::process::id() => Ok(Arc::clone(wakeup)),
        _ => {
            let wakeup = Arc::new(Wakeup::new().map_err(os_error)?);
            *current = Some((std::process::id(), Arc::clone(&wakeup)));
            Ok(wakeup)
        }
    }
}

fn set_wakeup_fd(py: Python<'_>, fd: RawFd, warn_on_full_buffer: bool) -> PyResult<RawFd> {
    let options = [("warn_on_full_buffer", warn_on_full_buffer)].into_py_dict(py)?;
    // Not that of `signal`, which stands for the application's part where a control thread runs.
    py.import("_signal")?
        .call_method("set_wakeup_fd", (fd,), Some(&options))?
        .extract()
}

fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    main.eq(threading.call_method0("get_ident")?)
}

/// Device and inode of an open descriptor; `None` when it is closed.
#[expect(unsafe_code, reason = "the descriptor belongs to the application")]
fn file_of(fd: RawFd) -> Option<(u64, u64)> {
    if fd == NO_FD {
        return None;
    }
    // SAFETY: borrowed for this call only, which answers EBADF if it is closed.
    let stat = nix::sys::stat::fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// Best effort, as CPython's own write is: a full or vanished owner loses the byte.
#[expect(unsafe_code, reason = "the descriptor belongs to the application")]
fn forward(fd: RawFd, bytes: &[u8]) {
    // SAFETY: borrowed for this call only; CPython would write to the same number.
    let owner = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = nix::unistd::write(owner, bytes);
}

fn os_error(errno: Errno) -> PyErr {
    std::io::Error::from(errno).into()
}
