//! What a broker's refusal of something that was declared means, and what an operator can do about it.
//!
//! Owns the reply codes that the same declaration would get again, and the remedies that are named with
//! them. Never decides what becomes of a request or of a listener.
//!
//! Rules: AMQP 0-9-1, reply codes and `connection.close`, which names the method that is to blame;
//! RabbitMQ's deprecated features (`deprecated_features.permit.*`, since 3.12), which it refuses with 541
//! as it does for errors of its own; the options of `[oslo_messaging_rabbit]`.

use std::fmt;

use super::methods::{
    BASIC_PUBLISH, CONNECTION_FORCED, Exchange, ExchangeType, Refusal, Table, Value,
};

/// What the same declaration would meet again: invalid path, access refused, not found, locked,
/// precondition failed, frame error, syntax error, command invalid, not allowed, not implemented.
const FINAL: [u16; 10] = [402, 403, 404, 405, 406, 501, 502, 503, 530, 540];
/// An error inside the broker: its metadata are out of reach for a moment, or it does not permit what was
/// asked for.
pub(super) const INTERNAL_ERROR: u16 = 541;
/// How often in turn connections may end over the same question, before that is counted as refused.
pub(super) const MOST_ENDED: u32 = 3;

/// What the end of a connection says of the question that the broker was asked as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: the broker stops, an operator has closed it, or something that was sent is to blame.
    Other,
    /// It may be why, or pass.
    Perhaps,
    /// It is why, and would be so again.
    Final,
}

impl Refusal {
    /// The same declaration would be refused again.
    pub(super) fn is_final(&self) -> bool {
        FINAL.contains(&self.code) || self.forbidden_feature().is_some()
    }

    /// What it says of a question, where it has closed the connection on which that was asked.
    pub(super) fn verdict(&self) -> Verdict {
        if self.code == CONNECTION_FORCED || self.method == BASIC_PUBLISH {
            Verdict::Other
        } else if self.is_of_another_method(BASIC_PUBLISH) && self.is_final() {
            Verdict::Final
        } else {
            Verdict::Perhaps
        }
    }

    /// It names the method that is to blame, and that is not *method*.
    pub(super) fn is_of_another_method(&self, method: (u16, u16)) -> bool {
        self.method != (0, 0) && self.method != method
    }

    /// As this, of the declaration of *what*.
    pub(super) fn of(mut self, what: String) -> Self {
        self.what = what;
        self
    }

    fn forbidden_feature(&self) -> Option<&str> {
        forbidden_feature(self.code, &self.text)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.what.is_empty() {
            write!(f, "{}: ", self.what)?;
        }
        write!(f, "{}: {}", self.code, self.text.trim_end())?;
        if !self.what.is_empty()
            && let Some(remedy) = remedy(self.code, &self.text)
        {
            write!(f, " ({remedy})")?;
        }
        Ok(())
    }
}

/// The deprecated feature over which a broker refuses something.
fn forbidden_feature(code: u16, text: &str) -> Option<&str> {
    let (_, rest) = text
        .split_once("Feature `")
        .filter(|_| code == INTERNAL_ERROR)?;
    let (feature, rest) = rest.split_once('`')?;
    let ends = [" is deprecated", " is not permitted", " is removed"];
    ends.iter()
        .any(|end| rest.starts_with(end))
        .then_some(feature)
}

/// What an operator can do where a broker refuses a declaration with this code and text; none where
/// that is not known.
#[must_use]
pub fn remedy(code: u16, text: &str) -> Option<String> {
    if let Some(feature) = forbidden_feature(code, text) {
        return Some(permission_of(feature));
    }
    let argument = || text.split_once("inequivalent arg '")?.1.split('\'').next();
    let remedy = match (code, argument()) {
        (403, _) => {
            "give the URL's user that permission, by `rabbitmqctl set_permissions`".to_owned()
        }
        (406, Some(argument)) => format!(
            "the broker has one of that name which was declared otherwise: set {} as its peers have \
             it, or delete it",
            option_of(argument)
        ),
        (406, None) if text.contains("limit") => {
            "raise the limit of the virtual host, by `rabbitmqctl set_vhost_limits`".to_owned()
        }
        (405, _) => {
            "another connection has it for itself: give this service another name, or end the \
                     other one"
                .to_owned()
        }
        (503 | 540, _) => {
            "the broker does not know this kind: enable the plugin that has it, or set \
                           the options of [oslo_messaging_rabbit] to what this broker has"
                .to_owned()
        }
        (530, _) => {
            "the broker does not allow it: compare the virtual host of transport_url and its \
                     limits, and the options of [oslo_messaging_rabbit]"
                .to_owned()
        }
        _ => return None,
    };
    Some(remedy)
}

fn permission_of(feature: &str) -> String {
    let instead = match feature {
        "transient_nonexcl_queues" => {
            "set [oslo_messaging_rabbit] rabbit_quorum_queue = true and rabbit_transient_quorum_queue = \
             true, here and in all its peers"
        }
        "classic_queue_mirroring" => {
            "set [oslo_messaging_rabbit] rabbit_quorum_queue = true instead of rabbit_ha_queues, here \
             and in all its peers"
        }
        _ => "declare it in another way",
    };
    format!(
        "{feature} is a deprecated feature of RabbitMQ. Either {instead}; or permit it in \
         rabbitmq.conf by deprecated_features.permit.{feature} = true, while the broker knows that feature"
    )
}

/// The options that decide about an argument of a queue or of an exchange.
fn option_of(argument: &str) -> String {
    let options = match argument {
        "durable" => "amqp_durable_queues and rabbit_quorum_queue",
        "auto_delete" => "amqp_auto_delete",
        "x-queue-type" => {
            "rabbit_quorum_queue, rabbit_transient_quorum_queue and rabbit_stream_fanout"
        }
        "x-expires" => "rabbit_transient_queues_ttl",
        "x-ha-policy" => "rabbit_ha_queues",
        "x-delivery-limit" => "rabbit_quorum_delivery_limit",
        "x-max-in-memory-length" => "rabbit_quorum_max_memory_length",
        "x-max-in-memory-bytes" => "rabbit_quorum_max_memory_bytes",
        _ => return format!("what decides about {argument}"),
    };
    format!("{options} in [oslo_messaging_rabbit]")
}

/// An exchange as it is declared, for errors.
pub(super) fn of_exchange(exchange: &Exchange) -> String {
    let kind = match exchange.kind {
        ExchangeType::Topic => "topic",
        ExchangeType::Fanout => "fanout",
    };
    let mut bits = String::new();
    for (name, is_set) in [
        (", durable", exchange.is_durable),
        (", auto_delete", exchange.is_auto_delete),
    ] {
        bits.push_str(if is_set { name } else { "" });
    }
    format!("exchange {:?} ({kind}{bits})", exchange.name)
}

/// A queue as it is declared, for errors.
pub(super) fn of_queue(
    name: &str,
    is_durable: bool,
    is_auto_delete: bool,
    arguments: &Table,
) -> String {
    let mut facts = Vec::new();
    if is_durable {
        facts.push("durable".to_owned());
    }
    if is_auto_delete {
        facts.push("auto_delete".to_owned());
    }
    facts.extend(arguments.iter().map(|(name, value)| match value {
        Value::Bool(value) => format!("{name}={value}"),
        Value::Int(value) => format!("{name}={value}"),
        Value::Text(value) => format!("{name}={value}"),
        Value::Table(_) => format!("{name}={{..}}"),
    }));
    if facts.is_empty() {
        return format!("queue {name:?}");
    }
    format!("queue {name:?} ({})", facts.join(", "))
}
