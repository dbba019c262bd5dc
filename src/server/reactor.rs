//! The reactor: waits for sockets, drives connections until a request is ready, closes what is over.
//!
//! Owns every connection that no thread has checked out, the listening socket and the deadlines.
//! Runs on pool threads as their [`Source`]; never runs an application itself except through
//! [`Source::run`]. docs/server.md draws the life of a connection.
//!
//! A connection is registered once, edge-triggered, and named by a token that is never used again;
//! whoever takes it out of its slot owns it. An event that comes meanwhile is noted in the slot and
//! seen when the connection is parked again, under the same lock.

use super::connection::{Connection, Phase, Step, Token};
use super::deadlines::Deadlines;
use super::exchange::{Arrival, DISCARD_BYTES, Live, Outcome, next_piece, status_of};
use super::framing::{Limits, Observer};
use super::link::Link;
use super::{Settings, Stats, socket};
use crate::pool::{self, Source};
use crate::scoreboard;
use crate::wsgi::{Endpoints, Exchange, Handler};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use slab::Slab;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tracing::{debug, error, warn};

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// Connections accepted in one turn: few, so that the workers that share a listener share the work.
const ACCEPTS_PER_TURN: usize = 4;
/// Events fetched with one call.
const EVENTS_PER_TURN: usize = 64;
/// How much of a body is collected before a thread is spent on the request.
const COLLECT_BYTES: usize = 64 << 10;
/// The longest that a request head may take altogether.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// The longest that a TLS handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// The longest that an unread body may take to be thrown away.
const DISCARD_TIME: Duration = Duration::from_secs(5);
/// How long and how much the server reads after its last word, so that the word is not lost to a
/// reset (RFC 9112 section 9.6).
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1 << 20;
/// During a drain: how long an idle connection is kept in case a request is on its way, and how
/// long a head that has begun may still take.
const QUIET_TIME: Duration = Duration::from_millis(250);
const LAST_HEAD_TIME: Duration = Duration::from_secs(1);
/// Pauses after the process or the machine has run out of descriptors or memory.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// One request, ready for a thread.
#[derive(Debug)]
pub(super) struct Job {
    connection: Box<Connection>,
    arrival: Arrival,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Reactor {
    settings: Settings,
    handler: Arc<dyn Handler>,
    builder: http1::Builder,
    epoll: Epoll,
    wake: EventFd,
    drained: Arc<EventFd>,
    slots: Mutex<Slots>,
    deadlines: Deadlines,
    gate: Mutex<Gate>,
    is_draining: AtomicBool,
    served: AtomicU64,
    scratch: Mutex<Scratch>,
}

/// The listening socket and what has been asked of it.
#[derive(Debug)]
struct Gate {
    listener: Option<Arc<OwnedFd>>,
    is_armed: bool,
    /// What [`Reactor::stop`] has asked for and the leader has not done yet.
    order: Option<Order>,
    draining_since: Option<Instant>,
    paused_until: Option<Instant>,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Accept,
    Drain { closes: bool },
}

#[derive(Debug, Default)]
struct Slots {
    slots: Slab<Slot>,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// Events that came while a thread had the connection.
    missed: EpollFlags,
    connection: Option<Box<Connection>>,
}

/// What only the leader uses; kept to spare it allocations.
#[derive(Debug)]
struct Scratch {
    events: Vec<EpollEvent>,
    due: Vec<Token>,
}

impl Slots {
    fn add(&mut self) -> Token {
        self.generation = self.generation.wrapping_add(1);
        // The highest indices with the highest generation would collide with the fixed tokens.
        if self.generation == u32::MAX {
            self.generation = 0;
        }
        let generation = self.generation;
        let index = self.slots.insert(Slot {
            generation,
            missed: EpollFlags::empty(),
            connection: None,
        });
        Token((u64::from(generation) << 32) | index as u64)
    }

    fn find(&mut self, token: Token) -> Option<&mut Slot> {
        let (index, generation) = token.split();
        self.slots
            .get_mut(index)
            .filter(|slot| slot.generation == generation)
    }

    fn remove(&mut self, token: Token) {
        if self.find(token).is_some() {
            self.slots.remove(token.split().0);
        }
    }
}

impl Token {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "takes the two halves apart"
    )]
    fn split(self) -> (usize, u32) {
        ((self.0 & 0xffff_ffff) as usize, (self.0 >> 32) as u32)
    }
}

impl Reactor {
    pub(super) fn new(
        listener: Arc<OwnedFd>,
        settings: Settings,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, super::Error> {
        let failed = |what| {
            move |errno: Errno| super::Error::Resource {
                what,
                source: errno.into(),
            }
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("make an epoll"))?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_flags(flags).map_err(failed("make an eventfd"))?;
        let drained = EventFd::from_flags(flags).map_err(failed("make an eventfd"))?;
        epoll
            .add(
                &wake,
                EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, WAKE),
            )
            .map_err(failed("watch an eventfd"))?;
        let mut builder = http1::Builder::new();
        builder
            .half_close(true)
            .title_case_headers(true)
            .keep_alive(settings.keep_alive)
            .header_read_timeout(None)
            .max_headers(settings.max_headers);
        Ok(Self {
            settings,
            handler,
            builder,
            epoll,
            wake,
            drained: Arc::new(drained),
            slots: Mutex::default(),
            deadlines: Deadlines::default(),
            gate: Mutex::new(Gate {
                listener: Some(listener),
                is_armed: false,
                order: None,
                draining_since: None,
                paused_until: None,
                pause: PAUSE_FIRST,
            }),
            is_draining: AtomicBool::new(false),
            served: AtomicU64::new(0),
            scratch: Mutex::new(Scratch {
                events: vec![EpollEvent::empty(); EVENTS_PER_TURN],
                due: Vec::new(),
            }),
        })
    }

    pub(super) fn drained(&self) -> Arc<EventFd> {
        self.drained.clone()
    }

    /// Asks for connections to be accepted; false when the listening socket is closed.
    pub(super) fn resume(&self) -> bool {
        let mut gate = self.gate.lock();
        let has_listener =
            gate.listener.is_some() && gate.order != Some(Order::Drain { closes: true });
        if has_listener {
            gate.order = Some(Order::Accept);
            gate.draining_since = None;
            self.is_draining.store(false, Ordering::Release);
            // Not drained any more; nothing to read when it was not.
            let _ = self.drained.read();
            self.interrupt();
        }
        has_listener
    }

    /// Asks for the drain; `closes` also the listening socket.
    pub(super) fn stop(&self, closes: bool) {
        let mut gate = self.gate.lock();
        let closes = closes || gate.order == Some(Order::Drain { closes: true });
        gate.order = Some(Order::Drain { closes });
        self.is_draining.store(true, Ordering::Release);
        self.interrupt();
    }

    pub(super) fn count(&self, pool: pool::Stats) -> Stats {
        let slots = self.slots.lock();
        let idle = slots
            .slots
            .iter()
            .filter(|(_, slot)| {
                slot.connection.as_ref().is_some_and(|connection| {
                    matches!(connection.phase, Phase::Head { since: None })
                })
            })
            .count();
        Stats {
            threads: pool.threads,
            busy: pool.busy,
            queued: pool.queued,
            connections: slots.slots.len(),
            idle,
            in_flight: pool.busy + pool.queued,
            served: self.served.load(Ordering::Relaxed),
        }
    }

    // ---- what the leader does ------------------------------------------------------------------

    fn obey(&self, jobs: &mut Vec<Job>) {
        let order = self.gate.lock().order.take();
        match order {
            None => {}
            Some(Order::Accept) => self.arm_listener(),
            Some(Order::Drain { closes }) => {
                self.disarm_listener();
                if closes {
                    // What the kernel has queued has been promised to its clients.
                    while self.accept(ACCEPTS_PER_TURN, jobs) == ACCEPTS_PER_TURN {}
                    self.gate.lock().listener = None;
                }
                self.gate.lock().draining_since = Some(Instant::now());
                self.hasten();
            }
        }
    }

    fn arm_listener(&self) {
        let mut gate = self.gate.lock();
        gate.paused_until = None;
        if gate.is_armed || gate.draining_since.is_some() {
            return;
        }
        if let Some(listener) = &gate.listener {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            match self
                .epoll
                .add(&**listener, EpollEvent::new(flags, LISTENER))
            {
                Ok(()) | Err(Errno::EEXIST) => gate.is_armed = true,
                Err(errno) => {
                    drop(gate);
                    self.pause_accepting(errno);
                }
            }
        }
    }

    fn disarm_listener(&self) {
        let mut gate = self.gate.lock();
        if gate.is_armed {
            if let Some(listener) = &gate.listener {
                // Fails only when it is not there, which is what is wanted.
                let _ = self.epoll.delete(&**listener);
            }
            gate.is_armed = false;
        }
    }

    /// Accepts up to `most` connections; returns how many attempts found one.
    fn accept(&self, most: usize, jobs: &mut Vec<Job>) -> usize {
        let Some(listener) = self.gate.lock().listener.clone() else {
            return 0;
        };
        let mut count = 0;
        while count < most {
            match socket::accept(listener.as_fd()) {
                Ok(accepted) => {
                    count += 1;
                    self.adopt(accepted);
                }
                Err(Errno::EAGAIN) => return count,
                // The client gave up while it was queued, or the network did: that one is lost, the
                // next one need not be (accept(2)).
                Err(
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
                    | Errno::ETIMEDOUT,
                ) => count += 1,
                Err(errno) => {
                    self.pause_accepting(errno);
                    return 0;
                }
            }
        }
        let _ = jobs;
        self.gate.lock().pause = PAUSE_FIRST;
        count
    }

    /// Descriptors or memory ran out: new connections stay in the kernel's queue for a moment.
    fn pause_accepting(&self, errno: Errno) {
        self.disarm_listener();
        let mut gate = self.gate.lock();
        if gate.pause == PAUSE_FIRST {
            warn!(server = %self.settings.name, error = %errno, "cannot accept connections; trying on");
        }
        gate.paused_until = Some(Instant::now() + gate.pause);
        gate.pause = (gate.pause * 2).min(PAUSE_LONGEST);
    }

    fn adopt(&self, accepted: OwnedFd) {
        let now = Instant::now();
        let (socket, peer, local) = socket::prepare(accepted);
        let endpoints = Endpoints {
            peer,
            local,
            tls: self.settings.tls.is_some(),
        };
        let tls = match self
            .settings
            .tls
            .as_ref()
            .map(|tls| tls.accept())
            .transpose()
        {
            Ok(tls) => tls.map(Box::new),
            Err(error) => {
                warn!(server = %self.settings.name, %error, "cannot begin TLS on a new connection; closing it");
                return;
            }
        };
        let link = Link::new(socket, Observer::new(self.limits()), tls);
        let token = self.slots.lock().add();
        let connection = Box::new(Connection::new(token, link, endpoints, &self.builder, now));
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        if let Err(errno) = self
            .epoll
            .add(&connection.link.socket, EpollEvent::new(flags, token.0))
        {
            warn!(server = %self.settings.name, error = %errno, "cannot watch a new connection; closing it");
            self.slots.lock().remove(token);
            return;
        }
        scoreboard::current().connection_opened();
        // Nobody else leads, so no event can have been missed yet.
        self.park(connection);
    }

    fn limits(&self) -> Limits {
        Limits {
            request_line: self.settings.max_url_len,
            header_line: self.settings.max_header_line,
            headers: self.settings.max_headers,
            is_lenient: self.settings.lenient,
        }
    }

    /// Brings every deadline forward to what a drain allows.
    fn hasten(&self) {
        let mut slots = self.slots.lock();
        let now = Instant::now();
        for (_, slot) in &mut slots.slots {
            if let Some(connection) = &mut slot.connection {
                self.arm(connection, now);
            }
        }
    }

    fn handle_event(&self, token: Token, events: EpollFlags, jobs: &mut Vec<Job>) {
        let taken = {
            let mut slots = self.slots.lock();
            let Some(slot) = slots.find(token) else {
                return;
            };
            match slot.connection.take() {
                Some(connection) => connection,
                None => {
                    slot.missed |= events;
                    return;
                }
            }
        };
        if taken.note(events) {
            self.drive(taken, jobs);
        } else {
            self.park_again(taken, jobs);
        }
    }

    /// Drives a connection as far as its phase allows without a thread of its own.
    fn drive(&self, mut connection: Box<Connection>, jobs: &mut Vec<Job>) {
        match std::mem::replace(&mut connection.phase, Phase::Head { since: None }) {
            Phase::Head { since } => match connection.advance() {
                Step::Request(request) => self.begin(connection, request, jobs),
                Step::Closed(in_order) => self.close(connection, in_order, jobs),
                Step::Blocked => self.await_head(connection, since, jobs),
            },
            Phase::Collecting(arrival) => self.collect(connection, arrival, jobs),
            Phase::Discarding {
                body,
                budget,
                since,
            } => {
                self.discard(connection, body, budget, since, jobs);
            }
            Phase::Lingering { since, budget } => self.linger(connection, budget, since, jobs),
        }
    }

    /// hyper has nothing to do until a whole head has come.
    fn await_head(
        &self,
        mut connection: Box<Connection>,
        since: Option<Instant>,
        jobs: &mut Vec<Job>,
    ) {
        let (refusal, is_idle) = {
            let framing = &connection.link.state().framing;
            (framing.refusal(), framing.is_between_messages())
        };
        if let Some(refusal) = refusal {
            debug!(server = %self.settings.name, peer = ?connection.endpoints.peer, %refusal, "request refused");
            self.apologise(connection, refusal.status(), false, jobs);
            return;
        }
        let since = if is_idle {
            None
        } else {
            since.or_else(|| Some(Instant::now()))
        };
        connection.phase = Phase::Head { since };
        self.park_again(connection, jobs);
    }

    /// A request's head is complete.
    fn begin(
        &self,
        mut connection: Box<Connection>,
        request: Request<Incoming>,
        jobs: &mut Vec<Job>,
    ) {
        let now = Instant::now();
        connection.active = now;
        let arrival = Arrival::new(request, now);
        if arrival.body.is_none() || arrival.is_expecting {
            jobs.push(Job {
                connection,
                arrival,
            });
        } else {
            self.collect(connection, Box::new(arrival), jobs);
        }
    }

    /// Collects the beginning of a body before a thread is spent on the request.
    fn collect(
        &self,
        mut connection: Box<Connection>,
        mut arrival: Box<Arrival>,
        jobs: &mut Vec<Job>,
    ) {
        match arrival.collect(&mut connection, COLLECT_BYTES) {
            Ok(true) => jobs.push(Job {
                connection,
                arrival: *arrival,
            }),
            Ok(false) => {
                connection.phase = Phase::Collecting(arrival);
                self.park_again(connection, jobs);
            }
            Err(error) => self.apologise(connection, status_of(error), true, jobs),
        }
    }

    /// Throws away what the application left of a body, then goes on with the connection.
    fn discard(
        &self,
        mut connection: Box<Connection>,
        body: Incoming,
        mut budget: usize,
        since: Instant,
        jobs: &mut Vec<Job>,
    ) {
        let mut body = Some(body);
        loop {
            match next_piece(&mut connection, &mut body) {
                Poll::Ready(Ok(Some(piece))) if piece.len() <= budget => budget -= piece.len(),
                Poll::Ready(Ok(None)) => {
                    connection.phase = Phase::Head { since: None };
                    self.drive(connection, jobs);
                    return;
                }
                Poll::Ready(Ok(Some(_)) | Err(_)) => {
                    self.close(connection, true, jobs);
                    return;
                }
                Poll::Pending => match body {
                    Some(body) => {
                        connection.phase = Phase::Discarding {
                            body,
                            budget,
                            since,
                        };
                        self.park_again(connection, jobs);
                        return;
                    }
                    None => {
                        self.close(connection, true, jobs);
                        return;
                    }
                },
            }
        }
    }

    fn linger(
        &self,
        mut connection: Box<Connection>,
        mut budget: usize,
        since: Instant,
        jobs: &mut Vec<Job>,
    ) {
        // A client that has sent whole messages only has no reason to send more.
        let is_owed = !connection.link.state().framing.is_between_messages();
        let mut buffer = [MaybeUninit::uninit(); 8192];
        loop {
            match socket::receive(&connection.link.socket, &mut buffer) {
                Ok(bytes) if !bytes.is_empty() && bytes.len() <= budget => budget -= bytes.len(),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if is_owed => {
                    connection.phase = Phase::Lingering { since, budget };
                    self.park_again(connection, jobs);
                    return;
                }
                Ok(_) | Err(_) => {
                    self.drop_connection(connection);
                    return;
                }
            }
        }
    }

    /// Puts a connection back; goes on with it instead when something happened meanwhile.
    fn park_again(&self, mut connection: Box<Connection>, jobs: &mut Vec<Job>) {
        self.arm(&mut connection, Instant::now());
        let missed = {
            let mut slots = self.slots.lock();
            let Some(slot) = slots.find(connection.token) else {
                return;
            };
            let missed = std::mem::replace(&mut slot.missed, EpollFlags::empty());
            if missed.is_empty() {
                slot.connection = Some(connection);
                return;
            }
            missed
        };
        if connection.note(missed) {
            self.drive(connection, jobs);
        } else {
            self.park_again(connection, jobs);
        }
    }

    fn park(&self, mut connection: Box<Connection>) {
        self.arm(&mut connection, Instant::now());
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.find(connection.token) {
            slot.connection = Some(connection);
        }
    }

    /// Makes sure that the connection is looked at when its deadline passes.
    fn arm(&self, connection: &mut Connection, now: Instant) {
        let Some(deadline) = self.deadline(connection) else {
            return;
        };
        if connection
            .armed
            .is_none_or(|armed| deadline < armed || armed <= now)
        {
            connection.armed = Some(deadline);
            if self.deadlines.add(deadline, connection.token) {
                self.interrupt();
            }
        }
    }

    /// When a connection that nobody has checked out has waited long enough.
    fn deadline(&self, connection: &Connection) -> Option<Instant> {
        let patience = self.settings.client_socket_timeout;
        let normal = match &connection.phase {
            Phase::Head { since: None }
                if connection.endpoints.tls && connection.link.state().is_handshaking() =>
            {
                Some(connection.active + patience.unwrap_or(HANDSHAKE_TIME).min(HANDSHAKE_TIME))
            }
            Phase::Head { since: None } => patience.map(|patience| connection.active + patience),
            Phase::Head { since: Some(since) } => {
                Some(*since + patience.unwrap_or(HEAD_TIME).min(HEAD_TIME))
            }
            Phase::Collecting(arrival) => patience.map(|patience| arrival.since + patience),
            Phase::Discarding { since, .. } => {
                Some(*since + patience.unwrap_or(DISCARD_TIME).min(DISCARD_TIME))
            }
            Phase::Lingering { since, .. } => Some(*since + LINGER_TIME),
        };
        if !self.is_draining.load(Ordering::Acquire) {
            return normal;
        }
        let drain = match &connection.phase {
            Phase::Head { since: None } => connection.active + QUIET_TIME,
            Phase::Head { since: Some(since) } => *since + LAST_HEAD_TIME,
            Phase::Collecting(_) | Phase::Discarding { .. } | Phase::Lingering { .. } => {
                return normal;
            }
        };
        Some(normal.map_or(drain, |normal| normal.min(drain)))
    }

    /// A deadline entry is due: does the connection's true deadline agree?
    fn check_deadline(&self, token: Token, now: Instant, jobs: &mut Vec<Job>) {
        let taken = {
            let mut slots = self.slots.lock();
            let Some(slot) = slots.find(token) else {
                return;
            };
            let Some(connection) = &mut slot.connection else {
                return;
            };
            match self.deadline(connection) {
                Some(deadline) if deadline <= now => slot.connection.take(),
                _ => {
                    self.arm(connection, now);
                    None
                }
            }
        };
        let Some(connection) = taken else {
            return;
        };
        match connection.phase {
            Phase::Head { since: None } | Phase::Discarding { .. } | Phase::Lingering { .. } => {
                self.drop_connection(connection);
            }
            Phase::Head { since: Some(_) } => {
                self.apologise(connection, StatusCode::REQUEST_TIMEOUT, false, jobs);
            }
            Phase::Collecting(_) => {
                self.apologise(connection, StatusCode::REQUEST_TIMEOUT, true, jobs);
            }
        }
    }

    fn apologise(
        &self,
        mut connection: Box<Connection>,
        status: StatusCode,
        is_asked: bool,
        jobs: &mut Vec<Job>,
    ) {
        connection.apologise(status, is_asked);
        self.close(connection, true, jobs);
    }

    /// Ends a connection on which everything was said if `in_order`, and everything lost if not.
    fn close(&self, connection: Box<Connection>, in_order: bool, jobs: &mut Vec<Job>) {
        if in_order && !connection.link.state().at_end {
            connection.link.shut();
            self.linger(connection, LINGER_BYTES, Instant::now(), jobs);
        } else {
            self.drop_connection(connection);
        }
    }

    fn drop_connection(&self, connection: Box<Connection>) {
        let token = connection.token;
        if connection.link.state().is_encrypted() {
            connection.link.shut();
        }
        // The socket first: closing takes it out of the epoll, so that no event can come for a
        // token whose slot is gone. (Tokens are never used again either.)
        drop(connection);
        scoreboard::current().connection_closed();
        let is_last = {
            let mut slots = self.slots.lock();
            slots.remove(token);
            slots.slots.is_empty()
        };
        if is_last && self.is_draining.load(Ordering::Acquire) {
            self.interrupt();
        }
    }
}

impl Source for Reactor {
    type Job = Job;

    fn wait(&self, jobs: &mut Vec<Job>) {
        let mut scratch = self.scratch.lock();
        let Scratch { events, due } = &mut *scratch;
        self.obey(jobs);
        if !jobs.is_empty() || self.is_over() {
            return;
        }
        let paused_until = self.gate.lock().paused_until;
        let until = match (self.deadlines.watch(), paused_until) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let timeout = until.map_or(EpollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: waking early would cost another turn.
            EpollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX)
        });
        let count = match self.epoll.wait(events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                // Cannot happen with a descriptor of our own; do not spin if it does.
                error!(server = %self.settings.name, error = %errno, "cannot wait for sockets");
                std::thread::sleep(PAUSE_FIRST);
                0
            }
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => {
                    self.accept(ACCEPTS_PER_TURN, jobs);
                }
                WAKE => {
                    let _ = self.wake.read();
                }
                token => self.handle_event(Token(token), event.events(), jobs),
            }
        }
        if until.is_some() || count == 0 {
            let now = Instant::now();
            due.clear();
            self.deadlines.due(now, due);
            for token in due.iter() {
                self.check_deadline(*token, now, jobs);
            }
            if paused_until.is_some_and(|until| until <= now) {
                self.arm_listener();
            }
        }
        self.obey(jobs);
    }

    fn interrupt(&self) {
        // Fails only when the counter is full, and then the reader is awake anyway.
        let _ = self.wake.write(1);
    }

    fn run(&self, job: Job) -> Option<Job> {
        let Job {
            mut connection,
            arrival,
        } = job;
        let timeout = self.settings.client_socket_timeout;
        let outcome = {
            let _in_flight = scoreboard::current().begin();
            let mut live = Live::new(&mut connection, arrival, timeout, &self.is_draining);
            let exchange: &mut dyn Exchange = &mut live;
            let panicked =
                catch_unwind(AssertUnwindSafe(|| self.handler.handle(exchange))).is_err();
            live.conclude(panicked)
        };
        self.served.fetch_add(1, Ordering::Relaxed);
        connection.active = Instant::now();
        connection.phase = Phase::Head { since: None };
        let mut jobs = Vec::new();
        match outcome {
            Outcome::Close(in_order) => self.close(connection, in_order, &mut jobs),
            Outcome::Next(request) => self.begin(connection, request, &mut jobs),
            Outcome::Wait(None) => self.await_head(connection, None, &mut jobs),
            Outcome::Wait(Some(body)) => {
                let since = connection.active;
                self.discard(connection, body, DISCARD_BYTES, since, &mut jobs);
            }
        }
        jobs.pop()
    }

    fn is_over(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
            && self.gate.lock().order.is_none()
            && self.slots.lock().slots.is_empty()
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        let row = scoreboard::current();
        row.thread_started();
        self.handler.thread(body);
        row.thread_ended();
    }

    fn ended(&self) {
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = self.drained.write(1);
    }
}
