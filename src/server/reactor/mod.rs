//! The reactor: waits for sockets, drives connections until a request is ready, closes what is over.
//!
//! Owns every connection that no thread has checked out, the listening socket and the deadlines.
//! Runs on pool threads as their [`Source`]; runs an application only in [`Source::run`].
//! docs/server.md draws the life of a connection.
//!
//! A connection is registered once, edge-triggered, and named by a token that is never used again;
//! whoever takes it out of its slot owns it. An event that comes meanwhile is noted in the slot and
//! seen when the connection is parked again, under the same lock.

mod accepting;
mod driving;
mod slots;

use super::connection::{Connection, Phase, Token};
use super::deadlines::Deadlines;
use super::exchange::{ConnectionExchange, DISCARD_BYTES, Outcome};
use super::received_request::ReceivedRequest;
use super::{Settings, Stats, tls};
use crate::pool::{self, Source};
use crate::scoreboard;
use crate::wsgi::{Exchange, Handler, Refused};
use accepting::{ACCEPTS_PER_TURN, Listening};
use hyper::server::conn::http1;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use slots::Slots;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tracing::error;

/// Tokens of what is not a connection.
const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// Events fetched with one call.
const EVENTS_PER_TURN: usize = 64;

/// Something that is ready for a thread.
#[derive(Debug)]
pub(super) struct Job {
    connection: Box<Connection>,
    task: Task,
}

#[derive(Debug)]
enum Task {
    /// A request is to be answered.
    Answer(Box<ReceivedRequest>),
    /// One was refused: the handler is to hear of it, then the connection is to be closed.
    Report(Box<Refused>),
}

/// See the module's text. Locks are taken in this order: the pool's, `listening`, `slots`,
/// `deadlines`; `scratch` is the leader's alone.
#[derive(Debug)]
pub(super) struct Reactor {
    settings: Settings,
    handler: Arc<dyn Handler>,
    builder: Arc<http1::Builder>,
    epoll: Epoll,
    /// Makes the leader look up from its wait.
    wake: EventFd,
    drained: Arc<EventFd>,
    /// What new connections are encrypted with.
    tls: Mutex<Option<Arc<tls::Config>>>,
    slots: Mutex<Slots>,
    deadlines: Deadlines,
    listening: Mutex<Listening>,
    is_draining: AtomicBool,
    served: AtomicU64,
    scratch: Mutex<Scratch>,
}

/// What only the leader uses; kept to spare it allocations.
#[derive(Debug)]
struct Scratch {
    events: Vec<EpollEvent>,
    due: Vec<Token>,
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
        let tls = settings.tls.clone();
        let mut builder = http1::Builder::new();
        builder
            // A client may end its half and still wait for the answer.
            .half_close(true)
            .title_case_headers(true)
            .keep_alive(settings.keep_alive)
            // Deadlines are the reactor's.
            .header_read_timeout(None)
            .max_headers(settings.max_headers);
        Ok(Self {
            settings,
            handler,
            builder: Arc::new(builder),
            epoll,
            wake,
            drained: Arc::new(drained),
            tls: Mutex::new(tls),
            slots: Mutex::default(),
            deadlines: Deadlines::default(),
            listening: Mutex::new(Listening::new(listener)),
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

    pub(super) fn replace_tls(&self, config: Arc<tls::Config>) {
        *self.tls.lock() = Some(config);
    }

    pub(super) fn count(&self, pool: pool::Stats) -> Stats {
        let mut slots = self.slots.lock();
        let (mut idle, mut resting) = (0, 0);
        for connection in slots.parked() {
            let is_idle = matches!(connection.phase, Phase::Head { since: None });
            idle += usize::from(is_idle);
            resting += usize::from(is_idle && connection.is_resting());
        }
        Stats {
            threads: pool.threads,
            busy: pool.busy,
            queued: pool.queued,
            connections: slots.len(),
            idle,
            resting,
            in_flight: pool.busy + pool.queued,
            served: self.served.load(Ordering::Relaxed),
            limit: pool.limit,
            takeovers: pool.takeovers,
        }
    }

    fn wake_leader(&self) {
        // Fails only when the counter is full, and then the reader is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Waits for events, until `until` at the latest.
    fn fetch(&self, events: &mut [EpollEvent], until: Option<Instant>) -> usize {
        let timeout = until.map_or(EpollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(Instant::now());
            // Rounded up: waking early would cost another turn.
            EpollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX)
        });
        match self.epoll.wait(events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                // Cannot happen with a descriptor of our own; do not spin if it does.
                error!(server = %self.settings.name, error = %errno, "cannot wait for sockets");
                std::thread::sleep(Duration::from_millis(50));
                0
            }
        }
    }
}

impl Source for Reactor {
    type Job = Job;

    fn wait(&self, jobs: &mut Vec<Job>, most: usize) {
        let mut scratch = self.scratch.lock();
        let Scratch { events, due } = &mut *scratch;
        self.apply_orders();
        if self.is_over() {
            return;
        }
        let paused_until = self.listening.lock().paused_until();
        let until = match (self.deadlines.watch(), paused_until) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let room = events.len().min(most);
        let count = self.fetch(&mut events[..room], until);
        for event in &events[..count] {
            match event.data() {
                LISTENER => {
                    if self.accept(ACCEPTS_PER_TURN) > 0 {
                        self.go_last();
                    }
                }
                WAKE => {
                    // Edge-triggered, so it need not be read empty; but it must not fill up.
                    let _ = self.wake.read();
                }
                token => {
                    let token = Token(token);
                    self.contain(token, || self.handle_event(token, event.events(), jobs));
                }
            }
        }
        let now = Instant::now();
        due.clear();
        self.deadlines.due(now, due);
        for token in due.iter() {
            self.contain(*token, || self.check_deadline(*token, now, jobs));
        }
        if paused_until.is_some_and(|until| until <= now) {
            self.watch_listener();
        }
        self.apply_orders();
    }

    fn glance(&self, jobs: &mut Vec<Job>) {
        let mut events = [EpollEvent::empty()];
        if !matches!(self.epoll.wait(&mut events, EpollTimeout::ZERO), Ok(1)) {
            return;
        }
        match events[0].data() {
            // The leader's business.
            LISTENER | WAKE => self.wake_leader(),
            token => {
                let token = Token(token);
                self.contain(token, || self.handle_event(token, events[0].events(), jobs));
            }
        }
    }

    fn interrupt(&self) {
        self.wake_leader();
    }

    fn run(&self, job: Job) -> Option<Job> {
        let Job { connection, task } = job;
        let token = connection.token;
        self.contain(token, || match task {
            Task::Answer(received) => self.answer(connection, received),
            Task::Report(refused) => {
                self.handler.refused(&refused);
                let mut jobs = Vec::new();
                self.drive(self.close(connection, true), &mut jobs);
                jobs.pop()
            }
        })
        .flatten()
    }

    fn is_over(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
            && !self.listening.lock().has_order()
            && self.slots.lock().len() == 0
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

impl Reactor {
    /// Does something with a connection; a panic costs that connection and nothing else.
    fn contain<T>(&self, token: Token, work: impl FnOnce() -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(work));
        if result.is_err() {
            error!(server = %self.settings.name, "closed a connection after a panic");
            self.forget(token);
        }
        result.ok()
    }

    /// Has one request answered, and goes on with its connection.
    fn answer(
        &self,
        mut connection: Box<Connection>,
        received: Box<ReceivedRequest>,
    ) -> Option<Job> {
        let timeout = self.settings.client_socket_timeout;
        let outcome = {
            let _in_flight = scoreboard::current().begin();
            let mut exchange =
                ConnectionExchange::new(&mut connection, received, timeout, &self.is_draining);
            let lent: &mut dyn Exchange = &mut exchange;
            let panicked = catch_unwind(AssertUnwindSafe(|| self.handler.handle(lent))).is_err();
            exchange.into_outcome(panicked)
        };
        self.served.fetch_add(1, Ordering::Relaxed);
        connection.active = Instant::now();
        connection.phase = Phase::Head { since: None };
        let mut jobs = Vec::new();
        // A connection leads to one job at most before it is parked.
        let again = match outcome {
            Outcome::Close(in_order) => self.close(connection, in_order),
            Outcome::Next(received) => self.begin(connection, received, &mut jobs),
            Outcome::Wait(None) => self.await_head(connection, None, &mut jobs),
            Outcome::Wait(Some(body)) => {
                let since = connection.active;
                self.discard(connection, body, DISCARD_BYTES, since)
            }
        };
        self.drive(again, &mut jobs);
        jobs.pop()
    }
}
