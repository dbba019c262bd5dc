//! Heartbeats of AMQP connections, written while nobody else can.
//!
//! Owns the writing side of sockets that are lent to it, one lock each, and one thread that sends a
//! heartbeat frame on those that have been silent for too long. An endpoint that holds the
//! interpreter's lock for longer than the broker waits stops every Python thread, but not this one.
//! Never opens or shuts down a connection, reads only when its owner asks for what has arrived, and
//! knows no other frame.
//!
//! Rules: AMQP 0-9-1 section 4.2.7 (a heartbeat may stand between any two frames, never inside one).
//! A call of [`Line::write`] therefore carries whole frames, and the lock is let go of before the
//! caller waits for its interpreter: a writer that cannot go on must not stop the heart.

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

use crate::pool::start_thread;

/// Type 8, channel 0, empty payload, frame end.
const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];
/// How long the interpreter may be stuck until the heart gives up and lets the broker take its
/// messages back: a process that computes is kept alive, one that hangs is not.
pub const LONGEST_FREEZE: Duration = Duration::from_secs(300);

/// The most that is read at a time.
pub const PIECE: usize = 64 * 1024;

/// Sends heartbeats for the lines that were made with it.
pub struct Heart {
    shared: Arc<Shared>,
}

struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
    pulse: Arc<Mutex<Instant>>,
}

#[derive(Default)]
struct Lines {
    lines: Vec<Weak<Line>>,
    has_thread: bool,
}

/// One connection: its writing side, and a look at what has arrived.
pub struct Line {
    state: Mutex<State>,
    /// A lock of its own: a writer that waits for the peer keeps nobody from reading.
    reader: Mutex<Reader>,
    /// Heartbeats that the heart has sent.
    beats: AtomicU64,
    interval: Duration,
    /// When an owner of any line of the process last sent something: proof that Python runs.
    pulse: Arc<Mutex<Instant>>,
}

struct Reader {
    socket: Option<Arc<OwnedFd>>,
    /// [`PIECE`] bytes, from the first read on.
    piece: Vec<u8>,
}

struct State {
    socket: Option<Arc<OwnedFd>>,
    /// What the kernel did not take of a heartbeat; goes before anything else.
    rest: &'static [u8],
    /// A writer was interrupted inside a frame.
    is_inside_frame: bool,
    /// When something was sent last, heartbeats included.
    wrote: Instant,
}

/// How a call of [`Line::write`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrote {
    /// Everything was taken by the kernel.
    All,
    /// A signal arrived; call again for the rest.
    Interrupted,
    /// The deadline passed. The connection is of no use any more: a frame may be half sent.
    TimedOut,
}

impl fmt::Debug for Heart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heart").finish_non_exhaustive()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("beats", &self.beats())
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl Default for Heart {
    fn default() -> Self {
        Self::new()
    }
}

impl Heart {
    /// Makes a heart without lines; its thread exists only while there are some.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                lines: Mutex::new(Lines::default()),
                changed: Condvar::new(),
                pulse: Arc::new(Mutex::new(Instant::now())),
            }),
        }
    }

    /// Takes over the writing side of *socket*, on which the peer expects something at least every
    /// *interval*. It beats until the line is dropped or closed.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn line(&self, socket: OwnedFd, interval: Duration) -> io::Result<Arc<Line>> {
        let now = Instant::now();
        let socket = Arc::new(socket);
        let line = Arc::new(Line {
            reader: Mutex::new(Reader {
                socket: Some(Arc::clone(&socket)),
                piece: Vec::new(),
            }),
            state: Mutex::new(State {
                socket: Some(socket),
                rest: &[],
                is_inside_frame: false,
                wrote: now,
            }),
            beats: AtomicU64::new(0),
            interval,
            pulse: Arc::clone(&self.shared.pulse),
        });
        *self.shared.pulse.lock() = now;
        let mut lines = self.shared.lines.lock();
        if !lines.has_thread {
            let shared = Arc::clone(&self.shared);
            start_thread("amqp-heart".to_owned(), move || shared.run())?;
            lines.has_thread = true;
        }
        lines.lines.push(Arc::downgrade(&line));
        drop(lines);
        self.shared.changed.notify_all();
        Ok(line)
    }
}

impl Shared {
    fn run(&self) {
        let mut lines = self.lines.lock();
        loop {
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            lines.lines.retain(|line| {
                let Some(line) = line.upgrade() else {
                    return false;
                };
                let Some(due) = line.beat_if_due(now) else {
                    return false;
                };
                next = Some(next.map_or(due, |next| next.min(due)));
                true
            });
            let Some(next) = next else {
                lines.has_thread = false;
                return;
            };
            self.changed.wait_until(&mut lines, next);
        }
    }
}

impl Line {
    /// Sends *data*, which is whole frames, from *offset* on, and moves *offset*. Waits for the peer
    /// until *deadline*; for ever without one.
    ///
    /// # Errors
    /// What the kernel says of the socket; `NotConnected` once the line is closed.
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

    /// As [`Line::write`] without waiting for anybody: false when there is something left to send.
    ///
    /// # Errors
    /// As [`Line::write`].
    pub fn try_write(&self, data: &[u8], offset: &mut usize) -> io::Result<bool> {
        let Some(mut state) = self.state.try_lock() else {
            return Ok(false);
        };
        while let Some(rest) = data.get(*offset..).filter(|rest| !rest.is_empty()) {
            match state.send(rest) {
                Ok(count) => *offset += count,
                Err(Errno::EAGAIN) => {
                    // Nobody else may write before the caller has come back for the rest.
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

    fn has_sent(&self, state: &mut State) {
        state.wrote = Instant::now();
        *self.pulse.lock() = state.wrote;
    }

    /// Hands what has arrived, at most [`PIECE`] bytes, to `take`: nothing at the end of the stream.
    /// Never waits; `None` when nothing has arrived.
    ///
    /// # Errors
    /// What the kernel says of the socket; `NotConnected` once the line is closed.
    pub fn receive<T>(&self, take: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        let mut reader = self.reader.lock();
        let Reader { socket, piece } = &mut *reader;
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
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// When to look again; none once the line is closed.
    fn beat_if_due(&self, now: Instant) -> Option<Instant> {
        let pause = self.interval / 4;
        let Some(mut state) = self.state.try_lock() else {
            return Some(now + pause); // somebody is sending: that is as good as a heartbeat
        };
        state.socket.as_ref()?;
        let due = state.wrote + self.interval * 3 / 4;
        if now < due {
            return Some(due);
        }
        if state.is_inside_frame || now > *self.pulse.lock() + LONGEST_FREEZE {
            return Some(now + pause);
        }
        if self.beat(&mut state).is_err() {
            return None; // its owner will find out and connect anew
        }
        Some(now + pause)
    }

    fn beat(&self, state: &mut MutexGuard<'_, State>) -> Result<(), Errno> {
        if state.rest.is_empty() {
            state.rest = &HEARTBEAT;
        }
        match state.send(&[]) {
            Ok(_) => {
                state.wrote = Instant::now();
                self.beats.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            // The peer reads nothing: it has unread bytes of ours and hears us by them.
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl State {
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

    fn write(line: &Line, data: &[u8]) -> Wrote {
        let deadline = Instant::now() + PATIENCE;
        line.write(data, &mut 0, Some(deadline)).unwrap()
    }

    #[test]
    fn a_silent_line_beats_by_itself() {
        let (mut peer, socket) = pair();
        let heart = Heart::new();
        let line = heart.line(socket, SOON).unwrap();

        let mut frames = [0; 24];
        peer.read_exact(&mut frames).unwrap();

        assert_eq!(frames, [HEARTBEAT; 3].concat()[..]);
        let deadline = Instant::now() + PATIENCE;
        while line.beats() < 3 {
            assert!(Instant::now() < deadline, "they were not counted");
            thread::yield_now();
        }
    }

    #[test]
    fn a_line_that_is_dropped_beats_no_more_and_lets_the_socket_go() {
        let (mut peer, socket) = pair();
        let heart = Heart::new();

        drop(heart.line(socket, PATIENCE).unwrap());

        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "end of file");
    }

    #[test]
    fn a_closed_line_refuses_to_write() {
        let (_peer, socket) = pair();
        let line = Heart::new().line(socket, PATIENCE).unwrap();

        line.close();

        let refused = line.write(b"frame", &mut 0, None).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn what_has_arrived_is_received_and_nobody_waits_for_more() {
        let (mut peer, socket) = pair();
        let line = Heart::new().line(socket, PATIENCE).unwrap();
        let receive = || line.receive(<[u8]>::to_vec);
        assert_eq!(receive().unwrap(), None);

        peer.write_all(b"frames").unwrap();
        assert_eq!(receive().unwrap().as_deref(), Some(&b"frames"[..]));
        drop(peer);
        assert_eq!(receive().unwrap().as_deref(), Some(&b""[..]));

        line.close();
        assert_eq!(receive().unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_writer_that_waits_keeps_nobody_from_receiving() {
        let (mut peer, socket) = pair();
        let line = Heart::new().line(socket, PATIENCE).unwrap();
        let block = vec![b'x'; 1 << 22];
        let writer = {
            let (line, block) = (Arc::clone(&line), block.clone());
            thread::Builder::new()
                .spawn(move || write(&line, &block))
                .unwrap()
        };
        let deadline = Instant::now() + PATIENCE;
        while line.state.try_lock().is_some() {
            assert!(Instant::now() < deadline, "it never waited");
            thread::yield_now();
        }

        peer.write_all(b"frames").unwrap();
        let received = line.receive(<[u8]>::to_vec).unwrap();

        assert_eq!(received.as_deref(), Some(&b"frames"[..]));
        peer.read_exact(&mut vec![0; block.len()]).unwrap();
        assert_eq!(writer.join().unwrap(), Wrote::All);
    }

    #[test]
    fn a_heartbeat_never_stands_inside_what_was_written_at_once() {
        let (mut peer, socket) = pair();
        let heart = Heart::new();
        let line = heart.line(socket, Duration::from_millis(1)).unwrap();
        // Larger than any buffer: each write is taken piece by piece, with pauses between them.
        let block: Vec<u8> = vec![b'x'; 1 << 20];
        let sent = block.clone();
        let writer = thread::Builder::new()
            .spawn(move || {
                for _ in 0..8 {
                    assert_eq!(write(&line, &sent), Wrote::All);
                    thread::yield_now();
                }
                drop(line);
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
        let heart = Heart::new();
        let line = heart.line(socket, Duration::from_millis(1)).unwrap();
        let block = vec![b'x'; 1 << 22];
        let mut offset = 0;
        assert!(!line.try_write(&block, &mut offset).unwrap());
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
        let ended = line.write(&block, &mut offset, Some(deadline)).unwrap();

        assert_eq!(ended, Wrote::All);
        assert!(reader.join().unwrap() == block, "a heartbeat got inside");
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up_at_the_deadline() {
        let (_peer, socket) = pair();
        let line = Heart::new().line(socket, PATIENCE).unwrap();
        let block = vec![0; 1 << 22];

        let deadline = Instant::now() + SOON;
        let ended = line.write(&block, &mut 0, Some(deadline)).unwrap();

        assert_eq!(ended, Wrote::TimedOut);
    }

    #[test]
    fn the_thread_leaves_with_the_last_line_and_comes_back_for_the_next() {
        let heart = Heart::new();
        let (_first_peer, socket) = pair();
        drop(heart.line(socket, SOON).unwrap());
        let deadline = Instant::now() + PATIENCE;
        while heart.shared.lines.lock().has_thread {
            assert!(Instant::now() < deadline, "the thread stayed");
            thread::yield_now();
        }

        let (mut peer, socket) = pair();
        let _line = heart.line(socket, SOON).unwrap();

        peer.read_exact(&mut [0; 8]).unwrap();
    }
}
