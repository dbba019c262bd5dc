//! What waits while a broker does not answer a question, and what does not.
//!
//! The broker here lives, and answers everything but what is declared under one name. Where that ends
//! the connection, it is the broker that ends it, so that no time decides what a test sees: to the client
//! that is the same as an answer that does not come in time.

use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use super::tests::{PATIENCE, Peer, Seen, call, cast, client, end_of, notification, returned};
use super::*;
use crate::amqp::frames::Reader;

/// What is never declared here.
const SLOW: &str = "slow";

/// Where no message is taken from an exchange.
const GONE: &str = "gone";
/// Long enough for every answer that does come, and short enough to wait for.
const SHORT: Duration = Duration::from_millis(500);

/// How often [`SLOW`] was to be declared.
#[derive(Default)]
struct Asked {
    times: Mutex<usize>,
    changed: Condvar,
}

/// See the head of this file.
struct Broker {
    port: u16,
    asked: Arc<Asked>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Broker {
    /// One that says nothing where it is asked for [`SLOW`].
    fn new() -> Self {
        Self::of(false)
    }

    /// One that *hangs up* where it is asked for [`SLOW`], or says nothing.
    fn of(hangs_up: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Asked>::default();
        let is_over = Arc::new(AtomicBool::new(false));
        let (counter, ends) = (Arc::clone(&asked), Arc::clone(&is_over));
        let accept = move || {
            loop {
                let (stream, _) = listener.accept().unwrap();
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
                converse(
                    &mut Peer {
                        stream,
                        consumer: 0,
                    },
                    &counter,
                    hangs_up,
                );
            }
        };
        let thread = thread::Builder::new().spawn(accept).unwrap();
        Self {
            port,
            asked,
            is_over,
            thread,
        }
    }

    fn client(&self, answers_within: Duration) -> Client {
        let mut options = client(&[self.port], 60).shared.options.clone();
        options.answers_within = answers_within;
        Client::new(options, Box::new(|_, _| None)).unwrap()
    }

    fn wait_asked(&self, times: usize) {
        let end = Instant::now() + PATIENCE;
        let mut asked = self.asked.times.lock();
        let is_early = |asked: &mut usize| *asked < times;
        let changed = &self.asked.changed;
        let waited = changed.wait_while_until(&mut asked, is_early, end);
        assert!(!waited.timed_out(), "asked for {SLOW} {times} times");
    }

    fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(("127.0.0.1", self.port));
        self.thread.join().unwrap();
    }
}

fn converse(peer: &mut Peer, asked: &Asked, hangs_up: bool) {
    peer.shake_hands(60);
    let mut tags: std::collections::HashMap<u16, u64> = std::collections::HashMap::new();
    while let Some((class, id, channel, arguments)) = peer.method() {
        match (class, id) {
            (40 | 50, 10) => {
                let mut reader = Reader(&arguments);
                reader.u16();
                if reader.short() == Some(SLOW.as_bytes()) {
                    *asked.times.lock() += 1;
                    asked.changed.notify_all();
                    if hangs_up {
                        return;
                    }
                    continue;
                }
                peer.answer(class, id, channel);
            }
            (60, 40) => {
                let Seen::Published(published) = peer.content(channel, &arguments) else {
                    panic!("a content is expected");
                };
                let tag = tags.entry(channel).or_default();
                *tag += 1;
                if published.routing_key == GONE {
                    peer.send(&returned(&published));
                }
                peer.confirm(published.channel, *tag);
            }
            (60, 10) => peer.say(channel, 60, 11, &[]),
            (10, 50) => peer.say(0, 10, 51, &[]),
            _ => {
                peer.answer(class, id, channel);
            }
        }
    }
}

fn to(exchange: &str, message: Message) -> Message {
    let mut message = message;
    message.exchange.name = exchange.to_owned();
    message
}

fn close(broker: Broker, client: &Client) {
    client.close(Instant::now() + PATIENCE);
    broker.end();
}

#[test]
fn what_needs_nothing_is_sent_while_another_request_waits_for_an_answer() {
    let broker = Broker::new();
    let client = broker.client(4 * PATIENCE);
    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let slow = client.send(to(SLOW, cast())).unwrap();
    broker.wait_asked(1);

    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);

    assert_eq!(slow.wait_until(Instant::now()), None);
    close(broker, &client);
}

#[test]
fn a_call_that_waits_for_what_another_one_needs_ends_in_its_time() {
    let broker = Broker::new();
    let client = broker.client(4 * PATIENCE);
    let own = client.send(to(
        SLOW,
        Message {
            msg_id: Some("1".to_owned()),
            answered_within: Some(Duration::ZERO),
            ..cast()
        },
    ));
    let own = own.unwrap();
    broker.wait_asked(1);

    let behind = client.send(to(
        "other",
        Message {
            answered_within: Some(Duration::from_millis(50)),
            ..call()
        },
    ));

    assert_eq!(end_of(&behind.unwrap()), Event::TimedOut);
    assert_eq!(own.wait_until(Instant::now()), None, "its own need");
    close(broker, &client);
}

#[test]
fn what_was_not_answered_is_asked_for_last_on_the_next_connection() {
    let broker = Broker::new();
    let client = broker.client(SHORT);
    let slow = client.send(to(SLOW, cast())).unwrap();
    broker.wait_asked(1);

    let taken = client.send(cast()).unwrap();

    assert_eq!(end_of(&taken), Event::Taken);
    broker.wait_asked(2);
    assert_eq!(slow.wait_until(Instant::now()), None);
    close(broker, &client);
}

/// Sends *slow*, which needs [`SLOW`] of *broker*, and then something that does not.
fn check_put_off(broker: Broker, client: &Client, slow: Message) {
    let slow = client.send(slow).unwrap();
    broker.wait_asked(1);

    let other = client.send(to("other", cast())).unwrap();

    assert_eq!(end_of(&other), Event::Taken);
    assert_eq!(slow.wait_until(Instant::now()), None);
    close(broker, client);
}

#[test]
fn a_default_queue_that_is_not_declared_is_asked_for_last_though_its_exchange_comes_first() {
    let broker = Broker::of(true);
    let client = broker.client(PATIENCE);
    let routing_key = SLOW.to_owned();
    let slow = Message {
        routing_key,
        ..notification()
    };
    check_put_off(broker, &client, slow);
}

#[test]
fn a_reply_queue_that_is_not_declared_is_asked_for_last_on_the_next_connection() {
    let broker = Broker::of(true);
    let mut options = client(&[broker.port], 60).shared.options.clone();
    options.replies.name = SLOW.to_owned();
    let client = Client::new(options, Box::new(|_, _| None)).unwrap();
    check_put_off(broker, &client, call());
}

#[test]
fn a_reply_that_fails_is_told_of_while_another_message_waits_for_an_answer() {
    let broker = Broker::new();
    let client = broker.client(4 * PATIENCE);
    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let _slow = client.send(to(SLOW, cast())).unwrap();
    broker.wait_asked(1);
    let (tell, told) = std::sync::mpsc::channel();
    let outbox = client.outbox(Box::new(move |reply| tell.send(reply).unwrap()));

    let reply = Message {
        routing_key: GONE.to_owned(),
        is_mandatory: true,
        ..cast()
    };
    client.reply(reply, &outbox).unwrap();

    let failed = told.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(failed.end, Event::Undeliverable(312, _)));
    close(broker, &client);
}

#[test]
fn a_listener_whose_queue_is_not_declared_holds_up_no_other_one() {
    let broker = Broker::new();
    let client = broker.client(SHORT);
    let subscriber = Subscriber::new(&client).unwrap();
    let queue = |name: &str| {
        vec![Queue {
            name: name.to_owned(),
            ..Queue::default()
        }]
    };
    let slow = subscriber.subscribe(queue(SLOW), 1).unwrap();
    broker.wait_asked(1);
    let other = subscriber.subscribe(queue("other"), 1).unwrap();

    let soon = Instant::now() + PATIENCE;
    assert_eq!(other.wait_standing(Some(soon)), Standing::Consuming);

    drop((slow, other));
    subscriber.close(soon);
    broker.end();
}
