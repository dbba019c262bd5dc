//! Messages over which a broker ends the connection, each time that they are sent.
//!
//! Owns the ways in which it may, and a broker that has nothing against all others.

use super::faults;
use super::methods::CONNECTION_FORCED;
use super::state::{Outlet, State};
use super::suspicion::{HOLD, Loss};
use super::tests::{PATIENCE, Peer, Seen, call, cast, client, end_of, refusal};
use super::*;

const POISON: &[u8] = b"poison";
/// Connections that a message may end: three beside others, three by itself.
const MOST_ENDED: usize = 6;

/// How the broker ends a connection.
type End = fn(&mut Peer);

/// Confirms whatever it gets, until the poison ends the connection, or the client does.
fn serve(peer: &mut Peer, end: End) -> usize {
    peer.shake_hands(60);
    let mut tag = 0;
    loop {
        match peer.next() {
            Seen::Published(published) if published.body == POISON => {
                end(peer);
                return 0;
            }
            Seen::Published(published) => {
                tag += 1;
                peer.confirm(published.channel, tag);
            }
            Seen::Method(10, 50, _) => peer.say(0, 10, 51, &[]),
            Seen::Method(..) => {}
            Seen::Gone => return 0,
        }
    }
}

fn poison() -> Message {
    Message {
        body: POISON.to_vec(),
        ..call()
    }
}

#[test]
fn what_ends_each_connection_is_given_up_and_costs_no_other_message() {
    let ends: [(End, usize); 4] = [
        (|_| {}, MOST_ENDED),
        (
            |peer| peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            MOST_ENDED,
        ),
        (
            |peer| peer.say(0, 10, 50, &refusal(541, "INTERNAL_ERROR")),
            MOST_ENDED,
        ),
        // It is told that the message would meet the same again.
        (|peer| peer.say(0, 10, 50, &refusal(501, "FRAME_ERROR")), 2),
    ];
    for (end, ended) in ends {
        let broker = faults::Broker::start(move |_, peer| serve(peer, end));
        let client = client(&[broker.port], 60);
        let failures = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&failures);
        let outbox = client.outbox(Box::new(move |failed| told.lock().push(failed)));

        let poisoned = client.send(poison()).unwrap();
        let others: Vec<_> = (0..5).map(|_| client.send(cast()).unwrap()).collect();
        for other in &others {
            assert_eq!(end_of(other), Event::Taken);
        }
        assert!(matches!(end_of(&poisoned), Event::Failed(_)));
        assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
        assert!(broker.connections.load(Ordering::SeqCst) <= ended + 1);

        let reply = Message {
            exchange: Exchange::default(),
            msg_id: None,
            ..poison()
        };
        client.reply(reply, &outbox).unwrap();
        let deadline = Instant::now() + PATIENCE;
        assert_eq!(client.wait_confirmed(&outbox, deadline), (0, 0));
        assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
        let failures = std::mem::take(&mut *failures.lock());
        assert!(matches!(
            &failures[..],
            [FailedReply {
                end: Event::Failed(_),
                ..
            }]
        ));
        client.close(Instant::now() + PATIENCE);
        broker.end();
    }
}

/// What was written.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<Vec<u8>>>>);

impl Paper {
    /// Which of *bodies* were written since the last time.
    fn take<'a>(&self, bodies: &[&'a str]) -> Vec<&'a str> {
        let written = std::mem::take(&mut *self.0.lock()).concat();
        let is_in = |body: &&&str| written.windows(body.len()).any(|it| it == body.as_bytes());
        bodies.iter().filter(is_in).copied().collect()
    }
}

impl Outlet for Paper {
    fn queue(&self, frames: Vec<u8>) {
        self.0.lock().push(frames);
    }

    fn unsent(&self) -> u64 {
        0
    }
}

const BODIES: [&str; 4] = ["<one>", "<two>", "<three>", "<four>"];

/// A client's state, of which casts with [`BODIES`] are sent, and where they are written.
struct Fixture {
    state: State,
    paper: Paper,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let mut fixture = Self {
            state: State::default(),
            paper: Paper::default(),
            now: Instant::now(),
        };
        fixture.connect();
        fixture
    }

    fn connect(&mut self) {
        let outlet = Box::new(self.paper.clone());
        self.state.connect(outlet, 4096, true, self.now);
        self.state.add_route("nova".to_owned(), 1);
    }

    fn send(&mut self, body: &str) {
        let request = Arc::new(Request {
            message: Message {
                body: body.as_bytes().to_vec(),
                ..cast()
            },
            outbox: None,
            number: self.state.next_number(),
            progress: Mutex::default(),
            changed: Condvar::new(),
        });
        self.state.accept(&request);
    }

    /// What the thread writes when it looks again.
    fn flush(&mut self) -> Vec<&'static str> {
        assert!(self.state.flush(self.now).is_none());
        self.paper.take(&BODIES)
    }

    fn confirm(&mut self, tag: u64) {
        assert!(self.state.settle(1, tag, false, true, self.now));
    }

    fn lose(&mut self, loss: Loss) -> Vec<String> {
        let given_up = self.state.disconnect("gone", loss).into_iter();
        let line = |(request, text): (Arc<Request>, _)| format!("{}: {text}", request.describe());
        given_up.map(line).collect()
    }
}

#[test]
fn after_a_refusal_each_goes_alone_and_others_between_them() {
    let mut fixture = Fixture::new();
    fixture.send(BODIES[0]);
    fixture.send(BODIES[1]);
    assert_eq!(fixture.paper.take(&BODIES), BODIES[..2]);
    assert!(fixture.lose(Loss::Refusal).is_empty());
    assert!(fixture.state.needs_connection());
    fixture.send(BODIES[2]);

    fixture.connect();
    assert_eq!(fixture.flush(), BODIES[2..3], "it is none of those");
    assert!(
        fixture.flush().is_empty(),
        "nobody's turn, until it is settled"
    );
    fixture.confirm(1);
    assert_eq!(fixture.flush(), BODIES[..1]);
    fixture.send(BODIES[3]);
    assert!(fixture.flush().is_empty());
    fixture.confirm(2);
    assert_eq!(fixture.flush(), BODIES[3..]);
    fixture.confirm(3);
    assert_eq!(fixture.flush(), BODIES[1..2]);

    let given_up = fixture.lose(Loss::Refusal);
    assert_eq!(given_up.len(), 1);
    assert!(given_up[0].contains("5 bytes"), "{given_up:?}");
    assert!(given_up[0].contains(": 2 connections have"), "{given_up:?}");
    assert!(!fixture.state.needs_connection());
}

#[test]
fn a_broker_that_does_not_confirm_holds_up_a_turn_for_a_moment_only() {
    let mut fixture = Fixture::new();
    fixture.send(BODIES[0]);
    fixture.lose(Loss::Refusal);
    fixture.connect();
    fixture.paper.take(&BODIES);
    fixture.send(BODIES[1]);
    assert_eq!(fixture.paper.take(&BODIES), BODIES[1..2]);
    assert!(fixture.flush().is_empty());
    assert_eq!(
        fixture.state.next_flush(fixture.now),
        Some(fixture.now + HOLD)
    );

    fixture.now += HOLD;
    assert_eq!(fixture.flush(), BODIES[..1]);
    fixture.send(BODIES[2]);
    assert!(fixture.flush().is_empty());
    fixture.now += HOLD;
    assert_eq!(fixture.flush(), BODIES[2..3]);
}

#[test]
fn what_goes_beside_one_that_was_not_settled_in_time_is_not_alone_and_neither_is_that() {
    let mut fixture = Fixture::new();
    fixture.send(BODIES[0]);
    fixture.send(BODIES[1]);
    fixture.lose(Loss::Refusal);
    fixture.connect();
    fixture.paper.take(&BODIES);
    assert_eq!(fixture.flush(), BODIES[..1]);
    fixture.now += HOLD;
    assert!(fixture.flush().is_empty(), "the first is still under way");
    fixture.now += HOLD;
    assert_eq!(fixture.flush(), BODIES[1..2]);

    assert!(fixture.lose(Loss::Refusal).is_empty(), "either may be why");

    fixture.connect();
    let again = fixture.flush();
    assert_eq!(again.len(), 1, "{again:?}");
    assert_eq!(fixture.lose(Loss::Refusal).len(), 1, "that one is");
}

#[test]
fn a_broker_that_stops_or_is_away_has_nothing_against_a_message() {
    let mut fixture = Fixture::new();
    fixture.send(BODIES[0]);
    fixture.send(BODIES[1]);
    for _ in 0..=2 * MOST_ENDED {
        assert_eq!(fixture.paper.take(&BODIES), BODIES[..2]);
        assert!(fixture.lose(Loss::Forced).is_empty());
        fixture.state.count_attempt("no host");
        fixture.connect();
        assert!(fixture.state.flush(fixture.now).is_none());
    }
    let closed = |code| {
        Loss::of(&connection::Fault::Closed(methods::Refusal {
            code,
            ..methods::Refusal::default()
        }))
    };
    assert_eq!(closed(CONNECTION_FORCED), Loss::Forced);
    assert_eq!(closed(541), Loss::Unexplained);
}

#[test]
fn what_the_broker_settles_in_any_way_is_under_no_suspicion() {
    let mut fixture = Fixture::new();
    fixture.send(BODIES[0]);
    for _ in 0..=2 * MOST_ENDED {
        fixture.paper.take(&BODIES);
        assert!(fixture.lose(Loss::Unexplained).is_empty());
        fixture.connect();
        assert_eq!(fixture.flush(), BODIES[..1]);
        assert!(fixture.state.settle(1, 1, false, false, fixture.now));
        fixture.now += Duration::from_secs(2);
        assert_eq!(fixture.flush(), BODIES[..1], "the broker could not take it");
    }
}
