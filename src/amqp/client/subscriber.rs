//! Listeners of requests and of notifications over AMQP 0-9-1: deliveries in, acknowledgements out.
//!
//! Owns one connection to one of the URL's brokers for all listeners of a transport, a channel for
//! each of them, and the thread that opens and reads them, has declared what they consume
//! (`declaring.rs`), and does so again on another connection when that one is lost. Publishes nothing:
//! a broker that is short of memory reads no more from a connection on which something was published,
//! acknowledgements included, and the listeners would stop. Replies leave by a [`Client`].
//!
//! Three locks, in this order: the state of a subscriber, what a listener consumes, when a listener's
//! thread was seen last. None is held while something waits for the broker.
//!
//! Rules: `Connection` and `Consumer` of `oslo_messaging/_drivers/impl_rabbit.py`: what is done when the
//! broker refuses a declaration, and when a connection is lost.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::locks::{Condvar, Mutex};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::assembler::Incoming;
use super::connection::{Connection, Fault, out_of_order};
use super::conversation::Conversation;
use super::declaring;
use super::delivery::Sink;
use super::dialer::Dialer;
use super::listening::{
    Arrival, Closure, LastSeen, Listening, Queue, Stage, Standing, Step, warn_of_lost,
};
use super::methods::{self, Method, Refusal};
use super::refusals::Verdict;
use super::{Client, Options};
use crate::amqp::heartbeat::{Heartbeats, LONGEST_FREEZE};
use crate::scoreboard::{self, BrokerFigures, BrokerGauges};
use crate::threads::{self, Signals};

const STACK_BYTES: usize = 512 * 1024;

/// See the head of this file.
pub struct Subscriber {
    shared: Arc<Shared>,
}

/// One listener's queues. Dropped, they are consumed no more.
pub struct Subscription {
    listening: Arc<Listening>,
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    heartbeats: Heartbeats,
    state: Mutex<State>,
    /// The thread has ended.
    has_left: Condvar,
    /// Wakes the thread.
    bell: EventFd,
    /// The subscriber is closed, or dropped: the thread ends.
    is_closing: AtomicBool,
    /// A listener may need something.
    has_changed: AtomicBool,
    /// When the listeners' threads were seen last.
    seen: LastSeen,
}

#[derive(Default)]
struct State {
    has_thread: bool,
    is_connected: bool,
    listenings: Vec<Arc<Listening>>,
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").finish_non_exhaustive()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("queues", &self.listening.queues)
            .finish_non_exhaustive()
    }
}

impl Subscriber {
    /// One that will connect as *client* does, when its first listener comes.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn new(client: &Client) -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            shared: Arc::new(Shared {
                options: client.shared.options.clone(),
                heartbeats: client.shared.heartbeats.clone(),
                state: Mutex::default(),
                has_left: Condvar::new(),
                bell: EventFd::from_flags(flags)?,
                is_closing: AtomicBool::new(false),
                has_changed: AtomicBool::new(false),
                seen: Arc::new(Mutex::new(Instant::now())),
            }),
        })
    }

    /// Declares and consumes *queues*, of each of which *prefetch* deliveries may be unsettled; 0 for
    /// no limit. Does not wait for that.
    ///
    /// # Errors
    /// `InvalidInput` for names that AMQP has no room for, or no queue; `NotConnected` once it is
    /// closed; when the kernel gives no thread.
    pub fn subscribe(&self, queues: Vec<Queue>, prefetch: u16) -> io::Result<Subscription> {
        for queue in &queues {
            for name in [&queue.exchange.name, &queue.name, &queue.routing_key] {
                if !methods::fits(name) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("name {name:?}: AMQP has room for 255 bytes; shorten it"),
                    ));
                }
            }
        }
        if queues.is_empty() {
            let text = "a listener needs a queue";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let seen = Arc::clone(&self.shared.seen);
        let listening = Arc::new(Listening::new(queues, prefetch, seen));
        self.shared.touch();
        let mut state = self.shared.state.lock();
        // Under the lock under which the thread ends the last listeners.
        if self.shared.is_closing.load(Ordering::Acquire) {
            let text = "the transport is closed";
            return Err(io::Error::new(io::ErrorKind::NotConnected, text));
        }
        if !state.has_thread {
            start(Arc::clone(&self.shared))?;
            state.has_thread = true;
        }
        state.listenings.push(Arc::clone(&listening));
        drop(state);
        self.shared.ring();
        Ok(Subscription {
            listening,
            shared: Arc::clone(&self.shared),
        })
    }

    /// Ends all listeners and the connection; waits for that until *deadline*.
    pub fn close(&self, deadline: Instant) {
        self.shared.is_closing.store(true, Ordering::Release);
        self.shared.ring();
        let mut state = self.shared.state.lock();
        while state.has_thread {
            let waited = self.shared.has_left.wait_until(&mut state, deadline);
            if waited.timed_out() {
                break;
            }
        }
    }
}

#[cfg(test)]
impl Subscriber {
    pub(super) fn is_connected(&self) -> bool {
        self.shared.state.lock().is_connected
    }

    /// As if no thread of a listener had been seen for so long that they are given up.
    pub(super) fn freeze(&self) {
        *self.shared.seen.lock() -= 2 * LONGEST_FREEZE;
        self.shared.ring();
    }
}

impl Drop for Subscriber {
    /// The thread ends with its last listener; that is not waited for. Takes no lock: this may be a
    /// forked child, in which there is no such thread, and the lock may be anyone's.
    fn drop(&mut self) {
        self.shared.ring();
    }
}

impl Subscription {
    /// Waits until the queues are consumed, or will never be, or *deadline*.
    #[must_use]
    pub fn wait_standing(&self, deadline: Option<Instant>) -> Standing {
        self.listening.wait_standing(deadline)
    }

    /// Waits for a message until *deadline*. Until it is stopped, to be called at least every few
    /// minutes: a process in which no listener does that, or settles a delivery, is given up, and
    /// its messages go to another one.
    #[must_use]
    pub fn next(&self, deadline: Option<Instant>) -> Arrival {
        self.shared.touch();
        let found = self.listening.next(deadline);
        self.shared.touch();
        found
    }

    /// Ends deliveries; waits for that until *deadline*. What was delivered can still be settled.
    /// False when *deadline* passed first: then nothing more is handed out but what nothing delivers again,
    /// and the consumers are cancelled as soon as the broker has answered what it was asked before.
    #[must_use]
    pub fn stop(&self, deadline: Instant) -> bool {
        self.end(Stage::Stopped, deadline)
    }

    /// Gives up what is not settled, deletes queues of its own, and closes the channel; waits for
    /// that until *deadline*. False when *deadline* passed first.
    #[must_use]
    pub fn close(&self, deadline: Instant) -> bool {
        self.end(Stage::Closed, deadline)
    }

    fn end(&self, stage: Stage, deadline: Instant) -> bool {
        self.listening.want(stage);
        self.shared.ring();
        // Looked at after the wish is known: a thread that connects later finds it. Without a
        // connection there is nothing to be closed, and an attempt to connect may take long.
        if !self.shared.state.lock().is_connected {
            self.listening.reach(stage);
        }
        let is_reached = self.listening.wait_reached(stage, deadline);
        if !is_reached {
            self.listening.mute();
        }
        is_reached
    }

    /// Nothing more will come, and what [`Subscription::next`] does not return now it never will: it is
    /// closed, or its subscriber, or its end took too long.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.listening.is_over()
    }

    /// Why the broker has closed the channel since the last time that this was asked.
    #[must_use]
    pub fn take_closures(&self) -> Vec<Closure> {
        self.listening.take_closures()
    }

    /// What arrives from now on goes to *sink*, on the thread that reads, unless something else waits
    /// for [`Subscription::next`]: that is handed out first. So is what *sink* gives back, and what is
    /// no request as oslo.messaging writes it.
    pub fn deliver_to(&self, sink: Sink) {
        self.listening.deliver_to(sink);
    }

    /// Whether a request of this id has begun to run here.
    #[must_use]
    pub fn has_begun(&self, unique_id: &str) -> bool {
        self.listening.has_begun(unique_id)
    }

    /// Acknowledges requests that have waited for *longest*, and that no thread has picked up, as long
    /// as fewer than *most* wait that were; how long each has waited, and how many now do. Nothing
    /// delivers them again.
    #[must_use]
    pub fn acknowledge_old(&self, longest: Duration, most: usize) -> (Vec<Duration>, usize) {
        self.listening.acknowledge_old(longest, most)
    }
}

impl Drop for Subscription {
    /// As that of a [`Subscriber`]: takes no lock.
    fn drop(&mut self) {
        self.listening.leave();
        self.shared.ring();
    }
}

impl Shared {
    /// A full counter wakes as well.
    fn ring(&self) {
        self.has_changed.store(true, Ordering::Release);
        let _ = self.bell.write(1);
    }

    /// A listener's thread is alive.
    fn touch(&self) {
        let was_frozen = {
            let mut seen = self.seen.lock();
            let was_frozen = seen.elapsed() > LONGEST_FREEZE;
            *seen = Instant::now();
            was_frozen
        };
        if was_frozen {
            self.ring();
        }
    }

    /// When the listeners are given up; none while each of them only settles what it has.
    fn freezes_at(&self) -> Option<Instant> {
        let state = self.state.lock();
        let has_consumers = state.listenings.iter().any(|it| it.wants_messages());
        drop(state);
        has_consumers.then(|| *self.seen.lock() + LONGEST_FREEZE)
    }
}

fn start(shared: Arc<Shared>) -> io::Result<()> {
    let name = "amqp-listeners".to_owned();
    threads::start(name, STACK_BYTES, Signals::None, move || {
        let mut thread = Thread {
            dialer: Dialer::new(&shared.options),
            shared,
            channels: HashMap::new(),
            look_at: None,
            figures: None,
            counted: BrokerGauges::default(),
        };
        while !thread.leaves() {
            thread.run();
        }
    })
}

struct Thread {
    shared: Arc<Shared>,
    dialer: Dialer,
    /// Whose each open channel is.
    channels: HashMap<u16, Arc<Listening>>,
    /// When to ask the listeners what they need though nothing has changed.
    look_at: Option<Instant>,
    figures: Option<&'static BrokerFigures>,
    /// What this is counted as there.
    counted: BrokerGauges,
}

impl Conversation for Thread {
    fn options(&self) -> &Options {
        &self.shared.options
    }

    fn bell(&self) -> &EventFd {
        &self.shared.bell
    }

    fn is_closing(&self) -> bool {
        self.shared.is_closing.load(Ordering::Acquire)
    }

    fn closed(&mut self, channel: u16, refusal: &Refusal) {
        if let Some(listening) = self.channels.remove(&channel) {
            listening.end_epoch(Some(refusal));
        }
    }

    fn take(&mut self, connection: &mut Connection, incoming: Incoming) -> Result<(), Fault> {
        match incoming {
            Incoming::Heartbeat => Ok(()),
            Incoming::Content(
                channel,
                Method::Deliver {
                    consumer,
                    tag,
                    source,
                },
                properties,
                body,
            ) => {
                let listening = self.channels.get(&channel);
                let is_known = listening.is_some_and(|it| {
                    if properties.is_unreadable {
                        it.refuse(consumer, tag, &source, body.len())
                    } else {
                        it.deliver(consumer, tag, properties, body)
                    }
                });
                if is_known {
                    return Ok(());
                }
                Err(out_of_order(&Method::Deliver {
                    consumer,
                    tag,
                    source,
                }))
            }
            Incoming::Content(_, method, ..) => Err(out_of_order(&method)),
            Incoming::Method(channel, method) => self.take_method(connection, channel, method),
        }
    }
}

impl Thread {
    fn take_method(
        &mut self,
        connection: &mut Connection,
        channel: u16,
        method: Method,
    ) -> Result<(), Fault> {
        match connection.obey(channel, method)? {
            None => Ok(()),
            Some(Method::Cancel { consumer }) => {
                let Some(listening) = self.channels.get(&channel) else {
                    return Err(out_of_order(&Method::Cancel { consumer }));
                };
                listening.cancelled(consumer);
                self.shared.has_changed.store(true, Ordering::Release);
                let names: Vec<_> = listening.queues.iter().map(|it| &*it.name).collect();
                let name = names.get(usize::from(consumer).wrapping_sub(1));
                tracing::warn!(
                    "the broker has cancelled the consumer of queue {}; it is declared again",
                    name.unwrap_or(&"?")
                );
                Ok(())
            }
            Some(Method::ChannelClose(refusal)) => {
                let Some(listening) = self.channels.remove(&channel) else {
                    return Err(out_of_order(&Method::ChannelClose(refusal)));
                };
                // Before the broker hears that the channel is closed.
                listening.end_epoch(Some(&refusal));
                connection.channel_closed(channel)?;
                self.shared.has_changed.store(true, Ordering::Release);
                tracing::error!("AMQP server has closed channel {channel}: {refusal}");
                Ok(())
            }
            Some(method) => Err(out_of_order(&method)),
        }
    }

    /// Whether nothing is left to be done. Decided under the lock of those who come.
    fn leaves(&self) -> bool {
        self.end_offline();
        let mut lost = 0;
        let mut state = self.shared.state.lock();
        if self.is_closing() {
            for listening in state.listenings.drain(..) {
                listening.end_epoch(None);
                lost += listening.advance(Stage::Closed);
            }
        }
        let is_left = state.listenings.is_empty();
        state.has_thread = !is_left;
        drop(state);
        warn_of_lost(lost);
        if is_left {
            self.shared.has_left.notify_all();
        }
        is_left
    }

    /// Ends listeners while there is no connection.
    fn end_offline(&self) {
        let mut lost = 0;
        self.shared.state.lock().listenings.retain(|listening| {
            let step = listening.step(Instant::now());
            let is_closed = matches!(step, Ok(Step::Close(_)));
            if is_closed {
                lost += listening.advance(Stage::Closed);
            }
            !is_closed
        });
        warn_of_lost(lost);
    }

    /// From one attempt to connect to the end of the connection, and the pause after it.
    fn run(&mut self) {
        if self.is_frozen() {
            self.wait_for_bell(None);
            return;
        }
        let shared = Arc::clone(&self.shared);
        let dialled = self.dialer.connect(
            &shared.options,
            &shared.heartbeats,
            &shared.bell,
            &shared.is_closing,
        );
        let (mut connection, host) = match dialled {
            Ok(connected) => connected,
            Err((text, is_permanent)) => {
                if is_permanent && !self.dialer.has_connected() {
                    let ended = std::mem::take(&mut shared.state.lock().listenings);
                    for listening in ended {
                        listening.end(Standing::Unusable(text.clone()));
                    }
                    return;
                }
                let pause = self.dialer.after_failure(&shared.options, &text);
                self.rest(pause);
                return;
            }
        };
        let is_again = self.dialer.begin();
        shared.state.lock().is_connected = true;
        if is_again {
            tracing::info!("Reconnected to AMQP server");
        }
        shared.has_changed.store(true, Ordering::Release);
        self.count(is_again);
        let outcome = self.talk(&mut connection);
        // Before the socket is closed: what is said of these epochs goes nowhere.
        for listening in self.channels.drain().map(|(_, listening)| listening) {
            listening.end_epoch(None);
        }
        shared.state.lock().is_connected = false;
        self.count(false);
        match outcome {
            Ok(()) => self.leave(&mut connection),
            // The end of what was being asked.
            Err(_) if self.is_closing() => self.leave(&mut connection),
            Err(fault) => {
                connection.break_off(&fault);
                let pause = Dialer::after_loss(&shared.options, &host, &fault.text());
                self.rest(pause);
            }
        }
    }

    /// Ends a connection that is not needed; one for a listener that comes now is a first one.
    fn leave(&mut self, connection: &mut Connection) {
        self.part(connection);
        self.dialer = Dialer::new(&self.shared.options);
    }

    fn is_frozen(&self) -> bool {
        let freezes_at = self.shared.freezes_at();
        freezes_at.is_some_and(|at| Instant::now() > at)
    }

    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_closing() {
            self.wait_for_bell(Some(until));
            self.end_offline();
            if self.shared.state.lock().listenings.is_empty() {
                return;
            }
        }
    }

    /// Until no listener is left.
    fn talk(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        loop {
            while let Some(incoming) = connection.next()? {
                self.take(connection, incoming)?;
            }
            if self.is_closing() {
                return Ok(());
            }
            if self.is_frozen() {
                let seconds = LONGEST_FREEZE.as_secs();
                let text = format!("no listener was alive for {seconds} s");
                return Err(Fault::Lost(text));
            }
            if self.has_to_look() {
                if let Some((listening, step)) = self.step() {
                    self.follow(connection, &listening, step)?;
                    continue;
                }
                if self.shared.state.lock().listenings.is_empty() {
                    return Ok(());
                }
            }
            let until = [self.look_at, self.shared.freezes_at()];
            connection.read(until.into_iter().flatten().min(), &self.shared.bell)?;
        }
    }

    fn has_to_look(&self) -> bool {
        self.shared.has_changed.load(Ordering::Acquire)
            || self.look_at.is_some_and(|at| Instant::now() >= at)
    }

    /// The next thing that a listener needs.
    fn step(&mut self) -> Option<(Arc<Listening>, Step)> {
        self.shared.has_changed.store(false, Ordering::Release);
        let now = Instant::now();
        self.look_at = None;
        for listening in &self.shared.state.lock().listenings {
            match listening.step(now) {
                Ok(step) => {
                    // The others are looked at afterwards.
                    self.shared.has_changed.store(true, Ordering::Release);
                    return Some((Arc::clone(listening), step));
                }
                Err(until) => self.look_at = [self.look_at, until].into_iter().flatten().min(),
            }
        }
        None
    }

    fn follow(
        &mut self,
        connection: &mut Connection,
        listening: &Arc<Listening>,
        step: Step,
    ) -> Result<(), Fault> {
        match step {
            Step::Declare => self.declare(connection, listening)?,
            Step::Bind => Self::bind_again(connection, listening)?,
            Step::Abandon(channel) => self.abandon(connection, listening, channel)?,
            Step::Cancel(channel) => self.cancel(connection, listening, channel)?,
            Step::Close(channel) => self.close(connection, listening, channel)?,
        }
        self.count(false);
        Ok(())
    }

    fn declare(
        &mut self,
        connection: &mut Connection,
        listening: &Arc<Listening>,
    ) -> Result<(), Fault> {
        let outcome = self.try_to_declare(connection, listening);
        match &outcome {
            Ok(()) => listening.consuming(),
            Err(Fault::Refused(refusal)) if listening.is_new() => self.refuse(listening, refusal),
            Err(Fault::Refused(refusal)) => Self::put_off(listening, refusal),
            // So RabbitMQ refuses some queues, each time, and says that something inside it went wrong.
            Err(Fault::Closed(refusal)) if refusal.verdict() != Verdict::Other => {
                if listening.is_new() && refusal.is_final() {
                    self.refuse(listening, refusal);
                } else {
                    Self::put_off(listening, refusal);
                    self.put_last(listening);
                }
            }
            // On the next connection the others come first: this may be the one that is not answered.
            Err(_) => self.put_last(listening),
        }
        match outcome {
            Err(Fault::Refused(_)) => Ok(()),
            outcome => outcome,
        }
    }

    /// Its first attempt was refused: the listener learns it, and does not come about.
    fn refuse(&self, listening: &Arc<Listening>, refusal: &Refusal) {
        self.forget(listening);
        listening.end(Standing::Refused(refusal.code, refusal.to_string()));
    }

    /// It is declared again later. The others go on.
    fn put_off(listening: &Arc<Listening>, refusal: &Refusal) {
        let name = listening.queues.first().map_or("", |queue| &queue.name);
        let pause = listening.rest(Instant::now());
        tracing::error!(
            "Failed to declare consumer for topic '{name}': {refusal} (trying again in {} s)",
            pause.as_secs()
        );
    }

    fn put_last(&self, listening: &Arc<Listening>) {
        let mut state = self.shared.state.lock();
        let is_other = |other: &Arc<Listening>| !Arc::ptr_eq(other, listening);
        state.listenings.sort_by_key(|other| !is_other(other));
    }

    fn forget(&self, listening: &Arc<Listening>) {
        let mut state = self.shared.state.lock();
        state
            .listenings
            .retain(|other| !Arc::ptr_eq(other, listening));
    }

    fn try_to_declare(
        &mut self,
        connection: &mut Connection,
        listening: &Arc<Listening>,
    ) -> Result<(), Fault> {
        let mut channel = self.open_channel(connection)?;
        for queue in &listening.queues {
            channel = declaring::declare_queue(self, connection, channel, queue)?;
        }
        if listening.prefetch > 0 {
            let request = methods::qos(channel, listening.prefetch);
            self.ask(connection, channel, request, &Method::QosOk)?;
        }
        // Deliveries may come before the answer.
        self.channels.insert(channel, Arc::clone(listening));
        listening.open(channel, Box::new(Arc::clone(&connection.link)));
        for (number, queue) in (1_u16..).zip(&listening.queues) {
            let arguments = listening.consumer_arguments(number, queue);
            let request = methods::consume(channel, &queue.name, number, &arguments);
            let outcome = self.ask(connection, channel, request, &Method::ConsumeOk);
            outcome.map_err(|fault| fault.of(|| format!("consumer of queue {:?}", queue.name)))?;
        }
        Ok(())
    }

    /// Makes the bindings again that went with an exchange, as when an operator deletes it: neither the
    /// server nor who sends to it is told. On a channel of its own, since what is refused closes it, and
    /// without waiting: the answers are those of a channel that is being closed.
    fn bind_again(connection: &mut Connection, listening: &Listening) -> Result<(), Fault> {
        listening.bind(Instant::now());
        if !connection.has_free_channel() {
            return Ok(());
        }
        let channel = connection.new_channel()?;
        connection.link.queue(methods::channel_open(channel))?;
        for queue in &listening.queues {
            let name = &queue.exchange.name;
            if name.is_empty() {
                continue;
            }
            let declare = methods::exchange_declare(channel, &queue.exchange);
            connection.link.queue(declare)?;
            let bind = methods::queue_bind(channel, &queue.name, name, &queue.routing_key);
            connection.link.queue(bind)?;
        }
        connection.close_channel(channel)
    }

    /// Closes a channel that has lost a consumer; all of it is declared again.
    fn abandon(
        &mut self,
        connection: &mut Connection,
        listening: &Arc<Listening>,
        channel: u16,
    ) -> Result<(), Fault> {
        self.channels.remove(&channel);
        listening.end_epoch(None);
        connection.close_channel(channel)
    }

    /// Nothing more is to be delivered.
    fn cancel(
        &mut self,
        connection: &mut Connection,
        listening: &Arc<Listening>,
        channel: u16,
    ) -> Result<(), Fault> {
        for (number, _) in (1_u16..).zip(&listening.queues) {
            let request = methods::cancel(channel, number);
            let outcome = self.ask(connection, channel, request, &Method::CancelOk);
            match outcome {
                Err(Fault::Refused(_)) => return Ok(()), // closed: nothing is delivered any more
                outcome => outcome?,
            }
        }
        listening.reach(Stage::Stopped);
        Ok(())
    }

    fn close(
        &mut self,
        connection: &mut Connection,
        listening: &Arc<Listening>,
        channel: Option<u16>,
    ) -> Result<(), Fault> {
        self.forget(listening);
        let outcome = match channel {
            Some(channel) => self.close_channel(connection, listening, channel),
            None => Ok(()),
        };
        listening.reach(Stage::Closed);
        outcome
    }

    fn close_channel(
        &mut self,
        connection: &mut Connection,
        listening: &Arc<Listening>,
        channel: u16,
    ) -> Result<(), Fault> {
        let mut outcome = Ok(());
        for queue in listening.queues.iter().filter(|queue| queue.is_own) {
            let request = methods::queue_delete(channel, &queue.name);
            outcome = self.ask(connection, channel, request, &Method::QueueDeleteOk);
            if outcome.is_err() {
                break;
            }
        }
        match outcome {
            Ok(()) => self.abandon(connection, listening, channel),
            Err(Fault::Refused(_)) => Ok(()), // closed by the broker
            outcome => outcome,
        }
    }

    /// Shows what has changed to those who look at the process.
    fn count(&mut self, is_again: bool) {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let queues = self
            .channels
            .values()
            .map(|listening| listening.queues.len());
        let gauges = BrokerGauges {
            connections: u32::from(self.shared.state.lock().is_connected),
            channels: count(self.channels.len()),
            queues: count(queues.sum()),
            unconfirmed: 0,
        };
        // The process may have got its row after an earlier connection.
        let figures = scoreboard::current().broker();
        if let Some(before) = self.figures.replace(figures) {
            before.change(self.counted, BrokerGauges::default());
        }
        figures.change(BrokerGauges::default(), gauges);
        self.counted = gauges;
        if is_again {
            figures.reconnected();
        }
    }
}
