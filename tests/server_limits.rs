//! Descriptors run out while clients connect. A process of its own, for it lowers its own limit.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![expect(unsafe_code, reason = "setrlimit(2) has no wrapper among our features")]

#[path = "support/serving.rs"]
mod support;

use nix::libc;
use osloxide::server::{Server, Settings};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;
use support::{Running, app, hello, read_answer};

fn limit_descriptors(soft: libc::rlim_t) -> libc::rlim_t {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills the structure it is given.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0);
    let before = std::mem::replace(&mut limit.rlim_cur, soft);
    // SAFETY: the kernel reads the structure it is given.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
    before
}

#[test]
fn accepting_goes_on_once_descriptors_are_free_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(OwnedFd::from(listener), Settings::default(), app(hello)).unwrap();
    // The clients have their descriptors, and wait in the kernel's queue.
    let mut clients: Vec<_> = (0..30)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    let running = Running { server, address };
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as libc::rlim_t;
    let before = limit_descriptors(used + 10);

    running.server.start().unwrap();
    let mut answered = Vec::new();
    while answered.len() < 3 {
        let mut client = clients.remove(0);
        assert!(read_answer(&mut client).ends_with("hello"));
        answered.push(client);
    }
    assert!(running.server.stats().connections < 30);
    limit_descriptors(before);

    for client in &mut clients {
        assert!(read_answer(client).ends_with("hello"));
    }
}
