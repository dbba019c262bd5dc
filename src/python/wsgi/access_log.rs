//! The access log: one line for each answered request, through Python's logging.
//!
//! Applies `wsgi_log_format` with Python's own % operator and hands the line on. What may stand in
//! it is [`crate::wsgi::access_log`]'s business. A log that fails never breaks a request.

use std::time::{Duration, Instant};

use crate::locks::Mutex;
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::python::kept::intern;
use crate::wsgi::access_log::{self as line, KEYS};
use crate::wsgi::request::RequestHead;
use crate::wsgi::{Delivery, Endpoints, Refused};

/// How late a logger's new level may count.
const VALID: Duration = Duration::from_millis(20);

/// Where lines go and what they look like.
#[derive(Debug)]
pub(super) struct AccessLog {
    log: Py<PyAny>,
    is_enabled: Option<Py<PyAny>>,
    asked: Mutex<Option<(Instant, bool)>>,
    format: Py<PyString>,
    has_date: bool,
    localtime: Py<PyAny>,
}

/// What a line says about the request; taken before the application runs.
#[derive(Debug)]
pub(super) struct Entry {
    client_ip: String,
    client_port: String,
    request_line: String,
}

impl Entry {
    /// A request that the server refused. What its head says about addresses in between is left
    /// out: nothing of it was found fit to be believed.
    pub(super) fn of_refused(refused: &Refused) -> Self {
        let (client_ip, client_port) = peer_of(&refused.endpoints);
        Self {
            client_ip,
            client_port,
            request_line: line::escaped(&refused.line),
        }
    }

    pub(super) fn of(request: &RequestHead, endpoints: &Endpoints) -> Self {
        let (address, client_port) = peer_of(endpoints);
        Self {
            client_ip: line::client_ip(request, &address),
            client_port,
            request_line: line::request_line(request),
        }
    }
}

/// The peer's address and port.
fn peer_of(endpoints: &Endpoints) -> (String, String) {
    match endpoints.peer {
        Some(peer) => (
            peer.ip().to_canonical().to_string(),
            peer.port().to_string(),
        ),
        None => ("unix".to_owned(), String::new()),
    }
}

/// Tries a log format; see `_native.pyi`.
#[pyfunction]
pub(crate) fn check_log_format(py: Python<'_>, format: &str) -> PyResult<()> {
    AccessLog::new(py, py.None(), None, format).map(drop)
}

impl AccessLog {
    /// Tries *format* once.
    ///
    /// # Errors
    /// `ValueError` when it names an unknown key or cannot be applied.
    pub(super) fn new(
        py: Python<'_>,
        log: Py<PyAny>,
        is_enabled: Option<Py<PyAny>>,
        format: &str,
    ) -> PyResult<Self> {
        let access_log = Self {
            log,
            is_enabled,
            asked: Mutex::new(None),
            format: PyString::new(py, format).unbind(),
            has_date: format.contains("%(date_time)"),
            localtime: py.import("time")?.getattr("localtime")?.unbind(),
        };
        let example = Entry {
            client_ip: "::1".to_owned(),
            client_port: "1".to_owned(),
            request_line: "GET / HTTP/1.1".to_owned(),
        };
        access_log
            .render(py, &example, 200, 0, Duration::ZERO)
            .map_err(|error| {
                let problem = if error.is_instance_of::<PyKeyError>(py) {
                    format!("names the unknown key {}", error.value(py))
                } else {
                    format!("cannot be applied: {}", error.value(py))
                };
                let refused = PyValueError::new_err(format!(
                    "wsgi_log_format {format:?} {problem}; it is a Python % format and may name {}",
                    KEYS.join(", ")
                ));
                refused.set_cause(py, Some(error));
                refused
            })?;
        Ok(access_log)
    }

    /// Asked before anything is prepared for a line. An answer holds for [`VALID`], since asking
    /// costs a tenth of what a short request costs altogether.
    pub(super) fn is_enabled(&self, py: Python<'_>, now: Instant) -> bool {
        let Some(is_enabled) = &self.is_enabled else {
            return true;
        };
        // The lock is never held while Python runs: a thread that waits for it is attached.
        if let Some((when, answer)) = *self.asked.lock()
            && now.saturating_duration_since(when) < VALID
        {
            return answer;
        }
        let answer = Self::ask(py, is_enabled);
        *self.asked.lock() = Some((now, answer));
        answer
    }

    fn ask(py: Python<'_>, is_enabled: &Py<PyAny>) -> bool {
        is_enabled
            .call0(py)
            .and_then(|answer| answer.is_truthy(py))
            .unwrap_or_else(|error| {
                error.write_unraisable(py, Some(is_enabled.bind(py)));
                false
            })
    }

    pub(super) fn write(
        &self,
        py: Python<'_>,
        entry: &Entry,
        status: u16,
        delivery: Delivery,
        wall: Duration,
    ) {
        let written = self
            .render(py, entry, status, delivery.sent, wall)
            .and_then(|line| {
                if delivery.is_whole {
                    return Ok(line);
                }
                line.add(line::CUT_OFF)
            })
            .and_then(|line| self.log.call1(py, (line,)));
        if let Err(error) = written {
            error.write_unraisable(py, Some(self.log.bind(py)));
        }
    }

    fn render<'py>(
        &self,
        py: Python<'py>,
        entry: &Entry,
        status: u16,
        body_length: u64,
        wall: Duration,
    ) -> PyResult<Bound<'py, PyAny>> {
        let fields = PyDict::new(py);
        fields.set_item(intern!(py, "client_ip"), &entry.client_ip)?;
        fields.set_item(intern!(py, "client_port"), &entry.client_port)?;
        fields.set_item(intern!(py, "request_line"), &entry.request_line)?;
        fields.set_item(intern!(py, "status_code"), status)?;
        fields.set_item(intern!(py, "body_length"), body_length)?;
        fields.set_item(intern!(py, "wall_seconds"), wall.as_secs_f64())?;
        if self.has_date {
            fields.set_item(intern!(py, "date_time"), self.date_time(py)?)?;
        }
        self.format.bind(py).rem(fields)
    }

    fn date_time(&self, py: Python<'_>) -> PyResult<String> {
        let now = self.localtime.bind(py).call0()?;
        Ok(line::date_time(
            now.get_item(0)?.extract()?,
            now.get_item(1)?.extract()?,
            now.get_item(2)?.extract()?,
            now.get_item(3)?.extract()?,
            now.get_item(4)?.extract()?,
            now.get_item(5)?.extract()?,
        ))
    }
}
