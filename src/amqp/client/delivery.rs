//! One message that has arrived, and what its listener may say about it.
//!
//! Owns what arrived, and the names of what may become of it. Who says so, and when a tag means
//! something, is decided in `listening.rs`.
//!
//! Rules: AMQP 0-9-1, `basic.deliver`; docs/rpc.md.

use std::fmt;
use std::sync::Arc;

use super::envelope::Head;
use super::methods::{self, Properties};

/// A message that has arrived.
pub struct Delivery {
    /// Of its content.
    pub properties: Properties,
    /// As it was sent.
    pub body: Vec<u8>,
    /// The message in the body, where that is an envelope of oslo.messaging and no more.
    pub message: Option<String>,
    /// From a queue, which keeps it until it is acknowledged; streams deliver nothing again.
    pub is_kept: bool,
    settling: Arc<dyn Settling>,
    epoch: u64,
    tag: u64,
}

/// Says to the broker what becomes of deliveries; a tag means something in its epoch alone.
pub(super) trait Settling: Send + Sync {
    /// Sends what *frame* makes of a channel and *tag*; false when nothing was said: the epoch is over,
    /// or the delivery was acknowledged before, since it had waited for long.
    fn settle(&self, epoch: u64, tag: u64, frame: fn(u16, u64) -> Vec<u8>) -> bool;
    /// See [`Delivery::pick_up`].
    fn pick_up(&self, epoch: u64, tag: u64, is_kept: bool, unique_id: Option<&str>) -> PickUp;
    /// See [`Delivery::give_back`].
    fn give_back(&self, epoch: u64, tag: u64, is_kept: bool) -> bool;
    /// The channel of *epoch* is open.
    #[cfg(test)]
    fn is_current(&self, epoch: u64) -> bool;
}

/// Takes a delivery on the thread that reads, without waiting; gives it back where it cannot.
pub type Sink = Arc<dyn Fn(Delivery, Head) -> Option<Delivery> + Send + Sync>;

/// What becomes of a request that a thread is about to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickUp {
    /// It is the process's from now on.
    Run,
    /// It runs here already, or has; the broker was told to forget it.
    Twice,
    /// The listener has stopped, and another one gets it.
    GivenBack,
    /// Its channel is closed, and the broker delivers it again.
    Lost,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("epoch", &self.epoch)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    pub(super) fn new(
        properties: Properties,
        body: Vec<u8>,
        message: Option<String>,
        settling: Arc<dyn Settling>,
        epoch: u64,
        tag: u64,
    ) -> Self {
        Self {
            properties,
            body,
            message,
            is_kept: true,
            settling,
            epoch,
            tag,
        }
    }

    /// Its epoch and its tag.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.epoch, self.tag)
    }

    /// Acknowledges a request, now that a thread is about to run it: unless it must not run here.
    /// `unique_id` is by what it is known when it is delivered twice.
    #[must_use]
    pub fn pick_up(&self, unique_id: Option<&str>) -> PickUp {
        self.settling
            .pick_up(self.epoch, self.tag, self.is_kept, unique_id)
    }

    /// Lets the broker forget it; false when nothing was said: its epoch is over, or it was acknowledged
    /// before, since it had waited for long.
    #[must_use]
    pub fn acknowledge(&self) -> bool {
        self.settling.settle(self.epoch, self.tag, methods::ack)
    }

    /// Gives it back to its queue; as [`Delivery::acknowledge`].
    #[must_use]
    pub fn requeue(&self) -> bool {
        self.settling.settle(self.epoch, self.tag, methods::requeue)
    }

    /// Lets the broker deliver again what no thread will pick up here. False when nothing can: it was
    /// acknowledged before, since it had waited for long, or comes from a stream. It is lost then.
    #[must_use = "a request that is lost is told of"]
    pub fn give_back(&self) -> bool {
        self.settling.give_back(self.epoch, self.tag, self.is_kept)
    }

    /// Drops it; as [`Delivery::acknowledge`].
    #[must_use]
    pub fn reject(&self) -> bool {
        self.settling.settle(self.epoch, self.tag, methods::reject)
    }

    /// The body is JSON text as it stands.
    #[must_use]
    pub fn is_plain_json(&self) -> bool {
        self.properties.is_plain_json()
    }
}

#[cfg(test)]
impl Delivery {
    /// Its channel is closed: the broker delivers it again.
    pub(super) fn is_over(&self) -> bool {
        !self.settling.is_current(self.epoch)
    }
}
