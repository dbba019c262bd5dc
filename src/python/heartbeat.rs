//! `Heartbeats` for Python: AMQP sockets, and heartbeats without the interpreter.
//!
//! Converts arguments and releases the interpreter around [`crate::amqp::heartbeat`] and
//! [`crate::amqp::tls`]; decides nothing.
//! Bytes are copied before the interpreter is released, for the buffer belongs to the caller.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::signals;
use crate::amqp::{heartbeat, tls};

/// How long a writer waits for its peer before it lets Python signal handlers run.
const PATIENCE: Duration = Duration::from_millis(100);

/// One thread that sends heartbeats on all connections of a process.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Heartbeats {
    heartbeats: heartbeat::Heartbeats,
}

/// One connection.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpConnection {
    connection: Arc<heartbeat::AmqpConnection>,
}

#[pymethods]
impl Heartbeats {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self {
            heartbeats: heartbeat::Heartbeats::new()?,
        })
    }

    fn add(&self, fd: i32, interval: f64) -> PyResult<AmqpConnection> {
        let interval = above_zero(interval)?;
        let socket = duplicate(fd)?;
        let connection = self.heartbeats.add(socket, interval)?;
        Ok(AmqpConnection { connection })
    }

    #[pyo3(signature = (fd, *, roots=None, server_name=None, identity=None, timeout=None))]
    fn add_tls(
        &self,
        py: Python<'_>,
        fd: i32,
        roots: Option<&[u8]>,
        server_name: Option<&str>,
        identity: Option<(&[u8], &[u8])>,
        timeout: Option<f64>,
    ) -> PyResult<AmqpConnection> {
        let deadline = signals::deadline_in(timeout)?;
        let socket = duplicate(fd)?;
        let mut session = tls::Session::new(&tls::Options {
            roots,
            server_name,
            identity,
        })
        .map_err(tls_error)?;
        loop {
            let look = Instant::now() + PATIENCE;
            let until = deadline.map_or(look, |deadline| deadline.min(look));
            if py
                .detach(|| session.handshake(socket.as_fd(), until))
                .map_err(tls_error)?
            {
                break;
            }
            py.check_signals()?;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(PyTimeoutError::new_err("timed out in the TLS handshake"));
            }
        }
        let connection = self.heartbeats.add_tls(socket, session)?;
        Ok(AmqpConnection { connection })
    }
}

#[pymethods]
impl AmqpConnection {
    #[pyo3(signature = (data, timeout=None))]
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<()> {
        let deadline = signals::deadline_in(timeout)?;
        let mark = self.queue(py, data)?;
        // Handing the interpreter over costs more than to send what the socket takes at once.
        while self.connection.unsent() > 0 {
            let look = Instant::now() + PATIENCE;
            let until = deadline.map_or(look, |deadline| deadline.min(look));
            if py.detach(|| self.connection.wait_sent(mark, until))? {
                break;
            }
            py.check_signals()?;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(PyTimeoutError::new_err("timed out"));
            }
        }
        Ok(())
    }

    fn post(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.queue(py, data).map(drop)
    }

    #[getter]
    fn unsent(&self) -> u64 {
        self.connection.unsent()
    }

    /// The interpreter is kept: reading what is there takes less than to hand it over.
    #[pyo3(signature = (most=heartbeat::PIECE))]
    fn receive<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let take = |bytes: &[u8]| PyBytes::new(py, bytes);
        Ok(self.connection.receive(most.max(1), take)?)
    }

    #[getter]
    fn is_readable(&self) -> bool {
        self.connection.is_readable()
    }

    fn beat(&self, interval: f64) -> PyResult<()> {
        self.connection.beat(above_zero(interval)?);
        Ok(())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.connection.close());
    }

    #[getter]
    fn heartbeats(&self) -> u64 {
        self.connection.heartbeats()
    }
}

impl AmqpConnection {
    fn queue(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<u64> {
        let data = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        Ok(self.connection.queue(data)?)
    }
}

fn above_zero(interval: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(interval)
        .ok()
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| {
            PyValueError::new_err(format!(
                "interval is {interval} s; give more than 0, as the broker was told"
            ))
        })
}

/// What TLS itself refuses is a `ValueError`: OpenSSL may see it otherwise.
fn tls_error(error: tls::Error) -> PyErr {
    match error {
        tls::Error::Io(error) => error.into(),
        error @ (tls::Error::Option { .. } | tls::Error::Refused(_)) => {
            PyValueError::new_err(error.to_string())
        }
    }
}

#[expect(unsafe_code, reason = "Python hands descriptors over as numbers")]
fn duplicate(fd: i32) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!(
            "descriptor {fd} is closed; give a connected socket's"
        )));
    }
    // SAFETY: the number is not -1, and it is used for this one call, which fails on a closed one.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?)
}
