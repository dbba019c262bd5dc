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
    /// When to look whether connections lie in the kernel.
    look_at: Option<Instant>,
    /// Some have lain there at each look since.
    left_since: Option<Instant>,
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
            look_at: None,
            left_since: None,
            has_warned: false,
        }
    }

    /// When accepting is to be tried again.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// When [`Reactor::take_what_was_left`] is due.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
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
            *self.drain_began.lock() = None;
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
        self.drain_began.lock().get_or_insert_with(Instant::now);
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
        if listening.is_watched || listening.is_stopped || self.is_held.load(Ordering::Relaxed) {
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

    /// Before the leader waits: the listener is watched only while what it brings may begin. The kernel
    /// tells one worker of a connection; one that has no room for it must not be that one, since its
    /// siblings would sleep on.
    pub(super) fn watch_if_there_is_room(&self, room: usize) {
        let mut has_room = if self.has_siblings() {
            room > 0
        } else {
            !self.has_enough(0)
        };
        let was_held = self.is_held.swap(!has_room, Ordering::SeqCst);
        // Threads that took jobs out of the queue before this was noted have woken nobody.
        if !has_room && !self.has_siblings() && !self.has_enough(0) {
            has_room = true;
            self.is_held.store(false, Ordering::Relaxed);
        }
        if !has_room {
            self.ignore_listener();
            self.look_later();
        } else if was_held && self.listening.lock().paused_until.is_none() {
            self.watch_listener();
        }
    }

    /// With a bound on what waits, and siblings: has the leader look soon what lies in the kernel. Threads
    /// may have room each time it waits although there is more than they can do.
    fn look_later(&self) {
        let mut listening = self.listening.lock();
        if self.overload.is_bounded() && self.has_siblings() && !listening.is_stopped {
            listening
                .look_at
                .get_or_insert_with(|| Instant::now() + overload::LOOK_AGAIN);
        }
    }

    /// The kernel has connections: accepts some of them, no more than can begin or, in a process that
    /// alone has the listener, than will soon. The rest is the kernel's still, and goes to another
    /// worker, or to the next one if this one dies.
    pub(super) fn accept_turn(&self, room: usize, jobs: &mut Vec<Job>) {
        if self.has_siblings() {
            // One at least: the kernel has told this worker alone, and siblings that sleep hear of it
            // only with the next connection.
            let most = room.saturating_sub(jobs.len()).clamp(1, ACCEPTS_PER_TURN);
            if self.accept(most, jobs) > 0 {
                self.go_last();
                self.look_later();
            }
        } else if self.overload.is_full() {
            // Accepted only to be refused, so that their clients hear of it.
            self.accept(overload::ACCEPTS_PER_TURN, jobs);
        } else if self.overload.is_bounded() {
            self.accept(ACCEPTS_PER_TURN, jobs);
        } else if !self.has_enough(jobs.len()) {
            self.accept(ACCEPTS_ALONE, jobs);
        } else {
            self.is_held.store(true, Ordering::Relaxed);
            self.ignore_listener();
        }
    }

    /// Connections that lie in the kernel at look after look have found no free thread, and no
    /// sibling's either: they wait here as far as requests may wait, and the rest is refused.
    pub(super) fn take_what_was_left(&self, now: Instant, jobs: &mut Vec<Job>) {
        let is_waiting = self.has_connection();
        let left_since = {
            let mut listening = self.listening.lock();
            let is_full = self.is_held.load(Ordering::Relaxed) && !listening.is_stopped;
            listening.look_at = (is_waiting || is_full).then(|| now + overload::LOOK_AGAIN);
            listening.left_since = is_waiting.then(|| listening.left_since.unwrap_or(now));
            // For want of descriptors or memory nothing is accepted before the pause is over.
            let is_paused = listening.paused_until.is_some();
            listening.left_since.filter(|_| !is_paused)
        };
        if left_since.is_some_and(|since| since + overload::LEFT_TO_OTHERS <= now) {
            self.accept(overload::ACCEPTS_PER_TURN, jobs);
        }
    }

    /// As many requests wait as the threads can be expected to begin soon, with so many more that were
    /// found.
    fn has_enough(&self, found: usize) -> bool {
        if self.overload.is_bounded() {
            return false;
        }
        let pool_size = self.pool_size.load(Ordering::Relaxed);
        let most = pool_size.saturating_mul(QUEUED_PER_THREAD);
        self.queued.load(Ordering::SeqCst) + found >= most
    }

    /// True where connections lie in the kernel because no thread is free.
    pub(super) fn has_left_some(&self) -> bool {
        self.is_held.load(Ordering::Relaxed) && self.has_siblings() && self.has_connection()
    }

    /// True where a connection lies in the kernel that may be accepted.
    fn has_connection(&self) -> bool {
        let listening = self.listening.lock();
        let socket = listening.socket.clone().filter(|_| !listening.is_stopped);
        drop(listening);
        socket.is_some_and(|socket| socket::has_connection(&socket))
    }

    /// True where other processes may watch the same listener.
    pub(super) fn has_siblings(&self) -> bool {
        !self.settings.last_look.is_zero()
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
            if !is_last && self.is_full() {
                if !socket::has_connection(&socket) {
                    return count; // nobody gives way to nobody
                }
                if !self.make_room(jobs) {
                    self.wait_for_room();
                    return 0;
                }
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
            warn!(server = %self.settings.name, most = self.most_connections, "as many connections are open as may be, and none of them gives way yet; new ones wait");
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
