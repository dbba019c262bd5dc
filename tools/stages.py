"""Run make targets, go on after a failure, and sum up at the end.

``python3 tools/stages.py fmt clippy -- python -- services`` is what ``make test`` does: stages of
one list run one after the other; the lists after the first run beside each other, since their tests
mostly wait. The commands themselves are in the Makefile; this file owns the order of events: a
heading with the stage's name, its output (of the later lists in one piece, when the stage has
ended), its time, its number of tests, and the exit status of the whole. The failures of a stage are
repeated above the summary, with its last lines, where readers of a shortened log find them. A stage
that runs longer than STAGE_SECONDS is ended with everything it started. Needs only the standard
library.

A test that failed beside the other lists may have failed for want of a processor. As CPython's own
``regrtest --rerun`` does, the stages named by ``--again`` run such tests once more, when nothing
else runs. If all of them pass then, they are called unsteady and named in the summary: they are to
be looked into, and do not fail the run. Nothing is tried again after more than UNSTEADY_TESTS
failures, which are no accident, nor where any stage failed otherwise: one that is not named, one
that crashed or was ended, one that ran beside nothing.
"""

import argparse
import contextlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import NamedTuple

STAGE_SECONDS = 3600
END_SECONDS = 60
REPEATED_LINES = 60
LAST_LINES = 15
UNSTEADY_TESTS = 3
OUTCOMES = ("passed", "failed", "errors", "skipped", "ignored", "xfailed", "xpassed")
# pytest and parity: "12 passed, 1 failed in 3.2s"; cargo: "test result: ok. 12 passed; 0 failed".
SUMMARY = re.compile(r"^(test result: |=*\s*\d+ (passed|failed|skipped|error|xfailed))")
COUNT = re.compile(r"(\d+) ([a-z]+)")
# Of pytest's short summary: "FAILED FILE::test_name[parameter] - AssertionError: ...".
UNSUCCESSFUL = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$")
# GNU make of a command that has failed: "make: *** [Makefile:159: python] Error 1", the word in the
# user's language; in its place, of one that a signal has ended, what strsignal(3) calls that.
MAKES_WORD = re.compile(r"^\S+: \*\*\* \[.*\] (.*)$")
SOME_TESTS_FAILED = re.compile(r"\S+ 1")  # pytest.ExitCode.TESTS_FAILED; 2 is an interruption
TELLING = re.compile(r"^(E  |_{3,} |FAILED |ERROR |\S+\.py:\d+: )")


class Outcome(NamedTuple):
    """What a stage came to.

    :param failures: ids of the tests that pytest called failed or in error, each once.
    :param is_explained: there are such, and they are all that was wrong with the stage: pytest
        ended by itself, with the status that says so.
    :param telling: what of its output tells of its failures, and its last lines.
    """

    stage: str
    passed: bool
    seconds: float
    counts: Counter[str]
    failures: list[str]
    is_explained: bool
    telling: list[str]


def end(process: subprocess.Popen[str]) -> None:
    """End a stage: SIGINT lets pytest stop what its fixtures started; then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """End, once: a second signal must not interrupt the end of the stages."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


printing = threading.Lock()
running: set[subprocess.Popen[str]] = set()


def run(stage: str, *settings: str, is_alone: bool = True) -> Outcome:
    """Run one make target in a session of its own.

    :param settings: variables for make, as ``NAME=value``.
    :param is_alone: pass its output through as it comes; else print it when the stage has ended.
    """
    if is_alone:
        print(f"\n=== {stage}", flush=True)
    output: list[str] = []
    since = time.monotonic()
    counts: Counter[str] = Counter()
    unsuccessful: list[str] = []
    makes_words: list[str] = []
    telling: deque[tuple[int, str]] = deque(maxlen=REPEATED_LINES)
    last_lines: deque[tuple[int, str]] = deque(maxlen=REPEATED_LINES)
    is_given_up = threading.Event()
    process = subprocess.Popen(
        [os.environ.get("MAKE", "make"), "--no-print-directory", stage, *settings],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    running.add(process)

    def give_up() -> None:
        is_given_up.set()
        print(f"stage {stage} still runs after {STAGE_SECONDS} s; ending it", flush=True)
        end(process)

    timer = threading.Timer(STAGE_SECONDS, give_up)
    timer.start()
    try:
        assert process.stdout is not None
        with process.stdout:
            for numbered in enumerate(process.stdout):
                _, line = numbered
                if is_alone:
                    sys.stdout.write(line)
                    sys.stdout.flush()
                else:
                    output.append(line)
                last_lines.append(numbered)
                plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
                if TELLING.match(plain):
                    telling.append(numbered)
                if found := MAKES_WORD.match(plain):
                    makes_words.append(found[1])
                if found := UNSUCCESSFUL.match(plain):
                    unsuccessful.append(found[1])
                if SUMMARY.match(plain):
                    for number, word in COUNT.findall(plain):
                        name = "errors" if word == "error" else word
                        if name in OUTCOMES:
                            counts[name] += int(number)
        passed = process.wait() == 0
    except BaseException:
        end(process)
        raise
    finally:
        timer.cancel()
        running.discard(process)
    seconds = time.monotonic() - since
    with printing:
        if not is_alone:
            print(f"\n=== {stage}\n{''.join(output)}", end="")
        print(f"=== {stage}: {'ok' if passed else 'FAILED'} in {seconds:.1f} s", flush=True)
    is_explained = (
        0 < len(unsuccessful) == counts["failed"] + counts["errors"]
        and all("::" in each for each in unsuccessful)
        and len(makes_words) == 1
        and SOME_TESTS_FAILED.fullmatch(makes_words[0]) is not None
        and not is_given_up.is_set()
    )
    failures = list(dict.fromkeys(unsuccessful))
    last = list(last_lines)[-LAST_LINES if telling else 0 :]
    repeated = [line for _, line in sorted({*telling, *last})]
    return Outcome(stage, passed, seconds, counts, failures, is_explained, repeated)


def run_beside_each_other(lists: list[list[str]]) -> list[Outcome]:
    """Run the *lists*, and in each of them one stage after the other."""

    def run_list(stages: list[str]) -> list[Outcome]:
        return [run(stage, is_alone=False) for stage in stages]

    print("\n=== beside each other: " + "; ".join(map(" ".join, lists)), flush=True)
    with ThreadPoolExecutor(len(lists)) as pool:
        try:
            return list(itertools.chain.from_iterable(pool.map(run_list, lists)))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                end(process)
            os._exit(130)  # the threads of the pool would begin their next stages


def run_again(outcomes: list[Outcome], stages: list[str]) -> set[str]:
    """Run the failed tests of *stages* once more, where all failures of the run can be tried again.

    :returns: stages whose failed tests have all passed now.
    """
    failed = [outcome for outcome in outcomes if not outcome.passed]
    tests = sum(len(outcome.failures) for outcome in failed)
    if tests > UNSTEADY_TESTS or not all(it.is_explained and it.stage in stages for it in failed):
        return set()
    recovered = set()
    for outcome in failed:
        # A dollar sign is make's until it is doubled.
        again = shlex.join(outcome.failures).replace("$", "$$")
        done = run(outcome.stage, f"TESTS={again}")
        # What is skipped this time has not passed.
        if done.passed and done.counts == Counter(passed=len(outcome.failures)):
            recovered.add(outcome.stage)
    return recovered


def main(again: list[str], words: list[str]) -> int:
    lists = [list(group) for is_mark, group in itertools.groupby(words, "--".__eq__) if not is_mark]
    began = time.monotonic()
    outcomes = [run(stage) for stage in lists[0]]
    beside = run_beside_each_other(lists[1:]) if len(lists) > 1 else []
    are_alone_failed = not all(outcome.passed for outcome in outcomes)
    unsteady = set() if are_alone_failed else run_again(beside, again)
    outcomes += beside
    total: Counter[str] = Counter()
    for outcome in outcomes:
        if not outcome.passed:
            print(f"\n=== {outcome.stage}: what it printed of its failures")
            print("".join(outcome.telling), end="")
    print("\n=== summary")
    for stage, passed, seconds, counts, *_ in outcomes:
        total += counts
        tests = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        word = "ok" if passed else "again" if stage in unsteady else "FAILED"
        print(f"{word:>6} {seconds:7.1f} s  {stage:<10} {tests}".rstrip())
    failed = [it.stage for it in outcomes if not it.passed and it.stage not in unsteady]
    tests = ", ".join(f"{total[name]} {name}" for name in OUTCOMES if total[name])
    print(f"tests: {tests or 'none'}")
    for outcome in outcomes:
        if outcome.stage in unsteady:
            for test in outcome.failures:
                print(f"unsteady: {test} failed beside the other lists and passed alone")
    spent = time.monotonic() - began
    if failed:
        share = f"{len(failed)} of {len(outcomes)} stages"
        print(f"FAILED: {', '.join(failed)} ({share}, {spent:.0f} s)")
        return 1
    print(f"PASS: {len(outcomes)} stages, {spent:.0f} s")
    return 0


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    parser = argparse.ArgumentParser(description="Run make targets and sum up.")
    parser.add_argument(
        "--again", metavar="STAGES", default="", help="whose failed tests are run once more, alone"
    )
    parser.add_argument(
        "words", metavar="STAGE", nargs=argparse.REMAINDER, help="targets, their lists apart by --"
    )
    options = parser.parse_args()
    try:
        sys.exit(main(options.again.split(), options.words))
    except KeyboardInterrupt:
        sys.exit(130)
