//! What a connection takes of a body, and what it leaves to the kernel. One end of a socket pair is
//! the client, so that what has come is known at every step.

use super::*;
use rustls::ServerConnection;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const BOUND: usize = 64 << 10;

fn connection() -> (Connection, UnixStream) {
    connection_with(None)
}

pub(in crate::server) fn connection_with(
    session: Option<Box<ServerConnection>>,
) -> (Connection, UnixStream) {
    let (ours, client) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let limits = Limits {
        request_line: 8192,
        header_line: 8192,
        headers: 100,
        body: None,
        is_lenient: false,
        is_uwsgi: false,
    };
    let link = Link::new(OwnedFd::from(ours), session);
    let endpoints = Arc::new(Endpoints::new(None, None, false));
    let now = Instant::now();
    let connection = Connection::new(Token(1), link, endpoints, Arc::new(limits), now);
    (connection, client)
}

fn post(length: usize) -> Vec<u8> {
    let mut message =
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    message.extend(body(length));
    message
}

fn body(length: usize) -> impl Iterator<Item = u8> {
    (0..length).map(|at| b'a' + u8::try_from(at % 23).unwrap())
}

fn request(connection: &mut Connection) -> Box<ReceivedRequest> {
    let Step::Request(received) = connection.next_request() else {
        panic!("no request has come");
    };
    received
}

/// Reads a body as an application does that wants `length` bytes of it.
fn read(connection: &mut Connection, received: &mut ReceivedRequest, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in received.pieces.drain(..) {
        bytes.extend_from_slice(&piece);
    }
    while bytes.len() < length {
        let mut memory = vec![MaybeUninit::uninit(); length - bytes.len()];
        let mut room = Room::new(&mut memory);
        let count = connection.read_into(&mut room).unwrap();
        assert!(count > 0, "{} of {length} bytes were there", bytes.len());
        for byte in &memory[..count] {
            // SAFETY: so many bytes were written.
            bytes.push(unsafe { byte.assume_init() });
        }
    }
    bytes
}

#[test]
fn a_body_that_has_come_stays_with_the_kernel_until_it_is_read() {
    let (mut connection, mut client) = connection();
    client.write_all(&post(BOUND)).unwrap();

    let mut received = request(&mut connection);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));
    assert!(received.pieces.is_empty());
    assert!(connection.decoder.held() <= HEAD_RECEIVE_BYTES);

    let bytes = read(&mut connection, &mut received, BOUND);
    assert!(bytes.into_iter().eq(body(BOUND)));
    assert_eq!(connection.next_piece(), Ok(BodyStep::End));
    assert!(connection.link.read_blocked, "nothing else was there");
}

#[test]
fn the_request_behind_a_body_that_was_left_is_found() {
    let (mut connection, mut client) = connection();
    for length in [20_000, 30_000, 0] {
        client.write_all(&post(length)).unwrap();
    }
    for length in [20_000, 30_000, 0] {
        let mut received = request(&mut connection);
        assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));
        let bytes = read(&mut connection, &mut received, length);
        assert!(bytes.into_iter().eq(body(length)), "{length}");
    }
}

#[test]
fn a_body_of_which_some_is_missing_is_waited_for() {
    let (mut connection, mut client) = connection();
    let message = post(50_000);
    let (first, rest) = message.split_at(30_000);
    client.write_all(first).unwrap();

    let mut received = request(&mut connection);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Missing));
    client.write_all(rest).unwrap();
    connection.note(EpollFlags::EPOLLIN);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));

    let bytes = read(&mut connection, &mut received, 50_000);
    assert!(bytes.into_iter().eq(body(50_000)));
}

#[test]
fn a_body_that_was_left_and_not_read_is_dropped_before_the_next_request() {
    let (mut connection, mut client) = connection();
    client.write_all(&post(40_000)).unwrap();
    client.write_all(&post(0)).unwrap();

    let mut received = request(&mut connection);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));
    connection.drop_body_left();

    assert!(connection.decoder.is_body_read());
    request(&mut connection);
}

#[test]
fn a_client_that_has_left_behind_its_body_is_noticed() {
    let (mut connection, mut client) = connection();
    client.write_all(&post(40_000)).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();

    connection.note(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP);
    let mut received = request(&mut connection);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));
    let bytes = read(&mut connection, &mut received, 40_000);

    assert!(bytes.into_iter().eq(body(40_000)));
    assert!(matches!(connection.next_request(), Step::Ended));
}

#[test]
fn a_body_that_stalls_beyond_the_bound_is_told_from_one_that_has_come() {
    let (mut connection, mut client) = connection();
    let message = post(BOUND + 40_000);
    let (first, rest) = message.split_at(message.len() - 10_000);
    client.write_all(first).unwrap();

    let mut received = request(&mut connection);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Beginning));
    client.write_all(rest).unwrap();
    connection.note(EpollFlags::EPOLLIN);

    assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));
    assert!(
        received.collected < BOUND + 40_000,
        "the rest stays with the kernel"
    );
}

#[test]
fn a_body_beyond_the_bound_is_collected_up_to_it() {
    let (mut connection, mut client) = connection();
    client.write_all(&post(BOUND + 20_000)).unwrap();

    let mut received = request(&mut connection);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));

    assert!(received.collected >= BOUND);
    let bytes = read(&mut connection, &mut received, BOUND + 20_000);
    assert!(bytes.into_iter().eq(body(BOUND + 20_000)));
}

#[test]
fn short_chunks_are_put_together() {
    let (mut connection, mut client) = connection();
    let body: String = body(20_000).map(char::from).collect();
    let mut message = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    let (short, long) = body.split_at(2_000);
    for byte in short.chars() {
        message.extend(["1\r\n", &byte.to_string(), "\r\n"]);
    }
    let size = format!("{:x}", long.len());
    message.extend([&size, "\r\n", long, "\r\n0\r\n\r\n"]);
    client.write_all(message.as_bytes()).unwrap();

    let mut received = request(&mut connection);
    assert_eq!(connection.collect(&mut received), Ok(Collected::Whole));

    assert!(
        received.pieces.len() <= 4,
        "{} pieces",
        received.pieces.len()
    );
    assert_eq!(received.collected, body.len());
    let pieces: Vec<_> = received.pieces.into();
    assert!(pieces.concat() == body.as_bytes());
}

#[test]
fn a_client_that_leaves_before_its_body_has_come_is_told_from_one_that_has_sent_it() {
    for (come, has_left) in [(BOUND + 40_000, false), (BOUND + 30_000, true)] {
        let (mut connection, mut client) = connection();
        let message = post(BOUND + 40_000);
        let missing = BOUND + 40_000 - come;
        client
            .write_all(&message[..message.len() - missing])
            .unwrap();
        let mut received = request(&mut connection);
        connection.collect(&mut received).unwrap();
        assert!(!connection.has_left());

        client.shutdown(std::net::Shutdown::Write).unwrap();
        connection.note(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP);

        assert_eq!(connection.has_left(), has_left, "{come}");
    }
}
