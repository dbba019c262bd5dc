//! Which request is written when: at once, behind others, after what it needs, or alone.
//!
//! Owns the order of sending, what the thread has to ask the broker for before, and the turns of those
//! over which connections may have ended. Never decides what becomes of a request that was written.
//!
//! Rules: AMQP 0-9-1, `basic.publish` with `mandatory`; RabbitMQ's publisher confirms: tags count what
//! was published on a channel, from 1 on.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::super::methods::{self, Exchange, Publication};
use super::super::suspicion::{HOLD, Turn};
use super::super::{Event, Message, Request};
use super::{Need, RETRY_MISSING, State};

/// Bytes that may wait for the broker to take them; requests beyond are not queued behind them.
const MOST_UNSENT: u64 = 32 * 1024 * 1024;

impl State {
    /// A new request; true when the thread has to do something for it.
    pub(in crate::amqp::client) fn accept(&mut self, request: &Arc<Request>) -> bool {
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
    pub(super) fn has_room(&self) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| link.outlet.unsent() <= MOST_UNSENT)
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
    pub(in crate::amqp::client) fn flush(&mut self, now: Instant) -> Option<Need> {
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
    pub(in crate::amqp::client) fn write_waiting(&mut self, now: Instant, is_blocked: bool) {
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
    pub(super) fn gives_up(&self, exchange: &Exchange) -> bool {
        self.giving_up.as_ref() == Some(&exchange.name)
    }

    pub(super) fn need_of(&self, request: &Request) -> Option<Need> {
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

    pub(super) fn lacks_binding(&self, request: &Request) -> bool {
        let Message {
            exchange,
            routing_key,
            ..
        } = &request.message;
        self.bindings.is_missing(&exchange.name, routing_key) && request.needs_binding()
    }

    /// When [`State::flush`] has something to do though nothing arrives.
    pub(in crate::amqp::client) fn next_flush(&self, now: Instant) -> Option<Instant> {
        let later = self.later.iter().map(|(at, _)| *at).min();
        let full = (!self.waiting.is_empty()).then(|| now + RETRY_MISSING);
        let untold = self.untold.as_ref().map(|untold| untold.until);
        let lifted = self.barred.iter().map(|(_, until, _)| *until).min();
        [later, full, untold, lifted, self.turn.until()]
            .into_iter()
            .flatten()
            .min()
    }
}
