//! Native threads: how they start, which signals they take, which of them live, and what they compute.
//!
//! Owns the creation of every thread of the crate and the registry that the fork guard reads. Knows
//! nothing of what a thread does, and never ends one. The registry takes no lock: a child that is
//! forked beside threads must be able to read it.
//! Rules: `pthread_create(3)` (a thread inherits the signal mask of its creator), signal(7).

#[cfg(any(feature = "worker", feature = "amqp", test))]
use nix::sys::signal::{SigSet, SigmaskHow};
#[cfg(feature = "pool")]
use nix::time::{ClockId, clock_gettime};
#[cfg(feature = "python")]
use nix::unistd::Pid;
use nix::unistd::gettid;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
#[cfg(feature = "pool")]
use std::time::Duration;

/// Which signals of the process a new thread may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// Those that its creator may take. For threads that run Python: a command or a thread that the
    /// application starts there inherits the mask. The kernel prefers the main thread all the same.
    #[cfg(feature = "pool")]
    AsCreator,
    /// None. Only for threads that never run Python.
    #[cfg(any(feature = "worker", feature = "amqp", test))]
    None,
}

/// Starts a thread and enters it into the registry until it has ended.
///
/// # Errors
/// When the kernel refuses a thread.
pub(crate) fn start(
    name: String,
    stack_bytes: usize,
    signals: Signals,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let entry = Entry::reserve();
    let life = move || {
        let entry = entry.enter();
        body();
        drop(entry);
    };
    let spawn = move || {
        thread::Builder::new()
            .name(name)
            .stack_size(stack_bytes)
            .spawn(life)
            .map(drop)
    };
    match signals {
        #[cfg(feature = "pool")]
        Signals::AsCreator => spawn(),
        #[cfg(any(feature = "worker", feature = "amqp", test))]
        Signals::None => {
            // Blocked before the thread exists, so that there is no moment without the mask.
            let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
            let started = spawn();
            before.thread_set_mask()?;
            started
        }
    }
}

/// CPU time that the calling thread has taken; none where the kernel does not say.
#[cfg(feature = "pool")]
pub(crate) fn own_cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// CPU time that a thread of this process has taken, to the kernel's tick; `None` when it is gone.
#[cfg(feature = "python")]
pub(crate) fn cpu_time(thread: Pid) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    // Behind the name, which is in parentheses and may hold anything: the state is the third field, user
    // and system time are the 14th and 15th (proc(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// `USER_HZ`, which is the same on all architectures of today (time(7)).
#[cfg(feature = "python")]
const TICKS_PER_SECOND: u64 = 100;

/// Names of the threads of this crate that live in this process, in no order.
#[must_use]
pub fn names() -> Vec<String> {
    let pid = u64::from(std::process::id());
    let of_this_process = |entry: &AtomicU64| {
        let entry = entry.load(Ordering::Acquire);
        (entry >> PID_SHIFT == pid).then_some(entry & TID_MASK)
    };
    REGISTRY
        .iter()
        .filter_map(of_this_process)
        .map(name_of)
        .collect()
}

/// The kernel keeps 15 bytes of a thread's name; without /proc its number has to do.
fn name_of(thread: u64) -> String {
    if thread == 0 {
        return "a thread that starts".to_owned();
    }
    fs::read_to_string(format!("/proc/self/task/{thread}/comm")).map_or_else(
        |_| format!("thread {thread}"),
        |name| name.trim_end().to_owned(),
    )
}

/// Threads that can be entered at a time. Those beyond run unregistered.
const CAPACITY: usize = 4096;
const PID_SHIFT: u32 = 32;
const TID_MASK: u64 = u32::MAX as u64;

/// Process and thread of each; 0 is free. Entries of another process, which this one was forked
/// from, count as free.
static REGISTRY: [AtomicU64; CAPACITY] = [const { AtomicU64::new(0) }; CAPACITY];
/// Where the search for a free entry begins.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A place in the registry, given back when this is dropped.
#[derive(Debug)]
struct Entry(Option<&'static AtomicU64>);

impl Entry {
    /// Entered by the creator, so that a thread is known before its creator goes on.
    fn reserve() -> Self {
        let own = u64::from(std::process::id()) << PID_SHIFT;
        let first = usize::try_from(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(0) % CAPACITY;
        let free = (first..CAPACITY).chain(0..first).find(|index| {
            let entry = &REGISTRY[*index];
            let seen = entry.load(Ordering::Relaxed);
            let is_free = seen >> PID_SHIFT != own >> PID_SHIFT;
            let (ok, err) = (Ordering::AcqRel, Ordering::Relaxed);
            is_free && entry.compare_exchange(seen, own, ok, err).is_ok()
        });
        Self(free.map(|index| &REGISTRY[index]))
    }

    /// Called on the thread itself.
    fn enter(self) -> Self {
        if let Some(entry) = self.0 {
            let thread = u64::from(gettid().as_raw().unsigned_abs());
            entry.fetch_or(thread, Ordering::AcqRel);
        }
        self
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(entry) = self.0 {
            entry.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    const STACK: usize = 64 * 1024;

    fn mask_of_a_thread(signals: Signals) -> SigSet {
        let (mask, masks) = mpsc::channel();
        start("test-mask".into(), STACK, signals, move || {
            mask.send(SigSet::thread_get_mask().unwrap()).unwrap();
        })
        .unwrap();
        masks.recv().unwrap()
    }

    #[test]
    fn a_thread_without_signals_takes_none() {
        let mask = mask_of_a_thread(Signals::None);

        assert!(mask.contains(Signal::SIGTERM));
        assert!(mask.contains(Signal::SIGHUP));
    }

    #[cfg(feature = "pool")]
    #[test]
    fn a_thread_that_may_run_python_has_the_mask_of_its_creator() {
        let own = SigSet::thread_get_mask().unwrap();

        assert_eq!(mask_of_a_thread(Signals::AsCreator), own);
    }

    #[test]
    fn a_thread_is_registered_from_its_start_to_its_end() {
        let (release, released) = mpsc::channel::<()>();
        start("test-registry".into(), STACK, Signals::None, move || {
            let _ = released.recv();
        })
        .unwrap();
        let is_there = || {
            let (starting, name) = ("a thread that starts", "test-registry");
            names().iter().any(|it| it == name || it == starting)
        };

        assert!(is_there());
        drop(release);

        let deadline = Instant::now() + Duration::from_secs(20);
        while names().iter().any(|name| name == "test-registry") {
            assert!(Instant::now() < deadline, "still there: {:?}", names());
            thread::yield_now();
        }
    }
}
