"""Build and test on every CPython of this machine, each in an empty environment of its own.

Owns finding the interpreters, their environments below .cache/pythons, and the table at the end.
What is tested is the wheel of tools/wheels.py, installed: never the checkout. A run with fewer
interpreters than --at-least fails, so that a machine which has just one does not look like a pass.

    tools/pythons.py                     the smoke part: tests/installed and a few suites
    tools/pythons.py --full              all of tests/python, with what cinder.lock names beside it,
                                         and on a free-threaded CPython what it is tried with
    tools/pythons.py --oslo-service      and both ends of oslo.service's range, oldest CPython
    tools/pythons.py --debian sid        also the CPythons of that Debian release, in a tree made by
                                         debootstrap; there the Debian package is what is tested
                                         (tools/debian_tree.py, tools/deb.py; needs root)
    tools/pythons.py --free-threaded     on a free-threaded CPython alone, built from Debian's
                                         source where there is none (tools/free_threaded.py)
    tools/pythons.py --beside 2          two of them at a time: the suites mostly wait
    tools/pythons.py --unoptimised       wheels that compile faster and are not for a release
    tools/pythons.py --page FILE         enter the counts in the table of that page
"""

import argparse
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import deb
import debian_tree
import free_threaded
import wheels

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "pythons"
REQUIREMENTS = ROOT / "requirements"
OLDEST = (3, 11)
NEWEST = (3, 15)
ENDS_OF_OSLO_SERVICE = ("4.2.0", "4.8.0")
DEBIAN_PACKAGES = (
    "python3-all-dev", "python3-pytest", "python3-pytest-timeout", "python3-hypothesis",
    "python3-oslo.messaging", "python3-eventlet", "python3-setproctitle", "python3-paste",
    "python3-pastedeploy", "python3-routes", "python3-webob", "python3-rich",
    "python3-sqlalchemy", "python3-openssl", "curl", "git",
)  # fmt: skip
"""What the suites need in a tree; all CPythons of the release come with the first one."""
SERIES = "2026.2"
"""The series of OpenStack whose constraints are honoured (requirements/openstack-*.txt)."""
SMOKE_SUITES = (
    "test_native_supervisor.py",
    "test_loopingcall.py",
    "test_public_api.py",
    "test_green_exposed.py",
    "test_green_fork.py",
    "test_interpreter_end.py",
    "test_wsgi_answers.py",
    "test_wsgi_input.py",
)
"""Suites that touch each room of the module, and the end of threads inside it; a minute or two."""
FREE_THREADED_SUITES = ("test_wsgi_*.py", "test_*executor*.py", "test_*launch*.py",
                        "test_native_supervisor.py", "test_loopingcall.py")  # fmt: skip
"""Server, executor and launchers: what a free-threaded CPython is tried with."""
GREENLET = "greenlet<3.3"
"""Of CPython 3.13 without its lock, for which later releases do not compile, and of the musl 1.2.3
that is built here: its loader leaves out the relative relocations (DT_RELR) of later wheels."""
MUSL = "musl"
"""What the versions of CPythons end in that are linked against it."""
SUITE_SECONDS = 3600
END_SECONDS = 60
"""For a suite that took longer to sum up."""
ANSWER_SECONDS = 300
"""In which an interpreter says its version; on a machine with much other work this takes long."""
RESULTS = "<!-- results: written by tools/pythons.py --page -->"
"""Stands before and after the table in a page."""
SUMMARY = re.compile(r"^=*\s*(\d+ (?:passed|failed|error).*?)(?: in [\d.]+s.*)?=*$", re.MULTILINE)

DESCRIBE = """
import platform, sys
print(platform.python_implementation(), *sys.version_info[:3], sys.version_info.releaselevel)
"""


class Python(NamedTuple):
    """A CPython that was found."""

    tag: str
    """cp312, as in the name of a wheel."""
    version: str
    executable: str
    """What starts it; for a Debian tree a script that enters the tree."""
    release: str = ""
    """The Debian release whose tree it lies in."""

    @property
    def is_free_threaded(self) -> bool:
        """Whether it can run without its lock (PEP 703)."""
        return self.tag.endswith("t")

    @property
    def is_musl(self) -> bool:
        """Whether it is linked against musl: tools/musl.py says so in the version."""
        return self.version.endswith(f" {MUSL}")


class Outcome(NamedTuple):
    python: str
    suite: str
    passed: bool
    counts: str
    seconds: float


# ---- finding -------------------------------------------------------------------------------------


def describe(executable: str) -> Python | None:
    """What *executable* is, or None when it is no CPython in the supported range."""
    try:
        answer = subprocess.run(
            [executable, "-c", DESCRIBE], capture_output=True, text=True, check=True,
            timeout=ANSWER_SECONDS,
        ).stdout.split()  # fmt: skip
        implementation, major, minor, micro, level = answer
        if implementation != "CPython" or not OLDEST <= (int(major), int(minor)) <= NEWEST:
            return None
        tag = wheels.tag_of(executable)
        version = f"{major}.{minor}.{micro}" + ("t" if tag.endswith("t") else "")
        version += "" if level == "final" else f" {level}"
        return Python(tag, version, executable)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # pyenv has shims that start nothing


def candidates() -> Iterator[str]:
    """Programs that may be a CPython: the default one, pyenv's versions, what PATH has."""
    yield os.environ.get("PYTHON") or "python3"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from (str(path) for path in sorted(pyenv.glob("*/bin/python3"), reverse=True))
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        for directory in os.get_exec_path():
            program = Path(directory) / f"python3.{minor}"
            if program.exists():
                yield str(program)


def find(
    named: Sequence[str], debian: Sequence[str], only_debian: bool, everything: bool
) -> list[Python]:
    """One CPython for each tag, oldest first; *named* ones win, and must be usable.

    :param everything: free-threaded ones too, where they were built.
    """
    found: dict[str, Python] = {}
    for executable in named:
        python = describe(executable)
        if python is None:
            supported = f"CPython from 3.{OLDEST[1]} to 3.{NEWEST[1]}"
            sys.exit(f"{executable} is no {supported}, or gave no answer in {ANSWER_SECONDS} s")
        found.setdefault(python.tag, python)
    if not named and not only_debian:
        built = free_threaded.built() if everything else ()
        for executable in (*candidates(), *built):
            python = describe(executable)
            if python is not None and (everything or not python.is_free_threaded):
                found.setdefault(python.tag, python)
    for release in debian:
        debian_tree.install(release, DEBIAN_PACKAGES)
        for executable in debian_tree.pythons(release):
            if (python := describe(executable)) is not None:
                found.setdefault(python.tag, python._replace(release=release))
    return [found[tag] for tag in sorted(found, key=lambda tag: (len(tag), tag))]


# ---- environments --------------------------------------------------------------------------------


class Environment:
    """An environment below .cache/pythons, made again when the interpreter changes."""

    def __init__(self, python: Python, name: str) -> None:
        self.path = CACHE / name
        self.is_free_threaded = python.is_free_threaded
        self.has_old_greenlet = python.is_free_threaded or python.is_musl
        marker = self.path / ".interpreter"
        made_of = f"{python.version} {python.executable}"
        if not (marker.exists() and marker.read_text() == made_of):
            # Debian's CPython has no ensurepip: pip comes from the environment of this program.
            command = [python.executable, "-m", "venv", "--clear", "--without-pip", str(self.path)]
            subprocess.run(command, check=True)
            marker.write_text(made_of)

    def command(self, *arguments: str | Path) -> list[str]:
        """*arguments* behind the environment's own interpreter."""
        return [str(self.path / "bin" / "python"), *map(str, arguments)]

    def install(self, *arguments: str | Path, key: str) -> None:
        """``pip install`` *arguments*, unless the last call with the same *key* did just that."""
        marker = self.path / f".installed-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        if marker.exists():
            return
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        pip += ["--python", str(self.path / "bin" / "python")]
        if self.is_free_threaded:
            # The pip of this program may be older than the tags of such a CPython.
            if not (self.path / "bin" / "pip").exists():
                subprocess.run([*pip, "install", "--quiet", "pip>=24.1"], check=True)
            pip = self.command("-m", "pip", "--disable-pip-version-check")
        subprocess.run([*pip, "install", "--quiet", *map(str, arguments)], check=True)
        marker.touch()

    def constraints(self) -> Path:
        """A file that holds pip to the versions of the locks, as far as they can be built here."""
        names = ("cinder.lock", "test.lock")
        text = "\n".join((REQUIREMENTS / name).read_text() for name in names)
        if self.has_old_greenlet:
            # oslo.service requires it by way of eventlet.
            text = re.sub(r"(?m)^greenlet==.*$", GREENLET, text)
        path = self.path / "constraints.txt"
        path.write_text(text)
        return path


def install_wheel(environment: Environment, wheel: Path, *requirements: str) -> None:
    """The wheel and what it requires, in the versions that the locks name."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    limits = () if requirements else ("-c", environment.constraints())
    environment.install(
        "--force-reinstall", "--no-deps", wheel, key=f"wheel {digest} {requirements}"
    )
    environment.install(wheel, *requirements, *limits, key=f"needs {digest} {requirements}")


# ---- tests ---------------------------------------------------------------------------------------


def run(python: Python, suite: str, command: Sequence[str]) -> Outcome:
    """Run one suite; its output is shown in one piece when it has ended, and counted."""
    print(f"\n--- CPython {python.version}: {suite} begins", flush=True)
    since = time.monotonic()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    if python.is_free_threaded and suite != "installed":
        # Off also where a suite imports other modules that would have the lock switched on.
        kept["PYTHON_GIL"] = "0"
    process = subprocess.Popen(
        command, cwd=ROOT, env=kept, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    cut_off = ""
    try:
        output, _ = process.communicate(timeout=SUITE_SECONDS)
    except subprocess.TimeoutExpired:
        cut_off = f"cut off after {SUITE_SECONDS} s"
        output = ended(process)
    passed = process.returncode == 0 and not cut_off
    print(f"\n--- CPython {python.version}: {suite}\n{output}", end="", flush=True)
    counts = [*SUMMARY.findall(output)[-1:], *([cut_off] if cut_off else [])]
    seconds = time.monotonic() - since
    return Outcome(python.version, suite, passed, ", ".join(counts) or "-", seconds)


def ended(process: subprocess.Popen[str]) -> str:
    """The output of a suite that is ended: pytest sums up, and stops what its fixtures started."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=END_SECONDS)[0]
    except subprocess.TimeoutExpired as expired:
        process.kill()
        process.wait()  # not for the end of its output: what it started may hold the pipe open
        if process.stdout is not None:
            process.stdout.close()
        # It comes as bytes, whatever text=True says.
        return (expired.stdout or b"").decode(errors="replace")


def smoke(python: Python, wheel: Path, suites: bool) -> Iterator[Outcome]:
    """An empty environment with the wheel alone, then the suites that touch each room."""
    environment = Environment(python, f"{python.tag}-smoke")
    install_wheel(environment, wheel)
    yield run(
        python, "installed", environment.command("-I", ROOT / "tests" / "installed" / "smoke.py")
    )
    if not suites:
        return
    files = [ROOT / "tests" / "python" / name for name in SMOKE_SUITES]
    if python.is_free_threaded:
        folder = ROOT / "tests" / "python"
        found = sorted({path for name in FREE_THREADED_SUITES for path in folder.glob(name)})
        files = [path for path in found if "hypothesis" not in path.read_text()]
        left_out = ", ".join(path.name for path in found if path not in files)
        print(f"left out, hypothesis has no wheel for a free-threaded CPython: {left_out}")
    tools = ["pytest", "pytest-timeout", "oslo.messaging", "eventlet"]
    tools += [] if python.is_free_threaded else ["hypothesis"]
    environment.install(
        *tools,
        *("-c", environment.constraints()),
        key=f"tools {tools} {(REQUIREMENTS / 'test.lock').read_text()}",
    )
    yield run(python, "suites", environment.command("-m", "pytest", "-q", *files))


def full(python: Python, wheel: Path) -> Iterator[Outcome]:
    """All of tests/python, with everything that `make test` has beside it."""
    environment = Environment(python, python.tag)
    for lock in ("cinder.lock", "test.lock"):
        text = (REQUIREMENTS / lock).read_text()
        environment.install("--no-deps", "-r", REQUIREMENTS / lock, key=f"{lock} {text}")
    install_wheel(environment, wheel)
    installed = ROOT / "tests" / "installed" / "smoke.py"
    yield run(python, "installed", environment.command("-I", installed))
    suites = ROOT / "tests" / "python"
    yield run(python, "python", environment.command("-m", "pytest", "-q", suites))


def ends_of_oslo_service(python: Python, wheel: Path) -> Iterator[Outcome]:
    """The installed proofs with the oldest and the newest oslo.service that osloxide accepts."""
    for version in ENDS_OF_OSLO_SERVICE:
        environment = Environment(python, f"{python.tag}-oslo.service-{version}")
        install_wheel(environment, wheel, f"oslo.service=={version}", "setuptools<81")
        command = environment.command("-I", ROOT / "tests" / "installed" / "smoke.py")
        yield run(python, f"oslo.service {version}", command)


def of_debian(python: Python, everything: bool) -> Iterator[Outcome]:
    """The same on a CPython of a Debian tree, with the Debian package and Debian's libraries."""
    folder = ROOT / "tests" / "python"
    files = [folder] if everything else [folder / name for name in SMOKE_SUITES]
    smoke = ROOT / "tests" / "installed" / "smoke.py"
    yield run(python, "installed", [python.executable, "-I", str(smoke)])
    command = [python.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    yield run(python, "python" if everything else "suites", [*command, *map(str, files)])


def of_series(python: Python, wheel: Path) -> Iterator[Outcome]:
    """The installed proofs with the versions of OpenStack's series, not those of our locks."""
    named = os.environ.get("UPPER_CONSTRAINTS_FILE")
    constraints = Path(named) if named else REQUIREMENTS / f"openstack-{SERIES}.txt"
    environment = Environment(python, f"{python.tag}-openstack-{SERIES}")
    digest = hashlib.sha256(wheel.read_bytes() + constraints.read_bytes()).hexdigest()
    environment.install("--force-reinstall", "--no-deps", wheel, key=f"wheel {digest}")
    environment.install(wheel, "oslo.messaging", "-c", constraints, key=f"needs {digest}")
    command = environment.command("-I", ROOT / "tests" / "installed" / "smoke.py")
    yield run(python, f"OpenStack {SERIES}", command)


def side_by_side(tests: Iterable[Callable[[], Iterable[Outcome]]], at_once: int) -> list[Outcome]:
    """What the *tests* of all CPythons gave, in their order; *at_once* of them run at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        parts = list(pool.map(lambda of_one: list(of_one()), tests))
    return [outcome for part in parts for outcome in part]


def of_this_machine(python: Python, wheel: Path, everything: bool, ends: bool) -> Iterator[Outcome]:
    """The tests of a wheel on the CPython that it is for.

    :param ends: also with the ends of oslo.service's range, and with the versions of a series.
    """
    if everything and not python.is_free_threaded:
        yield from full(python, wheel)
    else:
        # `make python` has run the same suites on this one, with everything else.
        is_own = python.tag == wheels.tag_of(sys.executable)
        yield from smoke(python, wheel, suites=not is_own)
    if ends:
        yield from ends_of_oslo_service(python, wheel)
        yield from of_series(python, wheel)


def line_of(version: str) -> str:
    """What a newer release takes the place in: ``3.13`` of 3.13.1, ``3.13t`` of 3.13.15t."""
    return re.sub(r"^(\d+\.\d+)\.\d+", r"\1", version)


def table(outcomes: Sequence[Outcome], before: str) -> str:
    """The table of a page: one row for each CPython and suite, newer results in place of older.

    :param before: the table as the page has it.
    """
    rows: dict[tuple[str, str], str] = {}
    for line in before.splitlines():
        if re.match(r"\| \d", line):
            python, suite = (cell.strip() for cell in line.split("|")[1:3])
            rows[python, suite] = line
    measured = {outcome.python for outcome in outcomes}
    lines = {line_of(version) for version in measured}
    rows = {
        key: line
        for key, line in rows.items()
        if key[0] in measured or line_of(key[0]) not in lines
    }
    for outcome in outcomes:
        word = "ok" if outcome.passed else "**failed**"
        rows[outcome.python, outcome.suite] = (
            f"| {outcome.python} | {outcome.suite} | {word} | {outcome.counts} |"
        )

    def order(key: tuple[str, str]) -> tuple[list[int], str]:
        return [int(number) for number in re.findall(r"\d+", key[0])], key[1]

    head = ["| CPython | suite | | counts |", "|---|---|---|---|"]
    return "\n".join([*head, *(rows[key] for key in sorted(rows, key=order))])


def write_page(page: Path, outcomes: Sequence[Outcome]) -> None:
    """Enter *outcomes* in the table between the two marks of *page*."""
    wheels.enter(page, RESULTS, lambda before: table(outcomes, before))


def summary(outcomes: Sequence[Outcome]) -> int:
    """Print one line for each outcome; the exit status of the whole."""
    print("\nCPython      suite                 seconds  result")
    for outcome in outcomes:
        word = "ok    " if outcome.passed else "FAILED"
        columns = f"{outcome.python:<12} {outcome.suite:<20} {outcome.seconds:8.1f}"
        print(f"{columns}  {word} {outcome.counts}")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="all of tests/python")
    parser.add_argument("--oslo-service", action="store_true", help="both ends of its range")
    parser.add_argument("--build-only", action="store_true", help="the wheels, no test")
    parser.add_argument("--musl", action="store_true", help="with --build-only: musllinux too")
    parser.add_argument("--list", action="store_true", help="say what was found, and end")
    parser.add_argument("--debian", action="append", default=[], metavar="RELEASE")
    parser.add_argument("--only-debian", action="store_true", help="none of this machine's")
    parser.add_argument("--python", action="append", default=[], help="instead of a search")
    parser.add_argument("--free-threaded", action="store_true", help="built where it is missing")
    parser.add_argument("--at-least", type=int, default=2, help="fewer interpreters are a failure")
    parser.add_argument("--beside", type=int, default=1, metavar="N", help="that many at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where wheels are")
    parser.add_argument("--unoptimised", action="store_true", help="wheels for tests alone")
    parser.add_argument("--page", type=Path, help="a page whose table gets the counts")
    arguments = parser.parse_args()
    out = wheels.UNOPTIMISED / "dist" if arguments.unoptimised else arguments.out.resolve()

    if arguments.free_threaded:
        arguments.python.append(free_threaded.build(False, list(free_threaded.MINORS), jobs=2))
    pythons = find(
        arguments.python, arguments.debian, arguments.only_debian,
        everything=arguments.full or arguments.list,
    )  # fmt: skip
    for python in pythons:
        print(f"found CPython {python.version:<12} {python.tag:<6} {python.executable}")
    have = {python.tag for python in pythons}
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        if f"cp3{minor}" not in have:
            print(f"no CPython 3.{minor} here (pyenv install, or --debian RELEASE)")
    if arguments.list:
        return 0
    least = min(arguments.at_least, len(arguments.python) or arguments.at_least)
    if len(pythons) < least:
        print(f"FAILED: {len(pythons)} found, {least} needed; install another, or --python PATH")
        return 1

    tests: list[Callable[[], Iterable[Outcome]]] = []
    for release in arguments.debian:
        if not arguments.build_only:
            deb.install(release, deb.packages(release, arguments.unoptimised))
    for python in pythons:
        if python.release:
            tests.append(partial(of_debian, python, arguments.full))
            continue
        wheel = wheels.wheel_for(python.executable, out, arguments.unoptimised)
        print(f"{wheel.stat().st_size / 1e6:.2f} MB {wheel.name}", flush=True)
        if arguments.build_only:
            if arguments.musl:
                wheel = wheels.wheel_for(python.executable, out, arguments.unoptimised, musl=True)
                print(f"{wheel.stat().st_size / 1e6:.2f} MB {wheel.name}", flush=True)
            continue
        ends = arguments.oslo_service and python is pythons[0]
        tests.append(partial(of_this_machine, python, wheel, arguments.full, ends))

    if arguments.build_only:
        return 0
    outcomes = side_by_side(tests, arguments.beside)
    if arguments.page:
        write_page(arguments.page, outcomes)
    return summary(outcomes)


if __name__ == "__main__":
    sys.exit(main())
