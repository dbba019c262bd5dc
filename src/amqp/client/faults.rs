//! The client against a broker that does wrong at each method in turn.
//!
//! Owns the list of what a broker may do wrong, and a broker that does right otherwise. Each fault
//! happens at every step of a conversation: the handshake, declarations, and what is published.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};

use super::methods::method;
use super::tests::{
    PATIENCE, Peer, Seen, call, cast, client, delivery, end_of, moved, notification, refusal,
    reply_to,
};
use super::*;

/// What a broker may do instead of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Disappears,
    ClosesTheConnection,
    ClosesTheChannel,
    AnswersAnotherMethod,
    AnswersAnUnknownMethod,
    AnswersOnAnotherChannel,
    AnswersTwice,
    LiesAboutTheFrame,
    LiesAboutTheBody,
    BreaksOff,
    SpeaksHttp,
    IsSilent,
    /// Longer than it may be silent otherwise; then it answers.
    BlocksTheConnection,
}

pub(super) const AT_ONCE: [Fault; 11] = [
    Fault::Disappears,
    Fault::ClosesTheConnection,
    Fault::ClosesTheChannel,
    Fault::AnswersAnotherMethod,
    Fault::AnswersAnUnknownMethod,
    Fault::AnswersOnAnotherChannel,
    Fault::AnswersTwice,
    Fault::LiesAboutTheFrame,
    Fault::LiesAboutTheBody,
    Fault::BreaksOff,
    Fault::SpeaksHttp,
];
/// How long a connection is blocked here.
const BLOCKED: Duration = Duration::from_secs(2);
/// Methods of the handshake; the client sends nothing else before it is done.
pub(super) const HANDSHAKE: usize = 2;
/// Connections that a client may need at most: the faulty one, one after it, and those that a slow
/// machine does not agree on within 10 s.
pub(super) const MOST_CONNECTIONS: usize = 4;

/// Does right until the method of that number, counted from 1 on; there it does *fault* and then
/// right again. Returns how many methods there were.
fn converse(peer: &mut Peer, at: usize, fault: Fault, heartbeat: u16) -> usize {
    let mut header = [0; 8];
    if peer.stream.read_exact(&mut header).is_err() {
        return 0;
    }
    let mut start = vec![0, 9, 0, 0, 0, 0];
    for text in ["AMQPLAIN PLAIN", "en_US"] {
        start.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        start.extend_from_slice(text.as_bytes());
    }
    peer.say(0, 10, 10, &start);
    let mut tags: HashMap<u16, u64> = HashMap::new();
    let mut count = 0;
    while let Some((class, id, channel, arguments)) = peer.method() {
        let mut answers: Vec<(u16, u16, u16, Vec<u8>)> = Vec::new();
        let mut answer = |class, id, told: &[u8]| answers.push((channel, class, id, told.to_vec()));
        match (class, id) {
            (10, 11) => {
                let tune = [&[7, 255, 0, 2, 0, 0][..], &heartbeat.to_be_bytes()].concat();
                answer(10, 30, &tune);
            }
            (10, 40) => answer(10, 41, &[0]),
            (20, 10) => answer(20, 11, &[0; 4]),
            (20, 40) => answer(20, 41, &[]),
            (40, 10) => answer(40, 11, &[]),
            (50, 10) => answer(50, 11, &[1, b'q', 0, 0, 0, 0, 0, 0, 0, 0]),
            (50, 20) => answer(50, 21, &[]),
            (85, 10) => answer(85, 11, &[]),
            (60, 20) => {
                peer.consumer = channel;
                answer(60, 21, &[1, b'1']);
            }
            (60, 40) => {
                let Seen::Published(_) = peer.content(channel, &arguments) else {
                    panic!("a content is expected");
                };
                let tag = tags.entry(channel).or_default();
                *tag += 1;
                answer(60, 80, &[&tag.to_be_bytes()[..], &[0]].concat());
            }
            (10, 50) => {
                peer.say(0, 10, 51, &[]);
                return count;
            }
            _ => continue, // of a reply, or an answer to what was closed
        }
        count += 1;
        if count == at {
            if fault == Fault::Disappears {
                return count;
            }
            misbehave(peer, fault, channel, &answers);
            continue;
        }
        for (channel, class, id, told) in answers {
            peer.say(channel, class, id, &told);
        }
        if (class, id) == (60, 40) && peer.consumer != 0 {
            peer.deliver(u64::try_from(count).unwrap(), &reply_to("7"));
        }
    }
    count
}

pub(super) fn misbehave(
    peer: &mut Peer,
    fault: Fault,
    channel: u16,
    answers: &[(u16, u16, u16, Vec<u8>)],
) {
    match fault {
        Fault::Disappears | Fault::IsSilent => {}
        Fault::ClosesTheConnection => {
            peer.say(0, 10, 50, &refusal(320, "CONNECTION_FORCED - shutdown"));
        }
        Fault::ClosesTheChannel => peer.say(channel, 20, 40, &refusal(504, "CHANNEL_ERROR")),
        Fault::AnswersAnotherMethod => peer.say(channel, 50, 41, &[0; 4]),
        Fault::AnswersAnUnknownMethod => peer.say(channel, 60, 71, &[]),
        Fault::AnswersOnAnotherChannel => {
            for (channel, class, id, told) in answers {
                peer.say(channel + 9, *class, *id, told);
            }
        }
        Fault::AnswersTwice => {
            for (channel, class, id, told) in answers.iter().chain(answers) {
                peer.say(*channel, *class, *id, told);
            }
        }
        Fault::LiesAboutTheFrame => peer.send(&[1, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF]),
        Fault::LiesAboutTheBody => {
            let mut content = moved(&delivery(1, "{}"), channel.max(1));
            // The body's frame is the last one: two bytes more than its header says.
            content.truncate(content.len() - 10);
            content.extend_from_slice(&[3, 0, 1, 0, 0, 0, 4, b'{', b'}', b' ', b' ', 0xCE]);
            peer.send(&moved(&content, channel.max(1)));
        }
        Fault::BreaksOff => {
            let whole = method(channel, 50, 11, |bytes| bytes.extend_from_slice(&[0; 30]));
            peer.send(&whole[..whole.len() / 2]);
            let _ = peer.stream.shutdown(std::net::Shutdown::Both);
        }
        Fault::BlocksTheConnection => {
            peer.say(0, 10, 60, b"\x03low");
            // A client that leaves ends this, with an end of the stream.
            peer.stream.set_read_timeout(Some(BLOCKED)).unwrap();
            let error = peer.stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "the client stays");
            peer.stream.set_read_timeout(Some(PATIENCE)).unwrap();
            peer.say(0, 10, 61, &[]);
            for (channel, class, id, told) in answers {
                peer.say(*channel, *class, *id, told);
            }
        }
        Fault::SpeaksHttp => peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    }
}

/// Accepts one connection after the other, until it is ended.
pub(super) struct Broker {
    pub(super) port: u16,
    pub(super) connections: Arc<AtomicUsize>,
    is_ending: Arc<AtomicBool>,
    /// Returns how many methods the longest conversation had.
    thread: JoinHandle<usize>,
}

impl Broker {
    /// One whose first connection goes wrong.
    fn new(at: usize, fault: Fault, heartbeat: u16) -> Self {
        Self::start(move |number, peer| {
            let at = if number == 0 { at } else { 0 };
            converse(peer, at, fault, heartbeat)
        })
    }

    /// *converse* gets the number of a connection, from 0 on, and returns how many methods it had.
    pub(super) fn start(
        mut converse: impl FnMut(usize, &mut Peer) -> usize + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_ending = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let (ending, counter) = (Arc::clone(&is_ending), Arc::clone(&connections));
        let accept = move || {
            let mut methods = 0;
            for number in 0.. {
                let (stream, _) = listener.accept().unwrap();
                if ending.load(Ordering::SeqCst) {
                    break;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut peer = Peer {
                    stream,
                    consumer: 0,
                };
                methods = methods.max(converse(number, &mut peer));
            }
            methods
        };
        let thread = thread::Builder::new().spawn(accept).unwrap();
        Self {
            port,
            connections,
            is_ending,
            thread,
        }
    }

    pub(super) fn end(self) -> usize {
        self.is_ending.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        self.thread.join().unwrap()
    }
}

fn fanout() -> Message {
    Message {
        exchange: Exchange {
            name: "topic_fanout".to_owned(),
            kind: ExchangeType::Fanout,
            ..Exchange::default()
        },
        routing_key: String::new(),
        ..cast()
    }
}

/// One message of each kind, with the fault at that step; how many steps there were.
fn survive(at: usize, fault: Fault, heartbeat: u16) -> usize {
    let broker = Broker::new(at, fault, heartbeat);
    let client = client(&[broker.port], heartbeat);
    let sent: Vec<_> = [call(), notification(), fanout(), cast()]
        .into_iter()
        .map(|message| (message.msg_id.is_some(), client.send(message).unwrap()))
        .collect();
    for (is_call, pending) in &sent {
        let event = end_of(pending);
        let is_done = match &event {
            Event::Reply(_) => *is_call,
            Event::Taken => !is_call,
            // What the broker has refused, it may have refused for good.
            Event::Failed(text) => {
                fault == Fault::ClosesTheChannel && text.contains("CHANNEL_ERROR")
            }
            Event::Undeliverable(..) | Event::Unusable(_) | Event::Lost | Event::TimedOut => false,
        };
        assert!(is_done, "{fault:?} at {at}: {event:?}");
    }
    let connections = broker.connections.load(Ordering::SeqCst);
    // A slow machine may seem silent as well.
    let is_bounded = fault != Fault::IsSilent;
    assert!(
        !is_bounded || connections <= MOST_CONNECTIONS,
        "{fault:?} at {at}"
    );
    client.close(Instant::now() + PATIENCE);
    assert!(
        !client.shared.state.lock().has_thread,
        "the thread has left"
    );
    broker.end()
}

#[test]
fn a_fault_at_any_method_costs_a_connection_and_no_message() {
    let steps = survive(0, Fault::Disappears, 60);
    assert!(steps > 15, "{steps} methods are all that is said");
    for fault in AT_ONCE {
        for at in 1..=steps {
            survive(at, fault, 60);
        }
    }
}

#[test]
fn a_broker_that_falls_silent_at_any_method_is_left() {
    let steps = survive(0, Fault::Disappears, 60);
    // Each takes two heartbeats; in the handshake there are none, but a limit of 10 s.
    thread::scope(|scope| {
        for at in HANDSHAKE + 1..=steps {
            scope.spawn(move || survive(at, Fault::IsSilent, 1));
        }
    });
}

/// A cast to a broker that does *fault* as it is asked for a channel, and may take a quarter of
/// [`BLOCKED`] for each answer; how many connections that took. On a slow machine further ones may be
/// left as well.
fn cast_impatiently(fault: Fault) -> usize {
    let broker = Broker::new(HANDSHAKE + 1, fault, 60);
    let mut options = client(&[broker.port], 60).shared.options.clone();
    options.answers_within = BLOCKED / 4;
    let client = Client::new(options, Box::new(|_, _| None)).unwrap();
    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let connections = broker.connections.load(Ordering::SeqCst);
    client.close(Instant::now() + PATIENCE);
    broker.end();
    connections
}

#[test]
fn a_broker_that_lives_and_never_answers_is_left() {
    assert!(cast_impatiently(Fault::IsSilent) >= 2);
}

#[test]
fn a_broker_that_has_blocked_the_connection_may_take_its_time() {
    // It is the broker that looks whether the client stays.
    assert!(cast_impatiently(Fault::BlocksTheConnection) >= 1);
}
