//! The server as its clients see it: real sockets on port 0 and a handler in Rust.
#![cfg(feature = "server")]
#![expect(missing_docs, reason = "a test")]

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use osloxide::server::{Server, Settings};
use osloxide::wsgi::{BodyError, Exchange, Handler, ResponseHead};
use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// A handler from a closure.
struct App<F>(F);

impl<F> fmt::Debug for App<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("App")
    }
}

impl<F: Fn(&mut dyn Exchange) + Send + Sync> Handler for App<F> {
    fn handle(&self, exchange: &mut dyn Exchange) {
        (self.0)(exchange);
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        body();
    }
}

struct Running {
    server: Server,
    address: SocketAddr,
}

impl Running {
    fn new(app: impl Fn(&mut dyn Exchange) + Send + Sync + 'static) -> Self {
        Self::with(Settings::default(), app)
    }

    fn with(settings: Settings, app: impl Fn(&mut dyn Exchange) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(OwnedFd::from(listener), settings, Arc::new(App(app))).unwrap();
        server.start().unwrap();
        Self { server, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
    }

    /// Sends bytes on a connection of its own and returns all that comes back.
    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&mut stream)
    }

    fn is_drained(&self, limit: Duration) -> bool {
        let Some(fd) = self.server.drained_fd() else {
            return true;
        };
        let mut fds = [nix::poll::PollFd::new(
            fd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let millis = u16::try_from(limit.as_millis()).unwrap();
        nix::poll::poll(&mut fds, millis).unwrap() == 1
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.stop(true);
        if !std::thread::panicking() {
            assert!(
                self.is_drained(Duration::from_secs(10)),
                "{:?}",
                self.server.stats()
            );
            assert_eq!(self.server.stats().threads, 0);
        }
    }
}

fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one answer with a Content-Length from a connection that stays open.
fn read_answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .map(str::to_owned)
        })
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn ok() -> ResponseHead {
    ResponseHead {
        status: StatusCode::OK,
        reason: None,
        headers: HeaderMap::new(),
    }
}

fn read_body(exchange: &mut dyn Exchange) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(piece) = exchange.read()? {
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn hello(exchange: &mut dyn Exchange) {
    let _ = exchange.respond(ok(), Bytes::from_static(b"hello"));
}

fn echo(exchange: &mut dyn Exchange) {
    if let Ok(body) = read_body(exchange) {
        let _ = exchange.respond(ok(), body.into());
    }
}

#[test]
fn a_request_is_answered_and_the_connection_kept() {
    let running = Running::new(hello);
    let mut stream = running.connect();

    for _ in 0..3 {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let answer = read_answer(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Content-Length: 5\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let running = Running::new(|exchange| {
        let path = exchange.request().uri.path().to_owned();
        let _ = exchange.respond(ok(), path.into());
    });

    let answers = running.ask(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\
          GET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
    );

    let at = |needle| {
        answers
            .find(needle)
            .unwrap_or_else(|| panic!("{needle} in {answers}"))
    };
    assert!(at("\r\n\r\n/1") < at("\r\n\r\n/2"));
    assert!(at("\r\n\r\n/2") < at("\r\n\r\n/3"));
}

#[test]
fn a_body_larger_than_any_buffer_comes_through_unchanged() {
    let running = Running::new(echo);
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    let mut stream = running.connect();
    let mut writer = stream.try_clone().unwrap();
    let sent = body.clone();
    let sending = std::thread::Builder::new()
        .spawn(move || {
            let head = format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
                sent.len()
            );
            writer.write_all(head.as_bytes()).unwrap();
            writer.write_all(&sent).unwrap();
        })
        .unwrap();

    let answer = read_answer(&mut stream);
    sending.join().unwrap();

    assert!(answer.as_bytes().ends_with(&body));
}

#[test]
fn a_chunked_body_comes_through_without_its_framing() {
    let running = Running::new(echo);

    let answer = running.ask(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
          3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n",
    );

    assert!(answer.ends_with("\r\n\r\nabcdefg"), "{answer}");
}

#[test]
fn pieces_arrive_before_the_answer_ends() {
    let (send, receive) = std::sync::mpsc::channel::<()>();
    let receive = std::sync::Mutex::new(receive);
    let running = Running::new(move |exchange| {
        exchange.start(ok()).unwrap();
        exchange.write(Bytes::from_static(b"first")).unwrap();
        // The client lets us go on only after it has seen the first piece.
        receive
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_secs(10))
            .unwrap();
        exchange.write(Bytes::from_static(b"second")).unwrap();
        exchange.finish().unwrap();
    });
    let mut stream = running.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();

    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"first\r\n") {
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    send.send(()).unwrap();
    while !seen.ends_with(b"0\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }

    let answer = String::from_utf8(seen).unwrap();
    assert!(
        answer.contains("Transfer-Encoding: chunked\r\n"),
        "{answer}"
    );
    assert!(answer.ends_with("6\r\nsecond\r\n0\r\n\r\n"), "{answer}");
}

#[test]
fn a_handler_that_panics_costs_only_its_own_request() {
    let running = Running::new(|exchange| {
        assert_ne!(exchange.request().uri.path(), "/panic", "on purpose");
        hello(exchange);
    });

    let failed = running.ask(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n");
    let fine = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    assert!(failed.starts_with("HTTP/1.1 500 "), "{failed}");
    assert!(failed.contains("Connection: close\r\n"), "{failed}");
    assert!(fine.starts_with("HTTP/1.1 200 "), "{fine}");
}

#[test]
fn a_handler_that_does_not_answer_gives_500_and_close() {
    let running = Running::new(|_| {});

    let answer = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
}

#[test]
fn blocking_handlers_run_side_by_side() {
    const SIDE_BY_SIDE: usize = 40;
    let barrier = Arc::new(std::sync::Barrier::new(SIDE_BY_SIDE));
    let running = Running::new(move |exchange| {
        // Passes only once that many requests are inside at the same time.
        barrier.wait();
        hello(exchange);
    });

    let mut streams: Vec<_> = (0..SIDE_BY_SIDE).map(|_| running.connect()).collect();
    for stream in &mut streams {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
    }

    for stream in &mut streams {
        assert!(read_answer(stream).ends_with("hello"));
    }
}

#[test]
fn a_stopped_server_answers_what_is_in_flight_then_drains() {
    let (entered, entering) = std::sync::mpsc::channel();
    let (send, receive) = std::sync::mpsc::channel::<()>();
    let receive = std::sync::Mutex::new(receive);
    let running = Running::new(move |exchange| {
        entered.send(()).unwrap();
        receive
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_secs(10))
            .unwrap();
        hello(exchange);
    });
    let mut stream = running.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    entering.recv_timeout(Duration::from_secs(10)).unwrap();

    running.server.stop(false);
    assert!(!running.is_drained(Duration::ZERO));
    send.send(()).unwrap();

    let answer = read_all(&mut stream);
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(running.is_drained(Duration::from_secs(10)));
    assert_eq!(running.server.stats().threads, 0);
}

#[test]
fn a_stopped_server_serves_again_after_start() {
    let running = Running::new(hello);
    assert!(
        running
            .ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .ends_with("hello")
    );
    running.server.stop(false);
    assert!(running.is_drained(Duration::from_secs(10)));

    running.server.start().unwrap();

    assert!(!running.is_drained(Duration::ZERO));
    assert!(
        running
            .ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .ends_with("hello")
    );
}

#[test]
fn idle_connections_do_not_hold_up_a_drain() {
    let running = Running::new(hello);
    let mut streams: Vec<_> = (0..20).map(|_| running.connect()).collect();
    for stream in &mut streams {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        read_answer(stream);
    }

    running.server.stop(true);

    assert!(running.is_drained(Duration::from_secs(10)));
}
