//! The two pipes between a parent and its workers.
//!
//! *Liveness*: the parent holds the only write end and never writes, so end-of-file means that it
//! is gone, however it went. *Notices*: workers report that they are ready. Both close on exec, so
//! that commands started by either side keep neither open; a forked child closes the parent's ends
//! first thing.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bytes of one notice: the pid of the worker that is ready, in native order. Far below
/// `PIPE_BUF`, so that notices of different workers never mix.
pub const NOTICE_BYTES: usize = size_of::<i32>();

/// Both pipes, all four ends in a parent and two in a worker.
#[derive(Debug)]
pub struct Pipes {
    liveness: Arc<OwnedFd>,
    notices: Arc<OwnedFd>,
    parent_ends: Option<ParentEnds>,
}

#[derive(Debug)]
struct ParentEnds {
    _liveness: OwnedFd,
    notices: Arc<OwnedFd>,
}

impl Pipes {
    /// Makes both pipes.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub fn new() -> Result<Self, Errno> {
        let (liveness, liveness_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (notices_read, notices) = pipe2(OFlag::O_CLOEXEC)?;
        // Only the parent's end: a worker had rather wait than lose its notice.
        fcntl(&notices_read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let parent_ends = Some(ParentEnds {
            _liveness: liveness_write,
            notices: Arc::new(notices_read),
        });
        Ok(Self {
            liveness: Arc::new(liveness),
            notices: Arc::new(notices),
            parent_ends,
        })
    }

    /// Read end of the liveness pipe.
    #[must_use]
    pub fn liveness(&self) -> &Arc<OwnedFd> {
        &self.liveness
    }

    /// Write end of the notice pipe; writing to it may block.
    #[must_use]
    pub fn notices(&self) -> &Arc<OwnedFd> {
        &self.notices
    }

    /// What becomes readable when a worker has reported; `None` in a worker.
    #[must_use]
    pub fn incoming(&self) -> Option<Arc<OwnedFd>> {
        self.parent_ends
            .as_ref()
            .map(|ends| Arc::clone(&ends.notices))
    }

    /// What workers reported since the last call: the pid of one that is ready or has mutated its
    /// configuration, the negative pid of one that asks to be replaced.
    #[must_use]
    pub fn take_notices(&self) -> Vec<i32> {
        self.parent_ends
            .as_ref()
            .map_or_else(Vec::new, |ends| drain(ends.notices.as_fd()))
    }

    /// Closes what belongs to the parent.
    pub fn keep_worker_ends(&mut self) {
        self.parent_ends = None;
    }
}

fn drain(notices: BorrowedFd<'_>) -> Vec<i32> {
    let mut pids = Vec::new();
    let mut bytes = [0_u8; 64 * NOTICE_BYTES];
    loop {
        match read(notices, &mut bytes) {
            Ok(count) if count > 0 => {
                let (whole, _) = bytes[..count].as_chunks::<NOTICE_BYTES>();
                pids.extend(whole.iter().map(|pid| i32::from_ne_bytes(*pid)));
            }
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return pids, // EAGAIN: empty
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::poll_readable;
    use nix::unistd::write;
    use std::time::Instant;

    #[test]
    fn liveness_ends_with_the_last_write_end_and_not_before() {
        let mut pipes = Pipes::new().unwrap();
        let liveness = Arc::clone(pipes.liveness());
        let now = Some(Instant::now());
        assert_eq!(poll_readable(&[liveness.as_fd()], now), Ok(vec![]));

        pipes.keep_worker_ends();

        // Without a deadline: a child that another test is starting may hold a copy for a moment.
        assert_eq!(poll_readable(&[liveness.as_fd()], None), Ok(vec![0]));
        assert_eq!(read(&*liveness, &mut [0]), Ok(0), "end-of-file");
    }

    #[test]
    fn notices_are_taken_whole_in_order_and_once() {
        let pipes = Pipes::new().unwrap();
        let pids: Vec<i32> = (1000..1200).collect();
        for pid in &pids {
            write(&**pipes.notices(), &pid.to_ne_bytes()).unwrap();
        }

        assert_eq!(pipes.take_notices(), pids);
        assert!(pipes.take_notices().is_empty());
    }

    #[test]
    fn every_end_closes_on_exec() {
        let pipes = Pipes::new().unwrap();
        let ends = [pipes.liveness().as_fd(), pipes.notices().as_fd()];
        for end in ends
            .into_iter()
            .chain(pipes.incoming().iter().map(AsFd::as_fd))
        {
            assert_eq!(fcntl(end, FcntlArg::F_GETFD), Ok(nix::libc::FD_CLOEXEC));
        }
    }

    #[test]
    fn a_worker_has_nothing_to_read() {
        let mut pipes = Pipes::new().unwrap();

        pipes.keep_worker_ends();

        assert!(pipes.incoming().is_none());
        assert!(pipes.take_notices().is_empty());
    }
}
