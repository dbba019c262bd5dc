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

use nix::libc;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::kept::Kept;
use super::lock_waiters::waits_for_interpreter;
use super::parallel;

/// Frames that are looked at, from the innermost outwards, for modules that hold locks.
const DEPTH: usize = 24;

/// Instructions of Python code that look for an armed exception as soon as what they called returns.
const CALLS: [&str; 3] = ["CALL", "CALL_KW", "CALL_FUNCTION_EX"];

/// Their numbers in this CPython; none before 3.13, where every place will do.
static CALL_CODES: Kept<Vec<u8>> = Kept::new();

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn thread_state(native_id: i32) -> String {
    let path = format!("/proc/self/task/{native_id}/status");
    let Ok(status) = std::fs::read(path) else {
        return String::new();
    };
    let status = String::from_utf8_lossy(&status);
    let value_of = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
            .unwrap_or("?")
    };
    format!(
        "{} {} {}",
        value_of("State:"),
        value_of("voluntary_ctxt_switches:"),
        value_of("nonvoluntary_ctxt_switches:")
    )
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn interrupt_thread(
    py: Python<'_>,
    ident: std::ffi::c_ulong,
    native_id: i32,
    seen: &str,
    exception: &Bound<'_, PyAny>,
    innermost: &str,
    anywhere: &Bound<'_, PyAny>,
) -> PyResult<Option<bool>> {
    parallel::learn(py)?;
    if !parallel::has_lock() {
        // That thread runs on during the look, and is elsewhere when the exception is armed.
        return Ok(Some(false));
    }
    if has_ended(native_id) {
        // Another thread may have its ident by now.
        return Ok(None);
    }
    let anywhere: Vec<String> = anywhere.extract()?;
    let calls = CALL_CODES.get_or_make(|| call_codes(py))?;
    // SAFETY: both need an attached thread only, which `py` proves. A collection in between could run
    // Python code and let the other thread go on.
    let was_enabled = unsafe { pyo3::ffi::PyGC_Disable() };
    let result = match look(py, ident, innermost, &anywhere, calls) {
        Ok(Place::Fit) if calls.is_empty() || thread_waits(native_id, seen) => {
            // SAFETY: this thread is attached, and `exception` is a live class; CPython takes its
            // own reference.
            let threads = unsafe {
                pyo3::ffi::PyThreadState_SetAsyncExc(ident.cast_signed(), exception.as_ptr())
            };
            Ok((threads > 0).then_some(true))
        }
        Ok(Place::Fit | Place::Unfit) => Ok(Some(false)),
        Ok(Place::Gone) => Ok(None),
        Err(failure) => Err(failure),
    };
    if was_enabled != 0 {
        // SAFETY: as above.
        unsafe { pyo3::ffi::PyGC_Enable() };
    }
    result
}

fn has_ended(native_id: i32) -> bool {
    let state = thread_state(native_id);
    state.is_empty() || state.starts_with(['X', 'Z'])
}

fn call_codes(py: Python<'_>) -> PyResult<Vec<u8>> {
    if py.version_info() < (3, 13) {
        return Ok(Vec::new());
    }
    let codes = py.import("opcode")?.getattr("opmap")?;
    CALLS
        .iter()
        .map(|name| codes.get_item(name)?.extract())
        .collect()
}

/// What a look at the frames of a thread comes to.
enum Place {
    Fit,
    Unfit,
    /// There is no such thread.
    Gone,
}

/// Looks at the frames of a thread.
///
/// `calls`: unless it is empty, the thread has to be at one of these instructions.
fn look(
    py: Python<'_>,
    ident: std::ffi::c_ulong,
    innermost: &str,
    anywhere: &[String],
    calls: &[u8],
) -> PyResult<Place> {
    let frames = py.import("sys")?.call_method0("_current_frames")?;
    let Some(mut frame) = frames.cast::<PyDict>()?.get_item(ident)? else {
        return Ok(Place::Gone);
    };
    if !calls.is_empty() {
        let code = frame.getattr("f_code")?.getattr("co_code")?;
        let at: usize = frame.getattr("f_lasti")?.extract().unwrap_or(usize::MAX);
        let instruction = code.cast::<PyBytes>()?.as_bytes().get(at);
        if !instruction.is_some_and(|it| calls.contains(it)) {
            return Ok(Place::Unfit);
        }
    }
    for depth in 0..DEPTH {
        let globals = frame.getattr("f_globals")?;
        let name = globals.cast::<PyDict>()?.get_item("__name__")?;
        if let Some(Ok(name)) = name.as_ref().map(PyAnyMethods::extract::<String>) {
            let below = |room: &str| {
                name.strip_prefix(room)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            if (depth == 0 && below(innermost)) || anywhere.iter().any(|room| below(room)) {
                return Ok(Place::Unfit);
            }
        }
        frame = frame.getattr("f_back")?;
        if frame.is_none() {
            break;
        }
    }
    Ok(Place::Fit)
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn thread_waits(native_id: i32, seen: &str) -> bool {
    let state = thread_state(native_id);
    if !state.starts_with('S') {
        return state.is_empty();
    }
    let path = format!("/proc/self/task/{native_id}/syscall");
    let call = std::fs::read_to_string(path).unwrap_or_default();
    // Without a number: it runs, or the kernel does not tell.
    let call = call
        .split(' ')
        .next()
        .and_then(|it| it.parse::<libc::c_long>().ok());
    if call == Some(libc::SYS_futex) {
        return state == seen && !waits_for_interpreter(native_id);
    }
    call.is_some_and(|number| number >= 0) || state == seen
}
