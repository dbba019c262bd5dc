//! The boundary of the scoreboard room: one class and the conversion of a snapshot to a dict.

use crate::python::errors::scoreboard_error;
use crate::scoreboard::{
    self, BrokerSnapshot, FigureSnapshot, MethodSnapshot, Snapshot, TIME_BOUNDS,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// Counters shared by all processes of a launcher; see `_native.pyi`.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct Scoreboard(pub(super) Arc<scoreboard::Scoreboard>);

#[pymethods]
impl Scoreboard {
    #[new]
    #[pyo3(signature = (name=""))]
    fn new(name: &str) -> PyResult<Self> {
        let board = scoreboard::Scoreboard::new(name).map_err(|error| scoreboard_error(&error))?;
        Ok(Self(Arc::new(board)))
    }

    #[staticmethod]
    fn attach(pid: i32) -> PyResult<Self> {
        let board =
            scoreboard::Scoreboard::attach(pid).map_err(|error| scoreboard_error(&error))?;
        Ok(Self(Arc::new(board)))
    }

    fn claim(&self, slot: u32, generation: u32) -> PyResult<()> {
        self.0
            .claim(slot, generation)
            .map_err(|error| scoreboard_error(&error))?;
        Ok(())
    }

    fn read<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let rows = self.0.read();
        let rows = rows.iter().map(|row| {
            let dict = to_dict(py, row)?;
            dict.set_item("group_name", self.0.group_name(row.group as usize))?;
            Ok(dict)
        });
        rows.collect()
    }

    fn fileno(&self) -> i32 {
        self.0.as_fd().as_raw_fd()
    }

    fn name_group(&self, group: usize, name: &str) {
        self.0.name_group(group, name);
    }

    #[getter]
    fn name(&self) -> String {
        self.0.name()
    }

    #[getter]
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    #[getter]
    fn started_at(&self) -> Option<f64> {
        instant(self.0.started_at())
    }
}

fn to_dict<'py>(py: Python<'py>, row: &Snapshot) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("slot", row.slot)?;
    dict.set_item("group", row.group)?;
    dict.set_item("pid", row.pid)?;
    dict.set_item("generation", row.generation)?;
    dict.set_item("state", row.state.name())?;
    dict.set_item("started_at", instant(row.started_at))?;
    dict.set_item("ready_at", instant(row.ready_at))?;
    dict.set_item("connections", row.connections)?;
    dict.set_item("in_flight", row.in_flight)?;
    dict.set_item("served", row.served)?;
    dict.set_item("slot_served", row.slot_served)?;
    dict.set_item("oldest_since", row.oldest_since.and_then(instant))?;
    dict.set_item("threads", row.threads)?;
    dict.set_item("respawns", row.respawns)?;
    dict.set_item("last_exit", row.last_exit)?;
    dict.set_item("worn", row.worn.map(|worn| worn.parts().0))?;
    dict.set_item("figures", figures(py, &row.figures)?)?;
    dict.set_item("broker", broker(py, &row.broker)?)?;
    let methods: PyResult<Vec<_>> = row.methods.iter().map(|it| method(py, it)).collect();
    dict.set_item("methods", methods?)?;
    Ok(dict)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact to the microsecond for 285 years"
)]
fn figures<'py>(py: Python<'py>, figures: &FigureSnapshot) -> PyResult<Bound<'py, PyDict>> {
    let seconds = |micros: u64| micros as f64 / 1e6;
    let dict = PyDict::new(py);
    dict.set_item("classes", figures.classes)?;
    dict.set_item("exceptions", figures.exceptions)?;
    dict.set_item("timed_out", figures.timed_out)?;
    dict.set_item("sent", figures.bytes)?;
    dict.set_item("waited", seconds(figures.waited_us))?;
    dict.set_item("seconds", seconds(figures.time_us))?;
    dict.set_item("times", figures.times)?;
    dict.set_item("time_bounds", TIME_BOUNDS.map(seconds))?;
    dict.set_item("unsent", figures.unsent)?;
    dict.set_item("queued", figures.queued)?;
    dict.set_item("stuck", figures.stuck)?;
    dict.set_item("held_uploads", figures.held_uploads)?;
    Ok(dict)
}

fn broker<'py>(py: Python<'py>, broker: &BrokerSnapshot) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("connections", broker.gauges.connections)?;
    dict.set_item("channels", broker.gauges.channels)?;
    dict.set_item("queues", broker.gauges.queues)?;
    dict.set_item("unconfirmed", broker.gauges.unconfirmed)?;
    dict.set_item("sent", broker.sent)?;
    dict.set_item("resent", broker.resent)?;
    dict.set_item("reconnects", broker.reconnects)?;
    Ok(dict)
}

fn method<'py>(py: Python<'py>, method: &MethodSnapshot) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &method.name)?;
    dict.set_item("queued", method.queued)?;
    dict.set_item("running", method.running)?;
    dict.set_item("done", method.done)?;
    dict.set_item("failed", method.failed)?;
    dict.set_item("oldest_since", method.oldest_since.and_then(instant))?;
    Ok(dict)
}

/// `CLOCK_MONOTONIC` seconds, as `time.monotonic()` gives them; `None` for "not yet".
#[expect(
    clippy::cast_precision_loss,
    reason = "exact to the microsecond for 285 years"
)]
fn instant(nanoseconds: u64) -> Option<f64> {
    (nanoseconds != 0).then(|| nanoseconds as f64 / 1e9)
}
