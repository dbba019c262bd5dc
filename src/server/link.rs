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
    /// The end of the stream was read.
    pub(super) at_end: bool,
    /// Bytes were sent since the flag was last cleared.
    pub(super) has_sent: bool,
    /// Bytes were received since the flag was last cleared.
    pub(super) has_received: bool,
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
            has_sent: false,
            has_received: false,
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
        if state.read_blocked {
            return Poll::Pending;
        }
        let room = buffer.remaining();
        // SAFETY: `receive` only writes initialised bytes to it.
        let memory = unsafe { buffer.as_mut() };
        let received = loop {
            match socket::receive(&link.socket, memory) {
                Err(Errno::EINTR) => {}
                other => break other.map(|bytes| bytes.len()),
            }
        };
        match received {
            Ok(count) => {
                state.at_end |= count == 0;
                state.has_received |= count > 0;
                // Less than asked for: the kernel's buffer is empty, the next read would only say
                // so (epoll(7)). The end of the stream causes no event of its own once seen.
                state.read_blocked = count < room && count > 0 && !state.is_half_closed;
                // SAFETY: the kernel has initialised `count` bytes at the cursor.
                unsafe { buffer.advance(count) };
                Poll::Ready(Ok(()))
            }
            Err(Errno::EAGAIN) => {
                state.read_blocked = true;
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl Io {
    fn sent(&self, result: nix::Result<usize>) -> Poll<io::Result<usize>> {
        let mut state = self.0.state.lock();
        match result {
            Ok(count) => {
                state.has_sent = true;
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
        socket::end_sending(&self.0.socket);
        Poll::Ready(Ok(()))
    }
}
