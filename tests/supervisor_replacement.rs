//! Workers that ask to be replaced, against fake processes and chosen instants.
#![cfg(feature = "supervisor")]

mod support;

use osloxide::signals::Request;
use osloxide::supervisor::Command;
use osloxide::supervisor::roster::Phase;
use support::{Rig, TERM, forks};

fn worn(commands: &[Command]) -> Vec<i32> {
    let mut pids = Vec::new();
    for command in commands {
        if let Command::Worn { pid, .. } = command {
            pids.push(*pid);
        }
    }
    pids
}

#[test]
fn a_worker_that_asks_leaves_when_its_successor_is_ready() {
    let mut rig = Rig::running(1, 60);

    rig.ready(-100);
    let commands = rig.run();
    assert_eq!(worn(&commands), [100]);
    assert_eq!(forks(&commands), [(0, 0)]);
    assert_eq!(rig.signals(), [], "it serves until the other one does");

    rig.ready(101);
    assert_eq!(rig.run(), []);
    assert_eq!(rig.signals(), [(100, TERM)]);
    rig.end(100, 0);
    assert_eq!(forks(&rig.run()), []);
    assert_eq!(rig.pids(), [101]);
}

#[test]
fn workers_that_ask_together_are_replaced_one_after_the_other() {
    let mut rig = Rig::running(3, 60);

    for pid in [102, 100, 101, 100] {
        rig.ready(-pid);
    }
    let commands = rig.run();
    assert_eq!(worn(&commands), [102, 100, 101], "each is told of once");
    assert_eq!(forks(&commands), [(2, 0)]);

    rig.ready(103);
    assert_eq!(forks(&rig.run()), [(0, 0)]);
    assert_eq!(rig.signals(), [(102, TERM)]);
    rig.ready(104);
    assert_eq!(forks(&rig.run()), [(1, 0)]);
    assert_eq!(rig.signals(), [(100, TERM)]);
    rig.ready(105);
    assert_eq!(forks(&rig.run()), []);
    assert_eq!(rig.signals(), [(101, TERM)]);
}

#[test]
fn a_successor_that_keeps_failing_costs_the_old_worker_nothing() {
    let mut rig = Rig::running(1, 60);
    rig.ready(-100);
    assert_eq!(forks(&rig.run()), [(0, 0)]);

    for pid in 101..106 {
        rig.end(pid, 3 << 8);
        rig.run();
        rig.advance(31.0);
        rig.run();
    }

    assert!(rig.signals().iter().all(|(pid, _)| *pid != 100));
    assert!(rig.pids().contains(&100));
    let newest = rig.pids().into_iter().max().unwrap();
    rig.ready(newest);
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM)]);
}

#[test]
fn a_worker_that_dies_after_it_asked_is_followed_by_its_successor_alone() {
    let mut rig = Rig::running(2, 60);
    rig.ready(-100);
    assert_eq!(forks(&rig.run()), [(0, 0)]);

    rig.end(100, 9);
    assert_eq!(forks(&rig.run()), []);
    rig.ready(102);
    rig.run();

    assert_eq!(rig.signals(), []);
    assert_eq!(rig.pids(), [102, 101]);
    rig.ready(-101);
    assert_eq!(forks(&rig.run()), [(1, 0)], "the next one has its turn");
}

#[test]
fn a_reload_replaces_those_that_asked_with_all_others() {
    let mut rig = Rig::running(2, 60);
    rig.ready(-101);
    assert_eq!(forks(&rig.run()), [(1, 0)]);

    rig.request(Request::Reload);
    assert_eq!(forks(&rig.run()), [(0, 1)]);
    assert_eq!(rig.signals(), [(102, TERM)], "it never served");
    rig.end(102, 0);
    rig.ready(103);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    rig.ready(104);
    let commands = rig.run();

    assert!(commands.contains(&Command::Reloaded));
    assert_eq!(forks(&commands), []);
    assert_eq!(rig.signals(), [(100, TERM), (101, TERM)]);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
}

#[test]
fn while_everything_stops_no_successor_is_started() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Stop);
    rig.run();

    rig.ready(-100);

    assert_eq!(rig.run(), []);
}

#[test]
fn what_is_no_worker_cannot_ask() {
    let mut rig = Rig::running(1, 60);

    for notice in [-7, -101, i32::MIN] {
        rig.ready(notice);
    }

    assert_eq!(rig.run(), []);
}
