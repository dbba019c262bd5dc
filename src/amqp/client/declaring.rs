//! What a queue that is consumed needs at the broker: its exchange, the queue, their binding.
//!
//! Owns in which order they are declared, and the second attempts: without durability where the
//! broker has one of the name that is not durable, and after a deletion where a node of the queue is
//! gone. Consumes nothing, and knows no consumer.
//!
//! Rules: `Consumer.declare` of `oslo_messaging/_drivers/impl_rabbit.py`.

use super::connection::{Connection, Fault};
use super::conversation::{Conversation, is_of_other_durability};
use super::listening::Queue;
use super::methods::{self, Method, NOT_FOUND};
use super::refusals;

/// Declares *queue* on *channel*; the channel that is open then.
pub(super) fn declare_queue(
    conversation: &mut impl Conversation,
    connection: &mut Connection,
    mut channel: u16,
    queue: &Queue,
) -> Result<u16, Fault> {
    let (outcome, is_of_queue) = try_queue(conversation, connection, channel, queue);
    if is_of_other_durability(&outcome) {
        tracing::warn!(
            "Queue {} could not be declared probably because of conflicting configurations. \
             Retrying to declare the exchange ({}) as non durable",
            queue.name,
            queue.exchange.name
        );
        let mut queue = queue.clone();
        queue.is_durable = false;
        queue.exchange.is_durable = false;
        queue.exchange.is_auto_delete = queue.is_auto_delete;
        channel = conversation.open_channel(connection)?;
        try_queue(conversation, connection, channel, &queue).0?;
        return Ok(channel);
    }
    match outcome {
        Ok(()) => return Ok(channel),
        Err(Fault::Refused(refusal)) if refusal.code == NOT_FOUND => {}
        Err(fault) => return Err(fault),
    }
    channel = conversation.open_channel(connection)?;
    if is_of_queue {
        tracing::warn!(
            "Queue {} is stuck on unresponsive node. Trying to delete the queue and redeclare \
             it again",
            queue.name
        );
        let request = methods::queue_delete(channel, &queue.name);
        let is_deleted = conversation.ask(connection, channel, request, &Method::QueueDeleteOk);
        match is_deleted {
            Ok(()) => {}
            Err(Fault::Refused(_)) => channel = conversation.open_channel(connection)?,
            Err(fault) => return Err(fault),
        }
    }
    try_queue(conversation, connection, channel, queue).0?;
    Ok(channel)
}

/// Declares an exchange, a queue and their binding; whether it is the queue that was refused.
fn try_queue(
    conversation: &mut impl Conversation,
    connection: &mut Connection,
    channel: u16,
    queue: &Queue,
) -> (Result<(), Fault>, bool) {
    if !queue.exchange.name.is_empty() {
        let request = methods::exchange_declare(channel, &queue.exchange);
        let outcome = conversation.ask(connection, channel, request, &Method::ExchangeDeclareOk);
        if let Err(fault) = outcome {
            let fault = fault.of(|| refusals::of_exchange(&queue.exchange));
            return (Err(fault), false);
        }
    }
    let mut bits = 0;
    if queue.is_durable {
        bits |= methods::DURABLE;
    }
    if queue.is_auto_delete {
        bits |= methods::AUTO_DELETE;
    }
    let request = methods::queue_declare(channel, &queue.name, bits, &queue.arguments);
    let outcome = conversation.ask(connection, channel, request, &Method::QueueDeclareOk);
    let describe = || {
        let Queue {
            name, arguments, ..
        } = queue;
        refusals::of_queue(name, queue.is_durable, queue.is_auto_delete, arguments)
    };
    let outcome = outcome.map_err(|fault| fault.of(describe));
    if outcome.is_err() || queue.exchange.name.is_empty() {
        return (outcome, true);
    }
    let request = methods::queue_bind(
        channel,
        &queue.name,
        &queue.exchange.name,
        &queue.routing_key,
    );
    let outcome = conversation.ask(connection, channel, request, &Method::QueueBindOk);
    let bind = || {
        let (queue, exchange) = (describe(), refusals::of_exchange(&queue.exchange));
        format!("binding of {queue} to {exchange}")
    };
    (outcome.map_err(|fault| fault.of(bind)), false)
}
