//! Listeners against a broker that keeps what is not acknowledged, and does wrong at each method in
//! turn.
//!
//! Owns that broker: one queue, whose messages are delivered again on each connection until they are
//! acknowledged. The faults are those of `faults.rs`; they happen at every step of a conversation:
//! the handshake, declarations, deliveries, and the end of a listener.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};

use super::faults::{AT_ONCE, Broker, Fault, HANDSHAKE, MOST_CONNECTIONS, misbehave};
use super::methods::Value;
use super::tests::{PATIENCE, Peer, client, delivery, moved, refusal};
use super::*;

const MESSAGES: [&str; 3] = ["1", "2", "3"];

/// What the broker keeps from one connection to the next.
#[derive(Default)]
struct Kept {
    messages: BTreeSet<String>,
    /// Those that were given back, each time.
    returned: Vec<String>,
    /// Methods of all connections: class, number, arguments.
    said: Vec<(u16, u16, Vec<u8>)>,
}

type SharedKept = Arc<Mutex<Kept>>;

/// What happens to a connection.
#[derive(Clone, Copy)]
struct Wrong {
    /// At the method of that number, counted from 1 on.
    at: usize,
    fault: Fault,
    heartbeat: u16,
}

/// Does right but for *wrong*. Returns how many methods there were that have answers.
fn converse(peer: &mut Peer, kept: &SharedKept, wrong: Wrong) -> usize {
    peer.shake_hands(wrong.heartbeat);
    let mut count = HANDSHAKE;
    let mut unacknowledged: BTreeMap<u64, String> = BTreeMap::new();
    let mut last_tag = 0;
    while let Some((class, id, channel, arguments)) = peer.method() {
        kept.lock().said.push((class, id, arguments.clone()));
        let tag = || u64::from_be_bytes(arguments[..8].try_into().unwrap());
        let mut answer = Vec::new();
        let mut has_consumed = false;
        let (class, id) = match (class, id) {
            (20, 10) => {
                answer.extend_from_slice(&[0; 4]);
                (20, 11)
            }
            (40, 10) => (40, 11),
            (50, 10) => {
                answer.extend_from_slice(&[1, b'q', 0, 0, 0, 0, 0, 0, 0, 0]);
                (50, 11)
            }
            (50, 20) => (50, 21),
            (50, 40) => {
                answer.extend_from_slice(&[0; 4]);
                (50, 41)
            }
            (60, 10) => (60, 11),
            (60, 20) => {
                let is_first = arguments.windows(2).any(|pair| pair == b"\x011");
                has_consumed = is_first;
                answer.extend_from_slice(&[1, b'1']);
                (60, 21)
            }
            (60, 30) => {
                answer.extend_from_slice(&arguments[..2]);
                (60, 31)
            }
            (20, 40) => (20, 41),
            (60, 80) => {
                if let Some(message) = unacknowledged.remove(&tag()) {
                    kept.lock().messages.remove(&message);
                }
                continue;
            }
            (60, 120) => {
                if let Some(message) = unacknowledged.remove(&tag()) {
                    kept.lock().returned.push(message);
                }
                continue;
            }
            (10, 50) => {
                peer.say(0, 10, 51, &[]);
                return count;
            }
            _ => continue, // an answer to what was closed
        };
        count += 1;
        if count == wrong.at {
            if wrong.fault == Fault::Disappears {
                return count;
            }
            misbehave(peer, wrong.fault, channel, &[(channel, class, id, answer)]);
            continue;
        }
        peer.say(channel, class, id, &answer);
        if has_consumed {
            for message in kept.lock().messages.clone() {
                last_tag += 1;
                peer.send(&moved(&delivery(last_tag, &message), channel));
                unacknowledged.insert(last_tag, message);
            }
        }
    }
    count
}

/// A broker that keeps messages, and whose first connection goes wrong.
struct Keeper {
    broker: Broker,
    kept: SharedKept,
}

impl Keeper {
    fn new(wrong: Wrong) -> Self {
        let kept = SharedKept::default();
        kept.lock().messages = MESSAGES.map(str::to_owned).into();
        let theirs = Arc::clone(&kept);
        let broker = Broker::start(move |number, peer| {
            let at = if number == 0 { wrong.at } else { 0 };
            converse(peer, &theirs, Wrong { at, ..wrong })
        });
        Self { broker, kept }
    }

    fn right() -> Self {
        Self::new(Wrong {
            at: 0,
            fault: Fault::Disappears,
            heartbeat: 60,
        })
    }

    fn subscriber(&self, heartbeat: u16) -> Subscriber {
        Subscriber::new(&client(&[self.broker.port], heartbeat)).unwrap()
    }

    fn connections(&self) -> usize {
        self.broker.connections.load(Ordering::SeqCst)
    }

    fn end(self) -> usize {
        self.broker.end()
    }
}

fn queues() -> Vec<Queue> {
    let queue = |name: &str, kind, is_own| Queue {
        exchange: Exchange {
            name: "nova".to_owned(),
            kind,
            ..Exchange::default()
        },
        name: name.to_owned(),
        routing_key: name.to_owned(),
        is_own,
        ..Queue::default()
    };
    vec![
        queue("topic", ExchangeType::Topic, false),
        queue("topic_fanout_1", ExchangeType::Fanout, true),
    ]
}

pub(super) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

pub(super) fn next(subscription: &Subscription) -> Delivery {
    loop {
        match subscription.next(Some(soon())) {
            Arrival::Message(delivery) => return delivery,
            Arrival::Interrupted => drop(subscription.take_closures()),
            Arrival::TimedOut => panic!("nothing arrives"),
        }
    }
}

pub(super) fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.clone()).unwrap()
}

/// A listener that acknowledges all there is and ends, with the fault at that step; how many steps
/// there were.
fn survive(wrong: Wrong) -> usize {
    let Wrong { at, fault, .. } = wrong;
    let broker = Keeper::new(wrong);
    let subscriber = broker.subscriber(wrong.heartbeat);
    let mut subscription = subscriber.subscribe(queues(), 8).unwrap();
    let mut standing = subscription.wait_standing(Some(soon()));
    if let Standing::Refused(code, _) = standing {
        // What the broker has refused as it was declared first, it may have refused for good.
        assert_eq!((fault, code), (Fault::ClosesTheChannel, 504), "at {at}");
        subscription = subscriber.subscribe(queues(), 8).unwrap();
        standing = subscription.wait_standing(Some(soon()));
    }
    assert_eq!(standing, Standing::Consuming, "{fault:?} at {at}");
    let mut seen = BTreeSet::new();
    let end = soon();
    while !broker.kept.lock().messages.is_empty() {
        assert!(Instant::now() < end, "{fault:?} at {at}: {seen:?}");
        // What is acknowledged may be on its way.
        let look = Instant::now() + Duration::from_millis(5);
        match subscription.next(Some(look)) {
            Arrival::Message(delivery) => {
                seen.insert(text(&delivery));
                let _ = delivery.acknowledge();
            }
            Arrival::Interrupted => drop(subscription.take_closures()),
            Arrival::TimedOut => {}
        }
    }
    assert_eq!(
        seen,
        MESSAGES.map(str::to_owned).into(),
        "{fault:?} at {at}"
    );
    assert!(subscription.stop(soon()), "{fault:?} at {at}");
    assert!(subscription.close(soon()), "{fault:?} at {at}");
    subscriber.close(soon());
    let connections = broker.connections();
    // A slow machine may seem silent as well.
    let is_bounded = fault != Fault::IsSilent;
    assert!(
        !is_bounded || connections <= MOST_CONNECTIONS,
        "{fault:?} at {at}"
    );
    broker.end()
}

#[test]
fn a_fault_at_any_method_costs_a_connection_and_no_message() {
    let wrong = |at, fault| Wrong {
        at,
        fault,
        heartbeat: 60,
    };
    let steps = survive(wrong(0, Fault::Disappears));
    assert!(steps > 12, "{steps} methods are all that is said");
    for fault in AT_ONCE {
        for at in HANDSHAKE + 1..=steps {
            survive(wrong(at, fault));
        }
    }
}

#[test]
fn a_broker_that_falls_silent_at_any_method_is_left() {
    let wrong = |at| Wrong {
        at,
        fault: Fault::IsSilent,
        heartbeat: 1,
    };
    let steps = survive(wrong(0));
    thread::scope(|scope| {
        for at in HANDSHAKE + 1..=steps {
            scope.spawn(move || survive(wrong(at)));
        }
    });
}

#[test]
fn what_is_given_back_after_a_stop_does_not_come_again() {
    let broker = Keeper::right();
    let subscriber = broker.subscriber(60);
    let subscription = subscriber.subscribe(queues(), 8).unwrap();
    let first = next(&subscription);

    assert!(subscription.stop(soon()));
    let rest = [next(&subscription), next(&subscription)];
    assert!(matches!(
        subscription.next(Some(soon())),
        Arrival::Interrupted
    ));
    assert!(first.acknowledge());
    for delivery in &rest {
        assert!(delivery.requeue());
    }
    assert!(subscription.close(soon()));
    assert!(!first.acknowledge(), "its channel is closed");
    subscriber.close(soon());

    let kept = broker.kept.lock();
    assert_eq!(kept.returned, ["2", "3"]);
    let methods: Vec<_> = kept
        .said
        .iter()
        .map(|(class, id, _)| (*class, *id))
        .collect();
    let place = |method| methods.iter().rposition(|it| *it == method).unwrap();
    assert!(place((60, 30)) < place((60, 120)), "cancelled first");
    assert!(
        place((50, 40)) < place((20, 40)),
        "its own queue is deleted"
    );
    drop(kept);
    broker.end();
}

#[test]
fn listeners_of_a_subscriber_share_a_connection_and_the_last_one_ends_it() {
    let broker = Keeper::right();
    let subscriber = broker.subscriber(60);
    let subscriptions: Vec<_> = (0..5)
        .map(|_| subscriber.subscribe(queues(), 8).unwrap())
        .collect();
    for subscription in &subscriptions {
        assert_eq!(
            subscription.wait_standing(Some(soon())),
            Standing::Consuming
        );
    }
    // A slow machine may need more than one.
    let before = broker.connections();
    assert!(before < MOST_CONNECTIONS, "{before} for five listeners");
    drop(subscriptions);
    let end = soon();
    while subscriber.is_connected() {
        assert!(
            Instant::now() < end,
            "the connection ends with its last listener"
        );
        thread::yield_now();
    }
    let again = subscriber.subscribe(queues(), 8).unwrap();
    assert_eq!(again.wait_standing(Some(soon())), Standing::Consuming);
    assert!(broker.connections() > before);
    drop(again);
    subscriber.close(soon());
    broker.end();
}

/// One connection that goes by *script*, and the listener of one queue on it.
fn scripted(
    script: impl FnOnce(&mut Peer, &dyn Fn(&mut Peer) -> u16) + Send + 'static,
) -> (Subscriber, Subscription, JoinHandle<()>) {
    scripted_for(one_queue(true), script)
}

pub(super) fn scripted_for(
    queues: Vec<Queue>,
    script: impl FnOnce(&mut Peer, &dyn Fn(&mut Peer) -> u16) + Send + 'static,
) -> (Subscriber, Subscription, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::Builder::new()
        .spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut peer = Peer {
                stream,
                consumer: 0,
            };
            peer.shake_hands(60);
            script(&mut peer, &consumed);
            while let Some((class, id, channel, _)) = peer.method() {
                match (class, id) {
                    (60, 30) => peer.say(channel, 60, 31, &[1, b'1']),
                    (20, 40) => peer.say(channel, 20, 41, &[]),
                    (10, 50) => peer.say(0, 10, 51, &[]),
                    _ => {}
                }
            }
        })
        .unwrap();
    let subscriber = Subscriber::new(&client(&[port], 60)).unwrap();
    let subscription = subscriber.subscribe(queues, 8).unwrap();
    (subscriber, subscription, thread)
}

pub(super) fn one_queue(is_stream: bool) -> Vec<Queue> {
    let mut queues = queues();
    queues.truncate(1);
    queues[0].is_stream = is_stream;
    queues
}

/// Answers until a queue is consumed; on which channel.
fn consumed(peer: &mut Peer) -> u16 {
    loop {
        let (class, id, channel, arguments) = peer.method().unwrap();
        match (class, id) {
            (20, 10) => peer.say(channel, 20, 11, &[0; 4]),
            (40, 10) => peer.say(channel, 40, 11, &[]),
            (50, 10) => peer.say(channel, 50, 11, &[1, b'q', 0, 0, 0, 0, 0, 0, 0, 0]),
            (50, 20) => peer.say(channel, 50, 21, &[]),
            (60, 10) => peer.say(channel, 60, 11, &[]),
            (20, 40) => peer.say(channel, 20, 41, &[]),
            (60, 20) => {
                peer.consumer = channel;
                peer.stream.set_nodelay(true).unwrap();
                peer.say(channel, 60, 21, &[1, b'1']);
                CONSUMED.lock().push(arguments);
                return channel;
            }
            _ => {}
        }
    }
}

/// Arguments of `basic.consume` that scripts have seen.
static CONSUMED: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// `basic.deliver` of a message that is at *offset* of a stream.
fn streamed(channel: u16, tag: u64, offset: i64) -> Vec<u8> {
    use crate::amqp::frames::{BODY, HEADER, put_frame};

    let mut bytes = methods::method(channel, 60, 60, |bytes| {
        bytes.extend_from_slice(&[1, b'1']);
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 1, b'q']);
    });
    put_frame(&mut bytes, HEADER, channel, |bytes| {
        bytes.extend_from_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        bytes.extend_from_slice(&(1_u16 << 13).to_be_bytes());
        let mut table = vec![15];
        table.extend_from_slice(b"x-stream-offset");
        table.push(b'l');
        table.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(table.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&table);
    });
    put_frame(&mut bytes, BODY, channel, |bytes| {
        bytes.extend_from_slice(b"{}");
    });
    bytes
}

#[test]
fn a_stream_goes_on_behind_what_was_read_and_tags_do_not_outlive_their_channel() {
    let (subscriber, subscription, thread) = scripted(|peer, consumed| {
        let channel = consumed(peer);
        peer.send(&streamed(channel, 1, 41));
        // Only what was taken is acknowledged: then the channel is closed over it.
        let (class, id, ..) = peer.method().unwrap();
        assert_eq!((class, id), (60, 80));
        peer.send(&streamed(channel, 2, 42));
        peer.say(
            channel,
            20,
            40,
            &refusal(406, "PRECONDITION_FAILED - timed out"),
        );
        let channel = consumed(peer);
        peer.send(&streamed(channel, 1, 43));
        let (class, id, _, arguments) = peer.method().unwrap();
        assert_eq!((class, id), (60, 80));
        assert_eq!(arguments[..8], 1_u64.to_be_bytes());
    });
    assert!(next(&subscription).acknowledge());
    let second = next(&subscription);
    assert!(!second.is_kept);
    let third = next(&subscription);
    assert!(second.is_over());
    assert!(!second.acknowledge(), "its tag is another message's by now");
    assert!(third.acknowledge());
    let listening = listening::Listening::new(
        vec![Queue {
            is_stream: true,
            ..Queue::default()
        }],
        0,
        Arc::new(Mutex::new(Instant::now())),
    );
    let first = listening.consumer_arguments(1, &listening.queues[0]);
    assert_eq!(first[0].1, Value::Text("last".to_owned()));
    let has_gone_on = CONSUMED.lock().iter().any(|arguments| {
        arguments
            .windows(4)
            .any(|bytes| bytes == 43_u32.to_be_bytes())
    });
    assert!(has_gone_on, "behind offset 42");
    assert!(subscription.close(soon()));
    subscriber.close(soon());
    thread.join().unwrap();
}

#[test]
fn after_a_stop_that_took_too_long_nothing_is_handed_out_and_all_is_given_back() {
    let (holds, held) = mpsc::channel();
    let (goes_on, may_go_on) = mpsc::channel();
    let (tells, returned) = mpsc::channel();
    let (subscriber, subscription, thread) =
        scripted_for(one_queue(false), move |peer, consumed| {
            let channel = consumed(peer);
            peer.send(&moved(&delivery(1, "1"), channel));
            // The second listener's exchange is declared late.
            let opened = peer.method().unwrap();
            assert_eq!((opened.0, opened.1), (20, 10));
            peer.say(opened.2, 20, 11, &[0; 4]);
            assert_eq!(peer.method().unwrap().1, 10);
            holds.send(()).unwrap();
            may_go_on.recv().unwrap();
            peer.send(&moved(&delivery(2, "2"), channel));
            let (class, id, _, arguments) = peer.method().unwrap();
            assert_eq!((class, id), (60, 120), "what was handed out is given back");
            assert_eq!(arguments[..8], 1_u64.to_be_bytes());
            peer.say(opened.2, 40, 11, &[]);
            consumed(peer);
            let (class, id, on, _) = peer.method().unwrap();
            assert_eq!((class, id, on), (60, 30, channel), "cancelled all the same");
            peer.send(&moved(&delivery(3, "3"), channel));
            peer.say(channel, 60, 31, &[1, b'1']);
            for tag in [2_u64, 3] {
                let (class, id, _, arguments) = peer.method().unwrap();
                assert_eq!((class, id), (60, 120), "what has come since as well");
                assert_eq!(arguments[..8], tag.to_be_bytes());
            }
            tells.send(()).unwrap();
        });
    let first = next(&subscription);
    let second = subscriber.subscribe(one_queue(false), 8).unwrap();
    held.recv().unwrap();
    assert!(!subscription.stop(Instant::now()), "the thread has no time");
    assert!(subscription.is_over());
    assert!(first.requeue());
    goes_on.send(()).unwrap();
    assert_eq!(second.wait_standing(Some(soon())), Standing::Consuming);
    assert!(matches!(
        subscription.next(Some(soon())),
        Arrival::Interrupted
    ));
    returned.recv().unwrap();
    assert!(subscription.close(soon()));
    assert!(second.close(soon()));
    subscriber.close(soon());
    thread.join().unwrap();
}

#[test]
fn a_close_ends_the_wait_for_queues_and_no_listener_comes_after_it() {
    // Its port is taken, and refuses connections.
    let broker = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(broker.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = getsockname::<SockaddrIn>(broker.as_raw_fd())
        .unwrap()
        .port();
    let subscriber = Subscriber::new(&client(&[port], 60)).unwrap();
    let subscription = subscriber.subscribe(queues(), 8).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| subscription.wait_standing(Some(soon())));
        subscriber.close(soon());
        assert_eq!(waiter.join().unwrap(), Standing::Closed);
    });
    assert!(subscription.is_over());
    assert!(matches!(subscription.next(None), Arrival::Interrupted));
    let error = subscriber.subscribe(queues(), 8).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
}

#[test]
fn a_listener_that_has_no_connection_ends_without_waiting_for_one() {
    // It accepts, and says nothing.
    let broker = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = broker.local_addr().unwrap().port();
    let subscriber = Subscriber::new(&client(&[port], 60)).unwrap();
    let subscription = subscriber.subscribe(queues(), 8).unwrap();
    let dialled = broker.accept().unwrap();
    assert!(subscription.stop(Instant::now()));
    assert!(subscription.close(Instant::now()));
    assert!(subscription.is_over());
    drop((dialled, broker));
    subscriber.close(soon());
}

#[test]
fn a_close_in_the_midst_of_a_question_says_goodbye() {
    let (holds, held) = mpsc::channel();
    let (subscriber, _subscription, thread) = scripted(move |peer, _| {
        assert_eq!(peer.method().unwrap().0, 20);
        holds.send(()).unwrap();
        let (class, id, ..) = peer.method().unwrap();
        assert_eq!((class, id), (10, 50), "connection.close");
        peer.say(0, 10, 51, &[]);
    });
    held.recv().unwrap();
    subscriber.close(soon());
    thread.join().unwrap();
}

#[test]
fn a_drain_after_a_stop_is_not_taken_for_a_freeze() {
    let broker = Keeper::right();
    let subscriber = broker.subscriber(60);
    let [draining, other] = [(); 2].map(|()| subscriber.subscribe(queues(), 8).unwrap());
    let first = next(&draining);
    let second = next(&draining);
    assert!(draining.stop(soon()));
    assert!(other.stop(soon()));
    subscriber.freeze();
    assert!(other.close(soon()), "the thread has looked");
    assert!(first.acknowledge(), "its channel is open");

    subscriber.freeze();
    assert!(second.acknowledge());
    assert!(draining.close(soon()));
    subscriber.close(soon());
    broker.end();
}

#[test]
fn listeners_of_a_frozen_process_are_given_up_until_one_comes_back() {
    let broker = Keeper::right();
    let subscriber = broker.subscriber(60);
    let subscription = subscriber.subscribe(queues(), 8).unwrap();
    let first = next(&subscription);
    assert!(first.acknowledge(), "which shows that it is alive");
    let second = next(&subscription);
    subscriber.freeze();
    let end = soon();
    while !second.is_over() {
        assert!(Instant::now() < end, "the connection is kept");
        thread::yield_now();
    }
    assert_eq!(text(&next(&subscription)), text(&second));
    assert!(subscription.close(soon()));
    subscriber.close(soon());
    broker.end();
}

/// An open channel that leads nowhere.
struct Nowhere;

impl state::Outlet for Nowhere {
    fn queue(&self, _frames: Vec<u8>) {}
    fn unsent(&self) -> u64 {
        0
    }
}

fn listening() -> listening::Listening {
    listening::Listening::new(queues(), 0, Arc::new(Mutex::new(Instant::now())))
}

#[test]
fn a_channel_that_loses_a_consumer_is_kept_for_a_drain() {
    let listening = listening();
    listening.open(1, Box::new(Nowhere));
    listening.cancelled(1);
    let now = Instant::now();
    assert_eq!(listening.step(now), Ok(listening::Step::Abandon(1)));
    listening.want(listening::Stage::Stopped);
    assert_eq!(listening.step(now), Ok(listening::Step::Cancel(1)));
    listening.reach(listening::Stage::Stopped);
    assert_eq!(listening.step(now), Err(None));
}

#[test]
fn what_is_consumed_is_bound_again_now_and_then() {
    let listening = listening();
    listening.open(1, Box::new(Nowhere));
    listening.consuming();
    let begin = Instant::now();
    let due = listening.step(begin).unwrap_err().unwrap();
    assert!(due > begin);
    assert_eq!(listening.step(due), Ok(listening::Step::Bind));
    listening.bind(due);
    let due_again = due + listening::BIND_EVERY;
    assert_eq!(listening.step(due), Err(Some(due_again)));
    listening.want(listening::Stage::Stopped);
    assert_eq!(listening.step(due_again), Ok(listening::Step::Cancel(1)));
    listening.reach(listening::Stage::Stopped);
    assert_eq!(listening.step(due_again), Err(None));
}

#[test]
fn a_listener_that_is_refused_has_ended() {
    for standing in [
        Standing::Refused(403, "no".to_owned()),
        Standing::Unusable("none".to_owned()),
    ] {
        let listening = listening();
        listening.end(standing.clone());
        assert!(listening.wait_reached(listening::Stage::Closed, Instant::now()));
        assert!(matches!(listening.next(None), Arrival::Interrupted));
        assert_eq!(listening.wait_standing(None), standing);
    }
}
