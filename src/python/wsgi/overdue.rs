//! What a request that was given up costs its thread: a traceback in the log, and an exception.
//!
//! Owns the second half of a request timeout, which needs the interpreter. The first one, in which the
//! client is told, does not; it has happened before. Runs on a thread of its own, since an application
//! that holds the interpreter would hold up the requests that are overdue after it.
//! Rules: the C API's `PyThreadState_SetAsyncExc()`: a thread that waits in C sees the exception when
//! it comes back to Python.
#![expect(unsafe_code, reason = "PyThreadState_SetAsyncExc()")]

use std::ffi::c_long;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pyo3::ffi;
use pyo3::prelude::*;

use super::access_log::{AccessLog, Entry};
use super::in_flight::Overdue;
use crate::python::imports;
use crate::scoreboard;
use crate::threads::{self, Signals};
use crate::worker::limits;
use crate::wsgi::Delivery;

const STACK_BYTES: usize = 512 * 1024;

/// Threads that are inside requests which were given up.
static STUCK: AtomicU64 = AtomicU64::new(0);

/// One more of them.
pub(super) fn thread_lost() {
    let stuck = STUCK.fetch_add(1, Ordering::Relaxed) + 1;
    scoreboard::current().figures().gave_up();
    limits::threads_stuck(stuck);
}

/// One of them has come back to the server, on which this is called. What was to interrupt it and
/// has not yet must not hit the next request.
pub(super) fn thread_back(py: Python<'_>, thread: u64) {
    interrupt(py, thread, std::ptr::null_mut());
    STUCK.fetch_sub(1, Ordering::Relaxed);
    scoreboard::current().figures().came_back();
}

/// What the logs say of a request that was given up.
#[derive(Debug)]
pub(super) struct Report {
    /// Its request line.
    pub(super) line: String,
    /// For the access log that goes through Python, if it has a line there.
    pub(super) entry: Option<Entry>,
    pub(super) status: u16,
    pub(super) delivery: Delivery,
}

/// Logs where the threads are, by `log`, interrupts them, and writes to the access log.
pub(super) fn report(
    overdue: Vec<(Overdue, Report)>,
    log: &Arc<Py<PyAny>>,
    access_log: Option<&Arc<AccessLog>>,
) {
    let log = Arc::clone(log);
    let access_log = access_log.cloned();
    let name = "osloxide-report".to_owned();
    let body = move || {
        Python::attach(|py| {
            for (overdue, report) in overdue {
                if let Err(error) = report_one(py, &overdue, &report.line, &log) {
                    error.write_unraisable(py, Some(log.bind(py)));
                }
                if let (Some(access_log), Some(entry)) = (&access_log, &report.entry)
                    && access_log.is_enabled(py, Instant::now())
                {
                    let (status, delivery) = (report.status, report.delivery);
                    access_log.write(py, entry, status, delivery, overdue.age);
                }
            }
            drop((log, access_log));
        });
    };
    // Without a thread the log lacks the traceback; the client has its answer.
    drop(threads::start(name, STACK_BYTES, Signals::AsCreator, body));
}

fn report_one(py: Python<'_>, overdue: &Overdue, line: &str, log: &Py<PyAny>) -> PyResult<()> {
    let age = overdue.age.as_secs_f64();
    let text = imports::describe_overdue(py, overdue.thread(), line, age)?;
    let error = imports::request_timeout(py)?;
    let _ = overdue.while_inside(py, || interrupt(py, overdue.thread(), error.as_ptr()));
    log.call1(py, (text,))?;
    Ok(())
}

/// Has an exception raised in a thread; a null pointer takes back one that was not raised yet.
fn interrupt(_py: Python<'_>, thread: u64, error: *mut ffi::PyObject) {
    let Ok(thread) = c_long::try_from(thread) else {
        return; // an address of the C library: below that by far
    };
    // SAFETY: this thread is attached; `error` is null or a class that the caller holds, to
    // which the call takes a reference of its own. A thread that is gone is not found.
    let _ = unsafe { ffi::PyThreadState_SetAsyncExc(thread, error) };
}

/// What the log says when a thread comes back.
pub(super) fn came_back(line: &str, ago: Duration) -> String {
    format!(
        "the thread of {line} has come back, {:.1} s after its request was given up; what it \
         answered is discarded",
        ago.as_secs_f64()
    )
}
