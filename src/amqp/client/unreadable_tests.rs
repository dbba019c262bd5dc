//! Messages whose properties cannot be read, and properties that are unusual and right.
//!
//! Owns their bytes. A broker passes them on as they were sent, and again on each connection.

use super::methods::method;
use super::subscriber_tests::{next, one_queue, scripted_for, soon, text};
use super::tests::{Peer, call, client, end_of, moved, reply_to};
use super::*;
use crate::amqp::frames::{
    BODY, HAS_CONTENT_TYPE, HAS_HEADERS, HAS_MESSAGE_ID, HAS_MORE, HEADER, put_frame,
};

/// What follows the length of a body: flags, and properties.
fn after_length(flags: u16, properties: &[u8]) -> Vec<u8> {
    [&flags.to_be_bytes()[..], properties].concat()
}

fn table(fields: &[u8]) -> Vec<u8> {
    let length = u32::try_from(fields.len()).unwrap();
    [&length.to_be_bytes()[..], fields].concat()
}

/// A delivery on channel 1, whose content header has *rest* after the length of its body.
fn delivery(tag: u64, rest: &[u8], body: &str) -> Vec<u8> {
    let mut bytes = method(1, 60, 60, |bytes| {
        bytes.extend_from_slice(&[1, b'1']);
        bytes.extend_from_slice(&tag.to_be_bytes());
        bytes.extend_from_slice(&[0, 4, b'n', b'o', b'v', b'a', 2, b'k', 0xFF]);
    });
    put_frame(&mut bytes, HEADER, 1, |bytes| {
        bytes.extend_from_slice(&[0, 60, 0, 0]);
        bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        bytes.extend_from_slice(rest);
    });
    put_frame(&mut bytes, BODY, 1, |bytes| {
        bytes.extend_from_slice(body.as_bytes());
    });
    bytes
}

fn unreadable() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        after_length(HAS_CONTENT_TYPE, &[200, b'a']),
        after_length(HAS_HEADERS, &[0, 0, 0, 99, 1, b'a']),
        after_length(HAS_HEADERS, &table(&[1, b'a', b'Z', 0])),
        after_length(HAS_HEADERS, &table(&[1, b'a', b'S', 0, 0, 0, 9, b'b'])),
        after_length(HAS_HEADERS, &table(&[9, b'a'])),
        after_length(HAS_CONTENT_TYPE | HAS_MORE, &[1, b'a']),
    ]
}

#[test]
fn what_cannot_be_read_is_rejected_once_and_what_is_behind_it_is_served() {
    for is_stream in [false, true] {
        let (subscriber, subscription, thread) =
            scripted_for(one_queue(is_stream), move |peer, consumed| {
                let channel = consumed(peer);
                for (tag, rest) in (1..).zip(unreadable()) {
                    peer.send(&moved(&delivery(tag, &rest, "{}"), channel));
                    let (class, id, _, arguments) = peer.method().unwrap();
                    // Nothing is given back to the queue: `requeue` is the bit of `basic.reject`.
                    let id_of_end = if is_stream { 80 } else { 90 };
                    assert_eq!((class, id), (60, id_of_end), "{rest:?}");
                    assert_eq!(arguments, [&tag.to_be_bytes()[..], &[0]].concat());
                }
                let good = after_length(HAS_MESSAGE_ID, &[1, b'm']);
                peer.send(&moved(&delivery(99, &good, "good"), channel));
            });

        assert_eq!(text(&next(&subscription)), "good", "on the same connection");

        assert!(subscription.close(soon()));
        drop(subscription);
        drop(subscriber);
        thread.join().unwrap();
    }
}

#[test]
fn a_reply_that_cannot_be_read_harms_no_other() {
    let broker = faults::Broker::start(|number, peer: &mut Peer| {
        assert_eq!(number, 0, "on the same connection");
        peer.shake_hands(60);
        let mut published = None;
        loop {
            match peer.next() {
                tests::Seen::Published(it) => {
                    for (tag, rest) in (1..).zip(unreadable()) {
                        peer.send(&moved(&delivery(tag, &rest, &reply_to("7")), peer.consumer));
                    }
                    peer.deliver(99, &reply_to("7"));
                    peer.confirm(it.channel, 1);
                    published = Some(it);
                }
                tests::Seen::Method(10, 50, _) => peer.say(0, 10, 51, &[]),
                tests::Seen::Method(..) => {}
                tests::Seen::Gone => break,
            }
        }
        usize::from(published.is_some())
    });
    let client = client(&[broker.port], 60);

    let pending = client.send(call()).unwrap();

    assert_eq!(end_of(&pending), Event::Reply(reply_to("7").into_bytes()));
    client.close(soon());
    broker.end();
}

#[test]
fn every_type_of_a_table_is_read_and_what_is_no_utf_8() {
    let mut fields = Vec::new();
    let nested = table(&[1, 0xFE, b'V']);
    let long = [0, 0, 0, 2, 0xFF, 0xFE];
    for (kind, value) in [
        (b't', &[1][..]),
        (b'b', &[0x80]),
        (b'B', &[0xFF]),
        (b'U', &[0x80, 0]),
        (b'u', &[0xFF, 0xFF]),
        (b's', &[0x80, 0]),
        (b'I', &[0x80, 0, 0, 0]),
        (b'i', &[0xFF; 4]),
        (b'L', &[0xFF; 8]),
        (b'l', &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        (b'f', &[0x7F, 0xC0, 0, 0]),
        (b'd', &[0x7F, 0xF8, 0, 0, 0, 0, 0, 0]),
        (b'D', &[0xFF; 5]),
        (b'S', &long),
        (b'A', &[0, 0, 0, 1, b'V']),
        (b'T', &[0xFF; 8]),
        (b'F', &nested),
        (b'V', &[]),
        (b'x', &long),
    ] {
        fields.extend_from_slice(&[2, kind, 0xFF, kind]);
        fields.extend_from_slice(value);
    }
    fields.extend_from_slice(&[16]);
    fields.extend_from_slice(b"x-delivery-countl");
    fields.extend_from_slice(&3_i64.to_be_bytes());
    let mut properties = vec![2, 0xFF, b'/'];
    properties.extend_from_slice(&table(&fields));
    properties.extend_from_slice(&[1, 0xFF]);
    let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    payload.extend_from_slice(&after_length(
        HAS_CONTENT_TYPE | HAS_HEADERS | HAS_MESSAGE_ID,
        &properties,
    ));

    let found = Properties::read(&payload).unwrap();

    assert!(!found.is_unreadable);
    assert_eq!((found.length, found.delivery_count), (7, Some(3)));
    assert_eq!(
        (&*found.content_type, &*found.message_id),
        ("\u{FFFD}/", "\u{FFFD}")
    );
    for end in 0..12 {
        assert_eq!(Properties::read(&payload[..end]).unwrap_err().code, 502);
    }
}
