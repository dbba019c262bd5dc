//! `Heartbeats` for Python: AMQP sockets, and heartbeats without the interpreter.
//!
//! Converts arguments and releases the interpreter around [`crate::amqp::heartbeat`]; decides nothing.
//! Bytes are copied before the interpreter is released, for the buffer belongs to the caller.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::signals;
use crate::amqp::heartbeat::{self, Wrote};

/// The most bytes that are sent with the interpreter held, without waiting for anybody.
const AT_ONCE: usize = 16 * 1024;

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
    fn new() -> Self {
        Self {
            heartbeats: heartbeat::Heartbeats::new(),
        }
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
        let data = PyBuffer::<u8>::get(data)?.to_vec(py)?;
        let deadline = signals::deadline_in(timeout)?;
        let mut offset = 0;
        // Handing the interpreter over and getting it back costs more than sending a few bytes.
        if data.len() <= AT_ONCE && self.connection.try_write(&data, &mut offset)? {
            return Ok(());
        }
        loop {
            match py.detach(|| self.connection.write(&data, &mut offset, deadline))? {
                Wrote::All => return Ok(()),
                Wrote::Interrupted => py.check_signals()?,
                Wrote::TimedOut => return Err(PyTimeoutError::new_err("timed out")),
            }
        }
    }

    /// The interpreter is kept: reading what is there takes less than to hand it over.
    fn receive<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        Ok(self.connection.receive(|bytes| PyBytes::new(py, bytes))?)
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.connection.close());
    }

    #[getter]
    fn sent(&self) -> u64 {
        self.connection.sent()
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
