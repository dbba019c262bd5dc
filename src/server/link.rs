//! The two ends of a connection's socket: the one that hyper reads and writes, and ours.
//!
//! Owns the socket, the TLS session on it and what is known about its readiness; shows every byte
//! received to the [`Observer`] before hyper. Never decides what is sent, and never blocks.
#![expect(unsafe_code, reason = "hyper lends uninitialised memory to read into")]

use super::framing::Observer;
use super::socket;
use hyper::rt::{Read, ReadBufCursor, Write};
use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};
use rustls::ServerConnection;
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// One socket and what is known about it. Its owner is whoever has checked the connection out, so
/// the lock is never contended.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) socket: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not a state machine"
)]
pub(super) struct State {
    /// The kernel had nothing more to read; a new readiness event clears it.
    pub(super) read_blocked: bool,
    /// The kernel took no more; a new readiness event clears it.
    pub(super) write_blocked: bool,
    /// The client has ended its half: a short read no longer means that the rest is yet to come.
    pub(super) is_half_closed: bool,
    /// The end of the stream was read, or reading failed.
    pub(super) at_end: bool,
    /// The client was told that nothing more will be sent.
    pub(super) is_shut: bool,
    pub(super) framing: Observer,
    tls: Option<Box<ServerConnection>>,
    /// While present, what hyper sends stands for bytes of this file.
    file: Option<Box<LentFile>>,
}

#[derive(Debug)]
struct LentFile {
    file: File,
    begin: u64,
    offset: u64,
    has_ended: bool,
}

/// What became of a file that was lent to a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FileSent {
    /// Bytes of it that the kernel has taken.
    pub(super) bytes: u64,
    /// The file ended behind them, or could not be read any further.
    pub(super) has_ended: bool,
}

impl Link {
    /// Starts out blocked: epoll reports what is there already when the socket is added.
    pub(super) fn new(
        socket: OwnedFd,
        framing: Observer,
        tls: Option<Box<ServerConnection>>,
    ) -> Self {
        let state = State {
            read_blocked: true,
            write_blocked: false,
            is_half_closed: false,
            at_end: false,
            is_shut: false,
            framing,
            tls,
            file: None,
        };
        Self {
            socket,
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Sends a short text past hyper, which must have nothing to send itself; what the kernel does
    /// not take at once is lost.
    pub(super) fn send_last(&self, text: &[u8]) {
        // Whether the client takes it makes no difference to what follows.
        let _ = self.state.lock().send(&self.socket, &[IoSlice::new(text)]);
    }

    /// From now on each byte that hyper sends stands for the next byte of `file`, from `offset` on.
    /// Everything before that must have been sent, and the connection must not be encrypted.
    pub(super) fn lend_file(&self, file: File, offset: u64) {
        self.state.lock().file = Some(Box::new(LentFile {
            file,
            begin: offset,
            offset,
            has_ended: false,
        }));
    }

    /// Ends what [`Link::lend_file`] began.
    pub(super) fn reclaim_file(&self) -> FileSent {
        let lent = self.state.lock().file.take();
        lent.map_or_else(FileSent::default, |lent| FileSent {
            bytes: lent.offset - lent.begin,
            has_ended: lent.has_ended,
        })
    }

    /// Tells the client that nothing more will be sent.
    pub(super) fn shut(&self) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.is_shut, true) {
            return;
        }
        if let Some(tls) = &mut state.tls {
            tls.send_close_notify();
            // If the kernel does not take it, the client sees the end without the notice.
            let _ = state.send_records(&self.socket);
        }
        socket::end_sending(&self.socket);
    }
}

impl State {
    /// True until both sides have agreed on keys.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Receives what the client sent, decrypted; 0 is the end of the stream. `WouldBlock` when
    /// nothing is there.
    fn receive<'b>(
        &mut self,
        socket: &OwnedFd,
        memory: &'b mut [MaybeUninit<u8>],
    ) -> io::Result<&'b mut [u8]> {
        let Self {
            read_blocked,
            is_half_closed,
            tls,
            ..
        } = self;
        let mut wire = Wire {
            socket,
            blocked: read_blocked,
            is_half_closed: *is_half_closed,
        };
        let Some(tls) = tls else {
            return wire.receive(memory);
        };
        // rustls takes initialised memory only.
        memory.fill(MaybeUninit::new(0));
        // SAFETY: every byte was initialised just now, and MaybeUninit<u8> has the layout of u8.
        let memory = unsafe { &mut *(std::ptr::from_mut(memory) as *mut [u8]) };
        loop {
            match io::Read::read(&mut tls.reader(), memory) {
                Ok(count) => return Ok(&mut memory[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The stream ended without the notice that TLS wants: it may have been cut.
                Err(error) => return Err(error),
            }
            let received = tls.read_tls(&mut wire);
            let processed = tls.process_new_packets();
            // Answers of the handshake, or the alert that says what was wrong.
            while tls.wants_write() {
                match tls.write_tls(&mut Sender(socket)) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.write_blocked = true;
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
            received?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// Sends from several buffers, encrypted; how much was taken.
    fn send(&mut self, socket: &OwnedFd, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let result = match &mut self.tls {
            None if self.file.is_some() => self.send_file(socket, pieces),
            None => send_plain(socket, pieces).map_err(io::Error::from),
            Some(tls) => {
                let taken = io::Write::write_vectored(&mut tls.writer(), pieces)?;
                match self.send_records(socket) {
                    // Records of before fill rustls's buffer.
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock || taken == 0 => {
                        Err(error)
                    }
                    _ => return Ok(taken),
                }
            }
        };
        match &result {
            Ok(_) => self.write_blocked = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.write_blocked = true,
            Err(_) => {}
        }
        result
    }

    /// Sends as much of the lent file as the pieces are long.
    fn send_file(&mut self, socket: &OwnedFd, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let most = pieces.iter().map(|piece| piece.len()).sum();
        let Some(lent) = &mut self.file else {
            return Ok(0);
        };
        match socket::send_file(socket, &lent.file, lent.offset, most) {
            Ok(Some(count)) => {
                lent.offset += count as u64;
                Ok(count)
            }
            Ok(None) => {
                lent.has_ended = true;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends the records that rustls has ready.
    fn send_records(&mut self, socket: &OwnedFd) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            return Ok(());
        };
        self.write_blocked = false;
        while tls.wants_write() {
            if let Err(error) = tls.write_tls(&mut Sender(socket)) {
                self.write_blocked = error.kind() == io::ErrorKind::WouldBlock;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Sends from several buffers with one call. Short ones are put together first: that costs less
/// than what the kernel does to look at a list of them.
fn send_plain(socket: &OwnedFd, pieces: &[IoSlice<'_>]) -> nix::Result<usize> {
    const SHORT: usize = 1024;

    if let [one] = pieces {
        return socket::send_one(socket, one);
    }
    let mut joined = [0; SHORT];
    let mut length = 0;
    for piece in pieces {
        let Some(room) = joined.get_mut(length..length + piece.len()) else {
            return socket::send_many(socket, pieces);
        };
        room.copy_from_slice(piece);
        length += piece.len();
    }
    socket::send_one(socket, &joined[..length])
}

/// The socket as the source of bytes; remembers when it has no more.
struct Wire<'s> {
    socket: &'s OwnedFd,
    blocked: &'s mut bool,
    is_half_closed: bool,
}

impl Wire<'_> {
    fn receive<'b>(&mut self, memory: &'b mut [MaybeUninit<u8>]) -> io::Result<&'b mut [u8]> {
        if *self.blocked {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let room = memory.len();
        let result = socket::receive(self.socket, memory);
        *self.blocked = match &result {
            // Less than asked for: the kernel has no more, the next read would only say so
            // (epoll(7)); unless the end of the stream is there, which causes no event of its own
            // once it was seen.
            Ok(bytes) => bytes.len() < room && !bytes.is_empty() && !self.is_half_closed,
            Err(error) => *error == Errno::EAGAIN,
        };
        Ok(result?)
    }
}

impl io::Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: MaybeUninit<u8> has the layout of u8, and `receive` writes initialised bytes only.
        let memory = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
        self.receive(memory).map(|bytes| bytes.len())
    }
}

/// The socket as the destination of records.
struct Sender<'s>(&'s OwnedFd);

impl io::Write for Sender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(socket::send_one(self.0, bytes)?)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(socket::send_many(self.0, pieces)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// hyper's end of a [`Link`].
#[derive(Debug)]
pub(super) struct Io(pub(super) Arc<Link>);

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let link = &*self.0;
        let mut state = link.state.lock();
        loop {
            let held = state.framing.held();
            if !held.is_empty() {
                let count = held.len().min(buffer.remaining());
                buffer.put_slice(&held[..count]);
                state.framing.release(count);
                return Poll::Ready(Ok(()));
            }
            if state.framing.refusal().is_some() {
                return Poll::Pending;
            }
            // SAFETY: `receive` only writes initialised bytes to it.
            let memory = unsafe { buffer.as_mut() };
            match state.receive(&link.socket, memory) {
                Ok([]) => {
                    state.at_end = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(bytes) => {
                    let passed = state.framing.observe(bytes);
                    if passed > 0 {
                        // SAFETY: `receive` has initialised more than that at the cursor.
                        unsafe { buffer.advance(passed) };
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    state.at_end = true;
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        pending_if_blocked(self.0.state.lock().send(&self.0.socket, pieces))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        pending_if_blocked(self.0.state.lock().send_records(&self.0.socket))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shut();
        Poll::Ready(Ok(()))
    }
}

fn pending_if_blocked<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        other => Poll::Ready(other),
    }
}
