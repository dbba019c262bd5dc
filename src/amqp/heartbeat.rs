//! Sending on AMQP connections: queues of whole frames, and heartbeats while no Python thread can.
//!
//! Owns the sending side of sockets that are lent to it, one queue of frames each, and one thread
//! that sends what a socket did not take at once, and a heartbeat frame where nothing was sent for
//! too long. An endpoint that holds the interpreter's lock for longer than the broker waits stops
//! every Python thread, but not this one. Never opens or shuts down a connection, reads only when
//! its owner asks for what has arrived, and knows no other frame.
//!
//! Rules: AMQP 0-9-1 section 4.2.7 (a heartbeat may stand between any two frames, never inside one).
//! What is queued at once is whole frames, and no lock is held while a peer takes nothing: neither
//! readers nor other writers wait for it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::locks::{Condvar, Mutex};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::time::TimeSpec;

use super::tls::Session;
use crate::threads::{self, Signals};

const STACK_BYTES: usize = 256 * 1024;
/// Type 8, channel 0, empty payload, frame end.
const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];
/// How long the interpreter may be stuck until heartbeats end and the broker takes its
/// messages back: a process that computes is kept alive, one that hangs is not.
pub const LONGEST_FREEZE: Duration = Duration::from_secs(300);

/// The most that is read at a time, and made into TLS records.
pub const PIECE: usize = 64 * 1024;

/// How often a connection is looked at that has not agreed on heartbeats.
const UNAGREED: Duration = Duration::from_secs(60);

/// Sends heartbeats on the connections that were added to it, or to a clone.
#[derive(Clone)]
pub struct Heartbeats {
    shared: Arc<SendingThread>,
}

struct SendingThread {
    registry: Mutex<Registry>,
    wakeup: EventFd,
    last_python_write: Mutex<Instant>,
    /// How long Python may send nothing until heartbeats end; none where it need not send.
    longest_freeze: Option<Duration>,
}

#[derive(Default)]
struct Registry {
    connections: Vec<Weak<AmqpConnection>>,
    has_thread: bool,
}

/// One connection: its sending side, and a look at what has arrived.
pub struct AmqpConnection {
    send_side: Mutex<SendSide>,
    /// Something was sent, or nothing will be any more.
    progress: Condvar,
    /// A lock of its own: a peer that takes nothing keeps no thread from reading.
    receive_side: Mutex<ReceiveSide>,
    /// Both sides' records, where there is TLS. Locked last, and never while something waits.
    tls: Option<Mutex<Session>>,
    /// Heartbeats that [`Heartbeats`] has sent.
    heartbeats: AtomicU64,
    thread: Arc<SendingThread>,
}

struct ReceiveSide {
    socket: Option<Arc<OwnedFd>>,
    /// [`PIECE`] bytes, from the first read on.
    piece: Vec<u8>,
}

struct SendSide {
    socket: Option<Arc<OwnedFd>>,
    /// Whole frames that the kernel has not taken; of the first, `offset` bytes are sent.
    queue: VecDeque<Vec<u8>>,
    offset: usize,
    /// Bytes that are in records which the kernel has not taken; in no queue.
    sealed: u64,
    /// Bytes that were ever queued, and sent.
    queued: u64,
    sent: u64,
    /// How often the peer expects something at least; none until the two have agreed.
    interval: Option<Duration>,
    /// When something was sent last, heartbeats included.
    wrote: Instant,
    failure: Option<Errno>,
}

/// When the thread looks at a connection again.
struct Next {
    due: Instant,
    /// Its socket, where something waits for room in it.
    full: Option<Arc<OwnedFd>>,
}

impl fmt::Debug for Heartbeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeats").finish_non_exhaustive()
    }
}

impl fmt::Debug for AmqpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConnection")
            .field("heartbeats", &self.heartbeats())
            .finish_non_exhaustive()
    }
}

impl Heartbeats {
    /// Without connections; the thread exists only while there are some.
    ///
    /// # Errors
    /// When the kernel gives no descriptor.
    pub fn new() -> io::Result<Self> {
        Self::with_longest_freeze(Some(LONGEST_FREEZE))
    }

    /// As [`Heartbeats::new`], for connections that no Python thread has to keep alive: what they
    /// hold back from other consumers is nothing.
    ///
    /// # Errors
    /// As [`Heartbeats::new`].
    pub(super) fn unconditional() -> io::Result<Self> {
        Self::with_longest_freeze(None)
    }

    fn with_longest_freeze(longest_freeze: Option<Duration>) -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            shared: Arc::new(SendingThread {
                registry: Mutex::new(Registry::default()),
                wakeup: EventFd::from_flags(flags)?,
                last_python_write: Mutex::new(Instant::now()),
                longest_freeze,
            }),
        })
    }

    /// Takes over the sending side of *socket*, on which the peer expects something at least every
    /// *interval*. Heartbeats are sent until the connection is dropped or closed.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn add(&self, socket: OwnedFd, interval: Duration) -> io::Result<Arc<AmqpConnection>> {
        self.register(socket, None, Some(interval))
    }

    /// Takes over both sides of *socket*, on which *session* has shaken hands. There are no
    /// heartbeats until [`AmqpConnection::beat`].
    ///
    /// # Errors
    /// As [`Heartbeats::add`].
    pub fn add_tls(&self, socket: OwnedFd, session: Session) -> io::Result<Arc<AmqpConnection>> {
        self.register(socket, Some(Mutex::new(session)), None)
    }

    /// As [`Heartbeats::add_tls`], with or without TLS.
    pub(super) fn add_silent(
        &self,
        socket: OwnedFd,
        session: Option<Session>,
    ) -> io::Result<Arc<AmqpConnection>> {
        self.register(socket, session.map(Mutex::new), None)
    }

    fn register(
        &self,
        socket: OwnedFd,
        tls: Option<Mutex<Session>>,
        interval: Option<Duration>,
    ) -> io::Result<Arc<AmqpConnection>> {
        let now = Instant::now();
        let socket = Arc::new(socket);
        let connection = Arc::new(AmqpConnection {
            receive_side: Mutex::new(ReceiveSide {
                socket: Some(Arc::clone(&socket)),
                piece: Vec::new(),
            }),
            send_side: Mutex::new(SendSide {
                socket: Some(socket),
                queue: VecDeque::new(),
                offset: 0,
                sealed: 0,
                queued: 0,
                sent: 0,
                interval,
                wrote: now,
                failure: None,
            }),
            progress: Condvar::new(),
            tls,
            heartbeats: AtomicU64::new(0),
            thread: Arc::clone(&self.shared),
        });
        *self.shared.last_python_write.lock() = now;
        let mut registry = self.shared.registry.lock();
        if !registry.has_thread {
            let shared = Arc::clone(&self.shared);
            let name = "amqp-heartbeats".to_owned();
            threads::start(name, STACK_BYTES, Signals::None, move || shared.run())?;
            registry.has_thread = true;
        }
        registry.connections.push(Arc::downgrade(&connection));
        drop(registry);
        self.shared.wake();
        Ok(connection)
    }
}

impl SendingThread {
    /// A full counter wakes as well, so that no failure matters here.
    fn wake(&self) {
        let _ = self.wakeup.write(1);
    }

    fn run(&self) {
        while let Some(next) = self.send_all() {
            let now = Instant::now();
            let due = next.iter().map(|next| next.due).min().unwrap_or(now);
            let left = TimeSpec::from(due.saturating_duration_since(now));
            let mut fds = vec![PollFd::new(self.wakeup.as_fd(), PollFlags::POLLIN)];
            fds.extend(next.iter().filter_map(|next| {
                let socket = next.full.as_ref()?;
                Some(PollFd::new(socket.as_fd(), PollFlags::POLLOUT))
            }));
            // Whatever poll says, all are looked at again.
            let _ = ppoll(&mut fds, Some(left), None);
            let _ = self.wakeup.read();
        }
    }

    /// Sends what can be sent; none when no connection is left, and the thread has to leave.
    fn send_all(&self) -> Option<Vec<Next>> {
        let mut registry = self.registry.lock();
        let now = Instant::now();
        let last_python_write = *self.last_python_write.lock();
        let mut next = Vec::new();
        registry.connections.retain(|connection| {
            let looked = connection
                .upgrade()
                .and_then(|connection| connection.send_due(now, last_python_write));
            let is_open = looked.is_some();
            next.extend(looked);
            is_open
        });
        if next.is_empty() {
            registry.has_thread = false;
            return None;
        }
        Some(next)
    }
}

impl AmqpConnection {
    /// Queues *data*, which is whole frames, behind what is queued already, and sends what the
    /// socket takes. Never waits. Returns the mark by which [`AmqpConnection::wait_sent`] knows it.
    ///
    /// # Errors
    /// What the kernel has said of the socket, now or before; `NotConnected` once it is closed.
    pub fn queue(&self, data: Vec<u8>) -> io::Result<u64> {
        let mut send_side = self.send_side.lock();
        send_side.check()?;
        send_side.push(data);
        send_side.flush(self.tls.as_ref())?;
        let (mark, is_left) = (send_side.queued, send_side.sent < send_side.queued);
        *self.thread.last_python_write.lock() = Instant::now();
        drop(send_side);
        if is_left {
            self.thread.wake();
        }
        Ok(mark)
    }

    /// Waits until everything up to *mark* was sent; false when *deadline* passed first.
    ///
    /// # Errors
    /// As [`AmqpConnection::queue`].
    pub fn wait_sent(&self, mark: u64, deadline: Instant) -> io::Result<bool> {
        let mut send_side = self.send_side.lock();
        while send_side.sent < mark {
            send_side.check()?;
            if self
                .progress
                .wait_until(&mut send_side, deadline)
                .timed_out()
            {
                return Ok(send_side.sent >= mark);
            }
        }
        Ok(true)
    }

    /// Bytes that were queued and not sent.
    pub fn unsent(&self) -> u64 {
        let send_side = self.send_side.lock();
        send_side.queued - send_side.sent
    }

    /// Hands what has arrived, at most `most` bytes and [`PIECE`], to `take`: nothing at the end of
    /// the stream. Never waits; `None` when nothing has arrived.
    ///
    /// # Errors
    /// What the kernel says of the socket; `NotConnected` once the connection is closed;
    /// `InvalidData` for what is no TLS, or an alert.
    pub fn receive<T>(&self, most: usize, take: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        let mut receive_side = self.receive_side.lock();
        let ReceiveSide { socket, piece } = &mut *receive_side;
        let socket = socket.as_ref().ok_or(Errno::ENOTCONN)?;
        piece.resize(PIECE, 0);
        let piece = piece.get_mut(..most.min(PIECE)).unwrap_or_default();
        if let Some(tls) = &self.tls {
            let mut session = tls.lock();
            let received = session.receive(socket.as_fd(), piece);
            let has_answer = session.wants_write();
            drop(session);
            if has_answer {
                self.thread.wake(); // a new key, or an alert
            }
            return Ok(received?.map(|count| take(piece.get(..count).unwrap_or_default())));
        }
        let socket = socket.as_raw_fd();
        loop {
            match recv(socket, piece, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => return Ok(Some(take(piece.get(..count).unwrap_or_default()))),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Something can be received though the socket may not be readable: it is decrypted already.
    pub fn is_readable(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.lock().is_readable())
    }

    /// Sends heartbeats from now on, where nothing was sent for three quarters of *interval*.
    pub fn beat(&self, interval: Duration) {
        self.send_side.lock().interval = Some(interval);
        self.thread.wake();
    }

    /// Sends and receives no more; what is queued is dropped. The socket itself is its owner's to
    /// shut down.
    pub fn close(&self) {
        let mut send_side = self.send_side.lock();
        if let (Some(socket), Some(tls)) = (&send_side.socket, &self.tls)
            && send_side.failure.is_none()
            && send_side.sent == send_side.queued
        {
            let mut session = tls.lock();
            session.notify_close();
            let _ = session.flush(socket.as_fd()); // a courtesy
        }
        send_side.socket = None;
        send_side.queue.clear();
        drop(send_side);
        self.progress.notify_all();
        self.receive_side.lock().socket = None;
    }

    /// Heartbeats that were sent because the owner was silent.
    pub fn heartbeats(&self) -> u64 {
        self.heartbeats.load(Ordering::Relaxed)
    }

    /// Sends what is queued, or a heartbeat if one is due; none once the connection is closed or
    /// lost, which its owner finds out.
    fn send_due(&self, now: Instant, last_python_write: Instant) -> Option<Next> {
        let mut send_side = self.send_side.lock();
        let interval = send_side.interval.unwrap_or(UNAGREED);
        let pause = interval / 4;
        let before = send_side.sent;
        let is_due = send_side.interval.is_some() && now >= send_side.wrote + interval * 3 / 4;
        // Where something is queued the peer reads nothing: it has unread bytes of ours.
        let is_silent = is_due && send_side.sent == send_side.queued;
        let freeze = self.thread.longest_freeze;
        let is_alive = freeze.is_none_or(|freeze| now <= last_python_write + freeze);
        if is_silent && is_alive {
            send_side.push(HEARTBEAT.to_vec());
        }
        let tls = self.tls.as_ref();
        let result = send_side.check().and_then(|()| send_side.flush(tls));
        if result.is_err() || send_side.sent > before {
            self.progress.notify_all();
        }
        result.ok()?;
        if is_silent && is_alive {
            self.heartbeats.fetch_add(1, Ordering::Relaxed);
        }
        let due = send_side.wrote + interval * 3 / 4;
        let is_left =
            send_side.sent < send_side.queued || tls.is_some_and(|tls| tls.lock().wants_write());
        let full = send_side.socket.clone().filter(|_| is_left);
        Some(Next {
            due: if due > now { due } else { now + pause },
            full,
        })
    }
}

impl Drop for AmqpConnection {
    /// The thread leaves with the last connection, and need not wait for its next heartbeat.
    fn drop(&mut self) {
        self.thread.wake();
    }
}

impl SendSide {
    fn check(&self) -> io::Result<()> {
        match (&self.socket, self.failure) {
            (None, _) => Err(Errno::ENOTCONN.into()),
            (Some(_), Some(errno)) => Err(errno.into()),
            (Some(_), None) => Ok(()),
        }
    }

    fn push(&mut self, data: Vec<u8>) {
        if !data.is_empty() {
            self.queued += data.len() as u64;
            self.queue.push_back(data);
        }
    }

    /// Sends until nothing is left or the socket is full.
    fn flush(&mut self, tls: Option<&Mutex<Session>>) -> io::Result<()> {
        let Some(tls) = tls else {
            return self.flush_plain();
        };
        let result = self.flush_records(&mut tls.lock());
        if let Err(error) = &result {
            let errno = error.raw_os_error().map_or(Errno::EPIPE, Errno::from_raw);
            self.failure = Some(errno);
        }
        result
    }

    fn flush_records(&mut self, session: &mut Session) -> io::Result<()> {
        let socket = Arc::clone(self.socket.as_ref().ok_or(Errno::ENOTCONN)?);
        while session.flush(socket.as_fd())? {
            if self.sealed > 0 {
                self.sent += self.sealed;
                self.sealed = 0;
                self.wrote = Instant::now();
            }
            let Some(front) = self.queue.front() else {
                break;
            };
            let rest = front.get(self.offset..).unwrap_or_default();
            let count = session.seal(rest.get(..PIECE).unwrap_or(rest))?;
            self.offset += count;
            self.sealed += count as u64;
            if self.offset >= front.len() {
                self.queue.pop_front();
                self.offset = 0;
            }
        }
        Ok(())
    }

    fn flush_plain(&mut self) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(Errno::ENOTCONN)?.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while let Some(front) = self.queue.front() {
            match send(socket, front.get(self.offset..).unwrap_or_default(), flags) {
                Ok(count) => {
                    self.offset += count;
                    self.sent += count as u64;
                    self.wrote = Instant::now();
                    if self.offset >= front.len() {
                        self.queue.pop_front();
                        self.offset = 0;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    self.failure = Some(errno);
                    return Err(errno.into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(20);
    const SOON: Duration = Duration::from_millis(20);

    fn pair() -> (UnixStream, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(PATIENCE)).unwrap();
        (theirs, ours.into())
    }

    /// Queues *data* and waits until it was sent; false at the deadline.
    fn write(connection: &AmqpConnection, data: &[u8], within: Duration) -> bool {
        let mark = connection.queue(data.to_vec()).unwrap();
        connection.wait_sent(mark, Instant::now() + within).unwrap()
    }

    #[test]
    fn a_silent_connection_gets_heartbeats() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new().unwrap();
        let connection = heartbeats.add(socket, SOON).unwrap();

        let mut frames = [0; 24];
        peer.read_exact(&mut frames).unwrap();

        assert_eq!(frames, [HEARTBEAT; 3].concat()[..]);
        let deadline = Instant::now() + PATIENCE;
        while connection.heartbeats() < 3 {
            assert!(Instant::now() < deadline, "they were not counted");
            thread::yield_now();
        }
    }

    #[test]
    fn a_connection_that_is_dropped_gets_no_more_and_lets_the_socket_go() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new().unwrap();

        drop(heartbeats.add(socket, PATIENCE).unwrap());

        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "end of file");
    }

    #[test]
    fn a_closed_connection_refuses_to_write() {
        let (_peer, socket) = pair();
        let connection = Heartbeats::new().unwrap().add(socket, PATIENCE).unwrap();

        connection.close();

        let refused = connection.queue(b"frame".to_vec()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn what_has_arrived_is_received_and_nothing_more_is_waited_for() {
        let (mut peer, socket) = pair();
        let connection = Heartbeats::new().unwrap().add(socket, PATIENCE).unwrap();
        let receive = || connection.receive(PIECE, <[u8]>::to_vec);
        assert_eq!(receive().unwrap(), None);

        peer.write_all(b"frames").unwrap();
        assert_eq!(receive().unwrap().as_deref(), Some(&b"frames"[..]));
        drop(peer);
        assert_eq!(receive().unwrap().as_deref(), Some(&b""[..]));

        connection.close();
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_peer_that_takes_nothing_keeps_no_thread_from_queueing_and_receiving() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new().unwrap();
        let connection = heartbeats.add(socket, PATIENCE).unwrap();
        let block = vec![b'x'; 1 << 22];

        let mark = connection.queue(block.clone()).unwrap();
        assert!(connection.unsent() > 0);
        connection.queue(b"behind".to_vec()).unwrap();
        peer.write_all(b"frames").unwrap();
        let received = connection.receive(PIECE, <[u8]>::to_vec).unwrap();

        assert_eq!(received.as_deref(), Some(&b"frames"[..]));
        let mut text = vec![0; block.len() + 6];
        peer.read_exact(&mut text).unwrap();
        assert!(text.starts_with(&block) && text.ends_with(b"behind"));
        assert!(
            connection
                .wait_sent(mark, Instant::now() + PATIENCE)
                .unwrap()
        );
    }

    #[test]
    fn a_heartbeat_never_stands_inside_what_was_written_at_once() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new().unwrap();
        let connection = heartbeats.add(socket, Duration::from_millis(1)).unwrap();
        // Larger than any buffer: each write is taken piece by piece, with pauses between them.
        let block: Vec<u8> = vec![b'x'; 1 << 20];
        let sent = block.clone();
        let writer = thread::Builder::new()
            .spawn(move || {
                for _ in 0..8 {
                    assert!(write(&connection, &sent, PATIENCE));
                    thread::yield_now();
                }
                drop(connection);
            })
            .unwrap();

        let mut text = Vec::new();
        peer.read_to_end(&mut text).unwrap();

        writer.join().unwrap();
        let mut rest = &text[..];
        let mut blocks = 0;
        while !rest.is_empty() {
            if rest.starts_with(&HEARTBEAT) {
                rest = &rest[HEARTBEAT.len()..];
            } else {
                assert!(rest.starts_with(&block), "a torn block");
                rest = &rest[block.len()..];
                blocks += 1;
            }
        }
        assert_eq!(blocks, 8);
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up_at_the_deadline() {
        let (_peer, socket) = pair();
        let connection = Heartbeats::new().unwrap().add(socket, PATIENCE).unwrap();

        assert!(!write(&connection, &vec![0; 1 << 22], SOON));
    }

    #[test]
    fn a_writer_that_waits_learns_that_the_connection_is_closed() {
        let (_peer, socket) = pair();
        let heartbeats = Heartbeats::new().unwrap();
        let connection = heartbeats.add(socket, PATIENCE).unwrap();
        let mark = connection.queue(vec![0; 1 << 22]).unwrap();
        let waiter = {
            let connection = Arc::clone(&connection);
            thread::Builder::new()
                .spawn(move || connection.wait_sent(mark, Instant::now() + PATIENCE))
                .unwrap()
        };

        connection.close();

        let refused = waiter.join().unwrap().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn the_thread_leaves_with_the_last_connection_and_comes_back_for_the_next() {
        let heartbeats = Heartbeats::new().unwrap();
        let (_first_peer, socket) = pair();
        drop(heartbeats.add(socket, SOON).unwrap());
        let deadline = Instant::now() + PATIENCE;
        while heartbeats.shared.registry.lock().has_thread {
            assert!(Instant::now() < deadline, "the thread stayed");
            thread::yield_now();
        }

        let (mut peer, socket) = pair();
        let _connection = heartbeats.add(socket, SOON).unwrap();

        peer.read_exact(&mut [0; 8]).unwrap();
    }
}
