//! What the server's tests share: a running server that proves its end, and a client.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::missing_panics_doc,
    reason = "each test binary uses a part of it"
)]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

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

pub fn app(app: impl Fn(&mut dyn Exchange) + Send + Sync + 'static) -> Arc<dyn Handler> {
    Arc::new(App(app))
}

/// A handler from a closure.
pub struct App<F>(F);

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

pub struct Running {
    pub server: Server,
    pub address: SocketAddr,
}

impl Running {
    pub fn new(app: impl Fn(&mut dyn Exchange) + Send + Sync + 'static) -> Self {
        Self::with(Settings::default(), app)
    }

    pub fn with(
        settings: Settings,
        app: impl Fn(&mut dyn Exchange) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(OwnedFd::from(listener), settings, Arc::new(App(app))).unwrap();
        server.start().unwrap();
        Self { server, address }
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream
    }

    /// Sends bytes on a connection of its own and returns all that comes back.
    pub fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_all(&mut stream)
    }

    pub fn is_drained(&self, limit: Duration) -> bool {
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

pub fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads one answer with a Content-Length from a connection that stays open.
pub fn read_answer(stream: &mut TcpStream) -> String {
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

pub fn ok() -> ResponseHead {
    ResponseHead {
        status: StatusCode::OK,
        reason: None,
        headers: HeaderMap::new(),
    }
}

/// The target of the request.
pub fn path(exchange: &dyn Exchange) -> String {
    String::from_utf8_lossy(exchange.request().target()).into_owned()
}

pub fn read_body(exchange: &mut dyn Exchange) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(piece) = exchange.read()? {
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

pub fn hello(exchange: &mut dyn Exchange) {
    let _ = exchange.respond(ok(), Bytes::from_static(b"hello"));
}

pub fn echo(exchange: &mut dyn Exchange) {
    if let Ok(body) = read_body(exchange) {
        let _ = exchange.respond(ok(), body.into());
    }
}
