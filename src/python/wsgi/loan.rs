//! A loan of the exchange to Python objects that may outlive it.
//!
//! `wsgi.input` and `write()` reach the client through the exchange, but an application may keep
//! them for ever and hand them to other threads, while the exchange ends with its request. So they
//! hold a [`Loan`]: it lets one caller at a time in, and nobody once it was revoked. Owns the only
//! pointer to the exchange while it is lent, and the rule that the interpreter is released around
//! each use of it.
#![expect(
    unsafe_code,
    reason = "the exchange's lifetime is checked at run time, by revoking"
)]

use std::mem;
use std::ptr::NonNull;

use crate::locks::Mutex;
use pyo3::prelude::*;

use crate::wsgi::Exchange;

/// Room for one borrowed exchange.
#[derive(Debug, Default)]
pub(super) struct Loan {
    exchange: Mutex<Option<Borrowed>>,
}

#[derive(Debug)]
struct Borrowed(NonNull<dyn Exchange>);

// SAFETY: `Exchange` is `Send` and the mutex around the pointer admits one thread at a time.
unsafe impl Send for Borrowed {}

/// The request is over; its exchange belongs to the reactor now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Revoked;

/// Ends the loan when dropped, waiting for a caller that is inside it.
#[derive(Debug)]
pub(super) struct Lent<'a> {
    loan: &'a Loan,
}

impl Loan {
    /// Lends *exchange* until the returned guard is dropped. The caller touches it only through
    /// [`Loan::with`] meanwhile, which the borrow enforces.
    pub(super) fn lend<'a>(&'a self, exchange: &'a mut dyn Exchange) -> Lent<'a> {
        let pointer = NonNull::from(exchange);
        // SAFETY: only the lifetime bound of the trait object changes. `Lent` borrows the exchange
        // for as long as it lives, and takes the pointer out of the mutex when it is dropped.
        let pointer: NonNull<dyn Exchange> = unsafe { mem::transmute(pointer) };
        *self.exchange.lock() = Some(Borrowed(pointer));
        Lent { loan: self }
    }

    /// Calls `use_it` with the exchange. Call it without the interpreter: another thread may be
    /// inside, waiting for the client.
    ///
    /// # Errors
    /// [`Revoked`] once the request is over.
    pub(super) fn with<R>(
        &self,
        use_it: impl FnOnce(&mut dyn Exchange) -> R,
    ) -> Result<R, Revoked> {
        let mut guard = self.exchange.lock();
        let borrowed = guard.as_mut().ok_or(Revoked)?;
        // SAFETY: the pointer is valid until `Lent` removes it under this mutex, whose guard is
        // held to the end of this function, and the guard makes the reference unique.
        let exchange = unsafe { borrowed.0.as_mut() };
        Ok(use_it(exchange))
    }

    /// The same without waiting; `None` while a caller is inside, or once the request is over.
    pub(super) fn try_with<R>(&self, use_it: impl FnOnce(&mut dyn Exchange) -> R) -> Option<R> {
        let mut guard = self.exchange.try_lock()?;
        let borrowed = guard.as_mut()?;
        // SAFETY: as in `with`.
        let exchange = unsafe { borrowed.0.as_mut() };
        Some(use_it(exchange))
    }

    /// True once the request is over.
    pub(super) fn is_revoked(&self) -> bool {
        // A loan that a caller is inside of is not over.
        self.exchange
            .try_lock()
            .is_some_and(|guard| guard.is_none())
    }
}

impl Lent<'_> {
    /// Ends the loan. Waits, interpreter released, for a thread that is still inside.
    pub(super) fn revoke(self, py: Python<'_>) {
        if let Some(mut exchange) = self.loan.exchange.try_lock() {
            exchange.take();
            return;
        }
        py.detach(|| drop(self));
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.loan.exchange.lock().take();
    }
}
