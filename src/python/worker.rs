//! The boundary of the worker room: the first and the last calls of a worker's life.

use crate::python::errors::{os_error, scoreboard_error};
use crate::python::scoreboard::Scoreboard;
use crate::python::signals::{duration, install_wakeup};
use crate::python::supervisor::{Supervisor, leave_parenthood};
use crate::scoreboard;
use crate::supervisor::process::pidfd_open;
use crate::threads;
use crate::worker::limits::{self, Limits, Memory};
use crate::worker::{self, Parent};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rustix::process::{Pid, Signal, set_child_subreaper, set_parent_process_death_signal};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// First call in a forked child; see `_native.pyi`.
#[pyfunction]
pub(super) fn enter_worker(
    py: Python<'_>,
    supervisor: &Supervisor,
    scoreboard: &Scoreboard,
    slot: u32,
    generation: u32,
) -> PyResult<()> {
    let owner = supervisor.0.owner();
    if owner == std::process::id() {
        return Err(PyRuntimeError::new_err(format!(
            "process {owner} is the parent itself; call enter_worker() in the child of os.fork()"
        )));
    }
    leave_parenthood();
    // A worker that is stopped could not notice the end of its parent: it is continued then.
    let _ = set_parent_process_death_signal(Some(Signal::CONT));
    install_wakeup(py)?;
    scoreboard
        .0
        .claim(slot, generation)
        .map_err(|error| scoreboard_error(&error))?;
    let parent = Parent {
        liveness: supervisor.0.liveness(),
        notices: supervisor.0.notices(),
        pidfd: parent_pidfd(owner),
    };
    worker::enter(parent).map_err(|error| os_error("cannot start the watch thread", &error))
}

/// First call in a forked template of workers; see `_native.pyi`.
#[pyfunction]
pub(super) fn enter_template(supervisor: &Supervisor) -> PyResult<()> {
    let owner = supervisor.0.owner();
    leave_parenthood();
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| os_error("cannot ask for the parent's death", &errno.into()))?;
    // Checked after asking: a parent that was gone by then is told of by no signal.
    if std::os::unix::process::parent_id() == owner {
        Ok(())
    } else {
        Err(PyRuntimeError::new_err(format!(
            "parent process {owner} is gone"
        )))
    }
}

/// Has orphans of this process's descendants become its children; see `_native.pyi`.
#[pyfunction]
pub(super) fn adopt_descendants(wanted: bool) -> PyResult<()> {
    let own = Pid::from_raw(std::process::id().cast_signed());
    set_child_subreaper(own.filter(|_| wanted))
        .map_err(|errno| os_error("cannot set PR_SET_CHILD_SUBREAPER", &errno.into()))
}

/// `None` also when the parent is gone already; the liveness pipe tells that too.
fn parent_pidfd(owner: u32) -> Option<OwnedFd> {
    let pidfd = pidfd_open(owner.cast_signed()).ok()?;
    // Checked after opening: the number may have been given to another process by then.
    (std::os::unix::process::parent_id() == owner).then_some(pidfd)
}

/// `start()` has returned: tell the parent.
#[pyfunction]
pub(super) fn worker_ready() -> PyResult<()> {
    // Attached, for a moment: a thread that forks is attached too, so no child inherits a locked watch.
    worker::announce_ready()
        .map_err(|error| os_error("cannot tell the parent that this worker is ready", &error))
}

/// After what this worker asks its parent for a successor; see `_native.pyi`.
#[pyfunction]
#[pyo3(signature = (*, requests=None, lifetime=None, memory=None, memory_kind="rss", stuck=None))]
pub(super) fn limit_worker(
    requests: Option<u64>,
    lifetime: Option<f64>,
    memory: Option<u64>,
    memory_kind: &str,
    stuck: Option<u64>,
) -> PyResult<()> {
    let kind = match memory_kind {
        "rss" => Memory::Rss,
        "pss" => Memory::Pss,
        "uss" => Memory::Uss,
        _ => {
            return Err(PyValueError::new_err(format!(
                "memory_kind is {memory_kind:?}; give \"rss\", \"pss\" or \"uss\""
            )));
        }
    };
    let limits = Limits {
        requests,
        lifetime: lifetime
            .map(|seconds| duration("lifetime", seconds))
            .transpose()?,
        memory: memory.map(|bytes| (kind, bytes)),
        stuck,
    };
    // Attached: a thread that forks at this moment leaves the child no lock that is held.
    limits::set(limits);
    Ok(())
}

/// The worker is on its way out: shown on the scoreboard.
#[pyfunction]
pub(super) fn worker_leaving() {
    scoreboard::current().mark_leaving();
}

/// The interpreter of this worker runs, and shows it again within *seconds*; 0 promises nothing.
#[pyfunction]
pub(super) fn beat(seconds: f64) -> PyResult<()> {
    scoreboard::current().beat(duration("seconds", seconds)?);
    Ok(())
}

/// The configuration was mutated: tell the parent.
#[pyfunction]
pub(super) fn worker_reconfigured() -> PyResult<()> {
    // Attached, as above.
    worker::announce_reconfigured()
        .map_err(|error| os_error("cannot tell the parent of the new configuration", &error))
}

/// True once the parent is known to be gone.
#[pyfunction]
pub(super) fn parent_died() -> bool {
    worker::parent_died()
}

/// Names of the native threads of this process.
#[pyfunction]
pub(super) fn native_threads() -> Vec<String> {
    threads::names()
}

/// Ends this process with *status* after *seconds* unless it left before.
#[pyfunction]
#[pyo3(signature = (seconds, status=1))]
pub(super) fn arm_deadline(seconds: f64, status: i32) -> PyResult<()> {
    worker::arm_deadline(duration("seconds", seconds)?, status)
        .map_err(|error| os_error("cannot start the watch thread", &error))
}

/// Passes signals on to a descriptor, and bounds the time until a handler runs; see `_native.pyi`.
#[pyfunction]
pub(super) fn relay_signals(to: RawFd, patience: f64) -> PyResult<RawFd> {
    let cannot = |error: &std::io::Error| os_error("cannot start the watch thread", error);
    let patience = patience_of(patience)?;
    let to = copy_of(to).map_err(|error| cannot(&error))?;
    worker::relay_signals(&to, patience).map_err(|error| cannot(&error))
}

/// Another bound for [`relay_signals`].
#[pyfunction]
pub(super) fn bound_unheard(patience: f64) -> PyResult<()> {
    worker::bound_unheard(patience_of(patience)?);
    Ok(())
}

/// The handlers of all signals that arrived have run.
#[pyfunction]
pub(super) fn signals_heard() {
    worker::signals_heard();
}

/// Signals are not passed on any more.
#[pyfunction]
pub(super) fn stop_relaying() {
    worker::stop_relaying();
}

fn patience_of(seconds: f64) -> PyResult<Duration> {
    let seconds = if seconds == 0.0 {
        f64::INFINITY
    } else {
        seconds
    };
    duration("patience", seconds)
}

#[expect(unsafe_code, reason = "Python tells a descriptor by its number")]
fn copy_of(fd: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: borrowed for this call only, which answers EBADF if it is closed.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

/// Takes an armed deadline back.
#[pyfunction]
pub(super) fn disarm_deadline() {
    worker::disarm_deadline();
}
