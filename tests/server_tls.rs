//! TLS as clients see it, spoken by rustls's own client.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "support/serving.rs"]
mod support;

use osloxide::server::tls::{Config, Error, Options};
use osloxide::server::{Server, Settings};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::{Running, hello};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/certificates")
        .join(name)
}

fn load(certificate: &str, key: &str, ca: Option<&str>) -> Result<Config, Error> {
    Config::load(&Options {
        cert_file: path(certificate),
        key_file: path(key),
        ca_file: ca.map(path),
        ..Options::default()
    })
}

fn serve(ca: Option<&str>) -> Running {
    let tls = Some(Arc::new(load("server.crt", "server.key", ca).unwrap()));
    let client_socket_timeout = Some(Duration::from_secs(2));
    Running::with(
        Settings {
            tls,
            client_socket_timeout,
            ..Settings::default()
        },
        hello,
    )
}

/// A new connection, on which nothing has been sent yet.
fn stream(
    running: &Running,
    certificate: Option<&str>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(path("ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(path(&format!("{name}.crt"))).unwrap()],
                PrivateKeyDer::from_pem_file(path(&format!("{name}.key"))).unwrap(),
            )
            .unwrap(),
    };
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, running.connect())
}

/// Asks once and reads to the end, which must be announced by a `close_notify`.
fn ask(running: &Running, certificate: Option<&str>) -> io::Result<String> {
    let mut stream = stream(running, certificate);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_request_is_answered_and_the_end_announced() {
    let running = serve(None);

    let answer = ask(&running, None).unwrap();

    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
}

#[test]
fn a_client_certificate_is_required_once_an_authority_is_named() {
    let running = serve(Some("ca.crt"));

    assert!(ask(&running, None).is_err());
    assert!(ask(&running, Some("client")).unwrap().ends_with("hello"));
}

#[test]
fn stalled_handshakes_cost_no_thread_and_are_cut_off() {
    let running = serve(None);
    let mut stalled: Vec<_> = (0..100).map(|_| running.connect()).collect();
    for (n, stream) in stalled.iter_mut().enumerate() {
        // Half of them begin a handshake.
        if n % 2 == 0 {
            stream
                .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                .unwrap();
        }
    }

    assert!(ask(&running, None).unwrap().ends_with("hello"));

    assert!(
        running.server.stats().threads <= 4,
        "{:?}",
        running.server.stats()
    );
    for stream in &mut stalled {
        // An alert may come before the end.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
}

#[test]
fn a_connection_that_was_idle_is_served_like_any_other() {
    let tls = Some(Arc::new(load("server.crt", "server.key", None).unwrap()));
    let running = Running::with(
        Settings {
            tls,
            ..Settings::default()
        },
        support::echo,
    );
    let mut stream = stream(&running, None);
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

    for _ in 0..5 {
        // In two pieces, so that it is idle between messages only.
        stream.write_all(&request[..20]).unwrap();
        stream.write_all(&request[20..]).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nbody") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while running.server.stats().idle == 0 {
            assert!(Instant::now() < deadline, "{:?}", running.server.stats());
            std::thread::yield_now();
        }
    }
}

#[test]
fn plain_text_on_a_tls_port_is_answered_by_an_alert() {
    let running = serve(None);
    let mut stream: TcpStream = running.connect();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();

    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);

    assert_eq!(answer.first(), Some(&0x15), "{}", answer.escape_ascii());
}

#[test]
fn certificates_that_cannot_work_are_refused_at_the_start() {
    for (certificate, key, ca, option, problem) in [
        (
            "server.crt",
            "client.key",
            None,
            "key_file",
            "cannot be used with",
        ),
        (
            "server.key",
            "server.key",
            None,
            "cert_file",
            "holds nothing of the kind",
        ),
        (
            "server.crt",
            "server.crt",
            None,
            "key_file",
            "holds nothing of the kind",
        ),
        (
            "server.crt",
            "server.key",
            Some("client.key"),
            "ca_file",
            "holds nothing of the kind",
        ),
        (
            "absent.crt",
            "server.key",
            None,
            "cert_file",
            "No such file",
        ),
    ] {
        let message = load(certificate, key, ca).unwrap_err().to_string();

        assert!(message.contains(option), "{message}");
        assert!(message.contains(problem), "{message}");
    }
}

#[test]
fn an_expired_certificate_is_loaded_as_openssl_does() {
    // It is of X.509 version 1 too.
    load("expired.crt", "expired.key", None).unwrap();
    assert!(load("expired.crt", "client.key", None).is_err());
}

#[test]
fn a_server_is_refused_a_socket_that_does_not_listen() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();

    let error = Server::new(socket.into(), Settings::default(), support::app(hello)).unwrap_err();

    assert!(
        error.to_string().contains("as a listening socket"),
        "{error}"
    );
}
