//! What one listener consumes, and what has arrived for it.
//!
//! Owns the deliveries that no thread of the listener has taken, and the epochs of its channel: the
//! time between two openings, in which delivery tags mean something. A tag is never sent in another
//! epoch than its own. Declares nothing and reads nothing: that is the subscriber's thread.
//!
//! Rules: AMQP 0-9-1, `basic.deliver` and `basic.ack` (a tag is valid only within the channel it came
//! from); RabbitMQ's `basic.nack`, and its streams, which deliver nothing a second time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::locks::{Condvar, Mutex};

use super::begun::Begun;
use super::delivery::{Delivery, PickUp, Settling, Sink};
use super::envelope;
use super::methods::{self, Exchange, Properties, Refusal, Source, Table, Value};
use super::state::Outlet;

/// Between the first two attempts to declare what the broker has refused after it was consumed.
const RETRY_REFUSED: Duration = Duration::from_secs(2);
/// The longest of those pauses. An attempt may cost the connection of all listeners.
const LONGEST_RETRY_REFUSED: Duration = Duration::from_secs(15);
/// How often what is consumed is bound again: no broker tells that an exchange was deleted. In tests longer
/// than the test waits: what a script expects does not depend on how fast it is.
pub(super) const BIND_EVERY: Duration = Duration::from_secs(if cfg!(test) { 3600 } else { 60 });
/// Where a stream is read from by one that has read nothing of it.
const STREAM_OFFSET: &str = "x-stream-offset";

/// A queue that a listener consumes, as it is declared.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own; AMQP has bits for them"
)]
pub struct Queue {
    /// What it is bound to.
    pub exchange: Exchange,
    /// At most 255 bytes.
    pub name: String,
    /// Of its binding.
    pub routing_key: String,
    /// It outlives the broker's process.
    pub is_durable: bool,
    /// It goes with its last consumer.
    pub is_auto_delete: bool,
    /// Of `queue.declare`.
    pub arguments: Table,
    /// Of `basic.consume`.
    pub consumer_arguments: Table,
    /// Its consumers go on behind what they have read.
    pub is_stream: bool,
    /// Its name is no other listener's: it is deleted when the listener ends.
    pub is_own: bool,
}

/// What has become of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Its queues were declared and are consumed, or will be again.
    Consuming,
    /// The broker refuses to declare one of them: its code; which, the broker's words and what can be done.
    Refused(u16, String),
    /// No broker can be used with these options.
    Unusable(String),
    /// It was closed before they were, or its subscriber was.
    Closed,
    /// Nothing yet.
    TimedOut,
}

/// What a listener gets when it asks for a message.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one exists at a time; a box would cost each message an allocation"
)]
pub enum Arrival {
    /// One.
    Message(Delivery),
    /// The listener is stopped, and nothing is left that is still handed out; or the broker has closed
    /// its channel, and why was not asked yet.
    Interrupted,
    /// Nothing yet.
    TimedOut,
}

/// How far a listener has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    #[default]
    Consuming,
    /// Nothing more is delivered; what was can still be settled.
    Stopped,
    Closed,
}

/// See the head of this file.
pub(super) struct Listening {
    pub(super) queues: Vec<Queue>,
    /// Deliveries of each queue that may be unsettled; 0 for no limit.
    pub(super) prefetch: u16,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Its subscription was dropped.
    is_dropped: AtomicBool,
    /// When a thread of a listener of this subscriber was seen last.
    seen: LastSeen,
}

/// See [`Listening`]. Locked last.
pub(super) type LastSeen = Arc<Mutex<Instant>>;

#[derive(Default)]
struct Inner {
    opening: Option<Opening>,
    /// How many openings there were.
    epoch: u64,
    inbox: VecDeque<Delivery>,
    standing: Option<Standing>,
    wanted: Stage,
    reached: Stage,
    /// The listener does not wait for its end any longer: nothing is handed out but what nothing delivers
    /// again, though the broker may still deliver.
    is_muted: bool,
    /// The broker has cancelled a consumer.
    is_cancelled: bool,
    /// Not declared again before.
    rests_until: Option<Instant>,
    /// When all queues were bound.
    bound_at: Option<Instant>,
    /// How often in turn the broker has refused it.
    refusals: u32,
    /// Where to go on in a stream, by the number of its queue.
    offsets: HashMap<u16, i64>,
    /// Why the broker has closed the channel, each time.
    closures: Vec<Closure>,
    /// Takes what arrives instead of the inbox, where it can.
    sink: Option<Sink>,
    /// Deliveries that are neither picked up nor settled, by epoch and tag: in the order of arrival.
    waiting: BTreeMap<(u64, u64), Waiting>,
    begun: Begun,
}

/// Why the broker has closed a channel, and how long the first delivery had waited then that no thread
/// had picked up.
pub type Closure = (String, Option<Duration>);

/// A delivery that waits for a thread.
struct Waiting {
    since: Instant,
    /// It was acknowledged, since it had waited for long; nothing delivers it again.
    is_early: bool,
}

/// An open channel.
struct Opening {
    channel: u16,
    outlet: Box<dyn Outlet>,
}

/// What a listener needs from the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Declare,
    Bind,
    /// Its channel has lost a consumer, and is closed.
    Abandon(u16),
    Cancel(u16),
    /// On this channel, if there is one.
    Close(Option<u16>),
}

impl Listening {
    pub(super) fn new(queues: Vec<Queue>, prefetch: u16, seen: LastSeen) -> Self {
        Self {
            queues,
            prefetch,
            inner: Mutex::default(),
            changed: Condvar::new(),
            is_dropped: AtomicBool::new(false),
            seen,
        }
    }

    fn say(&self, inner: &Inner, epoch: u64, frame: impl FnOnce(u16) -> Vec<u8>) -> bool {
        match &inner.opening {
            // Under the lock: the broker hears nothing of the channel after it has ended here.
            Some(opening) if inner.epoch == epoch => {
                opening.outlet.queue(frame(opening.channel));
                *self.seen.lock() = Instant::now();
                true
            }
            _ => false,
        }
    }

    // ---- for the listener ------------------------------------------------------------------------

    pub(super) fn wait_standing(&self, deadline: Option<Instant>) -> Standing {
        let mut inner = self.inner.lock();
        loop {
            if let Some(standing) = &inner.standing {
                return standing.clone();
            }
            if self.wait(&mut inner, deadline) {
                return inner.standing.clone().unwrap_or(Standing::TimedOut);
            }
        }
    }

    pub(super) fn next(&self, deadline: Option<Instant>) -> Arrival {
        let mut inner = self.inner.lock();
        loop {
            if let Some(delivery) = inner.take_next() {
                return Arrival::Message(delivery);
            }
            if inner.is_muted || inner.reached > Stage::Consuming || !inner.closures.is_empty() {
                return Arrival::Interrupted;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Arrival::TimedOut;
            }
            self.wait(&mut inner, deadline);
        }
    }

    /// Whether *deadline* has passed.
    fn wait(
        &self,
        inner: &mut crate::locks::MutexGuard<'_, Inner>,
        deadline: Option<Instant>,
    ) -> bool {
        match deadline {
            None => {
                self.changed.wait(inner);
                false
            }
            Some(deadline) => self.changed.wait_until(inner, deadline).timed_out(),
        }
    }

    pub(super) fn want(&self, stage: Stage) {
        let mut inner = self.inner.lock();
        inner.wanted = inner.wanted.max(stage);
        if inner.opening.is_none() && stage == Stage::Stopped {
            // Nothing can arrive; a channel that is about to be opened is looked at once more.
            inner.reached = inner.reached.max(stage);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// False when *deadline* passed first.
    pub(super) fn wait_reached(&self, stage: Stage, deadline: Instant) -> bool {
        let mut inner = self.inner.lock();
        while inner.reached < stage {
            if self.wait(&mut inner, Some(deadline)) {
                return inner.reached >= stage;
            }
        }
        true
    }

    /// Hands out nothing more but what nothing delivers again. The rest is given back once the broker
    /// delivers nothing more: before, it would come again at once.
    pub(super) fn mute(&self) {
        let mut inner = self.inner.lock();
        inner.is_muted = true;
        if inner.is_quiet() {
            // The broker has answered since the wait for it ended.
            inner.give_back();
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Nothing more will come: what `next` does not return now it never will.
    pub(super) fn is_over(&self) -> bool {
        let inner = self.inner.lock();
        inner.is_muted || inner.reached == Stage::Closed
    }

    pub(super) fn leave(&self) {
        self.is_dropped.store(true, Ordering::Release);
    }

    pub(super) fn take_closures(&self) -> Vec<Closure> {
        std::mem::take(&mut self.inner.lock().closures)
    }

    /// What arrives from now on goes to *sink*, where it can.
    pub(super) fn deliver_to(&self, sink: Sink) {
        let mut inner = self.inner.lock();
        let unused = if inner.reached < Stage::Closed {
            inner.sink.replace(sink)
        } else {
            Some(sink)
        };
        drop(inner);
        drop(unused); // what it holds may need a lock of its own
    }

    pub(super) fn has_begun(&self, unique_id: &str) -> bool {
        self.inner.lock().begun.has(unique_id)
    }

    /// Acknowledges what has waited for a thread for *longest*, before the broker closes the channel
    /// over it, as long as fewer than *most* wait that were; how long each has, and how many now do.
    /// Nothing after a stop: what no thread takes then goes back to the broker, and it would be lost.
    pub(super) fn acknowledge_old(&self, longest: Duration, most: usize) -> (Vec<Duration>, usize) {
        let mut inner = self.inner.lock();
        let mut early = inner.waiting.values().filter(|it| it.is_early).count();
        if inner.wanted > Stage::Consuming || inner.is_muted {
            return (Vec::new(), early);
        }
        let epoch = inner.epoch;
        let tags: Vec<_> = inner
            .waiting
            .range((epoch, 0)..=(epoch, u64::MAX))
            .take_while(|(_, waiting)| waiting.since.elapsed() > longest)
            .filter(|(_, waiting)| !waiting.is_early)
            .take(most.saturating_sub(early))
            .map(|((_, tag), _)| *tag)
            .collect();
        let mut waits = Vec::new();
        for tag in tags {
            if !self.say(&inner, epoch, |channel| methods::ack(channel, tag)) {
                break;
            }
            if let Some(waiting) = inner.waiting.get_mut(&(epoch, tag)) {
                waiting.is_early = true;
                waits.push(waiting.since.elapsed());
                early += 1;
            }
        }
        (waits, early)
    }

    // ---- for the thread --------------------------------------------------------------------------

    /// What has to be done next, and when to ask again though nothing has changed.
    pub(super) fn step(&self, now: Instant) -> Result<Step, Option<Instant>> {
        let inner = self.inner.lock();
        let channel = inner.opening.as_ref().map(|opening| opening.channel);
        if inner.wanted == Stage::Closed || self.is_dropped.load(Ordering::Acquire) {
            return Ok(Step::Close(channel));
        }
        match channel {
            // After a stop the channel stays: by it what was delivered is settled.
            Some(channel) if inner.is_cancelled && inner.wanted == Stage::Consuming => {
                Ok(Step::Abandon(channel))
            }
            Some(channel) if inner.wanted == Stage::Stopped && !inner.is_quiet() => {
                Ok(Step::Cancel(channel))
            }
            None if inner.wanted == Stage::Consuming => match inner.rests_until {
                Some(until) if now < until => Err(Some(until)),
                _ => Ok(Step::Declare),
            },
            Some(_) if inner.wanted == Stage::Consuming => {
                match inner.bound_at.map(|at| at + BIND_EVERY) {
                    Some(due) if now >= due => Ok(Step::Bind),
                    due => Err(due),
                }
            }
            _ => Err(None),
        }
    }

    /// It is to be consumed, so that a thread has to take what arrives.
    pub(super) fn wants_messages(&self) -> bool {
        self.inner.lock().wanted == Stage::Consuming && !self.is_dropped.load(Ordering::Acquire)
    }

    /// It was never consumed.
    pub(super) fn is_new(&self) -> bool {
        self.inner.lock().standing.is_none()
    }

    /// Of `basic.consume`, for the queue of that number.
    pub(super) fn consumer_arguments(&self, number: u16, queue: &Queue) -> Table {
        if !queue.is_stream {
            return queue.consumer_arguments.clone();
        }
        let offset = self.inner.lock().offsets.get(&number).copied();
        let offset = offset.map_or_else(|| Value::Text("last".to_owned()), Value::Int);
        vec![(STREAM_OFFSET.to_owned(), offset)]
    }

    /// A channel is open; its tags begin to mean something.
    pub(super) fn open(&self, channel: u16, outlet: Box<dyn Outlet>) {
        let mut inner = self.inner.lock();
        inner.epoch += 1;
        inner.opening = Some(Opening { channel, outlet });
        inner.is_cancelled = false;
        inner.rests_until = None;
        if inner.reached < Stage::Closed {
            inner.reached = Stage::Consuming;
        }
    }

    /// All queues are consumed.
    pub(super) fn consuming(&self) {
        let mut inner = self.inner.lock();
        inner.standing = Some(Standing::Consuming);
        inner.bound_at = Some(Instant::now());
        inner.refusals = 0;
        drop(inner);
        self.changed.notify_all();
    }

    /// Its queues are bound again now.
    pub(super) fn bind(&self, now: Instant) {
        self.inner.lock().bound_at = Some(now);
    }

    /// The channel is closed: its tags mean nothing any more, and what no thread has taken is
    /// delivered again, unless it was acknowledged. Says why where the broker has closed it.
    pub(super) fn end_epoch(&self, reason: Option<&Refusal>) {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        inner.opening = None;
        inner.is_cancelled = false;
        let waiting = &inner.waiting;
        inner.inbox.retain(|delivery| is_last(waiting, delivery));
        let mut late = inner.waiting.values().filter(|it| !it.is_early);
        let longest = late.next().map(|waiting| waiting.since.elapsed());
        inner.waiting.retain(|_, waiting| waiting.is_early);
        if let Some(Refusal { code, text, .. }) = reason {
            inner.closures.push((format!("{code} {text}"), longest));
        }
        if inner.wanted == Stage::Stopped {
            inner.reached = inner.reached.max(Stage::Stopped);
        }
        drop(guard);
        self.changed.notify_all();
    }

    /// The broker has cancelled the consumer of that number. A stream may begin once more.
    pub(super) fn cancelled(&self, number: u16) {
        let mut inner = self.inner.lock();
        inner.is_cancelled = true;
        inner.offsets.remove(&number);
    }

    /// The broker has refused it: it is not declared again for a time, which is longer each time.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        let mut inner = self.inner.lock();
        let pause = RETRY_REFUSED * 2_u32.saturating_pow(inner.refusals.min(16));
        let pause = pause.min(LONGEST_RETRY_REFUSED);
        inner.refusals = inner.refusals.saturating_add(1);
        inner.rests_until = Some(now + pause);
        pause
    }

    /// It does not come about.
    /// No lock may be held: see [`warn_of_lost`].
    pub(super) fn end(&self, standing: Standing) {
        self.inner.lock().standing = Some(standing);
        self.reach(Stage::Closed);
    }

    /// No lock may be held: see [`warn_of_lost`].
    pub(super) fn reach(&self, stage: Stage) {
        warn_of_lost(self.advance(stage));
    }

    /// As [`Listening::reach`]; how many requests are lost, which nothing delivers again.
    pub(super) fn advance(&self, stage: Stage) -> usize {
        let mut inner = self.inner.lock();
        inner.reached = inner.reached.max(stage);
        if inner.is_muted && stage == Stage::Stopped {
            inner.give_back();
        }
        let mut sink = None;
        let mut lost = 0;
        if stage == Stage::Closed {
            lost = inner.lose_inbox(); // each delivery holds this
            inner.standing.get_or_insert(Standing::Closed);
            sink = inner.sink.take();
        }
        drop(inner);
        drop(sink); // what it holds may need a lock of its own
        self.changed.notify_all();
        lost
    }

    /// A message for the consumer of that number whose properties cannot be read. It would be delivered
    /// again for ever: the broker is told to forget it, or to move it to the queue's dead letters. False
    /// when there is no such consumer.
    pub(super) fn refuse(&self, number: u16, tag: u64, source: &Source, size: usize) -> bool {
        let Some(queue) = self.queue(number) else {
            return false;
        };
        let inner = self.inner.lock();
        // A stream keeps its messages, and knows no dead letters.
        let frame = if queue.is_stream {
            methods::ack
        } else {
            methods::reject
        };
        self.say(&inner, inner.epoch, |channel| frame(channel, tag));
        drop(inner);
        let Source {
            exchange,
            routing_key,
        } = source;
        let name = &queue.name;
        tracing::error!(
            "a message whose properties cannot be read is rejected: queue {name:?}, exchange {exchange:?}, \
             routing key {routing_key:?}, {size} bytes"
        );
        true
    }

    fn queue(&self, number: u16) -> Option<&Queue> {
        self.queues.get(usize::from(number).wrapping_sub(1))
    }

    /// A message for the consumer of that number, from 1 on; false when there is none.
    pub(super) fn deliver(
        self: &Arc<Self>,
        number: u16,
        tag: u64,
        properties: Properties,
        body: Vec<u8>,
    ) -> bool {
        let Some(queue) = self.queue(number) else {
            return false;
        };
        let mut inner = self.inner.lock();
        if let (true, Some(offset)) = (queue.is_stream, properties.stream_offset) {
            inner.offsets.insert(number, offset.saturating_add(1));
        }
        let epoch = inner.epoch;
        if !queue.is_stream {
            let since = Instant::now();
            let is_early = false;
            let waiting = Waiting { since, is_early };
            inner.waiting.insert((epoch, tag), waiting);
        }
        // What is in the inbox comes first.
        let sink = inner.sink.clone();
        let sink = sink.filter(|_| inner.inbox.is_empty() && !inner.is_muted);
        drop(inner);
        let message = properties
            .is_plain_json()
            .then(|| envelope::message(&body))
            .flatten();
        let head = message.as_deref().and_then(envelope::head);
        let mut delivery = Delivery::new(properties, body, message, self.clone(), epoch, tag);
        delivery.is_kept = !queue.is_stream;
        let left = match (sink, head) {
            (Some(sink), Some(head)) => sink(delivery, head),
            _ => Some(delivery),
        };
        let Some(delivery) = left else { return true };
        let mut inner = self.inner.lock();
        // Nothing ends an epoch but the thread that delivers.
        if inner.reached < Stage::Closed {
            inner.inbox.push_back(delivery);
        }
        drop(inner);
        self.changed.notify_all();
        true
    }
}

impl Settling for Listening {
    fn settle(&self, epoch: u64, tag: u64, frame: fn(u16, u64) -> Vec<u8>) -> bool {
        let mut inner = self.inner.lock();
        let waiting = inner.waiting.remove(&(epoch, tag));
        // The broker closes the channel over a tag that it hears of twice.
        let is_early = waiting.is_some_and(|waiting| waiting.is_early);
        !is_early && self.say(&inner, epoch, |channel| frame(channel, tag))
    }

    fn pick_up(&self, epoch: u64, tag: u64, is_kept: bool, unique_id: Option<&str>) -> PickUp {
        let mut inner = self.inner.lock();
        let waiting = inner.waiting.remove(&(epoch, tag));
        let is_early = waiting.is_some_and(|waiting| waiting.is_early);
        let acknowledge = |channel| methods::ack(channel, tag);
        if is_early || !is_kept {
            // Nothing delivers it again: it runs here or nowhere, also when the listener stops.
            let may_run = inner.begun.claim(unique_id);
            if !is_early {
                self.say(&inner, epoch, acknowledge);
            }
            return if may_run { PickUp::Run } else { PickUp::Twice };
        }
        if inner.is_quiet() || inner.is_muted {
            self.say(&inner, epoch, |channel| methods::requeue(channel, tag));
            return PickUp::GivenBack;
        }
        let may_run = inner.begun.claim(unique_id);
        let is_said = self.say(&inner, epoch, acknowledge);
        match (may_run, is_said) {
            (true, true) => PickUp::Run,
            (true, false) => {
                // Before anything ran: the broker still has it, and will deliver it again.
                inner.begun.discard(unique_id);
                PickUp::Lost
            }
            (false, true) => PickUp::Twice,
            (false, false) => PickUp::Lost,
        }
    }

    fn give_back(&self, epoch: u64, tag: u64, is_kept: bool) -> bool {
        let mut inner = self.inner.lock();
        let waiting = inner.waiting.remove(&(epoch, tag));
        if !is_kept {
            // A stream sends no more than is unacknowledged.
            self.say(&inner, epoch, |channel| methods::ack(channel, tag));
            return false;
        }
        if waiting.as_ref().is_some_and(|waiting| waiting.is_early) {
            return false;
        }
        // Otherwise it was settled, or its channel is closed: the broker has it already.
        if waiting.is_some() {
            self.say(&inner, epoch, |channel| methods::requeue(channel, tag));
        }
        true
    }

    #[cfg(test)]
    fn is_current(&self, epoch: u64) -> bool {
        let inner = self.inner.lock();
        inner.opening.is_some() && inner.epoch == epoch
    }
}

impl Inner {
    /// The next delivery that is handed out.
    fn take_next(&mut self) -> Option<Delivery> {
        if !self.is_muted {
            return self.inbox.pop_front();
        }
        let waiting = &self.waiting;
        let at = self.inbox.iter().position(|it| is_last(waiting, it))?;
        self.inbox.remove(at)
    }

    /// Lets other consumers have what no thread has taken; what nothing delivers again is still to be
    /// handed out.
    fn give_back(&mut self) {
        let Some(opening) = &self.opening else { return };
        let waiting = &mut self.waiting;
        self.inbox.retain(|delivery| {
            if is_last(waiting, delivery) {
                return true;
            }
            let place = delivery.place();
            waiting.remove(&place);
            let frame = methods::requeue(opening.channel, place.1);
            opening.outlet.queue(frame);
            false
        });
    }

    /// Drops what no thread has taken; how many of it nothing delivers again.
    fn lose_inbox(&mut self) -> usize {
        let waiting = &self.waiting;
        let inbox = std::mem::take(&mut self.inbox);
        let lost = inbox.iter().filter(|it| is_last(waiting, it));
        lost.count()
    }

    fn is_quiet(&self) -> bool {
        self.reached >= Stage::Stopped
    }
}

/// Nothing delivers it again: it runs here or nowhere.
fn is_last(waiting: &BTreeMap<(u64, u64), Waiting>, delivery: &Delivery) -> bool {
    let is_early = || waiting.get(&delivery.place()).is_some_and(|it| it.is_early);
    !delivery.is_kept || is_early()
}

/// Names requests that are dropped though nothing delivers them again. No lock may be held: a warning
/// needs the interpreter, and a thread that has it may wait for the lock.
pub fn warn_of_lost(count: usize) {
    if count > 0 {
        tracing::warn!(
            "{count} requests are lost: nothing delivers them again, since they had waited for long and \
             were acknowledged, or come from a stream; and no thread runs them any more"
        );
    }
}
