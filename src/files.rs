//! Reads files that an operator names, which may be pipes.
//!
//! Owns how long a pipe is waited for, and how long a file may be. Knows nothing of what is in one.
//! Rules: open(2) and read(2) of a FIFO, fifo(7).

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a pipe in a file's place may take to give what it has.
const PIPE_WAIT: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 10_000 });
/// The longest file that is read. A bundle of all public authorities has a quarter of a MiB.
const LONGEST_FILE: usize = 16 << 20;

/// Why a file was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// It had nothing to read for as long as is waited.
    #[error("is a pipe or a terminal that gave no end in {PIPE_WAIT:?}")]
    Silent,
    #[error("is longer than {} MiB", LONGEST_FILE >> 20)]
    TooLong,
}

/// The bytes of a file. A pipe may be a file too (`--keyfile <(COMMAND)`). A thread that waited in open(2)
/// or read(2) for a writer that never comes could not be stopped.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Unread> {
    read_within(path, PIPE_WAIT)
}

/// A pipe's writer has *wait* in all.
fn read_within(path: &Path, wait: Duration) -> Result<Vec<u8>, Unread> {
    let mut file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let until = Instant::now() + wait;
    let mut bytes = Vec::new();
    let mut piece = [0; 16_384];
    loop {
        // A pipe that no writer has opened yet is not readable, though read(2) would tell its end.
        let left = until.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(file.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(Unread::Silent),
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        }
        match file.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(count) if bytes.len() + count > LONGEST_FILE => return Err(Unread::TooLong),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::thread;

    fn pipe(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("{name}.{}", std::process::id()));
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        path
    }

    #[test]
    fn a_pipe_that_nothing_writes_to_is_given_up() {
        let path = pipe("silent");
        let read = read_within(&path, Duration::from_millis(1));
        assert!(matches!(read, Err(Unread::Silent)), "{read:?}");
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_pipe_whose_writer_comes_later_is_read_to_its_end() {
        let path = pipe("late");
        let late = path.clone();
        let writer = thread::Builder::new()
            .name("late-writer".to_owned())
            .spawn(move || fs::write(late, vec![b'x'; 100_000]))
            .unwrap();
        let read = read_within(&path, Duration::from_secs(60)).unwrap();
        assert_eq!(read.len(), 100_000);
        writer.join().unwrap().unwrap();
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_without_end_is_given_up() {
        let read = read_within(Path::new("/dev/zero"), Duration::from_secs(60));
        assert!(matches!(read, Err(Unread::TooLong)), "{read:?}");
    }
}
