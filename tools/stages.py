"""Run make targets one after the other, go on after a failure, and sum up at the end.

``python3 tools/stages.py fmt clippy ...`` is what ``make test`` does. The commands themselves are
in the Makefile; this file owns the order of events: a heading with the stage's name, its output,
its time, its number of tests, and the exit status of the whole. What a failed stage printed last
is repeated above the summary, where readers of a shortened log find it. A stage that runs longer
than STAGE_SECONDS is ended with everything it started. Needs only the standard library.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from types import FrameType
from typing import NamedTuple

STAGE_SECONDS = 1500
END_SECONDS = 60
REPEATED_LINES = 40
OUTCOMES = ("passed", "failed", "errors", "skipped", "ignored", "xfailed", "xpassed")
# pytest and parity: "12 passed, 1 failed in 3.2s"; cargo: "test result: ok. 12 passed; 0 failed".
SUMMARY = re.compile(r"^(test result: |=*\s*\d+ (passed|failed|skipped|error|xfailed))")
COUNT = re.compile(r"(\d+) ([a-z]+)")


class Outcome(NamedTuple):
    stage: str
    passed: bool
    seconds: float
    counts: Counter[str]
    last_lines: deque[str]


def end(process: subprocess.Popen[str]) -> None:
    """End a stage: SIGINT lets pytest stop what its fixtures started; then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(stage: str) -> Outcome:
    """Run one make target in a session of its own, its output passed through."""
    print(f"\n=== {stage}", flush=True)
    since = time.monotonic()
    counts: Counter[str] = Counter()
    last_lines: deque[str] = deque(maxlen=REPEATED_LINES)
    process = subprocess.Popen(
        [os.environ.get("MAKE", "make"), "--no-print-directory", stage],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def give_up() -> None:
        print(f"stage {stage} still runs after {STAGE_SECONDS} s; ending it", flush=True)
        end(process)

    timer = threading.Timer(STAGE_SECONDS, give_up)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            last_lines.append(line)
            plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
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
    seconds = time.monotonic() - since
    print(f"=== {stage}: {'ok' if passed else 'FAILED'} in {seconds:.1f} s", flush=True)
    return Outcome(stage, passed, seconds, counts, last_lines)


def main(stages: list[str]) -> int:
    outcomes = [run(stage) for stage in stages]
    total: Counter[str] = Counter()
    for outcome in outcomes:
        if not outcome.passed:
            print(f"\n=== {outcome.stage}: what it printed last")
            print("".join(outcome.last_lines), end="")
    print("\n=== summary")
    for stage, passed, seconds, counts, _ in outcomes:
        total += counts
        tests = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        print(f"{'ok' if passed else 'FAILED':>6} {seconds:7.1f} s  {stage:<10} {tests}".rstrip())
    failed = [outcome.stage for outcome in outcomes if not outcome.passed]
    tests = ", ".join(f"{total[name]} {name}" for name in OUTCOMES if total[name])
    print(f"tests: {tests or 'none'}")
    spent = sum(outcome.seconds for outcome in outcomes)
    if failed:
        share = f"{len(failed)} of {len(outcomes)} stages"
        print(f"FAILED: {', '.join(failed)} ({share}, {spent:.0f} s)")
        return 1
    print(f"PASS: {len(outcomes)} stages, {spent:.0f} s")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
