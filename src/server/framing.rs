//! Framing checks that hyper does not make. Being filled.

/// Watches the bytes of a connection.
#[derive(Debug, Default)]
pub(super) struct Observer {
    seen: bool,
}

impl Observer {
    pub(super) fn is_between_messages(&self) -> bool {
        !self.seen
    }
}
