//! More and fewer workers while the others serve, against fake processes and chosen instants.
#![cfg(feature = "supervisor")]

mod support;

use osloxide::signals::Request;
use osloxide::supervisor::{Command, Error, MOST_WORKERS};
use support::{ABRT, KILL, Rig, TERM, forks};

fn resize(rig: &Rig, workers: usize) {
    assert!(rig.supervisor.resize(0, workers, rig.now).is_ok());
}

#[test]
fn a_larger_group_forks_the_missing_workers_alone() {
    let mut rig = Rig::running(2, 60);

    resize(&rig, 4);

    assert_eq!(forks(&rig.run()), [(2, 0), (3, 0)]);
    assert_eq!(rig.pids(), [100, 101, 102, 103]);
    assert_eq!(rig.signals(), []);
}

#[test]
fn a_smaller_group_drains_the_highest_slots_and_forks_none_in_their_place() {
    let mut rig = Rig::running(3, 60);

    resize(&rig, 1);
    assert_eq!(rig.signals(), [(102, TERM), (101, TERM)]);
    rig.end(102, 0);
    rig.end(101, 0);

    assert_eq!(forks(&rig.run()), []);
    assert_eq!(rig.pids(), [100]);
}

#[test]
fn a_worker_that_is_not_wanted_any_more_is_killed_at_the_deadline() {
    let mut rig = Rig::running(2, 60);
    resize(&rig, 1);
    rig.signals();

    rig.advance(61.0);
    rig.run();

    rig.advance(0.25);
    rig.run();

    assert_eq!(rig.signals(), [(101, ABRT), (101, KILL)]);
    rig.end(101, 9);
    assert_eq!(forks(&rig.run()), []);
}

#[test]
fn a_group_that_grows_again_uses_its_slots_again() {
    let mut rig = Rig::running(2, 60);
    resize(&rig, 1);
    rig.end(101, 0);
    rig.run();

    resize(&rig, 2);

    assert_eq!(forks(&rig.run()), [(1, 0)]);
}

#[test]
fn a_slot_whose_worker_still_drains_is_filled_when_it_has_left() {
    let mut rig = Rig::running(2, 60);
    resize(&rig, 1);
    resize(&rig, 2);
    assert_eq!(forks(&rig.run()), []);

    rig.end(101, 0);

    assert_eq!(forks(&rig.run()), [(1, 0)]);
}

#[test]
fn a_reload_leaves_closed_slots_out() {
    let mut rig = Rig::running(2, 60);
    resize(&rig, 1);
    rig.end(101, 0);
    rig.run();

    rig.request(Request::Reload);
    assert_eq!(forks(&rig.run()), [(0, 1)]);
    rig.ready(102);

    assert!(rig.run().contains(&Command::Reloaded));
    assert_eq!(rig.pids(), [102, 100]);
}

#[test]
fn a_worker_that_is_to_be_forked_is_not_when_its_slot_is_closed() {
    let mut rig = Rig::running(2, 60);
    resize(&rig, 3);

    resize(&rig, 2);

    assert_eq!(forks(&rig.run()), []);
}

#[test]
fn a_supervisor_that_stops_stays_as_it_is() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Stop);
    rig.run();

    resize(&rig, 4);

    assert_eq!(forks(&rig.run()), []);
}

#[test]
fn more_workers_than_there_is_room_for_are_refused() {
    let rig = Rig::running(2, 60);

    let refused = rig.supervisor.resize(0, MOST_WORKERS + 1, rig.now);

    assert!(matches!(refused, Err(Error::TooManyWorkers { .. })));
}
