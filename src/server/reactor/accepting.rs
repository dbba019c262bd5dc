//! Accepting connections: the listening socket, pauses when descriptors run out, and its end.
//!
//! Owns the rules of accept(2): which errors concern one connection only, and which mean that the
//! process or the machine has run out of something. An error never ends accepting.

use super::{Job, LISTENER, QUEUED_PER_THREAD, Reactor, overload};
use crate::scoreboard;
use crate::server::connection::Connection;
use crate::server::link::Link;
use crate::server::socket::{self, Accepted};
use crate::wsgi::Endpoints;
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Connections accepted in one turn: few, so that the workers that share a listener share the work.
pub(super) const ACCEPTS_PER_TURN: usize = 4;
/// ... and where no other process shares it: each turn costs two calls more than it accepts.
const ACCEPTS_ALONE: usize = 16;
/// Pauses after the process or the machine has run out of descriptors or memory.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// The listening socket and what has been asked of it.
#[derive(Debug)]
pub(super) struct Listening {
    socket: Option<Arc<OwnedFd>>,
    /// The local address of all connections, where they have the same.
    address: Option<SocketAddr>,
    is_watched: bool,
    /// What was asked for and the leader has not done yet.
    order: Option<Order>,
    is_stopped: bool,
    /// When the socket is closed: what was ordered is done then and not before.
    closes_at: Option<Instant>,
    paused_until: Option<Instant>,
    pause: Duration,
    /// It was said that there is no room for another connection.
    has_warned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Accept,
    Drain { closes: bool },
}

impl Listening {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            address: socket::fixed_address(&socket),
            socket: Some(socket),
            is_watched: false,
            order: None,
            is_stopped: true,
            closes_at: None,
            paused_until: None,
            pause: PAUSE_FIRST,
            has_warned: false,
        }
    }

    /// When accepting is to be tried again.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// When the socket is to be closed.
    pub(super) fn closes_at(&self) -> Option<Instant> {
        self.closes_at
    }

    pub(super) fn has_order(&self) -> bool {
        self.order.is_some()
    }
}

impl Reactor {
    /// Asks for connections to be accepted. Called under the pool's lock, so that the last thread
    /// of a drain cannot report its end afterwards.
    pub(in crate::server) fn resume(&self) {
        let mut listening = self.listening.lock();
        if listening.order != (Some(Order::Drain { closes: true })) {
            listening.order = Some(Order::Accept);
            self.is_draining.store(false, Ordering::Release);
            // Not drained any more; there is nothing to read when it was not.
            let _ = self.drained.read();
        }
        drop(listening);
        self.wake_leader();
    }

    /// Asks for the drain; `closes` also the listening socket.
    pub(in crate::server) fn stop(&self, closes: bool) {
        let mut listening = self.listening.lock();
        let closes = closes || listening.order == Some(Order::Drain { closes: true });
        listening.order = Some(Order::Drain { closes });
        self.is_draining.store(true, Ordering::Release);
        drop(listening);
        self.wake_leader();
    }

    /// Does what was asked for since the last round.
    pub(super) fn apply_orders(&self, jobs: &mut Vec<Job>) {
        let order = self.listening.lock().order;
        match order {
            None => return,
            Some(Order::Accept) => {
                self.listening.lock().is_stopped = false;
                self.watch_listener();
            }
            Some(Order::Drain { closes: false }) => {
                self.listening.lock().is_stopped = true;
                self.ignore_listener();
                self.tighten_deadlines();
            }
            Some(Order::Drain { closes: true }) => {
                if !self.close_listener(jobs) {
                    return;
                }
            }
        }
        let mut listening = self.listening.lock();
        // Nothing is over before the order was carried out; a newer one comes next.
        if listening.order == order {
            listening.order = None;
        } else {
            drop(listening);
            self.wake_leader();
        }
    }

    /// Closes the listening socket once its time has come, after a last look at what the kernel has
    /// queued; true when it is closed.
    fn close_listener(&self, jobs: &mut Vec<Job>) -> bool {
        let now = Instant::now();
        let closes_at = self.listening.lock().closes_at;
        let closes_at = closes_at.unwrap_or_else(|| {
            let at = now + self.settings.last_look;
            let mut listening = self.listening.lock();
            listening.closes_at = Some(at);
            listening.is_stopped = true;
            drop(listening);
            // Siblings that stay, as in a reload, take what comes until then.
            self.ignore_listener();
            self.tighten_deadlines();
            at
        });
        if now < closes_at {
            return false;
        }
        // What the kernel has queued has been promised to its clients.
        while self.accept(ACCEPTS_PER_TURN, jobs) == ACCEPTS_PER_TURN {}
        let mut listening = self.listening.lock();
        listening.socket = None;
        listening.closes_at = None;
        true
    }

    pub(super) fn watch_listener(&self) {
        let mut listening = self.listening.lock();
        listening.paused_until = None;
        if listening.is_watched || listening.is_stopped {
            return;
        }
        let Some(socket) = listening.socket.clone() else {
            return;
        };
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        match self.epoll.add(&*socket, EpollEvent::new(flags, LISTENER)) {
            Ok(()) | Err(Errno::EEXIST) => listening.is_watched = true,
            Err(errno) => {
                drop(listening);
                self.pause_accepting(errno);
            }
        }
    }

    fn ignore_listener(&self) {
        let mut listening = self.listening.lock();
        if std::mem::take(&mut listening.is_watched)
            && let Some(socket) = &listening.socket
        {
            // Fails only when it is not there, which is what is wanted.
            let _ = self.epoll.delete(&**socket);
        }
    }

    /// Leaves the next connection to another worker: the kernel wakes the one that has watched the
    /// listener longest, so without this an idle machine would give them all to the same.
    fn go_last(&self) {
        self.ignore_listener();
        self.watch_listener();
    }

    /// The kernel has connections: accepts some of them, unless more requests wait than the threads
    /// can be expected to begin soon. Those that are not accepted are the kernel's still, and go to
    /// another worker, or to the next one if this one dies.
    pub(super) fn accept_turn(&self, jobs: &mut Vec<Job>) {
        if self.overload.is_bounded() {
            self.accept_beside_others(jobs);
            return;
        }
        if self.has_enough(jobs) {
            if self.has_relatives() {
                // The kernel has told this worker alone: a sibling that sleeps hears of it only with
                // the next connection.
                self.accept(1, jobs);
            }
            self.hold_listener();
        } else if !self.has_relatives() {
            self.accept(ACCEPTS_ALONE, jobs);
        } else if self.accept(self.most_beside_others(), jobs) > 0 {
            self.go_last();
        }
    }

    /// Before the leader waits: leaves the listener to the siblings while there is enough to do. They
    /// are told of what comes only as long as this worker does not watch.
    pub(super) fn hold_back(&self, jobs: &[Job]) {
        if self.has_relatives()
            && !self.overload.is_bounded()
            && !self.is_held.load(Ordering::Relaxed)
            && self.has_enough(jobs)
        {
            self.hold_listener();
        }
    }

    fn hold_listener(&self) {
        self.is_held.store(true, Ordering::Relaxed);
        self.ignore_listener();
    }

    /// As many requests wait as the threads can be expected to begin soon.
    fn has_enough(&self, found: &[Job]) -> bool {
        self.queued.load(Ordering::Relaxed) + found.len() >= self.most_queued()
    }

    /// Connections accepted in one turn beside other processes: no more than there are threads. What
    /// waits behind the only one could be answered sooner by a sibling.
    fn most_beside_others(&self) -> usize {
        ACCEPTS_PER_TURN.min(self.pool_size.load(Ordering::Relaxed))
    }

    /// Above so many jobs that were found and not begun no connection is accepted.
    fn most_queued(&self) -> usize {
        let pool_size = self.pool_size.load(Ordering::Relaxed);
        pool_size.saturating_mul(QUEUED_PER_THREAD)
    }

    /// True where other processes may watch the same listener.
    fn has_relatives(&self) -> bool {
        !self.settings.last_look.is_zero()
    }

    /// Accepts also where the request will be refused, since its client is to hear of it; but first
    /// leaves it to workers that have room.
    fn accept_beside_others(&self, jobs: &mut Vec<Job>) {
        let is_full = self.overload.is_full();
        if is_full && !self.was_left.swap(true, Ordering::Relaxed) {
            self.ignore_listener();
            self.listening.lock().paused_until = Some(Instant::now() + overload::LEFT_TO_OTHERS);
            return;
        }
        self.was_left.store(false, Ordering::Relaxed);
        let most = if is_full {
            overload::ACCEPTS_PER_TURN
        } else if self.has_relatives() {
            self.most_beside_others()
        } else {
            ACCEPTS_PER_TURN
        };
        if self.accept(most, jobs) > 0 && self.has_relatives() {
            self.go_last();
        }
    }

    /// Goes on accepting if that was held and need not be any more.
    pub(super) fn accept_again(&self) {
        if self.is_held.load(Ordering::Relaxed)
            && self.queued.load(Ordering::Relaxed) < self.most_queued()
        {
            self.is_held.store(false, Ordering::Relaxed);
            self.watch_listener();
        }
    }

    /// Accepts up to `most` connections; returns how many attempts found one.
    fn accept(&self, most: usize, jobs: &mut Vec<Job>) -> usize {
        let (socket, is_last) = {
            let listening = self.listening.lock();
            (listening.socket.clone(), listening.is_stopped)
        };
        let Some(socket) = socket else {
            return 0;
        };
        for count in 0..most {
            // At the end there is no later: the reserve has room for what the kernel has queued.
            if !is_last && !self.make_room() {
                self.wait_for_room();
                return 0;
            }
            match socket::accept(&socket) {
                Ok(accepted) => self.add_connection(accepted, jobs),
                Err(Errno::EAGAIN) => return count,
                Err(errno) if concerns_one_connection(errno) => {}
                Err(errno) => {
                    self.pause_accepting(errno);
                    return 0;
                }
            }
        }
        most
    }

    /// No connection gives way to a new one: those wait in the kernel for a moment.
    fn wait_for_room(&self) {
        self.ignore_listener();
        let mut listening = self.listening.lock();
        if !std::mem::replace(&mut listening.has_warned, true) {
            warn!(server = %self.settings.name, most = self.most_connections, "as many connections are open as may be, and a request is under way on each; new ones wait");
        }
        listening.paused_until = Some(Instant::now() + PAUSE_FIRST);
    }

    /// Descriptors or memory ran out: new connections stay in the kernel's queue for a moment,
    /// where other workers may take them. Says so once, and once more when it is over.
    fn pause_accepting(&self, errno: Errno) {
        self.ignore_listener();
        let mut listening = self.listening.lock();
        if listening.pause == PAUSE_FIRST {
            warn!(server = %self.settings.name, error = %errno, "cannot accept connections; trying on");
        }
        listening.paused_until = Some(Instant::now() + listening.pause);
        listening.pause = (listening.pause * 2).min(PAUSE_LONGEST);
    }

    fn end_pause(&self) {
        let mut listening = self.listening.lock();
        if listening.pause != PAUSE_FIRST {
            listening.pause = PAUSE_FIRST;
            info!(server = %self.settings.name, "accepting connections again");
        }
    }

    fn add_connection(&self, accepted: Accepted, jobs: &mut Vec<Job>) {
        self.end_pause();
        let now = Instant::now();
        let Accepted { socket, peer } = accepted;
        let proxies = self.settings.proxies.as_deref();
        if let (Some(proxies), Some(peer)) = (proxies, peer)
            && !is_among(peer.ip().to_canonical(), proxies)
        {
            warn!(server = %self.settings.name, peer = %peer, "closed a connection from an address that is no proxy's; only proxies may connect where the PROXY protocol is on");
            return;
        }
        let local = peer.and_then(|_| {
            let fixed = self.listening.lock().address;
            fixed.or_else(|| socket::local_address(&socket))
        });
        let tls = self.tls.lock().clone();
        let tls = match tls.map(|tls| tls.accept()).transpose() {
            Ok(tls) => tls.map(Box::new),
            Err(error) => {
                warn!(server = %self.settings.name, %error, "cannot begin TLS on a new connection; closing it");
                return;
            }
        };
        let endpoints = Arc::new(Endpoints::new(peer, local, tls.is_some()));
        let link = Link::new(socket, tls);
        let token = self.slots.lock().add();
        Self::note_opened();
        scoreboard::current().connection_opened();
        let limits = self.limits.clone();
        let mut connection = Box::new(Connection::new(token, link, endpoints, limits, now));
        if proxies.is_some() {
            connection.expect_proxy_header();
        }
        // Its request may be there already; then the kernel need not be asked to report it.
        self.contain(token, || self.drive(Some(connection), jobs));
    }
}

/// True when an address lies in one of the ranges.
fn is_among(address: IpAddr, ranges: &[(IpAddr, IpAddr)]) -> bool {
    ranges
        .iter()
        .any(|(first, last)| *first <= address && address <= *last)
}

/// True for errors by which the kernel gives up one queued connection: the client gave up while it
/// was queued, or the network did. The next one need not be lost (accept(2)).
fn concerns_one_connection(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EINTR
            | Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EHOSTUNREACH
            | Errno::EOPNOTSUPP
            | Errno::ENETUNREACH
            | Errno::EPERM
            | Errno::ETIMEDOUT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_lost_in_the_queue_does_not_pause_accepting() {
        for errno in [Errno::ECONNABORTED, Errno::EPROTO, Errno::EINTR] {
            assert!(concerns_one_connection(errno), "{errno}");
        }
    }

    #[test]
    fn a_range_holds_addresses_of_its_own_family() {
        let range = |first: &str, last: &str| (first.parse().unwrap(), last.parse().unwrap());
        let ranges = [range("10.0.0.0", "10.255.255.255"), range("::1", "::1")];
        for (address, expected) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("::1", true),
            ("::2", false),
            ("::", false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(is_among(address, &ranges), expected, "{address}");
        }
    }

    #[test]
    fn a_lack_of_descriptors_or_memory_pauses_accepting() {
        // Trying again at once would find the same connection, and the same lack: a busy loop.
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM] {
            assert!(!concerns_one_connection(errno), "{errno}");
        }
    }
}
