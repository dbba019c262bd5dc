//! One table: which Python exception an error of a room becomes.
//!
//! Owns the conversion of every room's error type. The classes are built-in ones that callers of
//! oslo.service already catch. The text comes from the error itself; an `OSError` keeps its `errno`.
//! An argument that is out of range or of the wrong type is refused where it is read, not here.

use crate::executor::Refused;
use crate::server::tls;
use crate::{scoreboard, server, supervisor};
use pyo3::exceptions::{
    PyOSError, PyPermissionError, PyProcessLookupError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;

pub(super) fn scoreboard_error(error: &scoreboard::Error) -> PyErr {
    use scoreboard::Error;
    let text = error.to_string();
    match error {
        Error::Os { source, .. } => os_error(&text, source),
        Error::NotFound(_) => PyProcessLookupError::new_err(text),
        Error::Foreign { .. } => PyRuntimeError::new_err(text),
        Error::Full => PyValueError::new_err(text),
        Error::ReadOnly => PyPermissionError::new_err(text),
    }
}

/// An `OSError`, or the subclass that fits the kernel's answer, with *text* before the answer.
pub(super) fn os_error(text: &str, source: &std::io::Error) -> PyErr {
    let Some(errno) = source.raw_os_error() else {
        return PyOSError::new_err(format!("{text}: {source}"));
    };
    let answer = nix::errno::Errno::from_raw(errno).desc();
    PyOSError::new_err((errno, format!("{text}: {answer}")))
}

impl From<supervisor::Error> for PyErr {
    fn from(error: supervisor::Error) -> Self {
        use supervisor::Error;
        let text = error.to_string();
        match error {
            Error::Pipes(errno) => os_error(&text, &errno.into()),
            Error::TooManyWorkers { .. } => PyValueError::new_err(text),
            Error::NotForking { .. } | Error::Unanswered { .. } | Error::NotTheParent { .. } => {
                PyRuntimeError::new_err(text)
            }
        }
    }
}

impl From<server::Error> for PyErr {
    fn from(error: server::Error) -> Self {
        match error {
            server::Error::Listener { .. } => PyValueError::new_err(error.to_string()),
            server::Error::Resource { source, what } => Self::from(std::io::Error::new(
                source.kind(),
                format!("cannot {what}: {source}"),
            )),
            server::Error::ListenerClosed { .. } => PyRuntimeError::new_err(error.to_string()),
        }
    }
}

impl From<tls::Error> for PyErr {
    fn from(error: tls::Error) -> Self {
        match error {
            tls::Error::Read { ref source, .. } => {
                Self::from(std::io::Error::new(source.kind(), error.to_string()))
            }
            tls::Error::Value { .. } => PyValueError::new_err(error.to_string()),
        }
    }
}

/// A job that the executor does not take.
pub(super) fn executor_refusal<J>(refused: &Refused<J>) -> PyErr {
    PyRuntimeError::new_err(match refused {
        // The words of concurrent.futures, which callers match.
        Refused::Closed(_) => "cannot schedule new futures after shutdown".to_owned(),
        Refused::Full { bound, .. } => format!("{bound} jobs are queued already; submit fewer"),
        Refused::NoThread { source, .. } => format!(
            "cannot run the job: the kernel gives this process no thread ({source}); raise its \
             limits (ulimit -u, pids.max of its cgroup)"
        ),
    })
}

/// For `Supervisor.request()`.
pub(super) fn invalid_request(kind: &str) -> PyErr {
    PyValueError::new_err(format!(
        "unknown request {kind:?}; use \"stop\", \"reload\", \"mutate\" or \"abort\""
    ))
}

/// For `Supervisor.kill_all()`.
pub(super) fn invalid_signal(number: i32) -> PyErr {
    PyValueError::new_err(format!(
        "{number} is no signal; use a number from 1 to 64, such as signal.SIGTERM"
    ))
}
