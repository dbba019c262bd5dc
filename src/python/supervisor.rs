//! The boundary of the supervisor room: commands become tuples, and its wait is that of a main
//! thread which runs Python signal handlers.
//!
//! INVARIANT: the supervisor's mutex is locked only while the interpreter is attached and never
//! while parked, so a forked child does not inherit it locked.
#![expect(unsafe_code, reason = "Python hands descriptors over as numbers")]

use crate::locks::Mutex;
use crate::python::errors::{invalid_request, invalid_signal, os_error};
use crate::python::scoreboard::Scoreboard;
use crate::python::signals::{duration, wait_once};
use crate::scoreboard::Worn;
use crate::signals::Request;
use crate::supervisor::process::System;
use crate::supervisor::{self, Command};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// The last real-time signal, on every architecture of Linux but MIPS.
const LAST_SIGNAL: i32 = 64;

type Native = supervisor::Supervisor<System>;

/// All supervisors of this process. A worker of one must close the parent's ends of the others
/// too: two launchers whose workers keep each other's liveness pipes open would never see the end.
static SUPERVISORS: Mutex<Vec<Weak<Native>>> = Mutex::new(Vec::new());

/// The parent's state machine; see `_native.pyi`.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Supervisor(pub(super) Arc<Native>);

/// In a forked child: closes what every supervisor of the parent held.
pub(super) fn leave_parenthood() {
    for supervisor in SUPERVISORS
        .lock()
        .drain(..)
        .filter_map(|supervisor| supervisor.upgrade())
    {
        supervisor.become_worker();
    }
}

#[pymethods]
impl Supervisor {
    #[new]
    fn new(py: Python<'_>, scoreboard: &Scoreboard) -> PyResult<Self> {
        keep_exit_statuses(py)?;
        let is_init = std::process::id() == 1;
        let native = Native::new(System, Arc::clone(&scoreboard.0), is_init)?;
        if is_init {
            wake_on_sigchld(py)?;
        }
        let native = Arc::new(native);
        let mut supervisors = SUPERVISORS.lock();
        supervisors.retain(|supervisor| supervisor.strong_count() > 0);
        supervisors.push(Arc::downgrade(&native));
        Ok(Self(native))
    }

    fn add_group(&self, name: &str, workers: usize) -> PyResult<usize> {
        Ok(self.0.add_group(name, workers)?)
    }

    fn resize(&self, group: usize, workers: usize) -> PyResult<()> {
        Ok(self.0.resize(group, workers, Instant::now())?)
    }

    fn set_graceful_timeout(&self, seconds: f64) -> PyResult<()> {
        self.0.set_grace(duration("graceful timeout", seconds)?);
        Ok(())
    }

    fn set_worker_timeout(&self, seconds: f64) -> PyResult<()> {
        self.0
            .set_worker_timeout(duration("worker timeout", seconds)?, Instant::now());
        Ok(())
    }

    fn set_tick(&self, seconds: f64) -> PyResult<()> {
        self.0.set_tick(duration("tick", seconds)?, Instant::now());
        Ok(())
    }

    fn adopt_orphans(&self, py: Python<'_>) -> PyResult<()> {
        self.0.adopt_orphans();
        wake_on_sigchld(py)
    }

    fn hold_forks(&self, held: bool) {
        self.0.hold_forks(held);
    }

    fn watch_templates(&self, fds: Vec<i32>) -> PyResult<()> {
        let copies: io::Result<Vec<OwnedFd>> = fds.into_iter().map(copy).collect();
        let copies = copies.map_err(|error| os_error("cannot watch a template", &error))?;
        self.0.watch_templates(copies);
        Ok(())
    }

    fn replace_workers(&self) {
        self.0.replace_workers(Instant::now());
    }

    fn reap_orphan(&self, pid: i32) -> Option<i32> {
        self.0.reap_orphan(pid)
    }

    fn request(&self, kind: &str) -> PyResult<()> {
        let request = match kind {
            "stop" => Request::Stop,
            "reload" => Request::Reload,
            "mutate" => Request::Mutate,
            "abort" => Request::Abort,
            _ => return Err(invalid_request(kind)),
        };
        self.0.request(request);
        Ok(())
    }

    fn due<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let command = self.0.due(Instant::now())?;
        command.map(|command| to_tuple(py, command)).transpose()
    }

    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let wait = |fds: &[BorrowedFd<'_>], deadline| Ok(wait_once(py, fds, deadline)?.signals);
        let command = self.0.next::<PyErr>(Instant::now, wait)?;
        command.map(|command| to_tuple(py, command)).transpose()
    }

    fn forked(&self, py: Python<'_>, slot: usize, pid: i32) -> PyResult<()> {
        let is_watched = self.0.forked(slot, pid, Instant::now())?;
        if !is_watched {
            wake_on_sigchld(py)?;
        }
        Ok(())
    }

    #[pyo3(signature = (slot, errno))]
    #[expect(
        unused_variables,
        reason = "every refusal is retried alike; Python logs the number"
    )]
    fn fork_failed(&self, slot: usize, errno: i32) -> PyResult<()> {
        Ok(self.0.fork_failed(slot, Instant::now())?)
    }

    fn configured(&self) {
        self.0.configured(Instant::now());
    }

    fn pids(&self) -> Vec<i32> {
        self.0.pids()
    }

    fn exit_status(&self) -> i32 {
        self.0.exit_status()
    }

    fn liveness_fd(&self) -> i32 {
        self.0.liveness().as_raw_fd()
    }

    fn notice_fd(&self) -> i32 {
        self.0.notices().as_raw_fd()
    }

    fn kill_all(&self, signal: i32) -> PyResult<()> {
        if !(1..=LAST_SIGNAL).contains(&signal) {
            return Err(invalid_signal(signal));
        }
        self.0.signal_all(signal);
        Ok(())
    }
}

fn to_tuple(py: Python<'_>, command: Command) -> PyResult<Bound<'_, PyTuple>> {
    match command {
        Command::Fork {
            group,
            slot,
            generation,
        } => ("fork", group, slot, generation).into_pyobject(py),
        Command::Reload => ("reload",).into_pyobject(py),
        Command::Mutate => ("mutate",).into_pyobject(py),
        Command::Stopping { count } => ("stopping", count).into_pyobject(py),
        Command::Exited {
            pid,
            group,
            slot,
            status,
            lifetime,
        } => ("exited", pid, group, slot, status, lifetime.as_secs_f64()).into_pyobject(py),
        Command::Orphan { pid } => ("orphan", pid).into_pyobject(py),
        Command::Backoff {
            group,
            slot,
            delay,
            failures,
        } => ("backoff", group, slot, delay.as_secs_f64(), failures).into_pyobject(py),
        Command::Late { slot, pid, waited } => {
            ("late", slot, pid, waited.as_secs_f64()).into_pyobject(py)
        }
        Command::Hung { slot, pid, silent } => {
            ("hung", slot, pid, silent.as_secs_f64()).into_pyobject(py)
        }
        Command::Worn {
            group,
            slot,
            pid,
            why,
        } => {
            let (why, number) = why.map_or(("", 0), Worn::parts);
            ("worn", group, slot, pid, why, number).into_pyobject(py)
        }
        Command::LeavesFirst {
            group,
            slot,
            pid,
            waited,
        } => {
            let waited = waited.map(|waited| waited.as_secs_f64());
            ("leaves_first", group, slot, pid, waited).into_pyobject(py)
        }
        Command::AllReady => ("all_ready",).into_pyobject(py),
        Command::Reloaded => ("reloaded",).into_pyobject(py),
        Command::Template => ("template",).into_pyobject(py),
        Command::Tick => ("tick",).into_pyobject(py),
        Command::Interrupted => ("interrupted",).into_pyobject(py),
    }
}

/// Where SIGCHLD is ignored, as some process managers leave it, the kernel throws exit statuses
/// away; so it is set back to its default.
fn keep_exit_statuses(py: Python<'_>) -> PyResult<()> {
    let signal = py.import("signal")?;
    let sigchld = signal.getattr("SIGCHLD")?;
    if signal
        .call_method1("getsignal", (&sigchld,))?
        .eq(signal.getattr("SIG_IGN")?)?
    {
        signal.call_method1("signal", (&sigchld, signal.getattr("SIG_DFL")?))?;
    }
    Ok(())
}

/// Has SIGCHLD wake the main thread where no descriptor tells of the end of a child. A handler of
/// the application does that as well and stays.
fn wake_on_sigchld(py: Python<'_>) -> PyResult<()> {
    let signal = py.import("signal")?;
    let sigchld = signal.getattr("SIGCHLD")?;
    if signal
        .call_method1("getsignal", (&sigchld,))?
        .eq(signal.getattr("SIG_DFL")?)?
    {
        let handler = wrap_pyfunction!(child_ended, py)?;
        signal.call_method1("signal", (&sigchld, handler))?;
    }
    Ok(())
}

#[pyfunction]
#[pyo3(signature = (*_signo_and_frame))]
fn child_ended(_signo_and_frame: &Bound<'_, PyTuple>) {}

/// Closed on exec.
fn copy(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(nix::errno::Errno::EBADF.into());
    }
    // SAFETY: the caller's socket object keeps it open during the call; one that is closed all the
    // same gives EBADF.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}
