//! RPC over AMQP 0-9-1. Requests and replies out, confirms and replies in; for listeners, requests in.
//!
//! Owns one connection to one of the URL's brokers, which all threads of a process share, and the
//! thread that opens it, reads from it, and opens another one when it is lost. A caller's thread
//! writes its request itself and then sleeps until there is something for it. Knows no message
//! beyond the id by which a reply finds its call. What listeners consume has a connection and a thread
//! of its own (`subscriber.rs`).
//!
//! Two locks, in this order: the state of a client, the progress of a request. None is held
//! while something waits for the broker.
//!
//! Rules: AMQP 0-9-1; RabbitMQ's publisher confirms; what is declared, tried again and given up
//! is decided as `impl_rabbit` of oslo.messaging does (docs/rpc.md).

mod assembler;
#[cfg(test)]
mod awaited_tests;
mod begun;
mod bindings;
#[cfg(test)]
mod bindings_tests;
mod connection;
mod conversation;
mod declaring;
mod delivery;
mod dialer;
#[cfg(test)]
mod dozing_tests;
mod envelope;
#[cfg(test)]
mod faults;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod listening;
#[cfg(test)]
mod listening_schedules;
#[cfg(test)]
mod listening_tests;
mod methods;
mod outbox;
mod refusals;
#[cfg(test)]
mod refusals_tests;
#[cfg(test)]
mod schedules;
mod state;
mod subscriber;
#[cfg(test)]
mod subscriber_tests;
mod suspicion;
#[cfg(test)]
mod suspicion_tests;
#[cfg(test)]
mod tests;
mod thread;
#[cfg(test)]
mod unreadable_tests;
#[cfg(test)]
mod waiting_tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::locks::{Condvar, Mutex, MutexGuard};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use delivery::{Delivery, PickUp, Sink};
pub use envelope::Head;
pub use listening::{Arrival, Closure, Queue, Standing, warn_of_lost};
pub use methods::{Exchange, ExchangeType, Mechanism, Properties, Table, Value};
use outbox::Failures;
pub use outbox::{FailedReply, Outbox};
pub use refusals::remedy;
use state::State;
pub use subscriber::{Subscriber, Subscription};
use suspicion::Suspicion;

use super::heartbeat::Heartbeats;

/// One broker of a URL.
#[derive(Debug, Clone)]
pub struct Host {
    /// A name or an address.
    pub name: String,
    /// TCP's.
    pub port: u16,
    /// May be empty with [`Mechanism::External`].
    pub user: String,
    /// As `user`.
    pub password: String,
}

/// Files for TLS; they are read for each connection.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Authorities that are trusted; with none, every certificate is accepted.
    pub roots: Option<Vec<PathBuf>>,
    /// The certificate has to be for the host's name in the URL.
    pub checks_name: bool,
    /// The certificate of this side, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Pauses between attempts to connect.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pauses {
    /// After the first round over all hosts.
    pub first: Duration,
    /// How much longer each further one is.
    pub step: Duration,
    /// The longest.
    pub longest: Duration,
    /// Added to each, and the pause after a connection is lost.
    pub delay: Duration,
    /// Up to this much is added to each, by chance.
    pub splay: Duration,
}

/// What a client is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// At least one.
    pub hosts: Vec<Host>,
    /// Of all of them.
    pub virtual_host: String,
    /// How this side proves who it is.
    pub mechanism: Mechanism,
    /// Seconds after which the broker should hear something; 0 for no heartbeats.
    pub heartbeat: u16,
    /// As the broker shows it.
    pub connection_name: String,
    /// None for plain TCP.
    pub tls: Option<TlsFiles>,
    /// To which servers send replies: of this process alone, and bound to no exchange. Declared by the
    /// first call.
    pub replies: Queue,
    /// See there.
    pub pauses: Pauses,
    /// Hosts are tried in an order of chance, not in turn.
    pub shuffles: bool,
    /// Requests survive a broker that loses its memory, so that their calls need not end.
    pub has_durable_requests: bool,
    /// How long the broker may take to answer what it is asked, though it is alive. It may not while it
    /// has blocked the connection.
    pub answers_within: Duration,
}

/// How long a connection may take to be made, and to be agreed on.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after a reconnection a missing queue is waited for.
const SETTLING: Duration = Duration::from_secs(15);
/// How long servers have for the replies to calls whose requests may be lost.
const GRACE: Duration = Duration::from_secs(15);

/// How long the caller of a request of which the broker has said nothing yet sleeps at least.
const LEAST_SLEEP: Duration = Duration::from_millis(10);

/// One request, or a notification.
#[derive(Debug, Clone, Default)]
pub struct Message {
    /// Declared before.
    pub exchange: Exchange,
    /// The queue's name; of no meaning to an exchange of type `fanout`.
    pub routing_key: String,
    /// Arguments of a queue that is declared and bound before: called as the routing key, durable and
    /// auto-deleted as the exchange. Notifications wait there for listeners still to come.
    pub default_queue: Option<Table>,
    /// JSON.
    pub body: Vec<u8>,
    /// Milliseconds that it may wait in a queue.
    pub expiration: Option<u64>,
    /// Without a queue that takes it this is an error, not a loss.
    pub is_mandatory: bool,
    /// By which its replies are known; none for a cast.
    pub msg_id: Option<String>,
    /// How long a call waits for its last reply. As in `impl_rabbit` that time begins when the broker has
    /// the request, or has said that it cannot take it: it does not run while there is no broker. It does
    /// while the request waits for a broker to answer what another one needs. None for ever.
    pub answered_within: Option<Duration>,
    /// As that, between two replies: the server of a monitored call tells that it is at work.
    pub heard_within: Option<Duration>,
    /// How often it is tried again to send it; none for ever.
    pub retries: Option<u32>,
    /// How long its queue is waited for, where it is missing: of replies, whose clients may come back.
    pub missing_for: Option<Duration>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A reply's body; there may be more.
    Reply(Vec<u8>),
    /// The broker is responsible for it. Not told for calls.
    Taken,
    /// No queue takes it, and it was mandatory: the broker's code and text.
    Undeliverable(u16, String),
    /// It could not be sent.
    Failed(String),
    /// This client cannot be used at all with these options and this broker.
    Unusable(String),
    /// The broker has lost its queues, and no server has answered since.
    Lost,
    /// No reply came in its time.
    TimedOut,
}

/// Makes sense of a reply that is not plain JSON: its call's id, and its body as plain JSON.
pub type Decode = Box<dyn Fn(&Properties, &[u8]) -> Option<(String, Vec<u8>)> + Send + Sync>;

/// See the head of this file.
pub struct Client {
    shared: Arc<Shared>,
}

/// A request under way. Dropped, it is not sent again, and replies to it are nobody's.
pub struct PendingRequest {
    request: Arc<Request>,
    shared: Arc<Shared>,
}

/// What the threads of a client share.
struct Shared {
    options: Options,
    decode: Decode,
    heartbeats: Heartbeats,
    state: Mutex<State>,
    /// The thread has ended.
    has_left: Condvar,
    /// Wakes the thread.
    bell: EventFd,
    /// The client is closed, or dropped: the thread ends.
    is_closing: AtomicBool,
    failures: Arc<Failures>,
}

struct Request {
    message: Message,
    /// Of a reply, which no thread waits for.
    outbox: Option<Arc<Outbox>>,
    /// By which a returned message is known.
    number: u64,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Default)]
struct Progress {
    replies: VecDeque<Vec<u8>>,
    /// The last word on it.
    end: Option<Event>,
    /// The broker has confirmed it.
    is_taken: bool,
    /// The broker has returned it; its confirm is still to come.
    returned: Option<(u16, String)>,
    /// Its owner has gone.
    is_left: bool,
    /// A server has answered: it ran, confirmed or not.
    is_answered: bool,
    /// When the broker has said first that it has it, or cannot have it; or a server has answered.
    told_at: Option<Instant>,
    /// Since when it waits for what the broker is asked for by another one, on this connection.
    held_at: Option<Instant>,
    /// When the last reply has come.
    heard_at: Option<Instant>,
    /// How often it was published.
    publications: u32,
    /// Attempts to send it that have failed.
    failures: u32,
    /// Bodies that a broker has closed a channel over.
    refusals: u32,
    /// Since when its exchange is missing, or the binding by which it gets to a queue.
    displaced_since: Option<Instant>,
    /// Connections that have ended with it under way.
    suspicion: Suspicion,
    /// When a call whose request may be lost ends.
    lost_at: Option<Instant>,
    /// Since when the queue of a reply is missing.
    missing_since: Option<Instant>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl fmt::Debug for PendingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingRequest")
            .field("number", &self.request.number)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// One that is not connected; the first request does that.
    ///
    /// # Errors
    /// `InvalidInput` for options that no broker could be reached with; what the kernel says.
    pub fn new(options: Options, decode: Decode) -> io::Result<Self> {
        let names = [&options.virtual_host, &options.replies.name];
        if options.hosts.is_empty() || !names.iter().all(|name| methods::fits(name)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a client needs a host, and names of at most 255 bytes",
            ));
        }
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            shared: Arc::new(Shared {
                options,
                decode,
                heartbeats: Heartbeats::unconditional()?,
                state: Mutex::new(State::default()),
                has_left: Condvar::new(),
                bell: EventFd::from_flags(flags)?,
                is_closing: AtomicBool::new(false),
                failures: Arc::default(),
            }),
        })
    }

    /// For the replies of one listener; `on_failure` is told of those that the broker will not have. It
    /// is called by the thread of this client.
    #[must_use]
    pub fn outbox(&self, on_failure: Box<dyn Fn(FailedReply) + Send + Sync>) -> Arc<Outbox> {
        Arc::new(Outbox::new(Arc::clone(&self.shared.failures), on_failure))
    }

    /// Sends the reply *message*, and leaves to *outbox* what becomes of it. Never waits.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn reply(&self, message: Message, outbox: &Arc<Outbox>) -> io::Result<()> {
        self.submit(message, Some(Arc::clone(outbox)))?;
        if !self.shared.state.lock().has_thread {
            outbox::tell(&self.shared.failures); // closed, or unusable
        }
        Ok(())
    }

    /// Waits until *outbox* has room; see [`Outbox::wait_for_room`].
    pub fn wait_for_room(&self, outbox: &Outbox, most: usize, deadline: Instant) -> bool {
        outbox.wait_for_room(most, Instant::now())
            || self.hurried(|| outbox.wait_for_room(most, deadline))
    }

    /// Waits until all of *outbox* is confirmed; see [`Outbox::wait_confirmed`].
    pub fn wait_confirmed(&self, outbox: &Outbox, deadline: Instant) -> (usize, usize) {
        self.hurried(|| outbox.wait_confirmed(deadline))
    }

    fn hurried<T>(&self, wait: impl FnOnce() -> T) -> T {
        let hurry = |begins| {
            if self.shared.state.lock().hurry(begins) {
                self.shared.ring();
            }
        };
        hurry(true);
        let outcome = wait();
        hurry(false);
        outcome
    }

    /// Sends *message*, at once where that is possible. Never waits.
    ///
    /// # Errors
    /// `InvalidInput` for names that AMQP has no room for; when the kernel gives no thread.
    pub fn send(&self, message: Message) -> io::Result<PendingRequest> {
        Ok(PendingRequest {
            request: self.submit(message, None)?,
            shared: Arc::clone(&self.shared),
        })
    }

    fn submit(&self, message: Message, outbox: Option<Arc<Outbox>>) -> io::Result<Arc<Request>> {
        if !methods::fits(&message.exchange.name) || !methods::fits(&message.routing_key) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "exchange {:?} and routing key {:?}: AMQP has room for 255 bytes; shorten them",
                    message.exchange.name, message.routing_key
                ),
            ));
        }
        let mut state = self.shared.state.lock();
        if !state.has_thread && state.is_open() {
            // Before the request is anywhere: without a thread there is none. It waits for the lock.
            thread::start(Arc::clone(&self.shared))?;
            state.has_thread = true;
        }
        if let Some(outbox) = &outbox {
            outbox.enter();
        }
        let request = Arc::new(Request {
            message,
            outbox,
            number: state.next_number(),
            progress: Mutex::new(Progress::default()),
            changed: Condvar::new(),
        });
        if state.accept(&request) {
            self.shared.ring();
        }
        drop(state);
        Ok(request)
    }

    /// Whether there is a connection that requests can be sent on.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.state.lock().is_connected()
    }

    /// Ends what is under way, and the connection; waits for that until *deadline*.
    pub fn close(&self, deadline: Instant) {
        let mut state = self.shared.state.lock();
        state.close();
        self.shared.is_closing.store(true, Ordering::Release);
        self.shared.ring();
        while state.has_thread {
            let waited = self.shared.has_left.wait_until(&mut state, deadline);
            if waited.timed_out() {
                break;
            }
        }
    }
}

impl Drop for Client {
    /// The thread ends; that is not waited for. Takes no lock: this may be a forked child, in which
    /// there is no such thread, and the lock may be anyone's.
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Release);
        self.shared.ring();
    }
}

impl PendingRequest {
    /// Waits until something has become of the request.
    #[must_use]
    pub fn wait(&self) -> Event {
        let mut progress = self.request.progress.lock();
        loop {
            let now = Instant::now();
            if let Some(event) = self.request.event(&mut progress, now) {
                return event;
            }
            self.request.sleep(&mut progress, now, None);
        }
    }

    /// As [`PendingRequest::wait`]; none where *deadline* passes first.
    #[must_use]
    pub fn wait_until(&self, deadline: Instant) -> Option<Event> {
        let mut progress = self.request.progress.lock();
        loop {
            let now = Instant::now();
            let event = self.request.event(&mut progress, now);
            if event.is_some() || now >= deadline {
                return event;
            }
            self.request.sleep(&mut progress, now, Some(deadline));
        }
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        self.request.progress.lock().is_left = true;
        if let Some(msg_id) = &self.request.message.msg_id {
            self.shared.state.lock().forget(msg_id);
        }
    }
}

impl Shared {
    /// A full counter wakes as well.
    fn ring(&self) {
        let _ = self.bell.write(1);
    }
}

impl Request {
    /// There is nothing to be sent any more: it was given up, or has ended, or a server that got it
    /// on an earlier connection has answered.
    fn is_over(&self) -> bool {
        let progress = self.progress.lock();
        progress.is_left || progress.is_answered || progress.end.is_some()
    }

    fn is_call(&self) -> bool {
        self.message.msg_id.is_some()
    }

    fn is_monitored(&self) -> bool {
        self.message.heard_within.is_some()
    }

    /// The broker has to tell when no queue takes it: servers may come back later than the broker,
    /// and a default queue may have been deleted. Who misses a fanout is away.
    fn asks_for_return(&self) -> bool {
        self.message.exchange.kind == ExchangeType::Topic || self.message.is_mandatory
    }

    /// It gets to a queue by a binding that a server has made.
    fn needs_binding(&self) -> bool {
        let Message {
            exchange,
            default_queue,
            ..
        } = &self.message;
        exchange.kind == ExchangeType::Topic && !exchange.name.is_empty() && default_queue.is_none()
    }

    /// What has become of it by *now*.
    fn event(&self, progress: &mut Progress, now: Instant) -> Option<Event> {
        if let Some(reply) = progress.replies.pop_front() {
            return Some(Event::Reply(reply));
        }
        if let Some(end) = &progress.end {
            return Some(end.clone());
        }
        if progress.is_taken && !self.is_call() {
            return Some(Event::Taken);
        }
        let has_passed = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if has_passed(progress.lost_at) {
            return Some(Event::Lost);
        }
        has_passed(self.ends_at(progress)).then_some(Event::TimedOut)
    }

    /// Sleeps from *now* on until something may have become of it, or *deadline*. A confirm wakes no caller
    /// of a call, who sleeps no longer than its time would be if it began now.
    fn sleep(
        &self,
        progress: &mut MutexGuard<'_, Progress>,
        now: Instant,
        deadline: Option<Instant>,
    ) {
        let ends_at = self.ends_at(progress).or_else(|| {
            let is_told = progress.told_at.is_some();
            let least = |at: Instant| at.max(now + LEAST_SLEEP);
            self.ends_after(now, now).filter(|_| !is_told).map(least)
        });
        match [deadline, ends_at, progress.lost_at]
            .into_iter()
            .flatten()
            .min()
        {
            None => self.changed.wait(progress),
            Some(until) => {
                let _ = self.changed.wait_until(progress, until);
            }
        }
    }

    /// When a call gives up its reply; none while the broker has said nothing of the request, which does
    /// not wait for what another one needs.
    fn ends_at(&self, progress: &Progress) -> Option<Instant> {
        let Some(told_at) = progress.told_at else {
            return progress.held_at?.checked_add(self.message.answered_within?);
        };
        self.ends_after(told_at, progress.heard_at.unwrap_or(told_at))
    }

    fn ends_after(&self, told_at: Instant, heard_at: Instant) -> Option<Instant> {
        let limits = [
            (told_at, self.message.answered_within),
            (heard_at, self.message.heard_within),
        ];
        let limits = limits.into_iter();
        limits
            .filter_map(|(at, within)| at.checked_add(within?))
            .min()
    }

    /// It waits from *since* on for what another one needs, or longer; none: it does not.
    fn hold(&self, since: Option<Instant>) {
        let mut progress = self.progress.lock();
        progress.held_at = since.map(|now| progress.held_at.unwrap_or(now));
    }

    /// The default queue that it needs, by its name.
    fn default_queue(&self) -> Option<&str> {
        self.message.default_queue.as_ref()?;
        Some(&self.message.routing_key)
    }

    /// For the log: its kind, its method where it has one, its size, and where it goes.
    fn describe(&self) -> String {
        let Message {
            exchange,
            routing_key,
            body,
            ..
        } = &self.message;
        let size = body.len();
        if self.outbox.is_some() {
            return format!("a reply of {size} bytes to {routing_key}");
        }
        let kind = if self.is_call() { "call" } else { "message" };
        let head = envelope::message(body).and_then(|message| envelope::head(&message));
        let of_method = head.map_or_else(String::new, |head| format!(" of {}", head.method));
        let exchange = &exchange.name;
        format!("a {kind}{of_method}, {size} bytes, to exchange {exchange:?}, key {routing_key:?},")
    }

    fn end(&self, event: Event) {
        self.conclude(&mut self.progress.lock(), event);
    }

    /// Notes the last word on it, unless that was said before.
    fn conclude(&self, progress: &mut Progress, event: Event) {
        if progress.end.is_some() || (self.outbox.is_some() && progress.is_taken) {
            return;
        }
        if let Some(outbox) = &self.outbox {
            let was_late = progress.missing_since.is_some();
            outbox.fail(&self.message, was_late, event.clone());
        }
        progress.end = Some(event);
        self.changed.notify_all();
    }

    /// Notes that an attempt to send it has failed; false when that was the last one.
    fn may_try_again(&self, reason: &str) -> bool {
        let mut progress = self.progress.lock();
        if progress.is_left || progress.is_answered || progress.end.is_some() {
            return false;
        }
        progress.failures += 1;
        progress.returned = None;
        let Some(retries) = self.message.retries else {
            return true;
        };
        if progress.failures > retries {
            let text = format!("after {retries} retries: {reason}");
            self.conclude(&mut progress, Event::Failed(text));
            return false;
        }
        true
    }
}
