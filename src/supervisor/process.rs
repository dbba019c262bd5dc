//! The edge between the supervisor and the operating system's processes.
//!
//! [`Processes`] is where tests put a fake with a call log. [`System`] is the real thing: it
//! signals and reaps only the pids it is given, by pidfd where the kernel has them, so that it
//! never takes an exit status that belongs to the application (`subprocess` in the parent).
//! Rules: `pidfd_open(2)`, `pidfd_send_signal(2)`, `waitpid(2)`.
#![expect(unsafe_code, reason = "real-time signals have no name in rustix")]

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, pidfd_send_signal,
    waitid, waitpid,
};
use std::os::fd::{BorrowedFd, OwnedFd};

/// Wait status reported for a worker whose real one is not to be had: other code has taken it, such
/// as a SIGCHLD handler of the application that waits for any child, or a tracer keeps it. It is
/// that of an exit with status 255.
pub const LOST_STATUS: i32 = 255 << 8;

/// What a supervisor does to processes, forking aside.
pub trait Processes {
    /// A descriptor that becomes readable when child *pid* ends; `None` where the kernel has none
    /// to give, and then SIGCHLD has to wake the supervisor.
    fn watch(&mut self, pid: i32) -> Option<OwnedFd>;

    /// Sends a signal to a child that was not reaped yet. One that has ended is no error.
    fn signal(&mut self, pid: i32, watch: Option<BorrowedFd<'_>>, number: i32);

    /// Reaps child *pid* if it has ended and returns its wait status, [`LOST_STATUS`] when other code
    /// has reaped it, or `None` while it lives.
    fn reap(&mut self, pid: i32) -> Option<i32>;

    /// True when child *pid* has ended and is still there, though it may not be reaped: a tracer may keep it.
    /// Asked where no descriptor tells.
    fn has_ended(&mut self, pid: i32) -> bool;

    /// True when child *pid* is stopped by a signal (SIGSTOP, SIGTTIN ...) and not merely idle.
    fn is_stopped(&mut self, pid: i32) -> bool;

    /// Every child that has ended and was not reaped; they stay unreaped. Asked only as process 1,
    /// which inherits the orphans of its container.
    fn ended_children(&mut self) -> Vec<i32>;

    /// Reaps a child that is no worker; `None` when other code has.
    fn reap_orphan(&mut self, pid: i32) -> Option<i32> {
        self.reap(pid).filter(|status| *status != LOST_STATUS)
    }
}

/// Real processes.
#[derive(Debug, Default)]
pub struct System;

impl Processes for System {
    fn watch(&mut self, pid: i32) -> Option<OwnedFd> {
        pidfd_open(pid).ok()
    }

    fn signal(&mut self, pid: i32, watch: Option<BorrowedFd<'_>>, number: i32) {
        let (Some(pid), Some(signal)) = (Pid::from_raw(pid), signal_of(number)) else {
            return;
        };
        if let Some(watch) = watch {
            match pidfd_send_signal(watch, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => return,
                Err(_) => {} // a sandbox may forbid this call and allow the other
            }
        }
        // The pid is an unreaped child's, so it is not in use again.
        let _ = kill_process(pid, signal);
    }

    fn reap(&mut self, pid: i32) -> Option<i32> {
        loop {
            // nix's waitpid reaps, and then fails, where a real-time signal ended the child.
            match waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) {
                Ok(None) => return None,
                Ok(Some((_, status))) => return Some(status.as_raw()),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Some(LOST_STATUS),
            }
        }
    }

    fn has_ended(&mut self, pid: i32) -> bool {
        stat(pid).is_some_and(|stat| stat.state == "Z") && has_no_thread(pid)
    }

    fn is_stopped(&mut self, pid: i32) -> bool {
        stat(pid).is_some_and(|stat| stat.state == "T")
    }

    fn ended_children(&mut self) -> Vec<i32> {
        if !has_ended_child() {
            return Vec::new(); // nearly always, and one system call instead of a walk
        }
        let own = std::process::id().cast_signed();
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        // waitid(2) tells of one only, and of the same again while that one is left alone.
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| stat(*pid).is_some_and(|it| it.state == "Z" && it.parent == own))
            .filter(|pid| has_no_thread(*pid))
            .collect()
    }
}

struct Stat {
    state: String,
    parent: i32,
}

/// proc(5): the state and the parent follow the name, which is in parentheses and may hold anything.
fn stat(pid: i32) -> Option<Stat> {
    stat_of(&format!("/proc/{pid}/stat"))
}

fn stat_of(path: &str) -> Option<Stat> {
    let line = std::fs::read(path).ok()?;
    let line = String::from_utf8_lossy(&line);
    let mut fields = line.rsplit(')').next()?.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.to_owned(),
        parent: fields.next()?.parse().ok()?,
    })
}

/// True when no thread of a process runs any more. Its state is `Z` as soon as the main thread has ended,
/// while others may go on (`pthread_exit(3)`). Their number does not tell, for a tracer keeps threads.
fn has_no_thread(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false; // it has been reaped
    };
    let mut threads = threads
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that is gone by now does not run.
    threads.all(|thread: i32| {
        stat_of(&format!("/proc/{pid}/task/{thread}/stat"))
            .is_none_or(|it| matches!(it.state.as_str(), "Z" | "X"))
    })
}

fn has_ended_child() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::All, options), Ok(Some(_)))
}

/// The signal of a number from 1 to 64; `None` for any other.
fn signal_of(number: i32) -> Option<Signal> {
    Signal::from_named_raw(number).or_else(|| {
        // SAFETY: Linux has the signals 1 to 64, and this number is one of them.
        (1..=64)
            .contains(&number)
            .then(|| unsafe { Signal::from_raw_unchecked(number) })
    })
}

/// A descriptor that becomes readable when process *pid* ends; closed on exec.
///
/// # Errors
/// `ENOSYS` before Linux 5.3 and where a sandbox forbids it, `ESRCH`, `EMFILE`.
pub fn pidfd_open(pid: i32) -> Result<OwnedFd, rustix::io::Errno> {
    let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::INVAL)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::poll_readable;
    use nix::libc;
    use std::os::fd::AsFd;
    use std::process::{Child, Command};

    fn child() -> (Child, i32) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        (child, pid)
    }

    fn end(system: &mut System, pid: i32, number: i32) -> i32 {
        let watch = system.watch(pid).unwrap();
        assert_eq!(system.reap(pid), None);
        system.signal(pid, Some(watch.as_fd()), number);
        assert_eq!(poll_readable(&[watch.as_fd()], None), Ok(vec![0]));
        system.reap(pid).unwrap()
    }

    #[test]
    fn a_child_is_watched_signalled_and_reaped_once() {
        let (mut system, (_child, pid)) = (System, child());

        assert_eq!(end(&mut system, pid, libc::SIGTERM), libc::SIGTERM);

        assert_eq!(system.reap(pid), Some(LOST_STATUS));
    }

    #[test]
    fn the_status_of_a_child_that_a_real_time_signal_ended_is_kept() {
        let (mut system, (_child, pid)) = (System, child());
        let number = libc::SIGRTMIN() + 3;

        assert_eq!(end(&mut system, pid, number), number);
    }

    #[test]
    fn a_status_that_somebody_else_took_is_lost_and_not_waited_for() {
        let (mut system, (mut child, pid)) = (System, child());
        child.kill().unwrap();
        child.wait().unwrap();

        assert_eq!(system.reap(pid), Some(LOST_STATUS));
    }

    #[test]
    fn ended_children_are_all_found_and_stay_unreaped() {
        let (mut system, (mut first, one), (mut second, other)) = (System, child(), child());
        first.kill().unwrap();
        second.kill().unwrap();
        for pid in [one, other] {
            let watch = system.watch(pid).unwrap();
            assert_eq!(poll_readable(&[watch.as_fd()], None), Ok(vec![0]));
        }

        for _ in 0..2 {
            let ended = system.ended_children();
            assert!(ended.contains(&one) && ended.contains(&other), "{ended:?}");
        }
        assert_eq!(system.reap_orphan(one), Some(libc::SIGKILL));
        assert_eq!(system.reap_orphan(one), None);
        second.wait().unwrap();
    }

    #[test]
    fn without_a_pidfd_signals_go_to_the_pid_and_its_end_is_seen() {
        let (mut system, (mut child, pid)) = (System, child());
        let watch = system.watch(pid).unwrap();
        assert!(!system.has_ended(pid));

        system.signal(pid, None, libc::SIGKILL);

        assert_eq!(poll_readable(&[watch.as_fd()], None), Ok(vec![0]));
        assert!(system.has_ended(pid));
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "no interpreter runs here, and a child that execs has one thread"
    )]
    fn a_child_whose_main_thread_has_ended_lives_while_another_runs() {
        let mut system = System;
        // SAFETY: the child starts a thread, which is all that fork(2) leaves it, and returns nowhere.
        let pid = match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child.as_raw(),
            nix::unistd::ForkResult::Child => {
                let wait = || std::thread::sleep(std::time::Duration::from_secs(1000));
                drop(std::thread::Builder::new().spawn(wait));
                // SAFETY: ends this thread alone, whose stack nobody else refers to.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
                std::process::abort();
            }
        };
        let watch = system.watch(pid).unwrap();
        while stat(pid).unwrap().state != "Z" {
            std::thread::yield_now();
        }

        assert!(!system.has_ended(pid));
        assert!(!system.ended_children().contains(&pid));

        system.signal(pid, None, libc::SIGKILL);
        assert_eq!(poll_readable(&[watch.as_fd()], None), Ok(vec![0]));
        assert!(system.has_ended(pid));
        assert_eq!(system.reap(pid), Some(libc::SIGKILL));
    }

    #[test]
    fn a_stopped_child_is_told_from_an_idle_one() {
        let (mut system, (mut child, pid)) = (System, child());
        assert!(!system.is_stopped(pid));

        system.signal(pid, None, libc::SIGSTOP);
        let stopped = waitpid(Pid::from_raw(pid), WaitOptions::UNTRACED).unwrap();
        assert_eq!(stopped.map(|(pid, _)| pid), Pid::from_raw(pid));

        assert!(system.is_stopped(pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
