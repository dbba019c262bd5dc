//! `AmqpClient` for Python: requests of RPC clients, and what becomes of them.
//!
//! Converts arguments and releases the interpreter around [`crate::amqp::client`]; decides nothing.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::{getpid, gettid};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyString};

use crate::amqp::client::{
    self, Client, Event, Exchange, ExchangeType, Host, Mechanism, Message, Options, Pauses,
    PendingRequest, Properties, Queue, Table, TlsFiles, Value,
};

/// How long the main thread waits before it lets Python signal handlers run.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// A cluster that recovers may take long to declare a queue; one that takes longer has forgotten it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(180);

/// What an operator can do where a broker refuses a declaration.
#[pyfunction]
pub(super) fn amqp_remedy(code: u16, text: &str) -> Option<String> {
    client::remedy(code, text)
}

/// One client of a transport.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpClient {
    pub(super) client: Client,
}

/// One request under way.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpRequest {
    pending: PendingRequest,
}

/// Authorities, whether names are compared, and certificate and key of this side.
type Tls = (Option<Vec<PathBuf>>, bool, Option<(PathBuf, PathBuf)>);

#[pymethods]
impl AmqpClient {
    #[new]
    #[pyo3(signature = (
        hosts, virtual_host, mechanism, heartbeat, connection_name, reply_queue, pauses, decode, *,
        tls=None, durable_replies=false, queue_arguments=None, consumer_arguments=None,
        shuffle=false, durable_requests=false,
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn new(
        hosts: Vec<(String, u16, String, String)>,
        virtual_host: String,
        mechanism: &str,
        heartbeat: u16,
        connection_name: String,
        reply_queue: String,
        pauses: (f64, f64, f64, f64, f64),
        decode: Py<PyAny>,
        tls: Option<Tls>,
        durable_replies: bool,
        queue_arguments: Option<&Bound<'_, PyDict>>,
        consumer_arguments: Option<&Bound<'_, PyDict>>,
        shuffle: bool,
        durable_requests: bool,
    ) -> PyResult<Self> {
        let mechanism = match mechanism {
            "AMQPLAIN" => Mechanism::AmqPlain,
            "PLAIN" => Mechanism::Plain,
            "EXTERNAL" => Mechanism::External,
            other => {
                return Err(PyValueError::new_err(format!(
                    "login method {other:?} is none of AMQPLAIN, PLAIN and EXTERNAL"
                )));
            }
        };
        let (first, step, longest, delay, splay) = pauses;
        let options = Options {
            hosts: hosts
                .into_iter()
                .map(|(name, port, user, password)| Host {
                    name,
                    port,
                    user,
                    password,
                })
                .collect(),
            virtual_host,
            mechanism,
            heartbeat,
            connection_name,
            tls: tls.map(|(roots, checks_name, identity)| TlsFiles {
                roots,
                checks_name,
                identity,
            }),
            replies: Queue {
                name: reply_queue,
                is_durable: durable_replies,
                arguments: table(queue_arguments)?,
                consumer_arguments: table(consumer_arguments)?,
                ..Queue::default()
            },
            pauses: Pauses {
                first: seconds(first)?,
                step: seconds(step)?,
                longest: seconds(longest)?,
                delay: seconds(delay)?,
                splay: seconds(splay)?,
            },
            shuffles: shuffle,
            has_durable_requests: durable_requests,
            answers_within: ANSWERS_WITHIN,
        };
        let decode = Box::new(move |properties: &Properties, body: &[u8]| {
            decoded(&decode, properties, body)
        });
        Ok(Self {
            client: Client::new(options, decode)?,
        })
    }

    /// The interpreter is kept: what can be written is, and nothing is waited for.
    #[pyo3(signature = (
        exchange, routing_key, body, *, fanout=false, durable=false, auto_delete=false,
        default_queue=None, expiration=None, mandatory=false, msg_id=None, timeout=None,
        monitor=None, retries=None,
    ))]
    #[expect(
        clippy::too_many_arguments,
        clippy::fn_params_excessive_bools,
        reason = "keyword arguments of Python"
    )]
    fn send(
        &self,
        exchange: String,
        routing_key: String,
        body: String,
        fanout: bool,
        durable: bool,
        auto_delete: bool,
        default_queue: Option<&Bound<'_, PyDict>>,
        expiration: Option<u64>,
        mandatory: bool,
        msg_id: Option<String>,
        timeout: Option<f64>,
        monitor: Option<f64>,
        retries: Option<u32>,
    ) -> PyResult<AmqpRequest> {
        let kind = if fanout {
            ExchangeType::Fanout
        } else {
            ExchangeType::Topic
        };
        let default_queue = default_queue
            .map(|arguments| table(Some(arguments)))
            .transpose()?;
        let pending = self.client.send(Message {
            exchange: Exchange {
                name: exchange,
                kind,
                is_durable: durable,
                is_auto_delete: auto_delete,
            },
            routing_key,
            default_queue,
            body: body.into_bytes(),
            expiration,
            is_mandatory: mandatory,
            msg_id,
            answered_within: timeout.map(seconds).transpose()?,
            heard_within: monitor.map(seconds).transpose()?,
            retries,
            missing_for: None,
        })?;
        Ok(AmqpRequest { pending })
    }

    #[getter]
    fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let deadline = Instant::now() + seconds(timeout)?;
        py.detach(|| self.client.close(deadline));
        Ok(())
    }
}

#[pymethods]
impl AmqpRequest {
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<(&'static str, Option<Bound<'py, PyAny>>)> {
        let event = in_turns(py, |look| match look {
            None => Some(self.pending.wait()),
            Some(look) => self.pending.wait_until(look),
        })?;
        told(py, event)
    }
}

/// Waits by *wait* until *deadline*; none when it passed first. The main thread runs signal handlers
/// in between.
pub(super) fn wait_in_turns<T: Send>(
    py: Python<'_>,
    deadline: Option<Instant>,
    wait: impl Fn(Option<Instant>) -> Option<T> + Sync,
) -> PyResult<Option<T>> {
    in_turns(py, |look| {
        let until = [deadline, look].into_iter().flatten().min();
        let found = wait(until);
        (found.is_some() || until == deadline).then_some(found)
    })
}

/// Waits by *wait*, which is told when to come back at the latest, with or without what it waits for:
/// on the main thread alone, where a signal handler may have to run.
fn in_turns<T: Send>(
    py: Python<'_>,
    wait: impl Fn(Option<Instant>) -> Option<T> + Sync,
) -> PyResult<T> {
    let is_main_thread = gettid() == getpid();
    loop {
        let look = is_main_thread.then(|| Instant::now() + PATIENCE);
        if let Some(found) = py.detach(|| wait(look)) {
            return Ok(found);
        }
        py.check_signals()?;
    }
}

/// Text where it is UTF-8, which Python's `json` reads faster.
pub(super) fn text_or_bytes<'py>(py: Python<'py>, body: &[u8]) -> Bound<'py, PyAny> {
    match str::from_utf8(body) {
        Ok(text) => PyString::new(py, text).into_any(),
        Err(_) => PyBytes::new(py, body).into_any(),
    }
}

/// An event as Python sees it.
pub(super) fn told(
    py: Python<'_>,
    event: Event,
) -> PyResult<(&'static str, Option<Bound<'_, PyAny>>)> {
    let text = |text: String| text.into_pyobject(py).map(|text| Some(text.into_any()));
    Ok(match event {
        Event::Reply(body) => ("reply", Some(text_or_bytes(py, &body))),
        Event::Taken => ("taken", None),
        Event::Undeliverable(code, text) => {
            let detail = (code, text).into_pyobject(py)?;
            ("undeliverable", Some(detail.into_any()))
        }
        Event::Failed(reason) => ("failed", text(reason)?),
        Event::Unusable(reason) => ("unusable", text(reason)?),
        Event::Lost => ("lost", None),
        Event::TimedOut => ("timeout", None),
    })
}

/// What Python makes of a reply that is not plain JSON. An exception there is no thread's: it is
/// reported as one that cannot be raised.
fn decoded(decode: &Py<PyAny>, properties: &Properties, body: &[u8]) -> Option<(String, Vec<u8>)> {
    Python::attach(|py| {
        let arguments = (
            &properties.content_type,
            &properties.content_encoding,
            &properties.compression,
            PyBytes::new(py, body),
        );
        let result = decode
            .call1(py, arguments)
            .and_then(|found| found.extract::<Option<(String, Vec<u8>)>>(py));
        match result {
            Ok(found) => found,
            Err(error) => {
                error.write_unraisable(py, None);
                None
            }
        }
    })
}

pub(super) fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|error| PyValueError::new_err(format!("{value} s: {error}")))
}

pub(super) fn table(fields: Option<&Bound<'_, PyDict>>) -> PyResult<Table> {
    let Some(fields) = fields else {
        return Ok(Table::new());
    };
    fields
        .iter()
        .map(|(name, value)| Ok((name.extract()?, field(&value)?)))
        .collect()
}

fn field(value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if value.is_instance_of::<PyBool>() {
        return Ok(Value::Bool(value.extract()?));
    }
    if let Ok(number) = value.extract::<i64>() {
        return Ok(Value::Int(number));
    }
    if let Ok(text) = value.extract::<String>() {
        return Ok(Value::Text(text));
    }
    Err(PyTypeError::new_err(format!(
        "an argument of a queue is {value}; give a bool, an int or a str"
    )))
}
