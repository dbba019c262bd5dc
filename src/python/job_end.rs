//! The end of a request or a job on a thread of a pool, for those who keep something for each of them.
//!
//! Owns one function of Python that is called there, on that thread, once the application is done: after
//! the last piece and `close()` of a request, after the result of a job. Without one it costs a load.
//! Rules: eventlet's `GreenPool`: what a greenthread has left behind ends with it.

use pyo3::prelude::*;

use super::kept::Kept;

static CALLED: Kept<Py<PyAny>> = Kept::new();

/// Has *function* called at each end from now on; the first one that is given stays.
#[pyfunction]
pub(super) fn when_job_ends(function: Py<PyAny>) -> PyResult<()> {
    CALLED.get_or_make(|| Ok(function)).map(drop)
}

/// A request or a job has ended on the calling thread.
pub(super) fn tell(py: Python<'_>) {
    if let Some(function) = CALLED.get()
        && let Err(error) = function.call0(py)
    {
        error.write_unraisable(py, Some(function.bind(py)));
    }
}
