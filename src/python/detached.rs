//! Releasing the interpreter around the life of a pool thread.
//!
//! Owns the one cast that [`Python::detach`] needs for a body that may not leave its thread. Touches
//! no Python object.
#![expect(
    unsafe_code,
    reason = "a body that stays on its thread is passed where `Send` is demanded"
)]

use pyo3::prelude::*;

/// Runs *body* with the interpreter released, on this same thread.
pub(super) fn detached(py: Python<'_>, body: &mut dyn FnMut()) {
    struct SameThread<'a>(&'a mut dyn FnMut());
    // SAFETY: `Python::detach` calls its closure on the thread that it was called on; it asks for
    // `Send` to keep references to Python objects out, and *body* comes from a room without any.
    unsafe impl Send for SameThread<'_> {}

    let body = SameThread(body);
    py.detach(move || {
        let SameThread(body) = { body };
        body();
    });
}
