//! Crash loops and refused forks, against fake processes and chosen instants.
#![cfg(feature = "supervisor")]

mod support;

use osloxide::signals::Request;
use osloxide::supervisor::Command;
use std::time::Duration;
use support::{ABRT, KILL, Rig, TERM, forks};

/// Lets the youngest worker die at once, and returns how long its slot then waits.
fn crash(rig: &mut Rig) -> u128 {
    let pid = rig.pids()[0];
    rig.end(pid, 256);
    rig.run();
    if !rig.pids().is_empty() {
        return 0;
    }
    let waited = rig.sleep();
    assert_eq!(forks(&rig.run()).len(), 1);
    waited
}

#[test]
fn a_crash_loop_waits_longer_and_longer_up_to_half_a_minute() {
    let mut rig = Rig::new(1, 60);
    rig.run();

    let waits: Vec<_> = (0..14).map(|_| crash(&mut rig)).collect();

    assert_eq!(
        waits,
        [
            0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000
        ]
    );
}

#[test]
fn ready_workers_that_are_killed_one_after_the_other_are_replaced_at_once_at_first() {
    let mut rig = Rig::running(1, 60);

    let waits: Vec<_> = (0..9)
        .map(|_| {
            let waited = crash(&mut rig);
            let pid = rig.pids()[0];
            rig.ready(pid);
            rig.run();
            waited
        })
        .collect();

    // A healthy one, four that are spared, the first failure.
    assert_eq!(waits, [0, 0, 0, 0, 0, 0, 50, 100, 200]);
}

#[test]
fn a_worker_that_a_tracer_keeps_is_given_up_also_where_no_descriptor_tells_of_its_end() {
    let mut rig = Rig::new(1, 60);
    rig.become_blind();
    let pid = rig.fork_all()[0];
    rig.ready(pid);
    rig.run();
    rig.advance(3600.0);

    rig.end_kept(pid);
    assert_eq!(rig.run(), [], "its tracer has a second to wait for it");
    rig.advance(1.0);

    assert_eq!(forks(&rig.run()).len(), 1);
    rig.request(Request::Stop);
    rig.run();
    rig.end(rig.pids()[0], 0);
    rig.run();
    assert_eq!(rig.supervisor.pids(), Vec::<i32>::new());
}

#[test]
fn workers_that_fail_to_get_ready_are_not_spared() {
    let mut rig = Rig::running(1, 60);

    let waits: Vec<_> = (0..4).map(|_| crash(&mut rig)).collect();

    assert_eq!(waits, [0, 0, 50, 100], "the first of them had been ready");
}

#[test]
fn a_back_off_is_reported_with_its_length() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    rig.end(100, 256);
    rig.run();

    rig.end(101, 256);
    let commands = rig.run();

    let delay = Duration::from_millis(50);
    assert!(matches!(commands[0], Command::Exited { pid: 101, .. }));
    assert_eq!(
        commands[1..],
        [Command::Backoff {
            group: 0,
            slot: 0,
            delay,
            failures: 2
        }]
    );
}

#[test]
fn a_slot_that_backs_off_delays_no_other_slot() {
    let mut rig = Rig::running(2, 60);
    for _ in 0..5 {
        let pid = rig.pids()[0];
        rig.end(pid, 256);
        rig.run();
        if rig.pids().len() < 2 {
            rig.sleep();
            rig.run();
        }
    }
    let crashing = rig.pids()[0];
    rig.end(crashing, 256);
    rig.run();
    assert_eq!(rig.pids(), [101], "slot 0 waits");

    rig.end(101, 9);

    assert_eq!(forks(&rig.run()), [(1, 0)]);
}

#[test]
fn a_worker_that_was_ready_for_ten_seconds_has_a_clean_record() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    for _ in 0..5 {
        crash(&mut rig);
    }

    let pid = rig.pids()[0];
    rig.ready(pid);
    rig.run();
    rig.advance(10.0);

    assert_eq!(crash(&mut rig), 0);
    assert_eq!(
        crash(&mut rig),
        0,
        "the first failure after a clean record costs nothing"
    );
    assert_eq!(crash(&mut rig), 50);
}

#[test]
fn a_life_of_some_seconds_neither_adds_a_failure_nor_forgives_one() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    let short_lives = [crash(&mut rig), crash(&mut rig), crash(&mut rig)];
    assert_eq!(short_lives, [0, 50, 100]);

    for _ in 0..3 {
        let pid = rig.pids()[0];
        rig.ready(pid);
        rig.run();
        rig.advance(2.0);
        assert_eq!(crash(&mut rig), 100);
    }

    assert_eq!(crash(&mut rig), 200);
}

#[test]
fn a_worker_that_dies_before_it_is_ready_failed_however_long_it_took() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    rig.advance(300.0);
    assert_eq!(crash(&mut rig), 0);
    rig.advance(300.0);
    assert_eq!(crash(&mut rig), 50);
}

#[test]
fn a_refused_fork_is_tried_again_while_the_others_serve_and_soon_succeeds() {
    let mut rig = Rig::running(2, 60);
    rig.end(100, 9);
    assert!(matches!(rig.due(), Some(Command::Exited { .. })));
    let mut waits = Vec::new();

    for _ in 0..8 {
        assert!(matches!(rig.due(), Some(Command::Fork { slot: 0, .. })));
        rig.fork_failed(0);
        assert!(matches!(rig.run()[..], [Command::Backoff { slot: 0, .. }]));
        assert_eq!(rig.pids(), [101]);
        waits.push(rig.sleep());
    }

    assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    assert_eq!(forks(&rig.run()), [(0, 0)]);
    assert_eq!(rig.pids().len(), 2);
}

#[test]
fn refusals_do_not_count_as_failures_of_the_worker() {
    let mut rig = Rig::new(1, 60);
    for _ in 0..5 {
        assert!(matches!(rig.due(), Some(Command::Fork { .. })));
        rig.fork_failed(0);
        rig.run();
        rig.sleep();
    }
    rig.run();

    assert_eq!(crash(&mut rig), 0);
}

#[test]
fn stop_ends_a_back_off_at_once() {
    let mut rig = Rig::new(2, 60);
    for slot in [0, 1] {
        assert!(matches!(rig.due(), Some(Command::Fork { .. })));
        rig.fork_failed(slot);
        assert!(matches!(rig.due(), Some(Command::Backoff { .. })));
    }

    rig.request(Request::Stop);

    assert_eq!(rig.run(), [Command::Stopping { count: 0 }]);
    assert_eq!(rig.next(), Ok(None));
}

#[test]
fn a_fork_refused_while_a_stop_was_pending_is_not_tried_again() {
    let mut rig = Rig::new(1, 60);
    assert!(matches!(rig.due(), Some(Command::Fork { .. })));
    rig.request(Request::Stop);
    rig.fork_failed(0);

    let commands = rig.run();

    assert_eq!(forks(&commands), []);
    assert!(commands.contains(&Command::Stopping { count: 0 }));
    assert_eq!(rig.next(), Ok(None));
}

#[test]
fn a_stopped_worker_is_replaced_after_the_worker_timeout() {
    let mut rig = Rig::running(2, 60);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    rig.stop_process(101);

    let mut commands = Vec::new();
    let mut slept = 0;
    while commands.is_empty() {
        slept += rig.sleep();
        commands = rig.run();
    }

    let silent = Duration::from_secs(8);
    assert_eq!(
        commands,
        [Command::Hung {
            slot: 1,
            pid: 101,
            silent
        }]
    );
    assert_eq!(slept, 10_000, "seen after 2 s, and stopped for 8 s then");
    assert_eq!(rig.signals(), [(101, ABRT)]);
    while rig.signals().is_empty() {
        rig.sleep();
        assert_eq!(rig.run(), [], "reported once");
    }
    rig.end(101, 9);
    assert_eq!(forks(&rig.run()), [(1, 0)]);
}

#[test]
fn a_worker_that_is_stuck_in_a_request_is_replaced_after_the_worker_timeout() {
    let mut rig = Rig::running(1, 60);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    let board = std::sync::Arc::clone(&rig.board);
    let row = board.row(0).unwrap();
    let second = 1_000_000_000;

    let _slow = row.begin_at(osloxide::scoreboard::now() - 5 * second);
    rig.sleep();
    assert_eq!(rig.run(), []);

    let _stuck = row.begin_at(osloxide::scoreboard::now() - 9 * second);
    rig.sleep();
    assert!(matches!(
        rig.run()[..],
        [Command::Hung {
            slot: 0,
            pid: 100,
            ..
        }]
    ));
    assert_eq!(rig.signals(), [(100, ABRT)]);
}

#[test]
fn a_hung_worker_that_ignores_sigabrt_gets_sigkill_two_seconds_later_and_once() {
    let mut rig = Rig::running(1, 60);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    let board = std::sync::Arc::clone(&rig.board);
    let long_ago = osloxide::scoreboard::now() - 9_000_000_000;
    let _stuck = board.row(0).unwrap().begin_at(long_ago);
    rig.sleep();
    rig.run();
    assert_eq!(rig.signals(), [(100, ABRT)]);

    assert_eq!(rig.sleep(), 2000);
    rig.run();

    assert_eq!(rig.signals(), [(100, KILL)]);
    rig.sleep();
    rig.run();
    assert_eq!(rig.signals(), []);
}

#[test]
fn the_sigkill_of_a_hung_worker_stays_due_when_a_stop_follows() {
    for grace in [0, 60] {
        let mut rig = Rig::running(1, grace);
        rig.supervisor
            .set_worker_timeout(Duration::from_secs(8), rig.now);
        let board = std::sync::Arc::clone(&rig.board);
        let long_ago = osloxide::scoreboard::now() - 9_000_000_000;
        let _stuck = board.row(0).unwrap().begin_at(long_ago);
        rig.sleep();
        rig.run();
        assert_eq!(rig.signals(), [(100, ABRT)]);
        rig.request(Request::Stop);
        rig.run();
        assert_eq!(rig.signals(), [(100, TERM)]);

        assert_eq!(rig.sleep(), 2000);
        rig.run();

        assert_eq!(rig.signals(), [(100, KILL)]);
    }
}

#[test]
fn a_hung_worker_that_is_late_gets_sigkill_at_the_deadline_and_no_second_sigabrt() {
    let mut rig = Rig::running(1, 1);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    let board = std::sync::Arc::clone(&rig.board);
    let long_ago = osloxide::scoreboard::now() - 9_000_000_000;
    let _stuck = board.row(0).unwrap().begin_at(long_ago);
    rig.sleep();
    rig.run();
    rig.request(Request::Stop);
    rig.run();
    assert_eq!(rig.signals(), [(100, ABRT), (100, TERM)]);

    assert_eq!(rig.sleep(), 1000);
    rig.run();

    assert_eq!(rig.signals(), [(100, KILL)]);
}

#[test]
fn a_worker_that_does_not_get_ready_within_the_worker_timeout_is_replaced() {
    let mut rig = Rig::running(1, 60);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    rig.end(100, 9);
    rig.run();
    for _ in 0..5 {
        rig.sleep();
        rig.run();
    }

    assert_eq!(rig.signals(), [(101, ABRT), (101, KILL)]);
}

#[test]
fn a_worker_that_has_ceased_to_beat_is_replaced_and_one_that_never_did_is_not() {
    let mut rig = Rig::running(2, 60);
    let timeout = Duration::from_millis(40);
    rig.supervisor.set_worker_timeout(timeout, rig.now);
    let board = std::sync::Arc::clone(&rig.board);
    board.row(1).unwrap().beat(timeout);

    // A beat is stamped by the real clock, which the test's instants do not move.
    while board.row(1).unwrap().overdue().is_none() {
        std::thread::yield_now();
    }
    let mut commands = Vec::new();
    while commands.is_empty() {
        rig.sleep();
        commands = rig.run();
    }

    assert!(matches!(commands[..], [Command::Hung { pid: 101, .. }]));
    assert_eq!(rig.signals(), [(101, ABRT)]);
}

#[test]
fn a_worker_is_not_hung_before_the_beat_that_it_promised_itself() {
    let mut rig = Rig::running(1, 60);
    let board = std::sync::Arc::clone(&rig.board);
    board.row(0).unwrap().beat(Duration::from_secs(3600));

    // The timeout was shortened, and the worker does not know that yet.
    let timeout = Duration::from_millis(1);
    rig.supervisor.set_worker_timeout(timeout, rig.now);
    for _ in 0..8 {
        rig.sleep();
        assert_eq!(rig.run(), []);
    }
}

#[test]
fn nobody_hangs_who_was_paused_together_with_the_supervisor() {
    let mut rig = Rig::running(1, 60);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    rig.stop_process(100);
    rig.sleep();
    rig.run();

    rig.advance(3600.0); // a frozen container, a suspended machine

    assert_eq!(rig.run(), []);
    rig.advance(2.0);
    assert_eq!(rig.run(), []);
    assert_eq!(rig.signals(), []);
    for _ in 0..3 {
        rig.sleep();
        rig.run();
    }
    assert_eq!(rig.signals(), [(100, ABRT)], "it is still stopped");
}

#[test]
fn a_worker_that_drains_does_not_hang() {
    let mut rig = Rig::running(1, 60);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    rig.stop_process(100);
    rig.request(Request::Stop);
    rig.run();
    rig.advance(30.0);
    assert_eq!(rig.run(), []);
    assert_eq!(rig.signals(), [(100, TERM)]);
}

#[test]
fn without_a_worker_timeout_nobody_is_looked_at() {
    let rig = Rig::running(1, 60);
    rig.supervisor
        .set_worker_timeout(Duration::from_secs(8), rig.now);
    rig.supervisor.set_worker_timeout(Duration::ZERO, rig.now);

    assert_eq!(rig.next(), Err(None));
}

#[test]
fn an_endless_worker_timeout_is_one_that_never_passes() {
    let mut rig = Rig::running(1, 60);
    rig.supervisor.set_worker_timeout(Duration::MAX, rig.now);
    rig.stop_process(100);

    rig.advance(1e9);

    assert_eq!(rig.run(), []);
}
