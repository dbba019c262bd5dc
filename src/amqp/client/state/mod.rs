//! The requests of a client: which wait, which are unconfirmed, which have a reply to come.
//!
//! Owns where each request is. `sending.rs` decides which of them is written when, `outcomes.rs` what a
//! confirm, a return, a refusal or a lost connection makes of one, `bars.rs` what the broker is not
//! asked for. Writes a request to the connection where there is one that is ready for it. Never waits,
//! and reads nothing.
//!
//! Rules: AMQP 0-9-1, `basic.publish` with `mandatory`; RabbitMQ's publisher confirms.

mod bars;
mod outcomes;
mod sending;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Request;
use super::bindings::Bindings;
use super::methods::{self, Exchange, Table};
use super::suspicion::Turn;
use crate::amqp::heartbeat::AmqpConnection;
use crate::scoreboard::{self, BrokerFigures, BrokerGauges};

/// Replies whose confirms may lie.
const MOST_DOZING: usize = 32;
/// Between two attempts to send to a queue that is missing.
const RETRY_MISSING: Duration = Duration::from_millis(100);
/// How long the broker need not be told that a reply has arrived. It is told with the next request, which
/// costs no write of its own.
const LONGEST_UNTOLD: Duration = Duration::from_secs(1);
/// Bytes of a reply that the broker should not keep for so long.
const MOST_UNTOLD: usize = 64 * 1024;

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

    /// Nothing will come of `msg_id` any more.
    pub(super) fn forget(&mut self, msg_id: &str) {
        self.calls.remove(msg_id);
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

    fn route_on(&mut self, channel: u16) -> Option<&mut Route> {
        let mut routes = self.routes.values_mut();
        routes.find(|route| route.channel == channel)
    }
}
