//! Heartbeats of AMQP connections, sent by a native thread while no Python thread can.
//!
//! Owns the sending side of sockets that are lent to it, one lock each, and one thread that sends a
//! heartbeat frame on connections that have been silent for too long. An endpoint that holds the
//! interpreter's lock for longer than the broker waits stops every Python thread, but not this one.
//! Never opens or shuts down a connection, reads only when its owner asks for what has arrived, and
//! knows no other frame.
//!
//! Rules: AMQP 0-9-1 section 4.2.7 (a heartbeat may stand between any two frames, never inside one).
//! A call of [`AmqpConnection::write`] therefore carries whole frames, and the lock is let go of
//! before the caller waits for its interpreter: a writer that cannot go on must not stop heartbeats.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::threads::{self, Signals};

const STACK_BYTES: usize = 256 * 1024;
/// Type 8, channel 0, empty payload, frame end.
const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];
/// How long the interpreter may be stuck until heartbeats end and the broker takes its
/// messages back: a process that computes is kept alive, one that hangs is not.
pub const LONGEST_FREEZE: Duration = Duration::from_secs(300);

/// The most that is read at a time.
pub const PIECE: usize = 64 * 1024;

/// Sends heartbeats on the connections that were added to it.
pub struct Heartbeats {
    shared: Arc<HeartbeatThread>,
}

struct HeartbeatThread {
    registry: Mutex<Registry>,
    changed: Condvar,
    last_python_write: Arc<Mutex<Instant>>,
}

#[derive(Default)]
struct Registry {
    connections: Vec<Weak<AmqpConnection>>,
    has_thread: bool,
}

/// One connection: its writing side, and a look at what has arrived.
pub struct AmqpConnection {
    state: Mutex<SendSide>,
    /// A lock of its own: a writer that waits for the peer keeps no thread from reading.
    reader: Mutex<ReceiveSide>,
    /// Heartbeats that [`Heartbeats`] has sent.
    sent: AtomicU64,
    interval: Duration,
    /// When an owner of any connection of the process last sent something: proof that Python runs.
    last_python_write: Arc<Mutex<Instant>>,
}

struct ReceiveSide {
    socket: Option<Arc<OwnedFd>>,
    /// [`PIECE`] bytes, from the first read on.
    piece: Vec<u8>,
}

struct SendSide {
    socket: Option<Arc<OwnedFd>>,
    /// What the kernel did not take of a heartbeat; goes before anything else.
    rest: &'static [u8],
    /// A writer was interrupted inside a frame.
    is_inside_frame: bool,
    /// When something was sent last, heartbeats included.
    wrote: Instant,
}

/// How a call of [`AmqpConnection::write`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrote {
    /// Everything was taken by the kernel.
    All,
    /// A signal arrived; call again for the rest.
    Interrupted,
    /// The deadline passed. The connection is of no use any more: a frame may be half sent.
    TimedOut,
}

impl fmt::Debug for Heartbeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heartbeats").finish_non_exhaustive()
    }
}

impl fmt::Debug for AmqpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpConnection")
            .field("sent", &self.sent())
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self::new()
    }
}

impl Heartbeats {
    /// Without connections; the thread exists only while there are some.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(HeartbeatThread {
                registry: Mutex::new(Registry::default()),
                changed: Condvar::new(),
                last_python_write: Arc::new(Mutex::new(Instant::now())),
            }),
        }
    }

    /// Takes over the writing side of *socket*, on which the peer expects something at least every
    /// *interval*. It sent until the connection is dropped or closed.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn add(&self, socket: OwnedFd, interval: Duration) -> io::Result<Arc<AmqpConnection>> {
        let now = Instant::now();
        let socket = Arc::new(socket);
        let connection = Arc::new(AmqpConnection {
            reader: Mutex::new(ReceiveSide {
                socket: Some(Arc::clone(&socket)),
                piece: Vec::new(),
            }),
            state: Mutex::new(SendSide {
                socket: Some(socket),
                rest: &[],
                is_inside_frame: false,
                wrote: now,
            }),
            sent: AtomicU64::new(0),
            interval,
            last_python_write: Arc::clone(&self.shared.last_python_write),
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
        self.shared.changed.notify_all();
        Ok(connection)
    }
}

impl HeartbeatThread {
    fn run(&self) {
        let mut registry = self.registry.lock();
        loop {
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            registry.connections.retain(|connection| {
                let Some(connection) = connection.upgrade() else {
                    return false;
                };
                let Some(due) = connection.send_if_due(now) else {
                    return false;
                };
                next = Some(next.map_or(due, |next| next.min(due)));
                true
            });
            let Some(next) = next else {
                registry.has_thread = false;
                return;
            };
            self.changed.wait_until(&mut registry, next);
        }
    }
}

impl AmqpConnection {
    /// Sends *data*, which is whole frames, from *offset* on, and moves *offset*. Waits for the peer
    /// until *deadline*; for ever without one.
    ///
    /// # Errors
    /// What the kernel says of the socket; `NotConnected` once the connection is closed.
    pub fn write(
        &self,
        data: &[u8],
        offset: &mut usize,
        deadline: Option<Instant>,
    ) -> io::Result<Wrote> {
        let mut state = self.state.lock();
        loop {
            let wrote = state.send(data.get(*offset..).unwrap_or_default());
            match wrote {
                Ok(count) => *offset += count,
                Err(Errno::EAGAIN) => match state.wait_writable(deadline) {
                    Ok(true) => continue,
                    Ok(false) => {
                        state.is_inside_frame = true;
                        return Ok(Wrote::TimedOut);
                    }
                    Err(Errno::EINTR) => {
                        state.is_inside_frame = *offset > 0;
                        return Ok(Wrote::Interrupted);
                    }
                    Err(errno) => return Err(errno.into()),
                },
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            if *offset >= data.len() {
                state.is_inside_frame = false;
                self.has_sent(&mut state);
                return Ok(Wrote::All);
            }
        }
    }

    /// As [`AmqpConnection::write`] without waiting for anybody: false when there is something left to send.
    ///
    /// # Errors
    /// As [`AmqpConnection::write`].
    pub fn try_write(&self, data: &[u8], offset: &mut usize) -> io::Result<bool> {
        let Some(mut state) = self.state.try_lock() else {
            return Ok(false);
        };
        while let Some(rest) = data.get(*offset..).filter(|rest| !rest.is_empty()) {
            match state.send(rest) {
                Ok(count) => *offset += count,
                Err(Errno::EAGAIN) => {
                    // No other thread may write before the caller has come back for the rest.
                    state.is_inside_frame = *offset > 0;
                    return Ok(false);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        state.is_inside_frame = false;
        self.has_sent(&mut state);
        Ok(true)
    }

    fn has_sent(&self, state: &mut SendSide) {
        state.wrote = Instant::now();
        *self.last_python_write.lock() = state.wrote;
    }

    /// Hands what has arrived, at most [`PIECE`] bytes, to `take`: nothing at the end of the stream.
    /// Never waits; `None` when nothing has arrived.
    ///
    /// # Errors
    /// What the kernel says of the socket; `NotConnected` once the connection is closed.
    pub fn receive<T>(&self, take: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        let mut reader = self.reader.lock();
        let ReceiveSide { socket, piece } = &mut *reader;
        let socket = socket.as_ref().ok_or(Errno::ENOTCONN)?.as_raw_fd();
        piece.resize(PIECE, 0);
        loop {
            match recv(socket, piece, MsgFlags::MSG_DONTWAIT) {
                Ok(count) => return Ok(Some(take(piece.get(..count).unwrap_or_default()))),
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends and receives no more. The socket itself is its owner's to shut down.
    pub fn close(&self) {
        self.state.lock().socket = None;
        self.reader.lock().socket = None;
    }

    /// Heartbeats that were sent because the owner was silent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// When to look again; none once the connection is closed.
    fn send_if_due(&self, now: Instant) -> Option<Instant> {
        let pause = self.interval / 4;
        let Some(mut state) = self.state.try_lock() else {
            return Some(now + pause); // another thread is sending: that is as good as a heartbeat
        };
        state.socket.as_ref()?;
        let due = state.wrote + self.interval * 3 / 4;
        if now < due {
            return Some(due);
        }
        if state.is_inside_frame || now > *self.last_python_write.lock() + LONGEST_FREEZE {
            return Some(now + pause);
        }
        if self.send_heartbeat(&mut state).is_err() {
            return None; // its owner will find out and connect again
        }
        Some(now + pause)
    }

    fn send_heartbeat(&self, state: &mut MutexGuard<'_, SendSide>) -> Result<(), Errno> {
        if state.rest.is_empty() {
            state.rest = &HEARTBEAT;
        }
        match state.send(&[]) {
            Ok(_) => {
                state.wrote = Instant::now();
                self.sent.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            // The peer reads nothing: it has unread bytes of ours and hears us by them.
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl SendSide {
    /// Sends what is left of a heartbeat, then some of *data*; returns how much of *data*.
    fn send(&mut self, data: &[u8]) -> Result<usize, Errno> {
        let socket = self.socket.as_ref().ok_or(Errno::ENOTCONN)?.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while !self.rest.is_empty() {
            let count = send(socket, self.rest, flags)?;
            self.rest = self.rest.get(count..).unwrap_or_default();
        }
        if data.is_empty() {
            return Ok(0);
        }
        send(socket, data, flags)
    }

    /// Waits for room in the socket's buffer; false when *deadline* passed.
    fn wait_writable(&self, deadline: Option<Instant>) -> Result<bool, Errno> {
        let socket: BorrowedFd<'_> = self.socket.as_ref().ok_or(Errno::ENOTCONN)?.as_fd();
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up: a wait must not end before its time and be repeated in a hurry.
                let milliseconds = left.as_micros().div_ceil(1000);
                PollTimeout::from(u16::try_from(milliseconds).unwrap_or(u16::MAX))
            }
        };
        loop {
            let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
            if poll(&mut fds, timeout)? > 0 {
                return Ok(true);
            }
            if deadline.is_none_or(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
        }
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

    fn write(connection: &AmqpConnection, data: &[u8]) -> Wrote {
        let deadline = Instant::now() + PATIENCE;
        connection.write(data, &mut 0, Some(deadline)).unwrap()
    }

    #[test]
    fn a_silent_connection_gets_heartbeats() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new();
        let connection = heartbeats.add(socket, SOON).unwrap();

        let mut frames = [0; 24];
        peer.read_exact(&mut frames).unwrap();

        assert_eq!(frames, [HEARTBEAT; 3].concat()[..]);
        let deadline = Instant::now() + PATIENCE;
        while connection.sent() < 3 {
            assert!(Instant::now() < deadline, "they were not counted");
            thread::yield_now();
        }
    }

    #[test]
    fn a_connection_that_is_dropped_gets_no_more_and_lets_the_socket_go() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new();

        drop(heartbeats.add(socket, PATIENCE).unwrap());

        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "end of file");
    }

    #[test]
    fn a_closed_connection_refuses_to_write() {
        let (_peer, socket) = pair();
        let connection = Heartbeats::new().add(socket, PATIENCE).unwrap();

        connection.close();

        let refused = connection.write(b"frame", &mut 0, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn what_has_arrived_is_received_and_nothing_more_is_waited_for() {
        let (mut peer, socket) = pair();
        let connection = Heartbeats::new().add(socket, PATIENCE).unwrap();
        let receive = || connection.receive(<[u8]>::to_vec);
        assert_eq!(receive().unwrap(), None);

        peer.write_all(b"frames").unwrap();
        assert_eq!(receive().unwrap().as_deref(), Some(&b"frames"[..]));
        drop(peer);
        assert_eq!(receive().unwrap().as_deref(), Some(&b""[..]));

        connection.close();
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_writer_that_waits_keeps_no_reader_from_receiving() {
        let (mut peer, socket) = pair();
        let connection = Heartbeats::new().add(socket, PATIENCE).unwrap();
        let block = vec![b'x'; 1 << 22];
        let writer = {
            let (connection, block) = (Arc::clone(&connection), block.clone());
            thread::Builder::new()
                .spawn(move || write(&connection, &block))
                .unwrap()
        };
        let deadline = Instant::now() + PATIENCE;
        while connection.state.try_lock().is_some() {
            assert!(Instant::now() < deadline, "it never waited");
            thread::yield_now();
        }

        peer.write_all(b"frames").unwrap();
        let received = connection.receive(<[u8]>::to_vec).unwrap();

        assert_eq!(received.as_deref(), Some(&b"frames"[..]));
        peer.read_exact(&mut vec![0; block.len()]).unwrap();
        assert_eq!(writer.join().unwrap(), Wrote::All);
    }

    #[test]
    fn a_heartbeat_never_stands_inside_what_was_written_at_once() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new();
        let connection = heartbeats.add(socket, Duration::from_millis(1)).unwrap();
        // Larger than any buffer: each write is taken piece by piece, with pauses between them.
        let block: Vec<u8> = vec![b'x'; 1 << 20];
        let sent = block.clone();
        let writer = thread::Builder::new()
            .spawn(move || {
                for _ in 0..8 {
                    assert_eq!(write(&connection, &sent), Wrote::All);
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
    fn what_does_not_fit_at_once_is_sent_by_the_one_who_began() {
        let (mut peer, socket) = pair();
        let heartbeats = Heartbeats::new();
        let connection = heartbeats.add(socket, Duration::from_millis(1)).unwrap();
        let block = vec![b'x'; 1 << 22];
        let mut offset = 0;
        assert!(!connection.try_write(&block, &mut offset).unwrap());
        assert!(offset > 0);
        let reader = thread::Builder::new()
            .spawn(move || {
                let mut text = HEARTBEAT.to_vec();
                while text == HEARTBEAT {
                    peer.read_exact(&mut text).unwrap(); // of the time before the block
                }
                text.resize(1 << 22, 0);
                peer.read_exact(&mut text[HEARTBEAT.len()..]).unwrap();
                text
            })
            .unwrap();

        let deadline = Instant::now() + PATIENCE;
        let ended = connection
            .write(&block, &mut offset, Some(deadline))
            .unwrap();

        assert_eq!(ended, Wrote::All);
        assert!(reader.join().unwrap() == block, "a heartbeat got inside");
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up_at_the_deadline() {
        let (_peer, socket) = pair();
        let connection = Heartbeats::new().add(socket, PATIENCE).unwrap();
        let block = vec![0; 1 << 22];

        let deadline = Instant::now() + SOON;
        let ended = connection.write(&block, &mut 0, Some(deadline)).unwrap();

        assert_eq!(ended, Wrote::TimedOut);
    }

    #[test]
    fn the_thread_leaves_with_the_last_connection_and_comes_back_for_the_next() {
        let heartbeats = Heartbeats::new();
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
