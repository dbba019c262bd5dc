//! In which order requests are written that wait for different things; no broker is needed.

use super::state::{Need, Outlet, State};
use super::*;

/// A connection that leads nowhere, and may be full.
#[derive(Clone, Default)]
struct Pipe {
    is_full: Arc<AtomicBool>,
}

impl Outlet for Pipe {
    fn queue(&self, _frames: Vec<u8>) {}

    fn unsent(&self) -> u64 {
        u64::from(self.is_full.load(Ordering::Relaxed)) * u64::MAX
    }
}

fn state_on(pipe: &Pipe) -> State {
    let mut state = State::default();
    state.connect(Box::new(pipe.clone()), 4096, false, Instant::now());
    state
}

fn exchange(name: &str) -> Exchange {
    Exchange {
        name: name.to_owned(),
        ..Exchange::default()
    }
}

fn route(name: &str) -> Need {
    Need::Route(exchange(name))
}

fn request(number: u64, message: Message) -> Arc<Request> {
    Arc::new(Request {
        message,
        outbox: None,
        number,
        progress: Mutex::default(),
        changed: Condvar::new(),
    })
}

fn send(state: &mut State, message: Message) -> Arc<Request> {
    let request = request(state.next_number(), message);
    state.accept(&request);
    request
}

fn to(name: &str) -> Message {
    Message {
        exchange: exchange(name),
        ..Message::default()
    }
}

fn send_to(state: &mut State, name: &str) -> Arc<Request> {
    send(state, to(name))
}

fn publications(request: &Request) -> u32 {
    request.progress.lock().publications
}

#[test]
fn the_time_of_a_call_goes_on_while_one_need_of_others_follows_the_other() {
    let mut state = state_on(&Pipe::default());
    state.set_replies(true);
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    send_to(&mut state, "a");
    send_to(&mut state, "b");
    let call = send(
        &mut state,
        Message {
            exchange: exchange("c"),
            msg_id: Some("1".to_owned()),
            answered_within: Some(Duration::from_secs(10)),
            ..Message::default()
        },
    );
    let event = |at| call.event(&mut call.progress.lock(), at);

    assert_eq!(state.flush(start), Some(route("a")));
    state.add_route("a".to_owned(), 1);
    assert_eq!(state.flush(after(6)), Some(route("b")));
    state.write_waiting(after(7), false);
    assert_eq!(event(after(9)), None);
    assert_eq!(event(after(10)), Some(Event::TimedOut));

    state.add_route("b".to_owned(), 2);
    assert_eq!(state.flush(after(8)), Some(route("c")));
    state.write_waiting(after(9), false);
    assert_eq!(event(after(60)), None, "its own need");
}

#[test]
fn what_was_refused_is_sent_again_while_another_message_waits_for_an_answer() {
    let mut state = state_on(&Pipe::default());
    state.add_route("a".to_owned(), 1);
    let now = Instant::now();
    let refused = send_to(&mut state, "a");
    send_to(&mut state, "b");
    assert_eq!(state.flush(now), Some(route("b")));
    assert!(state.settle(1, 1, false, false, now));

    state.write_waiting(now, false);
    assert_eq!(publications(&refused), 1, "not at once");
    state.write_waiting(now + Duration::from_secs(1), false);

    assert_eq!(publications(&refused), 2);
}

#[test]
fn nothing_overtakes_what_waits_for_the_broker_to_take_more() {
    let pipe = Pipe::default();
    let mut state = state_on(&pipe);
    state.add_route("a".to_owned(), 1);
    state.add_route("b".to_owned(), 2);
    pipe.is_full.store(true, Ordering::Relaxed);
    let first = send_to(&mut state, "a");
    pipe.is_full.store(false, Ordering::Relaxed);

    let second = send_to(&mut state, "b");
    assert_eq!((publications(&first), publications(&second)), (0, 0));
    assert_eq!(state.flush(Instant::now()), None);
    assert_eq!((publications(&first), publications(&second)), (1, 1));

    send_to(&mut state, "c");
    let third = send_to(&mut state, "b");
    assert_eq!(publications(&third), 1, "nothing waits for that any more");
}

#[test]
fn one_that_stands_behind_another_to_the_same_place_holds_up_no_other_place() {
    let mut state = state_on(&Pipe::default());
    state.add_route("a".to_owned(), 1);
    state.add_route("b".to_owned(), 2);
    let needs_its_queue = Message {
        default_queue: Some(Table::new()),
        ..to("a")
    };

    let first = send(&mut state, needs_its_queue);
    let behind = send_to(&mut state, "a");
    let other = send_to(&mut state, "b");

    assert_eq!((publications(&first), publications(&behind)), (0, 0));
    assert_eq!(publications(&other), 1, "the connection takes more");
}

#[test]
fn an_exchange_that_is_never_idle_gives_up_its_channel_for_another_one() {
    let mut state = state_on(&Pipe::default());
    for (name, channel) in [("a", 1), ("b", 2), ("c", 3)] {
        state.add_route(name.to_owned(), channel);
        send_to(&mut state, name);
    }
    send_to(&mut state, "a");
    send_to(&mut state, "new");
    let now = Instant::now();
    assert_eq!(state.flush(now), Some(route("new")));

    // Not c, which is needed itself, and b has the least under way.
    assert_eq!(state.remove_idle_route(Some("c")), None);
    let kept = send_to(&mut state, "a");
    let put_off = send_to(&mut state, "b");
    state.write_waiting(now, false);
    assert_eq!((publications(&kept), publications(&put_off)), (1, 0));

    assert!(state.settle(2, 1, false, true, now));
    assert_eq!(state.remove_idle_route(Some("c")), Some(2));
    state.keep_routes();
    state.add_route("new".to_owned(), 2);
    assert_eq!(
        state.flush(now),
        Some(route("b")),
        "what it gave up is asked for"
    );
}

#[test]
fn an_exchange_that_need_not_give_up_its_channel_after_all_goes_on() {
    let mut state = state_on(&Pipe::default());
    state.add_route("a".to_owned(), 1);
    send_to(&mut state, "a");
    assert_eq!(state.remove_idle_route(None), None);
    let put_off = send_to(&mut state, "a");
    assert_eq!(publications(&put_off), 0);

    state.keep_routes();

    assert_eq!(state.flush(Instant::now()), None);
    assert_eq!(publications(&put_off), 1);
}
