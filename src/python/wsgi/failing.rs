//! What the client and the log are told when a request or its answer fails.
//!
//! Owns the server's own answers and the error log of applications. Never decides that something
//! failed: [`super`] and [`super::answering`] do.
//! Rules: PEP 3333 "Error Handling"; RFC 9112 section 8 for answers that are cut off.

use super::Application;
use super::call::Call;
use crate::python::kept::intern;
use crate::scoreboard;
use crate::wsgi::Exchange;
use crate::wsgi::environ::TargetError;
use crate::wsgi::response::{Ending, Head, Ready};
use bytes::Bytes;
use http::{Method, StatusCode};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

impl Application {
    /// Reports a body that was not as long as promised.
    pub(super) fn report_length_mismatch(
        &self,
        py: Python<'_>,
        exchange: &dyn Exchange,
        ending: Ending,
    ) {
        let problem = match ending {
            Ending::Complete => return,
            Ending::Short { declared, sent } => {
                format!("gave {sent} of the {declared} bytes")
            }
            Ending::Excess { declared } => {
                format!("gave more than the {declared} bytes")
            }
        };
        let line = crate::wsgi::access_log::request_line(exchange.request());
        self.log_length_mismatch(py, &problem, &line);
    }

    pub(super) fn log_length_mismatch(&self, py: Python<'_>, problem: &str, line: &str) {
        let message = format!(
            "application {problem} that its Content-Length declares, to {line}; the connection \
             was closed"
        );
        self.log(py, &message, None);
    }

    /// Ends an answer that failed: with a 500 where nothing was sent yet, else by cutting it off,
    /// so that the client cannot take it for a whole one.
    pub(super) fn fail(
        &self,
        py: Python<'_>,
        exchange: &mut dyn Exchange,
        call: &Bound<'_, Call>,
        method: &Method,
        error: &PyErr,
    ) {
        let call = call.get();
        let progress = call.progress();
        // What a client did, the application hears through an OSError; that is no failure of its
        // own, and clients must not fill the log with tracebacks.
        let is_oserror = error.is_instance_of::<PyOSError>(py);
        let blamed = progress.body_error.filter(|_| is_oserror);
        if blamed.is_none() && !(progress.is_client_gone && is_oserror) {
            let line = crate::wsgi::access_log::request_line(exchange.request());
            self.report(py, &format!("application failed to answer {line}"), error);
            scoreboard::current().figures().raised();
        }
        if call.is_full() && !progress.is_client_gone {
            // The client has a whole answer; what failed came behind it.
            return py.detach(|| {
                exchange.close();
                let _ = exchange.finish();
            });
        }
        if progress.has_begun || progress.is_client_gone {
            return py.detach(|| exchange.abort());
        }
        let status = match blamed {
            Some(error) => error.status(),
            None => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let head = Head::failure(status);
        let (head, body) = if self.shows_traceback && blamed.is_none() {
            let text = traceback(py, error).unwrap_or_else(|_| error.to_string());
            (
                head.with_content_type("text/plain; charset=utf-8"),
                Bytes::from(text),
            )
        } else {
            (head, Bytes::new())
        };
        send_own(py, exchange, call, method, head, body);
    }

    pub(super) fn report(&self, py: Python<'_>, message: &str, error: &PyErr) {
        self.log(py, message, Some(error));
    }

    pub(super) fn log(&self, py: Python<'_>, message: &str, error: Option<&PyErr>) {
        let error = error.map(|error| error.clone_ref(py).into_value(py));
        let keywords = PyDict::new(py);
        let logged = keywords
            .set_item(intern!(py, "exc_info"), error)
            .and_then(|()| self.log_error.call(py, (message,), Some(&keywords)));
        if let Err(failure) = logged {
            failure.write_unraisable(py, Some(self.log_error.bind(py)));
        }
    }
}

/// Answers what no environ can express.
pub(super) fn refuse(
    py: Python<'_>,
    exchange: &mut dyn Exchange,
    call: &Bound<'_, Call>,
    method: &Method,
    error: TargetError,
) {
    let status = match error {
        TargetError::Tunnel => StatusCode::NOT_IMPLEMENTED,
        TargetError::Asterisk | TargetError::Form | TargetError::Fragment => {
            StatusCode::BAD_REQUEST
        }
    };
    let head = Head::failure(status).with_content_type("text/plain; charset=utf-8");
    send_own(
        py,
        exchange,
        call.get(),
        method,
        head,
        Bytes::from(error.to_string()),
    );
}

/// Sends an answer of the server's own making.
fn send_own(
    py: Python<'_>,
    exchange: &mut dyn Exchange,
    call: &Call,
    method: &Method,
    head: Head,
    body: Bytes,
) {
    let ready = Ready::new(head, body, method);
    call.record(ready.status().as_u16(), ready.count());
    if py.detach(|| ready.send(exchange)).is_err() {
        call.record_client_gone();
    }
}

fn traceback(py: Python<'_>, error: &PyErr) -> PyResult<String> {
    let lines = py
        .import("traceback")?
        .call_method1("format_exception", (error.clone_ref(py).into_value(py),))?;
    pyo3::types::PyString::new(py, "")
        .call_method1("join", (lines,))?
        .extract()
}
