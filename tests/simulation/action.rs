//! What can happen, and its spelling in a seed.
//!
//! A trace is a list of actions behind the name of the state that it starts from, as in
//! `two/qr.n.c.n.fk`. An action that is impossible where it stands is passed over, so that a trace
//! stays one when parts of it are left out.

use osloxide::signals::Request;
use std::fmt;
use std::str::FromStr;

/// One thing that happens. Workers are counted among those that have not been reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Python calls `next()`, once.
    Next,
    /// The same; at the moment when it parks, a signal handler or another thread requests this.
    NextHit(Request),
    /// A request from a signal handler or a thread, while Python is elsewhere.
    Ask(Request),
    /// The fork that was handed out succeeds.
    Fork,
    /// It does, and the child forgets signals until it is ready.
    ForkDeaf,
    /// It does, and the kernel gives no pidfd.
    ForkBlind,
    /// It does, and the worker does not get ready before the older ones of its slot are gone: they
    /// have what it needs.
    ForkWaiting,
    /// It is refused.
    ForkFails,
    /// An exception takes Python out of its loop before it forks.
    Abandon,
    /// Python has carried out the configuration command.
    Configured,
    /// The worker reports that it is ready, or has mutated its configuration.
    Report(usize),
    /// It ends by itself, with this wait status.
    Die(usize, i32),
    /// It is killed under a tracer, which keeps it from being reaped.
    Keep(usize),
    /// Its tracer lets it go.
    Release(usize),
    /// It ends by a signal that it was sent.
    Obey(usize),
    /// It is stopped by a signal of someone else.
    Freeze(usize),
    /// It is continued.
    Thaw(usize),
    /// From now on it ignores SIGTERM and SIGABRT.
    Harden(usize),
    /// It sleeps in the kernel and cannot be killed.
    Stick(usize),
    /// It wakes up.
    Unstick(usize),
    /// An orphan of the container ends below process 1.
    Stray,
    /// Time passes until the deadline that the parent is parked with.
    Wait,
    /// So many milliseconds pass, whether the parent was run or not.
    Pass(u64),
}

/// Long enough for one threshold each: a short life, a stable one, a suspended machine.
pub const PASSES: [(u64, &str); 4] = [
    (200, "+h"),
    (1_500, "+s"),
    (11_000, "+x"),
    (7_200_000, "+y"),
];

/// How a worker ends by itself: exits well, exits badly, is killed, and its status is taken.
pub const STATUSES: [(i32, &str); 4] = [(0, "d"), (256, "e"), (9, "k"), (255 << 8, "l")];

const REQUESTS: [(Request, &str); 4] = [
    (Request::Stop, "s"),
    (Request::Reload, "r"),
    (Request::Mutate, "m"),
    (Request::Abort, "a"),
];

pub fn requests() -> impl Iterator<Item = Request> {
    REQUESTS.into_iter().map(|(request, _)| request)
}

fn spelling<T: PartialEq>(table: &[(T, &'static str)], wanted: &T) -> &'static str {
    let found = table.iter().find(|(value, _)| value == wanted);
    found.map_or("?", |(_, spelling)| spelling)
}

fn meaning<T: Copy>(table: &[(T, &'static str)], wanted: &str) -> Result<T, String> {
    let found = table.iter().find(|(_, spelling)| *spelling == wanted);
    found
        .map(|(value, _)| *value)
        .ok_or_else(|| format!("no action is spelled {wanted:?}"))
}

const PLAIN: [(Action, &str); 10] = [
    (Action::Next, "n"),
    (Action::Fork, "fk"),
    (Action::ForkDeaf, "fd"),
    (Action::ForkBlind, "fb"),
    (Action::ForkWaiting, "fw"),
    (Action::ForkFails, "fx"),
    (Action::Abandon, "fa"),
    (Action::Configured, "c"),
    (Action::Stray, "y"),
    (Action::Wait, "w"),
];

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NextHit(request) => write!(f, "n{}", spelling(&REQUESTS, request)),
            Self::Ask(request) => write!(f, "q{}", spelling(&REQUESTS, request)),
            Self::Report(worker) => write!(f, "r{worker}"),
            Self::Die(worker, status) => write!(f, "{}{worker}", spelling(&STATUSES, status)),
            Self::Keep(worker) => write!(f, "g{worker}"),
            Self::Release(worker) => write!(f, "j{worker}"),
            Self::Obey(worker) => write!(f, "o{worker}"),
            Self::Freeze(worker) => write!(f, "z{worker}"),
            Self::Thaw(worker) => write!(f, "t{worker}"),
            Self::Harden(worker) => write!(f, "h{worker}"),
            Self::Stick(worker) => write!(f, "u{worker}"),
            Self::Unstick(worker) => write!(f, "v{worker}"),
            Self::Pass(time) => f.write_str(spelling(&PASSES, time)),
            Self::Next
            | Self::Fork
            | Self::ForkDeaf
            | Self::ForkBlind
            | Self::ForkWaiting
            | Self::ForkFails
            | Self::Abandon
            | Self::Configured
            | Self::Stray
            | Self::Wait => f.write_str(spelling(&PLAIN, self)),
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('+') {
            return meaning(&PASSES, text).map(Self::Pass);
        }
        if let Ok(plain) = meaning(&PLAIN, text) {
            return Ok(plain);
        }
        let (kind, rest) = text.split_at(text.len().min(1));
        let worker = rest.parse();
        match (kind, worker) {
            ("n", _) => meaning(&REQUESTS, rest).map(Self::NextHit),
            ("q", _) => meaning(&REQUESTS, rest).map(Self::Ask),
            ("r", Ok(worker)) => Ok(Self::Report(worker)),
            ("g", Ok(worker)) => Ok(Self::Keep(worker)),
            ("j", Ok(worker)) => Ok(Self::Release(worker)),
            ("o", Ok(worker)) => Ok(Self::Obey(worker)),
            ("z", Ok(worker)) => Ok(Self::Freeze(worker)),
            ("t", Ok(worker)) => Ok(Self::Thaw(worker)),
            ("h", Ok(worker)) => Ok(Self::Harden(worker)),
            ("u", Ok(worker)) => Ok(Self::Stick(worker)),
            ("v", Ok(worker)) => Ok(Self::Unstick(worker)),
            (kind, Ok(worker)) => meaning(&STATUSES, kind).map(|status| Self::Die(worker, status)),
            _ => Err(format!("no action is spelled {text:?}")),
        }
    }
}
