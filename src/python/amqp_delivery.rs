//! `AmqpDelivery` for Python: one message that has arrived.
//!
//! Converts; decides nothing.

use pyo3::prelude::*;

use super::amqp_client::text_or_bytes;
use crate::amqp::client::{Delivery, PickUp};

/// A message that has arrived.
#[pyclass(frozen, module = "osloxide._native")]
#[derive(Debug)]
pub(super) struct AmqpDelivery {
    delivery: Delivery,
}

/// What became of a request, as Python sees it.
pub(super) fn name_of(picked_up: PickUp) -> &'static str {
    match picked_up {
        PickUp::Run => "run",
        PickUp::Twice => "twice",
        PickUp::GivenBack => "given back",
        PickUp::Lost => "lost",
    }
}

impl AmqpDelivery {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self { delivery }
    }
}

#[pymethods]
impl AmqpDelivery {
    /// Text where it is UTF-8.
    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        text_or_bytes(py, &self.delivery.body)
    }

    /// None where the body is no envelope of oslo.messaging.
    #[getter]
    fn message(&self) -> Option<&str> {
        self.delivery.message.as_deref()
    }

    #[pyo3(signature = (unique_id=None))]
    fn pick_up(&self, unique_id: Option<&str>) -> &'static str {
        name_of(self.delivery.pick_up(unique_id))
    }

    #[getter]
    fn content_type(&self) -> &str {
        &self.delivery.properties.content_type
    }

    #[getter]
    fn content_encoding(&self) -> &str {
        &self.delivery.properties.content_encoding
    }

    #[getter]
    fn compression(&self) -> Option<&str> {
        self.delivery.properties.compression.as_deref()
    }

    #[getter]
    fn is_plain_json(&self) -> bool {
        self.delivery.is_plain_json()
    }

    #[getter]
    fn delivery_count(&self) -> i64 {
        self.delivery.properties.delivery_count.unwrap_or(0)
    }

    #[getter]
    fn is_kept(&self) -> bool {
        self.delivery.is_kept
    }

    fn acknowledge(&self) -> bool {
        self.delivery.acknowledge()
    }

    fn requeue(&self) -> bool {
        self.delivery.requeue()
    }

    fn give_back(&self) -> bool {
        self.delivery.give_back()
    }

    fn reject(&self) -> bool {
        self.delivery.reject()
    }
}
