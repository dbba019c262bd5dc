//! The two ends of a connection's socket: the one that hyper reads and writes, and ours.
//!
//! Owns the socket and what is known about its readiness. Never decides what is sent.
#![expect(unsafe_code, reason = "hyper lends uninitialised memory to read into")]

use super::framing::Observer;
use super::socket;
use hyper::rt::{Read, ReadBufCursor, Write};
use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};
use std::io::{self, IoSlice};
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
}

impl Link {
    /// Starts out blocked: epoll reports what is there already when the socket is added.
    pub(super) fn new(socket: OwnedFd, framing: Observer) -> Self {
        let state = State {
            read_blocked: true,
            write_blocked: false,
            is_half_closed: false,
            at_end: false,
            is_shut: false,
            framing,
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
        let _ = socket::send_one(&self.socket, text);
    }

    /// Tells the client that nothing more will be sent.
    pub(super) fn shut(&self) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.is_shut, true) {
            socket::end_sending(&self.socket);
        }
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
            let room = buffer.remaining();
            let held = state.framing.held();
            if !held.is_empty() {
                let count = held.len().min(room);
                buffer.put_slice(&held[..count]);
                state.framing.release(count);
                return Poll::Ready(Ok(()));
            }
            if state.read_blocked || state.framing.refusal().is_some() {
                return Poll::Pending;
            }
            // SAFETY: `receive` only writes initialised bytes to it.
            let memory = unsafe { buffer.as_mut() };
            match socket::receive(&link.socket, memory) {
                Ok([]) => {
                    state.at_end = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(bytes) => {
                    // Less than asked for: the kernel has no more, the next read would only say so
                    // (epoll(7)); unless the end of the stream is there, which causes no event of
                    // its own once it was seen.
                    state.read_blocked = bytes.len() < room && !state.is_half_closed;
                    let passed = state.framing.observe(bytes);
                    if passed > 0 {
                        // SAFETY: the kernel has initialised more than that at the cursor.
                        unsafe { buffer.advance(passed) };
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(Errno::EAGAIN) => state.read_blocked = true,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    state.at_end = true;
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }
}

impl Io {
    fn sent(&self, result: nix::Result<usize>) -> Poll<io::Result<usize>> {
        let mut state = self.0.state.lock();
        match result {
            Ok(count) => {
                state.write_blocked = false;
                Poll::Ready(Ok(count))
            }
            Err(Errno::EAGAIN) => {
                state.write_blocked = true;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl Write for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sent(socket::send_one(&self.0.socket, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.sent(match pieces {
            [one] => socket::send_one(&self.0.socket, one),
            _ => socket::send_many(&self.0.socket, pieces),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shut();
        Poll::Ready(Ok(()))
    }
}
