//! What CPython keeps for each thread: its `threading.local` data and its context variables.
//!
//! Owns two rules about them. A thread that begins something else forgets its data. A forked child
//! keeps what the other threads of its parent had: CPython drops it there, since those threads are
//! gone, and destructors in the child would speak on sockets that the parent goes on using (a session
//! of a database in `threading.local` sends ROLLBACK). Under green threads all of them survive a
//! fork, and so does what they keep. Never reads what belongs to a thread while that runs.
//!
//! Rules: `PyOS_AfterFork_Child`, `PyThreadState_Clear`, `PyThreadState_GetDict` (C API reference and
//! `pystate.c`); since CPython 3.13 `_threadmodule.c`: the data of a thread live as long as a *sentinel* of
//! its thread state; `pthread_atfork(3)`.

#![expect(
    unsafe_code,
    reason = "the C API shows only the calling thread's data, and only before a fork"
)]

use std::ptr;
use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySet};

use crate::locks;

/// The first CPython whose thread states have a sentinel.
const SENTINELS: (u8, u8) = (3, 13);
/// Words at the beginning of a thread state that are compared, from a CPython on: every state of it and
/// of the later ones has them (`struct _ts` in CPython's `pystate.h`). The smallest state is that of 3.12.
/// Since 3.14 a debugger's 516 bytes lie behind the sentinel: in 96 words it is found also where fields
/// that come before it are added.
const WORDS: [((u8, u8), usize); 3] = [((3, 11), 36), (SENTINELS, 38), ((3, 14), 96)];

/// At which words of a thread state there are the references that own a thread's data. A place that
/// is not found in this CPython is left out.
#[derive(Debug, Default, Clone, Copy)]
struct Places {
    dict: Option<usize>,
    context: Option<usize>,
    sentinel: Option<usize>,
}

static PLACES: OnceLock<Places> = OnceLock::new();

/// Lets forked children keep the data of the threads that they do not have. Once is enough.
pub(super) fn keep_in_children(py: Python<'_>) -> PyResult<()> {
    let places = Places::find(py)?;
    if PLACES.set(places).is_err() {
        return Ok(());
    }
    Ok(locks::at_forks(None, None, Some(keep))?)
}

/// In the child, before CPython knows of the fork: takes a reference, for good, to what each of the
/// other threads had. Writes reference counts alone: it allocates nothing and takes no lock.
extern "C" fn keep() {
    let Some(places) = PLACES.get() else { return };
    let kept = [places.dict, places.context, places.sentinel];
    // SAFETY: it reads a pointer; an interpreter that ended, or none, is null.
    let main = unsafe { ffi::PyInterpreterState_Main() };
    if main.is_null() {
        return;
    }
    // SAFETY: it reads a thread-specific value, which is null where this thread never ran Python code.
    let own = unsafe { ffi::PyGILState_GetThisThreadState() };
    // SAFETY: the thread that forks is the child's only one, so that no thread state comes or goes. The
    // list is whole: a state is linked before its list begins with it, and Python's own fork holds
    // the list's lock.
    let mut state = unsafe { ffi::PyInterpreterState_ThreadHead(main) };
    while !state.is_null() {
        for place in kept.into_iter().flatten().filter(|_| state != own) {
            // SAFETY: the place was found in such a state.
            let object = unsafe { word(state, place) };
            // SAFETY: the state owns a reference to the object, or has null, which is ignored.
            unsafe { ffi::Py_XINCREF(object.cast()) };
        }
        // SAFETY: as for the first one.
        state = unsafe { ffi::PyThreadState_Next(state) };
    }
}

/// The word at *place* of *state*.
///
/// # Safety
/// *place* is within the thread state, which is alive.
unsafe fn word(state: *mut ffi::PyThreadState, place: usize) -> *mut std::ffi::c_void {
    // SAFETY: the caller's promise.
    let at = unsafe { state.cast::<*mut std::ffi::c_void>().add(place) };
    // SAFETY: as above; thread states are aligned as pointers are.
    unsafe { ptr::read(at) }
}

impl Places {
    /// Looks for them in the calling thread's state, where their values are known.
    fn find(py: Python<'_>) -> PyResult<Self> {
        // SAFETY: this thread is attached, which `py` proves; both may be null.
        let dict = unsafe { ffi::PyThreadState_GetDict() };
        // SAFETY: as above.
        let context = unsafe { ffi::PyContext_New() };
        // SAFETY: the reference is owned, and null with an exception.
        let context = unsafe { Bound::from_owned_ptr_or_err(py, context)? };
        // SAFETY: as above; `context` is a context that no thread has entered.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        let context_place = place_of(py, context.as_ptr());
        // SAFETY: the context is the one that was entered last.
        if unsafe { ffi::PyContext_Exit(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        let sentinel = if has_sentinels(py) {
            own_sentinel(py).and_then(|sentinel| place_of(py, sentinel.as_ptr()))
        } else {
            None
        };
        Ok(Self {
            dict: place_of(py, dict),
            context: context_place,
            sentinel,
        })
    }
}

/// At which word the calling thread's state refers to *object*.
fn place_of(py: Python<'_>, object: *mut ffi::PyObject) -> Option<usize> {
    let version = py.version_info();
    let words = WORDS
        .into_iter()
        .rev()
        .find_map(|(first, words)| (version >= first).then_some(words))
        .unwrap_or_default();
    // SAFETY: this thread is attached, so it has a state.
    let state = unsafe { ffi::PyThreadState_Get() };
    // SAFETY: a thread state is at least that long. Only this thread writes to its own state.
    let is_there = |&place: &usize| unsafe { word(state, place) } == object.cast();
    (!object.is_null())
        .then(|| (0..words).find(is_there))
        .flatten()
}

fn has_sentinels(py: Python<'_>) -> bool {
    py.version_info() >= SENTINELS
}

/// The sentinel of the calling thread: a new local has a weak reference to it, and to no other. None
/// where this CPython has it elsewhere.
fn own_sentinel(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    let look = || -> PyResult<_> {
        let local = py.import("_thread")?.getattr("_local")?.call0()?;
        local.setattr("osloxide", true)?;
        let referents = py.import("gc")?.call_method1("get_referents", (&local,))?;
        for referent in referents.try_iter()? {
            if let Ok(watchdogs) = referent?.cast_into::<PySet>()
                && let Some(watchdog) = watchdogs.iter().next()
            {
                return watchdog.call0().map(Some);
            }
        }
        Ok(None)
    };
    look().ok().flatten()
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn unknown_thread_data(py: Python<'_>) -> Vec<&'static str> {
    let places = PLACES.get().copied().unwrap_or_default();
    let locals = if has_sentinels(py) {
        places.sentinel
    } else {
        places.dict
    };
    [
        ("threading.local", locals),
        ("PyThreadState_GetDict", places.dict),
        ("contextvars", places.context),
    ]
    .into_iter()
    .filter_map(|(name, place)| place.is_none().then_some(name))
    .collect()
}

/// See `_native.pyi`.
#[pyfunction]
pub(super) fn forget_thread_data(py: Python<'_>) -> PyResult<bool> {
    if has_sentinels(py) {
        let Some(sentinel) = own_sentinel(py) else {
            return Ok(false);
        };
        // What CPython does when the sentinel goes, which is when the thread ends.
        let watchdogs = py
            .import("weakref")?
            .call_method1("getweakrefs", (sentinel,))?;
        for watchdog in watchdogs.try_iter()? {
            let watchdog = watchdog?;
            let forget = watchdog.getattr("__callback__")?;
            if !forget.is_none() {
                forget.call1((watchdog,))?;
            }
        }
    }
    // SAFETY: this thread is attached, which `py` proves.
    let data = unsafe { ffi::PyThreadState_GetDict() };
    // SAFETY: the reference is borrowed from the thread's state, and null when there is no data.
    let data = unsafe { Bound::from_borrowed_ptr_or_opt(py, data) };
    if let Some(data) = data {
        data.cast::<PyDict>()?.clear();
    }
    Ok(true)
}
