//! One call of an application: `start_response`, `write()`, and what was sent so far.
//!
//! A [`Call`] is the callable that the application gets as `start_response`. It checks the head as
//! soon as it is given, sends nothing before the first byte of the body, and counts that body
//! against its Content-Length. The decisions are [`crate::wsgi::response`]'s; this file only
//! carries them between Python and the exchange. Rules: PEP 3333 "The `start_response()` Callable".

use crate::locks::Mutex;
use bytes::Bytes;
use http::Method;
use pyo3::exceptions::{PyAssertionError, PyBrokenPipeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::loan::{Loan, Revoked};
use super::text;
use crate::python::kept::intern;
use crate::wsgi::response::{Body, Ending, Head, is_bodiless};
use crate::wsgi::{BodyError, ClientGone, FilePart, ResponseHead};

/// The `start_response` of one request.
#[pyclass(frozen, freelist = 64, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Call {
    pub(super) loan: Loan,
    state: Mutex<State>,
    method: Method,
    is_lenient: bool,
}

#[derive(Debug, Default)]
struct State {
    /// What `start_response` was given, until it is sent.
    head: Option<Head>,
    /// Length of the whole body, where known before its first byte is sent.
    total: Option<u64>,
    /// Present once the head is on its way.
    body: Option<Body>,
    status: u16,
    is_client_gone: bool,
    /// The request took too long, and the client was told.
    is_given_up: bool,
    body_error: Option<BodyError>,
    /// The answer had not begun by then: the client is told of that, not what the application answers.
    is_overruled: bool,
    /// The body is a file of that length, which the server sends by itself.
    file: Option<u64>,
}

impl State {
    /// Takes the head for the first piece of a body; `None` for the pieces after it.
    fn begin(&mut self, method: &Method) -> PyResult<Option<ResponseHead>> {
        if self.body.is_some() {
            return Ok(None);
        }
        let head = self.head.take().ok_or_else(not_started)?;
        self.status = head.status().as_u16();
        let (head, body) = head.into_parts(method, self.total);
        self.body = Some(body);
        Ok(Some(head))
    }
}

/// How far an answer came.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// Status of the head that was sent, or 0.
    pub(super) status: u16,
    /// True once the head is on its way: a failure can then only cut the answer off.
    pub(super) has_begun: bool,
    /// True once the client was found to be gone.
    pub(super) is_client_gone: bool,
    /// What went wrong with the request's body, if the application read it.
    pub(super) body_error: Option<BodyError>,
    /// The body is a file of that length, which the server sends by itself.
    pub(super) file: Option<u64>,
}

impl Call {
    pub(super) fn new(method: Method, is_lenient: bool) -> Self {
        Self {
            loan: Loan::default(),
            state: Mutex::default(),
            method,
            is_lenient,
        }
    }

    /// Takes the head for an answer that is sent in one go; `None` before `start_response`, or when
    /// `write()` has sent it already.
    pub(super) fn take_head(&self) -> Option<Head> {
        self.state.lock().head.take()
    }

    /// Puts on record an answer that went out in one go.
    pub(super) fn record(&self, status: u16, body: Body) {
        let mut state = self.state.lock();
        state.status = status;
        state.body = Some(body);
    }

    /// The length of the whole body, to be declared if the application does not.
    pub(super) fn expect_total(&self, total: u64) {
        self.state.lock().total = Some(total);
    }

    pub(super) fn record_body_error(&self, error: BodyError) {
        let mut state = self.state.lock();
        state.is_overruled |= state.body.is_none();
        state.body_error = Some(error);
    }

    pub(super) fn record_given_up(&self) {
        let mut state = self.state.lock();
        state.is_given_up = true;
        // What the application still sends is refused as if the client had left.
        state.is_client_gone = true;
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.state.lock().is_given_up
    }

    pub(super) fn record_client_gone(&self) {
        self.state.lock().is_client_gone = true;
    }

    pub(super) fn progress(&self) -> Progress {
        let state = self.state.lock();
        Progress {
            status: match state.body_error.filter(|_| state.is_overruled) {
                None => state.status,
                Some(error) => error.status().as_u16(),
            },
            has_begun: state.body.is_some(),
            is_client_gone: state.is_client_gone,
            body_error: state.body_error,
            file: state.file,
        }
    }

    /// True when the head waits for the first byte of the body, or went out before it.
    pub(super) fn is_started(&self) -> bool {
        let state = self.state.lock();
        state.head.is_some() || state.body.is_some()
    }

    /// Sends one piece of the body, the head before it if need be, and returns when the kernel has
    /// it all. What exceeds the declared length is dropped.
    ///
    /// # Errors
    /// `AssertionError` before `start_response`; `BrokenPipeError` when the client is gone;
    /// `ValueError` after the request.
    pub(super) fn send(&self, py: Python<'_>, piece: &Bytes) -> PyResult<()> {
        let (begin, admitted, is_bodiless) = {
            let mut state = self.state.lock();
            if state.is_client_gone {
                return Err(client_gone());
            }
            let begin = state.begin(&self.method)?;
            match state.body.as_mut() {
                Some(body) => (begin, body.admit(piece.len()), body.is_bodiless()),
                None => (begin, 0, true),
            }
        };
        let sent = py.detach(|| {
            self.loan.with(|exchange| {
                match begin {
                    Some(head) if is_bodiless => exchange.respond(head, Bytes::new())?,
                    Some(head) => exchange.start(head)?,
                    None => {}
                }
                if admitted > 0 {
                    exchange.write(piece.slice(..admitted))?;
                }
                Ok(())
            })
        });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ClientGone)) => {
                self.record_client_gone();
                Err(client_gone())
            }
            Err(Revoked) => Err(PyValueError::new_err(
                "write() was called after the request had ended",
            )),
        }
    }

    /// Sends the rest of a body that is there as a whole, the head before it if need be. What exceeds
    /// the declared length is dropped.
    ///
    /// # Errors
    /// As for [`Call::send`].
    pub(super) fn send_rest(&self, py: Python<'_>, pieces: Vec<Bytes>) -> PyResult<()> {
        let mut state = self.state.lock();
        let begin = state.begin(&self.method)?;
        let Some(body) = state.body.as_mut() else {
            return Ok(());
        };
        let is_bodiless = body.is_bodiless();
        let pieces = pieces
            .into_iter()
            .map(|piece| piece.slice(..body.admit(piece.len())))
            .collect();
        drop(state);
        let sent = py.detach(|| {
            self.loan.with(|exchange| {
                match begin {
                    Some(head) if is_bodiless => return exchange.respond(head, Bytes::new()),
                    Some(head) => exchange.start(head)?,
                    None => {}
                }
                exchange.write_rest(pieces)
            })
        });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ClientGone)) => {
                self.record_client_gone();
                Err(client_gone())
            }
            Err(Revoked) => Err(not_started()),
        }
    }

    /// Sends a part of a file as the body, as far as the declared length has room for it.
    ///
    /// # Errors
    /// As for [`Call::send`].
    pub(super) fn send_file(&self, py: Python<'_>, mut part: FilePart) -> PyResult<()> {
        let (begin, is_bodiless) = {
            let mut state = self.state.lock();
            let begin = state.begin(&self.method)?;
            let body = state.body.as_ref();
            let is_bodiless = body.is_none_or(Body::is_bodiless);
            part.length = body.map_or(0, |body| body.room(part.length));
            state.file = Some(part.length);
            (begin, is_bodiless)
        };
        let sent = py.detach(|| {
            self.loan.with(|exchange| {
                match begin {
                    Some(head) if is_bodiless => {
                        exchange.respond(head, Bytes::new())?;
                        return Ok(0);
                    }
                    Some(head) => exchange.start(head)?,
                    None => {}
                }
                exchange.write_file(part)
            })
        });
        match sent {
            Ok(Ok(count)) => {
                if let Some(body) = &mut self.state.lock().body {
                    body.count(count);
                }
                Ok(())
            }
            Ok(Err(ClientGone)) => {
                self.record_client_gone();
                Err(client_gone())
            }
            Err(Revoked) => Err(not_started()),
        }
    }

    /// `Content-Length` as the application gave it, while the head waits to be sent.
    pub(super) fn declared(&self) -> Option<u64> {
        self.state.lock().head.as_ref().and_then(Head::length)
    }

    /// Ends an answer that was sent in pieces: completes it, or cuts the connection where its
    /// length was not as promised.
    pub(super) fn end(&self, py: Python<'_>) -> Ending {
        let Some(body) = self.state.lock().body else {
            return Ending::Complete;
        };
        let ending = body.ending();
        let ended = py.detach(|| {
            self.loan.with(|exchange| match ending {
                Ending::Complete if body.is_bodiless() => Ok(()),
                Ending::Complete => exchange.finish(),
                Ending::Excess { .. } => {
                    // The client has what was promised, and nothing beyond it.
                    exchange.close();
                    exchange.finish()
                }
                Ending::Short { .. } => {
                    exchange.abort();
                    Ok(())
                }
            })
        });
        if ended == Ok(Err(ClientGone)) {
            self.record_client_gone();
        }
        ending
    }

    /// True when nothing of what the application still gives can be sent: the promised length is
    /// reached, or the answer has no body.
    pub(super) fn is_full(&self) -> bool {
        self.state.lock().body.as_ref().is_some_and(Body::is_full)
    }

    /// True while a head waits behind which no byte can follow.
    pub(super) fn promises_nothing(&self) -> bool {
        let state = self.state.lock();
        state.head.as_ref().is_some_and(|head| {
            head.length() == Some(0) || is_bodiless(&self.method, head.status())
        })
    }

    /// Takes note of a piece that comes behind the promised length.
    pub(super) fn note_excess(&self, length: usize) {
        if let Some(body) = &mut self.state.lock().body {
            body.admit(length);
        }
    }

    /// Looks whether the client is still there, so that an application which yields nothing is not
    /// asked for more that no client reads.
    ///
    /// # Errors
    /// `BrokenPipeError` when it is gone.
    pub(super) fn check_client(&self, py: Python<'_>) -> PyResult<()> {
        if py.detach(|| self.loan.with(|exchange| exchange.is_client_gone())) == Ok(true) {
            self.record_client_gone();
            return Err(client_gone());
        }
        Ok(())
    }

    fn parse(&self, status: &Bound<'_, PyAny>, headers: &Bound<'_, PyAny>) -> PyResult<Head> {
        let status = status
            .cast::<PyString>()
            .map_err(|_| wrong_type("status", "a str such as \"200 OK\"", status))?;
        let as_list;
        let headers = match headers.cast::<PyList>() {
            Ok(headers) => headers,
            Err(_) if self.is_lenient && headers.is_instance_of::<PyDict>() => {
                as_list = headers.cast::<PyDict>()?.items();
                &as_list
            }
            Err(_) => {
                return Err(wrong_type(
                    "headers",
                    "a list of (name, value) tuples",
                    headers,
                ));
            }
        };
        let mut head = Head::new(&text::bytes_of("status", status)?, headers.len())
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        for header in headers.iter() {
            let pair = header.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2);
            let pair =
                pair.ok_or_else(|| wrong_type("header", "a (name, value) tuple", &header))?;
            let (name, value) = (pair.get_borrowed_item(0)?, pair.get_borrowed_item(1)?);
            let name = name
                .cast::<PyString>()
                .map_err(|_| wrong_type("header name", "a str", &name))?;
            let value = value.cast::<PyString>().map_err(|_| {
                wrong_type(
                    &format!("value of response header {}", &*name),
                    "a str",
                    &value,
                )
            })?;
            head.header(
                &text::bytes_of("response header name", &name)?,
                &text::bytes_of("response header value", &value)?,
            )
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        }
        Ok(head)
    }
}

#[pymethods]
impl Call {
    /// PEP 3333: begins the answer. Nothing is sent before the first byte of the body, so that an
    /// error handler can still replace the head by calling again with `exc_info`.
    #[pyo3(signature = (status, response_headers, exc_info=None))]
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        status: &Bound<'py, PyAny>,
        response_headers: &Bound<'py, PyAny>,
        exc_info: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let call = slf.get();
        {
            let state = call.state.lock();
            match exc_info {
                Some(exc_info) if state.body.is_some() => {
                    drop(state);
                    let value = exc_info.get_item(1)?;
                    let error = PyErr::from_value(value);
                    if let Ok(traceback) = exc_info.get_item(2)?.cast_into() {
                        error.set_traceback(py, Some(traceback));
                    }
                    return Err(error);
                }
                None if state.head.is_some() || state.body.is_some() => {
                    return Err(PyAssertionError::new_err(
                        "start_response() was called again without exc_info; only an error \
                         handler may replace the head of an answer (PEP 3333)",
                    ));
                }
                Some(_) | None => {}
            }
        }
        let head = call.parse(status, response_headers)?;
        call.state.lock().head = Some(head);
        slf.getattr(intern!(py, "write"))
    }

    /// PEP 3333: sends one piece of the body at once; for applications that cannot yield it.
    ///
    /// Raises `ValueError` for what comes behind the length that `Content-Length` declares.
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let piece = bytes_from(data, self.is_lenient)?;
        if piece.is_empty() {
            return self.check_client(data.py());
        }
        self.send(data.py(), &piece)?;
        let body = self.state.lock().body;
        match body.map(|body| body.ending()) {
            Some(Ending::Excess { declared }) => Err(PyValueError::new_err(format!(
                "write() was given more than the {declared} bytes that Content-Length declares; \
                 the rest is not sent (PEP 3333)"
            ))),
            Some(Ending::Complete | Ending::Short { .. }) | None => Ok(()),
        }
    }
}

/// One piece of a body. *lenient* encodes a str where PEP 3333 demands bytes.
///
/// # Errors
/// `TypeError` for anything but bytes.
pub(super) fn bytes_from(item: &Bound<'_, PyAny>, is_lenient: bool) -> PyResult<Bytes> {
    /// From this size on a body is lent to the server instead of copied.
    const LARGE: usize = 32 * 1024;

    if let Ok(bytes) = item.cast::<PyBytes>() {
        let content = bytes.as_bytes();
        if content.len() < LARGE {
            return Ok(Bytes::copy_from_slice(content));
        }
        return Ok(Bytes::from_owner(pyo3::pybacked::PyBackedBytes::from(
            bytes.clone(),
        )));
    }
    if is_lenient && let Ok(text) = item.cast::<PyString>() {
        let encoded = text::bytes_of("body", text).map_or_else(
            |_| text.to_str().map(|utf8| utf8.as_bytes().to_vec()),
            |latin1| Ok(latin1.into_owned()),
        )?;
        return Ok(Bytes::from(encoded));
    }
    Err(wrong_type(
        "a piece of the response body",
        "bytes (encode text first)",
        item,
    ))
}

fn wrong_type(what: &str, wanted: &str, given: &Bound<'_, PyAny>) -> PyErr {
    let kind = given.get_type();
    let name = kind
        .name()
        .map_or_else(|_| "?".to_owned(), |name| name.to_string());
    PyTypeError::new_err(format!("{what} is of type {name}; PEP 3333 wants {wanted}"))
}

pub(super) fn not_started() -> PyErr {
    PyAssertionError::new_err(
        "the application gave its body before it called start_response(status, headers) (PEP 3333)",
    )
}

fn client_gone() -> PyErr {
    PyBrokenPipeError::new_err(ClientGone.to_string())
}
