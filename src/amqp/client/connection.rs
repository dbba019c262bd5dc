//! One connection to a broker: made, agreed on, read from.
//!
//! Owns the socket until it is dropped, the handshakes of TLS and AMQP, the numbers of channels, and
//! the moment when the broker was heard last. Writes through [`AmqpConnection`], whose queue and
//! heartbeats need no thread of the client. Knows no request.
//!
//! Rules: AMQP 0-9-1 sections 2.2.4 (connection), 2.2.5 (heartbeats), 4.2.7.

use std::collections::HashSet;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use super::assembler::{Assembler, Incoming};
use super::methods::{
    self, COMMAND_INVALID, FRAME_ERROR, Method, PROTOCOL_HEADER, Refusal, Table, UNEXPECTED_FRAME,
    Value, Violation,
};
use super::refusals::Verdict;
use super::{Host, Options, PATIENCE, TlsFiles};
use crate::amqp::heartbeat::{AmqpConnection, Heartbeats, PIECE};
use crate::amqp::tls::{self, Session};
use crate::files::{self, Unread};

/// kombu's.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const FRAME_MAX: u32 = 131_072;
/// Section 4.2.3 (frame-min-size).
const FRAME_MIN: u32 = 4096;
const CHANNEL_MAX: u16 = 2047;
/// For replies, for an exchange, and for a question that may be answered by closing it.
const CHANNELS_MIN: u16 = 3;
/// Pieces that are read before they are looked at.
const MOST_PIECES: usize = 8;
/// Refusals that no further attempt changes: `access-refused`, `not-allowed`.
const PERMANENT: [u16; 2] = [403, 530];

/// Why something did not come about.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection is gone.
    Lost(String),
    /// The broker has closed the connection.
    Closed(Refusal),
    /// The broker has closed the channel that it was asked on.
    Refused(Refusal),
    /// What arrived is no AMQP.
    Violation(Violation),
    /// Options that cannot work with this broker.
    Unusable(String),
}

impl Fault {
    /// For the log and for errors.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Lost(text) | Self::Unusable(text) => text.clone(),
            Self::Closed(refusal) => format!("the broker says {refusal}"),
            Self::Refused(refusal) => refusal.to_string(),
            Self::Violation(violation) => violation.to_string(),
        }
    }

    /// As this, where it was met as *what* was declared.
    pub(super) fn of(self, what: impl FnOnce() -> String) -> Self {
        match self {
            Self::Refused(refusal) => Self::Refused(refusal.of(what())),
            Self::Closed(refusal) if refusal.verdict() != Verdict::Other => {
                Self::Closed(refusal.of(what()))
            }
            Self::Lost(_) | Self::Closed(_) | Self::Violation(_) | Self::Unusable(_) => self,
        }
    }

    /// Why the broker has closed the connection, where it has.
    pub(super) fn closed(&self) -> Option<&Refusal> {
        match self {
            Self::Closed(refusal) => Some(refusal),
            Self::Lost(_) | Self::Refused(_) | Self::Violation(_) | Self::Unusable(_) => None,
        }
    }

    /// Another attempt to connect would meet it again.
    pub(super) fn is_permanent(&self) -> bool {
        match self {
            Self::Unusable(_) => true,
            Self::Closed(refusal) => PERMANENT.contains(&refusal.code),
            Self::Lost(_) | Self::Refused(_) | Self::Violation(_) => false,
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// See the head of this file.
pub(super) struct Connection {
    socket: TcpStream,
    pub(super) link: Arc<AmqpConnection>,
    assembler: Assembler,
    pub(super) frame_max: usize,
    channel_max: u16,
    last_channel: u16,
    free_channels: Vec<u16>,
    /// Channels that were closed from here; the broker has not said so yet.
    closing: HashSet<u16>,
    /// How long the broker may be silent; none without heartbeats.
    silence: Option<Duration>,
    heard: Instant,
    /// It takes nothing at present, as it has said.
    pub(super) is_blocked: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.close();
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Connection {
    /// Connects with *host*, and agrees on everything up to `connection.open`.
    pub(super) fn open(
        options: &Options,
        host: &Host,
        heartbeats: &Heartbeats,
        bell: &EventFd,
    ) -> Result<Self, Fault> {
        let socket = connect(host)?;
        let session = match &options.tls {
            Some(files) => Some(shake_hands(files, host, &socket)?),
            None => None,
        };
        let link = heartbeats.add_silent(OwnedFd::from(socket.try_clone()?), session)?;
        let mut connection = Self {
            socket,
            link,
            assembler: Assembler::new(FRAME_MAX as usize),
            frame_max: FRAME_MAX as usize,
            channel_max: CHANNEL_MAX,
            last_channel: 0,
            free_channels: Vec::new(),
            closing: HashSet::new(),
            silence: None,
            heard: Instant::now(),
            is_blocked: false,
        };
        connection.agree(options, host, bell)?;
        Ok(connection)
    }

    fn agree(&mut self, options: &Options, host: &Host, bell: &EventFd) -> Result<(), Fault> {
        let deadline = Instant::now() + PATIENCE;
        self.link.queue(PROTOCOL_HEADER.to_vec())?;
        let mechanism = options.mechanism;
        let answer = self.answer(deadline, bell)?;
        let Method::Start { mechanisms } = &answer else {
            return Err(out_of_order(&answer));
        };
        if !mechanisms.split(' ').any(|name| name == mechanism.name()) {
            return Err(Fault::Unusable(format!(
                "rabbit_login_method = {}: the broker has {mechanisms}",
                mechanism.name()
            )));
        }
        let properties = properties(&options.connection_name);
        self.link.queue(methods::start_ok(
            &properties,
            mechanism,
            &host.user,
            &host.password,
        ))?;
        let answer = self.answer(deadline, bell)?;
        if answer == Method::Secure {
            let text = "the broker asks for more than a name and a password";
            return Err(Fault::Unusable(text.to_owned()));
        }
        let Method::Tune {
            channel_max,
            frame_max,
            heartbeat,
        } = answer
        else {
            return Err(out_of_order(&answer));
        };
        self.tune(options, channel_max, frame_max, heartbeat)?;
        self.link.queue(methods::open(&options.virtual_host))?;
        let answer = self.answer(deadline, bell)?;
        if answer == Method::OpenOk {
            Ok(())
        } else {
            Err(out_of_order(&answer))
        }
    }

    fn tune(
        &mut self,
        options: &Options,
        channel_max: u16,
        frame_max: u32,
        heartbeat: u16,
    ) -> Result<(), Fault> {
        let frame_max = match frame_max {
            0 => FRAME_MAX,
            size => size.min(FRAME_MAX),
        };
        if frame_max < FRAME_MIN {
            let text = format!("frames of {frame_max} bytes are offered, {FRAME_MIN} is the least");
            return Err(Violation::new(FRAME_ERROR, text).into());
        }
        self.channel_max = match channel_max {
            0 => CHANNEL_MAX,
            number => number.min(CHANNEL_MAX),
        };
        if self.channel_max < CHANNELS_MIN {
            return Err(Fault::Unusable(format!(
                "the broker allows {channel_max} channels on a connection; set its channel_max to \
                 {CHANNELS_MIN} at least"
            )));
        }
        // As py-amqp: off where it is off here, else the smaller of both.
        let heartbeat = match (options.heartbeat, heartbeat) {
            (0, _) => 0,
            (ours, 0) => ours,
            (ours, theirs) => ours.min(theirs),
        };
        self.frame_max = frame_max as usize;
        self.assembler.agree(self.frame_max);
        self.link
            .queue(methods::tune_ok(self.channel_max, frame_max, heartbeat))?;
        if heartbeat > 0 {
            let interval = Duration::from_secs(u64::from(heartbeat));
            self.link.beat(interval);
            self.silence = Some(interval * 2);
            // Written bytes that the peer's kernel does not take count as its silence.
            let millis = u32::from(heartbeat) * 2000;
            let _ = setsockopt(&self.socket, sockopt::TcpUserTimeout, &millis);
        }
        Ok(())
    }

    /// The next method of channel 0 during the handshake.
    fn answer(&mut self, deadline: Instant, bell: &EventFd) -> Result<Method, Fault> {
        loop {
            match self.assembler.next()? {
                Some(Incoming::Heartbeat) => {}
                Some(Incoming::Method(0, Method::Close(refusal))) => {
                    let _ = self.link.queue(methods::close_ok());
                    return Err(Fault::Closed(refusal));
                }
                Some(Incoming::Method(0, method)) => return Ok(method),
                Some(_) => {
                    let text = "something on a channel that is not open";
                    return Err(Violation::new(UNEXPECTED_FRAME, text).into());
                }
                None if Instant::now() >= deadline => {
                    let text = "the broker does not answer the handshake";
                    return Err(Fault::Lost(text.to_owned()));
                }
                None => self.read(Some(deadline), bell)?,
            }
        }
    }

    /// The next that has arrived, and is for an open channel.
    pub(super) fn next(&mut self) -> Result<Option<Incoming>, Fault> {
        loop {
            let Some(incoming) = self.assembler.next()? else {
                return Ok(None);
            };
            match &incoming {
                Incoming::Heartbeat => {}
                Incoming::Method(channel, method) if self.closing.contains(channel) => {
                    if *method == Method::ChannelCloseOk {
                        self.closing.remove(channel);
                        self.free_channels.push(*channel);
                    } else if matches!(method, Method::ChannelClose(_)) {
                        // Both sides have closed it at once.
                        self.link.queue(methods::channel_close_ok(*channel))?;
                    }
                }
                Incoming::Content(channel, ..) if self.closing.contains(channel) => {}
                Incoming::Method(channel, _) | Incoming::Content(channel, ..)
                    if *channel > self.last_channel =>
                {
                    let text = format!("channel {channel} is not open");
                    return Err(Violation::new(UNEXPECTED_FRAME, text).into());
                }
                Incoming::Method(..) | Incoming::Content(..) => return Ok(Some(incoming)),
            }
        }
    }

    /// Waits for bytes, the bell or *until*, and takes what has arrived.
    pub(super) fn read(&mut self, until: Option<Instant>, bell: &EventFd) -> Result<(), Fault> {
        let silent_at = self.silence.map(|silence| self.heard + silence);
        if !self.link.is_readable() {
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(bell.as_fd(), PollFlags::POLLIN),
            ];
            let now = Instant::now();
            let left = [until, silent_at]
                .into_iter()
                .flatten()
                .min()
                .map(|at| TimeSpec::from(at.saturating_duration_since(now)));
            // Whatever poll says, everything is looked at again.
            let _ = ppoll(&mut fds, left, None);
            if fds[1].any().unwrap_or(true) {
                let _ = bell.read();
            }
        }
        for _ in 0..MOST_PIECES {
            let assembler = &mut self.assembler;
            let received = self.link.receive(PIECE, |bytes| {
                assembler.feed(bytes);
                bytes.len()
            })?;
            match received {
                Some(0) => {
                    return Err(Fault::Lost("the broker has closed the socket".to_owned()));
                }
                Some(count) => {
                    self.heard = Instant::now();
                    if count < PIECE && !self.link.is_readable() {
                        return Ok(());
                    }
                }
                None => break,
            }
        }
        if let Some(silence) = self.silence
            && self.heard.elapsed() >= silence
        {
            let text = format!("the broker was silent for {} s", silence.as_secs());
            return Err(Fault::Lost(text));
        }
        Ok(())
    }

    /// A channel can be opened now.
    pub(super) fn has_free_channel(&self) -> bool {
        !self.free_channels.is_empty() || self.last_channel < self.channel_max
    }

    /// A channel that was closed from here is about to be free.
    pub(super) fn is_closing_channels(&self) -> bool {
        !self.closing.is_empty()
    }

    /// The broker has agreed that the channel is closed.
    pub(super) fn free_channel(&mut self, channel: u16) {
        self.free_channels.push(channel);
    }

    /// A number that no channel has.
    pub(super) fn new_channel(&mut self) -> Result<u16, Fault> {
        if let Some(number) = self.free_channels.pop() {
            return Ok(number);
        }
        if self.last_channel >= self.channel_max {
            let text = format!(
                "all {} channels of the connection are used",
                self.channel_max
            );
            return Err(Fault::Lost(text));
        }
        self.last_channel += 1;
        Ok(self.last_channel)
    }

    /// Does what *method* wants of the connection, or of the flow of a channel; any other is given back.
    pub(super) fn obey(&mut self, channel: u16, method: Method) -> Result<Option<Method>, Fault> {
        match (channel, method) {
            (0, Method::Close(refusal)) => {
                let _ = self.link.queue(methods::close_ok());
                return Err(Fault::Closed(refusal));
            }
            (0, Method::Blocked(reason)) => {
                self.is_blocked = true;
                tracing::error!("The broker has blocked the connection: {reason}");
            }
            (0, Method::Unblocked) => {
                self.is_blocked = false;
                tracing::info!("The broker has unblocked the connection");
            }
            (channel, Method::Flow { is_active }) => {
                self.link.queue(methods::flow_ok(channel, is_active))?;
            }
            (_, method) => return Ok(Some(method)),
        }
        Ok(None)
    }

    /// Drops the connection after *fault*; a broker that has violated the protocol hears why.
    pub(super) fn break_off(self, fault: &Fault) {
        if let Fault::Violation(violation) = fault {
            let close = methods::close(violation.code, &violation.text);
            let _ = self.link.queue(close);
        }
    }

    /// The broker has closed a channel.
    pub(super) fn channel_closed(&mut self, channel: u16) -> Result<(), Fault> {
        self.link.queue(methods::channel_close_ok(channel))?;
        self.free_channels.push(channel);
        Ok(())
    }

    /// Closes a channel; what still arrives on it is passed over.
    pub(super) fn close_channel(&mut self, channel: u16) -> Result<(), Fault> {
        self.link.queue(methods::channel_close(channel))?;
        self.closing.insert(channel);
        Ok(())
    }

    /// Without heartbeats nothing tells a peer that is gone from one that is slow.
    pub(super) fn has_heartbeats(&self) -> bool {
        self.silence.is_some()
    }
}

/// Waits for the bell or the first of two times, whatever arrives on the connection. What is rung for is
/// looked at in the next [`Connection::read`], which that does not hold up.
pub(super) fn doze(until: Instant, or_until: Option<Instant>, bell: &EventFd) {
    let until = or_until.map_or(until, |other| other.min(until));
    let left = TimeSpec::from(until.saturating_duration_since(Instant::now()));
    let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
    // Whatever poll says, everything is looked at again.
    let _ = ppoll(&mut fds, Some(left), None);
}

/// A method that is known, at a time when it means nothing.
pub(super) fn out_of_order(method: &Method) -> Fault {
    let text = format!("{method:?} is not expected now");
    let text = text.chars().take(200).collect::<String>();
    Fault::Violation(Violation::new(COMMAND_INVALID, text))
}

fn connect(host: &Host) -> Result<TcpStream, Fault> {
    let mut reason = "the name has no address".to_owned();
    for address in (host.name.as_str(), host.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                let _ = setsockopt(&socket, sockopt::KeepAlive, &true);
                return Ok(socket);
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(Fault::Lost(reason))
}

fn shake_hands(files: &TlsFiles, host: &Host, socket: &TcpStream) -> Result<Session, Fault> {
    let roots = files
        .roots
        .as_ref()
        .map(|paths| {
            let texts: Result<Vec<_>, _> = paths.iter().map(|path| read(path)).collect();
            texts.map(|texts| texts.join(&b'\n'))
        })
        .transpose()?;
    let identity = files
        .identity
        .as_ref()
        .map(|(certificate, key)| Ok::<_, Fault>((read(certificate)?, read(key)?)))
        .transpose()?;
    let options = tls::Options {
        roots: roots.as_deref(),
        server_name: files.checks_name.then_some(host.name.as_str()),
        identity: identity
            .as_ref()
            .map(|(certificate, key)| (certificate.as_slice(), key.as_slice())),
    };
    let refused = |error: tls::Error| match error {
        tls::Error::Io(error) => Fault::from(error),
        error @ (tls::Error::Option { .. } | tls::Error::Refused(_)) => {
            Fault::Unusable(error.to_string())
        }
    };
    let mut session = Session::new(&options).map_err(refused)?;
    let is_done = session
        .handshake(socket.as_fd(), Instant::now() + PATIENCE)
        .map_err(refused)?;
    if !is_done {
        let text = "the broker does not answer the TLS handshake";
        return Err(Fault::Lost(text.to_owned()));
    }
    Ok(session)
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    files::read(path).map_err(|unread| {
        Fault::Unusable(match unread {
            Unread::Failed(error) => format!("{}: {error}", path.display()),
            Unread::Silent | Unread::TooLong => format!("{} {unread}", path.display()),
        })
    })
}

/// Who this is, and what it understands.
fn properties(name: &str) -> Table {
    let capabilities = [
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "publisher_confirms",
    ];
    let capabilities = capabilities.map(|name| (name.to_owned(), Value::Bool(true)));
    let text = |text: &str| Value::Text(text.to_owned());
    vec![
        ("product".to_owned(), text("osloxide")),
        (
            "product_version".to_owned(),
            text(env!("CARGO_PKG_VERSION")),
        ),
        (
            "capabilities".to_owned(),
            Value::Table(capabilities.to_vec()),
        ),
        ("connection_name".to_owned(), text(name)),
    ]
}
