//! When the thread of a client may leave what has arrived unread, or untold; no broker is needed.

use super::state::{Outlet, State};
use super::*;

/// What was written, each time.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<Vec<u8>>>>);

impl Paper {
    fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock())
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

/// Connected, with a consumer of replies, and a channel for replies to others.
fn state() -> State {
    state_on(&Paper::default())
}

fn state_on(paper: &Paper) -> State {
    let mut state = State::default();
    state.connect(Box::new(paper.clone()), 4096, false, Instant::now());
    state.set_replies(true);
    state.add_route(String::new(), 1);
    state
}

/// Sends a message, a reply where there is an *outbox*; whether the thread was rung for.
fn send(state: &mut State, msg_id: Option<&str>, outbox: Option<&Arc<Outbox>>) -> bool {
    let request = Arc::new(Request {
        message: Message {
            routing_key: "queue".to_owned(),
            msg_id: msg_id.map(str::to_owned),
            ..Message::default()
        },
        outbox: outbox.map(Arc::clone),
        number: state.next_number(),
        progress: Mutex::default(),
        changed: Condvar::new(),
    });
    state.accept(&request)
}

fn outbox() -> Arc<Outbox> {
    Arc::new(Outbox::new(Arc::default(), Box::new(|_| ())))
}

#[test]
fn confirms_of_a_few_replies_may_lie_and_nothing_else_may() {
    let outbox = outbox();
    let mut state = state();
    assert!(!state.begin_doze(), "nothing is expected");

    assert!(!send(&mut state, None, Some(&outbox)));
    assert!(state.begin_doze());
    assert!(!send(&mut state, None, Some(&outbox)), "one more may lie");
    assert!(send(&mut state, None, None), "a cast is waited for");
    assert!(!state.begin_doze());
    assert!(state.settle(1, 3, true, true, Instant::now()));

    assert!(!send(&mut state, None, Some(&outbox)));
    assert!(state.begin_doze());
    assert!(send(&mut state, Some("7"), None), "a call is waited for");
    assert!(state.settle(1, 5, true, true, Instant::now()));
    assert!(!send(&mut state, None, Some(&outbox)));
    assert!(!state.begin_doze(), "its reply is still to come");
    state.forget("7");
    assert!(state.begin_doze());
}

#[test]
fn confirms_are_read_once_there_are_many_or_a_thread_waits_for_them() {
    let outbox = outbox();
    let mut state = state();
    assert!(!send(&mut state, None, Some(&outbox)));
    assert!(state.begin_doze());

    let mut sent = 1;
    while !send(&mut state, None, Some(&outbox)) {
        sent += 1;
        assert!(sent < 1000, "the thread is never rung for");
    }
    assert!(!state.begin_doze(), "there are many");
    assert!(state.settle(1, sent, true, true, Instant::now()));

    assert!(state.begin_doze(), "one is left");
    assert!(state.hurry(true), "it is rung for");
    assert!(!state.begin_doze());
    assert!(!state.hurry(false));
    assert!(state.begin_doze());
}

#[test]
fn the_broker_is_told_of_replies_with_the_next_request_or_after_a_second() {
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let paper = Paper::default();
    let mut state = state_on(&paper);
    let ack = |tag| methods::ack_up_to(2, tag);

    state.arrived(2, 7, 500, now);
    state.arrived(2, 8, 500, now + second / 2);
    state.acknowledge(Some(now));
    assert!(paper.take().is_empty());
    assert_eq!(state.next_flush(now), Some(now + second), "of the first");
    assert!(!send(&mut state, Some("9"), None));
    let written = paper.take().concat();
    assert!(written.starts_with(&ack(8)) && written.len() > ack(8).len());
    state.acknowledge(None);
    assert!(paper.take().is_empty(), "told once");

    state.arrived(2, 9, 500, now);
    state.acknowledge(Some(now + second));
    assert_eq!(paper.take(), [ack(9)]);
    state.arrived(2, 10, 500, now);
    state.acknowledge(None);
    assert_eq!(paper.take(), [ack(10)]);
    state.arrived(2, 11, 1_000_000, now);
    state.acknowledge(Some(now));
    assert_eq!(paper.take(), [ack(11)], "a large one is not kept there");
}

#[test]
fn nothing_is_said_of_replies_from_a_channel_that_is_closed() {
    let now = Instant::now();
    let paper = Paper::default();
    let mut state = state_on(&paper);

    state.arrived(2, 7, 500, now);
    state.set_replies(true);
    assert!(
        state.next_flush(now).is_some(),
        "they may come before the answer"
    );
    state.set_replies(false);
    state.acknowledge(None);
    state.arrived(2, 7, 500, now);
    state.disconnect("gone", suspicion::Loss::Forced);
    state.connect(Box::new(paper.clone()), 4096, true, now);
    state.acknowledge(None);

    assert!(paper.take().is_empty());
}
