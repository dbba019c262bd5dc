//! The requests of a client: which wait, which are unconfirmed, which have a reply to come.
//!
//! Owns where each request is, and what a confirm, a return, a refusal or a lost connection makes of
//! it. Writes a request to the connection where there is one that is ready for it. Never waits, and
//! reads nothing.
//!
//! Rules: AMQP 0-9-1, `basic.publish` with `mandatory`; RabbitMQ's publisher confirms: tags count
//! what was published on a channel, from 1 on, and a return comes before the confirm of its message.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bindings::Bindings;
use super::methods::{self, Exchange, NOT_FOUND, PRECONDITION_FAILED, Publication, Refusal, Table};
use super::refusals::{MOST_ENDED, Verdict};
use super::suspicion::{HOLD, Loss, Suspicion, Turn};
use super::{Event, GRACE, Message, Progress, Request, SETTLING};
use crate::amqp::heartbeat::AmqpConnection;
use crate::scoreboard::{self, BrokerFigures, BrokerGauges};

/// Bytes that may wait for the broker to take them; requests beyond are not queued behind them.
const MOST_UNSENT: u64 = 32 * 1024 * 1024;
/// Replies whose confirms may lie.
const MOST_DOZING: usize = 32;
/// Between two attempts to send to a queue that is missing.
const RETRY_MISSING: Duration = Duration::from_millis(100);
/// Between the first two attempts to reply to a queue that is missing (oslo.messaging's own pause).
/// Each further one is as long as the queue has been missing by then.
const RETRY_REPLY: Duration = Duration::from_millis(250);
/// The longest of those pauses: a client that comes back waits for its reply.
const LONGEST_RETRY_REPLY: Duration = Duration::from_secs(5);
/// After a broker could not take a message.
const RETRY_REFUSED: Duration = Duration::from_secs(1);
/// How long the broker need not be told that a reply has arrived. It is told with the next request, which
/// costs no write of its own.
const LONGEST_UNTOLD: Duration = Duration::from_secs(1);
/// Bytes of a reply that the broker should not keep for so long.
const MOST_UNTOLD: usize = 64 * 1024;
/// How often a message is sent again after its default queue was deleted beneath it, or beside one that
/// is too large.
const MOST_REFUSALS: u32 = 3;
/// How long a message is sent again whose exchange was deleted beneath it. While RabbitMQ deletes an
/// exchange, it confirms a declaration of it and does nothing (`declare` of `rabbit_exchange.erl`); with
/// little of a processor, that takes a while.
const RESTORING: Duration = Duration::from_secs(15);
/// How long nothing is asked for over which the broker has closed the connection: what needs it fails in
/// that time, and the connection is there for all else.
const BARRED_FOR: Duration = Duration::from_secs(30);
/// By which RabbitMQ's refusal of a message that is too large is known.
const TOO_LARGE: &str = "message size";

/// See the head of this file.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own; most of their combinations occur"
)]
pub(super) struct State {
    pub(super) has_thread: bool,
    pub(super) is_closing: bool,
    /// A call was made, so that there has to be a consumer of replies.
    pub(super) wants_replies: bool,
    /// There is one, on this connection.
    has_replies: bool,
    /// When the connection was made that is not the first one.
    reconnected_at: Option<Instant>,
    numbers: u64,
    link: Option<Link>,
    /// By exchange.
    routes: HashMap<String, Route>,
    bindings: Bindings,
    /// In the order of their sending, which those with the same needs and the same destination keep.
    waiting: VecDeque<Arc<Request>>,
    /// Over one of them connections may have ended: each is sent alone, in this order.
    suspects: VecDeque<Arc<Request>>,
    turn: Turn,
    /// The thread reads nothing until it is rung for.
    is_dozing: bool,
    /// Threads that wait for confirms of replies.
    hurried: usize,
    later: Vec<(Instant, Arc<Request>)>,
    calls: HashMap<String, Arc<Request>>,
    /// What the thread asks the broker for.
    asked: Option<Need>,
    /// What brokers did not answer before their connections were left, the oldest first: asked for after
    /// all else, so that nothing else waits for it once more.
    put_off: Vec<Need>,
    /// Over what connections have ended in turn that may pass, and how many.
    blamed: Vec<(Need, u32)>,
    /// What is not asked for until then, and why.
    barred: Vec<(Need, Instant, String)>,
    /// The exchange that is to give up its channel: nothing is published there until that is free.
    giving_up: Option<String>,
    /// The broker takes too little: what waits for that is not overtaken.
    is_full: bool,
    /// The last reply that has arrived, of which the broker has not been told.
    untold: Option<Untold>,
    unusable: Option<String>,
    /// Where this client is counted, from its first connection on.
    figures: Option<&'static BrokerFigures>,
    /// What it is counted as there.
    counted: BrokerGauges,
}

struct Untold {
    channel: u16,
    tag: u64,
    /// When it is to be told at the latest.
    until: Instant,
}

struct Link {
    outlet: Box<dyn Outlet>,
    frame_max: usize,
}

/// Where frames leave.
pub(super) trait Outlet: Send {
    /// Takes whole frames, in this order. Never waits, and keeps what is wrong with it to itself: the
    /// thread finds that out.
    fn queue(&self, frames: Vec<u8>);
    /// Bytes that wait for the broker to take them.
    fn unsent(&self) -> u64;
}

impl Outlet for Arc<AmqpConnection> {
    fn queue(&self, frames: Vec<u8>) {
        let _ = AmqpConnection::queue(self, frames);
    }

    fn unsent(&self) -> u64 {
        AmqpConnection::unsent(self)
    }
}

/// A channel for what goes to one exchange. An error of one exchange closes its channel alone.
struct Route {
    channel: u16,
    last_tag: u64,
    unconfirmed: BTreeMap<u64, Arc<Request>>,
    /// Where each of them is, by its number.
    tags: HashMap<u64, u64>,
    /// Default queues that are bound to the exchange.
    queues: HashSet<String>,
}

/// What waiting requests need from the thread.
#[derive(Debug, Clone)]
pub(super) enum Need {
    /// A consumer of replies.
    Replies,
    /// A channel for the exchange of this request.
    Route(Exchange),
    /// The default queue of this notification.
    Queue {
        exchange: Exchange,
        name: String,
        arguments: Table,
    },
    /// The binding of this queue, which a server had made.
    Binding { exchange: Exchange, name: String },
}

impl PartialEq for Need {
    /// The broker is asked for the same thing, whatever its properties.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Replies, Self::Replies) => true,
            (Self::Route(one), Self::Route(other)) => one.name == other.name,
            (
                Self::Queue { exchange, name, .. },
                Self::Queue {
                    exchange: other,
                    name: queue,
                    ..
                },
            )
            | (
                Self::Binding { exchange, name },
                Self::Binding {
                    exchange: other,
                    name: queue,
                },
            ) => exchange.name == other.name && name == queue,
            _ => false,
        }
    }
}

impl Need {
    /// Whether *request* has this need, or may come to it once others are met.
    pub(super) fn may_be_of(&self, request: &Request) -> bool {
        let exchange = &request.message.exchange.name;
        match self {
            Self::Replies => request.is_call(),
            Self::Route(it) => it.name == *exchange,
            Self::Queue {
                exchange: it, name, ..
            } => it.name == *exchange && request.default_queue() == Some(name),
            Self::Binding { exchange: it, name } => {
                it.name == *exchange
                    && request.message.routing_key == *name
                    && request.needs_binding()
            }
        }
    }
}

impl State {
    pub(super) fn next_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(super) fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// A connection has been agreed on; `is_again` where another one was lost before.
    pub(super) fn connect(
        &mut self,
        outlet: Box<dyn Outlet>,
        frame_max: usize,
        is_again: bool,
        now: Instant,
    ) {
        self.link = Some(Link { outlet, frame_max });
        if is_again {
            self.reconnected_at = Some(now);
        }
        // The process may have got its row after an earlier connection.
        let figures = scoreboard::current().broker();
        if let Some(before) = self.figures.replace(figures) {
            before.change(self.counted, BrokerGauges::default());
            self.counted = BrokerGauges::default();
        }
        if is_again {
            figures.reconnected();
        }
        self.count();
    }

    /// Whether there is a consumer of replies on this connection.
    #[cfg(test)]
    pub(super) fn has_replies(&self) -> bool {
        self.has_replies
    }

    /// What each request needs that waits; none where the broker takes too little.
    #[cfg(test)]
    pub(super) fn needs(&self) -> Vec<Option<Need>> {
        let waiting = self.waiting.iter();
        waiting.map(|request| self.need_of(request)).collect()
    }

    /// What waits does so for a suspect's turn to pass.
    #[cfg(test)]
    pub(super) fn sends_alone(&self) -> bool {
        self.turn != Turn::Others
    }

    #[cfg(test)]
    pub(super) fn is_put_off(&self, need: &Need) -> bool {
        self.put_off.contains(need)
    }

    pub(super) fn set_replies(&mut self, has_replies: bool) {
        self.has_replies = has_replies;
        if !has_replies {
            self.untold = None; // its tag means nothing on another channel
        }
        self.count();
    }

    /// A reply of *size* bytes has arrived on *channel*.
    pub(super) fn arrived(&mut self, channel: u16, tag: u64, size: usize, now: Instant) {
        let latest = if size > MOST_UNTOLD {
            now
        } else {
            now + LONGEST_UNTOLD
        };
        let until = self
            .untold
            .as_ref()
            .map_or(latest, |it| it.until.min(latest));
        self.untold = Some(Untold {
            channel,
            tag,
            until,
        });
    }

    /// Tells the broker which replies have arrived, where it has to hear it *now*, or at once.
    pub(super) fn acknowledge(&mut self, now: Option<Instant>) {
        let is_due = |untold: &Untold| now.is_none_or(|now| now >= untold.until);
        if self.untold.as_ref().is_some_and(is_due)
            && let (Some(untold), Some(link)) = (self.untold.take(), &self.link)
        {
            link.outlet
                .queue(methods::ack_up_to(untold.channel, untold.tag));
        }
    }

    /// The thread has left, and its connection with it.
    pub(super) fn leave(&mut self) {
        self.has_thread = false;
        self.link = None;
        self.has_replies = false;
        self.untold = None;
        self.routes.clear();
        self.count();
    }

    pub(super) fn gauges(&self) -> BrokerGauges {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let replies = usize::from(self.has_replies);
        let routes = self.routes.values();
        BrokerGauges {
            connections: u32::from(self.link.is_some()),
            channels: count(self.routes.len() + replies),
            queues: count(replies),
            unconfirmed: count(routes.map(|route| route.unconfirmed.len()).sum()),
        }
    }

    /// Shows what has changed to those who look at the process.
    fn count(&mut self) {
        let gauges = self.gauges();
        if let Some(figures) = self.figures
            && gauges != self.counted
        {
            figures.change(self.counted, gauges);
            self.counted = gauges;
        }
    }

    /// New requests are taken: it is neither closed nor unusable.
    pub(super) fn is_open(&self) -> bool {
        !self.is_closing && self.unusable.is_none()
    }

    /// A new request; true when the thread has to do something for it.
    pub(super) fn accept(&mut self, request: &Arc<Request>) -> bool {
        if self.is_closing {
            request.end(Event::Failed("the transport is closed".to_owned()));
            return false;
        }
        if let Some(reason) = &self.unusable {
            request.end(Event::Unusable(reason.clone()));
            return false;
        }
        // The clock is read only where the answer depends on it.
        if !self.barred.is_empty()
            && let Some(why) = self.bar_of(request, Instant::now())
        {
            request.end(Event::Failed(why.to_owned()));
            return false;
        }
        if let Some(msg_id) = &request.message.msg_id {
            self.wants_replies = true;
            self.calls.insert(msg_id.clone(), Arc::clone(request));
        }
        if self.is_first(request) && self.publish(request) {
            self.count();
            let is_awaited = request.outbox.is_none() || !self.has_few_unconfirmed();
            return is_awaited && self.end_doze();
        }
        self.is_full |= self.need_of(request).is_none() && !self.has_room();
        self.waiting.push_back(Arc::clone(request));
        true
    }

    /// No request waits that has to be written before *request*. Those to other places need not be: what they
    /// wait for may take as long as the broker likes; but all wait in one line for it to take more. Suspects
    /// do not count either: over one of them connections end, and nothing else is held up by that.
    fn is_first(&self, request: &Request) -> bool {
        let message = &request.message;
        let is_before = |other: &Arc<Request>| {
            other.message.routing_key == message.routing_key
                && other.message.exchange.name == message.exchange.name
        };
        let may_overtake = !self.is_full && self.has_room();
        self.waiting.is_empty() || (may_overtake && !self.waiting.iter().any(is_before))
    }

    /// There is a connection, and the broker takes what is written to it.
    fn has_room(&self) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| link.outlet.unsent() <= MOST_UNSENT)
    }

    /// Nothing will come of `msg_id` any more.
    pub(super) fn forget(&mut self, msg_id: &str) {
        self.calls.remove(msg_id);
    }

    /// Writes *request* to the connection; false when there is none that is ready for it.
    fn publish(&mut self, request: &Arc<Request>) -> bool {
        self.turn == Turn::Others && self.put(request)
    }

    /// As [`State::publish`], whoever's turn it is.
    fn put(&mut self, request: &Arc<Request>) -> bool {
        let Some(link) = &self.link else { return false };
        if self.gives_up(&request.message.exchange) || self.lacks_binding(request) {
            return false;
        }
        let Some(route) = self.routes.get_mut(&request.message.exchange.name) else {
            return false;
        };
        if let Some(queue) = request.default_queue()
            && !route.queues.contains(queue)
        {
            return false;
        }
        if (request.is_call() && !self.has_replies) || link.outlet.unsent() > MOST_UNSENT {
            return false;
        }
        let message = &request.message;
        let number = request.number.to_string();
        let expiration = message.expiration.map(|expiration| expiration.to_string());
        let what = Publication {
            exchange: &message.exchange.name,
            routing_key: &message.routing_key,
            message_id: &number,
            is_mandatory: request.asks_for_return(),
            expiration: expiration.as_deref(),
            body: &message.body,
        };
        let mut frames = match self.untold.take() {
            Some(untold) => methods::ack_up_to(untold.channel, untold.tag),
            None => Vec::new(),
        };
        methods::put_publication(&mut frames, route.channel, what, link.frame_max);
        // Noted first: what a broken connection has swallowed is sent again on the next one.
        route.last_tag += 1;
        route
            .unconfirmed
            .insert(route.last_tag, Arc::clone(request));
        route.tags.insert(request.number, route.last_tag);
        link.outlet.queue(frames);
        let mut progress = request.progress.lock();
        progress.publications += 1;
        progress.held_at = None;
        if let Some(figures) = self.figures {
            figures.published(progress.publications > 1);
        }
        true
    }

    /// Writes what waits; what has to be done first, if anything.
    pub(super) fn flush(&mut self, now: Instant) -> Option<Need> {
        if let Some(done) = self.asked.take() {
            self.put_off.retain(|need| *need != done);
            self.blamed.retain(|(need, _)| *need != done);
        }
        self.lift_bars(now);
        if !self.end_turn(now) {
            return None; // a question may end the connection as well as a message
        }
        let mut needs = self.write(now);
        if self.wants_replies && !self.has_replies && !self.is_barred(&Need::Replies, now) {
            needs.retain(|need| *need != Need::Replies);
            needs.insert(0, Need::Replies);
        }
        let (waiting, suspects, later) = (&self.waiting, &self.suspects, &self.later);
        let wants_replies = self.wants_replies;
        self.put_off.retain(|need| {
            let later = later.iter().map(|(_, it)| it);
            let mut requests = waiting.iter().chain(suspects).chain(later);
            (wants_replies && *need == Need::Replies) || requests.any(|it| need.may_be_of(it))
        });
        let fresh = needs.iter().find(|need| !self.put_off.contains(need));
        if fresh.is_none() && self.begin_turn(now) {
            return None;
        }
        let late = || self.put_off.iter().find(|need| needs.contains(need));
        self.asked = fresh.or_else(late).cloned();
        self.hold(Some(now));
        self.asked.clone()
    }

    /// Whether all that is under no suspicion may be sent: what was sent alone is settled, or has
    /// had its time.
    fn end_turn(&mut self, now: Instant) -> bool {
        let is_settled = match self.turn {
            Turn::Others => return true,
            Turn::Nobody(_) => self.unconfirmed().next().is_none(),
            Turn::Alone(number, _) => {
                let mut routes = self.routes.values();
                !routes.any(|route| route.tags.contains_key(&number))
            }
        };
        if !is_settled && self.turn.until().is_some_and(|until| now < until) {
            return false;
        }
        if let (false, Turn::Alone(number, _)) = (is_settled, self.turn) {
            // Others go beside it from now on: what ends the connection need not be it.
            for request in self.unconfirmed().filter(|it| it.number == number) {
                request.progress.lock().suspicion.set_alone(false);
            }
        }
        let was_nobodys = matches!(self.turn, Turn::Nobody(_));
        self.turn = Turn::Others;
        !was_nobodys || !self.send_alone(now)
    }

    /// Sees to it that a suspect is sent next; false where there is none that can be.
    fn begin_turn(&mut self, now: Instant) -> bool {
        self.suspects.retain(|request| !request.is_over());
        let can_go = |request: &Arc<Request>| self.need_of(request).is_none();
        if self.link.is_none() || !self.suspects.iter().any(can_go) {
            return false;
        }
        if self.unconfirmed().next().is_none() {
            return self.send_alone(now);
        }
        self.turn = Turn::Nobody(now + HOLD);
        true
    }

    fn send_alone(&mut self, now: Instant) -> bool {
        let is_alone = self.unconfirmed().next().is_none();
        for at in 0..self.suspects.len() {
            let Some(request) = self.suspects.get(at).cloned() else {
                break;
            };
            if !request.is_over() && self.put(&request) {
                request.progress.lock().suspicion.set_alone(is_alone);
                self.suspects.remove(at);
                self.turn = Turn::Alone(request.number, now + HOLD);
                self.count();
                return true;
            }
        }
        false
    }

    /// Writes what waits and need not wait for what is asked for.
    ///
    /// The time of a call that waits for what another one needs goes on, or not at all where the broker
    /// has *blocked* the connection.
    pub(super) fn write_waiting(&mut self, now: Instant, is_blocked: bool) {
        self.write(now);
        self.hold((!is_blocked).then_some(now));
    }

    /// Writes what waits, with what is due again first; what the rest needs, in its order.
    fn write(&mut self, now: Instant) -> Vec<Need> {
        let due = self.later.extract_if(.., |(at, _)| *at <= now);
        let due: Vec<_> = due.map(|(_, request)| request).collect();
        for request in due.into_iter().rev() {
            self.waiting.push_front(request);
        }
        let mut needs = Vec::new();
        let mut kept = VecDeque::new();
        self.is_full = false;
        while let Some(request) = self.waiting.pop_front() {
            if request.is_over() || self.publish(&request) {
                continue;
            }
            if let Some(why) = self.bar_of(&request, now) {
                request.end(Event::Failed(why.to_owned()));
                continue;
            }
            let need = self.need_of(&request);
            kept.push_back(request);
            match need {
                None => {
                    self.is_full = !self.has_room(); // or it is nobody's turn
                    break;
                }
                Some(need) if needs.contains(&need) => {}
                Some(need) => needs.push(need),
            }
        }
        for request in &self.suspects {
            let need = self.need_of(request).filter(|need| !needs.contains(need));
            needs.extend(need.filter(|_| !self.is_full && !request.is_over()));
        }
        kept.append(&mut self.waiting);
        self.waiting = kept;
        self.count();
        needs
    }

    /// Lets the time of calls run from *now* on, or longer, that wait for what is asked for by others;
    /// none: no call's time runs.
    fn hold(&self, now: Option<Instant>) {
        let Some(asked) = &self.asked else { return };
        // No other request's time is limited before the broker has it.
        let timed = |it: &&Arc<Request>| it.message.answered_within.is_some();
        let requests = self.waiting.iter().chain(&self.suspects);
        for request in requests.filter(timed) {
            if let Some(need) = self.need_of(request) {
                request.hold(now.filter(|_| need != *asked));
            }
        }
    }

    /// The channel of this exchange is about to be closed.
    fn gives_up(&self, exchange: &Exchange) -> bool {
        self.giving_up.as_ref() == Some(&exchange.name)
    }

    fn need_of(&self, request: &Request) -> Option<Need> {
        let message = &request.message;
        if request.is_call() && !self.has_replies {
            return Some(Need::Replies);
        }
        let route = self.routes.get(&message.exchange.name);
        let Some(route) = route.filter(|_| !self.gives_up(&message.exchange)) else {
            return Some(Need::Route(message.exchange.clone()));
        };
        if let Some(arguments) = &message.default_queue
            && !route.queues.contains(&message.routing_key)
        {
            return Some(Need::Queue {
                exchange: message.exchange.clone(),
                name: message.routing_key.clone(),
                arguments: arguments.clone(),
            });
        }
        if self.lacks_binding(request) {
            return Some(Need::Binding {
                exchange: message.exchange.clone(),
                name: message.routing_key.clone(),
            });
        }
        None // the connection is full
    }

    fn lacks_binding(&self, request: &Request) -> bool {
        let Message {
            exchange,
            routing_key,
            ..
        } = &request.message;
        self.bindings.is_missing(&exchange.name, routing_key) && request.needs_binding()
    }

    /// When [`State::flush`] has something to do though nothing arrives.
    pub(super) fn next_flush(&self, now: Instant) -> Option<Instant> {
        let later = self.later.iter().map(|(at, _)| *at).min();
        let full = (!self.waiting.is_empty()).then(|| now + RETRY_MISSING);
        let untold = self.untold.as_ref().map(|untold| untold.until);
        let lifted = self.barred.iter().map(|(_, until, _)| *until).min();
        [later, full, untold, lifted, self.turn.until()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the confirms of some replies are all that is expected, and no thread waits for them.
    pub(super) fn begin_doze(&mut self) -> bool {
        let replies_alone = || self.unconfirmed().all(|request| request.outbox.is_some());
        let dozes = self.hurried == 0
            && self.calls.is_empty()
            && self.waiting.is_empty()
            && self.suspects.is_empty()
            && self.turn == Turn::Others
            && self.unconfirmed().next().is_some()
            && self.has_few_unconfirmed()
            && replies_alone();
        self.is_dozing = dozes;
        dozes
    }

    /// Whether the thread has to be rung for.
    pub(super) fn end_doze(&mut self) -> bool {
        std::mem::take(&mut self.is_dozing)
    }

    /// A thread begins to wait for confirms, or ends to; whether the thread has to be rung for.
    pub(super) fn hurry(&mut self, begins: bool) -> bool {
        if begins {
            self.hurried += 1;
        } else {
            self.hurried = self.hurried.saturating_sub(1);
        }
        begins && self.end_doze()
    }

    fn unconfirmed(&self) -> impl Iterator<Item = &Arc<Request>> {
        let routes = self.routes.values();
        routes.flat_map(|route| route.unconfirmed.values())
    }

    fn has_few_unconfirmed(&self) -> bool {
        let routes = self.routes.values();
        routes.map(|route| route.unconfirmed.len()).sum::<usize>() < MOST_DOZING
    }

    /// There is something for which a connection is needed.
    pub(super) fn needs_connection(&self) -> bool {
        self.wants_replies
            || !self.waiting.is_empty()
            || !self.suspects.is_empty()
            || !self.later.is_empty()
    }

    pub(super) fn add_route(&mut self, exchange: String, channel: u16) {
        let route = Route {
            channel,
            last_tag: 0,
            unconfirmed: BTreeMap::new(),
            tags: HashMap::new(),
            queues: HashSet::new(),
        };
        self.routes.insert(exchange, route);
        self.count();
    }

    /// The default queue of this name is bound to the exchange.
    pub(super) fn add_queue(&mut self, exchange: &str, queue: String) {
        // The channel of the exchange may have been closed since; then all of it is done once more.
        if let Some(route) = self.routes.get_mut(exchange) {
            route.queues.insert(queue);
        }
    }

    /// The broker has bound the queue of this name again, or would not: there may be none.
    pub(super) fn settle_binding(&mut self, exchange: &str, name: &str, is_bound: bool) {
        self.bindings.settle(exchange, name, is_bound);
    }

    /// Takes the channel from an exchange to which nothing is under way, and which is not *needed*. While
    /// there is none, one of them gets nothing more: else none would ever be idle under load.
    pub(super) fn remove_idle_route(&mut self, needed: Option<&str>) -> Option<u16> {
        let others = self.routes.iter();
        let others = others.filter(|(name, _)| Some(name.as_str()) != needed);
        let (exchange, route) = others.min_by_key(|(_, it)| it.unconfirmed.len())?;
        if !route.unconfirmed.is_empty() {
            self.giving_up.get_or_insert_with(|| exchange.clone());
            return None;
        }
        let exchange = exchange.clone();
        let route = self.routes.remove(&exchange)?;
        self.count();
        Some(route.channel)
    }

    /// There is a free channel: no exchange has to give up its own.
    pub(super) fn keep_routes(&mut self) {
        self.giving_up = None;
    }

    /// The broker has settled what was published on *channel*; false when it cannot have.
    pub(super) fn settle(
        &mut self,
        channel: u16,
        tag: u64,
        is_multiple: bool,
        is_taken: bool,
        now: Instant,
    ) -> bool {
        let Some(route) = self.route_on(channel) else {
            return false;
        };
        if tag == 0 || tag > route.last_tag {
            return false;
        }
        let settled: Vec<_> = if is_multiple {
            let rest = route.unconfirmed.split_off(&tag.saturating_add(1));
            std::mem::replace(&mut route.unconfirmed, rest)
                .into_values()
                .collect()
        } else {
            route.unconfirmed.remove(&tag).into_iter().collect()
        };
        for request in &settled {
            route.tags.remove(&request.number);
        }
        for request in settled {
            // No connection has ended over it.
            request.progress.lock().suspicion = Suspicion::default();
            if is_taken {
                self.taken(request, now);
                continue;
            }
            request.progress.lock().told_at.get_or_insert(now);
            if request.may_try_again("the broker could not take it (basic.nack)") {
                self.later.push((now + RETRY_REFUSED, request));
            }
        }
        self.count();
        true
    }

    fn send_again(&mut self, request: Arc<Request>, pause: Duration, now: Instant) {
        if pause.is_zero() {
            self.waiting.push_back(request);
        } else {
            self.later.push((now + pause, request));
        }
    }

    /// Confirmed: a queue has it, or it was returned before.
    fn taken(&mut self, request: Arc<Request>, now: Instant) {
        let mut progress = request.progress.lock();
        if let Some((code, text)) = progress.returned.take() {
            if let (Some(outbox), Some(limit)) = (&request.outbox, request.message.missing_for) {
                if progress.missing_since.is_none() {
                    outbox.put_off();
                }
                let since = *progress.missing_since.get_or_insert(now);
                let end = since + limit;
                if now < end {
                    drop(progress);
                    let missing_for = now.saturating_duration_since(since);
                    let pause = missing_for.clamp(RETRY_REPLY, LONGEST_RETRY_REPLY);
                    self.later.push(((now + pause).min(end), request));
                    return;
                }
            }
            // Servers come back later than the broker.
            let is_settling = self.reconnected_at.is_some_and(|at| now <= at + SETTLING);
            let Message {
                exchange,
                routing_key,
                ..
            } = &request.message;
            if request.needs_binding()
                && !is_settling
                && !progress.is_left
                && let Some(pause) = pause_of_restoring(&mut progress, now)
                && self.bindings.lose(&exchange.name, routing_key)
            {
                // A queue took what was sent there before: the exchange was deleted since.
                drop(progress);
                self.send_again(request, pause, now);
                return;
            }
            if request.message.is_mandatory {
                request.conclude(&mut progress, Event::Undeliverable(code, text));
                return;
            }
            if let Some(queue) = request.default_queue() {
                progress.refusals += 1;
                if progress.refusals <= MOST_REFUSALS && !progress.is_left {
                    // Its queue was deleted; it is declared again.
                    if let Some(route) = self.routes.get_mut(&request.message.exchange.name) {
                        route.queues.remove(queue);
                    }
                    drop(progress);
                    self.waiting.push_back(request);
                    return;
                }
            }
            if is_settling && !progress.is_left {
                drop(progress);
                self.later.push((now + RETRY_MISSING, request));
                return;
            }
            // As ever where no server listens: it is dropped, and a call ends by its timeout.
        } else if request.needs_binding() {
            let message = &request.message;
            self.bindings
                .note(&message.exchange.name, &message.routing_key);
        }
        if let Some(outbox) = &request.outbox
            && !progress.is_taken
            && progress.end.is_none()
        {
            outbox.leave(progress.missing_since.is_some());
        }
        progress.is_taken = true;
        progress.told_at.get_or_insert(now);
        if !request.is_call() {
            request.changed.notify_all();
        }
    }

    /// The broker has found no queue for the message of this number, published on *channel*.
    pub(super) fn returned(&mut self, channel: u16, number: &str, code: u16, text: &str) -> bool {
        let Some(route) = self.route_on(channel) else {
            return false;
        };
        let tag = number
            .parse()
            .ok()
            .and_then(|number: u64| route.tags.get(&number));
        let Some(request) = tag.and_then(|tag| route.unconfirmed.get(tag)) else {
            return false;
        };
        request.progress.lock().returned = Some((code, text.to_owned()));
        true
    }

    /// A reply of the call `msg_id`; false when that waits for none.
    pub(super) fn reply(&self, msg_id: &str, body: Vec<u8>, now: Instant) -> bool {
        let Some(request) = self.calls.get(msg_id) else {
            return false;
        };
        let mut progress = request.progress.lock();
        progress.replies.push_back(body);
        progress.is_answered = true;
        progress.told_at.get_or_insert(now);
        progress.heard_at = Some(now);
        request.changed.notify_all();
        true
    }

    fn route_on(&mut self, channel: u16) -> Option<&mut Route> {
        let mut routes = self.routes.values_mut();
        routes.find(|route| route.channel == channel)
    }

    /// The broker has closed a channel; false when it is no route's.
    pub(super) fn close_route(&mut self, channel: u16, refusal: &Refusal, now: Instant) -> bool {
        let Some(exchange) = self
            .routes
            .iter()
            .find(|(_, route)| route.channel == channel)
            .map(|(exchange, _)| exchange.clone())
        else {
            return false;
        };
        let unconfirmed = self
            .routes
            .remove(&exchange)
            .map(|route| route.unconfirmed)
            .unwrap_or_default();
        let is_known = unconfirmed
            .values()
            .any(|request| is_too_large(refusal, request));
        let mut again = Vec::new();
        for request in unconfirmed.into_values() {
            match pause_after(refusal, &request, is_known, now) {
                Some(Duration::ZERO) => again.push(request),
                Some(pause) => self.later.push((now + pause, request)),
                None if request.progress.lock().is_answered => {}
                None => request.end(Event::Failed(refusal.to_string())),
            }
        }
        for request in again.into_iter().rev() {
            self.waiting.push_front(request);
        }
        self.count();
        true
    }

    /// The exchange cannot be declared, or the default queue `queue` of it: nothing can be sent there.
    pub(super) fn refuse(&mut self, exchange: &str, queue: Option<&str>, refusal: &Refusal) {
        let mut refuse = |request: &Arc<Request>| {
            let is_meant = request.message.exchange.name == exchange
                && (queue.is_none() || request.default_queue() == queue);
            if is_meant {
                request.end(Event::Failed(refusal.to_string()));
            }
            !is_meant
        };
        self.waiting.retain(&mut refuse);
        self.suspects.retain(refuse);
    }

    /// The broker has closed the connection. Where that was over what it was asked for, or may have been
    /// for the last time, what needs that fails; what is to be said of it.
    pub(super) fn blame(&mut self, refusal: &Refusal, now: Instant) -> Option<String> {
        let asked = self.asked.clone()?;
        let is_final = match refusal.verdict() {
            Verdict::Other => return None,
            Verdict::Final => true,
            Verdict::Perhaps => self.count_blame(&asked) >= MOST_ENDED,
        };
        is_final.then(|| self.bar(asked, refusal, now))
    }

    fn count_blame(&mut self, asked: &Need) -> u32 {
        if let Some((_, count)) = self.blamed.iter_mut().find(|(need, _)| need == asked) {
            *count += 1;
            return *count;
        }
        self.blamed.push((asked.clone(), 1));
        1
    }

    /// What has *need* fails for a while, and what has it now; what is to be said of it.
    pub(super) fn bar(&mut self, need: Need, refusal: &Refusal, now: Instant) -> String {
        let why = refusal.to_string();
        self.asked.take_if(|asked| *asked == need);
        self.put_off.retain(|other| *other != need);
        self.blamed.retain(|(other, _)| *other != need);
        if let Need::Binding { exchange, name } = &need {
            self.bindings.settle(&exchange.name, name, false);
        }
        let mut refuse = |request: &Arc<Request>| {
            let is_meant = need.may_be_of(request);
            if is_meant {
                request.end(Event::Failed(why.clone()));
            }
            !is_meant
        };
        self.waiting.retain(&mut refuse);
        self.suspects.retain(refuse);
        let seconds = BARRED_FOR.as_secs();
        let text =
            format!("refused by the broker, and not asked for again before {seconds} s: {why}");
        self.barred.push((need, now + BARRED_FOR, why));
        text
    }

    fn is_barred(&self, need: &Need, now: Instant) -> bool {
        let mut bars = self.barred.iter();
        bars.any(|(other, until, _)| other == need && now < *until)
    }

    /// Why *request* cannot be sent at present.
    fn bar_of(&self, request: &Request, now: Instant) -> Option<&str> {
        let mut bars = self.barred.iter();
        let bar = bars.find(|(need, until, _)| now < *until && need.may_be_of(request));
        bar.map(|(.., why)| why.as_str())
    }

    fn lift_bars(&mut self, now: Instant) {
        let lifted = self.barred.extract_if(.., |(_, until, _)| *until <= now);
        if lifted.into_iter().any(|(need, ..)| need == Need::Replies) {
            self.wants_replies = !self.calls.is_empty();
        }
    }

    /// The connection is gone. What is unconfirmed is sent again, in its order, and alone where it
    /// may be why. Returns messages that are given up, and why.
    pub(super) fn disconnect(&mut self, reason: &str, loss: Loss) -> Vec<(Arc<Request>, String)> {
        if let Some(unanswered) = self.asked.take() {
            self.put_off.retain(|need| *need != unanswered);
            self.put_off.push(unanswered);
        }
        self.link = None;
        self.has_replies = false;
        self.untold = None;
        self.giving_up = None;
        self.bindings.restart();
        self.is_full = false;
        self.turn = Turn::Others;
        self.count_attempt(reason);
        let mut unconfirmed: Vec<_> = self
            .routes
            .drain()
            .flat_map(|(_, route)| route.unconfirmed.into_values())
            .collect();
        unconfirmed.sort_by_key(|request| request.number);
        let mut given_up = Vec::new();
        for request in unconfirmed.into_iter().rev() {
            if !request.may_try_again(reason) {
                continue;
            }
            let mut progress = request.progress.lock();
            let is_kept = progress.suspicion.lose(loss);
            let goes_alone = progress.suspicion.goes_alone();
            if !is_kept {
                let text = format!(
                    "{} connections have ended as it was sent, the last ones as it was sent alone: \
                     {reason}",
                    progress.suspicion.losses()
                );
                request.conclude(&mut progress, Event::Failed(text.clone()));
                drop(progress);
                given_up.push((request, text));
                continue;
            }
            drop(progress);
            if goes_alone {
                self.suspects.push_front(request);
            } else {
                self.waiting.push_front(request);
            }
        }
        self.count();
        given_up
    }

    /// No host could be connected with, or the connection did not last.
    pub(super) fn count_attempt(&mut self, reason: &str) {
        self.waiting.retain(|request| request.may_try_again(reason));
        self.suspects
            .retain(|request| request.may_try_again(reason));
        for request in self.waiting.iter().chain(&self.suspects) {
            request.hold(None);
        }
    }

    /// The queues of the broker are gone, and the requests in them: calls that were sent before
    /// have [`GRACE`] left. Returns how many.
    pub(super) fn lose_requests(&self, now: Instant) -> usize {
        let mut count = 0;
        for request in self.calls.values() {
            let mut progress = request.progress.lock();
            if progress.is_taken && !request.is_monitored() && progress.lost_at.is_none() {
                progress.lost_at = Some(now + GRACE);
                request.changed.notify_all();
                count += 1;
            }
        }
        count
    }

    /// Whoever waits, and later ones, are told to go elsewhere.
    pub(super) fn refuse_all(&mut self, reason: &str) {
        self.unusable = Some(reason.to_owned());
        self.end_all(&Event::Unusable(reason.to_owned()));
    }

    pub(super) fn close(&mut self) {
        self.is_closing = true;
        self.end_all(&Event::Failed("the transport is closed".to_owned()));
    }

    fn end_all(&mut self, event: &Event) {
        let waiting = self.waiting.drain(..).chain(self.suspects.drain(..));
        let later = self.later.drain(..).map(|(_, request)| request);
        let calls = self.calls.drain().map(|(_, request)| request);
        let unconfirmed = self.routes.values_mut().flat_map(|route| {
            route.tags.clear();
            std::mem::take(&mut route.unconfirmed).into_values()
        });
        for request in waiting.chain(later).chain(calls).chain(unconfirmed) {
            request.end(event.clone());
        }
        self.count();
    }
}

/// After which pause *request*, unconfirmed on a channel that the broker has closed, is sent again; never
/// where that is `None`. It *is known* which of those on it is to blame, or is not.
fn pause_after(
    refusal: &Refusal,
    request: &Request,
    is_known: bool,
    now: Instant,
) -> Option<Duration> {
    let mut progress = request.progress.lock();
    if progress.is_left || progress.is_answered {
        return None;
    }
    progress.returned = None;
    progress.suspicion = Suspicion::default();
    if refusal.code == NOT_FOUND {
        // Its exchange was deleted; it is declared again.
        return pause_of_restoring(&mut progress, now);
    }
    // Where it is known there is one less to blame each time, and so an end.
    progress.refusals += u32::from(!is_known);
    let may_send = progress.refusals <= MOST_REFUSALS
        && refusal.code == PRECONDITION_FAILED
        && refusal.text.contains(TOO_LARGE)
        && !is_too_large(refusal, request);
    may_send.then_some(Duration::ZERO)
}

/// The same for a message whose exchange, or the binding of a queue to it, was deleted beneath it.
fn pause_of_restoring(progress: &mut Progress, now: Instant) -> Option<Duration> {
    match progress.displaced_since {
        None => {
            progress.displaced_since = Some(now);
            Some(Duration::ZERO)
        }
        Some(since) => (now < since + RESTORING).then_some(RETRY_MISSING),
    }
}

/// Whether the broker has refused *request* as too large: RabbitMQ says of how many bytes that was.
fn is_too_large(refusal: &Refusal, request: &Request) -> bool {
    let size = format!(" {} ", request.message.body.len());
    refusal.code == PRECONDITION_FAILED
        && refusal.text.contains(TOO_LARGE)
        && refusal.text.contains(&size)
}
