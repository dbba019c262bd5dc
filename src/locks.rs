//! Locks and condition variables that the child of a program with threads can use.
//!
//! Owns two choices on top of `std`. A lock whose holder panicked stays usable: one request that
//! panics must not lock the pool. And nothing here stands on memory that locks share: on Linux each
//! is a futex of its own, and a child that makes new ones finds them as new as its parent did.
//! `parking_lot` keeps all threads that wait in one table with places in their stacks. A program
//! that forks beside such threads, which Python programs do, leaves the table to the child, whose
//! new threads get those stacks, and wake-ups of theirs go to threads that are not there. A lock
//! that another thread held at the fork stays locked in the child, here as anywhere: what a child
//! uses, it makes itself, and what it may use of its parent's is `PerProcess`. Where that cannot
//! be, as with what a C library keeps for the whole process, or with what a child needs as its parent
//! left it, a thread that forks takes the lock first: `held_by_forks`, `Copied`. The interface is
//! that of `parking_lot`, which [`crate::pool`] can have simulated.

#![cfg_attr(
    any(feature = "worker", feature = "wsgi", all(test, feature = "executor")),
    expect(unsafe_code, reason = "pthread_atfork(3)")
)]

#[cfg(any(feature = "worker", feature = "wsgi"))]
use std::io;
#[cfg(feature = "wsgi")]
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
#[cfg(any(feature = "worker", feature = "wsgi"))]
use std::sync::atomic::AtomicBool;
#[cfg(feature = "wsgi")]
use std::sync::atomic::{AtomicPtr, AtomicU32};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{self, PoisonError, TryLockError};
use std::time::{Duration, Instant};

#[cfg(any(feature = "worker", feature = "wsgi", all(test, feature = "executor")))]
use nix::libc;

/// Data that one thread at a time has.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

/// Unlocks when it is dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// None only inside [`MutexGuard::without`] and [`MutexGuard::unlocked`].
    held: Option<sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// A lock that nobody has.
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// Waits until no other thread has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            mutex: self,
            held: Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// None while another thread has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = match self.0.try_lock() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard {
            mutex: self,
            held: Some(held),
        })
    }

    /// What it held.
    pub fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a, T> MutexGuard<'a, T> {
    /// Runs `work` without the lock, which is taken again afterwards, panic or not.
    pub fn unlocked<R>(guard: &mut Self, work: impl FnOnce() -> R) -> R {
        /// Takes the lock again when it is dropped.
        struct Unlocked<'g, 'a, T>(&'g mut MutexGuard<'a, T>);

        impl<T> Drop for Unlocked<'_, '_, T> {
            fn drop(&mut self) {
                self.0.held = self.0.mutex.lock().held.take();
            }
        }

        guard.held = None;
        let _again = Unlocked(guard);
        work()
    }

    /// Lends the guard of `std` to something that gives one back.
    fn without<R>(
        &mut self,
        wait: impl FnOnce(sync::MutexGuard<'a, T>) -> (sync::MutexGuard<'a, T>, R),
    ) -> R {
        let held = self.held.take();
        // INVARIANT: there is one outside this function and `unlocked`, which both have put it
        // back.
        #[expect(clippy::expect_used, reason = "see the invariant")]
        let (held, result) = wait(held.expect("a guard holds its lock"));
        self.held = Some(held);
        result
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // INVARIANT: as in `without`.
        #[expect(clippy::expect_used, reason = "see the invariant")]
        self.held.as_ref().expect("a guard holds its lock")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // INVARIANT: as in `without`.
        #[expect(clippy::expect_used, reason = "see the invariant")]
        self.held.as_mut().expect("a guard holds its lock")
    }
}

/// Has a thread that forks take the static lock `$lock` of a `Mutex<$data>` before, and give it
/// back afterwards in both processes, so that no child inherits it locked or what it guards half
/// changed. A holder of it must not wait for anything that a thread which forks may hold, such as
/// the interpreter. Done once, however often it is asked for; gives what [`at_forks`] returns.
#[cfg(any(feature = "worker", feature = "wsgi"))]
macro_rules! held_by_forks {
    ($lock:path, $data:ty) => {{
        thread_local! {
            static HELD: std::cell::Cell<Option<$crate::locks::MutexGuard<'static, $data>>> =
                const { std::cell::Cell::new(None) };
        }
        static IS_HELD: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        extern "C" fn take() {
            // Fails on a thread that is at its end alone, whose destructors fork.
            let _ = HELD.try_with(|held| held.set(Some($lock.lock())));
        }
        extern "C" fn give_back() {
            let _ = HELD.try_with(|held| drop(held.take()));
        }
        $crate::locks::once(&IS_HELD, || {
            $crate::locks::at_forks(Some(take), Some(give_back), Some(give_back))
        })
    }};
}
#[cfg(any(feature = "worker", feature = "wsgi"))]
pub(crate) use held_by_forks;

/// Does *act* unless that was done; it is tried again where it failed.
#[cfg(any(feature = "worker", feature = "wsgi"))]
pub(crate) fn once(is_done: &AtomicBool, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if is_done.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    act().inspect_err(|_| is_done.store(false, Ordering::Relaxed))
}

/// What a thread that forks calls.
#[cfg(any(feature = "worker", feature = "wsgi"))]
type Hook = unsafe extern "C" fn();

/// Has each thread that forks call `before`, and afterwards `in_parent` and `in_child`.
///
/// # Errors
/// Where memory is exhausted.
#[cfg(any(feature = "worker", feature = "wsgi"))]
pub(crate) fn at_forks(
    before: Option<Hook>,
    in_parent: Option<Hook>,
    in_child: Option<Hook>,
) -> io::Result<()> {
    // SAFETY: the functions are of this crate, which is never unloaded, and their type is right.
    match unsafe { libc::pthread_atfork(before, in_parent, in_child) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// How many forks there are between this process and the one that loaded the library. Counted from the
/// first [`PerProcess`] on.
#[cfg(feature = "wsgi")]
static FORKS: AtomicU32 = AtomicU32::new(0);

/// A number that a process has in common with none that it was forked from, once there is a
/// [`PerProcess`]. Unlike a pid it takes no system call.
#[cfg(feature = "server")]
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// What each process has of its own. A child begins with a new one. The one of its parent stays as the
/// fork found it, locked or half changed, and is never freed in the child.
#[cfg(feature = "wsgi")]
#[derive(Debug)]
pub(crate) struct PerProcess<T> {
    /// Of the process that looked last, never null.
    current: AtomicPtr<Made<T>>,
    make: fn() -> T,
    owned: PhantomData<Made<T>>,
}

#[cfg(feature = "wsgi")]
#[derive(Debug)]
struct Made<T> {
    /// [`FORKS`] of the process that made it.
    forks: u32,
    value: T,
}

#[cfg(feature = "wsgi")]
impl<T: Send + Sync> PerProcess<T> {
    /// One of this process; children call `make` too.
    ///
    /// # Errors
    /// Where memory is exhausted.
    pub(crate) fn new(make: fn() -> T) -> io::Result<Self> {
        static IS_COUNTED: AtomicBool = AtomicBool::new(false);
        extern "C" fn count() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        once(&IS_COUNTED, || at_forks(None, None, Some(count)))?;
        Ok(Self {
            current: AtomicPtr::new(Made::new(make)),
            make,
            owned: PhantomData,
        })
    }

    /// This process's own.
    pub(crate) fn get(&self) -> &T {
        let seen = self.current.load(Ordering::Acquire);
        // SAFETY: it is from `Made::new`, and what was current is freed by `drop` alone.
        let made = unsafe { &*seen };
        if made.forks == FORKS.load(Ordering::Relaxed) {
            &made.value
        } else {
            self.begin(seen)
        }
    }

    #[cold]
    fn begin(&self, inherited: *mut Made<T>) -> &T {
        let fresh = Made::new(self.make);
        let (ok, err) = (Ordering::AcqRel, Ordering::Acquire);
        let current = match self.current.compare_exchange(inherited, fresh, ok, err) {
            Ok(_) => fresh,
            Err(quicker) => {
                // SAFETY: it is from `Made::new`, and no other thread has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                quicker
            }
        };
        // SAFETY: as in `get`.
        unsafe { &(*current).value }
    }
}

#[cfg(feature = "wsgi")]
impl<T> Made<T> {
    fn new(make: fn() -> T) -> *mut Self {
        Box::into_raw(Box::new(Self {
            forks: FORKS.load(Ordering::Relaxed),
            value: make(),
        }))
    }
}

#[cfg(feature = "wsgi")]
impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let current = *self.current.get_mut();
        // SAFETY: it is from `Made::new`, and nothing borrows it any more.
        if unsafe { (*current).forks } == FORKS.load(Ordering::Relaxed) {
            // SAFETY: likewise.
            drop(unsafe { Box::from_raw(current) });
        }
    }
}

/// Held while one of [`Copied`] is looked at.
#[cfg(feature = "server")]
static COPYING: Mutex<()> = Mutex::new(());

/// What threads copy and exchange, and what a child needs as its parent left it. Its lock is held for
/// no longer than that, and by forks: see [`keep_copies_free`].
#[cfg(feature = "server")]
#[derive(Debug)]
pub(crate) struct Copied<T>(Mutex<T>);

/// Lets children use each [`Copied`] whatever other threads do when they are forked. To be called
/// before one is used.
///
/// # Errors
/// Where memory is exhausted.
#[cfg(feature = "server")]
pub(crate) fn keep_copies_free() -> io::Result<()> {
    held_by_forks!(COPYING, ())
}

#[cfg(feature = "server")]
impl<T: Clone> Copied<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// A copy. Making it waits for nothing and runs no code of others.
    pub(crate) fn get(&self) -> T {
        let _held = COPYING.lock();
        self.0.lock().clone()
    }

    /// What was there before, which the caller drops.
    pub(crate) fn replace(&self, value: T) -> T {
        let _held = COPYING.lock();
        std::mem::replace(&mut *self.0.lock(), value)
    }
}

/// Whether a wait ended because its time was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// True when nothing else ended it.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

/// Something that threads wait for. Waits may end without a reason, so conditions are asked again.
/// What they wait for is changed with the lock held; a wake-up may come after it was given back.
#[derive(Debug, Default)]
pub struct Condvar {
    inner: sync::Condvar,
    /// Threads that wait, each counted before it gives its lock back: without one a wake-up needs
    /// no system call, which `std` makes each time.
    waiting: AtomicUsize,
}

impl Condvar {
    /// Nobody waits for it.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            inner: sync::Condvar::new(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a wake-up.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.counted(guard, |held| {
            let held = self.inner.wait(held);
            (held.unwrap_or_else(PoisonError::into_inner), ())
        });
    }

    /// Waits for a wake-up, no longer than `time`.
    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, time: Duration) -> WaitTimeoutResult {
        self.counted(guard, |held| {
            let waited = self.inner.wait_timeout(held, time);
            let (held, result) = waited.unwrap_or_else(PoisonError::into_inner);
            (held, WaitTimeoutResult(result.timed_out()))
        })
    }

    /// Waits as `wait` does, counted as a thread that waits.
    fn counted<'a, T, R>(
        &self,
        guard: &mut MutexGuard<'a, T>,
        wait: impl FnOnce(sync::MutexGuard<'a, T>) -> (sync::MutexGuard<'a, T>, R),
    ) -> R {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = guard.without(wait);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Waits for a wake-up, no longer than until `deadline`.
    pub fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        self.wait_for(guard, deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits until `condition` is false.
    pub fn wait_while<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) {
        while condition(guard) {
            self.wait(guard);
        }
    }

    /// Waits until `condition` is false, no longer than until `deadline`. It timed out where the
    /// condition is still true.
    pub fn wait_while_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        while condition(guard) {
            if self.wait_until(guard, deadline).timed_out() {
                return WaitTimeoutResult(condition(guard));
            }
        }
        WaitTimeoutResult(false)
    }

    /// Waits until `condition` is false, no longer than `time`.
    pub fn wait_while_for<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        condition: impl FnMut(&mut T) -> bool,
        time: Duration,
    ) -> WaitTimeoutResult {
        self.wait_while_until(guard, condition, Instant::now() + time)
    }

    /// Wakes one thread that waits.
    pub fn notify_one(&self) {
        if self.waiting.load(Ordering::Relaxed) != 0 {
            self.inner.notify_one();
        }
    }

    /// Wakes all that wait.
    pub fn notify_all(&self) {
        if self.waiting.load(Ordering::Relaxed) != 0 {
            self.inner.notify_all();
        }
    }
}

#[cfg(test)]
#[cfg(any(feature = "executor", feature = "wsgi"))]
pub(crate) mod children {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, alarm};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    #[cfg(feature = "wsgi")]
    use std::sync::mpsc;

    /// Seconds after which a child hangs, which SIGALRM ends then.
    const PATIENCE: u32 = 45;

    /// Forks a child that does *work*, which prints nothing; what it ended with, or that it hung.
    #[expect(
        clippy::disallowed_methods,
        reason = "no interpreter runs here, and the child ends where it was forked"
    )]
    #[must_use = "to be asserted once what the child could wait for is released"]
    pub(crate) fn run(work: impl FnOnce()) -> WaitStatus {
        // SAFETY: the child does work that is promised to be possible beside threads, allocates,
        // which glibc allows there, and ends at once.
        let child = match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Child => {
                alarm::set(PATIENCE);
                let done = catch_unwind(AssertUnwindSafe(work));
                // SAFETY: it does not return, and runs nothing.
                unsafe { libc::_exit(done.is_err().into()) }
            }
            ForkResult::Parent { child } => child,
        };
        waitpid(child, None).unwrap()
    }

    /// As [`run`], while another thread has what *hold* gives.
    #[cfg(feature = "wsgi")]
    pub(crate) fn run_beside<H>(
        hold: impl FnOnce() -> H + Send,
        work: impl FnOnce(),
    ) -> WaitStatus {
        let (taken, is_taken) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _held = hold();
                taken.send(()).unwrap();
                let _ = released.recv();
            });
            is_taken.recv().unwrap();
            let ended = run(work);
            drop(release);
            ended
        })
    }

    /// True for a child that has done its work.
    pub(crate) fn has_done(status: &WaitStatus) -> bool {
        matches!(status, WaitStatus::Exited(_, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    #[cfg(feature = "server")]
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_lock_whose_holder_panicked_stays_usable() {
        let lock = Mutex::new(0);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut held = lock.lock();
            *held = 1;
            panic!("a request");
        }));

        assert!(panicked.is_err());
        assert_eq!(*lock.lock(), 1);
        assert_eq!(lock.try_lock().map(|held| *held), Some(1));
        assert_eq!(lock.into_inner(), 1);
    }

    #[cfg(feature = "wsgi")]
    #[test]
    fn a_child_has_a_lock_that_is_held_by_forks_free_and_its_data_whole() {
        static PAIR: Mutex<(u64, u64)> = Mutex::new((0, 0));
        let is_over = AtomicBool::new(false);
        let register = || held_by_forks!(PAIR, (u64, u64)).unwrap();
        register();
        register(); // by a second import

        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let mut pair = PAIR.lock();
                    pair.0 += 1;
                    std::hint::black_box(&mut pair.0);
                    pair.1 = pair.0;
                }
            });
            let run = |_| {
                children::run(|| {
                    let pair = PAIR.lock();
                    assert_eq!(pair.0, pair.1);
                })
            };
            let failed = (0..50).map(run).find(|status| !children::has_done(status));
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }

    #[cfg(feature = "wsgi")]
    #[test]
    fn a_child_begins_with_locks_of_its_own() {
        let own = PerProcess::new(|| Mutex::new(0)).unwrap();
        *own.get().lock() = 1;

        let hold = || own.get().lock();
        let ended = children::run_beside(hold, || {
            assert_eq!(*own.get().lock(), 0);
            *own.get().lock() = 2;
            let grandchild = children::run(|| assert_eq!(*own.get().lock(), 0));
            assert!(children::has_done(&grandchild));
            assert_eq!(*own.get().lock(), 2);
        });

        assert!(children::has_done(&ended), "{ended:?}");
        assert_eq!(*own.get().lock(), 1);
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_child_copies_and_replaces_what_threads_of_its_parent_replace() {
        keep_copies_free().unwrap();
        let (copied, is_over) = (Copied::new(Arc::new(1)), AtomicBool::new(false));

        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    copied.replace(Arc::new(2));
                }
            });
            let run = |_| {
                children::run(|| {
                    copied.replace(Arc::new(3));
                    assert_eq!(*copied.get(), 3);
                })
            };
            let failed = (0..50).map(run).find(|status| !children::has_done(status));
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
        assert_eq!(*copied.get(), 2);
    }

    #[test]
    fn a_lock_is_free_inside_unlocked_and_held_after_it_even_after_a_panic() {
        let lock = Mutex::new(0);
        let mut held = lock.lock();
        assert!(lock.try_lock().is_none());

        MutexGuard::unlocked(&mut held, || *lock.lock() += 1);
        assert_eq!(*held, 1);
        assert!(lock.try_lock().is_none());

        let work = AssertUnwindSafe(|| MutexGuard::unlocked(&mut held, || panic!("a job")));
        assert!(catch_unwind(work).is_err());
        assert_eq!(*held, 1);
        assert!(lock.try_lock().is_none());
    }

    #[test]
    fn waits_end_at_a_wake_up_or_at_their_time() {
        let (lock, changed) = (Mutex::new(false), Condvar::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                *lock.lock() = true;
                changed.notify_all();
            });
            changed.wait_while(&mut lock.lock(), |is_set| !*is_set);
        });
        let mut held = lock.lock();
        let moment = Duration::from_millis(1);

        let unset = |is_set: &mut bool| !*is_set;
        assert!(!changed.wait_while_for(&mut held, unset, moment).timed_out());
        *held = false;
        assert!(changed.wait_while_for(&mut held, unset, moment).timed_out());
        assert!(changed.wait_until(&mut held, Instant::now()).timed_out());
        assert!(!*held);
    }
}
