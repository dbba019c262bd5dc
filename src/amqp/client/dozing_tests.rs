//! When the thread of a client may leave what has arrived unread; no broker is needed.

use super::state::{Outlet, State};
use super::*;

struct Nowhere;

impl Outlet for Nowhere {
    fn queue(&self, _frames: Vec<u8>) {}

    fn unsent(&self) -> u64 {
        0
    }
}

/// Connected, with a consumer of replies, and a channel for replies to others.
fn state() -> State {
    let mut state = State::default();
    state.connect(Box::new(Nowhere), 4096, false, Instant::now());
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
