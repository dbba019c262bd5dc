//! `AmqpSubscriber` for Python: what listeners consume, what arrives, and replies that no thread waits
//! for.
//!
//! Converts arguments and releases the interpreter around [`crate::amqp::client`]; decides nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};

use super::amqp_client::{AmqpClient, seconds, table, told, wait_in_turns};
use super::amqp_delivery::AmqpDelivery;
use super::executor::Executor;
use super::signals;
use crate::amqp::client::{
    Arrival, Closure, Exchange, ExchangeType, FailedReply, Message, Outbox, Queue, Standing,
    Subscriber, Subscription,
};

/// The connection of all listeners of a transport.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpSubscriber {
    subscriber: Subscriber,
}

/// A queue as it is declared and consumed.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpQueue {
    queue: Queue,
}

/// What one listener consumes.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpSubscription {
    subscription: Subscription,
}

/// The replies of one listener.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpOutbox {
    client: Py<AmqpClient>,
    outbox: Arc<Outbox>,
}

#[pymethods]
impl AmqpQueue {
    #[new]
    #[pyo3(signature = (
        name, exchange, routing_key, *, fanout=false, durable=false, exchange_auto_delete=false,
        auto_delete=false, arguments=None, consumer_arguments=None, stream=false, own=false,
    ))]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keyword arguments of Python"
    )]
    fn new(
        name: String,
        exchange: String,
        routing_key: String,
        fanout: bool,
        durable: bool,
        exchange_auto_delete: bool,
        auto_delete: bool,
        arguments: Option<&Bound<'_, PyDict>>,
        consumer_arguments: Option<&Bound<'_, PyDict>>,
        stream: bool,
        own: bool,
    ) -> PyResult<Self> {
        let kind = if fanout {
            ExchangeType::Fanout
        } else {
            ExchangeType::Topic
        };
        Ok(Self {
            queue: Queue {
                exchange: Exchange {
                    name: exchange,
                    kind,
                    is_durable: durable,
                    is_auto_delete: exchange_auto_delete,
                },
                name,
                routing_key,
                is_durable: durable,
                is_auto_delete: auto_delete,
                arguments: table(arguments)?,
                consumer_arguments: table(consumer_arguments)?,
                is_stream: stream,
                is_own: own,
            },
        })
    }
}

#[pymethods]
impl AmqpSubscriber {
    #[new]
    fn new(client: &AmqpClient) -> PyResult<Self> {
        Ok(Self {
            subscriber: Subscriber::new(&client.client)?,
        })
    }

    fn subscribe(
        &self,
        py: Python<'_>,
        queues: Vec<Bound<'_, AmqpQueue>>,
        prefetch: u16,
    ) -> PyResult<AmqpSubscription> {
        let queues = queues
            .into_iter()
            .map(|queue| queue.get().queue.clone())
            .collect();
        Ok(AmqpSubscription {
            subscription: py.detach(|| self.subscriber.subscribe(queues, prefetch))?,
        })
    }

    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let deadline = Instant::now() + seconds(timeout)?;
        py.detach(|| self.subscriber.close(deadline));
        Ok(())
    }
}

#[pymethods]
impl AmqpSubscription {
    #[pyo3(signature = (timeout=None))]
    fn wait_standing<'py>(
        &self,
        py: Python<'py>,
        timeout: Option<f64>,
    ) -> PyResult<(&'static str, Option<Bound<'py, PyAny>>)> {
        let deadline = signals::deadline_in(timeout)?;
        let standing = wait_in_turns(py, deadline, |until| {
            let standing = self.subscription.wait_standing(until);
            (standing != Standing::TimedOut).then_some(standing)
        })?;
        Ok(match standing.unwrap_or(Standing::TimedOut) {
            Standing::Consuming => ("consuming", None),
            Standing::Refused(_, text) => ("refused", Some(PyString::new(py, &text).into_any())),
            Standing::Unusable(text) => ("unusable", Some(PyString::new(py, &text).into_any())),
            Standing::Closed => ("closed", None),
            Standing::TimedOut => ("timeout", None),
        })
    }

    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<AmqpDelivery>> {
        // With the interpreter held, which a busy listener would have to wait for each time.
        if let Arrival::Message(delivery) = self.subscription.next(Some(Instant::now())) {
            return Ok(Some(AmqpDelivery::new(delivery)));
        }
        let deadline = signals::deadline_in(timeout)?;
        let arrival = wait_in_turns(py, deadline, |until| match self.subscription.next(until) {
            Arrival::Message(delivery) => Some(Some(delivery)),
            Arrival::Interrupted => Some(None),
            Arrival::TimedOut => None,
        })?;
        Ok(arrival.flatten().map(AmqpDelivery::new))
    }

    fn stop(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let deadline = Instant::now() + seconds(timeout)?;
        Ok(py.detach(|| self.subscription.stop(deadline)))
    }

    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let deadline = Instant::now() + seconds(timeout)?;
        Ok(py.detach(|| self.subscription.close(deadline)))
    }

    #[getter]
    fn is_over(&self) -> bool {
        self.subscription.is_over()
    }

    fn take_closures(&self) -> Vec<(String, Option<f64>)> {
        let told = |(reason, waited): Closure| (reason, waited.map(|it| it.as_secs_f64()));
        self.subscription
            .take_closures()
            .into_iter()
            .map(told)
            .collect()
    }

    fn deliver_to(&self, executor: &Bound<'_, Executor>, handler: Py<PyAny>) {
        self.subscription.deliver_to(executor.get().sink(handler));
    }

    fn has_begun(&self, unique_id: &str) -> bool {
        self.subscription.has_begun(unique_id)
    }

    fn acknowledge_old(&self, longest: f64, most: usize) -> PyResult<(Vec<f64>, usize)> {
        let (waits, early) = self.subscription.acknowledge_old(seconds(longest)?, most);
        Ok((waits.iter().map(Duration::as_secs_f64).collect(), early))
    }
}

fn tell(py: Python<'_>, on_failure: &Py<PyAny>, failed: FailedReply) -> PyResult<()> {
    let (kind, detail) = told(py, failed.end)?;
    let body = PyBytes::new(py, &failed.body);
    on_failure.call1(py, (failed.queue, body, kind, detail))?;
    Ok(())
}

#[pymethods]
impl AmqpOutbox {
    #[new]
    fn new(client: Bound<'_, AmqpClient>, on_failure: Py<PyAny>) -> Self {
        let tell = move |failed: FailedReply| {
            Python::attach(|py| {
                if let Err(error) = tell(py, &on_failure, failed) {
                    error.write_unraisable(py, Some(on_failure.bind(py)));
                }
            });
        };
        let outbox = client.get().client.outbox(Box::new(tell));
        Self {
            client: client.unbind(),
            outbox,
        }
    }

    /// The interpreter is kept: what can be written is, and nothing is waited for.
    #[pyo3(signature = (queue, body, *, mandatory=true, missing_for=0.0))]
    fn reply(
        &self,
        queue: String,
        body: String,
        mandatory: bool,
        missing_for: f64,
    ) -> PyResult<()> {
        let message = Message {
            routing_key: queue,
            body: body.into_bytes(),
            is_mandatory: mandatory,
            missing_for: mandatory.then_some(seconds(missing_for)?),
            ..Message::default()
        };
        Ok(self.client.get().client.reply(message, &self.outbox)?)
    }

    fn wait_for_room(&self, py: Python<'_>, most: usize, timeout: f64) -> PyResult<bool> {
        let now = Instant::now();
        // With the interpreter held, which a busy server would have to wait for each time.
        if self.outbox.wait_for_room(most, now) {
            return Ok(true);
        }
        let deadline = now + seconds(timeout)?;
        let client = &self.client.get().client;
        Ok(py.detach(|| client.wait_for_room(&self.outbox, most, deadline)))
    }

    fn wait_confirmed(&self, py: Python<'_>, timeout: f64) -> PyResult<(usize, usize)> {
        let deadline = Instant::now() + seconds(timeout)?;
        let client = &self.client.get().client;
        Ok(py.detach(|| client.wait_confirmed(&self.outbox, deadline)))
    }
}
