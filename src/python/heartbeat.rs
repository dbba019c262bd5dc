//! `Heartbeats` for Python: AMQP sockets, and heartbeats without the interpreter.
//!
//! Converts arguments and releases the interpreter around [`crate::amqp::heartbeat`]; decides nothing.
//! Bytes are copied before the interpreter is released, for the buffer belongs to the caller.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::signals;
use crate::amqp::heartbeat;

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
        let interval = Duration::try_from_secs_f64(interval)
            .ok()
            .filter(|interval| !interval.is_zero())
            .ok_or_else(|| {
                PyValueError::new_err(format!(
                    "interval is {interval} s; give more than 0, as the broker was told"
                ))
            })?;
        let socket = duplicate(fd)?;
        let connection = self.heartbeats.add(socket, interval)?;
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
    fn receive<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        Ok(self.connection.receive(|bytes| PyBytes::new(py, bytes))?)
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
