"""What a health probe costs: ``python benches/probes.py``.

Starts launchers with workers, and runs each way of asking whether one of them is ready in turn,
beside an interpreter that does nothing. Prints medians of the CPU of a probe and of all its
children, and the most memory that its own process was seen to have (VmHWM, looked at all the time).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import machine
from measure.peers import ROOT, until

from osloxide.cli import ready

IN_SH = ROOT / "data" / "scripts" / "osloxide-ready"
COMMAND = Path(sys.executable).with_name("osloxide")
APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]
"""


@contextlib.contextmanager
def launchers(count: int, workers: int) -> Iterator[list[tuple[str, int]]]:
    """Names and pids of launchers that are ready."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="probes-"))
        Path(directory, "site_.py").write_text(APPLICATION)
        found = []
        for number in range(count):
            name = f"probed-{os.getpid()}-{number}"
            serve = [COMMAND, "serve", "site_", "--name", name, "-w", str(workers)]
            process = subprocess.Popen(
                [*serve, "-b", "127.0.0.1:0"], cwd=directory, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            found.append((name, process.pid))
        for name, _ in found:
            if not until(
                lambda it=name: subprocess.call([IN_SH, it], stderr=subprocess.DEVNULL) == 0, 60
            ):  # type: ignore[misc]
                raise RuntimeError(f"{name} is not ready after 60 s")
        yield found


def cost(command: list[str | Path]) -> tuple[float, int]:
    """Milliseconds of CPU, and KiB."""
    own = Path("/proc/self/cmdline").read_bytes()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        with contextlib.suppress(OSError, IndexError):
            text = Path(f"/proc/{process.pid}/status").read_text()
            # Before it executes the command it is a copy of this program.
            if Path(f"/proc/{process.pid}/cmdline").read_bytes() != own:
                peak = max(peak, int(text.partition("VmHWM:")[2].split()[0]))
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return 1000 * (used.ru_utime + used.ru_stime), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launchers", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4, help="of each launcher")
    parser.add_argument("--runs", type=int, default=40)
    args = parser.parse_args()
    with launchers(args.launchers, args.workers) as up:
        name, pid = up[0]
        ways: dict[str, list[str | Path]] = {
            "osloxide-ready NAME": [IN_SH, name],
            "osloxide status --ready NAME": [COMMAND, "status", "--ready", name],
            "what --print prints": [*ready.command(name)],
            "the same with a pid": [*ready.command(str(pid))],
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -IS -c pass": [sys.executable, "-IS", "-c", "pass"],
        }
        found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
        for _ in range(args.runs):
            for way, command in ways.items():
                found[way].append(cost(command))
    print(machine.description())
    for way, costs in found.items():
        cpu = statistics.median(milliseconds for milliseconds, _ in costs)
        print(f"| `{way}` | {cpu:.1f} ms | {max(kib for _, kib in costs) / 1024:.1f} MiB |")


if __name__ == "__main__":
    main()
