//! Where the lines of the native access log go: a file or standard output.
//!
//! Owns the descriptor, the lines that wait to be written, and what happens when they cannot be. Lines
//! are put off only while the server has other requests to see to, and for [`LONGEST_DELAY`] at most;
//! then all of them are one write(2) with `O_APPEND`, so that lines of several processes do not mix.
//! What is a pipe gets no more than `PIPE_BUF` bytes at a time, for the same reason (pipe(7)). Never
//! formats a line. A log that fails never fails a request, and one that is not read (a pipe, a terminal,
//! the socket of a service manager) holds a thread for a second at most: lines are lost then.
#![expect(unsafe_code, reason = "the local time is asked of the C library")]

use super::format::LocalTime;
use crate::locks::{Mutex, MutexGuard, PerProcess, held_by_forks};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{dup3_raw, write};
use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the lines of one batch wait for a pipe whose reader is slow.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long a line may be put off while other requests are seen to.
pub const LONGEST_DELAY: Duration = Duration::from_millis(5);
/// So many bytes are written at once, however busy the server is.
const FULL: usize = 32 << 10;
/// Above so many bytes, for which a disk that stands still is to blame, threads wait for it.
const MOST_BYTES: usize = 1 << 20;

/// What has happened to the lines, for the one who is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Nothing that anything should be said about.
    Yes,
    /// Lines are with the kernel again, after that many others had been lost.
    Again(u64),
    /// Lines are lost, for the first time since the last one that was not.
    Failed(Errno),
}

/// See the module's text.
#[derive(Debug)]
pub struct LogFile {
    /// `None` for standard output.
    path: Option<PathBuf>,
    file: OwnedFd,
    /// Most bytes of one write(2).
    most: AtomicUsize,
    /// A child has none of its parent's, which are written there.
    lines: PerProcess<Lines>,
}

/// The lines of one process.
#[derive(Debug, Default)]
struct Lines {
    waiting: Mutex<Vec<u8>>,
    /// Milliseconds of the kernel's tick when the first of the lines that wait came; 0 without any.
    since: AtomicU64,
    writer: Mutex<Writer>,
}

/// Held by the thread that writes.
#[derive(Debug, Default)]
struct Writer {
    /// What it writes; kept to spare allocations.
    batch: Vec<u8>,
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
        keep_local_time_free()?;
        let (path, file) = if path == Path::new("-") {
            (None, standard_output()?)
        } else {
            (Some(path.to_owned()), open_file(path)?)
        };
        let most = most_at_once(&file);
        Ok(Self {
            path,
            file,
            most: AtomicUsize::new(most),
            lines: PerProcess::new(Lines::default)?,
        })
    }

    /// Opens the file again by its name: it was renamed, to be rotated. Lines that came before are
    /// written to the old one.
    ///
    /// # Errors
    /// What open(2) says; the old file is kept then.
    pub fn reopen(&self) -> io::Result<Written> {
        let Some(path) = &self.path else {
            return Ok(Written::Yes);
        };
        let fresh = open_file(path)?;
        let mut writer = self.lines.get().writer.lock();
        let written = self.write_waiting(&mut writer);
        self.most.store(most_at_once(&fresh), Ordering::Relaxed);
        // SAFETY: the number is that of `self.file`, which stays open and owned by it.
        let copy = unsafe { dup3_raw(&fresh, self.file.as_raw_fd(), OFlag::O_CLOEXEC) }?;
        // It is `self.file` again, whose owner closes it.
        let _ = copy.into_raw_fd();
        Ok(written)
    }

    /// Takes one line, its end included, to be written by the next [`LogFile::flush`] or, where many
    /// wait already, at once.
    pub fn put(&self, line: &[u8]) -> Written {
        let lines = self.lines.get();
        let length = {
            let mut waiting = lines.waiting.lock();
            if waiting.is_empty() {
                lines.since.store(now(), Ordering::SeqCst);
            }
            waiting.extend_from_slice(line);
            waiting.len()
        };
        if length >= MOST_BYTES {
            let mut writer = lines.writer.lock();
            self.write_waiting(&mut writer)
        } else if length >= FULL {
            self.flush()
        } else {
            Written::Yes
        }
    }

    /// True while lines wait to be written.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.lines.get().since.load(Ordering::SeqCst) != 0
    }

    /// True when one of them was put off for [`LONGEST_DELAY`].
    #[must_use]
    pub fn is_overdue(&self) -> bool {
        let since = self.lines.get().since.load(Ordering::SeqCst);
        since != 0 && u128::from(now().saturating_sub(since)) >= LONGEST_DELAY.as_millis()
    }

    /// Writes the lines that wait, or leaves them to the thread that is about to.
    pub fn flush(&self) -> Written {
        let mut said = Written::Yes;
        // A thread that comes while another one writes leaves its lines to that one, which looks
        // again when it is done.
        while self.has_waiting()
            && let Some(mut writer) = self.lines.get().writer.try_lock()
        {
            match self.write_waiting(&mut writer) {
                Written::Yes => {}
                news @ (Written::Again(_) | Written::Failed(_)) => said = news,
            }
        }
        said
    }

    fn write_waiting(&self, writer: &mut MutexGuard<'_, Writer>) -> Written {
        let mut batch = std::mem::take(&mut writer.batch);
        batch.clear();
        {
            let lines = self.lines.get();
            let mut waiting = lines.waiting.lock();
            std::mem::swap(&mut *waiting, &mut batch);
            lines.since.store(0, Ordering::SeqCst);
        }
        let written = self.write(writer, &batch);
        writer.batch = batch;
        written
    }

    fn write(&self, writer: &mut Writer, lines: &[u8]) -> Written {
        let before = writer.lost;
        let mut rest = lines;
        let mut failure = None;
        let most = self.most.load(Ordering::Relaxed);
        let until = (most != usize::MAX).then(|| Instant::now() + LONGEST_WAIT);
        while !rest.is_empty() {
            let (piece, others) = split(rest, most);
            rest = others;
            if let Err(errno) = self.write_piece(writer, piece, until) {
                failure = Some(errno);
            }
        }
        match failure {
            Some(errno) if before == 0 => Written::Failed(errno),
            None if before > 0 && !lines.is_empty() => {
                writer.lost = 0;
                Written::Again(before)
            }
            Some(_) | None => Written::Yes,
        }
    }

    /// Writes whole lines; those that the kernel does not take are counted as lost. What is no regular
    /// file is waited for `until` then.
    fn write_piece(
        &self,
        writer: &mut Writer,
        piece: &[u8],
        until: Option<Instant>,
    ) -> nix::Result<()> {
        let mut done = 0;
        let errno = loop {
            if done == piece.len() {
                writer.is_torn = false;
                return Ok(());
            }
            // Not every descriptor could be made not to block.
            if let Some(until) = until
                && !self.takes_more(writer.lost, until)
            {
                break Errno::EAGAIN;
            }
            if done == 0 && writer.is_torn {
                // Ends what is left of a line that was cut.
                match write(&self.file, b"\n") {
                    Ok(_) => {
                        writer.is_torn = false;
                        continue;
                    }
                    Err(errno) => break errno,
                }
            }
            match write(&self.file, &piece[done..]) {
                Ok(0) => break Errno::EIO,
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if until.is_some() => {}
                Err(errno) => break errno,
            }
        };
        writer.is_torn |= done > 0 && piece[done - 1] != b'\n';
        writer.lost += memchr::memchr_iter(b'\n', &piece[done..]).count() as u64;
        Err(errno)
    }

    /// True when what is no regular file takes bytes now, or soon. Once lines were lost there, no other
    /// one is waited for until one is taken.
    fn takes_more(&self, lost: u64, until: Instant) -> bool {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = if lost == 0 { left } else { Duration::ZERO };
            // At most a second.
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                Ok(count) => return count > 0,
                // write(2) tells what is wrong.
                Err(_) => return true,
            }
        }
    }
}

/// As many whole lines as fit into `most` bytes, at least one, and the rest.
fn split(lines: &[u8], most: usize) -> (&[u8], &[u8]) {
    if lines.len() <= most {
        return (lines, b"");
    }
    let end = memchr::memrchr(b'\n', &lines[..most])
        .or_else(|| memchr::memchr(b'\n', lines))
        .map_or(lines.len(), |end| end + 1);
    lines.split_at(end)
}

/// Most bytes of one write(2) that do not mix with those of other processes.
fn most_at_once(file: &OwnedFd) -> usize {
    if is_of_kind(file, SFlag::S_IFREG) {
        usize::MAX
    } else {
        libc::PIPE_BUF
    }
}

fn is_of_kind(file: &OwnedFd, kind: SFlag) -> bool {
    fstat(file)
        .is_ok_and(|status| SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT == kind)
}

/// Milliseconds, at least 1; of the kernel's tick, which is a fifth of the price of the precise clock.
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000).ok())
        .unwrap_or(0)
        .max(1)
}

/// Where that is a pipe, one that does not block: its other writers count on theirs to do so.
fn standard_output() -> io::Result<OwnedFd> {
    let shared = io::stdout().as_fd().try_clone_to_owned()?;
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let fresh =
        is_of_kind(&shared, SFlag::S_IFIFO).then(|| open("/proc/self/fd/1", flags, Mode::empty()));
    Ok(fresh.and_then(Result::ok).unwrap_or(shared))
}

fn open_file(path: &Path) -> io::Result<OwnedFd> {
    // A pipe that nothing reads is an error (ENXIO), where open(2) would wait for a reader.
    let flags =
        OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    Ok(open(path, flags, Mode::from_bits_truncate(0o666))?)
}

/// How long ago the epoch is.
#[must_use]
pub fn since_epoch() -> Duration {
    // A clock before 1970 is one that is not set.
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from)
}

/// What the C library has a lock of its own for, which a child would inherit locked: there each
/// line of Python's logging waits for it.
static LOCAL_TIME: Mutex<()> = Mutex::new(());

/// Lets children ask for the local time whatever other threads do when they are forked.
fn keep_local_time_free() -> io::Result<()> {
    held_by_forks!(LOCAL_TIME, ())
}

/// The local time so long after the epoch; the C library is asked once a second on each thread.
#[must_use]
pub fn local_time(since_epoch: Duration) -> LocalTime {
    thread_local! {
        static KNOWN: Cell<(u64, LocalTime)> = const {
            Cell::new((u64::MAX, LocalTime { year: 1970, month: 1, day: 1, hour: 0, minute: 0, second: 0, offset_minutes: 0 }))
        };
    }
    let now = since_epoch.as_secs();
    let (second, known) = KNOWN.get();
    if second == now {
        return known;
    }
    // Of the type that localtime_r(3) takes; libc's name for it is deprecated on musl.
    let seconds = now.try_into().unwrap_or(0);
    // SAFETY: all fields are numbers or a pointer that may be null.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    let _turn = LOCAL_TIME.lock();
    // SAFETY: both pointers are to locals; localtime_r keeps neither.
    let is_known = unsafe { !libc::localtime_r(&raw const seconds, &raw mut parts).is_null() };
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
    use crate::locks::children;
    use std::sync::atomic::AtomicBool;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("osloxide-log-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_child_can_ask_for_the_local_time_whatever_the_threads_of_its_parent_ask() {
        let is_over = AtomicBool::new(false);
        keep_local_time_free().unwrap();

        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut second = 0;
                while !is_over.load(Ordering::Relaxed) {
                    second += 1;
                    let _ = local_time(Duration::from_secs(second));
                }
            });
            let run = |_| {
                children::run(|| {
                    // As another library does, which knows nothing of our lock.
                    // SAFETY: all fields are numbers or a pointer that may be null.
                    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
                    let seconds = 0;
                    // SAFETY: both pointers are to locals; localtime_r keeps neither.
                    unsafe { libc::localtime_r(&raw const seconds, &raw mut parts) };
                })
            };
            let failed = (0..50).map(run).find(|status| !children::has_done(status));
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }

    #[test]
    fn lines_are_appended_and_follow_a_renamed_file() {
        let directory = directory("rename");
        let path = directory.join("access.log");
        std::fs::write(&path, "before\n").unwrap();
        let log = LogFile::open(&path).unwrap();

        log.put(b"one\n");
        assert_eq!(log.flush(), Written::Yes);
        std::fs::rename(&path, directory.join("old.log")).unwrap();
        log.put(b"two\n");
        assert!(log.has_waiting());
        assert_eq!(log.reopen().unwrap(), Written::Yes);
        assert!(!log.has_waiting());
        log.put(b"three\n");
        assert_eq!(log.flush(), Written::Yes);

        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        assert_eq!(read("old.log"), "before\none\ntwo\n");
        assert_eq!(read("access.log"), "three\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_child_writes_its_own_lines_to_a_log_that_its_parent_has_locked() {
        let directory = directory("child");
        let path = directory.join("access.log");
        let log = LogFile::open(&path).unwrap();
        log.put(b"of the parent\n");

        let hold = || {
            let lines = log.lines.get();
            (lines.waiting.lock(), lines.writer.lock())
        };
        let ended = children::run_beside(hold, || {
            assert!(!log.has_waiting());
            log.put(b"of the child\n");
            assert_eq!(log.flush(), Written::Yes);
            assert_eq!(log.reopen().unwrap(), Written::Yes);
        });

        assert!(children::has_done(&ended), "{ended:?}");
        assert_eq!(log.flush(), Written::Yes);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "of the child\nof the parent\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_full_disk_is_told_once_and_its_end_with_the_number_of_lines() {
        let log = LogFile::open(Path::new("/dev/full")).unwrap();

        let write = |log: &LogFile, lines: &[u8]| {
            log.put(lines);
            log.flush()
        };

        assert_eq!(write(&log, b"one\n"), Written::Failed(Errno::ENOSPC));
        assert_eq!(write(&log, b"two\nthree\n"), Written::Yes);
        let log = LogFile {
            file: open_file(Path::new("/dev/null")).unwrap(),
            ..log
        };
        assert_eq!(write(&log, b"four\n"), Written::Again(3));
        assert_eq!(write(&log, b"five\n"), Written::Yes);
    }

    #[test]
    fn a_pipe_that_is_not_read_loses_lines_and_holds_no_thread() {
        let (reader, other_end) = io::pipe().unwrap();
        let log = LogFile {
            file: OwnedFd::from(other_end),
            ..LogFile::open(Path::new("/dev/null")).unwrap()
        };
        let lines = [vec![b'x'; 1023], b"\n".to_vec()].concat().repeat(1024);

        let (sender, ended) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Twice as many as wait at most: the second half is not waited for.
                let written = [log.put(&lines), log.put(&lines)];
                sender.send(written).unwrap();
            });
            let written = ended.recv_timeout(Duration::from_mins(1));
            // Ends the wait of a write(2) that waits for ever.
            drop(reader);
            assert_eq!(written, Ok([Written::Failed(Errno::EAGAIN), Written::Yes]));
        });
    }

    #[test]
    fn a_named_pipe_without_a_reader_is_an_error() {
        let directory = directory("fifo");
        let path = directory.join("access.log");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();

        let (sender, opened) = std::sync::mpsc::channel();
        let (answer, reader) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let errno = LogFile::open(&path).map_err(|error| error.raw_os_error());
                sender.send(errno.map(drop)).unwrap();
            });
            let answer = opened.recv_timeout(Duration::from_mins(1));
            // Ends the wait of an open(2) that waits for a reader.
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
            (answer, open(&path, flags, Mode::empty()).unwrap())
        });

        assert_eq!(answer, Ok(Err(Some(libc::ENXIO))));
        let log = LogFile::open(&path).unwrap();
        log.put(b"one\n");
        assert_eq!(log.flush(), Written::Yes);
        let mut line = [0; 8];
        assert_eq!(nix::unistd::read(&reader, &mut line), Ok(4));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_and_keeps_the_old_one() {
        let directory = directory("gone");
        let path = directory.join("access.log");
        let log = LogFile::open(&path).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();

        assert!(log.reopen().is_err());
        log.put(b"kept\n");
        assert_eq!(log.flush(), Written::Yes);
        assert!(LogFile::open(&path).is_err());
    }

    #[test]
    fn lines_are_put_off_until_they_are_flushed_overdue_or_many() {
        let directory = directory("batch");
        let path = directory.join("access.log");
        let log = LogFile::open(&path).unwrap();
        let length = || std::fs::metadata(&path).unwrap().len();

        log.put(b"one\n");
        assert!(log.has_waiting());
        assert_eq!(length(), 0);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !log.is_overdue() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        log.flush();
        assert_eq!(length(), 4);
        assert!(!log.is_overdue());
        log.put(&vec![b'x'; FULL]);
        assert_eq!(length(), 4 + FULL as u64);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn no_line_is_lost_or_cut_when_threads_write_and_flush_at_once() {
        let directory = directory("threads");
        let path = directory.join("access.log");
        let log = LogFile::open(&path).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let log = &log;
                scope.spawn(move || {
                    for number in 0..2000 {
                        log.put(format!("{thread} {number}\n").as_bytes());
                        if number % 7 == 0 {
                            log.flush();
                        }
                    }
                    log.flush();
                });
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        let mut expected: Vec<_> = (0..4)
            .flat_map(|thread| (0..2000).map(move |number| format!("{thread} {number}")))
            .collect();
        expected.sort();
        assert_eq!(lines, expected);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_pipe_gets_whole_lines_of_at_most_pipe_buf_bytes() {
        let (one, other) = (vec![b'a'; 3000], vec![b'b'; 3000]);
        let lines = [&one[..], b"\n", &other[..], b"\n"].concat();

        let (first, rest) = split(&lines, libc::PIPE_BUF);

        assert_eq!(first, [&one[..], b"\n"].concat());
        assert_eq!(rest, [&other[..], b"\n"].concat());
        let long = [vec![b'c'; 5000], b"\n".to_vec()].concat();
        assert_eq!(split(&long, libc::PIPE_BUF), (&long[..], &b""[..]));
        let file = OwnedFd::from(io::pipe().unwrap().1);
        assert_eq!(most_at_once(&file), libc::PIPE_BUF);
    }
}
