//! What an application returned, taken as PEP 3333 demands and sent.
//!
//! Owns the ways to take a result: a list or a tuple at once, a file by the kernel, anything else
//! piece by piece. Never calls the application and decides no status: [`super`] does.
//! Rules: PEP 3333 "Buffering and Streaming", "Optional Platform-Specific File Handling",
//! "Handling the Content-Length Header".

use super::Application;
use super::call::{Call, bytes_from, not_started};
use super::child;
use super::file_wrapper::{Content, FileWrapper};
use crate::python::kept::intern;
use crate::wsgi::Exchange;
use crate::wsgi::response::{Ending, Head, Ready};
use bytes::{Bytes, BytesMut};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// Bodies up to this many bytes are put together and sent at once; longer ones go piece by piece.
const LARGEST_JOINED: usize = 256 * 1024;

/// Shorter pieces of a longer body are put together all the same: each piece by itself costs about a
/// hundred bytes of memory, and its share of a call to send it.
const SHORT: usize = 16 * 1024;

/// What became of an application's result.
pub(super) enum Collected {
    /// Everything is there; nothing has been sent.
    Whole(Head, Bytes),
    /// It was sent piece by piece.
    Sent(Ending),
}

impl Application {
    /// Takes the body from the application's result: as a whole where it is there as a whole, else
    /// piece by piece, each sent before the next one is asked for (PEP 3333).
    pub(super) fn collect(&self, call: &Call, result: &Bound<'_, PyAny>) -> PyResult<Collected> {
        let py = result.py();
        if let Ok(list) = result.cast_exact::<PyList>() {
            return self.join(py, call, list.iter());
        }
        if let Ok(tuple) = result.cast_exact::<PyTuple>() {
            return self.join(py, call, tuple.iter());
        }
        if let Ok(wrapper) = result.cast_exact::<FileWrapper>()
            && !call.progress().has_begun
        {
            return self.send_file(call, wrapper);
        }
        let is_single =
            !call.progress().has_begun && matches!(child::call(py, || result.len()), Ok(1));
        let mut items = child::call(py, || result.try_iter())?;
        let mut pieces =
            std::iter::from_fn(|| child::call(py, || items.next().transpose()).transpose());
        if is_single && let Some(first) = pieces.next() {
            let body = bytes_from(&first?, self.is_lenient)?;
            let Some(second) = pieces.next() else {
                let head = call.take_head().ok_or_else(not_started)?;
                return Ok(Collected::Whole(head, body));
            };
            let second = second?;
            if !body.is_empty() {
                call.send(py, &body)?;
            }
            self.stream(call, &second)?;
        }
        self.stream_all(call, pieces)?;
        if !call.progress().has_begun {
            let head = call.take_head().ok_or_else(not_started)?;
            return Ok(Collected::Whole(head, Bytes::new()));
        }
        Ok(Collected::Sent(call.end(py)))
    }

    /// Sends what a `wsgi.file_wrapper` holds, up to the declared length (PEP 3333): a longer file is
    /// no mistake of the application.
    fn send_file(&self, call: &Call, wrapper: &Bound<'_, FileWrapper>) -> PyResult<Collected> {
        let py = wrapper.py();
        if !call.is_started() {
            return Err(not_started());
        }
        let declared = call.declared();
        match wrapper.get().content(py, declared)? {
            Some(Content::Small(body)) => {
                let head = call.take_head().ok_or_else(not_started)?;
                return Ok(Collected::Whole(head, body));
            }
            Some(Content::Large(part)) => {
                call.expect_total(part.length);
                call.send_file(py, part)?;
            }
            None => {
                let mut left = declared.unwrap_or(u64::MAX);
                while left > 0
                    && let Some(block) = child::call(py, || wrapper.get().block(py, left))?
                {
                    let bytes = bytes_from(&block, self.is_lenient)?;
                    left = left.saturating_sub(bytes.len() as u64);
                    call.send(py, &bytes)?;
                }
                if !call.progress().has_begun {
                    let head = call.take_head().ok_or_else(not_started)?;
                    return Ok(Collected::Whole(head, Bytes::new()));
                }
            }
        }
        Ok(Collected::Sent(call.end(py)))
    }

    /// Sends what the application yields, until it ends or until nothing more of it can be sent. An
    /// application that has given all that it promised is asked for more so that it can come to its
    /// end; one that goes on is not asked again (PEP 3333 "Handling the Content-Length Header").
    fn stream_all<'py>(
        &self,
        call: &Call,
        pieces: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
    ) -> PyResult<()> {
        /// Empty pieces behind the last byte, after which an application is not asked again.
        const MOST_EMPTY: usize = 100;

        let mut empty = 0;
        for piece in pieces {
            let piece = piece?;
            if !call.is_full() {
                self.stream(call, &piece)?;
                // Nothing was promised, and nothing is given: that may go on for ever.
                empty += usize::from(call.promises_nothing());
                if empty > MOST_EMPTY {
                    break;
                }
                continue;
            }
            let excess = bytes_from(&piece, self.is_lenient)?;
            empty += 1;
            if !excess.is_empty() || empty > MOST_EMPTY {
                call.note_excess(excess.len());
                break;
            }
        }
        Ok(())
    }

    fn stream(&self, call: &Call, piece: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = bytes_from(piece, self.is_lenient)?;
        if bytes.is_empty() {
            // Nothing to send, so nothing would tell that the client has gone.
            return call.check_client(piece.py());
        }
        if !call.is_started() {
            return Err(not_started());
        }
        call.send(piece.py(), &bytes)
    }

    /// Takes a list's items: put together where they are short, and one behind the other where they
    /// are long, or where `write()` has sent something before them.
    fn join<'py>(
        &self,
        py: Python<'py>,
        call: &Call,
        mut items: impl ExactSizeIterator<Item = Bound<'py, PyAny>>,
    ) -> PyResult<Collected> {
        if items.len() <= 1 && !call.progress().has_begun {
            let body = match items.next() {
                Some(item) => bytes_from(&item, self.is_lenient)?,
                None => Bytes::new(),
            };
            let head = call.take_head().ok_or_else(not_started)?;
            return Ok(Collected::Whole(head, body));
        }
        let mut pieces = Vec::new();
        let mut joined = BytesMut::new();
        let mut total = 0;
        for item in items {
            let piece = bytes_from(&item, self.is_lenient)?;
            total += piece.len();
            let is_short = piece.len() < SHORT || total <= LARGEST_JOINED;
            if !joined.is_empty() && (!is_short || joined.len() + piece.len() > LARGEST_JOINED) {
                pieces.push(joined.split().freeze());
            }
            if is_short {
                joined.extend_from_slice(&piece);
            } else {
                pieces.push(piece);
            }
        }
        let has_begun = call.progress().has_begun;
        if pieces.is_empty() && !has_begun {
            let head = call.take_head().ok_or_else(not_started)?;
            return Ok(Collected::Whole(head, joined.freeze()));
        }
        if !joined.is_empty() {
            pieces.push(joined.freeze());
        }
        if !call.is_started() {
            return Err(not_started());
        }
        if !has_begun {
            call.expect_total(total as u64);
        }
        call.send_rest(py, pieces)?;
        Ok(Collected::Sent(call.end(py)))
    }

    /// Sends a whole answer.
    pub(super) fn respond(
        &self,
        py: Python<'_>,
        exchange: &mut dyn Exchange,
        call: &Call,
        ready: Ready,
    ) {
        let ending = ready.count().ending();
        call.record(ready.status().as_u16(), ready.count());
        if py.detach(|| ready.send(exchange)).is_err() {
            call.record_client_gone();
        }
        self.report_length_mismatch(py, exchange, ending);
    }

    /// Closes the application's result (PEP 3333), exactly once and on every path.
    pub(super) fn close(&self, py: Python<'_>, exchange: &dyn Exchange, result: &Bound<'_, PyAny>) {
        let closed = child::call(py, || {
            let close = result.getattr_opt(intern!(py, "close"))?;
            close.map(|close| close.call0()).transpose()
        });
        if let Err(error) = closed {
            let line = crate::wsgi::access_log::request_line(exchange.request());
            self.report(
                py,
                &format!("application failed to close its answer to {line}"),
                &error,
            );
        }
    }
}

/// True for results that certainly have no `close()`.
pub(super) fn is_plain(result: &Bound<'_, PyAny>) -> bool {
    result.is_exact_instance_of::<PyList>() || result.is_exact_instance_of::<PyTuple>()
}
