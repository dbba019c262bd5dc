//! An exception for another thread, at a place where that thread may take it.
//!
//! Owns the one call that looks at a thread's frames and arms the exception without letting go of
//! the interpreter in between: what was seen still holds when the exception is armed, and CPython
//! raises it before that thread executes anything further. An interpreter without a lock has no such
//! moment, and there no thread is interrupted. Decides nothing else.
//!
//! Rules: `PyThreadState_SetAsyncExc` (C API reference).

#![allow(
    unsafe_code,
    reason = "the C API has no safe way to make another thread raise"
)]

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::parallel;

/// Frames that are looked at, from the innermost outwards, for modules that hold locks.
const DEPTH: usize = 24;

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn interrupt_thread(
    py: Python<'_>,
    ident: std::ffi::c_ulong,
    exception: &Bound<'_, PyAny>,
    innermost: &str,
    anywhere: &Bound<'_, PyAny>,
) -> PyResult<Option<bool>> {
    parallel::learn(py)?;
    if !parallel::has_lock() {
        // That thread runs on during the look, and is elsewhere when the exception is armed.
        return Ok(Some(false));
    }
    let anywhere: Vec<String> = anywhere.extract()?;
    // SAFETY: both need an attached thread only, which `py` proves. A collection in between could run
    // Python code and let the other thread go on.
    let was_enabled = unsafe { pyo3::ffi::PyGC_Disable() };
    let result = arm(py, ident, exception, innermost, &anywhere);
    if was_enabled != 0 {
        // SAFETY: as above.
        unsafe { pyo3::ffi::PyGC_Enable() };
    }
    result
}

fn arm(
    py: Python<'_>,
    ident: std::ffi::c_ulong,
    exception: &Bound<'_, PyAny>,
    innermost: &str,
    anywhere: &[String],
) -> PyResult<Option<bool>> {
    let frames = py.import("sys")?.call_method0("_current_frames")?;
    let Some(mut frame) = frames.cast::<PyDict>()?.get_item(ident)? else {
        return Ok(None);
    };
    for depth in 0..DEPTH {
        let globals = frame.getattr("f_globals")?;
        let name = globals.cast::<PyDict>()?.get_item("__name__")?;
        if let Some(Ok(name)) = name.as_ref().map(PyAnyMethods::extract::<String>) {
            let below = |room: &str| {
                name.strip_prefix(room)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            if (depth == 0 && below(innermost)) || anywhere.iter().any(|room| below(room)) {
                return Ok(Some(false));
            }
        }
        frame = frame.getattr("f_back")?;
        if frame.is_none() {
            break;
        }
    }
    // SAFETY: this thread is attached, and `exception` is a live class; CPython takes its own
    // reference.
    let threads =
        unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(ident.cast_signed(), exception.as_ptr()) };
    Ok((threads > 0).then_some(true))
}
