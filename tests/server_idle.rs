//! Ten thousand idle connections, or as many as this process may have. A process of its own, for it
//! raises its own limit and watches its own memory.
#![cfg(feature = "server")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed step fails the test; the figure is worth showing"
)]
#![expect(unsafe_code, reason = "setrlimit(2) has no wrapper among our features")]

#[path = "support/serving.rs"]
mod support;

use nix::libc;
use osloxide::server::Settings;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use support::{Running, hello, read_answer};

const MOST: usize = 10_000;
/// Descriptors that the process needs besides; each connection needs two, for both ends are here.
const OTHERS: usize = 100;
/// Above what a connection costs, below what one would that keeps a buffer of 8 KiB.
const MOST_BYTES: usize = 4 << 10;

fn raise_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills the structure it is given.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads the structure it is given.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
    usize::try_from(limit.rlim_cur).unwrap()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_leave_at_once() {
    let count = MOST.min((raise_limit() - OTHERS) / 2);
    let running = Running::with(
        Settings {
            ..Settings::default()
        },
        hello,
    );
    let idle = |count| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while running.server.stats().idle < count {
            assert!(Instant::now() < deadline, "{:?}", running.server.stats());
            std::thread::yield_now();
        }
    };
    let open = || -> TcpStream {
        let mut stream = running.connect();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        assert!(read_answer(&mut stream).ends_with("hello"));
        stream
    };
    let mut streams: Vec<_> = Vec::with_capacity(count);
    streams.extend((0..100).map(|_| open()));
    idle(100);
    let (before, threads_before) = (resident_bytes(), threads());

    while streams.len() < count {
        streams.push(open());
        if streams.len() % 500 == 0 {
            idle(streams.len());
        }
    }
    idle(count);

    let each = resident_bytes().saturating_sub(before) / (count - 100);
    println!(
        "{count} idle connections: {each} bytes each, {} threads",
        running.server.stats().threads
    );
    assert_eq!(running.server.stats().connections, count);
    // A busy machine has the pool start some for the requests; they leave when they are idle.
    let deadline = Instant::now() + Duration::from_secs(60);
    while threads() > threads_before.max(4) + 1 {
        assert!(Instant::now() < deadline, "{} threads", threads());
        std::thread::yield_now();
    }
    assert!(each < MOST_BYTES, "{each} bytes for each connection");
    for stream in streams.iter_mut().step_by(997) {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        assert!(read_answer(stream).ends_with("hello"));
    }

    let begin = Instant::now();
    running.server.stop(true);
    assert!(running.is_drained(Duration::from_secs(60)));
    println!("drained in {} ms", begin.elapsed().as_millis());
    for stream in &mut streams {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed in order");
    }
}
