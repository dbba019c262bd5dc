//! An exchange is deleted, and with it the bindings of servers that are not told.

use super::tests::{Broker, Peer, cast, end_of, refusal, returned};
use super::{Event, Message};

/// Takes the first message, and sends the second one back; the channel of both.
fn lose_binding(peer: &mut Peer) -> u16 {
    let first = peer.published();
    peer.confirm(first.channel, 1);
    let second = peer.published();
    peer.send(&returned(&second));
    peer.confirm(second.channel, 2);
    first.channel
}

/// The next `queue.bind`, not answered: its channel and arguments.
fn next_binding(peer: &mut Peer) -> (u16, Vec<u8>) {
    loop {
        match peer.method().unwrap() {
            (50, 20, channel, arguments) => return (channel, arguments),
            (class, id, channel, _) => assert!(peer.answer(class, id, channel), "{class} {id}"),
        }
    }
}

#[test]
fn a_queue_that_has_taken_requests_is_bound_again_when_one_comes_back() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let route = lose_binding(peer);
        let (channel, arguments) = next_binding(peer);
        assert_ne!(channel, route);
        let name = cast().routing_key;
        let exchange = cast().exchange.name;
        let mut names = vec![0, 0];
        for text in [&name, &exchange, &name] {
            names.push(u8::try_from(text.len()).unwrap());
            names.extend_from_slice(text.as_bytes());
        }
        assert!(arguments.starts_with(&names), "{arguments:?}");
        peer.say(channel, 50, 21, &[]);
        let again = peer.published();
        assert_eq!(again.body, b"second");
        peer.confirm(again.channel, 3);
        peer.part();
    });
    let client = broker.client();

    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let second = Message {
        body: b"second".to_vec(),
        is_mandatory: true,
        ..cast()
    };
    assert_eq!(end_of(&client.send(second).unwrap()), Event::Taken);
    broker.end(&client);
}

#[test]
fn a_queue_that_is_gone_is_looked_for_once() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        lose_binding(peer);
        let (channel, _) = next_binding(peer);
        let mut refused = vec![1, 148, 15]; // 404
        refused.extend_from_slice(b"NOT_FOUND queue");
        refused.extend_from_slice(&[0, 50, 0, 20]);
        peer.say(channel, 20, 40, &refused);
        for tag in 3..=4 {
            let again = peer.published();
            peer.send(&returned(&again));
            peer.confirm(again.channel, tag);
        }
        peer.part();
    });
    let client = broker.client();

    let mandatory = || Message {
        is_mandatory: true,
        ..cast()
    };
    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let expected = Event::Undeliverable(312, "NO_ROUTE".to_owned());
    for _ in 0..2 {
        let pending = client.send(mandatory()).unwrap();
        assert_eq!(end_of(&pending), expected);
    }
    broker.end(&client);
}

/// As where RabbitMQ deletes the exchange for a while: it confirms declarations and does nothing.
#[test]
fn a_request_outlasts_an_exchange_that_takes_long_to_be_deleted() {
    let broker = Broker::new(1, |_, peer| {
        peer.shake_hands(60);
        let first = peer.published();
        peer.confirm(first.channel, 1);
        for _ in 0..6 {
            let second = peer.published();
            peer.say(
                second.channel,
                20,
                40,
                &refusal(404, "NOT_FOUND - no exchange"),
            );
        }
        let second = peer.published();
        peer.send(&returned(&second));
        peer.confirm(second.channel, 1);
        let again = peer.published();
        peer.confirm(again.channel, 2);
        peer.part();
    });
    let client = broker.client();

    assert_eq!(end_of(&client.send(cast()).unwrap()), Event::Taken);
    let second = Message {
        is_mandatory: true,
        ..cast()
    };
    assert_eq!(end_of(&client.send(second).unwrap()), Event::Taken);
    broker.end(&client);
}
