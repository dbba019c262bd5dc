//! The thread of a client: it connects, declares, reads, and connects again.
//!
//! Owns what is declared on a new connection, and when there has to be one. Everything that it asks
//! the broker it waits for while it goes on reading. It holds no lock while it waits or logs: a
//! caller may hold the interpreter, which the log needs.
//!
//! Rules: `Connection` and `Consumer` of `oslo_messaging/_drivers/impl_rabbit.py`: what is declared,
//! and what is done when the broker refuses it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;

use super::assembler::Incoming;
use super::connection::{Connection, Fault, doze, out_of_order};
use super::conversation::{Conversation, LOOK, is_of_other_durability};
use super::declaring;
use super::dialer::Dialer;
use super::methods::{
    self, COMMAND_INVALID, Exchange, Method, NOT_FOUND, Properties, Refusal, Table, Violation,
};
use super::refusals::{self, INTERNAL_ERROR, Verdict};
use super::state::Need;
use super::suspicion::Loss;
use super::{GRACE, Options, Shared, envelope, outbox};
use crate::threads::{self, Signals};

const STACK_BYTES: usize = 512 * 1024;
/// How long confirms of replies may lie, where nothing else is expected: no thread waits for them, and
/// to be woken by each costs more than to read it.
const LONGEST_DOZE: Duration = Duration::from_millis(10);

/// Starts the thread of *shared*.
pub(super) fn start(shared: Arc<Shared>) -> io::Result<()> {
    let name = "amqp-client".to_owned();
    threads::start(name, STACK_BYTES, Signals::None, move || {
        let mut thread = Thread {
            dialer: Dialer::new(&shared.options),
            shared,
            has_declared: false,
            replies: None,
        };
        thread.run();
        let mut state = thread.shared.state.lock();
        if thread.is_closing() {
            state.close();
        }
        state.leave();
        thread.shared.has_left.notify_all();
        drop(state);
        outbox::tell(&thread.shared.failures);
    })
}

struct Thread {
    shared: Arc<Shared>,
    dialer: Dialer,
    /// The reply queue was declared on an earlier connection.
    has_declared: bool,
    /// The channel of the consumer of replies.
    replies: Option<u16>,
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

    fn pause(&mut self, connection: &Connection) {
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        state.acknowledge(Some(now));
        // The broker may take long to answer, and what waits may not need that.
        state.write_waiting(now, connection.is_blocked);
        drop(state);
        outbox::tell(&self.shared.failures);
    }

    fn closed(&mut self, channel: u16, _refusal: &Refusal) {
        if self.replies == Some(channel) {
            self.lose_consumer();
        }
    }

    fn open_channel(&mut self, connection: &mut Connection) -> Result<u16, Fault> {
        self.open_channel_beside(connection, None)
    }

    fn take(&mut self, connection: &mut Connection, incoming: Incoming) -> Result<(), Fault> {
        match incoming {
            Incoming::Heartbeat => Ok(()),
            Incoming::Content(channel, Method::Deliver { tag, .. }, properties, body)
                if self.replies == Some(channel) =>
            {
                self.deliver(channel, tag, &properties, body);
                Ok(())
            }
            Incoming::Content(channel, Method::Return { code, text }, properties, _) => {
                let number = &properties.message_id;
                let mut state = self.shared.state.lock();
                if state.returned(channel, number, code, &text) {
                    return Ok(());
                }
                Err(unfounded("a message that was not sent comes back"))
            }
            Incoming::Content(_, method, ..) => Err(out_of_order(&method)),
            Incoming::Method(channel, method) => self.take_method(connection, channel, method),
        }
    }
}

impl Thread {
    fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            self.wait_for_work();
            if self.is_closing() {
                return;
            }
            let dialled = self.dialer.connect(
                &shared.options,
                &shared.heartbeats,
                &shared.bell,
                &shared.is_closing,
            );
            match dialled {
                Ok((mut connection, host)) => {
                    let fault = match self.talk(&mut connection) {
                        Err(fault) if !self.is_closing() => fault,
                        // Also the end of what was being asked.
                        _ => {
                            shared.state.lock().acknowledge(None);
                            self.part(&mut connection);
                            return;
                        }
                    };
                    self.replies = None;
                    connection.break_off(&fault);
                    if !self.has_declared && matches!(fault, Fault::Unusable(_)) {
                        shared.state.lock().refuse_all(&fault.text());
                        return;
                    }
                    let text = fault.text();
                    let mut state = shared.state.lock();
                    let refused = fault
                        .closed()
                        .and_then(|refusal| state.blame(refusal, Instant::now()));
                    let given_up = state.disconnect(&text, Loss::of(&fault));
                    drop(state);
                    if let Some(it) = refused {
                        tracing::error!("{it}");
                    }
                    for (request, text) in given_up {
                        tracing::error!("{} is given up: {text}", request.describe());
                    }
                    self.rest(Dialer::after_loss(&shared.options, &host, &text));
                }
                Err((text, is_permanent)) => {
                    if is_permanent && !self.dialer.has_connected() {
                        shared.state.lock().refuse_all(&text);
                        return;
                    }
                    shared.state.lock().count_attempt(&text);
                    let pause = self.dialer.after_failure(&shared.options, &text);
                    self.rest(pause);
                }
            }
            outbox::tell(&shared.failures);
        }
    }

    fn wait_for_work(&self) {
        loop {
            if self.is_closing() || self.shared.state.lock().needs_connection() {
                return;
            }
            self.wait_for_bell(None);
        }
    }

    /// New requests do not shorten it.
    fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_closing() {
            self.wait_for_bell(Some(until));
        }
    }

    /// Until the client is closed.
    fn talk(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let is_again = self.dialer.begin();
        let mut state = self.shared.state.lock();
        state.connect(
            Box::new(Arc::clone(&connection.link)),
            connection.frame_max,
            is_again,
            Instant::now(),
        );
        drop(state);
        if is_again {
            tracing::info!("Reconnected to AMQP server");
        }
        loop {
            while let Some(incoming) = connection.next()? {
                self.take(connection, incoming)?;
            }
            outbox::tell(&self.shared.failures);
            let now = Instant::now();
            if self.is_closing() {
                return Ok(());
            }
            let mut state = self.shared.state.lock();
            let need = state.flush(now);
            state.acknowledge(Some(now));
            let until = state.next_flush(now);
            let dozes = need.is_none() && state.begin_doze();
            drop(state);
            match need {
                Some(Need::Replies) => self.consume(connection)?,
                Some(Need::Route(exchange)) => self.open_route(connection, exchange)?,
                Some(Need::Queue {
                    exchange,
                    name,
                    arguments,
                }) => self.declare_default_queue(connection, &exchange, name, &arguments)?,
                Some(Need::Binding { exchange, name }) => {
                    self.bind(connection, &exchange, &name)?;
                }
                None => {
                    if dozes {
                        doze(now + LONGEST_DOZE, until, &self.shared.bell);
                        self.shared.state.lock().end_doze();
                    }
                    connection.read(until, &self.shared.bell)?;
                }
            }
        }
    }

    fn take_method(
        &mut self,
        connection: &mut Connection,
        channel: u16,
        method: Method,
    ) -> Result<(), Fault> {
        let Some(method) = connection.obey(channel, method)? else {
            return Ok(());
        };
        match (channel, method) {
            (channel, Method::Ack { tag, is_multiple }) => {
                self.settle(channel, tag, is_multiple, true)
            }
            (channel, Method::Nack { tag, is_multiple }) => {
                self.settle(channel, tag, is_multiple, false)
            }
            (channel, Method::Cancel { .. }) if self.replies == Some(channel) => {
                tracing::warn!("the broker has cancelled the consumer of replies");
                self.lose_consumer();
                connection.close_channel(channel)?;
                Ok(())
            }
            (channel, Method::ChannelClose(refusal)) => {
                if self.replies == Some(channel) {
                    self.lose_consumer();
                } else {
                    let mut state = self.shared.state.lock();
                    if !state.close_route(channel, &refusal, Instant::now()) {
                        return Err(unfounded("a channel that is not open was closed"));
                    }
                }
                connection.channel_closed(channel)?;
                tracing::error!("AMQP server has closed channel {channel}: {refusal}");
                Ok(())
            }
            (_, method) => Err(out_of_order(&method)),
        }
    }

    fn settle(
        &self,
        channel: u16,
        tag: u64,
        is_multiple: bool,
        is_taken: bool,
    ) -> Result<(), Fault> {
        let mut state = self.shared.state.lock();
        if state.settle(channel, tag, is_multiple, is_taken, Instant::now()) {
            return Ok(());
        }
        Err(unfounded("something that was not sent is confirmed"))
    }

    /// Before its channel is closed from here, or the broker hears that this side knows it to be: other
    /// threads write too, and what they wrote after that would cost the connection (504).
    fn lose_consumer(&mut self) {
        self.replies = None;
        self.shared.state.lock().set_replies(false);
    }

    fn deliver(&self, channel: u16, tag: u64, properties: &Properties, body: Vec<u8>) {
        let (size, now) = (body.len(), Instant::now());
        let found = if properties.is_plain_json() {
            envelope::reply(body)
        } else {
            Err(body)
        };
        let found = match found {
            Ok(reply) => Some(reply),
            Err(_) if properties.is_unreadable => None,
            Err(body) => (self.shared.decode)(properties, &body),
        };
        let mut state = self.shared.state.lock();
        state.arrived(channel, tag, size, now);
        let Some((msg_id, body)) = found else {
            drop(state);
            let queue = &self.shared.options.replies.name;
            tracing::error!(
                "a reply that cannot be read is dropped: queue {queue:?}, {properties:?}"
            );
            return;
        };
        let is_expected = state.reply(&msg_id, body, now);
        drop(state);
        if !is_expected {
            tracing::debug!("No calling threads waiting for msg_id : {msg_id}");
        }
    }

    /// Closes channels of exchanges until one is free; not that of the exchange *needed*.
    fn open_channel_beside(
        &mut self,
        connection: &mut Connection,
        needed: Option<&str>,
    ) -> Result<u16, Fault> {
        let patience = self.options().answers_within;
        let mut deadline = Instant::now() + patience;
        while !connection.has_free_channel() {
            let now = Instant::now();
            if connection.is_blocked {
                deadline = now + patience;
            }
            if now > deadline {
                return Err(Fault::Lost("no channel becomes free".to_owned()));
            }
            self.make_room(connection, needed)?;
        }
        self.shared.state.lock().keep_routes();
        self.open_free_channel(connection)
    }

    /// One step towards a free channel: that of an exchange is closed on which nothing is unconfirmed,
    /// or something is read.
    fn make_room(
        &mut self,
        connection: &mut Connection,
        needed: Option<&str>,
    ) -> Result<(), Fault> {
        if !connection.is_closing_channels() {
            let idle = self.shared.state.lock().remove_idle_route(needed);
            if let Some(channel) = idle {
                let request = methods::channel_close(channel);
                let outcome = self.ask(connection, channel, request, &Method::ChannelCloseOk);
                return match outcome {
                    Ok(()) => {
                        connection.free_channel(channel);
                        Ok(())
                    }
                    Err(Fault::Refused(_)) => Ok(()), // both sides have closed it at once
                    outcome => outcome,
                };
            }
        }
        if let Some(incoming) = connection.next()? {
            return self.take(connection, incoming);
        }
        self.pause(connection);
        if self.is_closing() {
            return Err(Fault::Lost("the transport is closed".to_owned()));
        }
        connection.read(Some(Instant::now() + LOOK), &self.shared.bell)
    }

    /// Opens the channel for an exchange, and declares it.
    fn open_route(
        &mut self,
        connection: &mut Connection,
        mut exchange: Exchange,
    ) -> Result<(), Fault> {
        let is_ok = Method::ExchangeDeclareOk;
        let mut channel = self.open_channel(connection)?;
        let mut outcome = Ok(());
        // The default exchange, to which replies go, is the broker's own.
        if !exchange.name.is_empty() {
            let request = methods::exchange_declare(channel, &exchange);
            outcome = self.ask(connection, channel, request, &is_ok);
        }
        if exchange.is_durable && is_of_other_durability(&outcome) {
            tracing::warn!("Force creating a non durable exchange.");
            channel = self.open_channel(connection)?;
            exchange.is_durable = false;
            let request = methods::exchange_declare(channel, &exchange);
            outcome = self.ask(connection, channel, request, &is_ok);
        }
        if outcome.is_ok() {
            let request = methods::confirm_select(channel);
            outcome = self.ask(connection, channel, request, &Method::SelectOk);
        }
        match outcome.map_err(|fault| fault.of(|| refusals::of_exchange(&exchange))) {
            Ok(()) => self.shared.state.lock().add_route(exchange.name, channel),
            Err(Fault::Refused(refusal)) => self.give_up(&exchange, None, &refusal),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    /// Declares the queue in which notifications wait for listeners. On a channel of its own, so that
    /// a refusal harms nothing that was sent to the exchange.
    fn declare_default_queue(
        &mut self,
        connection: &mut Connection,
        exchange: &Exchange,
        name: String,
        arguments: &Table,
    ) -> Result<(), Fault> {
        let mut bits = 0;
        if exchange.is_durable {
            bits |= methods::DURABLE;
        }
        if exchange.is_auto_delete {
            bits |= methods::AUTO_DELETE;
        }
        let channel = self.open_channel_beside(connection, Some(&exchange.name))?;
        let request = methods::queue_declare(channel, &name, bits, arguments);
        let mut outcome = self.ask(connection, channel, request, &Method::QueueDeclareOk);
        if outcome.is_ok() {
            let request = methods::queue_bind(channel, &name, &exchange.name, &name);
            outcome = self.ask(connection, channel, request, &Method::QueueBindOk);
        }
        let describe = || {
            let Exchange {
                is_durable,
                is_auto_delete,
                ..
            } = *exchange;
            refusals::of_queue(&name, is_durable, is_auto_delete, arguments)
        };
        match outcome.map_err(|fault| fault.of(describe)) {
            Ok(()) => {
                connection.close_channel(channel)?;
                self.shared.state.lock().add_queue(&exchange.name, name);
            }
            Err(Fault::Refused(refusal)) => self.give_up(exchange, Some(&name), &refusal),
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    /// Binds the queue of a server again, if there is one still. On a channel of its own, which a missing
    /// queue costs.
    fn bind(
        &mut self,
        connection: &mut Connection,
        exchange: &Exchange,
        name: &str,
    ) -> Result<(), Fault> {
        let channel = self.open_channel_beside(connection, Some(&exchange.name))?;
        let request = methods::queue_bind(channel, name, &exchange.name, name);
        let outcome = self.ask(connection, channel, request, &Method::QueueBindOk);
        let is_bound = match outcome {
            Ok(()) => {
                connection.close_channel(channel)?;
                true
            }
            Err(Fault::Refused(refusal)) => {
                tracing::debug!(
                    "queue {name:?} is not bound to {:?}: {refusal}",
                    exchange.name
                );
                false
            }
            Err(fault) => return Err(fault),
        };
        let mut state = self.shared.state.lock();
        state.settle_binding(&exchange.name, name, is_bound);
        drop(state);
        if is_bound {
            tracing::warn!(
                "exchange {:?} had lost its binding to queue {name:?}, as when it is deleted; bound \
                 again",
                exchange.name
            );
        }
        Ok(())
    }

    /// Nothing can be sent to *exchange*, or to the default queue *queue* of it.
    fn give_up(&self, exchange: &Exchange, queue: Option<&str>, refusal: &Refusal) {
        let mut state = self.shared.state.lock();
        state.refuse(&exchange.name, queue, refusal);
        drop(state);
        let name = &exchange.name;
        tracing::error!("Failed to publish message to topic '{name}': {refusal}");
    }

    /// Declares the reply queue and consumes from it.
    fn consume(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        match self.try_to_consume(connection) {
            // There is no other queue to try.
            Err(Fault::Refused(refusal) | Fault::Closed(refusal))
                if !self.has_declared
                    && refusal.verdict() != Verdict::Other
                    && (refusal.is_final() || refusal.code == INTERNAL_ERROR) =>
            {
                Err(Fault::Unusable(refusal.to_string()))
            }
            // A node of the queue is away; the next host may have another one.
            Err(Fault::Refused(refusal)) if refusal.code == NOT_FOUND || !refusal.is_final() => {
                Err(Fault::Lost(format!("no reply queue: {refusal}")))
            }
            Err(Fault::Refused(refusal)) => {
                let text = self
                    .shared
                    .state
                    .lock()
                    .bar(Need::Replies, &refusal, Instant::now());
                tracing::error!("{text}");
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn try_to_consume(&mut self, connection: &mut Connection) -> Result<(), Fault> {
        let queue = self.shared.options.replies.clone();
        let existed = !self.has_declared || self.has_queue(connection, &queue.name)?;
        let channel = self.open_channel(connection)?;
        let channel = declaring::declare_queue(self, connection, channel, &queue)?;
        // Replies may come before the answer.
        self.replies = Some(channel);
        let request = methods::consume(channel, &queue.name, 1, &queue.consumer_arguments);
        let outcome = self.ask(connection, channel, request, &Method::ConsumeOk);
        if outcome.is_err() {
            self.replies = None;
        }
        outcome.map_err(|fault| fault.of(|| format!("consumer of queue {:?}", queue.name)))?;
        self.has_declared = true;
        let mut state = self.shared.state.lock();
        state.set_replies(self.replies.is_some()); // it may be cancelled already
        // Requests in durable queues wait for their servers, as their callers do for them.
        let mut lost = 0;
        if !existed && !self.shared.options.has_durable_requests {
            lost = state.lose_requests(Instant::now());
        }
        drop(state);
        if lost > 0 {
            tracing::warn!(
                "the broker has lost its queues; {lost} calls in flight have {} s left",
                GRACE.as_secs()
            );
        }
        Ok(())
    }

    /// Asked on a channel of its own, since the answer "no" closes it.
    fn has_queue(&mut self, connection: &mut Connection, name: &str) -> Result<bool, Fault> {
        let channel = self.open_channel(connection)?;
        let request = methods::queue_declare(channel, name, methods::PASSIVE, &Vec::new());
        let outcome = self.ask(connection, channel, request, &Method::QueueDeclareOk);
        match outcome {
            Ok(()) => {
                connection.close_channel(channel)?;
                Ok(true)
            }
            Err(Fault::Refused(refusal)) if refusal.code == NOT_FOUND => Ok(false),
            Err(fault) => Err(fault.of(|| format!("queue {name:?}"))),
        }
    }
}

fn unfounded(text: &str) -> Fault {
    Fault::Violation(Violation::new(COMMAND_INVALID, text))
}
