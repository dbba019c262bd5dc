//! The contract of a link, with a transport that takes as much as a test says.

use super::*;
use crate::server::tls;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

/// Stands in for a socket: takes at most `room` bytes before it blocks, `step` of them with a call.
#[derive(Debug)]
pub(in crate::server) struct Fake {
    step: usize,
    room: Cell<usize>,
    /// What the client gets.
    sent: RefCell<Vec<u8>>,
    /// What the client has sent.
    received: RefCell<VecDeque<u8>>,
    has_ended: Cell<bool>,
    is_reset: Cell<bool>,
}

impl Fake {
    pub(in crate::server) fn new(step: usize) -> Self {
        Self {
            step,
            room: Cell::new(0),
            sent: RefCell::default(),
            received: RefCell::default(),
            has_ended: Cell::new(false),
            is_reset: Cell::new(false),
        }
    }

    /// How many of `offered` bytes are taken now.
    fn take(&self, offered: usize) -> nix::Result<usize> {
        assert!(offered > 0, "nothing was offered");
        assert!(!self.has_ended.get(), "sent behind the end");
        let count = offered.min(self.step).min(self.room.get());
        if count == 0 {
            return Err(Errno::EAGAIN);
        }
        self.room.set(self.room.get() - count);
        Ok(count)
    }
}

impl Transport for Fake {
    fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        let mut received = self.received.borrow_mut();
        if received.is_empty() {
            return Err(Errno::EAGAIN);
        }
        let count = buffer.len().min(received.len());
        for (place, byte) in buffer.iter_mut().zip(received.drain(..count)) {
            *place = byte;
        }
        Ok(count)
    }

    fn send(&self, pieces: &[IoSlice<'_>]) -> nix::Result<usize> {
        let offered = pieces.iter().map(|piece| piece.len()).sum();
        let count = self.take(offered)?;
        let bytes = pieces.iter().flat_map(|piece| piece.iter());
        self.sent.borrow_mut().extend(bytes.take(count));
        Ok(count)
    }

    fn send_file(&self, file: &File, offset: u64, most: usize) -> nix::Result<Option<usize>> {
        let count = self.take(most)?;
        let mut bytes = vec![0; count];
        let count = file.read_at(&mut bytes, offset).unwrap();
        self.sent.borrow_mut().extend_from_slice(&bytes[..count]);
        Ok((count > 0).then_some(count))
    }

    fn end_sending(&self) {
        self.has_ended.set(true);
    }

    fn reset_on_close(&self, resets: bool) {
        self.is_reset.set(resets);
    }
}

fn certificate(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/certificates")
        .join(name)
}

/// The other end of an encrypted link.
struct Client(ClientConnection);

/// The client's end of a session that trusts [`session`].
pub(in crate::server) fn client() -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(certificate("ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

/// The server's end of a session.
pub(in crate::server) fn session() -> Box<ServerConnection> {
    let config = tls::Config::load(&tls::Options {
        cert_file: certificate("server.crt"),
        key_file: certificate("server.key"),
        ..tls::Options::default()
    })
    .unwrap();
    Box::new(config.accept().unwrap())
}

impl Client {
    /// Carries what both sides have to say; returns what was said in the clear.
    fn talk(&mut self, link: &mut Link<Fake>) -> io::Result<Vec<u8>> {
        let mut outgoing = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut outgoing)?;
        }
        link.transport.received.borrow_mut().extend(outgoing);
        link.read_blocked = false;
        drop(link.receive(&mut [0; 1024]));
        let sent = std::mem::take(&mut *link.transport.sent.borrow_mut());
        let mut plain = Vec::new();
        let mut rest = &sent[..];
        while !rest.is_empty() {
            self.0.read_tls(&mut rest)?;
            self.0.process_new_packets().map_err(io::Error::other)?;
            let mut buffer = [0; 16 << 10];
            loop {
                match self.0.reader().read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => plain.extend_from_slice(&buffer[..count]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(plain)
    }
}

/// An encrypted link behind its handshake, and its other end.
fn encrypted(step: usize) -> (Link<Fake>, Client) {
    let mut link = Link::new(Fake::new(step), Some(session()));
    let mut client = Client(client());
    link.transport.room.set(usize::MAX);
    while client.0.is_handshaking() || link.is_handshaking() {
        client.talk(&mut link).unwrap();
    }
    client.talk(&mut link).unwrap();
    link.transport.room.set(0);
    (link, client)
}

fn content(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect()
}

fn part(bytes: &[u8], offset: u64, length: u64) -> FilePart {
    let path = std::env::temp_dir().join(format!(
        "osloxide-link-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    File::create(&path).unwrap().write_all(bytes).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    FilePart {
        file,
        offset,
        length,
    }
}

/// Flushes as often as it takes, with room for `room` bytes each time.
fn flush_all(link: &mut Link<Fake>, room: usize) -> usize {
    let mut turns = 0;
    loop {
        turns += 1;
        assert!(turns < 1_000_000, "no progress");
        match link.flush().unwrap() {
            Flushed::Done => return turns,
            Flushed::Blocked => {
                assert!(link.write_blocked);
                link.write_blocked = false;
                link.transport.room.set(room);
            }
            Flushed::Turn => {}
        }
    }
}

#[test]
fn a_plain_link_sends_whole_and_in_order_whatever_the_transport_takes() {
    for step in [1, 2, 3, 7, 100, usize::MAX] {
        let mut link = Link::new(Fake::new(step), None);
        let body = content(5_000);
        let file = content(3_000);
        let _ = link.send(b"head:".to_vec(), body.clone().into()).unwrap();
        link.put(Bytes::from_static(b"more:"));
        link.put_file(part(&file, 100, 2_000));
        link.put(Bytes::new());
        link.put(Bytes::from_static(b":end"));

        flush_all(&mut link, 64);

        let expected = [b"head:", &body[..], b"more:", &file[100..2_100], b":end"].concat();
        assert_eq!(*link.transport.sent.borrow(), expected);
        assert_eq!(link.taken(), expected.len() as u64);
        assert_eq!(link.unsent(), 0);
    }
}

#[test]
fn an_encrypted_link_sends_whole_and_in_order_whatever_the_transport_takes() {
    for (step, room) in [(13, 997), (1_000, 5_000), (usize::MAX, 30_000)] {
        let (mut link, mut client) = encrypted(step);
        // More than TLS buffers: it has to be given in parts.
        let body = content(300_000);
        let file = content(200_000);
        let _ = link.send(b"head:".to_vec(), body.clone().into()).unwrap();
        link.put_file(part(&file, 7, 150_000));
        link.put(Bytes::from_static(b":end"));

        flush_all(&mut link, room);

        let expected = [b"head:", &body[..], &file[7..150_007], b":end"].concat();
        assert_eq!(client.talk(&mut link).unwrap(), expected);
    }
}

#[test]
fn an_encrypted_link_that_blocks_is_not_done_before_its_last_record() {
    let (mut link, mut client) = encrypted(usize::MAX);
    link.put(Bytes::from_static(b"hello"));

    assert_eq!(link.flush().unwrap(), Flushed::Blocked);
    assert!(!link.is_flushed());
    link.transport.room.set(10);
    assert_eq!(link.flush().unwrap(), Flushed::Blocked);
    link.transport.room.set(1_000);
    assert_eq!(link.flush().unwrap(), Flushed::Done);

    assert!(link.is_flushed());
    assert_eq!(client.talk(&mut link).unwrap(), b"hello");
}

#[test]
fn an_end_in_order_comes_behind_everything_else() {
    let (mut link, mut client) = encrypted(7);
    link.put(content(100_000).into());
    link.finish();
    assert!(!link.transport.has_ended.get());

    flush_all(&mut link, 9_999);

    assert!(link.transport.has_ended.get());
    assert_eq!(client.talk(&mut link).unwrap(), content(100_000));
    assert_eq!(client.0.reader().read(&mut [0]).unwrap(), 0, "close_notify");
}

#[test]
fn a_cut_is_not_announced_as_an_end() {
    let (mut link, mut client) = encrypted(usize::MAX);
    link.put(Bytes::from_static(b"half"));
    link.transport.room.set(1_000);
    assert_eq!(link.flush().unwrap(), Flushed::Done);
    link.put(Bytes::from_static(b"never sent"));

    link.abort();
    link.finish();

    assert!(!link.transport.has_ended.get() && !link.transport.is_reset.get());
    assert_eq!(client.talk(&mut link).unwrap(), b"half");
    let open = client.0.reader().read(&mut [0]).unwrap_err();
    assert_eq!(open.kind(), io::ErrorKind::WouldBlock);

    assert!(link.end_cut());
    assert!(link.transport.has_ended.get() && !link.transport.is_reset.get());
    assert_eq!(client.talk(&mut link).unwrap(), b"", "no close_notify");
    let open = client.0.reader().read(&mut [0]).unwrap_err();
    assert_eq!(open.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn a_cut_resets_where_only_the_end_delimits() {
    let mut link = Link::new(Fake::new(1), None);

    link.delimit_by_end();
    link.abort();
    link.finish();

    assert!(link.transport.is_reset.get());
    assert!(!link.end_cut());
    assert!(!link.transport.has_ended.get(), "no end before the reset");
}

#[test]
fn a_stream_that_only_its_end_delimits_is_reset_until_all_of_it_was_sent() {
    let plain = Link::new(Fake::new(1_000), None);
    for mut link in [plain, encrypted(usize::MAX).0] {
        link.delimit_by_end();
        link.put(content(5_000).into());
        link.finish();
        assert!(link.transport.is_reset.get());

        flush_all(&mut link, 9_999);

        assert!(!link.transport.is_reset.get());
        assert!(link.transport.has_ended.get());
    }
}

#[test]
fn nothing_follows_a_fatal_alert() {
    let (mut link, mut client) = encrypted(usize::MAX);
    link.transport
        .received
        .borrow_mut()
        .extend(b"\x17\x03\x03\x00\x05wrong");
    link.read_blocked = false;
    link.transport.room.set(10_000);
    assert!(link.receive(&mut [0; 100]).is_err());
    let alert = link.transport.sent.borrow().len();
    assert!(alert > 0);

    link.finish();

    assert_eq!(link.transport.sent.borrow().len(), alert);
    assert!(client.talk(&mut link).is_err());
}

#[test]
fn a_file_that_ends_too_early_is_a_failure_and_said_so() {
    let plain = Link::new(Fake::new(1_000), None);
    for mut link in [plain, encrypted(usize::MAX).0] {
        link.transport.room.set(usize::MAX);
        link.put_file(part(b"abc", 1, 9));

        let error = link.flush().unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(link.has_short_file());
        assert_eq!(link.unsent(), 7);
    }
}

#[test]
fn one_call_does_not_send_for_ever() {
    let mut link = Link::new(Fake::new(usize::MAX), None);
    link.transport.room.set(usize::MAX);
    for _ in 0..20 {
        for _ in 0..outgoing::MOST_SLICES {
            link.put(content(64 << 10).into());
        }
    }

    assert_eq!(link.flush().unwrap(), Flushed::Turn);
    assert!(link.unsent() > 0);
    assert!(!link.write_blocked);
}
