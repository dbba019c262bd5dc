//! Rolling replacement of workers, against fake processes and chosen instants.
#![cfg(feature = "supervisor")]

mod support;

use osloxide::signals::Request;
use osloxide::supervisor::Command;
use osloxide::supervisor::roster::Phase;
use std::time::Duration;
use support::{ABRT, HUP, KILL, Rig, TERM, forks};

/// Workers get ready, and those that were terminated leave, until nothing moves any more. Returns
/// all commands.
fn settle(rig: &mut Rig) -> Vec<Command> {
    let mut commands = Vec::new();
    loop {
        for pid in rig.pids() {
            rig.ready(pid);
        }
        let more = rig.run();
        let signals = rig.signals();
        if more.is_empty() && signals.is_empty() {
            return commands;
        }
        commands.extend(more);
        for (pid, number) in signals {
            assert_eq!(number, TERM);
            rig.end(pid, 0);
        }
    }
}

/// Its only worker gets ready after so many seconds, and serves for an hour.
fn start_slowly(rig: &mut Rig, seconds: f64) {
    let pid = rig.fork_all()[0];
    rig.advance(seconds);
    rig.ready(pid);
    rig.run();
    rig.advance(3600.0);
}

fn reloads(commands: &[Command]) -> usize {
    commands
        .iter()
        .filter(|command| **command == Command::Reload)
        .count()
}

#[test]
fn workers_are_replaced_one_by_one_and_each_only_when_its_successor_is_ready() {
    let mut rig = Rig::running(2, 60);

    rig.request(Request::Reload);
    assert_eq!(
        rig.run(),
        [
            Command::Reload,
            Command::Fork {
                group: 0,
                slot: 0,
                generation: 1
            }
        ]
    );
    assert_eq!(
        rig.signals(),
        [],
        "the old worker serves until the new one does"
    );

    rig.ready(102);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    assert_eq!(rig.signals(), [(100, TERM)]);

    rig.ready(103);
    assert_eq!(rig.run(), [Command::Reloaded]);
    assert_eq!(rig.signals(), [(101, TERM)]);

    rig.end(100, 0);
    rig.end(101, 0);
    assert_eq!(
        forks(&rig.run()),
        [],
        "a worker that was replaced is not forked again"
    );
    assert_eq!(rig.pids(), [102, 103]);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
}

#[test]
fn a_storm_of_reloads_makes_two_rounds_and_leaves_one_generation() {
    let mut rig = Rig::running(3, 60);
    rig.request(Request::Reload);
    rig.run();
    for _ in 0..20 {
        rig.request(Request::Reload);
        assert_eq!(rig.run(), []);
    }

    let commands = settle(&mut rig);

    assert_eq!(reloads(&commands), 1, "one more round for all twenty");
    let is_over = |command: &&Command| **command == Command::Reloaded;
    assert_eq!(
        commands.iter().filter(is_over).count(),
        1,
        "once, at the end"
    );
    assert_eq!(forks(&commands), [(1, 1), (2, 1), (0, 2), (1, 2), (2, 2)]);
    let generations: Vec<_> = rig
        .rows()
        .iter()
        .filter(|row| row.pid != 0)
        .map(|row| row.generation)
        .collect();
    assert_eq!(generations, [2, 2, 2]);
}

#[test]
fn a_new_worker_that_dies_before_it_is_ready_is_retried_once_while_the_old_one_stays() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Reload);
    rig.run();

    rig.end(102, 256);

    assert_eq!(forks(&rig.run()), [(0, 1)]);
    assert_eq!(rig.signals(), []);
    assert_eq!(rig.pids(), [100, 103, 101]);
}

#[test]
fn where_new_workers_fail_beside_the_old_one_it_leaves_first() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.end(102, 256);
    rig.run();

    rig.end(103, 256);

    let why = Command::LeavesFirst {
        group: 0,
        slot: 0,
        pid: 100,
        waited: None,
    };
    assert!(matches!(rig.run()[..], [Command::Exited { .. }, said] if said == why));
    assert_eq!(rig.signals(), [(100, TERM)]);
    rig.end(100, 0);
    assert_eq!(forks(&rig.run()), [(0, 1)], "at once");
    settle(&mut rig);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
    assert_eq!(rig.pids().len(), 2);
}

#[test]
fn where_the_old_worker_has_left_first_no_next_start_is_put_off_for_long() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.end(101, 256);
    rig.run();
    rig.end(102, 256);
    rig.run();
    rig.end(100, 0);
    rig.run();

    // The reason was another one: a database that is away.
    for pid in 103..120 {
        assert_eq!(rig.pids(), [pid]);
        rig.end(pid, 256);
        for command in rig.run() {
            if let Command::Backoff { delay, .. } = command {
                assert!(delay <= Duration::from_secs(1), "{delay:?}");
            }
        }
        rig.advance(1.0);
        if pid == 105 {
            rig.request(Request::Reload);
        }
        rig.run();
    }

    settle(&mut rig);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
    assert_eq!(rig.pids(), [120]);
}

#[test]
fn the_old_worker_serves_on_where_new_code_cannot_be_loaded() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Reload);
    rig.run();
    for _ in 0..3 {
        let unready = rig.pids()[1];
        rig.end(unready, 3 << 8);
        rig.run();
        rig.advance(1.0);
        rig.run();
    }
    assert_eq!(rig.signals(), [], "it needs no place of the old one's");
    assert_eq!(rig.pids()[0], 100);

    settle(&mut rig); // the code was mended

    assert_eq!(rig.supervisor.phase(), Phase::Running);
    assert!(!rig.pids().contains(&100));
}

#[test]
fn a_reload_while_the_round_is_stuck_acts_at_once() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Reload);
    rig.run();
    for _ in 0..2 {
        let unready = rig.pids()[1];
        rig.end(unready, 256);
        rig.run();
    }
    assert_eq!(
        rig.pids(),
        [100, 101],
        "the old worker of slot 0 leaves first"
    );

    rig.request(Request::Reload); // the operator has mended the configuration

    assert_eq!(
        forks(&rig.run()),
        [(0, 2)],
        "beside it: it may fail no more"
    );
    rig.end(100, 0);
    assert_eq!(forks(&rig.run()), []);
    settle(&mut rig);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
    assert_eq!(rig.pids().len(), 2);
}

#[test]
fn a_new_worker_that_hangs_in_its_start_is_given_up_at_the_next_reload() {
    let mut rig = Rig::new(1, 0);
    start_slowly(&mut rig, 20.0);
    rig.request(Request::Reload);
    rig.run();
    rig.advance(10.0);

    rig.request(Request::Reload);

    assert_eq!(rig.run(), [Command::Reload]);
    assert_eq!(rig.signals(), [(101, TERM)]);
    assert_eq!(
        rig.sleep(),
        10_000,
        "it has nothing to drain, so it gets no eternity"
    );
    rig.run();
    rig.sleep();
    rig.run();
    assert_eq!(rig.signals(), [(101, ABRT), (101, KILL)]);
    rig.end(101, 9);
    assert_eq!(forks(&rig.run()), [(0, 2)]);
    assert_eq!(rig.pids(), [100, 102]);
}

#[test]
fn where_a_new_worker_does_not_get_ready_beside_the_old_one_it_leaves_first() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Reload);
    rig.run();

    assert_eq!(rig.sleep(), 30_000, "a start took no time before");
    let why = Command::LeavesFirst {
        group: 0,
        slot: 0,
        pid: 100,
        waited: Some(Duration::from_secs(30)),
    };
    assert_eq!(rig.run(), [why]);

    assert_eq!(
        rig.signals(),
        [(100, TERM)],
        "it may have what its successor waits for"
    );
    rig.end(100, 0);
    rig.run();
    rig.ready(102);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    settle(&mut rig);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
    assert_eq!(rig.pids().len(), 2);
}

#[test]
fn a_reload_after_the_old_worker_was_told_to_leave_has_the_next_one_start_beside_it() {
    let mut rig = Rig::running(1, 0);
    rig.request(Request::Reload);
    rig.run();
    rig.sleep();
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM)], "it may drain for ever");

    rig.request(Request::Reload);
    assert_eq!(rig.run(), [Command::Reload]);
    assert_eq!(rig.signals(), [(101, TERM)], "of the last configuration");
    rig.end(101, 0);

    assert_eq!(forks(&rig.run()), [(0, 2)]);
    rig.request(Request::Reload);
    assert_eq!(rig.run(), [], "noted: the round goes on");
    rig.ready(102);
    assert_eq!(rig.run()[0], Command::Reload);
    assert_eq!(rig.pids(), [102, 103, 100]);
}

#[test]
fn the_next_one_starts_beside_a_worker_that_leaves_wherever_the_new_round_is() {
    let mut rig = Rig::running(2, 0);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(102);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    rig.sleep();
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM), (101, TERM)]);

    rig.request(Request::Reload);
    assert_eq!(forks(&rig.run()), [(0, 2)]);
    rig.end(103, 0);
    assert_eq!(forks(&rig.run()), [(1, 2)], "slot 0 is still starting");
    rig.ready(105);
    rig.run();

    assert_eq!(rig.pids(), [102, 104, 100, 105, 101]);
    rig.ready(104);
    assert_eq!(rig.run(), [Command::Reloaded]);
}

#[test]
fn a_worker_that_fails_beside_the_old_one_is_not_forked_again_before_that_has_left() {
    let mut rig = Rig::running(1, 0);
    rig.request(Request::Reload);
    rig.run();
    for pid in [101, 102] {
        rig.end(pid, 256);
        rig.run();
    }
    assert_eq!(rig.signals(), [(100, TERM)]);

    assert_eq!(rig.next(), Err(None), "it needs what the old one has");

    rig.end(100, 0);
    assert_eq!(forks(&rig.run()), [(0, 1)]);
}

#[test]
fn what_a_start_of_one_slot_has_taken_is_waited_for_in_the_others_of_its_group() {
    let mut rig = Rig::running(2, 60);
    rig.supervisor.add_group("other", 1).unwrap();
    let other = rig.fork_all()[0];
    rig.advance(200.0);
    rig.ready(other);
    rig.run();

    rig.request(Request::Reload);
    rig.run();
    rig.advance(25.0);
    rig.ready(103);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    assert_eq!(rig.signals(), [(100, TERM)]);
    rig.end(100, 0);
    rig.run();

    assert_eq!(rig.sleep(), 75_000, "three times as long");
    rig.run();
    assert_eq!(rig.signals(), [(101, TERM)]);
}

#[test]
fn a_quick_start_does_not_make_the_next_slow_one_look_odd() {
    let mut rig = Rig::new(1, 60);
    start_slowly(&mut rig, 40.0);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(101);
    rig.run();
    rig.end(100, 0);

    rig.request(Request::Reload);
    rig.run();

    assert_eq!(rig.sleep(), 60_000, "three times half as long");
}

#[test]
fn a_wait_for_the_old_worker_does_not_make_the_next_one_longer() {
    let mut rig = Rig::running(1, 0);
    for waited in [30_000, 93_000, 93_000] {
        let old = rig.pids()[0];
        rig.request(Request::Reload);
        rig.run();
        assert_eq!(rig.sleep(), waited);
        rig.run();
        assert_eq!(rig.signals(), [(old, TERM)]);
        rig.advance(500.0);
        rig.end(old, 0);
        rig.run();
        rig.advance(1.0);
        rig.ready(old + 1);
        assert_eq!(rig.run(), [Command::Reloaded]);
    }
}

#[test]
fn a_start_of_hours_is_no_measure() {
    let mut rig = Rig::new(1, 60);
    start_slowly(&mut rig, 7200.0);
    rig.request(Request::Reload);
    rig.run();

    assert_eq!(rig.sleep(), 600_000);
}

#[test]
fn readiness_is_told_also_where_a_reload_replaced_a_worker_that_never_got_ready() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    rig.request(Request::Reload);
    rig.run();

    rig.ready(101);

    let commands = rig.run();
    assert!(commands.contains(&Command::AllReady), "{commands:?}");
    assert_eq!(rig.signals(), [(100, TERM)]);
}

#[test]
fn a_new_worker_that_was_only_slow_serves_beside_the_old_one_that_drains() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.sleep();
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM)]);

    rig.ready(101);

    assert_eq!(rig.run(), [Command::Reloaded]);
    assert_eq!(rig.signals(), [], "SIGTERM once");
    assert_eq!(rig.pids(), [101, 100]);
}

#[test]
fn a_new_worker_that_starts_as_slowly_as_ever_is_waited_for() {
    let mut rig = Rig::new(1, 60);
    start_slowly(&mut rig, 40.0);
    rig.request(Request::Reload);
    rig.run();

    assert_eq!(rig.sleep(), 120_000, "three times as long");
    rig.ready(101);
    assert_eq!(rig.run(), [Command::Reloaded]);
    assert_eq!(rig.signals(), [(100, TERM)]);
}

#[test]
fn an_old_worker_that_dies_while_its_successor_starts_is_not_forked_again() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Reload);
    rig.run();

    rig.end(100, 9);

    assert!(matches!(rig.run()[..], [Command::Exited { pid: 100, .. }]));
    assert_eq!(rig.pids(), [101]);
    rig.ready(101);
    assert_eq!(rig.run(), [Command::Reloaded]);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
    assert_eq!(rig.signals(), []);
}

#[test]
fn a_worker_that_dies_ahead_of_the_round_comes_back_new_and_is_not_replaced_again() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Reload);
    rig.run();

    rig.end(101, 9);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    let commands = settle(&mut rig);

    assert_eq!(forks(&commands), []);
    assert_eq!(rig.pids(), [102, 103]);
    assert_eq!(rig.supervisor.phase(), Phase::Running);
}

#[test]
fn a_reload_during_the_first_start_replaces_workers_that_never_served() {
    let mut rig = Rig::new(2, 60);
    rig.run();

    rig.request(Request::Reload);
    assert_eq!(forks(&rig.run()), [(0, 1)]);
    let commands = settle(&mut rig);

    assert_eq!(forks(&commands), [(1, 1)]);
    assert!(commands.contains(&Command::AllReady));
    assert_eq!(rig.pids(), [102, 103]);
}

#[test]
fn a_slot_that_waits_to_be_forked_comes_back_new_at_once() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    rig.end(100, 256);
    rig.run();
    rig.end(101, 256);
    rig.run();
    assert!(rig.pids().is_empty());

    rig.request(Request::Reload);

    assert_eq!(
        rig.run(),
        [
            Command::Reload,
            Command::Fork {
                group: 0,
                slot: 0,
                generation: 1
            }
        ]
    );
}

#[test]
fn stop_during_a_reload_terminates_old_and_new_and_forks_no_more() {
    let mut rig = Rig::running(3, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(103);
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM)]);
    assert_eq!(rig.pids(), [103, 100, 101, 104, 102]);

    rig.request(Request::Stop);

    assert_eq!(rig.run(), [Command::Stopping { count: 5 }]);
    assert_eq!(
        rig.signals(),
        [(103, TERM), (101, TERM), (104, TERM), (102, TERM)]
    );
    for pid in rig.pids() {
        rig.end(pid, 0);
    }
    assert_eq!(forks(&rig.run()), []);
    assert_eq!((rig.next(), rig.supervisor.exit_status()), (Ok(None), 0));
}

#[test]
fn reload_and_mutate_during_a_shutdown_are_ignored() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Stop);
    rig.run();
    rig.signals();

    rig.request(Request::Reload);
    rig.request(Request::Mutate);

    assert_eq!(rig.run(), []);
    assert_eq!(rig.signals(), []);
}

#[test]
fn mutate_during_a_reload_reaches_old_and_new_workers() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(102);
    rig.run();
    rig.signals();

    rig.request(Request::Mutate);

    assert_eq!(rig.run(), [Command::Mutate]);
    assert_eq!(
        rig.signals(),
        [(102, HUP), (101, HUP)],
        "not one that drains or starts"
    );
    rig.ready(103);
    rig.run();
    assert_eq!(rig.signals(), [(103, HUP), (101, TERM)]);
}

#[test]
fn a_slot_is_not_replaced_again_while_its_last_worker_still_drains() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(101);
    rig.run();
    rig.signals();

    rig.request(Request::Reload);
    assert_eq!(rig.run(), [Command::Reload]);
    assert_eq!(rig.pids(), [101, 100]);

    rig.end(100, 0);
    assert_eq!(forks(&rig.run()), [(0, 2)]);
}

#[test]
fn without_a_grace_period_a_slot_is_replaced_again_while_earlier_workers_still_drain() {
    let mut rig = Rig::running(1, 0);
    for generation in 1..=8 {
        rig.request(Request::Reload);
        let pid = 100 + i32::try_from(generation).unwrap();
        assert_eq!(forks(&rig.run()), [(0, generation)]);
        rig.ready(pid);
        rig.run();
        assert_eq!(rig.signals(), [(pid - 1, TERM)]);
    }
    assert_eq!(rig.pids().len(), 9, "one serves, eight drain for ever");

    rig.request(Request::Reload);
    assert_eq!(rig.run(), [Command::Reload], "not without bounds");
    rig.end(103, 0);

    assert_eq!(forks(&rig.run()), [(0, 9)]);
    rig.request(Request::Stop);
    rig.run();
    for pid in rig.pids() {
        rig.end(pid, 0);
    }
    rig.run();
    assert_eq!((rig.next(), rig.supervisor.exit_status()), (Ok(None), 0));
}

#[test]
fn a_replaced_worker_that_is_late_is_killed_without_spoiling_the_exit_status() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(101);
    rig.run();
    rig.signals();

    assert_eq!(rig.sleep(), 60_000);
    assert!(matches!(
        rig.run()[..],
        [Command::Late {
            slot: 0,
            pid: 100,
            ..
        }]
    ));

    assert_eq!(rig.signals(), [(100, ABRT)]);
    rig.end(100, 6);
    rig.run();
    rig.request(Request::Stop);
    rig.run();
    rig.end(101, 0);
    rig.run();
    assert_eq!((rig.next(), rig.supervisor.exit_status()), (Ok(None), 0));
}

#[test]
fn the_stop_deadline_also_holds_for_workers_that_a_reload_let_drain_for_longer() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(101);
    rig.run();

    rig.supervisor.set_grace(Duration::from_secs(5));
    rig.request(Request::Stop);
    rig.run();

    assert_eq!(rig.sleep(), 5_000);
    rig.run();
    assert_eq!(
        rig.signals(),
        [(100, TERM), (101, TERM), (101, ABRT), (100, ABRT)]
    );
}

#[test]
fn rows_of_replaced_workers_are_given_back() {
    let mut rig = Rig::running(2, 60);

    for _ in 0..50 {
        rig.request(Request::Reload);
        settle(&mut rig);
    }

    assert_eq!(rig.rows().len(), 2);
    assert_eq!(rig.rows()[0].generation, 50);
}

#[test]
fn a_slot_whose_worker_left_first_is_filled_although_a_new_round_waits_elsewhere() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Reload);
    rig.run();
    rig.ready(102);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    assert_eq!(rig.signals(), [(100, TERM)]);
    rig.end(103, 256);
    assert_eq!(forks(&rig.run()), [(1, 1)]);
    rig.end(104, 256);
    rig.run();
    assert_eq!(rig.signals(), [(101, TERM)], "it leaves first");

    rig.end(100, 0);
    rig.request(Request::Reload);
    assert_eq!(forks(&rig.run()), [(0, 2), (1, 2)]);
    rig.end(106, 256);
    assert_eq!(forks(&rig.run()), [(1, 2)]);
    rig.end(107, 256);
    assert_eq!(forks(&rig.run()), []);
    rig.end(101, 0);

    assert_eq!(forks(&rig.run()), [(1, 2)], "slot 0 is still starting");
}

#[test]
fn a_round_without_a_reload_replaces_every_worker_and_reports_its_end() {
    let mut rig = Rig::running(2, 60);

    rig.supervisor.replace_workers(rig.now);

    let commands = settle(&mut rig);
    assert_eq!(reloads(&commands), 0, "the configuration is not asked for");
    assert_eq!(forks(&commands), [(0, 1), (1, 1)]);
    assert!(commands.contains(&Command::Reloaded));
}

#[test]
fn no_round_begins_while_stopping() {
    let mut rig = Rig::running(2, 60);
    rig.request(Request::Stop);
    rig.run();

    rig.supervisor.replace_workers(rig.now);

    assert_eq!(forks(&rig.run()), []);
    assert_eq!(
        rig.supervisor.phase(),
        Phase::Stopping {
            deadline: Some(rig.now + Duration::from_secs(60))
        }
    );
}
