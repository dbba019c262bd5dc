//! What becomes of deliveries between the thread that reads and those that run them; no broker is
//! needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::locks::Mutex;

use super::delivery::{Delivery, PickUp};
use super::envelope::Head;
use super::listening::{Arrival, Listening, Queue, Stage};
use super::methods::{self, Properties, Refusal};
use super::state::Outlet;

const CHANNEL: u16 = 3;
pub(super) const REQUEST: &str =
    r#"{"oslo.version": "2.0", "oslo.message": "{\"method\": \"m\", \"_unique_id\": \"ID\"}"}"#;

#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Vec<Vec<u8>>>>);

impl Outlet for Wire {
    fn queue(&self, frames: Vec<u8>) {
        self.0.lock().push(frames);
    }

    fn unsent(&self) -> u64 {
        0
    }
}

struct Fixture {
    listening: Arc<Listening>,
    wire: Wire,
    /// What the sink has taken.
    taken: Arc<Mutex<Vec<(Delivery, Head)>>>,
    /// How many the sink takes.
    room: Arc<AtomicUsize>,
}

impl Fixture {
    fn new() -> Self {
        let queue = |is_stream| Queue {
            is_stream,
            ..Queue::default()
        };
        let seen = Arc::new(Mutex::new(Instant::now()));
        let fixture = Self {
            listening: Arc::new(Listening::new(vec![queue(false), queue(true)], 8, seen)),
            wire: Wire::default(),
            taken: Arc::default(),
            room: Arc::new(AtomicUsize::new(usize::MAX)),
        };
        fixture.open();
        let (taken, room) = (Arc::clone(&fixture.taken), Arc::clone(&fixture.room));
        fixture
            .listening
            .deliver_to(Arc::new(move |delivery, head| {
                let is_full = room
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |room| {
                        room.checked_sub(1)
                    })
                    .is_err();
                if is_full {
                    return Some(delivery);
                }
                taken.lock().push((delivery, head));
                None
            }));
        fixture
    }

    /// Three requests that no pool took, two of which were acknowledged since they had waited for long.
    fn with_two_early_of_three() -> Self {
        let fixture = Self::new();
        fixture.room.store(0, Ordering::SeqCst);
        fixture.deliver(1, 1, &REQUEST.replace("ID", "1"));
        fixture.deliver(1, 2, &REQUEST.replace("ID", "2"));
        assert_eq!(fixture.acknowledge_old(Duration::ZERO).len(), 2);
        fixture.deliver(1, 3, &REQUEST.replace("ID", "3"));
        fixture
    }

    fn open(&self) {
        self.listening.open(CHANNEL, Box::new(self.wire.clone()));
    }

    fn deliver(&self, consumer: u16, tag: u64, body: &str) {
        let properties = Properties {
            content_type: "application/json".to_owned(),
            content_encoding: "utf-8".to_owned(),
            ..Properties::default()
        };
        let body = body.as_bytes().to_vec();
        assert!(self.listening.deliver(consumer, tag, properties, body));
    }

    /// Delivers a request of that id, and takes it from the sink.
    fn request(&self, tag: u64, unique_id: &str) -> Delivery {
        self.deliver(1, tag, &REQUEST.replace("ID", unique_id));
        let (delivery, head) = self.taken.lock().pop().unwrap();
        assert_eq!(head.method, "m");
        assert_eq!(head.unique_id.as_deref(), Some(unique_id));
        delivery
    }

    fn acknowledge_old(&self, longest: Duration) -> Vec<Duration> {
        self.listening.acknowledge_old(longest, usize::MAX).0
    }

    fn polled(&self) -> Option<Delivery> {
        match self.listening.next(Some(Instant::now())) {
            Arrival::Message(delivery) => Some(delivery),
            Arrival::Interrupted | Arrival::TimedOut => None,
        }
    }

    fn said(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.wire.0.lock())
    }

    fn close_channel(&self) {
        let refusal = Refusal {
            code: 406,
            text: "timed out".to_owned(),
            ..Refusal::default()
        };
        self.listening.end_epoch(Some(&refusal));
    }
}

#[test]
fn a_request_goes_to_the_sink_and_all_else_and_what_is_behind_it_is_polled_for() {
    let fixture = Fixture::new();

    let first = fixture.request(1, "1");
    fixture.deliver(1, 2, r#"{"method": "m"}"#);
    fixture.deliver(1, 3, &REQUEST.replace("ID", "3"));

    assert_eq!(
        first.message.as_deref(),
        Some(r#"{"method": "m", "_unique_id": "1"}"#)
    );
    assert!(fixture.taken.lock().is_empty(), "it stands behind another");
    assert_eq!(fixture.polled().unwrap().message, None);
    assert!(fixture.polled().unwrap().message.is_some());
    fixture.room.store(0, Ordering::SeqCst);
    fixture.deliver(1, 4, &REQUEST.replace("ID", "4"));
    assert!(fixture.polled().is_some(), "the sink has not taken it");
    fixture.room.store(1, Ordering::SeqCst);
    drop(fixture.request(5, "5"));
    assert!(fixture.polled().is_none());
}

#[test]
fn a_request_runs_once_however_often_it_is_delivered() {
    let fixture = Fixture::new();

    assert_eq!(fixture.request(1, "1").pick_up(Some("1")), PickUp::Run);
    assert_eq!(fixture.request(2, "1").pick_up(Some("1")), PickUp::Twice);

    let acks = [1, 2].map(|tag| methods::ack(CHANNEL, tag));
    assert_eq!(fixture.said(), acks);
}

#[test]
fn a_request_whose_channel_is_closed_is_left_to_the_redelivery() {
    let fixture = Fixture::new();
    let before = fixture.request(1, "1");

    fixture.close_channel();
    assert_eq!(before.pick_up(Some("1")), PickUp::Lost);
    fixture.open();
    assert_eq!(before.pick_up(Some("1")), PickUp::Lost, "of another epoch");
    assert!(fixture.said().is_empty());

    assert_eq!(fixture.request(1, "1").pick_up(Some("1")), PickUp::Run);
}

#[test]
fn a_stopped_listener_gives_back_what_no_thread_has_picked_up() {
    let fixture = Fixture::new();
    let delivery = fixture.request(1, "1");

    fixture.listening.want(Stage::Stopped);
    let running = fixture.request(2, "2");
    assert_eq!(running.pick_up(Some("2")), PickUp::Run, "still consumed");
    fixture.listening.reach(Stage::Stopped);

    assert_eq!(delivery.pick_up(Some("1")), PickUp::GivenBack);
    let expected = [methods::ack(CHANNEL, 2), methods::requeue(CHANNEL, 1)];
    assert_eq!(fixture.said(), expected);
}

#[test]
fn what_has_waited_for_long_is_acknowledged_once_and_runs_whatever_happens() {
    let fixture = Fixture::new();
    let delivery = fixture.request(1, "1");
    let picked_up = fixture.request(2, "2");
    assert_eq!(picked_up.pick_up(Some("2")), PickUp::Run);
    fixture.said();

    assert!(
        fixture
            .acknowledge_old(Duration::from_secs(3600))
            .is_empty()
    );
    let longest = Duration::ZERO;
    assert_eq!(fixture.acknowledge_old(longest).len(), 1);
    assert!(fixture.acknowledge_old(longest).is_empty());
    fixture.close_channel();
    fixture.listening.reach(Stage::Stopped);

    assert_eq!(fixture.said(), [methods::ack(CHANNEL, 1)]);
    assert_eq!(delivery.pick_up(Some("1")), PickUp::Run);
    assert!(fixture.said().is_empty());
    let closures = fixture.listening.take_closures();
    assert_eq!(
        closures,
        [("406 timed out".to_owned(), None)],
        "none waits for its acknowledgement"
    );
}

#[test]
fn what_was_acknowledged_early_is_handed_out_though_its_channel_is_closed() {
    let fixture = Fixture::new();
    fixture.room.store(0, Ordering::SeqCst);
    fixture.deliver(1, 1, &REQUEST.replace("ID", "1"));
    assert_eq!(fixture.acknowledge_old(Duration::ZERO).len(), 1);
    fixture.deliver(1, 2, &REQUEST.replace("ID", "2"));

    fixture.close_channel();

    let delivery = fixture.polled().unwrap();
    assert_eq!(delivery.pick_up(Some("1")), PickUp::Run);
    assert!(fixture.polled().is_none(), "the broker has the other one");
    assert_eq!(fixture.said(), [methods::ack(CHANNEL, 1)]);
}

#[test]
fn no_more_is_acknowledged_early_than_is_allowed_until_a_thread_takes_one() {
    let fixture = Fixture::new();
    let first = fixture.request(1, "1");
    let _others = [2, 3, 4].map(|tag| fixture.request(tag, &tag.to_string()));

    let (waits, early) = fixture.listening.acknowledge_old(Duration::ZERO, 2);
    assert_eq!((waits.len(), early), (2, 2));
    let (waits, early) = fixture.listening.acknowledge_old(Duration::ZERO, 2);
    assert_eq!((waits.len(), early), (0, 2));
    assert_eq!(first.pick_up(Some("1")), PickUp::Run);
    let (waits, early) = fixture.listening.acknowledge_old(Duration::ZERO, 2);
    assert_eq!((waits.len(), early), (1, 2));
    fixture.close_channel();
    fixture.open();
    let _again = fixture.request(1, "4");
    let (waits, early) = fixture.listening.acknowledge_old(Duration::ZERO, 2);
    assert_eq!(
        (waits.len(), early),
        (0, 2),
        "of an earlier channel as well"
    );

    let acks = [1, 2, 3].map(|tag| methods::ack(CHANNEL, tag));
    assert_eq!(fixture.said(), acks);
}

#[test]
fn nothing_more_is_said_of_what_was_acknowledged_early() {
    let fixture = Fixture::with_two_early_of_three();
    let first = fixture.polled().unwrap();
    fixture.said();

    assert!(!first.reject());
    fixture.listening.want(Stage::Stopped);
    fixture.listening.mute();
    fixture.listening.reach(Stage::Stopped);
    let after = fixture.acknowledge_old(Duration::ZERO);

    assert_eq!(fixture.said(), [methods::requeue(CHANNEL, 3)]);
    assert!(after.is_empty(), "it was given back");
}

#[test]
fn what_nothing_delivers_again_is_handed_out_after_a_stop_that_took_too_long() {
    let fixture = Fixture::with_two_early_of_three();
    fixture.deliver(2, 4, &REQUEST.replace("ID", "4"));
    fixture.said();

    fixture.listening.want(Stage::Stopped);
    fixture.listening.mute();
    let first = fixture.polled().unwrap();
    assert_eq!(first.pick_up(Some("1")), PickUp::Run);
    assert_eq!(fixture.listening.advance(Stage::Stopped), 0);
    let second = fixture.polled().unwrap();
    assert_eq!(second.pick_up(Some("2")), PickUp::Run);

    assert_eq!(fixture.said(), [methods::requeue(CHANNEL, 3)]);
    assert_eq!(
        fixture.listening.advance(Stage::Closed),
        1,
        "no thread has come for what is of a stream"
    );
    assert!(fixture.polled().is_none());
}

#[test]
fn nothing_is_acknowledged_early_after_a_stop_for_it_goes_back() {
    let fixture = Fixture::new();
    fixture.room.store(0, Ordering::SeqCst);
    fixture.deliver(1, 1, &REQUEST.replace("ID", "1"));
    fixture.listening.want(Stage::Stopped);
    fixture.listening.reach(Stage::Stopped);
    let fetched = fixture.polled().unwrap();
    fixture.said();

    let acknowledged = fixture.acknowledge_old(Duration::ZERO);

    assert!(acknowledged.is_empty(), "it would be lost");
    assert!(fetched.give_back());
    assert_eq!(fixture.said(), [methods::requeue(CHANNEL, 1)]);
}

#[test]
fn what_arrived_is_given_back_also_where_the_broker_answers_a_stop_as_the_wait_for_it_ends() {
    let fixture = Fixture::new();
    fixture.room.store(0, Ordering::SeqCst);
    fixture.deliver(1, 1, &REQUEST.replace("ID", "1"));
    fixture.listening.want(Stage::Stopped);
    fixture.listening.reach(Stage::Stopped);
    fixture.said();

    fixture.listening.mute();

    assert_eq!(fixture.said(), [methods::requeue(CHANNEL, 1)]);
    assert!(fixture.polled().is_none());
}

#[test]
fn a_request_that_will_not_run_here_is_given_back_once_or_known_to_be_lost() {
    let fixture = Fixture::new();
    let kept = fixture.request(1, "1");
    assert!(kept.give_back());
    assert!(kept.give_back());
    assert_eq!(fixture.said(), [methods::requeue(CHANNEL, 1)]);

    let early = fixture.request(2, "2");
    assert_eq!(fixture.acknowledge_old(Duration::ZERO).len(), 1);
    assert!(!early.give_back());
    fixture.deliver(2, 3, &REQUEST.replace("ID", "3"));
    let (streamed, _) = fixture.taken.lock().pop().unwrap();
    assert!(!streamed.give_back());
    let running = fixture.request(4, "4");
    assert_eq!(running.pick_up(Some("4")), PickUp::Run);
    assert!(running.give_back(), "it is nobody else's");
    let before = fixture.request(5, "5");
    fixture.close_channel();
    assert!(before.give_back(), "it is delivered again");

    let acks = [2, 3, 4].map(|tag| methods::ack(CHANNEL, tag));
    assert_eq!(fixture.said(), acks);
}

#[test]
fn a_closure_tells_how_long_the_first_request_had_waited() {
    let fixture = Fixture::new();
    let _delivery = fixture.request(1, "1");

    fixture.close_channel();

    let closures = fixture.listening.take_closures();
    assert!(
        matches!(closures.as_slice(), [(_, Some(_))]),
        "{closures:?}"
    );
}

#[test]
fn a_stream_delivers_nothing_again_so_that_all_of_it_runs() {
    let fixture = Fixture::new();
    fixture.deliver(2, 1, &REQUEST.replace("ID", "1"));
    let (delivery, _) = fixture.taken.lock().pop().unwrap();

    fixture.listening.reach(Stage::Stopped);

    assert_eq!(delivery.pick_up(Some("1")), PickUp::Run);
    assert_eq!(fixture.said(), [methods::ack(CHANNEL, 1)]);
}

#[test]
fn the_end_of_a_listener_lets_its_sink_go() {
    let fixture = Fixture::new();
    assert_eq!(Arc::strong_count(&fixture.taken), 2);

    fixture.listening.reach(Stage::Closed);
    assert_eq!(Arc::strong_count(&fixture.taken), 1);

    let taken = Arc::clone(&fixture.taken);
    fixture.listening.deliver_to(Arc::new(move |delivery, _| {
        drop(Arc::clone(&taken));
        Some(delivery)
    }));
    assert_eq!(Arc::strong_count(&fixture.taken), 1, "it came too late");
}
