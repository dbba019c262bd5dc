//! The wakeup pipe, the wakeup, and the ranking of pending requests.
//!
//! Owns the descriptors on which a parked main thread wakes up, and the set of requests that signal
//! handlers record. Installs no handler and blocks no signal: CPython owns dispositions, and the
//! boundary gives it the write end of the pipe (`signal.set_wakeup_fd`, Python library reference).
//! The kernel does not keep the order in which signals arrived, so requests are ranked by urgency
//! and never queued: HUP then TERM may be reported as TERM, HUP.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::unistd::{pipe2, read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// What a signal asks the supervisor to do, least urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Request {
    /// Mutate the configuration in place and pass SIGHUP on; no process is replaced.
    Mutate = 0,
    /// Reload the configuration and replace the workers one by one.
    Reload = 1,
    /// Drain and end all workers.
    Stop = 2,
    /// End all workers at once.
    Abort = 3,
}

impl Request {
    const BY_URGENCY: [Self; 4] = [Self::Abort, Self::Stop, Self::Reload, Self::Mutate];

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Requests recorded and not yet acted on: a set, because asking twice before anybody looked is
/// asking once.
///
/// Recording is one atomic operation, so any context may do it, a signal handler included.
#[derive(Debug, Default)]
pub struct Pending(AtomicU8);

impl Pending {
    /// An empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    /// Adds *request* to the set.
    pub fn record(&self, request: Request) {
        self.0.fetch_or(request.bit(), Ordering::Release);
    }

    /// Removes and returns the most urgent request; the others stay.
    #[must_use]
    pub fn take_most_urgent(&self) -> Option<Request> {
        let set = self.0.load(Ordering::Acquire);
        let request = Request::BY_URGENCY
            .into_iter()
            .find(|request| set & request.bit() != 0)?;
        self.0.fetch_and(!request.bit(), Ordering::AcqRel);
        Some(request)
    }

    /// True when *request* is recorded.
    #[must_use]
    pub fn contains(&self, request: Request) -> bool {
        self.0.load(Ordering::Acquire) & request.bit() != 0
    }

    /// True when nothing is recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// A pipe whose write end a C signal handler writes signal numbers to.
///
/// Both ends are non-blocking, so that a handler never hangs on a full pipe, and close on exec, so
/// that no command started by the application keeps them.
#[derive(Debug)]
pub struct WakeupPipe {
    read_end: OwnedFd,
    write_end: OwnedFd,
}

impl WakeupPipe {
    /// Makes a fresh pipe.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when no descriptors are left.
    pub fn new() -> Result<Self, Errno> {
        let (read_end, write_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self {
            read_end,
            write_end,
        })
    }

    /// The end that becomes readable when a signal arrived.
    #[must_use]
    pub fn read_end(&self) -> BorrowedFd<'_> {
        self.read_end.as_fd()
    }

    /// The end for the signal handler.
    #[must_use]
    pub fn write_end(&self) -> BorrowedFd<'_> {
        self.write_end.as_fd()
    }

    /// Empties the pipe, hands the bytes to *sink* as they come, and returns how many there were.
    pub fn drain(&self, mut sink: impl FnMut(&[u8])) -> usize {
        let mut bytes = [0_u8; 256];
        let mut total = 0;
        loop {
            match read(&self.read_end, &mut bytes) {
                Ok(0) => return total, // INVARIANT: not reached, this value holds the write end
                Ok(count) => {
                    sink(&bytes[..count]);
                    total += count;
                    if count < bytes.len() {
                        return total;
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return total, // EAGAIN: empty
            }
        }
    }
}

/// A sticky wake-up: once given it stays readable until it is taken.
#[derive(Debug)]
pub struct Wakeup(EventFd);

impl Wakeup {
    /// Makes one that is not given.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when no descriptors are left.
    pub fn new() -> Result<Self, Errno> {
        EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map(Self)
    }

    /// Wakes the sleeper. Never blocks: given 2^64 - 2 times without being taken, it is still given.
    pub fn wake(&self) {
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the wake-up back and says whether it had been given.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of *fds* is readable (or broken, which a read will tell) or *deadline* passed,
/// and returns the indexes of those that are; none of them means that the deadline passed.
///
/// Without a deadline it waits for ever, with no periodic wake-up of any kind.
///
/// # Errors
/// `EINTR` when a signal handler ran, so that the caller can act on it; `ENOMEM` from the kernel.
pub fn poll_readable(
    fds: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> Result<Vec<usize>, Errno> {
    let mut polled: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    match ppoll(&mut polled, left_until(deadline), None) {
        Ok(_) => {}
        Err(Errno::EINVAL) => return poll_one_by_one(fds, deadline),
        Err(errno) => return Err(errno),
    }
    let readable = |(index, fd): (usize, &PollFd<'_>)| (fd.any() == Some(true)).then_some(index);
    Ok(polled.iter().enumerate().filter_map(readable).collect())
}

fn left_until(deadline: Option<Instant>) -> Option<TimeSpec> {
    deadline.map(|deadline| TimeSpec::from(deadline.saturating_duration_since(Instant::now())))
}

/// How often descriptors are looked at that cannot be waited for together.
const LOOK: Duration = Duration::from_millis(50);

/// For `RLIMIT_NOFILE` below the number of *fds*, as an operator may set it while a process runs:
/// poll(2) refuses so many, and one at a time it takes.
fn poll_one_by_one(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<Vec<usize>, Errno> {
    loop {
        let now = Instant::now();
        let mut ready = Vec::new();
        for (index, fd) in fds.iter().enumerate() {
            let mut polled = [PollFd::new(*fd, PollFlags::POLLIN)];
            ppoll(&mut polled, Some(TimeSpec::from(Duration::ZERO)), None)?;
            if polled[0].any() == Some(true) {
                ready.push(index);
            }
        }
        if !ready.is_empty() || deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(ready);
        }
        let look = now + LOOK;
        let until = deadline.map_or(look, |deadline| deadline.min(look));
        ppoll(&mut [], left_until(Some(until)), None)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_by_urgency_not_by_arrival() {
        let pending = Pending::new();
        for request in [
            Request::Mutate,
            Request::Stop,
            Request::Reload,
            Request::Abort,
        ] {
            pending.record(request);
        }

        let taken: Vec<_> = std::iter::from_fn(|| pending.take_most_urgent()).collect();

        assert_eq!(
            taken,
            [
                Request::Abort,
                Request::Stop,
                Request::Reload,
                Request::Mutate
            ]
        );
        assert!(pending.is_empty());
    }

    #[test]
    fn a_request_made_twenty_times_is_one_request() {
        let pending = Pending::new();
        for _ in 0..20 {
            pending.record(Request::Reload);
        }

        assert_eq!(pending.take_most_urgent(), Some(Request::Reload));
        assert_eq!(pending.take_most_urgent(), None);
    }

    #[test]
    fn urgency_orders_requests() {
        assert!(Request::Abort > Request::Stop);
        assert!(Request::Stop > Request::Reload);
        assert!(Request::Reload > Request::Mutate);
    }

    #[test]
    fn drain_hands_over_every_byte_and_empties_the_pipe() {
        let pipe = WakeupPipe::new().unwrap();
        let sent: Vec<u8> = (0..=255).cycle().take(600).collect();
        write(pipe.write_end(), &sent).unwrap();

        let mut seen = Vec::new();
        let count = pipe.drain(|bytes| seen.extend_from_slice(bytes));

        assert_eq!((count, seen), (600, sent));
        assert_eq!(pipe.drain(|_| ()), 0);
    }

    #[test]
    fn a_full_wakeup_pipe_does_not_block_the_writer() {
        let pipe = WakeupPipe::new().unwrap();
        while write(pipe.write_end(), &[1; 4096]).is_ok() {}

        assert_eq!(write(pipe.write_end(), &[1]), Err(Errno::EAGAIN));
        assert!(pipe.drain(|_| ()) > 0);
    }

    #[test]
    fn a_wakeup_stays_given_until_taken() {
        let wakeup = Wakeup::new().unwrap();
        wakeup.wake();
        wakeup.wake();

        assert_eq!(poll_readable(&[wakeup.as_fd()], None), Ok(vec![0]));
        assert!(wakeup.take());
        assert!(!wakeup.take());
    }

    #[test]
    fn a_wait_names_the_readable_ones_and_none_at_the_deadline() {
        let (quiet, given) = (Wakeup::new().unwrap(), Wakeup::new().unwrap());
        given.wake();
        let passed = Instant::now().checked_sub(Duration::from_secs(1));

        assert_eq!(
            poll_readable(&[quiet.as_fd(), given.as_fd()], passed),
            Ok(vec![1])
        );
        assert_eq!(poll_readable(&[quiet.as_fd()], passed), Ok(vec![]));
    }

    #[test]
    fn descriptors_beyond_the_limit_are_waited_for_as_well() {
        let (quiet, given) = (Wakeup::new().unwrap(), Wakeup::new().unwrap());
        let soon = || Some(Instant::now() + Duration::from_millis(1));
        let both = [quiet.as_fd(), given.as_fd()];

        assert_eq!(poll_one_by_one(&both, soon()), Ok(vec![]));
        given.wake();
        assert_eq!(poll_one_by_one(&both, None), Ok(vec![1]));
    }
}
