//! Start, stop and mutate, against fake processes and chosen instants. Rows: docs/lifecycle.md.
#![cfg(feature = "supervisor")]

mod support;

use nix::unistd::{pipe, read, write};
use osloxide::scoreboard::State;
use osloxide::signals::Request;
use osloxide::supervisor::process::LOST_STATUS;
use osloxide::supervisor::{Command, Error, MOST_WORKERS};
use std::time::Duration;
use support::{ABRT, HUP, KILL, Parked, Rig, TERM, forks};

#[test]
fn every_slot_is_forked_once_and_then_nothing_is_due() {
    let mut rig = Rig::new(3, 60);

    assert_eq!(forks(&rig.run()), [(0, 0), (1, 0), (2, 0)]);

    assert_eq!(rig.pids(), [100, 101, 102]);
    assert_eq!(
        rig.next(),
        Err(None),
        "an idle supervisor parks without a deadline"
    );
}

#[test]
fn slots_are_numbered_over_all_groups() {
    let mut rig = Rig::new(1, 60);
    assert_eq!(rig.supervisor.add_group("second", 2).unwrap(), 1);

    let commands = rig.run();

    assert_eq!(forks(&commands), [(0, 0), (1, 0), (2, 0)]);
    assert!(matches!(
        commands[2],
        Command::Fork {
            group: 1,
            slot: 2,
            ..
        }
    ));
}

#[test]
fn more_workers_than_there_is_room_for_are_refused() {
    let rig = Rig::new(1, 60);

    let refused = rig.supervisor.add_group("many", MOST_WORKERS).unwrap_err();

    assert!(matches!(refused, Error::TooManyWorkers { wanted } if wanted == MOST_WORKERS + 1));
}

#[test]
fn readiness_of_all_is_reported_once_for_each_group_that_was_added() {
    let mut rig = Rig::new(2, 60);
    rig.run();
    rig.ready(100);
    assert_eq!(rig.run(), []);
    rig.ready(101);
    assert_eq!(rig.run(), [Command::AllReady]);

    rig.end(100, 9);
    rig.run();
    rig.ready(102);
    assert_eq!(rig.run(), []);

    rig.supervisor.add_group("second", 1).unwrap();
    rig.run();
    rig.ready(103);
    assert_eq!(rig.run(), [Command::AllReady]);
}

#[test]
fn a_healthy_worker_that_dies_is_forked_again_in_its_slot_at_once() {
    let mut rig = Rig::running(3, 60);

    rig.end(101, 9);
    let commands = rig.run();

    let lifetime = Duration::from_secs(3600);
    let exited = Command::Exited {
        pid: 101,
        group: 0,
        slot: 1,
        status: 9,
        lifetime,
    };
    assert_eq!(
        commands,
        [
            exited,
            Command::Fork {
                group: 0,
                slot: 1,
                generation: 0
            }
        ]
    );
    assert_eq!(rig.pids(), [100, 103, 102]);
}

#[test]
fn a_worker_that_an_operator_terminated_is_forked_again() {
    let mut rig = Rig::running(1, 60);

    rig.end(100, 0);

    assert_eq!(forks(&rig.run()), [(0, 0)]);
}

#[test]
fn a_status_that_somebody_else_took_is_reported_as_255() {
    let mut rig = Rig::running(1, 60);

    rig.end(100, LOST_STATUS);

    assert!(matches!(
        rig.run()[0],
        Command::Exited { status: 0xff00, .. }
    ));
}

#[test]
fn stop_terminates_everybody_and_ends_after_the_last_has_left() {
    let mut rig = Rig::running(2, 60);

    rig.request(Request::Stop);

    assert_eq!(rig.run(), [Command::Stopping { count: 2 }]);
    assert_eq!(rig.signals(), [(100, TERM), (101, TERM)]);
    rig.end(100, 0);
    assert!(matches!(rig.run()[..], [Command::Exited { pid: 100, .. }]));
    rig.end(101, 0);
    assert!(matches!(rig.run()[..], [Command::Exited { pid: 101, .. }]));
    assert_eq!(rig.next(), Ok(None));
    assert_eq!(rig.supervisor.exit_status(), 0);
}

#[test]
fn workers_are_continued_after_their_sigterm_in_case_they_are_stopped() {
    let mut rig = Rig::running(1, 0);

    rig.request(Request::Stop);
    rig.run();

    assert_eq!(rig.all_signals(), [(100, TERM), (100, nix::libc::SIGCONT)]);
}

#[test]
fn second_stop_is_ignored_and_does_not_move_the_deadline() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Stop);
    rig.run();
    rig.advance(20.0);

    rig.request(Request::Stop);

    assert_eq!(rig.run(), []);
    assert_eq!(rig.signals(), [(100, TERM)]);
    assert_eq!(rig.sleep(), 40_000);
}

#[test]
fn stop_before_the_first_fork_forks_nothing() {
    let mut rig = Rig::new(4, 60);

    rig.request(Request::Stop);

    assert_eq!(rig.run(), [Command::Stopping { count: 0 }]);
    assert_eq!(rig.next(), Ok(None));
}

#[test]
fn a_worker_forked_while_a_stop_was_pending_is_terminated_at_once() {
    let mut rig = Rig::new(2, 60);
    assert!(matches!(rig.due(), Some(Command::Fork { slot: 0, .. })));

    rig.request(Request::Stop); // a handler that ran during os.fork()
    let pid = rig.forked(0);

    assert_eq!(rig.run(), [Command::Stopping { count: 1 }]);
    assert_eq!(rig.signals(), [(pid, TERM)]);
}

#[test]
fn a_worker_terminated_in_its_start_is_terminated_again_when_it_is_ready() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    rig.request(Request::Stop);
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM)]);

    rig.ready(100);
    rig.run();
    rig.ready(100);
    rig.run();

    assert_eq!(rig.signals(), [(100, TERM)], "once more, and not twice");
}

#[test]
fn a_worker_that_reported_and_ended_is_reaped_and_not_signalled_any_more() {
    let mut rig = Rig::new(1, 60);
    rig.run();
    rig.request(Request::Stop);
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM)]);

    rig.ready(100);
    rig.end(100, 0);
    rig.run();

    assert_eq!(rig.pids(), [0_i32; 0]);
    assert_eq!(rig.signals(), [], "the pid may be another process's by now");
}

#[test]
fn at_the_deadline_every_late_worker_is_killed_and_named() {
    let mut rig = Rig::running(3, 60);
    rig.request(Request::Stop);
    rig.run();
    rig.end(101, 0);
    rig.run();
    rig.signals();
    assert_eq!(rig.sleep(), 60_000);

    let waited = Duration::from_secs(60);
    let late = |slot, pid| Command::Late { slot, pid, waited };
    assert_eq!(rig.run(), [late(0, 100), late(2, 102)]);

    assert_eq!(rig.signals(), [(100, ABRT), (102, ABRT)]);
    rig.end(100, 6);
    rig.run();
    assert_eq!(
        rig.sleep(),
        250,
        "the one that SIGABRT has not ended gets SIGKILL"
    );
    rig.run();
    assert_eq!(rig.signals(), [(102, KILL)]);
    assert_eq!(rig.next(), Err(None), "SIGKILL is sent once");
    rig.end(102, 9);
    rig.run();
    assert_eq!(rig.next(), Ok(None));
    assert_eq!(rig.supervisor.exit_status(), 1);
}

#[test]
fn an_abort_during_the_last_words_of_a_late_worker_kills_it_at_once() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Stop);
    rig.run();
    rig.sleep();
    rig.run();
    assert_eq!(rig.signals(), [(100, TERM), (100, ABRT)]);

    rig.request(Request::Abort);
    rig.run();

    assert_eq!(rig.signals(), [(100, KILL)]);
    assert_eq!(rig.next(), Err(None), "SIGKILL is sent once");
}

#[test]
fn a_grace_of_zero_is_for_ever() {
    let mut rig = Rig::running(1, 0);

    rig.request(Request::Stop);
    rig.run();

    assert_eq!(rig.next(), Err(None));
    rig.advance(1e6);
    assert_eq!(rig.run(), []);
    assert_eq!(rig.signals(), [(100, TERM)]);
}

#[test]
fn abort_kills_everybody_at_once() {
    let mut rig = Rig::new(2, 60);
    rig.run();
    rig.ready(100);

    rig.request(Request::Abort);

    assert_eq!(rig.run(), [Command::Stopping { count: 2 }]);
    assert_eq!(rig.signals(), [(100, KILL), (101, KILL)]);
    rig.end(100, 9);
    rig.end(101, 9);
    rig.run();
    assert_eq!((rig.next(), rig.supervisor.exit_status()), (Ok(None), 1));
}

#[test]
fn abort_during_a_drain_kills_those_that_are_left() {
    let mut rig = Rig::running(2, 0);
    rig.request(Request::Stop);
    rig.run();
    rig.end(100, 0);
    rig.run();
    rig.signals();

    rig.request(Request::Abort);

    assert_eq!(rig.run(), []);
    assert_eq!(rig.signals(), [(101, KILL)]);
}

#[test]
fn of_all_pending_requests_the_most_urgent_one_wins() {
    let mut rig = Rig::running(1, 60);
    for request in [Request::Mutate, Request::Reload, Request::Stop] {
        rig.request(request);
    }

    assert_eq!(rig.run(), [Command::Stopping { count: 1 }]);
    assert_eq!(rig.signals(), [(100, TERM)]);
}

#[test]
fn mutate_hangs_up_ready_workers_now_and_starting_ones_when_they_are_ready() {
    let mut rig = Rig::new(2, 60);
    rig.run();
    rig.ready(100);
    rig.run();

    rig.request(Request::Mutate);

    assert_eq!(rig.run(), [Command::Mutate]);
    assert_eq!(
        rig.signals(),
        [(100, HUP)],
        "SIGHUP would end a worker without a handler"
    );
    rig.ready(101);
    rig.run();
    assert_eq!(rig.signals(), [(101, HUP)]);
}

#[test]
fn a_mutation_is_over_when_every_worker_has_said_so_or_ended() {
    let mut rig = Rig::running(3, 60);
    rig.request(Request::Mutate);
    assert_eq!(rig.run(), [Command::Mutate]);

    rig.ready(100);
    rig.ready(101);
    assert_eq!(rig.run(), []);
    rig.end(102, 9);

    let commands = rig.run();
    assert_eq!(commands[0], Command::Reloaded);
    assert_eq!(forks(&commands), [(2, 0)]);
    rig.ready(100); // it got a SIGHUP of its own
    assert_eq!(rig.run(), []);
}

#[test]
fn a_worker_forked_after_a_mutation_is_not_told_of_it() {
    let mut rig = Rig::running(1, 60);
    rig.request(Request::Mutate);
    rig.run();
    rig.end(100, 9);
    rig.run();
    rig.signals();

    rig.ready(101);
    rig.run();

    assert_eq!(rig.signals(), []);
}

#[test]
fn an_unusable_configuration_changes_nothing() {
    for request in [Request::Mutate, Request::Reload] {
        let mut rig = Rig::running(2, 60);
        rig.request(request);
        assert!(matches!(rig.due(), Some(Command::Mutate | Command::Reload)));

        assert_eq!(
            rig.due(),
            None,
            "next() without configured() drops the request"
        );
        rig.supervisor.configured(rig.now); // too late

        assert_eq!(rig.run(), []);
        assert_eq!(rig.signals(), []);
    }
}

#[test]
fn without_workers_it_parks_until_it_is_stopped() {
    let mut rig = Rig::new(0, 60);
    assert_eq!(rig.next(), Err(None));

    rig.request(Request::Mutate);
    assert_eq!(rig.run(), [Command::Mutate, Command::Reloaded]);
    rig.request(Request::Reload);
    assert_eq!(rig.run(), [Command::Reload, Command::Reloaded]);

    rig.request(Request::Stop);
    assert_eq!(rig.run(), [Command::Stopping { count: 0 }]);
    assert_eq!(rig.next(), Ok(None));
}

#[test]
fn a_fork_has_to_be_answered_once() {
    let mut rig = Rig::new(1, 60);
    assert!(matches!(rig.due(), Some(Command::Fork { slot: 0, .. })));

    let unanswered = rig.supervisor.due(rig.now).unwrap_err();
    assert!(matches!(unanswered, Error::Unanswered { slot: 0 }));

    rig.forked(0);
    let again = rig.supervisor.forked(0, 999, rig.now).unwrap_err();
    assert!(matches!(again, Error::NotForking { slot: 0 }));
    assert!(rig.supervisor.fork_failed(7, rig.now).is_err());
}

#[test]
fn a_fork_that_python_gave_up_on_does_not_prevent_a_stop() {
    let mut rig = Rig::new(2, 60);
    assert!(matches!(rig.due(), Some(Command::Fork { slot: 0, .. })));
    let pid = rig.forked(0);
    assert!(matches!(rig.due(), Some(Command::Fork { slot: 1, .. })));

    rig.request(Request::Stop); // an exception left the loop and reached the launcher's stop()

    assert!(rig.run().contains(&Command::Stopping { count: 1 }));
    assert_eq!(rig.signals(), [(pid, TERM)]);
    rig.end(pid, 0);
    rig.run();
    assert_eq!(rig.next(), Ok(None));
}

#[test]
fn a_handler_that_requests_nothing_is_reported_and_one_that_does_is_obeyed() {
    let rig = Rig::running(1, 60);
    let now = rig.now;

    let next = |request: Option<Request>| {
        rig.supervisor.next::<Error>(
            || now,
            |_, _| {
                if let Some(request) = request {
                    rig.supervisor.request(request);
                }
                Ok(true)
            },
        )
    };

    assert_eq!(next(None).unwrap(), Some(Command::Interrupted));
    assert_eq!(
        next(Some(Request::Stop)).unwrap(),
        Some(Command::Stopping { count: 1 })
    );
}

#[test]
fn a_request_from_another_thread_ends_the_wait() {
    let rig = Rig::running(1, 60);
    let now = rig.now;

    let command = std::thread::scope(|scope| {
        rig.supervisor.next::<Error>(
            || now,
            |fds, _| {
                scope
                    .spawn(|| rig.supervisor.request(Request::Stop))
                    .join()
                    .unwrap();
                let ready = osloxide::signals::poll_readable(fds, Some(now)).unwrap();
                assert_eq!(ready.len(), 1);
                Ok(false)
            },
        )
    });

    assert_eq!(command.unwrap(), Some(Command::Stopping { count: 1 }));
}

#[test]
fn a_notice_of_an_unknown_or_ended_worker_is_ignored() {
    let mut rig = Rig::running(1, 60);
    rig.end(100, 9);
    rig.ready(100);
    rig.ready(4242);

    assert_eq!(forks(&rig.run()), [(0, 0)]);
}

#[test]
fn children_of_the_application_are_never_asked_for() {
    let mut rig = Rig::running(2, 60);
    rig.end(4242, 0); // subprocess in the parent

    assert_eq!(rig.run(), []);

    assert_eq!(rig.asked_for_any(), 0);
}

#[test]
fn process_1_asks_about_an_unknown_child_that_nobody_waited_for_and_reaps_it() {
    let mut rig = Rig::init(1);
    rig.run();

    rig.end(4242, 256);

    assert_eq!(rig.run(), [], "somebody may be waiting for it");
    assert_eq!(rig.sleep(), 2000);
    assert_eq!(rig.run(), [Command::Orphan { pid: 4242 }]);
    assert_eq!(rig.supervisor.reap_orphan(4242), Some(256));
    assert_eq!(rig.supervisor.reap_orphan(4242), None, "once");
    assert_eq!(rig.pids(), [100]);
    assert_eq!(rig.next(), Err(None));
}

#[test]
fn process_1_leaves_a_child_to_the_application_that_waits_for_it() {
    let mut rig = Rig::init(1);
    rig.run();
    rig.end(4242, 256);
    rig.end(4243, 256);
    rig.run();
    rig.waited_for(4242);
    rig.advance(2.0);

    assert_eq!(rig.run(), [Command::Orphan { pid: 4243 }]);

    assert_eq!(rig.supervisor.reap_orphan(4242), None);
    assert_eq!(
        rig.sleep(),
        60_000,
        "not reaped: asked again a minute later"
    );
    assert_eq!(rig.run(), [Command::Orphan { pid: 4243 }]);
}

#[test]
fn while_forks_are_held_none_is_handed_out_and_all_else_goes_on() {
    let mut rig = Rig::running(2, 60);
    rig.supervisor.hold_forks(true);
    rig.end(100, KILL);

    assert_eq!(forks(&rig.run()), []);
    assert_eq!(rig.next(), Err(None), "it parks, and does not spin");

    rig.supervisor.hold_forks(false);
    assert_eq!(forks(&rig.run()), [(0, 0)]);
}

#[test]
fn a_stop_ends_a_supervisor_that_holds_its_first_forks() {
    let mut rig = Rig::new(2, 60);
    rig.supervisor.hold_forks(true);
    assert_eq!(rig.run(), []);

    rig.request(Request::Stop);

    assert_eq!(rig.run(), [Command::Stopping { count: 0 }]);
    assert_eq!(rig.next(), Ok(None));
}

#[test]
fn news_of_a_template_are_handed_out_until_they_are_taken() {
    let mut rig = Rig::running(1, 60);
    let (template, channel) = pipe().unwrap();
    let watched = template.try_clone().unwrap();
    rig.supervisor.watch_templates(vec![watched]);
    assert_eq!(rig.run(), []);

    write(&channel, b"x").unwrap();
    assert_eq!(rig.due(), Some(Command::Template));
    assert_eq!(rig.due(), Some(Command::Template));
    read(&template, &mut [0; 8]).unwrap();
    assert_eq!(rig.due(), None);

    drop(channel);
    assert_eq!(rig.due(), Some(Command::Template), "its end");
    rig.supervisor.watch_templates(Vec::new());
    assert_eq!(rig.due(), None);
}

#[test]
fn a_tick_is_handed_out_at_its_interval_and_missed_ones_are_not_made_up_for() {
    let mut rig = Rig::running(1, 60);
    rig.supervisor.set_tick(Duration::from_secs(10), rig.now);

    assert_eq!(rig.sleep(), 10_000);
    assert_eq!(rig.run(), [Command::Tick]);
    rig.advance(35.0);
    assert_eq!(rig.run(), [Command::Tick]);
    assert_eq!(rig.sleep(), 10_000);

    rig.supervisor.set_tick(Duration::ZERO, rig.now);
    assert_eq!(rig.run(), []);
    assert_eq!(rig.next(), Err(None));
}

#[test]
fn the_scoreboard_shows_every_state_of_a_slot() {
    let mut rig = Rig::new(1, 5);
    let state = |rig: &Rig| (rig.rows().len(), rig.rows()[0].state, rig.rows()[0].pid);
    rig.run();
    assert_eq!(state(&rig), (1, State::Starting, 100));

    rig.end(100, 9);
    rig.run();
    rig.end(101, 9);
    rig.run();
    assert_eq!(state(&rig), (1, State::Waiting, 0));
    assert_eq!(
        (rig.rows()[0].respawns, rig.rows()[0].last_exit),
        (1, Some(9))
    );

    rig.sleep();
    rig.run();
    assert_eq!(state(&rig), (1, State::Starting, 102));
    rig.request(Request::Stop);
    rig.run();
    assert_eq!(state(&rig), (1, State::Draining, 102));
    rig.sleep();
    rig.run();
    assert_eq!(state(&rig), (1, State::Killing, 102));
    rig.end(102, 9);
    rig.run();
    assert_eq!(state(&rig), (1, State::Gone, 0));
}

#[test]
fn what_the_wait_returns_is_returned() {
    let rig = Rig::running(1, 60);
    let now = rig.now;

    let failed = rig.supervisor.next(|| now, |_, _| Err(Parked(None)));

    assert!(failed.is_err());
}
