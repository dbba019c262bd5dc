//! System calls on one connected socket.
//!
//! Owns the calls that safe wrappers do not offer without a copy or a second call. Never blocks
//! except in [`wait`]. Rules come from epoll(7) and socket(7).
#![expect(unsafe_code, reason = "SIOCOUTQ has no safe wrapper")]

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{
    MsgFlags, Shutdown, SockType, getsockopt, recv, send, sendmsg, setsockopt, shutdown, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal};
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, getsockname};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// One connected socket.
pub(super) type Socket = OwnedFd;

/// Descriptors that are left to the application: an eighth of the limit, within these bounds.
const LEAST_RESERVE: usize = 64;
const MOST_RESERVE: usize = 1024;

/// How long accepting can block when somebody else has made the listener blocking again.
const LONGEST_ACCEPT: TimeVal = TimeVal::new(0, 1000);

/// Checks that the descriptor is a listening stream socket and makes it non-blocking.
///
/// The flag is shared with every copy of the descriptor, also in other processes, and one of them
/// may clear it at any time: `socket.dup()` of a blocking Python socket does. A thread that then
/// finds that another worker was quicker would sleep in accept until a client connects, with the
/// requests of its other connections unread. The receive timeout bounds that.
pub(super) fn check_listener(listener: &OwnedFd) -> io::Result<()> {
    if getsockopt(listener, sockopt::SockType)? != SockType::Stream
        || !getsockopt(listener, sockopt::AcceptConn)?
    {
        return Err(Errno::EINVAL.into());
    }
    let flags = OFlag::from_bits_retain(fcntl(listener, FcntlArg::F_GETFL)?);
    fcntl(listener, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    setsockopt(listener, sockopt::ReceiveTimeout, &LONGEST_ACCEPT)?;
    // Connections inherit it: answers go out whole, and the last piece of one must not wait for an
    // acknowledgement (Nagle). Fails for anything but TCP, which has no such delay.
    let _ = setsockopt(listener, sockopt::TcpNoDelay, &true);
    Ok(())
}

/// The local address of a listener, where it is the same for all of its connections: a TCP socket
/// that is bound to one address.
pub(super) fn fixed_address(listener: &OwnedFd) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(getsockname(listener).ok()?).ok()?;
    (!address.ip().is_unspecified()).then_some(address)
}

/// How many connections this process can hold: its limit of open files (`RLIMIT_NOFILE`), less those
/// that are open now and a reserve for what the application opens while it answers.
pub(super) fn room_for_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        });
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let reserve = (limit / 8).clamp(LEAST_RESERVE, MOST_RESERVE);
    limit.saturating_sub(open + reserve).max(1)
}

/// One accepted connection.
#[derive(Debug)]
pub(super) struct Accepted {
    /// Non-blocking and closed on exec.
    pub(super) socket: Socket,
    /// The client's address; `None` for anything but TCP.
    pub(super) peer: Option<SocketAddr>,
}

/// Accepts one connection.
pub(super) fn accept(listener: &OwnedFd) -> nix::Result<Accepted> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) =
        acceptfrom_with(listener, flags).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    Ok(Accepted {
        socket,
        peer: peer.and_then(|peer| SocketAddr::try_from(peer).ok()),
    })
}

/// True where a listener has a connection that may be accepted.
pub(super) fn has_connection(listener: &OwnedFd) -> bool {
    let mut listener = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut listener, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// The address at which a connection of TCP arrived.
pub(super) fn local_address(socket: &Socket) -> Option<SocketAddr> {
    SocketAddr::try_from(getsockname(socket).ok()?).ok()
}

/// Receives what has come; 0 is the end of the stream.
pub(super) fn receive(socket: &Socket, buffer: &mut [u8]) -> nix::Result<usize> {
    recv(socket.as_raw_fd(), buffer, MsgFlags::empty())
}

/// Receives what has come into memory that need not have been written before.
/// Returns what was written.
pub(super) fn receive_into<'m>(
    socket: &Socket,
    memory: &'m mut [MaybeUninit<u8>],
) -> nix::Result<&'m mut [u8]> {
    match rustix::net::recv(socket, memory, RecvFlags::empty()) {
        Ok(((written, _), _)) => Ok(written),
        Err(errno) => Err(Errno::from_raw(errno.raw_os_error())),
    }
}

/// Bytes that have come and were not received (tcp(7), `SIOCINQ`); 0 where the kernel does not say.
pub(super) fn waiting(socket: &Socket) -> u64 {
    rustix::io::ioctl_fionread(socket).unwrap_or(0)
}

/// Looks at what has come without taking it; 0 is the end of the stream.
pub(super) fn peek(socket: &Socket, buffer: &mut [u8]) -> nix::Result<usize> {
    recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_PEEK)
}

/// Bytes that were given to the kernel and that the client has not confirmed (tcp(7), `SIOCOUTQ`);
/// 0 where the kernel does not say.
pub(super) fn unconfirmed(socket: impl AsFd) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the place it is given. TIOCOUTQ is SIOCOUTQ.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result == 0 {
        u64::try_from(count).unwrap_or(0)
    } else {
        0
    }
}

/// Sends from one buffer, without SIGPIPE.
pub(super) fn send_one(socket: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
}

/// Sends from several buffers with one call, without SIGPIPE.
pub(super) fn send_many(socket: &OwnedFd, pieces: &[IoSlice<'_>]) -> nix::Result<usize> {
    sendmsg::<()>(
        socket.as_raw_fd(),
        pieces,
        &[],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
}

/// Sends up to `most` bytes of a file without copying them, or with a copy where its file system
/// knows no other way. `None` when the file has no byte there, or none that could be read.
///
/// sendfile(2) knows no `MSG_NOSIGNAL`: SIGPIPE must be blocked or ignored, as in the pool's threads.
pub(super) fn send_file(
    socket: &OwnedFd,
    file: &File,
    offset: u64,
    most: usize,
) -> nix::Result<Option<usize>> {
    let Ok(mut position) = i64::try_from(offset) else {
        return Ok(None);
    };
    match sendfile64(socket, file, Some(&mut position), most) {
        Ok(0) | Err(Errno::EIO | Errno::EOVERFLOW | Errno::ENOMEM) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            let mut buffer = [0; 16 << 10];
            let room = most.min(buffer.len());
            match file.read_at(&mut buffer[..room], offset) {
                Ok(0) | Err(_) => Ok(None),
                Ok(count) => send_one(socket, &buffer[..count]).map(Some),
            }
        }
        Err(errno) => Err(errno),
    }
}

/// Tells the client that nothing more will be sent.
pub(super) fn end_sending(socket: &OwnedFd) {
    // Fails only when the connection is gone already.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
}

/// Makes the coming close reset the connection instead of ending it in order, or takes that back.
pub(super) fn reset_on_close(socket: &OwnedFd, resets: bool) {
    let linger = libc::linger {
        l_onoff: resets.into(),
        l_linger: 0,
    };
    // Fails only when the connection is gone already.
    let _ = setsockopt(socket, sockopt::Linger, &linger);
}

/// Blocks until the socket is ready for `events` or `limit` has passed; false on the latter.
pub(super) fn wait(
    socket: &OwnedFd,
    events: PollFlags,
    limit: Option<Duration>,
) -> io::Result<bool> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline
            .map(|deadline| TimeSpec::from(deadline.saturating_duration_since(Instant::now())));
        match ppoll(&mut [PollFd::new(socket.as_fd(), events)], left, None) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// True once the kernel knows that the connection is dead in both directions.
pub(super) fn is_dead(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(count) if count > 0)
        && fds[0].revents().is_some_and(|seen| {
            seen.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL)
        })
}
