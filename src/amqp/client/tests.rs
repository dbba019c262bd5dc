//! The client against brokers that are scripted: right ones, and ones that misbehave.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "a script fails on whatever it does not expect"
)]

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::assembler::{Assembler, Incoming};
use super::methods::{self, Violation, method};
use super::*;
use crate::amqp::frames::{HEADER, Reader, put_frame};

pub(super) const PATIENCE: Duration = Duration::from_secs(60);

type Frame = (u8, u16, Vec<u8>);

/// The broker's end of one connection.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    /// The channel on which the client consumes replies.
    pub(super) consumer: u16,
}

/// What a client has published.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) channel: u16,
    exchange: String,
    pub(super) routing_key: String,
    is_mandatory: bool,
    message_id: String,
    expiration: Option<String>,
    pub(super) body: Vec<u8>,
}

/// What a script sees of its client.
#[derive(Debug)]
pub(super) enum Seen {
    Published(Published),
    /// Class, method, and the channel.
    Method(u16, u16, u16),
    Gone,
}

impl Peer {
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes); // the client may have gone
    }

    pub(super) fn say(&mut self, channel: u16, class: u16, id: u16, arguments: &[u8]) {
        let bytes = method(channel, class, id, |bytes| {
            bytes.extend_from_slice(arguments);
        });
        self.send(&bytes);
    }

    pub(super) fn frame(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head).ok()?;
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut payload = vec![0; size + 1];
            self.stream.read_exact(&mut payload).ok()?;
            assert_eq!(payload.pop(), Some(0xCE));
            if head[0] != 8 {
                return Some((head[0], u16::from_be_bytes([head[1], head[2]]), payload));
            }
        }
    }

    /// Class, method, channel and arguments of the next method.
    pub(super) fn method(&mut self) -> Option<(u16, u16, u16, Vec<u8>)> {
        let (kind, channel, payload) = self.frame()?;
        assert_eq!(kind, 1, "a method is expected");
        let mut reader = Reader(&payload);
        let (class, id) = (reader.u16()?, reader.u16()?);
        Some((class, id, channel, reader.0.to_vec()))
    }

    fn expect(&mut self, class: u16, id: u16) -> Vec<u8> {
        let (got_class, got_id, _, arguments) = self.method().expect("a method");
        assert_eq!((got_class, got_id), (class, id));
        arguments
    }

    fn tune(&mut self, channel_max: u16) {
        let tune = [&channel_max.to_be_bytes()[..], &[0, 2, 0, 0, 0, 60]].concat();
        self.say(0, 10, 30, &tune);
    }

    pub(super) fn greet(&mut self) {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).unwrap();
        assert_eq!(&header, methods::PROTOCOL_HEADER);
        let mut start = vec![0, 9, 0, 0, 0, 0];
        for text in ["AMQPLAIN PLAIN", "en_US"] {
            start.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            start.extend_from_slice(text.as_bytes());
        }
        self.say(0, 10, 10, &start);
        self.expect(10, 11);
    }

    pub(super) fn shake_hands(&mut self, heartbeat: u16) {
        self.greet();
        let mut tune = vec![7, 255, 0, 2, 0, 0];
        tune.extend_from_slice(&heartbeat.to_be_bytes());
        self.say(0, 10, 30, &tune);
        self.expect(10, 31);
        self.expect(10, 40);
        self.say(0, 10, 41, &[0]);
    }

    /// Answers what is declared, until there is something to decide.
    pub(super) fn next(&mut self) -> Seen {
        while let Some((class, id, channel, arguments)) = self.method() {
            match (class, id) {
                (60, 40) => return self.content(channel, &arguments),
                _ if self.answer(class, id, channel) => {}
                _ => return Seen::Method(class, id, channel),
            }
        }
        Seen::Gone
    }

    /// Answers a declaration; false where there is something to decide.
    pub(super) fn answer(&mut self, class: u16, id: u16, channel: u16) -> bool {
        match (class, id) {
            (20, 10) => self.say(channel, 20, 11, &[0; 4]),
            (20, 40) => self.say(channel, 20, 41, &[]),
            (20, 41) | (10, 51) => {}
            (40, 10) => self.say(channel, 40, 11, &[]),
            (50, 10) => self.say(channel, 50, 11, &[1, b'q', 0, 0, 0, 0, 0, 0, 0, 0]),
            (50, 20) => self.say(channel, 50, 21, &[]),
            (85, 10) => self.say(channel, 85, 11, &[]),
            (60, 20) => {
                self.consumer = channel;
                self.say(channel, 60, 21, &[1, b'1']);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn content(&mut self, channel: u16, arguments: &[u8]) -> Seen {
        let mut reader = Reader(arguments);
        reader.u16();
        let exchange = String::from_utf8(reader.short().unwrap().to_vec()).unwrap();
        let routing_key = String::from_utf8(reader.short().unwrap().to_vec()).unwrap();
        let is_mandatory = reader.u8() == Some(1);
        let (kind, _, header) = self.frame().unwrap();
        assert_eq!(kind, 2);
        let properties = Properties::read(&header).unwrap();
        assert!(properties.is_plain_json());
        let mut body = Vec::new();
        while (body.len() as u64) < properties.length {
            body.extend_from_slice(&self.frame().unwrap().2);
        }
        let mut reader = Reader(&header);
        reader.bytes(12);
        let has_expiration = reader.u16().unwrap() & (1 << 8) != 0;
        reader.short();
        reader.short();
        reader.bytes(6);
        let expiration =
            has_expiration.then(|| String::from_utf8(reader.short().unwrap().to_vec()).unwrap());
        Seen::Published(Published {
            channel,
            exchange,
            routing_key,
            is_mandatory,
            message_id: properties.message_id,
            expiration,
            body,
        })
    }

    pub(super) fn published(&mut self) -> Published {
        loop {
            match self.next() {
                Seen::Published(published) => return published,
                Seen::Method(60, 80, _) => {} // of a reply
                other => panic!("{other:?} where something is published"),
            }
        }
    }

    pub(super) fn deliver(&mut self, tag: u64, body: &str) {
        let frames = moved(&delivery(tag, body), self.consumer);
        self.send(&frames);
    }

    pub(super) fn confirm(&mut self, channel: u16, tag: u64) {
        self.say(channel, 60, 80, &[&tag.to_be_bytes()[..], &[0]].concat());
    }

    /// Until the client parts, or is gone.
    pub(super) fn part(&mut self) {
        loop {
            match self.next() {
                Seen::Method(10, 50, _) => self.say(0, 10, 51, &[]),
                Seen::Gone => return,
                Seen::Method(60, 80, _) => {}
                other => panic!("{other:?} where the client should part"),
            }
        }
    }
}

fn header(length: usize) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0];
    payload.extend_from_slice(&(length as u64).to_be_bytes());
    payload.extend_from_slice(&0xC000_u16.to_be_bytes());
    for text in ["application/json", "utf-8"] {
        payload.push(u8::try_from(text.len()).unwrap());
        payload.extend_from_slice(text.as_bytes());
    }
    payload
}

/// `basic.deliver` of *body*, on channel 1.
pub(super) fn delivery(tag: u64, body: &str) -> Vec<u8> {
    let mut bytes = method(1, 60, 60, |bytes| {
        bytes.extend_from_slice(&[1, b'1']);
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 1, b'q']);
    });
    put_frame(&mut bytes, HEADER, 1, |bytes| {
        bytes.extend_from_slice(&header(body.len()));
    });
    if !body.is_empty() {
        put_frame(&mut bytes, 3, 1, |bytes| {
            bytes.extend_from_slice(body.as_bytes());
        });
    }
    bytes
}

pub(super) fn reply_to(msg_id: &str) -> String {
    format!(r#"{{"_msg_id": "{msg_id}", "ending": true}}"#)
}

/// `basic.return` of *published*.
pub(super) fn returned(published: &Published) -> Vec<u8> {
    let mut bytes = method(published.channel, 60, 50, |bytes| {
        bytes.extend_from_slice(&[1, 56, 8]); // 312
        bytes.extend_from_slice(b"NO_ROUTE");
        bytes.extend_from_slice(&[0, 0]);
    });
    put_frame(&mut bytes, HEADER, published.channel, |bytes| {
        bytes.extend_from_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128]);
        bytes.push(u8::try_from(published.message_id.len()).unwrap());
        bytes.extend_from_slice(published.message_id.as_bytes());
    });
    bytes
}

pub(super) fn refusal(code: u16, text: &str) -> Vec<u8> {
    let mut bytes = code.to_be_bytes().to_vec();
    bytes.push(u8::try_from(text.len()).unwrap());
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

/// A broker whose connections go by `script`, which is told the number of each, from 0 on.
pub(super) struct Broker {
    port: u16,
    connections: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Broker {
    /// Accepts `count` connections, and no more.
    pub(super) fn new(count: usize, script: impl Fn(usize, &mut Peer) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let accept = move || {
            for number in 0..count {
                let (stream, _) = listener.accept().unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                // A client that does not leave is found first.
                stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
                script(
                    number,
                    &mut Peer {
                        stream,
                        consumer: 0,
                    },
                );
            }
        };
        let thread = Builder::new().spawn(accept).unwrap();
        Self {
            port,
            connections,
            thread,
        }
    }

    pub(super) fn client(&self) -> Client {
        client(&[self.port], 0)
    }

    /// Closes *client*; the script has kept its promises.
    pub(super) fn end(self, client: &Client) {
        client.close(Instant::now() + PATIENCE);
        let has_left = !client.shared.state.lock().has_thread;
        self.thread.join().unwrap();
        assert!(has_left, "the thread has left");
    }
}

pub(super) fn client(ports: &[u16], heartbeat: u16) -> Client {
    client_with(options(ports, heartbeat))
}

fn options(ports: &[u16], heartbeat: u16) -> Options {
    let host = |port: &u16| Host {
        name: "127.0.0.1".to_owned(),
        port: *port,
        user: "u".to_owned(),
        password: "p".to_owned(),
    };
    Options {
        hosts: ports.iter().map(host).collect(),
        virtual_host: "/".to_owned(),
        mechanism: Mechanism::AmqPlain,
        heartbeat,
        connection_name: "test".to_owned(),
        tls: None,
        replies: Queue {
            name: "reply_1".to_owned(),
            ..Queue::default()
        },
        pauses: Pauses {
            first: Duration::from_millis(1),
            ..Pauses::default()
        },
        shuffles: false,
        has_durable_requests: false,
        answers_within: PATIENCE,
    }
}

fn client_with(options: Options) -> Client {
    let decode = |_: &Properties, body: &[u8]| {
        let msg_id = body.strip_prefix(b"strange ")?;
        Some((String::from_utf8(msg_id.to_vec()).ok()?, b"{}".to_vec()))
    };
    Client::new(options, Box::new(decode)).unwrap()
}

pub(super) fn cast() -> Message {
    Message {
        exchange: Exchange {
            name: "nova".to_owned(),
            ..Exchange::default()
        },
        routing_key: "topic".to_owned(),
        body: b"{}".to_vec(),
        ..Message::default()
    }
}

pub(super) fn call() -> Message {
    Message {
        msg_id: Some("7".to_owned()),
        ..cast()
    }
}

pub(super) fn end_of(pending: &PendingRequest) -> Event {
    let event = pending.wait_until(Instant::now() + PATIENCE);
    event.expect("something has become of it")
}

#[test]
fn a_call_is_published_confirmed_answered_and_its_reply_acknowledged() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let request = peer.published();
        assert_eq!(
            (&*request.exchange, &*request.routing_key),
            ("nova", "topic")
        );
        assert!(request.is_mandatory);
        assert_eq!(request.expiration.as_deref(), Some("5000"));
        assert_eq!(request.body, vec![b' '; 300_000], "in frames");
        peer.confirm(request.channel, 1);
        peer.deliver(1, r#"{"_msg_id": "another's"}"#);
        peer.deliver(2, &reply_to("7"));
        match peer.next() {
            Seen::Method(60, 80, 1) => {}
            other => panic!("{other:?} instead of basic.ack"),
        }
        peer.part();
    });
    let client = broker.client();

    let pending = client
        .send(Message {
            expiration: Some(5000),
            body: vec![b' '; 300_000],
            ..call()
        })
        .unwrap();

    assert_eq!(end_of(&pending), Event::Reply(reply_to("7").into_bytes()));
    broker.end(&client);
}

#[test]
fn a_reply_that_is_not_plain_json_goes_to_the_decoder() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let request = peer.published();
        peer.deliver(1, "strange nothing that is waited for");
        peer.deliver(2, "nothing that can be read");
        peer.deliver(3, "strange 7");
        peer.confirm(request.channel, 1);
        peer.part();
    });
    let client = broker.client();

    let pending = client.send(call()).unwrap();

    assert_eq!(end_of(&pending), Event::Reply(b"{}".to_vec()));
    broker.end(&client);
}

#[test]
fn what_no_queue_takes_is_an_error_only_where_it_is_mandatory() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        for tag in 1..=2 {
            let request = peer.published();
            peer.send(&returned(&request));
            peer.confirm(request.channel, tag);
        }
        peer.part();
    });
    let client = broker.client();

    let dropped = client.send(cast()).unwrap();
    assert_eq!(end_of(&dropped), Event::Taken);
    let mandatory = client
        .send(Message {
            is_mandatory: true,
            ..cast()
        })
        .unwrap();
    let expected = Event::Undeliverable(312, "NO_ROUTE".to_owned());
    assert_eq!(end_of(&mandatory), expected);
    broker.end(&client);
}

#[test]
fn one_confirm_may_be_for_many_and_a_refused_message_is_sent_again() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let channel = peer.published().channel;
        peer.published();
        peer.say(channel, 60, 80, &[&2_u64.to_be_bytes()[..], &[1]].concat());
        let first = peer.published();
        peer.say(channel, 60, 120, &[&3_u64.to_be_bytes()[..], &[0]].concat());
        assert_eq!(peer.published().message_id, first.message_id);
        peer.confirm(channel, 4);
        peer.part();
    });
    let client = broker.client();

    let pending = [client.send(cast()).unwrap(), client.send(cast()).unwrap()];
    for pending in &pending {
        assert_eq!(end_of(pending), Event::Taken);
    }
    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    broker.end(&client);
}

#[test]
fn only_what_is_unconfirmed_is_sent_again_on_the_next_connection() {
    let broker = Broker::new(2, |number, peer| {
        peer.shake_hands(60);
        if number == 0 {
            let channel = peer.published().channel; // confirmed
            peer.confirm(channel, 1);
            peer.published(); // answered, and not confirmed
            peer.deliver(1, &reply_to("7"));
            peer.published(); // neither
            return;
        }
        let again = peer.published();
        assert_eq!(again.body, b"third");
        peer.confirm(again.channel, 1);
        peer.part();
    });
    let client = broker.client();

    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let answered = client.send(call()).unwrap();
    assert!(matches!(end_of(&answered), Event::Reply(_)));
    let third = Message {
        body: b"third".to_vec(),
        ..cast()
    };
    assert_eq!(end_of(&client.send(third).unwrap()), Event::Taken);
    assert_eq!(broker.connections.load(Ordering::SeqCst), 2);
    broker.end(&client);
}

#[test]
fn what_its_caller_has_given_up_is_not_sent_later() {
    let (given_up, go_on) = std::sync::mpsc::channel::<()>();
    let broker = Broker::new(1, move |_, peer| {
        go_on.recv().unwrap();
        peer.shake_hands(60);
        let request = peer.published();
        assert_eq!(request.body, b"wanted");
        peer.confirm(request.channel, 1);
        peer.part();
    });
    let client = broker.client();

    let pending = client.send(call()).unwrap();
    assert_eq!(pending.wait_until(Instant::now()), None);
    drop(pending);
    given_up.send(()).unwrap();
    let wanted = Message {
        body: b"wanted".to_vec(),
        ..cast()
    };

    assert_eq!(end_of(&client.send(wanted).unwrap()), Event::Taken);
    broker.end(&client);
}

/// A call that has no time left once its time begins.
fn urgent_call() -> Message {
    Message {
        answered_within: Some(Duration::ZERO),
        ..call()
    }
}

#[test]
fn the_time_of_a_call_begins_when_a_broker_has_it() {
    let (script_says, published) = std::sync::mpsc::channel::<()>();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let broker = Broker::new(2, move |number, peer| {
        if number == 0 {
            goes_on.recv().unwrap();
        }
        peer.shake_hands(60);
        let channel = peer.published().channel;
        script_says.send(()).unwrap();
        goes_on.recv().unwrap();
        if number == 0 {
            return; // gone, without a word on the request
        }
        peer.confirm(channel, 1);
        peer.part();
    });
    let client = broker.client();
    let has_time = |pending: &PendingRequest| pending.wait_until(Instant::now()).is_none();

    let pending = client.send(urgent_call()).unwrap();
    assert!(has_time(&pending), "there is no broker");
    go_on.send(()).unwrap();
    published.recv_timeout(PATIENCE).unwrap();
    assert!(has_time(&pending), "it was sent, and not confirmed");
    go_on.send(()).unwrap();
    published.recv_timeout(PATIENCE).unwrap();
    assert!(has_time(&pending), "it was sent once more");
    go_on.send(()).unwrap();

    assert_eq!(end_of(&pending), Event::TimedOut);
    drop(pending);
    broker.end(&client);
}

#[test]
fn a_call_that_the_broker_cannot_take_ends_in_its_time() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let channel = peer.published().channel;
        peer.say(channel, 60, 120, &[0, 0, 0, 0, 0, 0, 0, 1, 0]);
        peer.part();
    });
    let client = broker.client();

    assert_eq!(
        end_of(&client.send(urgent_call()).unwrap()),
        Event::TimedOut
    );
    broker.end(&client);
}

#[test]
fn the_time_between_two_replies_begins_with_the_first() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let channel = peer.published().channel;
        peer.confirm(channel, 1);
        peer.deliver(1, &reply_to("7"));
        peer.part();
    });
    let client = broker.client();
    let pending = client
        .send(Message {
            heard_within: Some(2 * PATIENCE),
            ..call()
        })
        .unwrap();

    assert!(matches!(end_of(&pending), Event::Reply(_)));
    let mut progress = pending.request.progress.lock();
    let (told_at, heard_at) = (progress.told_at.unwrap(), progress.heard_at.unwrap());
    assert!(told_at <= heard_at, "confirms come first here");
    assert_eq!(
        pending.request.ends_at(&progress),
        Some(heard_at + 2 * PATIENCE)
    );
    progress.heard_at = heard_at.checked_sub(2 * PATIENCE);
    drop(progress);
    assert_eq!(end_of(&pending), Event::TimedOut);
    drop(pending);
    broker.end(&client);
}

#[test]
fn the_answer_of_the_broker_ends_a_clean_close_after_calls() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        for tag in 1..=2 {
            let channel = peer.published().channel;
            peer.confirm(channel, tag);
            peer.deliver(tag, &reply_to("7"));
        }
        peer.part(); // the connection stays until the client has left
    });
    let client = broker.client();

    for _ in 1..=2 {
        let pending = client.send(call()).unwrap();
        assert!(matches!(end_of(&pending), Event::Reply(_)));
    }
    broker.end(&client);
}

/// Confirms all, and ends a channel now and then: right after a confirm, whose caller then writes while the
/// client deals with that. Returns what was written to channels after both sides had ended them.
fn end_channels(
    peer: &mut Peer,
    mut rounds: usize,
    has_ended: &AtomicBool,
) -> Vec<(u16, u16, u16)> {
    let (mut open, mut ending) = (HashSet::new(), HashSet::new());
    let mut tags = HashMap::<u16, u64>::new();
    let mut stray = Vec::new();
    while let Some((kind, channel, payload)) = peer.frame() {
        let mut reader = Reader(&payload);
        let (class, id) = match kind {
            1 => (reader.u16().unwrap(), reader.u16().unwrap()),
            _ => (0, 0),
        };
        if (class, id) == (20, 10) {
            open.insert(channel);
        }
        if channel > 0 && !open.contains(&channel) {
            stray.push((channel, class, id));
            continue;
        }
        match (class, id) {
            (10, 50) => peer.say(0, 10, 51, &[]),
            (20, 40 | 41) => {
                open.remove(&channel);
                ending.remove(&channel);
                tags.remove(&channel);
            }
            _ => {}
        }
        let is_ending = ending.contains(&channel);
        if kind == 1 && !is_ending {
            peer.answer(class, id, channel);
        }
        if kind != 3 || is_ending {
            continue;
        }
        let tag = tags.entry(channel).or_default();
        *tag += 1;
        let arguments = [&tag.to_be_bytes()[..], &[0]].concat();
        let mut bytes = method(channel, 60, 80, |bytes| bytes.extend_from_slice(&arguments));
        let consumer = std::mem::take(&mut peer.consumer);
        if consumer > 0 && rounds > 0 {
            rounds -= 1;
            bytes.extend(moved(&delivery(1, &reply_to("8")), consumer));
            let ended = if rounds.is_multiple_of(3) {
                channel
            } else {
                consumer
            };
            if rounds % 3 == 1 {
                let cancel = |bytes: &mut Vec<u8>| bytes.extend_from_slice(&[1, b'1', 1]);
                bytes.extend(method(consumer, 60, 30, cancel));
            } else {
                let refusal = refusal(404, "NOT_FOUND");
                let close = |bytes: &mut Vec<u8>| bytes.extend_from_slice(&refusal);
                bytes.extend(method(ended, 20, 40, close));
                ending.insert(ended);
            }
            if ended != consumer {
                peer.consumer = consumer;
            }
        }
        has_ended.store(rounds == 0, Ordering::Release);
        peer.send(&bytes);
    }
    stray
}

#[test]
fn nothing_is_written_to_a_channel_that_both_sides_have_ended() {
    let (has_ended, stray) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let (ends, strays) = (Arc::clone(&has_ended), Arc::<Mutex<_>>::clone(&stray));
    let broker = Broker::new(1, move |_, peer| {
        peer.shake_hands(60);
        *strays.lock() = end_channels(peer, 150, &ends);
    });
    let client = broker.client();
    let pending = client.send(call()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Acquire) {
                    end_of(&client.send(cast()).unwrap());
                }
            });
        }
    });
    drop(pending);
    broker.end(&client);

    assert_eq!(*stray.lock(), []);
}

#[test]
fn a_request_fails_after_its_retries() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let client = client(&[port], 0);

    let pending = client
        .send(Message {
            retries: Some(1),
            ..cast()
        })
        .unwrap();

    match end_of(&pending) {
        Event::Failed(text) => assert!(text.contains("after 1 retries"), "{text}"),
        other => panic!("{other:?}"),
    }
    client.close(Instant::now() + PATIENCE);
}

#[test]
fn the_next_host_is_tried_when_one_is_away() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let channel = peer.published().channel;
        peer.confirm(channel, 1);
        peer.part();
    });
    let away = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = away.local_addr().unwrap().port();
    drop(away);
    let client = client(&[port, broker.port], 0);

    let pending = client
        .send(Message {
            retries: Some(0),
            ..cast()
        })
        .unwrap();

    assert_eq!(end_of(&pending), Event::Taken);
    broker.end(&client);
}

#[test]
fn a_host_that_ends_its_connections_is_left_for_the_next_one() {
    let ending = Broker::new(2, |number, peer| {
        if number == 0 {
            peer.shake_hands(60);
        }
    });
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let channel = peer.published().channel;
        peer.confirm(channel, 1);
        peer.part();
    });
    let client = client(&[ending.port, broker.port], 0);

    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    assert_eq!(ending.connections.load(Ordering::SeqCst), 1);
    drop(TcpStream::connect(("127.0.0.1", ending.port)).unwrap()); // the last that it accepts
    ending.thread.join().unwrap();
    broker.end(&client);
}

#[test]
fn a_refused_login_makes_the_client_unusable() {
    let broker = Broker::new(1, |_, peer| {
        peer.greet();
        peer.say(0, 10, 50, &refusal(403, "ACCESS_REFUSED"));
        peer.part();
    });
    let client = broker.client();

    for _ in 0..2 {
        match end_of(&client.send(cast()).unwrap()) {
            Event::Unusable(text) => assert!(text.contains("ACCESS_REFUSED"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    broker.end(&client);
}

#[test]
fn a_certificate_in_a_pipe_that_nothing_writes_to_is_not_waited_for_for_ever() {
    let pipe = std::env::temp_dir().join(format!("unwritten.{}", std::process::id()));
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = client_with(Options {
        tls: Some(TlsFiles {
            roots: Some(vec![pipe.clone()]),
            ..TlsFiles::default()
        }),
        ..options(&[listener.local_addr().unwrap().port()], 0)
    });

    match end_of(&client.send(cast()).unwrap()) {
        Event::Unusable(text) => assert!(text.contains("is a pipe"), "{text}"),
        other => panic!("{other:?}"),
    }
    client.close(Instant::now() + PATIENCE);
    std::fs::remove_file(pipe).unwrap();
}

#[test]
fn exchanges_share_few_channels() {
    const CHANNELS: u16 = 3;
    let broker = Broker::new(1, |_, peer| {
        peer.greet();
        peer.tune(CHANNELS);
        peer.expect(10, 31);
        peer.expect(10, 40);
        peer.say(0, 10, 41, &[0]);
        for number in 0..6 {
            let request = loop {
                match peer.next() {
                    Seen::Published(published) => break published,
                    Seen::Method(60, 80, _) => {}
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!(request.exchange, format!("exchange{number}"));
            assert!(request.channel <= CHANNELS);
            peer.confirm(request.channel, 1); // each exchange's first on its channel
            if number == 0 {
                peer.deliver(1, &reply_to("7"));
            }
        }
        peer.part();
    });
    let client = broker.client();

    for number in 0..6 {
        let exchange = Exchange {
            name: format!("exchange{number}"),
            ..Exchange::default()
        };
        let message = Message {
            exchange,
            ..if number == 0 { call() } else { cast() }
        };
        let event = end_of(&client.send(message).unwrap());
        let is_done = matches!(event, Event::Reply(_) | Event::Taken);
        assert!(is_done, "{number}: {event:?}");
    }
    broker.end(&client);
}

#[test]
fn a_broker_with_too_few_channels_makes_the_client_unusable() {
    let broker = Broker::new(1, |_, peer| {
        peer.greet();
        peer.tune(2);
        peer.part();
    });
    let client = broker.client();

    match end_of(&client.send(cast()).unwrap()) {
        Event::Unusable(text) => assert!(text.contains("2 channels"), "{text}"),
        other => panic!("{other:?}"),
    }
    broker.end(&client);
}

#[test]
fn a_refused_reply_queue_makes_the_client_unusable() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let (_, _, channel, _) = peer.method().unwrap();
        peer.say(channel, 20, 11, &[0; 4]);
        peer.expect(50, 10);
        peer.say(
            0,
            10,
            50,
            &refusal(541, "INTERNAL_ERROR - transient_nonexcl_queues"),
        );
        peer.part();
    });
    let client = broker.client();

    match end_of(&client.send(call()).unwrap()) {
        Event::Unusable(text) => assert!(text.contains("transient_nonexcl_queues"), "{text}"),
        other => panic!("{other:?}"),
    }
    broker.end(&client);
}

#[test]
fn a_channel_that_is_closed_fails_what_is_to_blame_and_nothing_else() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        // Its exchange was deleted: declared and sent again.
        let channel = peer.published().channel;
        peer.say(channel, 20, 40, &refusal(404, "NOT_FOUND - no exchange"));
        let channel = peer.published().channel;
        peer.confirm(channel, 1);
        // One of two is too large.
        peer.published();
        peer.published();
        let text = "PRECONDITION_FAILED - message size 5 is larger than configured max size 4";
        peer.say(channel, 20, 40, &refusal(406, text));
        let again = peer.published();
        assert_eq!(again.body, b"{}");
        peer.confirm(again.channel, 1);
        // No permission.
        let channel = peer.published().channel;
        peer.say(channel, 20, 40, &refusal(403, "ACCESS_REFUSED"));
        peer.part();
    });
    let client = broker.client();

    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let large = Message {
        body: b"large".to_vec(),
        ..cast()
    };
    let (large, small) = (client.send(large).unwrap(), client.send(cast()).unwrap());
    assert!(matches!(end_of(&large), Event::Failed(text) if text.contains("message size")));
    assert_eq!(end_of(&small), Event::Taken);
    let refused = client.send(cast()).unwrap();
    assert!(matches!(end_of(&refused), Event::Failed(text) if text.contains("ACCESS_REFUSED")));
    broker.end(&client);
}

#[test]
fn a_message_is_sent_however_many_beside_it_are_too_large() {
    const LARGE: usize = 5;
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        for left in (1..=LARGE).rev() {
            let mut channel = 0;
            for _ in 0..=left {
                channel = peer.published().channel;
            }
            // One of those sizes each time.
            let size = 4 + left;
            let text = format!("PRECONDITION_FAILED - message size {size} is larger than 4");
            peer.say(channel, 20, 40, &refusal(406, &text));
        }
        let small = peer.published();
        assert_eq!(small.body, b"{}");
        peer.confirm(small.channel, 1);
        peer.part();
    });
    let client = broker.client();

    let large: Vec<_> = (1..=LARGE)
        .map(|more| Message {
            body: vec![b'x'; 4 + more],
            ..cast()
        })
        .map(|message| client.send(message).unwrap())
        .collect();
    let small = client.send(cast()).unwrap();
    for large in &large {
        assert!(matches!(end_of(large), Event::Failed(text) if text.contains("message size")));
    }
    assert_eq!(end_of(&small), Event::Taken);
    broker.end(&client);
}

#[test]
fn an_exchange_that_is_not_durable_is_taken_as_it_is() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let (_, _, channel, _) = peer.method().unwrap();
        peer.say(channel, 20, 11, &[0; 4]);
        let declared = peer.expect(40, 10);
        assert_eq!(declared[declared.len() - 5], 2, "durable");
        let text = "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'nova'";
        peer.say(channel, 20, 40, &refusal(406, text));
        let channel = peer.published().channel;
        peer.confirm(channel, 1);
        peer.part();
    });
    let client = broker.client();

    let pending = client
        .send(Message {
            exchange: Exchange {
                is_durable: true,
                ..cast().exchange
            },
            ..cast()
        })
        .unwrap();

    assert_eq!(end_of(&pending), Event::Taken);
    broker.end(&client);
}

#[test]
fn a_fanout_is_declared_as_one_and_who_misses_it_is_away() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let (_, _, channel, _) = peer.method().unwrap();
        peer.say(channel, 20, 11, &[0; 4]);
        let declared = peer.expect(40, 10);
        let expected = [
            &[0, 0, 12][..],
            b"topic_fanout",
            &[6],
            b"fanout",
            &[4, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(declared, expected, "auto-deleted, and not durable");
        peer.say(channel, 40, 11, &[]);
        let published = peer.published();
        assert_eq!(published.exchange, "topic_fanout");
        assert_eq!(published.routing_key, "");
        assert!(!published.is_mandatory);
        peer.confirm(published.channel, 1);
        peer.part();
    });
    let client = broker.client();
    let fanout = Message {
        exchange: Exchange {
            name: "topic_fanout".to_owned(),
            kind: ExchangeType::Fanout,
            is_durable: false,
            is_auto_delete: true,
        },
        routing_key: String::new(),
        ..cast()
    };

    assert_eq!(end_of(&client.send(fanout).unwrap()), Event::Taken);
    broker.end(&client);
}

pub(super) fn notification() -> Message {
    Message {
        routing_key: "notifications.info".to_owned(),
        default_queue: Some(vec![(
            "x-queue-type".to_owned(),
            Value::Text("quorum".to_owned()),
        )]),
        exchange: Exchange {
            is_durable: true,
            ..cast().exchange
        },
        ..cast()
    }
}

#[test]
fn the_default_queue_of_a_notification_is_declared_once_and_again_when_it_is_gone() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let mut route = 0;
        for round in 0..2 {
            let mut declared = Vec::new();
            let mut bound = Vec::new();
            let mut published = Vec::new();
            while published.is_empty() {
                let (class, id, channel, arguments) = peer.method().unwrap();
                match (class, id) {
                    (20, 10) => peer.say(channel, 20, 11, &[0; 4]),
                    (20, 40) => peer.say(channel, 20, 41, &[]),
                    (40, 10) => peer.say(channel, 40, 11, &[]),
                    (85, 10) => peer.say(channel, 85, 11, &[]),
                    (50, 10) => {
                        declared.push(arguments);
                        peer.say(channel, 50, 11, &[1, b'q', 0, 0, 0, 0, 0, 0, 0, 0]);
                    }
                    (50, 20) => {
                        bound.push(arguments);
                        peer.say(channel, 50, 21, &[]);
                    }
                    (60, 40) => {
                        let Seen::Published(message) = peer.content(channel, &arguments) else {
                            panic!("nothing was published");
                        };
                        route = channel;
                        published.push(message);
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((declared.len(), bound.len()), (1, 1), "round {round}");
            assert!(declared[0].starts_with(b"\0\0\x12notifications.info\x02"));
            assert!(declared[0].ends_with(b"\x0cx-queue-typeS\0\0\0\x06quorum"));
            let names = b"\0\0\x12notifications.info\x04nova\x12notifications.info\0";
            assert!(bound[0].starts_with(names));
            if round == 0 {
                peer.confirm(route, 1);
                // An operator deletes the queue; the next one comes back.
                let second = peer.published();
                peer.send(&returned(&second));
                peer.confirm(route, 2);
            } else {
                peer.confirm(route, 3);
            }
        }
        peer.part();
    });
    let client = broker.client();

    for _ in 0..2 {
        let pending = client.send(notification()).unwrap();
        assert_eq!(end_of(&pending), Event::Taken);
    }
    broker.end(&client);
}

#[test]
fn a_refused_default_queue_fails_its_notifications_and_no_other_message() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let refused = loop {
            let (class, id, channel, _) = peer.method().unwrap();
            match (class, id) {
                (20, 10) => peer.say(channel, 20, 11, &[0; 4]),
                (40, 10) => peer.say(channel, 40, 11, &[]),
                (85, 10) => peer.say(channel, 85, 11, &[]),
                (50, 10) => break channel,
                other => panic!("{other:?}"),
            }
        };
        let text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type'";
        peer.say(refused, 20, 40, &refusal(406, text));
        let published = peer.published();
        assert_ne!(published.channel, refused);
        peer.confirm(published.channel, 1);
        peer.part();
    });
    let client = broker.client();

    let refused = client.send(notification()).unwrap();
    match end_of(&refused) {
        Event::Failed(text) => assert!(text.contains("x-queue-type"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    broker.end(&client);
}

#[test]
fn a_cancelled_consumer_of_replies_consumes_again() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let channel = peer.published().channel;
        peer.confirm(channel, 1);
        peer.say(1, 60, 30, &[1, b'1', 1]);
        let mut consumer = 0;
        while consumer == 0 {
            let (class, id, channel, _) = peer.method().unwrap();
            match (class, id) {
                (20, 10) => peer.say(channel, 20, 11, &[0; 4]),
                (20, 40) => peer.say(channel, 20, 41, &[]),
                (50, 10) => peer.say(channel, 50, 11, &[1, b'q', 0, 0, 0, 0, 0, 0, 0, 0]),
                (60, 20) => consumer = channel,
                other => panic!("{other:?}"),
            }
        }
        peer.say(consumer, 60, 21, &[1, b'1']);
        peer.send(&moved(&delivery(1, &reply_to("7")), consumer));
        peer.part();
    });
    let client = broker.client();

    let pending = client.send(call()).unwrap();

    assert!(matches!(end_of(&pending), Event::Reply(_)));
    broker.end(&client);
}

/// Frames on another channel.
pub(super) fn moved(frames: &[u8], channel: u16) -> Vec<u8> {
    let mut moved = frames.to_vec();
    let mut at = 0;
    while at < moved.len() {
        moved[at + 1..at + 3].copy_from_slice(&channel.to_be_bytes());
        let size: [u8; 4] = moved[at + 3..at + 7].try_into().unwrap();
        at += u32::from_be_bytes(size) as usize + 8;
    }
    moved
}

#[test]
fn calls_that_waited_in_lost_queues_get_a_deadline_and_monitored_ones_do_not() {
    let broker = Broker::new(2, |number, peer| {
        peer.shake_hands(60);
        if number == 0 {
            for tag in 1..=2 {
                let channel = peer.published().channel;
                peer.confirm(channel, tag);
            }
            // Both confirms have arrived when the reply that follows them has.
            peer.deliver(1, r#"{"_msg_id": "8"}"#);
            assert!(matches!(peer.next(), Seen::Method(60, 80, 1)));
            return;
        }
        let (_, _, channel, _) = peer.method().unwrap();
        peer.say(channel, 20, 11, &[0; 4]);
        let asked = peer.expect(50, 10);
        assert_eq!(asked[asked.len() - 5], 1, "passive");
        peer.say(
            channel,
            20,
            40,
            &refusal(404, "NOT_FOUND - no queue 'reply_1'"),
        );
        peer.part();
    });
    let client = broker.client();

    let lost = client.send(call()).unwrap();
    let monitored = client
        .send(Message {
            msg_id: Some("8".to_owned()),
            heard_within: Some(PATIENCE),
            ..cast()
        })
        .unwrap();
    assert!(matches!(end_of(&monitored), Event::Reply(_)));
    let deadline = Instant::now() + PATIENCE;
    while lost.request.progress.lock().lost_at.is_none() {
        assert!(Instant::now() < deadline, "no deadline was set");
        std::thread::yield_now();
    }

    assert!(monitored.request.progress.lock().lost_at.is_none());
    lost.request.progress.lock().lost_at = Some(Instant::now());
    assert_eq!(end_of(&lost), Event::Lost);
    broker.end(&client);
}

#[test]
fn a_broker_that_falls_silent_is_left() {
    let broker = Broker::new(2, |number, peer| {
        peer.shake_hands(1);
        let channel = peer.published().channel;
        if number == 0 {
            while peer.frame().is_some() {} // until the client goes
            return;
        }
        peer.confirm(channel, 1);
        peer.part();
    });
    let client = client(&[broker.port], 1);

    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    broker.end(&client);
}

#[test]
fn frames_that_lie_end_the_connection_with_their_code_and_lose_nothing() {
    let content = delivery(1, &reply_to("7"));
    let lies: Vec<(u16, Vec<u8>)> = vec![
        (501, b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        (501, b"AMQP\x00\x00\x09\x01".to_vec()),
        (501, vec![9, 0, 0, 0, 0, 0, 0, 0xCE]),
        (501, vec![1, 0, 1, 0, 0, 0, 0, 0xCD]),
        (501, vec![1, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF]),
        (502, vec![8, 0, 1, 0, 0, 0, 0, 0xCE]),
        (502, vec![1, 0, 1, 0, 0, 0, 1, 0, 0xCE]),
        (502, method(1, 60, 60, |bytes| bytes.push(200))),
        (503, method(1, 60, 70, |_| {})),
        (503, method(1, 200, 1, |_| {})),
        (503, method(0, 10, 41, |_| {})),
        (503, method(2, 20, 11, |_| {})),
        (
            505,
            method(99, 60, 80, |bytes| bytes.extend_from_slice(&[0; 9])),
        ),
        (
            503,
            method(2, 60, 80, |bytes| bytes.extend_from_slice(&[9; 9])),
        ),
        (
            503,
            method(1, 60, 80, |bytes| bytes.extend_from_slice(&[0; 9])),
        ),
        (505, content[content.len() - 40..].to_vec()),
        (505, [&content[..26], &content[..26]].concat()),
        (505, moved(&content, 99)),
    ];
    // So many that their message is not given up for it.
    for lies in lies.chunks(5) {
        survive_lies(lies.to_vec());
    }
}

/// One call, to a broker that tells one of *lies* on each connection until there are no more.
fn survive_lies(lies: Vec<(u16, Vec<u8>)>) {
    let count = lies.len();
    let broker = Broker::new(count + 1, move |number, peer| {
        peer.shake_hands(60);
        let request = peer.published();
        let Some((code, lie)) = lies.get(number) else {
            peer.deliver(1, &reply_to("7"));
            peer.confirm(request.channel, 1);
            return peer.part();
        };
        peer.send(lie);
        loop {
            let Some((class, id, _, arguments)) = peer.method() else {
                panic!("lie {number} ({code}): the client went without a word");
            };
            assert_ne!(
                (class, id),
                (60, 80),
                "lie {number}: nothing is acknowledged"
            );
            if (class, id) == (10, 50) {
                let said = u16::from_be_bytes([arguments[0], arguments[1]]);
                let text = String::from_utf8_lossy(&arguments[3..]);
                // What begins in the middle of a frame may be read as another kind of lie.
                assert!(
                    said == *code || lie[0] > 8 || (501..=505).contains(&said),
                    "{text}"
                );
                return;
            }
        }
    });
    let client = broker.client();

    let pending = client.send(call()).unwrap();

    assert!(matches!(end_of(&pending), Event::Reply(_)));
    assert_eq!(broker.connections.load(Ordering::SeqCst), count + 1);
    broker.end(&client);
}

#[test]
fn requests_of_a_closed_client_fail_at_once() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        peer.published();
        peer.part();
    });
    let client = broker.client();
    let under_way = client.send(call()).unwrap();
    let connected = Instant::now() + PATIENCE;
    while !client.is_connected() {
        assert!(Instant::now() < connected);
        std::thread::yield_now();
    }

    let deadline = Instant::now() + PATIENCE;
    while client
        .shared
        .state
        .lock()
        .next_flush(Instant::now())
        .is_some()
    {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    broker.end(&client);

    assert!(matches!(end_of(&under_way), Event::Failed(_)));
    assert!(matches!(
        end_of(&client.send(cast()).unwrap()),
        Event::Failed(_)
    ));
}

#[test]
fn names_that_are_too_long_are_refused() {
    let client = client(&[1], 0);

    let error = client
        .send(Message {
            routing_key: "t".repeat(256),
            ..cast()
        })
        .unwrap_err();

    assert!(error.to_string().contains("255 bytes"), "{error}");
}

#[test]
fn pieces_of_any_size_make_the_same_frames() {
    let stream = [
        vec![8, 0, 0, 0, 0, 0, 0, 0xCE],
        delivery(1, &reply_to("7")),
        method(0, 10, 61, |_| {}),
        delivery(2, ""),
    ]
    .concat();
    let whole = read(&stream, stream.len()).unwrap();
    assert_eq!(whole.len(), 3);
    for size in 1..60 {
        assert_eq!(read(&stream, size).unwrap(), whole, "pieces of {size}");
    }
}

#[test]
fn no_bytes_break_the_reader() {
    let stream = [delivery(1, &reply_to("7")), method(0, 10, 61, |_| {})].concat();
    for at in 0..stream.len() {
        for value in [0, 1, 2, 3, 8, 127, 128, 200, 255] {
            let mut bytes = stream.clone();
            bytes[at] = value;
            let _ = read(&bytes, bytes.len());
            let _ = read(&bytes[at..], 7);
        }
    }
}

/// Everything that is whole in *stream*, which arrives in pieces.
fn read(stream: &[u8], size: usize) -> Result<Vec<Incoming>, Violation> {
    let mut assembler = Assembler::new(131_072);
    let mut found = Vec::new();
    for piece in stream.chunks(size) {
        assembler.feed(piece);
        while let Some(incoming) = assembler.next()? {
            if incoming != Incoming::Heartbeat {
                found.push(incoming);
            }
        }
    }
    Ok(found)
}

/// A connection that leads nowhere.
struct Nowhere;

impl state::Outlet for Nowhere {
    fn queue(&self, _frames: Vec<u8>) {}
    fn unsent(&self) -> u64 {
        0
    }
}

#[test]
fn replies_to_missing_queues_are_sent_ever_less_often_and_limit_how_many_there_are() {
    const LIMIT: Duration = Duration::from_secs(60);
    let failures = Arc::<Failures>::default();
    let outbox = Arc::new(Outbox::new(Arc::clone(&failures), Box::new(|_| {})));
    let mut state = State::default();
    let start = Instant::now();
    state.connect(Box::new(Nowhere), 4096, false, start);
    state.add_route(String::new(), 1);
    let reply = |number| {
        outbox.enter();
        Arc::new(Request {
            message: Message {
                routing_key: "reply_gone".to_owned(),
                is_mandatory: true,
                missing_for: Some(LIMIT),
                ..Message::default()
            },
            outbox: Some(Arc::clone(&outbox)),
            number,
            progress: Mutex::default(),
            changed: Condvar::new(),
        })
    };
    let first = reply(1);
    assert!(!state.accept(&first), "it is sent at once");
    let mut sent_at = Vec::new();
    let mut now = start;
    for tag in 1_u64.. {
        sent_at.push(now - start);
        assert!(!state.returned(1, "2", 312, "NO_ROUTE"), "not sent");
        assert!(state.returned(1, "1", 312, "NO_ROUTE"));
        assert!(state.settle(1, tag, false, true, now));
        assert!(!state.returned(1, "1", 312, "NO_ROUTE"), "settled");
        match state.next_flush(now) {
            Some(at) => now = at,
            None => break,
        }
        assert_eq!(state.flush(now), None);
    }
    let milliseconds: Vec<_> = sent_at.iter().map(Duration::as_millis).collect();
    assert_eq!(milliseconds[..6], [0, 250, 500, 1_000, 2_000, 4_000]);
    assert_eq!(sent_at.last(), Some(&LIMIT));
    assert!(sent_at.len() < 20, "{milliseconds:?}");
    assert_eq!(failures.lock().len(), 1);

    for number in 2..34 {
        assert!(outbox.wait_for_room(2, start), "before {number}");
        state.accept(&reply(number));
        assert!(state.returned(1, &number.to_string(), 312, "NO_ROUTE"));
        let tag = sent_at.len() as u64 + number - 1;
        assert!(state.settle(1, tag, false, true, now));
    }
    assert!(!outbox.wait_for_room(2, start), "enough of them wait");
    state.close();
    assert!(outbox.wait_for_room(2, start));
}
