//! Python objects that are made once and kept for as long as the process lives.
//!
//! Owns how a thread comes to such an object when two want it for the first time, or when another
//! thread forks just then. Nobody ever waits here: each thread makes its own, and all use the one
//! that was there first. `PyOnceLock`, on which the `intern!` of `PyO3` stands, has one thread make
//! the object while the others wait, and lets go of the interpreter for it: a program that forks in
//! that moment gets a child in which the maker does not exist and everyone waits for it for ever.
//! `tests/python/test_architecture.py` sees to it that no other file uses either.

use once_cell::race::OnceBox;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// A value that is made on first use.
#[derive(Debug)]
pub(super) struct Kept<T>(OnceBox<T>);

impl<T> Kept<T> {
    /// Nothing yet.
    pub(super) const fn new() -> Self {
        Self(OnceBox::new())
    }

    /// The value, if it has been made.
    pub(super) fn get(&self) -> Option<&T> {
        self.0.get()
    }

    /// The value; what `make` returns where there is none. Two threads may both call `make`, and
    /// one of the results is dropped.
    ///
    /// # Errors
    ///
    /// Those of `make`; nothing is kept then.
    pub(super) fn get_or_make(&self, make: impl FnOnce() -> PyResult<T>) -> PyResult<&T> {
        self.0.get_or_try_init(|| make().map(Box::new))
    }
}

/// A string that is made on first use; what [`intern!`](super::intern) stands for.
#[derive(Debug)]
pub(super) struct Interned {
    text: &'static str,
    object: OnceBox<Py<PyString>>,
}

impl Interned {
    pub(super) const fn new(text: &'static str) -> Self {
        Self {
            text,
            object: OnceBox::new(),
        }
    }

    #[inline]
    pub(super) fn get<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        let make = || Box::new(PyString::intern(py, self.text).unbind());
        self.object.get_or_init(make).bind(py)
    }
}

/// The interned Python string of a literal, made once: for names of attributes and keys.
macro_rules! intern {
    ($py:expr, $text:literal) => {{
        static INTERNED: $crate::python::kept::Interned =
            $crate::python::kept::Interned::new($text);
        INTERNED.get($py)
    }};
}
pub(super) use intern;
