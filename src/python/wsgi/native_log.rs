//! `AccessLog` and `AccessFilter` for Python: the access log that is written without the
//! interpreter, and the rules by which requests have no line in any access log.
//!
//! Puts together what [`crate::wsgi::access_log`] owns: the format, the file and the filter. Says once
//! when lines are lost. See `_native.pyi`.

use std::cell::RefCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use tracing::{info, warn};

use crate::scoreboard;
use crate::wsgi::access_log::file::{LogFile, Written, local_time, since_epoch};
use crate::wsgi::access_log::filter::Filter;
use crate::wsgi::access_log::format::{Event, Format, Subject};
use crate::wsgi::{Delivery, Refused};

/// See the module's text.
#[pyclass(frozen, name = "AccessLog", module = "osloxide._native")]
#[derive(Debug)]
pub(crate) struct NativeLog {
    path: PathBuf,
    file: LogFile,
    format: Format,
}

/// See the module's text.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(crate) struct AccessFilter {
    pub(super) filter: Filter,
}

#[pymethods]
impl AccessFilter {
    #[new]
    #[pyo3(signature = (silent=Vec::new(), classes=Vec::new()))]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "PyO3 extracts lists by value"
    )]
    fn new(silent: Vec<(String, String)>, classes: Vec<u8>) -> PyResult<Self> {
        let rules = silent.iter().map(|(field, pattern)| (&**field, &**pattern));
        let filter = Filter::new(rules, &classes)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { filter })
    }
}

#[pymethods]
impl NativeLog {
    #[new]
    #[pyo3(signature = (path, format="combined"))]
    fn new(path: PathBuf, format: &str) -> PyResult<Self> {
        Ok(Self {
            format: Format::parse(format)
                .map_err(|error| PyValueError::new_err(format!("log format {error}")))?,
            file: LogFile::open(&path).map_err(|error| not_opened(&error))?,
            path,
        })
    }

    fn reopen(&self, py: Python<'_>) -> PyResult<()> {
        let written = py
            .detach(|| self.file.reopen())
            .map_err(|error| not_opened(&error))?;
        py.detach(|| self.tell(written));
        Ok(())
    }

    #[pyo3(name = "flush")]
    fn flush_now(&self, py: Python<'_>) {
        py.detach(|| self.flush());
    }
}

fn event(status: u16, delivery: Delivery, wall: Duration) -> Event {
    let since_epoch = since_epoch();
    Event {
        status,
        delivery,
        wall,
        now: local_time(since_epoch),
        since_epoch,
        worker: scoreboard::current().slot() + 1,
    }
}

/// With number and text, as open(2) has them in Python; PyO3 would give the text alone.
fn not_opened(error: &std::io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, Errno::from_raw(number).desc())),
        None => PyOSError::new_err(error.to_string()),
    }
}

impl NativeLog {
    /// Adds the line of a request that was answered.
    pub(super) fn put(
        &self,
        subject: &Subject<'_>,
        status: u16,
        delivery: Delivery,
        arrived: Instant,
    ) {
        let event = event(status, delivery, arrived.elapsed());
        self.put_line(subject, &event);
    }

    /// What a line needs to know of a request that will be gone.
    pub(super) fn keep(&self, subject: Subject<'_>) -> Subject<'static> {
        subject.into_owned(&self.format)
    }

    /// Adds the line of a request that the server refused.
    pub(super) fn put_refused(&self, refused: &Refused) {
        let delivery = Delivery {
            sent: refused.sent,
            is_whole: true,
            is_file_short: false,
        };
        let event = event(refused.status.as_u16(), delivery, refused.wall);
        self.put_line(&Subject::of_refused(refused), &event);
    }

    /// True while lines wait to be written.
    pub(super) fn has_waiting(&self) -> bool {
        self.file.has_waiting()
    }

    /// True when one of them has waited for long.
    pub(super) fn is_overdue(&self) -> bool {
        self.file.is_overdue()
    }

    /// Writes the lines that wait.
    pub(super) fn flush(&self) {
        let written = self.file.flush();
        self.tell(written);
    }

    fn put_line(&self, subject: &Subject<'_>, event: &Event) {
        thread_local! {
            static LINE: RefCell<String> = const { RefCell::new(String::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.format.write(line, subject, event);
            let written = self.file.put(line.as_bytes());
            self.tell(written);
        });
    }

    fn tell(&self, written: Written) {
        let path = self.path.display();
        match written {
            Written::Yes => {}
            Written::Failed(errno) => {
                warn!(%path, error = %errno, "cannot write the access log; lines are lost until it can be written again");
            }
            Written::Again(lost) => {
                info!(%path, lost, "the access log is written again; lines were lost");
            }
        }
    }
}
