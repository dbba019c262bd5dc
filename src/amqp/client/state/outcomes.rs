//! What a confirm, a return, a reply, a refusal or a lost connection makes of a request.
//!
//! Owns who is told what, and what is sent again after which pause. Writes nothing.
//!
//! Rules: RabbitMQ's publisher confirms: a return comes before the confirm of its message; `_publish` of
//! `oslo_messaging/_drivers/impl_rabbit.py`; docs/rpc.md.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::methods::{NOT_FOUND, PRECONDITION_FAILED, Refusal};
use super::super::suspicion::{Loss, Suspicion, Turn};
use super::super::{Event, GRACE, Message, Progress, Request, SETTLING};
use super::{RETRY_MISSING, State};

/// Between the first two attempts to reply to a queue that is missing (oslo.messaging's own pause).
/// Each further one is as long as the queue has been missing by then.
const RETRY_REPLY: Duration = Duration::from_millis(250);
/// The longest of those pauses: a client that comes back waits for its reply.
const LONGEST_RETRY_REPLY: Duration = Duration::from_secs(5);
/// After a broker could not take a message.
const RETRY_REFUSED: Duration = Duration::from_secs(1);
/// How often a message is sent again after its default queue was deleted beneath it, or beside one that
/// is too large.
const MOST_REFUSALS: u32 = 3;
/// How long a message is sent again whose exchange was deleted beneath it. While RabbitMQ deletes an
/// exchange, it confirms a declaration of it and does nothing (`declare` of `rabbit_exchange.erl`); with
/// little of a processor, that takes a while.
const RESTORING: Duration = Duration::from_secs(15);
/// By which RabbitMQ's refusal of a message that is too large is known.
const TOO_LARGE: &str = "message size";

impl State {
    /// The broker has settled what was published on *channel*; false when it cannot have.
    pub(in crate::amqp::client) fn settle(
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
    pub(in crate::amqp::client) fn returned(
        &mut self,
        channel: u16,
        number: &str,
        code: u16,
        text: &str,
    ) -> bool {
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
    pub(in crate::amqp::client) fn reply(&self, msg_id: &str, body: Vec<u8>, now: Instant) -> bool {
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

    /// The broker has closed a channel; false when it is no route's.
    pub(in crate::amqp::client) fn close_route(
        &mut self,
        channel: u16,
        refusal: &Refusal,
        now: Instant,
    ) -> bool {
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
    pub(in crate::amqp::client) fn refuse(
        &mut self,
        exchange: &str,
        queue: Option<&str>,
        refusal: &Refusal,
    ) {
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

    /// The connection is gone. What is unconfirmed is sent again, in its order, and alone where it
    /// may be why. Returns messages that are given up, and why.
    pub(in crate::amqp::client) fn disconnect(
        &mut self,
        reason: &str,
        loss: Loss,
    ) -> Vec<(Arc<Request>, String)> {
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
    pub(in crate::amqp::client) fn count_attempt(&mut self, reason: &str) {
        self.waiting.retain(|request| request.may_try_again(reason));
        self.suspects
            .retain(|request| request.may_try_again(reason));
        for request in self.waiting.iter().chain(&self.suspects) {
            request.hold(None);
        }
    }

    /// The queues of the broker are gone, and the requests in them: calls that were sent before
    /// have [`GRACE`] left. Returns how many.
    pub(in crate::amqp::client) fn lose_requests(&self, now: Instant) -> usize {
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

    /// Callers that wait, and later ones, are told to go elsewhere.
    pub(in crate::amqp::client) fn refuse_all(&mut self, reason: &str) {
        self.unusable = Some(reason.to_owned());
        self.end_all(&Event::Unusable(reason.to_owned()));
    }

    pub(in crate::amqp::client) fn close(&mut self) {
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
