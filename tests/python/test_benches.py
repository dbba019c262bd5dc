"""The benches keep the rules that benches/README.md states."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import wait_until

BENCHES = Path(__file__).resolve().parents[2] / "benches"
sys.path.insert(0, str(BENCHES))

from measure import machine, peers, report, wsgi  # noqa: E402


def a_round(cpu_us: float = 10.0, *, others: float = 0.0, failed: int = 0) -> wsgi.Round:
    return wsgi.Round(
        requests=1000,
        rate=100.0,
        cpu_us=cpu_us,
        user_us=cpu_us / 2,
        p50_us=1.0,
        p99_us=2.0,
        at_work=1.0,
        failed=failed,
        others=others,
        pss_kib=1024,
    )


def test_a_thread_that_computes_counts_as_ready_and_one_that_waits_does_not() -> None:
    code = "import threading; threading.Thread(target={}).start(); threading.Event().wait()"
    spin, wait = "lambda: [0 for _ in iter(int, 1)]", "threading.Event().wait"
    computes, waits = (
        subprocess.Popen([sys.executable, "-c", code.format(target)]) for target in (spin, wait)
    )
    try:
        # Both are ready while they start, however long that takes; then one goes on being so.
        wait_until(
            lambda: machine.ready([computes.pid]) > machine.ready([waits.pid]) + 0.5,
            "half a second at work more",
        )
    finally:
        for process in (computes, waits):
            process.kill()
            process.wait()
    assert machine.ready([computes.pid]) == 0.0


def test_disturbed_rounds_do_not_count_while_three_quiet_ones_remain() -> None:
    rounds = [a_round(10), a_round(11), a_round(12), a_round(500, others=0.9)]

    summary = report.summarise("eventlet", rounds)

    assert summary.cpu_us == 11
    assert (summary.counted, summary.rounds, summary.mark) == (3, 4, "")


def test_a_run_without_enough_quiet_rounds_says_that_it_was_disturbed() -> None:
    rounds = [a_round(10), a_round(20, others=0.9), a_round(30, others=0.9)]

    summary = report.summarise("eventlet", rounds)

    assert summary.cpu_us == 20
    assert (summary.counted, summary.mark) == (3, " (disturbed)")


def test_a_failure_counts_even_in_a_round_that_does_not() -> None:
    rounds = [a_round(), a_round(), a_round(), a_round(others=0.9, failed=7)]

    assert report.summarise("eventlet", rounds).failed == 7


def test_ratios_are_to_osloxide_in_the_same_run() -> None:
    summaries = [
        report.summarise("osloxide", [a_round(8)]),
        report.summarise("eventlet", [a_round(80)]),
    ]

    table = report.wsgi_table(wsgi.WORKLOADS["trivial"], summaries)

    assert re.search(r"\| eventlet \| 80\.0 \(40\.0\) \| 10\.00 \|", table)
    assert table.index("| osloxide |") < table.index("| eventlet |")  # cheapest first


def test_one_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0})

    with pytest.raises(RuntimeError, match="one each"):
        machine.cores()


def test_a_peer_that_cannot_be_built_is_named_with_what_it_needs_in_every_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remedy = "missing Debian packages; install them and try again: sudo apt-get install libev-dev"
    refusal = tmp_path / "debian.sh"
    refusal.write_text(f"#!/bin/sh\necho '{remedy}' >&2\nexit 1\n")
    refusal.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()  # never started: there is nothing to install
    (tmp_path / "lock").write_text("# comment\nbjoern==3.2.2\n")
    monkeypatch.setattr(peers, "PEERS", tmp_path)
    monkeypatch.setattr(peers, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(peers, "DEBIAN_SH", refusal)

    for _ in range(2):
        peers.python()
        assert f"left out bjoern==3.2.2: {remedy}" in capsys.readouterr().err

    assert peers.absent(["bjoern", "uwsgi", "floor"], {"uwsgi": "2.0.31"}) == ["bjoern"]


def test_a_page_names_the_peers_that_were_left_out() -> None:
    facts = {"commit": "c", "cpu": "x", "cores": 2, "kernel": "6", "python": "3.11"}

    page = report.document("run", facts, {"gunicorn": "27"}, "TABLES", False, ["bjoern"])

    assert "- peers: gunicorn 27\n- left out, not installed there: bjoern\n\nTABLES" in page


def test_bindep_names_each_package_that_the_benches_need() -> None:
    text = (BENCHES.parent / "bindep.txt").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(\S+) \[platform:dpkg bench\]$", text, re.MULTILINE))

    assert listed == {peers.CLIENT, *itertools.chain(*peers.BUILT_WITH.values())}


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_run_measures_osloxide_and_leaves_a_record() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHES / "run.py"),
            *("--parts", "wsgi", "--peers", "", "--workloads", "trivial,close,post"),
            *("--rounds", "1", "--seconds", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    record = Path(done.stdout.splitlines()[-1].partition(": ")[2])
    try:
        lines = [json.loads(line) for line in record.read_text().splitlines()]
    finally:
        record.unlink()
    assert lines[0]["part"] == "machine"
    measured = {line["workload"]: line for line in lines[1:]}
    assert set(measured) == {"trivial", "close", "post"}
    for line in measured.values():
        assert line["requests"] > 0
        assert line["cpu_us"] > 0
        assert line["failed"] == 0
