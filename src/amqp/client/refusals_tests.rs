//! Declarations that a broker refuses, on the channel or by closing the connection over them.
//!
//! Owns a broker that refuses what a test names, and does right otherwise.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;

use super::faults::Broker;
use super::refusals::Verdict;
use super::tests::{
    PATIENCE, Peer, Seen, call, cast, client, end_of, notification, refusal, reply_to,
};
use super::*;
use crate::amqp::frames::Reader;

const DECLARE_EXCHANGE: (u16, u16) = (40, 10);
const DECLARE_QUEUE: (u16, u16) = (50, 10);
const FORBIDDEN: &str = "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.";

/// How something is refused.
#[derive(Clone, Copy)]
enum How {
    OnItsChannel,
    /// By closing the connection, with the method that is to blame, or without.
    ByTheConnection((u16, u16)),
}

type Refused = Option<(u16, &'static str, How)>;

/// Refuses what *refuses* says of the number of the connection, a method and the name in it; confirms
/// and answers all else.
fn serve(
    number: usize,
    peer: &mut Peer,
    refuses: &impl Fn(usize, (u16, u16), &str) -> Refused,
) -> usize {
    peer.shake_hands(60);
    let mut tags: HashMap<u16, u64> = HashMap::new();
    while let Some((class, id, channel, arguments)) = peer.method() {
        let mut reader = Reader(&arguments);
        let name = reader.u16().and_then(|_| reader.short());
        let name = String::from_utf8_lossy(name.unwrap_or_default());
        match (refuses(number, (class, id), &name), (class, id)) {
            (Some((code, text, How::OnItsChannel)), _) => {
                peer.say(channel, 20, 40, &refusal(code, text));
            }
            (Some((code, text, How::ByTheConnection((class, id)))), _) => {
                let mut told = refusal(code, text);
                let ids = told.len() - 4;
                told.truncate(ids);
                told.extend_from_slice(&class.to_be_bytes());
                told.extend_from_slice(&id.to_be_bytes());
                peer.say(0, 10, 50, &told);
                while peer.method().is_some() {}
                return 0;
            }
            (None, (60, 40)) => {
                let Seen::Published(published) = peer.content(channel, &arguments) else {
                    panic!("a content is expected");
                };
                let tag = tags.entry(channel).or_default();
                *tag += 1;
                peer.confirm(channel, *tag);
                if published.body.starts_with(b"call") {
                    peer.deliver(*tag, &reply_to("7"));
                }
            }
            (None, (10, 50)) => {
                peer.say(0, 10, 51, &[]);
                return 0;
            }
            (None, (60, 10)) => peer.say(channel, 60, 11, &[]),
            (None, (class, id)) => {
                peer.answer(class, id, channel);
            }
        }
    }
    0
}

fn broker(
    refuses: impl Fn(usize, (u16, u16), &str) -> Refused + Send + 'static,
) -> (Broker, Client) {
    let broker = Broker::start(move |number, peer| serve(number, peer, &refuses));
    let client = client(&[broker.port], 60);
    (broker, client)
}

fn to_exchange(name: &str) -> Message {
    let exchange = Exchange {
        name: name.to_owned(),
        ..Exchange::default()
    };
    Message { exchange, ..cast() }
}

fn reason(event: &Event) -> &str {
    let Event::Failed(text) = event else {
        panic!("{event:?}");
    };
    text
}

fn end(broker: Broker, client: &Client) -> usize {
    client.close(Instant::now() + PATIENCE);
    let connections = broker.connections.load(Ordering::SeqCst);
    broker.end();
    connections
}

#[test]
fn an_exchange_over_which_the_broker_closes_the_connection_is_one_error() {
    let codes = [402, 403, 404, 405, 406, 501, 502, 503, 530, 540];
    for code in codes {
        let (broker, client) = broker(move |_, method, name| {
            let is_meant = method == DECLARE_EXCHANGE && name == "bad";
            is_meant.then_some((code, "no such kind", How::ByTheConnection(method)))
        });

        let bad = client.send(to_exchange("bad")).unwrap();
        let event = end_of(&bad);
        let text = reason(&event);
        assert!(text.contains("exchange \"bad\" (topic)"), "{text}");
        assert!(text.contains(&format!("{code}: no such kind")), "{text}");
        assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
        let again = end_of(&client.send(to_exchange("bad")).unwrap());
        assert_eq!(again, event, "it costs no further connection");
        assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);

        assert_eq!(end(broker, &client), 2, "{code}");
    }
}

#[test]
fn what_was_under_way_beside_a_refused_declaration_is_under_no_suspicion() {
    let refused = methods::Refusal {
        code: 503,
        method: DECLARE_EXCHANGE,
        ..methods::Refusal::default()
    };
    let of = |refusal: &methods::Refusal| {
        suspicion::Loss::of(&connection::Fault::Closed(refusal.clone()))
    };
    assert_eq!(of(&refused), suspicion::Loss::Forced);
    let published = methods::Refusal {
        method: methods::BASIC_PUBLISH,
        ..refused.clone()
    };
    assert_eq!(of(&published), suspicion::Loss::Refusal);
    assert_eq!(published.verdict(), Verdict::Other);
    let untold = methods::Refusal {
        method: (0, 0),
        ..refused
    };
    assert_eq!(of(&untold), suspicion::Loss::Refusal);
    assert_eq!(untold.verdict(), Verdict::Perhaps);
}

#[test]
fn what_may_pass_is_asked_for_three_times_and_a_broker_that_stops_is_for_ever() {
    for (code, method, is_final) in [
        (541, DECLARE_EXCHANGE, true),
        (503, (0, 0), true),
        (504, DECLARE_EXCHANGE, true),
        (320, DECLARE_EXCHANGE, false),
        (541, methods::BASIC_PUBLISH, false),
    ] {
        let (broker, client) = broker(move |number, asked, name| {
            let is_meant = asked == DECLARE_EXCHANGE && name == "bad" && (is_final || number < 5);
            is_meant.then_some((code, "not now", How::ByTheConnection(method)))
        });

        let event = end_of(&client.send(to_exchange("bad")).unwrap());
        assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);

        let connections = end(broker, &client);
        if is_final {
            assert!(reason(&event).contains("not now"), "{event:?}");
            assert_eq!(connections, 4, "{code}");
        } else {
            assert_eq!((event, connections), (Event::Taken, 6), "{code}");
        }
    }
}

#[test]
fn a_default_queue_over_which_the_broker_closes_the_connection_harms_no_other_notification() {
    let (broker, client) = broker(|_, method, name| {
        let is_meant = method == DECLARE_QUEUE && name == "bad";
        is_meant.then_some((541, FORBIDDEN, How::ByTheConnection(method)))
    });
    let bad = Message {
        routing_key: "bad".to_owned(),
        default_queue: Some(vec![("x-expires".to_owned(), Value::Int(5))]),
        ..notification()
    };

    let event = end_of(&client.send(bad).unwrap());
    let text = reason(&event);
    assert!(
        text.contains("queue \"bad\" (durable, x-expires=5)"),
        "{text}"
    );
    assert!(text.contains("rabbit_transient_quorum_queue"), "{text}");
    assert_eq!(end_of(&client.send(notification()).unwrap()), Event::Taken);

    assert_eq!(end(broker, &client), 2);
}

#[test]
fn a_reply_queue_that_is_refused_on_a_later_connection_fails_calls_and_nothing_else() {
    for how in [How::OnItsChannel, How::ByTheConnection(DECLARE_QUEUE)] {
        let lost = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&lost);
        let (broker, client) = broker(move |number, (class, id), name| match (class, id) {
            // The first connection ends with the second exchange.
            DECLARE_EXCHANGE if number == 0 && name == "other" => {
                counter.fetch_add(1, Ordering::SeqCst);
                Some((320, "CONNECTION_FORCED", How::ByTheConnection((0, 0))))
            }
            DECLARE_QUEUE if number > 0 => Some((403, "no permission", how)),
            _ => None,
        });
        let first = Message {
            body: b"call".to_vec(),
            ..call()
        };
        assert!(matches!(
            end_of(&client.send(first).unwrap()),
            Event::Reply(_)
        ));

        let other = client.send(to_exchange("other")).unwrap();
        assert_eq!(end_of(&other), Event::Taken);
        let event = end_of(&client.send(call()).unwrap());
        let text = reason(&event);
        assert!(text.contains("no permission"), "{text}");
        assert!(text.contains("set_permissions"), "{text}");
        assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);

        assert_eq!(lost.load(Ordering::SeqCst), 1);
        let connections = end(broker, &client);
        assert!(connections <= 3, "{connections}");
    }
}

#[test]
fn a_listener_that_a_later_connection_is_closed_over_rests_longer_each_time() {
    let queue = |name: &str| Queue {
        name: name.to_owned(),
        ..Queue::default()
    };
    let refused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refused);
    let (broker, client) = broker(move |number, method, name| {
        if number == 0 && (method, name) == (DECLARE_QUEUE, "last") {
            return Some((320, "CONNECTION_FORCED", How::ByTheConnection((0, 0))));
        }
        let is_meant = number > 0 && (method, name) == (DECLARE_QUEUE, "bad");
        is_meant.then(|| {
            counter.fetch_add(1, Ordering::SeqCst);
            (541, "INTERNAL_ERROR", How::ByTheConnection(method))
        })
    });
    let subscriber = Subscriber::new(&client).unwrap();
    let subscribe = |name| {
        let subscription = subscriber.subscribe(vec![queue(name)], 8).unwrap();
        let standing = subscription.wait_standing(Some(Instant::now() + PATIENCE));
        assert_eq!(standing, Standing::Consuming, "{name}");
        subscription
    };
    let _good = subscribe("good");
    let _bad = subscribe("bad");

    let _last = subscribe("last");

    let connections = broker.connections.load(Ordering::SeqCst);
    let refused = refused.load(Ordering::SeqCst);
    assert!(connections <= 2 + refused && refused <= 2, "{refused}");
    subscriber.close(Instant::now() + PATIENCE);
    end(broker, &client);
}

#[test]
fn a_new_listener_waits_for_a_broker_that_cannot_now_and_not_for_one_that_never_will() {
    for (text, is_final) in [("INTERNAL_ERROR - timed out", false), (FORBIDDEN, true)] {
        let (broker, client) = broker(move |number, method, _| {
            let is_meant = method == DECLARE_QUEUE && (is_final || number == 0);
            is_meant.then_some((541, text, How::ByTheConnection(method)))
        });
        let subscriber = Subscriber::new(&client).unwrap();
        let queue = Queue {
            name: "q".to_owned(),
            ..Queue::default()
        };

        let subscription = subscriber.subscribe(vec![queue], 8).unwrap();
        let standing = subscription.wait_standing(Some(Instant::now() + PATIENCE));

        if is_final {
            let Standing::Refused(541, text) = standing else {
                panic!("{standing:?}");
            };
            assert!(text.contains("queue \"q\""), "{text}");
            assert!(text.contains("deprecated_features.permit"), "{text}");
        } else {
            assert_eq!(standing, Standing::Consuming);
        }
        subscriber.close(Instant::now() + PATIENCE);
        end(broker, &client);
    }
}

#[test]
fn an_operator_is_told_which_option_or_command_there_is() {
    let inequivalent = |argument: &str| {
        format!("PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'q' in vhost '/'")
    };
    for (code, text, expected) in [
        (403, "ACCESS_REFUSED".to_owned(), "set_permissions"),
        (406, inequivalent("durable"), "amqp_durable_queues"),
        (
            406,
            inequivalent("x-expires"),
            "rabbit_transient_queues_ttl",
        ),
        (406, inequivalent("x-queue-type"), "rabbit_quorum_queue"),
        (406, inequivalent("x-of-a-plugin"), "x-of-a-plugin"),
        (
            406,
            "queue limit in vhost '/' is reached".to_owned(),
            "set_vhost_limits",
        ),
        (
            503,
            "COMMAND_INVALID - unknown exchange type".to_owned(),
            "plugin",
        ),
        (530, "NOT_ALLOWED".to_owned(), "virtual host"),
        (541, FORBIDDEN.to_owned(), "rabbit_transient_quorum_queue"),
    ] {
        let told = remedy(code, &text).unwrap();
        assert!(told.contains(expected), "{told}");
    }
    for (code, text) in [(541, "INTERNAL_ERROR"), (404, FORBIDDEN), (320, "")] {
        assert_eq!(remedy(code, text), None);
    }
}
