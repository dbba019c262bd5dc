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
mod ending;
mod making_memory;
mod making_room;
mod overload;
mod refusing;
mod slots;
mod timing;
mod uploading;

use super::connection::{Connection, Phase, Token};
use super::deadlines::Deadlines;
use super::exchange::{ConnectionExchange, Keeper, Outcome, Terms};
use super::framing::Limits;
use super::free_memory;
use super::received_request::ReceivedRequest;
use super::sending::{After, Note, Sending, UnsentMemory};
use super::slow_clients::SlowClients;
use super::uploads::{Others, Uploads};
use super::{Settings, Stats, socket, tls};
use crate::locks::Mutex;
use crate::pool::{self, Source};
use crate::scoreboard;
use crate::wsgi::{Delivery, Exchange, Handler, Refused};
use accepting::Listening;
use making_room::LookAtReaders;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use overload::Overload;
use slots::Slots;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// Tokens of what is not a connection.
const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

/// Events fetched with one call.
const EVENTS_PER_TURN: usize = 64;

/// Requests that one connection has answered in a row before others have their turn.
const TURN_REQUESTS: u32 = 16;
/// Requests that wait for a thread, for each thread of the pool, before connections are left to the
/// kernel and to other workers.
const QUEUED_PER_THREAD: usize = 2;

/// A connection with which to go on at once, because something happened to it while it was checked
/// out.
type Again = Option<Box<Connection>>;

/// How often a worker whose threads are all busy, too many of them with slow clients, looks whether
/// connections wait in the kernel.
const LOOK_AT_THE_LEFT: Duration = Duration::from_millis(100);

/// Something that is ready for a thread.
#[derive(Debug)]
pub(super) enum Job {
    /// A request is to be answered.
    Answer(Box<Connection>, Box<ReceivedRequest>),
    /// One was refused: the handler is to hear of it, then the connection is to be closed, if it is
    /// not yet.
    Report(Token, Box<Refused>),
    /// The handler is to hear what became of an answer.
    Deliver(Note, Delivery),
    /// A connection has more to do, after others have had their turn.
    Drive(Box<Connection>),
}

/// See the module's text. Locks are taken in this order: the pool's, `listening`, `slots`,
/// `deadlines`; `drain_began` is the last of them, and `scratch` the leader's alone.
#[derive(Debug)]
pub(super) struct Reactor {
    settings: Settings,
    handler: Arc<dyn Handler>,
    limits: Arc<Limits>,
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
    drain_began: Mutex<Option<Instant>>,
    served: AtomicU64,
    /// Memory of answers that clients have not taken yet.
    unsent: UnsentMemory,
    slow_clients: SlowClients,
    uploads: Arc<Uploads>,
    /// No answer gave way to another one; when to try again.
    next_making: Mutex<Option<Instant>>,
    look_at_readers: Mutex<LookAtReaders>,
    most_connections: usize,
    /// Jobs that were found and not begun.
    queued: AtomicUsize,
    /// Threads of the pool, at least 1.
    pool_size: AtomicUsize,
    /// The listener is left alone until a request that comes can begin.
    is_held: AtomicBool,
    overload: Overload,
    /// Most of many connections have left, and their memory was not given back yet.
    has_emptied: AtomicBool,
    trimming: Mutex<free_memory::Pace>,
    /// Requests that were refused and that the handler has not heard of.
    reports: AtomicUsize,
    /// What is to be done after others have had their turn.
    deferred: Mutex<Vec<Job>>,
    /// Its last thread has left, and it was not started again.
    has_ended: AtomicBool,
    /// The leader waits for sockets, or is about to: what the handler puts off has to be done by
    /// those that put it off.
    is_waiting: AtomicBool,
    scratch: Mutex<Scratch>,
}

/// What only the leader uses; kept to spare it allocations.
#[derive(Debug)]
struct Scratch {
    events: Vec<EpollEvent>,
    due: Vec<Token>,
    /// Requests that have or wait for a thread, those with permits left out.
    others: Others,
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
        let limits = Limits {
            request_line: settings.max_url_len,
            header_line: settings.max_header_line,
            headers: settings.max_headers,
            body: settings.max_body,
            is_lenient: settings.lenient,
            is_uwsgi: settings.uwsgi,
        };
        let pool_size = settings.pool_size;
        Ok(Self {
            unsent: UnsentMemory::new(settings.max_unsent),
            slow_clients: SlowClients::new(pool_size, settings.slow_client_share),
            uploads: Arc::new(Uploads::new(pool_size, settings.slow_client_share)),
            next_making: Mutex::default(),
            look_at_readers: Mutex::default(),
            most_connections: most_connections(&settings),
            queued: AtomicUsize::new(0),
            pool_size: AtomicUsize::new(pool_size.max(1)),
            is_held: AtomicBool::new(false),
            overload: Overload::new(settings.max_waiting, pool_size),
            has_emptied: AtomicBool::new(false),
            trimming: Mutex::default(),
            reports: AtomicUsize::new(0),
            deferred: Mutex::default(),
            is_waiting: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            settings,
            handler,
            limits: Arc::new(limits),
            epoll,
            wake,
            drained: Arc::new(drained),
            tls: Mutex::new(tls),
            slots: Mutex::default(),
            deadlines: Deadlines::default(),
            listening: Mutex::new(Listening::new(listener)),
            is_draining: AtomicBool::new(false),
            drain_began: Mutex::default(),
            served: AtomicU64::new(0),
            scratch: Mutex::new(Scratch {
                events: vec![EpollEvent::empty(); EVENTS_PER_TURN],
                due: Vec::new(),
                others: Others::new(Instant::now()),
            }),
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    pub(super) const fn handler(&self) -> &Arc<dyn Handler> {
        &self.handler
    }

    pub(super) fn drained(&self) -> Arc<EventFd> {
        self.drained.clone()
    }

    pub(super) fn replace_tls(&self, config: Arc<tls::Config>) {
        *self.tls.lock() = Some(config);
    }

    /// The pool has another size now.
    pub(super) fn resize(&self, pool_size: usize) {
        self.slow_clients.resize(pool_size);
        self.uploads.resize(pool_size);
        self.pool_size.store(pool_size.max(1), Ordering::Relaxed);
        self.overload.resize(pool_size);
        // Connections may be accepted that had to wait for the backlog.
        self.wake_leader();
    }

    pub(super) fn count(&self, pool: pool::Stats) -> Stats {
        let mut slots = self.slots.lock();
        let idle = slots
            .parked()
            .filter(|connection| matches!(connection.phase, Phase::Head { since: None }))
            .count();
        Stats {
            threads: pool.threads,
            busy: pool.busy,
            queued: pool.queued,
            connections: slots.len(),
            idle,
            in_flight: pool.busy + pool.queued,
            unsent: self.unsent.held(),
            served: self.served.load(Ordering::Relaxed),
            limit: pool.limit,
            takeovers: pool.takeovers,
        }
    }

    fn wake_leader(&self) {
        // Fails only when the counter is full, and then the reader is awake anyway.
        let _ = self.wake.write(1);
    }

    /// Waits for events, until `until` at the latest. What the handler has put off is done before
    /// that, unless there are events to be seen to first.
    fn fetch_or_catch_up(&self, events: &mut [EpollEvent], until: Option<Instant>) -> usize {
        if self.handler.has_put_off() {
            let count = self.fetch(events, Some(Instant::now()));
            if count > 0 {
                self.handler.catch_up(false);
                return count;
            }
        }
        let mut until = until;
        if self.has_emptied.load(Ordering::Relaxed) {
            // In a quiet moment: nothing waits for the leader then.
            let now = Instant::now();
            let count = self.fetch(events, Some(now));
            if count > 0 {
                return count;
            }
            match self.trimming.lock().not_before(now) {
                None => {
                    self.has_emptied.store(false, Ordering::Relaxed);
                    free_memory::give_back();
                }
                Some(at) => until = Some(until.map_or(at, |until| until.min(at))),
            }
        }
        // A thread that puts something off after this sees that nobody else will do it.
        self.is_waiting.store(true, Ordering::SeqCst);
        if self.handler.has_put_off() {
            self.handler.catch_up(true);
        }
        let count = self.fetch(events, until);
        self.is_waiting.store(false, Ordering::SeqCst);
        count
    }

    /// So many more jobs wait for a thread.
    fn queue(&self, more: usize) {
        if more > 0 {
            self.queued.fetch_add(more, Ordering::Relaxed);
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            scoreboard::current().figures().queue(more);
        }
    }

    /// Does what the handler has put off, where the leader will not.
    fn catch_up(&self) {
        if self.handler.has_put_off() {
            self.handler
                .catch_up(self.is_waiting.load(Ordering::SeqCst));
        }
    }

    /// Cuts slow clients off where requests wait for their threads. Returns when to look again.
    fn relieve_of_slow_clients(&self, now: Instant) -> Option<Instant> {
        let is_upload_waiting = self.uploads.is_one_kept_out();
        // Uploads that wait for a thread are not in the queue: one at a time counts.
        let mut queued = self.queued.load(Ordering::Relaxed) + usize::from(is_upload_waiting);
        if queued == 0 && self.is_held.load(Ordering::Relaxed) && self.slow_clients.are_too_many() {
            if !self.has_left_some() {
                return Some(now + LOOK_AT_THE_LEFT);
            }
            queued = 1;
        }
        self.slow_clients
            .relieve(queued, is_upload_waiting, self.unsent.is_short(), now)
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

    fn wait(&self, jobs: &mut Vec<Job>, most: usize, free: usize) {
        let mut scratch = self.scratch.lock();
        let Scratch {
            events,
            due,
            others,
        } = &mut *scratch;
        let before = jobs.len();
        self.apply_orders(jobs);
        if self.is_over() {
            self.queue(jobs.len() - before);
            return;
        }
        self.watch_if_there_is_room(free.saturating_sub(jobs.len()));
        let (paused_until, closes_at, look_at) = {
            let listening = self.listening.lock();
            let (closes_at, look_at) = (listening.closes_at(), listening.look_at());
            (listening.paused_until(), closes_at, look_at)
        };
        let deferred = std::mem::take(&mut *self.deferred.lock());
        let now = Instant::now();
        let busy = self.pool_size.load(Ordering::Relaxed).saturating_sub(free);
        others.note_busy(busy, self.uploads.taken(), now);
        let look_at_uploads = self.see_to_uploads(free, before, others, now, jobs);
        let other = if deferred.is_empty() && jobs.is_empty() {
            let relief = self.relieve_of_slow_clients(now);
            [paused_until, closes_at, look_at, relief, look_at_uploads]
                .into_iter()
                .flatten()
                .min()
        } else {
            Some(now)
        };
        let until = self.deadlines.watch(other);
        let room = events.len().min(most);
        let count = self.fetch_or_catch_up(&mut events[..room], until);
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept_turn(free, jobs),
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
        for job in deferred {
            match job {
                Job::Drive(connection) => {
                    let token = connection.token;
                    self.contain(token, || self.drive(Some(connection), jobs));
                }
                Job::Answer(..) | Job::Report(..) | Job::Deliver(..) => jobs.push(job),
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
        if look_at.is_some_and(|at| at <= now) {
            self.take_what_was_left(now, jobs);
        }
        self.apply_orders(jobs);
        // What comes next is known when the leader waits again.
        let _ = self.see_to_uploads(free, before, others, now, jobs);
        self.queue(jobs.len() - before);
    }

    fn glance(&self, jobs: &mut Vec<Job>) {
        let mut events = [EpollEvent::empty()];
        if !matches!(self.epoll.wait(&mut events, EpollTimeout::ZERO), Ok(1)) {
            return;
        }
        let before = jobs.len();
        match events[0].data() {
            // The leader's business.
            LISTENER | WAKE => self.wake_leader(),
            token => {
                let token = Token(token);
                self.contain(token, || self.handle_event(token, events[0].events(), jobs));
            }
        }
        self.queue(jobs.len() - before);
    }

    fn note_room(&self) {
        if self.has_siblings() || self.uploads.has_held() {
            self.wake_leader();
        }
    }

    fn interrupt(&self) {
        self.wake_leader();
    }

    fn run(&self, job: Job) -> Option<Job> {
        self.queued.fetch_sub(1, Ordering::SeqCst);
        scoreboard::current().figures().dequeue();
        let mut jobs = Vec::new();
        match job {
            Job::Answer(connection, received) => {
                let token = connection.token;
                self.contain(token, || self.answer(connection, received, &mut jobs));
                self.overload.release();
                self.note_upload_ended();
            }
            Job::Report(token, refused) => {
                self.contain(token, || self.report(token, &refused, &mut jobs));
            }
            Job::Deliver(note, delivery) => self.handler.delivered(note.value, delivery),
            Job::Drive(connection) => {
                let token = connection.token;
                self.contain(token, || self.drive(Some(connection), &mut jobs));
            }
        }
        // After the count was lowered: the leader looks at both in the other order.
        if self.is_held.load(Ordering::SeqCst) && !self.has_siblings() {
            self.wake_leader();
        }
        let mut next = None;
        for job in jobs {
            match job {
                Job::Deliver(note, delivery) => self.handler.delivered(note.value, delivery),
                // A connection leads to one of these at most before it is parked.
                Job::Answer(..) | Job::Report(..) | Job::Drive(_) => next = Some(job),
            }
        }
        self.catch_up();
        let next = next.and_then(|job| self.turn(job));
        self.queue(usize::from(next.is_some()));
        next
    }

    fn is_over(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
            && !self.listening.lock().has_order()
            && self.slots.lock().len() == 0
    }

    fn at_once(&self) -> usize {
        self.handler.at_once()
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        let row = scoreboard::current();
        row.thread_started();
        self.handler.thread(body);
        row.thread_ended();
    }

    fn ended(&self) {
        self.handler.catch_up(true);
        self.has_ended.store(true, Ordering::Release);
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = self.drained.write(1);
    }
}

impl Reactor {
    /// Counts the requests behind the first `before` that need threads, and hands over those that
    /// wait for one before their bodies have come. Beside those first, `free` threads are free.
    fn see_to_uploads(
        &self,
        free: usize,
        before: usize,
        others: &mut Others,
        now: Instant,
        jobs: &mut Vec<Job>,
    ) -> Option<Instant> {
        let found = &jobs[before..];
        let free = free.saturating_sub(found.len());
        let with_permit =
            |job: &&Job| matches!(job, Job::Answer(_, received) if received.permit.is_some());
        others.note_found(found.len() - found.iter().filter(with_permit).count(), now);
        if !self.uploads.has_held() {
            return None;
        }
        self.hand_over_uploads(free, others.peak(), jobs)
    }

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
        jobs: &mut Vec<Job>,
    ) {
        connection.in_a_row += 1;
        let terms = Terms {
            timeout: self.settings.client_socket_timeout,
            keep_alive: self.settings.keep_alive,
            is_draining: &self.is_draining,
            slow_clients: &self.slow_clients,
            unsent: &self.unsent,
        };
        let token = connection.token;
        let (connection, outcome) = {
            let mut exchange = ConnectionExchange::new(connection, received, self, &terms);
            let lent: &mut dyn Exchange = &mut exchange;
            let panicked = catch_unwind(AssertUnwindSafe(|| self.handler.handle(lent))).is_err();
            exchange.into_outcome(panicked)
        };
        self.served.fetch_add(1, Ordering::Relaxed);
        let Some(mut connection) = connection else {
            if !matches!(outcome, Outcome::GivenUp) {
                self.forget(token);
            }
            if let Outcome::Failed(Some((note, delivery))) = outcome {
                jobs.push(Job::Deliver(note, delivery));
            }
            return;
        };
        connection.active = Instant::now();
        connection.count_sent();
        connection.phase = Phase::Head { since: None };
        let again = match outcome {
            Outcome::Failed(note) => {
                if let Some((note, delivery)) = note {
                    jobs.push(Job::Deliver(note, delivery));
                }
                // What is unread would have the close take back what was sent.
                connection.drop_body_left();
                self.drop_connection(connection);
                None
            }
            Outcome::Sent(after, note) => {
                if let Some(note) = note {
                    let delivery = connection.delivered(note.body, after != After::Cut);
                    jobs.push(Job::Deliver(note, delivery));
                }
                self.go_on(connection, after)
            }
            Outcome::Sending(sending) => self.send_rest(connection, sending, jobs),
            Outcome::GivenUp => None,
        };
        self.drive(again, jobs);
    }

    /// The next job of a connection, unless it has had its turn: then it comes behind what others
    /// have sent meanwhile.
    fn turn(&self, mut job: Job) -> Option<Job> {
        if let Job::Answer(connection, _) = &mut job
            && connection.in_a_row >= TURN_REQUESTS
        {
            connection.in_a_row = 0;
            self.defer(job);
            return None;
        }
        Some(job)
    }

    /// Puts off a job until the leader has looked at the sockets.
    fn defer(&self, job: Job) {
        self.deferred.lock().push(job);
        self.wake_leader();
    }
}

/// How many connections may be open: as many as the limit of open files leaves room for. A setting of
/// more would have the application run out of descriptors.
fn most_connections(settings: &Settings) -> usize {
    let room = socket::room_for_connections();
    let Some(wanted) = settings.max_connections else {
        return room;
    };
    if wanted > room {
        warn!(server = %settings.name, max_connections = wanted, room, "max_connections is more than the limit of open files leaves room for, which holds instead; raise the limit (ulimit -n, LimitNOFILE=), or set fewer connections");
    }
    wanted.min(room).max(1)
}

impl Keeper for Reactor {
    fn keep(&self, connection: Box<Connection>) {
        // Work on an answer leads to no job.
        self.drive(self.park(connection), &mut Vec::new());
    }

    fn end(&self, mut connection: Box<Connection>, after: After, reserved: u64) {
        connection.active = Instant::now();
        let sending = Sending::new(after, None, reserved, connection.sent());
        connection.phase = Phase::Sending(Box::new(sending));
        self.note_upload_ended();
        // An answer that has no note leads to no job.
        self.drive(Some(connection), &mut Vec::new());
    }

    fn relieve(&self) {
        // The leader looks at the slow clients whenever it looks at the sockets.
        let is_wanted = self.queued.load(Ordering::Relaxed) > 0
            || self.is_held.load(Ordering::Relaxed)
            || self.uploads.has_full();
        if is_wanted {
            self.wake_leader();
        }
    }

    fn upload_ended(&self) {
        self.note_upload_ended();
    }

    fn make_memory(&self, bytes: u64) -> bool {
        self.cut_off_slow_readers(bytes)
    }

    fn reclaim(&self, token: Token) -> Option<Box<Connection>> {
        loop {
            if let Some(mut connection) = self.slots.lock().find(token)?.connection.take() {
                connection.phase = Phase::Head { since: None };
                return Some(connection);
            }
            // A thread sends on it at this moment; that does not block.
            std::thread::yield_now();
        }
    }
}
