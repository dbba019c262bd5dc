//! Which traces are run: all of them up to a depth, and long ones by chance.
//!
//! Owns seeds: the one line that repeats a failure, and how it is made short. A state that was
//! reached before is not gone on from; two states are the same when the supervisor, the kernel and
//! the record are, with instants told from now and processes told by their order.

use super::action::Action;
use super::world::{Python, Setup, World, beginning};
use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Where traces start.
pub const SETUPS: [Setup; 8] = [
    setup("fresh", 1, 60, 0, false, ""),
    setup("one", 1, 60, 0, false, "n.fk.r0.n.n.+x"),
    setup("two", 2, 60, 0, false, "n.fk.n.fk.r0.r1.n.n.+x"),
    setup(
        "reloading",
        2,
        60,
        0,
        false,
        "n.fk.n.fk.r0.r1.n.n.+x.qr.n.c.n.fk",
    ),
    setup("failing", 1, 60, 0, false, "n.fk.k0.n.n.fk.k0.n.n.n"),
    setup("forever", 1, 0, 0, false, "n.fk.r0.n.n.+x"),
    setup("watched", 1, 60, 20, false, "n.fk.r0.n.n.+x"),
    setup("init", 1, 60, 0, true, "n.fk.r0.n.n.+x"),
];

const fn setup(
    name: &'static str,
    slots: usize,
    grace: u64,
    worker_timeout: u64,
    is_init: bool,
    prefix: &'static str,
) -> Setup {
    Setup {
        name,
        slots,
        grace,
        worker_timeout,
        is_init,
        prefix,
    }
}

/// The end that a trace is brought to.
#[derive(Debug, Clone, Copy)]
enum End {
    None,
    Recovery,
    Stop,
}

/// Runs a trace and brings it to its end; what it breaks.
fn run(setup: Setup, actions: &[Action], end: End) -> Result<World, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(setup);
        for action in actions {
            if world.broken.is_empty() && world.is_possible(*action) {
                world.act(*action);
            }
        }
        match end {
            End::None => {}
            _ if !world.broken.is_empty() => {}
            End::Recovery => world.recover(),
            End::Stop => world.stop(),
        }
        world
    }));
    match outcome {
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", text.unwrap_or("without a text")))
        }
        Ok(world) => match world.broken.first() {
            Some(broken) => Err(broken.clone()),
            None => Ok(world),
        },
    }
}

/// Runs a trace to both of its ends; what it breaks first.
pub fn check(setup: Setup, actions: &[Action]) -> Result<(), String> {
    run(setup, actions, End::Recovery)?;
    run(setup, actions, End::Stop)?;
    Ok(())
}

/// Fails with the one line that repeats a trace, made as short as it can be.
pub fn fail(setup: Setup, actions: &[Action], broken: &str) -> ! {
    let (actions, broken) = shortened(setup, actions.to_vec(), broken);
    panic!(
        "{broken}\nOSLOXIDE_SIM_SEED={} cargo test --no-default-features --features supervisor \
         --test supervisor_simulation -- --nocapture",
        spelled(setup, &actions)
    );
}

fn shortened(setup: Setup, mut actions: Vec<Action>, broken: &str) -> (Vec<Action>, String) {
    let mut broken = broken.to_owned();
    let mut at = 0;
    while at < actions.len() {
        let mut fewer = actions.clone();
        fewer.remove(at);
        match check(setup, &fewer) {
            Err(still) => {
                (actions, broken) = (fewer, still);
                at = 0;
            }
            Ok(()) => at += 1,
        }
    }
    (actions, broken)
}

pub fn spelled(setup: Setup, actions: &[Action]) -> String {
    let actions: Vec<_> = actions.iter().map(Action::to_string).collect();
    format!("{}/{}", setup.name, actions.join("."))
}

/// The trace that a seed spells.
pub fn trace_of(seed: &str) -> Result<(Setup, Vec<Action>), String> {
    let (name, actions) = seed
        .split_once('/')
        .ok_or("a seed has a name and a slash")?;
    let setup = SETUPS.into_iter().find(|setup| setup.name == name);
    let setup = setup.ok_or_else(|| format!("no trace starts from {name:?}"))?;
    let actions = actions.split('.').filter(|text| !text.is_empty());
    Ok((setup, actions.map(str::parse).collect::<Result<_, _>>()?))
}

/// A trace told step by step, for whoever looks for its fault.
pub fn story(setup: Setup, actions: &[Action]) -> String {
    let mut world = World::new(setup);
    let mut told = format!("{setup:?}\n");
    for action in actions.iter().copied() {
        if !world.is_possible(action) {
            let _ = writeln!(told, "{action:?}: impossible here, passed over");
            continue;
        }
        world.act(action);
        let _ = writeln!(
            told,
            "{action:?}: {:?}, phase {:?}, parked {:?}, workers {:?}",
            world.python,
            world.supervisor.phase(),
            world.parked.map(|until| until.map(|at| at - world.now)),
            world.supervisor.pids(),
        );
    }
    told
}

/// What was covered.
#[derive(Debug, Default, Clone, Copy)]
pub struct Coverage {
    pub states: usize,
    pub transitions: usize,
    /// Every trace of so many actions was run.
    pub depth: usize,
    pub seconds: f32,
}

/// Runs every trace from *setup*, the shorter ones first, until *depth*, *states* or *budget*.
pub fn exhaust(setup: Setup, depth: usize, states: usize, budget: Duration) -> Coverage {
    let since = Instant::now();
    let mut seen = HashSet::new();
    let mut frontier: Vec<Vec<Action>> = vec![Vec::new()];
    let mut coverage = Coverage::default();
    while coverage.depth < depth && !frontier.is_empty() {
        let mut next = Vec::new();
        for trace in frontier {
            let world = run(setup, &trace, End::None).unwrap_or_else(|it| fail(setup, &trace, &it));
            for action in world.possible(false) {
                if coverage.states >= states || since.elapsed() >= budget {
                    coverage.seconds = since.elapsed().as_secs_f32();
                    return coverage;
                }
                let mut longer = trace.clone();
                longer.push(action);
                coverage.transitions += 1;
                let world = match run(setup, &longer, End::None) {
                    Ok(world) => world,
                    Err(broken) => fail(setup, &longer, &broken),
                };
                if seen.insert(fingerprint(&world)) {
                    coverage.states += 1;
                    if let Err(broken) = check(setup, &longer) {
                        fail(setup, &longer, &broken);
                    }
                    next.push(longer);
                }
            }
        }
        frontier = next;
        coverage.depth += 1;
    }
    coverage.seconds = since.elapsed().as_secs_f32();
    coverage
}

/// xorshift64*: fast, and the same everywhere.
pub struct Chance(pub u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 16) % bound.max(1) as u64).unwrap()
    }
}

/// One trace of up to *length* actions, each chosen by chance, and its end; how long it was.
pub fn wander(setup: Setup, chance: &mut Chance, length: usize) -> usize {
    let mut world = World::new(setup);
    let mut trace = Vec::new();
    // Some traces are of a world that is mostly well, some of one where all goes wrong.
    let calm = 2 + chance.below(8);
    while trace.len() < length {
        let mut actions = world.possible(true);
        if chance.below(10) < calm {
            actions.retain(|action| is_progress(*action));
        } else if chance.below(10) != 0 {
            // A stop ends a trace, or nearly.
            actions.retain(|action| !is_end(*action));
        }
        if actions.is_empty() {
            actions = world.possible(true);
        }
        let Some(action) = actions.get(chance.below(actions.len())).copied() else {
            break;
        };
        trace.push(action);
        let acted = catch_unwind(AssertUnwindSafe(|| world.act(action)));
        if acted.is_err() || !world.broken.is_empty() {
            break;
        }
    }
    let is_broken = world.python != Python::Ended && !world.broken.is_empty();
    let end = if chance.below(2) == 0 {
        End::Stop
    } else {
        End::Recovery
    };
    if is_broken || run(setup, &trace, end).is_err() {
        let broken = check(setup, &trace).err().unwrap_or_default();
        fail(setup, &trace, &broken);
    }
    trace.len()
}

fn is_progress(action: Action) -> bool {
    matches!(
        action,
        Action::Next
            | Action::Fork
            | Action::Configured
            | Action::Report(_)
            | Action::Obey(_)
            | Action::Wait
    )
}

fn is_end(action: Action) -> bool {
    use osloxide::signals::Request::{Abort, Stop};
    matches!(
        action,
        Action::Ask(Stop | Abort) | Action::NextHit(Stop | Abort) | Action::Abandon
    )
}

fn fingerprint(world: &World) -> u64 {
    let mut text = String::new();
    let _ = write!(
        text,
        "{:?} {:?} {:?} {:?}",
        world.supervisor, world.python, world.parked, world.record
    );
    let mut hasher = DefaultHasher::new();
    told_from_now(&text, world.now).hash(&mut hasher);
    hasher.finish()
}

/// The words of *text* that decide what can follow: instants as milliseconds from *now*, up to a
/// little more than a minute, processes by their order, events by which came first.
fn told_from_now(text: &str, now: Instant) -> String {
    let words = words_of(text);
    let (base_seconds, base_nanos) = seconds_and_nanos(&words_of(&format!("{:?}", beginning())));
    let now = i64::try_from((now - beginning()).as_millis()).unwrap();
    let mut events: Vec<u64> = Vec::new();
    for pair in words.windows(2).filter(|pair| pair[0] == "Event") {
        events.extend(pair[1].parse::<u64>());
    }
    events.sort_unstable();
    events.dedup();
    let mut processes: Vec<&str> = Vec::new();
    let mut told = String::with_capacity(text.len());
    let mut at = 0;
    while at < words.len() {
        let word = words[at];
        at += 1;
        let next = words.get(at).copied().unwrap_or_default();
        let is_number = word.starts_with(|it: char| it.is_ascii_digit());
        if word == "Instant" {
            let (seconds, nanos) = seconds_and_nanos(&words[at..]);
            let since = (seconds - base_seconds) * 1000 + (nanos - base_nanos) / 1_000_000;
            let _ = write!(told, "at{} ", (since - now).clamp(-70_000, 70_000));
            at += 4;
        } else if word == "Event" {
            let rank = next.parse().map(|event| events.binary_search(&event));
            let _ = write!(told, "{rank:?} ");
            at += 1;
        } else if matches!(word, "respawns" | "last_exit" | "fd") {
            // Reported, and never decided by.
            at += 1 + usize::from(next == "Some");
        } else if is_number && word.len() == FIRST_PID_DIGITS {
            let known = processes.iter().position(|known| *known == word);
            let number = known.unwrap_or_else(|| {
                processes.push(word);
                processes.len() - 1
            });
            let _ = write!(told, "p{number} ");
        } else {
            told.push_str(word);
            told.push(' ');
        }
    }
    told
}

/// Digits of a process, and of nothing else in a state.
const FIRST_PID_DIGITS: usize = 7;

fn words_of(text: &str) -> Vec<&str> {
    let is_of_word = |it: char| it.is_ascii_alphanumeric() || it == '_';
    let words = text.split(|it| !is_of_word(it));
    words.filter(|word| !word.is_empty()).collect()
}

/// Of the words that follow `Instant`: `tv_sec`, a number, `tv_nsec`, a number.
fn seconds_and_nanos(words: &[&str]) -> (i64, i64) {
    let number_after = |key| {
        let at = words.iter().position(|word| *word == key);
        at.and_then(|at| words[at + 1].parse().ok()).unwrap_or(0)
    };
    (number_after("tv_sec"), number_after("tv_nsec"))
}
