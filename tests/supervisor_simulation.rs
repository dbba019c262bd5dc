//! The supervisor under every event in every order, up to a depth, and under long traces by chance.
//!
//! Owns the budgets. `make test` runs a fixed number of states and traces, always the same ones;
//! `make simulate` sets `OSLOXIDE_SIM_SECONDS` and goes on for that long with traces of its own. With
//! `OSLOXIDE_SIM_SEED` only the trace of that seed is run. docs/simulation.md has promises and figures.
#![cfg(feature = "supervisor")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed step fails the test, and says for which seed"
)]

mod simulation;

use simulation::explorer::{self, Chance, Coverage, SETUPS, trace_of};
use simulation::kernel::{TakenBack, take_back};
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// States for each start in an everyday run, and how many actions lead there at most.
const STATES: usize = 1_000;
const DEPTH: usize = 40;
/// Traces by chance for each start in an everyday run, and how long each is at most.
const TRACES: usize = 150;
const LENGTH: usize = 150;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Seconds for each of the two tests, in a long run.
fn seconds() -> Option<u64> {
    variable("OSLOXIDE_SIM_SECONDS").map(|text| text.parse().unwrap())
}

/// True when one seed was asked for, which has then been run.
fn is_seed_run() -> bool {
    let Some(seed) = variable("OSLOXIDE_SIM_SEED") else {
        return false;
    };
    let Ok((setup, actions)) = trace_of(&seed) else {
        println!("{seed} is a seed of another simulation");
        return true;
    };
    println!("{}", explorer::story(setup, &actions));
    if let Err(broken) = explorer::check(setup, &actions) {
        panic!("{broken}");
    }
    true
}

#[test]
fn every_state_within_reach_keeps_every_promise() {
    if is_seed_run() {
        return;
    }
    for setup in SETUPS {
        let covered = match seconds() {
            None => explorer::exhaust(setup, DEPTH, STATES, Duration::from_secs(3600)),
            Some(seconds) => {
                let share = u32::try_from(SETUPS.len()).unwrap();
                let budget = Duration::from_secs(seconds) / share;
                explorer::exhaust(setup, DEPTH, usize::MAX, budget)
            }
        };
        let Coverage {
            states,
            transitions,
            depth,
            seconds,
        } = covered;
        println!(
            "{}: {states} states, {transitions} transitions, all traces of {depth} actions, \
             {seconds:.1} s",
            setup.name
        );
    }
}

#[test]
fn long_traces_keep_every_promise() {
    if is_seed_run() {
        return;
    }
    let seconds = seconds();
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(3600));
    let mut chance = Chance(seconds.map_or(1, |_| RandomState::new().hash_one("chance") | 1));
    let (mut traces, mut actions) = (0, 0);
    while Instant::now() < until && (seconds.is_some() || traces < TRACES * SETUPS.len()) {
        let setup = SETUPS[traces % SETUPS.len()];
        actions += explorer::wander(setup, &mut chance, LENGTH);
        traces += 1;
    }
    println!("{traces} traces, {actions} actions");
}

#[test]
fn a_seed_spells_its_trace_and_nothing_else() {
    let seed =
        "two/qr.n.nm.c.fk.fd.fb.fw.fx.fa.r0.d1.e0.k0.l2.g0.j0.o0.z1.t1.h0.u0.v0.y.w.+h.+s.+x.+y";

    let (setup, actions) = trace_of(seed).unwrap();

    assert_eq!(explorer::spelled(setup, &actions), seed);
    assert!(trace_of("two/what").is_err());
    assert!(trace_of("none/n").is_err());
}

/// What the supervisor does, the start from which its loss is found, and the seed that is printed.
const PLANTED: [(TakenBack, &str, &str); 4] = [
    (TakenBack::Continue, "watched", "watched/z0"),
    (TakenBack::SecondTerm, "fresh", "fresh/ns.fd"),
    (TakenBack::LastWords, "one", "one/h0"),
    (TakenBack::Kill, "one", "one/qa"),
];

#[test]
fn what_is_taken_back_is_found_and_told_by_a_seed_that_repeats_it() {
    if is_seed_run() {
        return;
    }
    for (what, start, seed) in PLANTED {
        let setup = SETUPS.into_iter().find(|it| it.name == start).unwrap();
        take_back(Some(what));
        let search = || explorer::exhaust(setup, DEPTH, STATES, Duration::from_secs(3600));
        let found = catch_unwind(AssertUnwindSafe(search)).unwrap_err();
        let (setup, actions) = trace_of(seed).unwrap();
        let repeated = explorer::check(setup, &actions);
        take_back(None);

        let found = found.downcast_ref::<String>().unwrap();
        println!("{what:?}: {found}");
        assert!(
            found.contains(&format!("OSLOXIDE_SIM_SEED={seed} ")),
            "{found}"
        );
        assert!(found.starts_with(&repeated.unwrap_err()), "{found}");
        assert_eq!(explorer::check(setup, &actions), Ok(()), "not taken back");
    }
}
