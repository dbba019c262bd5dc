//! Threads that wait for a client, and the bound on how many of them clients may hold.
//!
//! A streamed answer needs its thread for as long as the application produces it, and a long body
//! for as long as it is read: a client that takes or sends slowly holds that thread. Owns the list of
//! such waits and the rule by which some are ended: when requests wait for a thread and more than
//! their share of the pool waits for clients, those that move less than [`SLOW_BYTES_PER_SECOND`] are cut
//! off, the slowest first. Never touches a connection but to shut its socket down, which wakes the
//! thread that waits.

use super::client_wait::{
    Direction, PRESSED_GRACE, SLOW_BYTES_PER_SECOND, STALLED_BYTES_PER_SECOND, Waited, rate,
};
use super::socket::{self, Socket};
use crate::locks::Mutex;
use nix::sys::socket::{Shutdown, shutdown};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a client is looked at before it is called slow; less for a while after one was cut off,
/// when there are likely to be more.
const GRACE: Duration = Duration::from_secs(2);
const PRESSED_FOR: Duration = Duration::from_secs(10);

/// See the module's text.
#[derive(Debug)]
pub(super) struct SlowClients {
    /// Percent of the pool that slow clients may hold while requests wait for a thread.
    share: usize,
    /// How many threads that is.
    most: AtomicUsize,
    waits: Mutex<Vec<Wait>>,
    last_cut: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Wait {
    socket: RawFd,
    direction: Direction,
    began: Instant,
    /// What threads have waited for the client lately, before this.
    before: Waited,
    /// What the kernel held for the client when the wait began.
    unconfirmed: u64,
    is_cut: bool,
}

impl Wait {
    fn age(&self, now: Instant) -> Duration {
        self.before.time + now.saturating_duration_since(self.began)
    }

    /// What the client has moved lately, or in this wait alone once that is long: one that was
    /// quick before it stalled is slow.
    fn bytes_per_second(&self, now: Instant) -> u64 {
        let moved = match self.direction {
            Direction::Receiving => 0,
            Direction::Sending => self.unconfirmed.saturating_sub(unconfirmed(self.socket)),
        };
        let average = rate(self.before.bytes + moved, self.age(now));
        let this = now.saturating_duration_since(self.began);
        if this >= GRACE {
            average.min(rate(moved, this))
        } else {
            average
        }
    }
}

impl SlowClients {
    pub(super) fn new(pool_size: usize, share: usize) -> Self {
        Self {
            share,
            most: AtomicUsize::new(threads(pool_size, share)),
            waits: Mutex::default(),
            last_cut: Mutex::default(),
        }
    }

    pub(super) fn resize(&self, pool_size: usize) {
        let most = threads(pool_size, self.share);
        self.most.store(most, Ordering::Relaxed);
    }

    /// Calls `wait`, which blocks on that socket, after `beyond_share` if more threads than their share
    /// wait for clients now; false when the client was cut off by [`SlowClients::relieve`].
    pub(super) fn during<R>(
        &self,
        socket: &Socket,
        direction: Direction,
        before: Waited,
        beyond_share: impl FnOnce(),
        wait: impl FnOnce() -> R,
    ) -> (R, bool) {
        let number = socket.as_raw_fd();
        let entry = Wait {
            socket: number,
            direction,
            began: Instant::now(),
            before,
            unconfirmed: socket::unconfirmed(socket),
            is_cut: false,
        };
        let waiting = {
            let mut waits = self.waits.lock();
            waits.push(entry);
            waits.len()
        };
        if waiting > self.most.load(Ordering::Relaxed) {
            beyond_share();
        }
        let result = wait();
        let mut waits = self.waits.lock();
        let at = waits.iter().position(|wait| wait.socket == number);
        let is_cut = at.is_some_and(|at| waits.swap_remove(at).is_cut);
        (result, !is_cut)
    }

    /// True while more threads than their share wait for clients.
    pub(super) fn are_too_many(&self) -> bool {
        self.waiting() > self.most.load(Ordering::Relaxed)
    }

    /// True when their share of the threads waits for clients.
    pub(super) fn have_their_share(&self) -> bool {
        self.waiting() >= self.most.load(Ordering::Relaxed)
    }

    /// Threads that wait for clients.
    fn waiting(&self) -> usize {
        let waits = self.waits.lock();
        waits.iter().filter(|wait| !wait.is_cut).count()
    }

    /// `queued` requests wait for a thread: cuts off as many slow clients, if more than their share
    /// of the threads waits for them. `is_upload_waiting`: an upload does because others have all
    /// permits; then one that has stalled is cut off within the share too. `are_many`: there are
    /// more of them than those that hold threads. Returns when to look again, if that may help.
    pub(super) fn relieve(
        &self,
        queued: usize,
        is_upload_waiting: bool,
        are_many: bool,
        now: Instant,
    ) -> Option<Instant> {
        if queued == 0 {
            return None;
        }
        let mut waits = self.waits.lock();
        let waiting = waits.iter().filter(|wait| !wait.is_cut).count();
        let excess = waiting.saturating_sub(self.most.load(Ordering::Relaxed));
        if excess == 0 && !is_upload_waiting {
            return None;
        }
        let mut last_cut = self.last_cut.lock();
        let was_cut_within =
            |time| last_cut.is_some_and(|at| now.saturating_duration_since(at) < time);
        let is_pressed = are_many || was_cut_within(PRESSED_FOR);
        // Within the share only those give way that have all but stopped, and have had time to
        // begin.
        let (grace, slow_below) = match excess {
            0 => (GRACE, STALLED_BYTES_PER_SECOND),
            _ if is_pressed => (PRESSED_GRACE, SLOW_BYTES_PER_SECOND),
            _ => (GRACE, SLOW_BYTES_PER_SECOND),
        };
        // The permit of the one that was cut off last may not have come back yet.
        let most = match excess {
            0 => usize::from(!was_cut_within(PRESSED_GRACE / 4)),
            _ => excess.min(queued),
        };
        let has_permit = |wait: &Wait| wait.direction == Direction::Receiving;
        let mut slow: Vec<(u64, usize)> = waits
            .iter()
            .enumerate()
            .filter(|(_, wait)| !wait.is_cut && wait.age(now) >= grace)
            .filter(|(_, wait)| excess > 0 || has_permit(wait))
            .map(|(at, wait)| (wait.bytes_per_second(now), at))
            .filter(|(rate, _)| *rate < slow_below)
            .collect();
        slow.sort_unstable();
        for (_, at) in slow.into_iter().take(most) {
            waits[at].is_cut = true;
            *last_cut = Some(now);
            // Wakes the thread. Fails only when the connection is gone, which wakes it as well.
            let _ = shutdown(waits[at].socket, Shutdown::Both);
        }
        Some(now + grace / 4)
    }
}

/// That many percent of the threads.
pub(super) fn threads(pool_size: usize, share: usize) -> usize {
    pool_size.saturating_mul(share) / 100
}

#[expect(
    unsafe_code,
    reason = "the number of a socket that is known to be open is borrowed"
)]
fn unconfirmed(socket: RawFd) -> u64 {
    // SAFETY: the entry is on the list, under its lock, and the thread that waits takes it off
    // before it can close the socket.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    socket::unconfirmed(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    const LONG_AGO: Waited = Waited {
        time: Duration::from_secs(60),
        bytes: 0,
    };

    /// Blocks until the other end is shut down.
    fn wait_for_end(stream: &UnixStream) -> usize {
        let mut copy = stream.try_clone().unwrap();
        copy.read(&mut [0]).unwrap()
    }

    /// Does something while a thread waits for a client to send that was *waited* for already; it
    /// gets the client's end, and whether the wait is over. Returns what the wait does.
    fn during_a_wait(
        clients: &SlowClients,
        waited: Waited,
        work: impl FnOnce(&mut UnixStream, &dyn Fn() -> bool),
    ) -> (usize, bool) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = OwnedFd::from(ours.try_clone().unwrap());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let wait = || wait_for_end(&ours);
                clients.during(&socket, Direction::Receiving, waited, || (), wait)
            });
            while clients.waits.lock().is_empty() {
                std::thread::yield_now();
            }
            work(&mut theirs, &|| waiting.is_finished());
            waiting.join().unwrap()
        })
    }

    fn relieve_until(clients: &SlowClients, is_upload: bool, is_over: &dyn Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_over() {
            clients.relieve(1, is_upload, false, Instant::now());
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_client_beyond_the_share_is_cut_off_while_others_wait_for_a_thread() {
        assert_cut_off(&SlowClients::new(1, 50), false);
    }

    #[test]
    fn one_that_has_stalled_within_the_share_is_cut_off_for_an_upload_that_waits() {
        assert_cut_off(&SlowClients::new(2, 50), true);
    }

    #[test]
    fn one_that_sends_slowly_within_the_share_is_cut_off_for_nobody() {
        let clients = SlowClients::new(2, 50);
        let steady = Waited {
            time: Duration::from_secs(60),
            bytes: 60 * 2 * STALLED_BYTES_PER_SECOND,
        };

        let result = during_a_wait(&clients, steady, |theirs, _| {
            assert!(clients.relieve(1, true, true, Instant::now()).is_some());
            theirs.write_all(b"x").unwrap();
        });

        assert_eq!(result, (1, true));
    }

    fn assert_cut_off(clients: &SlowClients, is_upload: bool) {
        let result = during_a_wait(clients, LONG_AGO, |_, is_over| {
            relieve_until(clients, is_upload, is_over);
        });

        assert_eq!(result, (0, false));
    }

    #[test]
    fn the_share_is_a_part_of_the_threads() {
        let shares = [(100, 50, 50), (1, 50, 0), (7, 30, 2), (100, 100, 100)];
        for (pool_size, share, most) in shares {
            let clients = SlowClients::new(1, share);
            clients.resize(pool_size);
            assert_eq!(clients.most.load(Ordering::Relaxed), most);
        }
    }

    #[test]
    fn no_client_is_cut_off_while_no_request_waits() {
        let clients = SlowClients::new(1, 50);

        let result = during_a_wait(&clients, LONG_AGO, |theirs, _| {
            assert_eq!(clients.relieve(0, false, false, Instant::now()), None);
            theirs.write_all(b"x").unwrap();
        });

        assert_eq!(result, (1, true));
    }

    #[test]
    fn a_client_that_was_quick_before_it_stalled_is_slow_after_a_while() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let began = Instant::now();
        let wait = Wait {
            socket: ours.as_raw_fd(),
            direction: Direction::Receiving,
            began,
            before: Waited {
                time: Duration::from_millis(100),
                bytes: 1 << 30,
            },
            unconfirmed: 0,
            is_cut: false,
        };

        assert!(wait.bytes_per_second(began + GRACE / 2) > SLOW_BYTES_PER_SECOND);
        assert_eq!(wait.bytes_per_second(began + GRACE), 0);
    }

    #[test]
    fn a_client_that_moves_enough_is_not_slow() {
        let clients = SlowClients::new(1, 50);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = OwnedFd::from(ours.try_clone().unwrap());
        let fast = Waited {
            time: Duration::from_secs(60),
            bytes: 100 << 20,
        };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                clients.during(
                    &socket,
                    Direction::Receiving,
                    fast,
                    || (),
                    || wait_for_end(&ours),
                )
            });
            while clients.waits.lock().is_empty() {
                std::thread::yield_now();
            }
            assert!(clients.relieve(5, false, false, Instant::now()).is_some());
            theirs.write_all(b"x").unwrap();

            assert_eq!(waiting.join().unwrap(), (1, true));
        });
    }
}
