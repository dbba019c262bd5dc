//! The server as its clients see it: real sockets on port 0 and a handler in Rust.
#![cfg(feature = "server")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed step fails the test"
)]

#[path = "support/serving.rs"]
mod support;

use bytes::Bytes;
use osloxide::server::{Server, Settings};
use osloxide::wsgi::BodyError;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::{Running, app, echo, hello, ok, path, read_all, read_answer, read_body};

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
        let path = path(&*exchange);
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
    let receive = Mutex::new(receive);
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
        assert_ne!(path(&*exchange), "/panic", "on purpose");
        hello(exchange);
    });

    let failed = running.ask(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n");
    let fine = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    assert!(failed.starts_with("HTTP/1.1 500 "), "{failed}");
    assert!(failed.contains("Connection: close\r\n"), "{failed}");
    assert!(fine.starts_with("HTTP/1.1 200 "), "{fine}");
}

#[test]
fn a_second_answer_does_not_reach_the_next_request() {
    let running = Running::new(|exchange| {
        let path = path(&*exchange);
        assert!(exchange.respond(ok(), path.into()).is_ok());
        assert!(
            exchange
                .respond(ok(), Bytes::from_static(b"leaked"))
                .is_err()
        );
        assert!(exchange.start(ok()).is_err());
    });
    let mut stream = running.connect();

    for path in ["/1", "/2"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        assert!(read_answer(&mut stream).ends_with(path));
    }
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
    let receive = Mutex::new(receive);
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

#[test]
fn what_comes_until_the_relatives_copies_are_closed_is_served() {
    let settings = Settings {
        last_look: Duration::from_secs(2),
        ..Settings::default()
    };
    let running = Running::with(settings, hello);

    running.server.stop(true);

    // Without a connection it is the listener alone that the drain waits for.
    assert!(!running.is_drained(Duration::ZERO));
    let mut late = running.connect();
    late.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let answer = read_all(&mut late);
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
    assert!(running.is_drained(Duration::from_secs(10)));
    assert!(TcpStream::connect(running.address).is_err());
}

/// A refusal: what came before is answered, then the status, then the end of the connection.
fn assert_refused(running: &Running, request: &[u8], status: &str) {
    let mut stream = running.connect();
    stream
        .write_all(b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    stream.write_all(request).unwrap();

    let answer = read_all(&mut stream);

    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let last = &answer[answer.rfind("HTTP/1.1 ").unwrap()..];
    assert!(last.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(last.contains("Connection: close\r\n"), "{answer}");
}

#[test]
fn a_smuggling_attempt_is_refused_after_what_came_before() {
    let running = Running::new(echo);

    assert_refused(
        &running,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400",
    );
    assert_refused(
        &running,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "400",
    );
    assert_refused(
        &running,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        "501",
    );
    assert_refused(&running, b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", "505");
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(65_536));
    assert_refused(&running, long.as_bytes(), "414");
    let wide = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    assert_refused(&running, wide.as_bytes(), "431");
}

#[test]
fn a_short_body_with_broken_chunks_never_reaches_the_application() {
    let running = Running::new(|_| panic!("must not be called"));

    let answer = running.ask(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX\r\n0\r\n\r\n",
    );

    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
}

#[test]
fn a_truncated_short_body_never_reaches_the_application() {
    let running = Running::new(|_| panic!("must not be called"));

    let answer = running.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");

    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn a_broken_long_body_gives_400_whatever_the_application_answers() {
    for ending in ["Content-Length: 200000", "Transfer-Encoding: chunked"] {
        let (send, receive) = std::sync::mpsc::channel();
        let running = Running::new(move |exchange| {
            send.send(read_body(exchange)).unwrap();
            hello(exchange);
        });
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{ending}\r\n\r\n");
        let body = "1ffff\r\n".to_owned() + &"a".repeat(0x1_ffff) + "X";

        let answer = running.ask((head + &body).as_bytes());

        let error = receive
            .recv_timeout(Duration::from_secs(10))
            .unwrap()
            .unwrap_err();
        let is_counted = ending.starts_with("Content");
        let expected = if is_counted {
            BodyError::Disconnected
        } else {
            BodyError::Framing
        };
        assert_eq!(error, expected);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(!answer.contains("hello"), "{answer}");
    }
}

#[test]
fn an_unread_short_body_is_not_taken_for_the_next_request() {
    let running = Running::new(|exchange| {
        let path = path(&*exchange);
        let _ = exchange.respond(ok(), path.into());
    });
    let mut stream = running.connect();
    stream
        .write_all(
            b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 38\r\n\r\n\
              GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nabcd\
              GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
                .as_slice(),
        )
        .unwrap();

    assert!(read_answer(&mut stream).ends_with("/1"));
    assert!(read_answer(&mut stream).ends_with("/2"));
}

#[test]
fn an_unread_long_body_ends_the_connection_after_the_answer() {
    let running = Running::new(hello);
    let mut stream = running.connect();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n")
        .unwrap();
    stream.write_all(&vec![b'a'; 300_000]).unwrap();

    let answer = read_all(&mut stream);

    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
}

#[test]
fn continue_is_sent_only_once_the_application_reads() {
    let running = Running::new(|exchange| {
        if path(&*exchange) == "/reads" {
            echo(exchange);
        } else {
            hello(exchange);
        }
    });

    let mut reads = running.connect();
    reads
        .write_all(
            b"POST /reads HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    let interim = read_answer(&mut reads);
    reads.write_all(b"abc").unwrap();
    let answer = read_answer(&mut reads);
    let mut does_not = running.connect();
    does_not
        .write_all(
            b"POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        )
        .unwrap();
    let refused = read_all(&mut does_not);
    let mut old = running.connect();
    old.write_all(b"POST /reads HTTP/1.0\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc")
        .unwrap();
    let from_old = read_all(&mut old);

    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(answer.ends_with("abc"), "{answer}");
    assert!(refused.starts_with("HTTP/1.1 200 "), "{refused}");
    assert!(refused.contains("Connection: close\r\n"), "{refused}");
    assert!(from_old.starts_with("HTTP/1.0 200 "), "{from_old}");
    assert!(from_old.ends_with("abc"), "{from_old}");
}

#[test]
fn a_wrong_content_length_ends_the_connection_and_leaks_nothing() {
    for announced in ["3", "9"] {
        let running = Running::new(move |exchange| {
            let mut head = ok();
            head.headers
                .insert("content-length", announced.parse().unwrap());
            let _ = exchange.respond(head, Bytes::from_static(b"hello"));
        });

        let answer =
            running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");

        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        let body = if announced == "3" { "hel" } else { "hello" };
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    }
}

#[test]
fn an_aborted_answer_cannot_be_taken_for_a_whole_one() {
    let running = Running::new(|exchange| {
        exchange.start(ok()).unwrap();
        exchange.write(Bytes::from_static(b"half")).unwrap();
        exchange.abort();
    });

    let chunked = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut old = running.connect();
    old.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut bytes = Vec::new();
    let result = old.read_to_end(&mut bytes);

    assert!(chunked.ends_with("4\r\nhalf\r\n"), "{chunked}");
    assert!(result.is_err(), "{}", String::from_utf8_lossy(&bytes));
}

fn impatient() -> Settings {
    Settings {
        client_socket_timeout: Some(Duration::from_millis(300)),
        ..Settings::default()
    }
}

#[test]
fn slow_clients_are_cut_off_and_cost_no_thread() {
    let running = Running::with(impatient(), echo);
    let beginnings: [&[u8]; 4] = [
        b"",
        b"GET / HTTP/1.1\r\nHo",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    ];

    let mut slow: Vec<_> = (0..40)
        .map(|n| {
            let mut stream = running.connect();
            stream.write_all(beginnings[n % 4]).unwrap();
            stream
        })
        .collect();
    let answer = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    for (n, stream) in slow.iter_mut().enumerate() {
        let cut = read_all(stream);
        if n % 4 == 0 {
            assert_eq!(cut, "");
        } else {
            assert!(cut.starts_with("HTTP/1.1 408 "), "{cut}");
        }
    }
    assert!(
        running.server.stats().threads <= 4,
        "{:?}",
        running.server.stats()
    );
}

#[test]
fn a_head_that_trickles_is_cut_off_although_bytes_keep_coming() {
    let running = Running::with(impatient(), hello);
    let mut stream = running.connect();
    let mut writer = stream.try_clone().unwrap();
    let trickle = std::thread::Builder::new()
        .spawn(move || {
            let _ = writer.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ");
            // Ends with the connection.
            while writer.write_all(b"a").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        })
        .unwrap();

    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    drop(stream);
    trickle.join().unwrap();

    assert_eq!(&first, b"HTTP/1.1 408");
}

#[test]
fn a_long_body_that_trickles_is_cut_off_although_bytes_keep_coming() {
    let (send, receive) = std::sync::mpsc::channel();
    let running = Running::with(impatient(), move |exchange| {
        send.send(read_body(exchange)).unwrap();
        hello(exchange);
    });
    let mut stream = running.connect();
    let mut writer = stream.try_clone().unwrap();
    let trickle = std::thread::Builder::new()
        .spawn(move || {
            let _ =
                writer.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n");
            let _ = writer.write_all(&vec![b'a'; 65_536]);
            // Ends with the connection.
            while writer.write_all(b"a").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        })
        .unwrap();

    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    drop(stream);
    trickle.join().unwrap();

    assert_eq!(&first, b"HTTP/1.1 408");
    let result = receive.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(result, Err(BodyError::TimedOut));
}

/// Requests that stall: 30 kB short of a body of 100 kB, in the middle of a chunk, or before they
/// were asked for any of it; with what is missing of each.
fn stalling(count: usize) -> impl Iterator<Item = (String, String)> {
    let (come, missing) = ("a".repeat(70_000), "b".repeat(30_000));
    let kinds = [
        (
            format!("Content-Length: 100000\r\n\r\n{come}"),
            missing.clone(),
        ),
        (
            format!("Transfer-Encoding: chunked\r\n\r\n186a0\r\n{come}"),
            format!("{missing}\r\n0\r\n\r\n"),
        ),
        (
            "Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n".into(),
            come + &missing,
        ),
    ];
    kinds
        .into_iter()
        .cycle()
        .take(count)
        .map(|(sent, missing)| {
            let head = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
            (format!("{head}{sent}"), missing)
        })
}

#[test]
fn uploads_that_stall_hold_their_share_of_the_threads_and_are_served_once_they_go_on() {
    let settings = Settings {
        pool_size: 4,
        ..Settings::default()
    };
    let running = Running::with(settings, echo);
    let stalled: Vec<_> = stalling(12)
        .map(|(sent, missing)| {
            let mut stream = running.connect();
            stream.write_all(sent.as_bytes()).unwrap();
            (stream, missing)
        })
        .collect();

    // Each of these comes behind all of those.
    for _ in 0..8 {
        let answer = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while running.server.stats().in_flight != 2 {
        assert!(Instant::now() < deadline, "{:?}", running.server.stats());
        std::thread::yield_now();
    }

    for (at, (mut stream, missing)) in stalled.into_iter().enumerate() {
        stream.write_all(missing.as_bytes()).unwrap();
        let answer = read_all(&mut stream);
        let answer = answer.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{at}: {answer:.100}");
        assert!(answer.ends_with(&"b".repeat(30_000)), "{at}");
    }
}

/// Answers each request with its body, and says that it has begun.
fn echoing_with(pool_size: usize) -> (Running, Receiver<()>) {
    let (send, begun) = std::sync::mpsc::channel();
    let settings = Settings {
        pool_size,
        ..Settings::default()
    };
    let running = Running::with(settings, move |exchange| {
        send.send(()).unwrap();
        echo(exchange);
    });
    (running, begun)
}

#[test]
fn uploads_beyond_the_share_have_the_threads_that_nobody_else_needs() {
    let (running, begun) = echoing_with(4);
    let length = 3 << 20;
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        length + 1
    );

    let clients: Vec<_> = (0..4)
        .map(|_| {
            let mut writer = running.connect();
            let reader = writer.try_clone().unwrap();
            let message = head.clone().into_bytes();
            let sending = std::thread::Builder::new().spawn(move || {
                writer.write_all(&message).unwrap();
                writer.write_all(&vec![b'a'; length]).unwrap();
                writer
            });
            (reader, sending.unwrap())
        })
        .collect();
    for _ in 0..4 {
        begun.recv_timeout(Duration::from_secs(30)).unwrap();
    }

    for (mut reader, sending) in clients {
        sending.join().unwrap().write_all(b"b").unwrap();
        let answer = read_all(&mut reader);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:.100}");
    }
}

#[test]
fn an_upload_that_goes_on_gets_the_thread_of_one_that_stalls_beyond_the_share() {
    let (running, begun) = echoing_with(2);

    // Each sends more than is collected without a thread, and no more.
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let mut writer = running.connect();
            std::thread::Builder::new()
                .spawn(move || {
                    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n";
                    writer.write_all(head).unwrap();
                    let _ = writer.write_all(&vec![b'a'; 1_500_000]);
                    writer
                })
                .unwrap()
        })
        .collect();
    for _ in 0..3 {
        begun.recv_timeout(Duration::from_secs(45)).unwrap();
    }

    drop(clients);
}

/// Of these, what goes to `/busy` takes until the gate is opened once its body was read, and what
/// goes to `/unread` before that. Says each path as it begins, and `read` where a body was read.
fn uploads_with(settings: Settings, gate: &Arc<Mutex<()>>) -> (Running, Receiver<String>) {
    let (send, heard) = std::sync::mpsc::channel();
    let gate = gate.clone();
    let running = Running::with(settings, move |exchange| {
        let path = path(exchange);
        send.send(path.clone()).unwrap();
        if path == "/unread" {
            drop(gate.lock());
        }
        let Ok(body) = read_body(exchange) else {
            return;
        };
        send.send("read".into()).unwrap();
        if path == "/busy" {
            drop(gate.lock());
        }
        let _ = exchange.respond(ok(), body.into());
    });
    (running, heard)
}

/// Sends the head of an upload of `length` bytes and all of it but `missing`.
fn upload(running: &Running, path: &str, length: usize, missing: usize) -> TcpStream {
    let mut stream = running.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'a'; length - missing]).unwrap();
    stream
}

fn two_threads() -> Settings {
    Settings {
        pool_size: 2,
        ..Settings::default()
    }
}

fn next(heard: &Receiver<String>) -> String {
    heard.recv_timeout(Duration::from_secs(45)).unwrap()
}

fn wait_for_connections(running: &Running, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(45);
    while running.server.stats().connections != count {
        assert!(Instant::now() < deadline, "{:?}", running.server.stats());
        std::thread::yield_now();
    }
}

#[test]
fn an_upload_that_goes_on_gets_the_thread_of_one_that_stalls_within_the_share() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let (running, heard) = uploads_with(two_threads(), &gate);
    let mut other = running.connect();
    other
        .write_all(b"GET /busy HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert_eq!([next(&heard), next(&heard)], ["/busy", "read"]);
    let _stalled = upload(&running, "/stalled", 100_000, 30_000);
    assert_eq!(next(&heard), "/stalled");
    let _behind = upload(&running, "/behind", 100_000, 30_000);

    let _upload = upload(&running, "/upload", 3_000_000, 1_500_000);

    assert_eq!(next(&heard), "/upload");
    drop(closed);
}

#[test]
fn an_upload_whose_client_leaves_while_it_waits_for_a_thread_is_dropped() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let (running, heard) = uploads_with(two_threads(), &gate);
    let _first = upload(&running, "/unread", 100_000, 30_000);
    assert_eq!(next(&heard), "/unread");
    let mut other = running.connect();
    other
        .write_all(b"GET /unread HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert_eq!(next(&heard), "/unread");

    let upload = upload(&running, "/upload", 3_000_000, 1_500_000);
    wait_for_connections(&running, 3);
    drop(upload);

    wait_for_connections(&running, 2);
    drop(closed);
}

#[test]
fn an_upload_whose_body_was_read_makes_place_for_the_next() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let (running, heard) = uploads_with(two_threads(), &gate);
    let mut first = upload(&running, "/busy", 100_000, 30_000);
    assert_eq!(next(&heard), "/busy");
    let _second = upload(&running, "/second", 100_000, 30_000);

    first.write_all(&vec![b'a'; 30_000]).unwrap();

    assert_eq!([next(&heard), next(&heard)], ["read", "/second"]);
    drop(closed);
}

#[test]
fn an_upload_that_waits_is_not_refused_because_there_are_too_many_others() {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let settings = Settings {
        max_waiting: Some(0),
        ..two_threads()
    };
    let (running, heard) = uploads_with(settings, &gate);
    let mut first = upload(&running, "/busy", 100_000, 30_000);
    assert_eq!(next(&heard), "/busy");
    let mut other = running.connect();
    other
        .write_all(b"GET /busy HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert_eq!([next(&heard), next(&heard)], ["/busy", "read"]);
    let mut held = upload(&running, "/held", 100_000, 30_000);
    let refused = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");

    first.write_all(&vec![b'a'; 30_000]).unwrap();
    assert_eq!(next(&heard), "read");
    // The reactor has had a look at it.
    let refused = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    drop(closed);
    assert_eq!(next(&heard), "/held");
    held.write_all(&vec![b'a'; 30_000]).unwrap();

    let answer = read_all(&mut held);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:.100}");
}

#[test]
fn a_client_that_stops_reading_is_given_up() {
    let (send, receive) = std::sync::mpsc::channel();
    let running = Running::with(impatient(), move |exchange| {
        exchange.start(ok()).unwrap();
        let piece = Bytes::from(vec![0; 1 << 20]);
        let result = (0..100).try_for_each(|_| exchange.write(piece.clone()));
        send.send((result.is_err(), exchange.is_client_gone()))
            .unwrap();
    });
    let mut stream = running.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();

    let (is_err, is_gone) = receive.recv_timeout(Duration::from_secs(10)).unwrap();

    assert!(is_err && is_gone);
}

#[test]
fn a_client_that_only_ends_its_half_gets_its_answer() {
    let running = Running::new(|exchange| {
        assert!(!exchange.is_client_gone());
        hello(exchange);
    });

    let answer = running.ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    assert!(answer.ends_with("hello"), "{answer}");
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn connections_queued_in_the_kernel_are_served_when_the_listener_closes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(OwnedFd::from(listener), Settings::default(), app(hello)).unwrap();
    let mut queued: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            stream.write_all(GET).unwrap();
            stream
        })
        .collect();
    let running = Running { server, address };

    running.server.start().unwrap();
    running.server.stop(true);

    for stream in &mut queued {
        assert!(read_all(stream).ends_with("hello"));
    }
    assert!(running.is_drained(Duration::from_secs(10)));
    assert!(TcpStream::connect(address).is_err());
    assert!(running.server.start().is_err());
}

#[test]
fn a_request_that_is_on_its_way_when_the_drain_begins_is_answered() {
    let running = Running::new(hello);
    let mut stream = running.connect();
    stream.write_all(GET).unwrap();
    read_answer(&mut stream);

    running.server.stop(true);
    stream.write_all(GET).unwrap();

    let answer = read_all(&mut stream);
    assert!(answer.contains("Connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
}

#[test]
fn a_start_during_a_drain_takes_the_drain_back() {
    let running = Running::new(hello);
    let mut stream = running.connect();
    stream.write_all(GET).unwrap();
    read_answer(&mut stream);

    for _ in 0..50 {
        running.server.stop(false);
        running.server.start().unwrap();
    }

    assert!(running.ask(GET).ends_with("hello"));
    assert!(!running.is_drained(Duration::ZERO));
}

#[test]
fn a_client_that_resets_its_connection_leaves_nothing_behind() {
    let running = Running::new(echo);
    for n in 0..200 {
        let mut stream = running.connect();
        let bytes: &[u8] = match n % 3 {
            0 => b"",
            1 => b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc",
            _ => GET,
        };
        stream.write_all(bytes).unwrap();
        let reset = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &reset).unwrap();
    }

    assert!(running.ask(GET).starts_with("HTTP/1.1 200 "));
    let deadline = Instant::now() + Duration::from_secs(10);
    while running.server.stats().connections > 0 {
        assert!(Instant::now() < deadline, "{:?}", running.server.stats());
        std::thread::yield_now();
    }
}

#[test]
fn a_unix_socket_is_served_without_addresses() {
    let directory = std::env::temp_dir().join(format!("osloxide-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("server.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let handler = app(|exchange| {
        assert_eq!(exchange.endpoints().peer, None);
        assert_eq!(exchange.endpoints().local, None);
        hello(exchange);
    });
    let server = Server::new(OwnedFd::from(listener), Settings::default(), handler).unwrap();
    let running = Running {
        server,
        address: "127.0.0.1:1".parse().unwrap(),
    };
    running.server.start().unwrap();

    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();

    assert!(answer.ends_with("hello"), "{answer}");
}

#[test]
fn idle_connections_cost_no_thread() {
    let running = Running::new(hello);
    let mut streams: Vec<_> = (0..200).map(|_| running.connect()).collect();
    for stream in &mut streams {
        stream.write_all(GET).unwrap();
        read_answer(stream);
    }

    let stats = running.server.stats();

    assert_eq!(stats.connections, 200);
    assert!(stats.threads <= 4, "{stats:?}");
    for stream in &mut streams {
        stream.write_all(GET).unwrap();
        assert!(read_answer(stream).ends_with("hello"));
    }
}

#[test]
fn a_body_that_is_not_read_costs_neither_the_answer_nor_the_connection() {
    let running = Running::new(|exchange| {
        let path = path(&*exchange);
        let _ = exchange.respond(ok(), path.into());
    });
    for length in [8_000, 9_000, 40_000, 65_536] {
        let mut stream = running.connect();
        for (path, last) in [("/1", ""), ("/2", ""), ("/3", "Connection: close\r\n")] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\n{last}Content-Length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&vec![b'a'; length]).unwrap();
            let answer = read_answer(&mut stream);
            assert!(answer.ends_with(path), "{answer}");
            assert_eq!(
                answer.contains("Connection: close"),
                !last.is_empty(),
                "{answer}"
            );
        }
        // The client has sent all that it announced: the end is one in order.
        assert_eq!(read_all(&mut stream), "");
    }
}
