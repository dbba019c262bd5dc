//! Where the lines of the native access log go: a file or standard output.
//!
//! Owns the descriptor and what happens when it cannot be written. Each line is one write(2) with
//! `O_APPEND`: lines of several processes do not mix, and none is lost with a process that dies, for
//! the kernel has it. Never formats a line. A log that fails never fails a request.
#![expect(unsafe_code, reason = "the local time is asked of the C library")]

use super::format::LocalTime;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{dup3_raw, write};
use parking_lot::Mutex;
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How long a line waits for a pipe whose reader is slow, in milliseconds.
const LONGEST_WAIT: u16 = 1000;

/// What has happened to the lines, for the one who is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The line is with the kernel.
    Yes,
    /// It is, after that many others had been lost.
    Again(u64),
    /// It is lost, for the first time since the last one that was not.
    Failed(Errno),
    /// It is lost, as the one before it.
    StillFailing,
}

/// See the module's text.
#[derive(Debug)]
pub struct LogFile {
    /// `None` for standard output.
    path: Option<PathBuf>,
    file: OwnedFd,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Lines lost since the last one that was written.
    lost: u64,
    /// The last line was written in part: the next one must not continue it.
    is_torn: bool,
}

impl LogFile {
    /// Opens a file for appending, made if need be; `-` is standard output.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (path, file) = if path == Path::new("-") {
            (None, io::stdout().as_fd().try_clone_to_owned()?)
        } else {
            (Some(path.to_owned()), open_file(path)?)
        };
        Ok(Self {
            path,
            file,
            trouble: Mutex::default(),
        })
    }

    /// Opens the file again by its name: it was renamed, to be rotated. The descriptor keeps its
    /// number, so a thread that writes at the same time writes to one file or to the other.
    ///
    /// # Errors
    /// What open(2) says; the old file is kept then.
    pub fn reopen(&self) -> io::Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let fresh = open_file(path)?;
        // SAFETY: the number is that of `self.file`, which stays open and owned by it.
        let copy = unsafe { dup3_raw(&fresh, self.file.as_raw_fd(), OFlag::O_CLOEXEC) }?;
        // It is `self.file` again, whose owner closes it.
        let _ = copy.into_raw_fd();
        Ok(())
    }

    /// Writes one line, its end included.
    pub fn write_line(&self, line: &[u8]) -> Written {
        match write(&self.file, line) {
            Ok(count) if count == line.len() => self.note_success(),
            first => self.write_rest(line, first),
        }
    }

    fn note_success(&self) -> Written {
        let mut trouble = self.trouble.lock();
        match std::mem::take(&mut trouble.lost) {
            0 => Written::Yes,
            lost => Written::Again(lost),
        }
    }

    /// The kernel did not take the line at once.
    fn write_rest(&self, line: &[u8], first: nix::Result<usize>) -> Written {
        let mut trouble = self.trouble.lock();
        let mut done = 0;
        let mut result = first;
        let errno = loop {
            match result {
                Ok(0) => break Errno::EIO,
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
                    if poll(&mut fds, PollTimeout::from(LONGEST_WAIT)) == Ok(0) {
                        break Errno::EAGAIN;
                    }
                }
                Err(errno) => break errno,
            }
            if done == line.len() {
                trouble.is_torn = false;
                return match std::mem::take(&mut trouble.lost) {
                    0 => Written::Yes,
                    lost => Written::Again(lost),
                };
            }
            if done == 0 && trouble.is_torn {
                // Ends what is left of a line that was cut.
                match write(&self.file, b"\n") {
                    Ok(_) => trouble.is_torn = false,
                    Err(errno) => break errno,
                }
            }
            result = write(&self.file, &line[done..]);
        };
        trouble.is_torn |= done > 0;
        trouble.lost += 1;
        if trouble.lost == 1 {
            Written::Failed(errno)
        } else {
            Written::StillFailing
        }
    }
}

fn open_file(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::from_bits_truncate(0o666))?)
}

/// The local time; the C library is asked once a second on each thread.
#[must_use]
pub fn local_time() -> LocalTime {
    thread_local! {
        static KNOWN: Cell<(libc::time_t, LocalTime)> = const {
            Cell::new((-1, LocalTime { year: 1970, month: 1, day: 1, hour: 0, minute: 0, second: 0, offset_minutes: 0 }))
        };
    }
    let now = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).map_or(0, |time| time.tv_sec());
    let (second, known) = KNOWN.get();
    if second == now {
        return known;
    }
    // SAFETY: all fields are numbers or a pointer that may be null.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals; localtime_r keeps neither.
    let is_known = unsafe { !libc::localtime_r(&raw const now, &raw mut parts).is_null() };
    if !is_known {
        return known;
    }
    let small = |number: libc::c_int| u8::try_from(number).unwrap_or(0);
    let fresh = LocalTime {
        year: parts.tm_year + 1900,
        month: usize::from(small(parts.tm_mon)) + 1,
        day: small(parts.tm_mday),
        hour: small(parts.tm_hour),
        minute: small(parts.tm_min),
        second: small(parts.tm_sec),
        offset_minutes: i32::try_from(parts.tm_gmtoff / 60).unwrap_or(0),
    };
    KNOWN.set((now, fresh));
    fresh
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("osloxide-log-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn lines_are_appended_and_follow_a_renamed_file() {
        let directory = directory("rename");
        let path = directory.join("access.log");
        std::fs::write(&path, "before\n").unwrap();
        let log = LogFile::open(&path).unwrap();

        assert_eq!(log.write_line(b"one\n"), Written::Yes);
        std::fs::rename(&path, directory.join("old.log")).unwrap();
        assert_eq!(log.write_line(b"two\n"), Written::Yes);
        log.reopen().unwrap();
        assert_eq!(log.write_line(b"three\n"), Written::Yes);

        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        assert_eq!(read("old.log"), "before\none\ntwo\n");
        assert_eq!(read("access.log"), "three\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_once_and_its_end_with_the_number_of_lines() {
        let log = LogFile::open(Path::new("/dev/full")).unwrap();

        assert_eq!(log.write_line(b"one\n"), Written::Failed(Errno::ENOSPC));
        assert_eq!(log.write_line(b"two\n"), Written::StillFailing);
        let log = LogFile {
            file: open_file(Path::new("/dev/null")).unwrap(),
            ..log
        };
        assert_eq!(log.write_line(b"three\n"), Written::Again(2));
        assert_eq!(log.write_line(b"four\n"), Written::Yes);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_and_keeps_the_old_one() {
        let directory = directory("gone");
        let path = directory.join("access.log");
        let log = LogFile::open(&path).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();

        assert!(log.reopen().is_err());
        assert_eq!(log.write_line(b"kept\n"), Written::Yes);
        assert!(LogFile::open(&path).is_err());
    }
}
