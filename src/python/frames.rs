//! AMQP frames for Python: bytes in, bytes out.
//!
//! Converts arguments around [`crate::amqp::frames`]; decides nothing. Nothing here takes long enough
//! to release the interpreter for.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::amqp::frames::{self, Scan};

/// What was found, the bytes and the frames it took, and whether something for py-amqp follows.
type ScanResult<T> = (Vec<T>, usize, usize, bool);

/// The messages at the beginning of *buffer*.
#[pyfunction]
pub(super) fn amqp_deliveries(buffer: &[u8], channel: u16) -> ScanResult<(u64, bool, String)> {
    found(frames::deliveries(buffer, channel), |it| {
        (it.tag, it.is_redelivered, it.body.into_owned())
    })
}

/// The confirms at the beginning of *buffer*.
#[pyfunction]
pub(super) fn amqp_confirms(buffer: &[u8], channel: u16) -> ScanResult<(u64, bool)> {
    found(frames::confirms(buffer, channel), |it| {
        (it.tag, it.is_multiple)
    })
}

/// `basic.ack` of one delivery.
#[pyfunction]
pub(super) fn amqp_ack(py: Python<'_>, channel: u16, tag: u64) -> Bound<'_, PyBytes> {
    PyBytes::new(py, &frames::ack(channel, tag))
}

/// `basic.publish` of JSON through the default exchange.
#[pyfunction]
pub(super) fn amqp_publish<'py>(
    py: Python<'py>,
    channel: u16,
    queue: &str,
    message_id: &str,
    mandatory: bool,
    body: &str,
    frame_max: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    frames::publish(
        channel,
        queue,
        message_id,
        mandatory,
        body.as_bytes(),
        frame_max,
    )
    .map(|bytes| PyBytes::new(py, &bytes))
    .map_err(|error| PyValueError::new_err(error.to_string()))
}

fn found<T, U>(scan: Scan<T>, convert: impl Fn(T) -> U) -> ScanResult<U> {
    let found = scan.found.into_iter().map(convert).collect();
    (found, scan.used, scan.frames, scan.is_foreign)
}
