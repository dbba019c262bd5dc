//! The floor: osloxide's server answering `hello` in Rust, without an interpreter in the process.
//!
//! What osloxide costs above this is the price of Python and of the boundary to it. Same build
//! profile, same settings, same pool as the extension; built and started by `benches/run.py`.
//! Prints `listening PORT`, as every server of the benches does, and serves until it is killed.
#![allow(
    clippy::print_stdout,
    missing_docs,
    reason = "the port is announced on standard output"
)]

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use osloxide::server::{Server, Settings};
use osloxide::wsgi::{Exchange, Handler, ResponseHead};
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;

#[derive(Debug)]
struct Hello;

impl Handler for Hello {
    fn handle(&self, exchange: &mut dyn Exchange) {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
        let head = ResponseHead {
            status: StatusCode::OK,
            reason: None,
            headers,
        };
        // A client that is gone has nothing more to hear.
        let _ = exchange.respond(head, Bytes::from_static(b"hello"));
    }

    fn thread(&self, body: &mut dyn FnMut()) {
        body();
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let server = Server::new(
        OwnedFd::from(listener),
        Settings::default(),
        Arc::new(Hello),
    )?;
    server.start()?;
    println!("listening {port}");
    std::io::stdout().flush()?;
    loop {
        std::thread::park();
    }
}
