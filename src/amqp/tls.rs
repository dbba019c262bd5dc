//! The client's side of TLS on one AMQP connection.
//!
//! Owns the session: records are made and read here, so that heartbeats and acknowledgements leave
//! while the interpreter is held. Never waits but for a handshake, and knows no frame. What a
//! certificate has to fulfil is the caller's decision, in [`Options`].
//!
//! Rules: RFC 8446 and 5246, and RFC 9525 for names, all by rustls. The meaning of
//! the options is `ssl.SSLContext`'s of Python, as py-amqp sets it.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::time::TimeSpec;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// How the broker proves who it is, and how this side does. Texts are PEM.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// The authorities that are trusted; with none, every certificate is accepted.
    pub roots: Option<&'a [u8]>,
    /// The name that the certificate must be for, and that the broker is asked for (SNI). A name
    /// or an address; with none, any name will do.
    pub server_name: Option<&'a str>,
    /// A certificate with those that lead to its authority, and its key.
    pub identity: Option<(&'a [u8], &'a [u8])>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the options name is not what it has to be.
    #[error("{what}: {reason}")]
    Option {
        /// Of [`Options`].
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// One of both sides has refused the other.
    #[error("TLS handshake: {0}")]
    Refused(rustls::Error),
    /// The socket's error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One session.
pub struct Session {
    connection: ClientConnection,
    /// Bytes that are decrypted and not read.
    readable: usize,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("readable", &self.readable)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// One that has not shaken hands.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn new(options: &Options<'_>) -> Result<Self, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier {
            roots: options.roots.map(trusted).transpose()?,
            has_name: options.server_name.is_some(),
            provider: Arc::clone(&provider),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused("versions", &error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match options.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("certificate", certificate)?;
                let key =
                    PrivateKeyDer::from_pem_slice(key).map_err(|error| refused("key", &error))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| refused("certificate and key", &error))?
            }
        };
        config.enable_sni = options.server_name.is_some();
        let name = options.server_name.unwrap_or("localhost").to_owned();
        let name = ServerName::try_from(name).map_err(|error| refused("server's name", &error))?;
        let connection = ClientConnection::new(Arc::new(config), name)
            .map_err(|error| refused("TLS", &error))?;
        Ok(Self {
            connection,
            readable: 0,
        })
    }

    /// Goes on with the handshake, on a connected *socket*; false when *until* passed first.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Io`].
    pub fn handshake(&mut self, socket: BorrowedFd<'_>, until: Instant) -> Result<bool, Error> {
        loop {
            let is_sent = self.flush(socket)?;
            if is_sent && !self.connection.is_handshaking() {
                return Ok(true);
            }
            let mut events = PollFlags::POLLIN;
            if is_sent {
                match self.connection.read_tls(&mut Socket(socket)) {
                    Ok(0) => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {
                        if let Err(error) = self.process() {
                            let _ = self.flush(socket); // tells the other side
                            return Err(Error::Refused(error));
                        }
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            } else {
                events = PollFlags::POLLOUT;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut fds = [PollFd::new(socket.as_fd(), events)];
            // Whatever poll says, the socket is looked at again.
            let _ = ppoll(&mut fds, Some(TimeSpec::from(left)), None);
        }
    }

    /// Makes records of *data*; how much of it was taken. To be flushed before there is more.
    ///
    /// # Errors
    /// None that a peer can cause.
    pub fn seal(&mut self, data: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(data)
    }

    /// Sends what the socket takes of the records that were made; true when none is left.
    ///
    /// # Errors
    /// The socket's.
    pub fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Socket(socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// There are records to be flushed.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Something can be received though the socket may not be readable.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.readable > 0
    }

    /// Fills *piece* with what has arrived; 0 at the end of the stream, `None` when nothing has.
    ///
    /// # Errors
    /// The socket's; `InvalidData` for records that are none, or an alert.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        piece: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let mut filled = 0;
        while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
            match self.connection.reader().read(room) {
                Ok(0) => return Ok(Some(filled)),
                Ok(count) => {
                    filled += count;
                    self.readable = self.readable.saturating_sub(count);
                    continue;
                }
                // Without a farewell: frames say themselves where they end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Some(filled));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let outcome = match self.connection.read_tls(&mut Socket(socket)) {
                Ok(_) => self
                    .process()
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((filled > 0).then_some(filled));
                }
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                // What arrived before is right; the next call meets the error again.
                return if filled > 0 {
                    Ok(Some(filled))
                } else {
                    Err(error)
                };
            }
        }
        Ok(Some(filled))
    }

    /// Makes the record that ends the session.
    pub fn notify_close(&mut self) {
        self.connection.send_close_notify();
    }

    fn process(&mut self) -> Result<(), rustls::Error> {
        self.readable = self
            .connection
            .process_new_packets()?
            .plaintext_bytes_to_read();
        Ok(())
    }
}

fn refused(what: &'static str, reason: &dyn fmt::Display) -> Error {
    Error::Option {
        what,
        reason: reason.to_string(),
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| refused(what, &error))?;
    if found.is_empty() {
        return Err(refused(what, &"no certificate in it"));
    }
    Ok(found)
}

fn trusted(pem: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    // Bundles of systems hold some that are of no use here, as OpenSSL skips them.
    let (taken, _) = roots.add_parsable_certificates(certificates("authorities", pem)?);
    if taken == 0 {
        return Err(refused("authorities", &"none can be used"));
    }
    Ok(roots)
}

/// The socket, without waiting.
struct Socket<'a>(BorrowedFd<'a>);

impl io::Read for Socket<'_> {
    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), piece, MsgFlags::MSG_DONTWAIT) {
                Err(nix::errno::Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match send(self.0.as_raw_fd(), data, flags) {
                Err(nix::errno::Errno::EINTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What Python's `ssl` distinguishes and rustls has no verifier of its own for: a chain without a
/// name, and no verification.
#[derive(Debug)]
struct Verifier {
    roots: Option<RootCertStore>,
    has_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
            if self.has_name {
                verify_server_name(&certificate, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::server::WebPkiClientVerifier;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use std::os::unix::net::UnixStream;
    use std::thread::{Builder, JoinHandle};
    use std::time::Duration;

    const CA: &[u8] = include_bytes!("../../tests/certificates/ca.crt");
    const SERVER: (&[u8], &[u8]) = (
        include_bytes!("../../tests/certificates/server.crt"),
        include_bytes!("../../tests/certificates/server.key"),
    );
    const CLIENT: (&[u8], &[u8]) = (
        include_bytes!("../../tests/certificates/client.crt"),
        include_bytes!("../../tests/certificates/client.key"),
    );
    const PATIENCE: Duration = Duration::from_secs(20);

    type Peer = StreamOwned<ServerConnection, UnixStream>;

    /// A broker that answers on *stream* by `talk`; it asks for a certificate if told to.
    fn broker<T: Send + 'static>(
        stream: UnixStream,
        asks: bool,
        talk: impl FnOnce(Peer) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let roots = Arc::new(trusted(CA).unwrap());
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates("certificate", SERVER.0).unwrap();
        let key = PrivateKeyDer::from_pem_slice(SERVER.1).unwrap();
        let config = builder.with_single_cert(chain, key).unwrap();
        let connection = ServerConnection::new(Arc::new(config)).unwrap();
        Builder::new()
            .spawn(move || talk(StreamOwned::new(connection, stream)))
            .unwrap()
    }

    fn shaken(options: &Options<'_>, socket: &UnixStream) -> Result<Session, Error> {
        let mut session = Session::new(options)?;
        let is_done = session.handshake(socket.as_fd(), Instant::now() + PATIENCE)?;
        assert!(is_done, "the handshake took too long");
        Ok(session)
    }

    fn receive(session: &mut Session, socket: &UnixStream, piece: &mut [u8]) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(count) = session.receive(socket.as_fd(), piece).unwrap() {
                return count;
            }
            assert!(Instant::now() < deadline, "nothing arrives");
            std::thread::yield_now();
        }
    }

    #[test]
    fn both_sides_hear_each_other_and_the_farewell_ends_the_stream() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = broker(theirs, true, |mut peer| {
            let mut word = [0; 4];
            peer.read_exact(&mut word).unwrap();
            peer.write_all(&[word, word].concat()).unwrap();
            peer.read(&mut word).unwrap()
        });
        let options = Options {
            roots: Some(CA),
            server_name: Some("localhost"),
            identity: Some(CLIENT),
        };
        let mut session = shaken(&options, &ours).unwrap();

        assert_eq!(session.seal(b"ping").unwrap(), 4);
        assert!(session.flush(ours.as_fd()).unwrap());
        let mut first = [0; 6];
        assert_eq!(receive(&mut session, &ours, &mut first), 6);
        assert!(session.is_readable(), "two bytes are decrypted already");
        let mut rest = [0; 6];
        assert_eq!(receive(&mut session, &ours, &mut rest), 2);
        assert!(!session.is_readable());
        session.notify_close();
        assert!(session.flush(ours.as_fd()).unwrap());

        assert_eq!((&first, &rest[..2]), (b"pingpi", &b"ng"[..]));
        assert_eq!(peer.join().unwrap(), 0, "the end of the stream");
    }

    #[test]
    fn what_a_full_socket_does_not_take_is_kept_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = broker(theirs, false, |mut peer| {
            let mut text = Vec::new();
            let _ = peer.read_to_end(&mut text);
            text
        });
        let options = Options {
            roots: Some(CA),
            server_name: Some("127.0.0.1"),
            ..Options::default()
        };
        let mut session = shaken(&options, &ours).unwrap();
        let sent: Vec<u8> = (0..1_u32 << 20).flat_map(u32::to_be_bytes).collect();

        let mut rest = &sent[..];
        let deadline = Instant::now() + PATIENCE;
        while !rest.is_empty() {
            assert!(Instant::now() < deadline, "the peer takes nothing");
            if session.flush(ours.as_fd()).unwrap() {
                rest = &rest[session.seal(rest).unwrap()..];
            }
        }
        session.notify_close();
        while !session.flush(ours.as_fd()).unwrap() {
            assert!(Instant::now() < deadline, "the peer takes nothing");
        }

        assert!(peer.join().unwrap() == sent);
    }

    #[test]
    fn names_and_authorities_are_compared_as_far_as_they_are_given() {
        let other = Some("broker.example.org");
        for (roots, server_name, is_right) in [
            (Some(CA), other, false),
            (Some(SERVER.0), Some("localhost"), false),
            (Some(CA), None, true),
            (None, other, true),
        ] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let peer = broker(theirs, false, |mut peer| {
                peer.conn.complete_io(&mut peer.sock)
            });
            let options = Options {
                roots,
                server_name,
                identity: None,
            };

            let result = shaken(&options, &ours);

            assert_eq!(result.is_ok(), is_right, "{server_name:?}: {result:?}");
            if let Err(error) = result {
                assert!(matches!(error, Error::Refused(_)), "{error}");
            }
            drop(ours);
            let _ = peer.join().unwrap();
        }
    }

    #[test]
    fn a_handshake_that_is_not_answered_ends_at_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut session = Session::new(&Options::default()).unwrap();

        assert!(!session.handshake(ours.as_fd(), Instant::now()).unwrap());
    }

    #[test]
    fn an_option_that_is_not_what_it_should_be_is_named() {
        let not_pem = Options {
            roots: Some(b"no certificate"),
            ..Options::default()
        };
        let other_key = Options {
            identity: Some((CLIENT.0, SERVER.1)),
            ..Options::default()
        };

        for (options, named) in [(not_pem, "authorities"), (other_key, "certificate and key")] {
            let error = Session::new(&options).unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }
}
