"""Which lines of the Python package the tests run, child processes included.

Owns one pass over test files under coverage.py, some of them at a time since they mostly wait, and
its bound: a file whose turn comes later than --seconds after the start is not begun, and is named
at the end. Whether tests pass is for `make python` to say: some look at what is imported, which
measuring changes.

    tools/cover.py [--seconds 1500] [--beside 2] [FILE ...]       a folder is all of its test files
"""

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pythons

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "target"
COVERAGE = [sys.executable, "-m", "coverage"]


def files_of(named: list[Path]) -> list[Path]:
    """The test files that *named* files and folders are."""
    found: list[Path] = []
    for path in named:
        found += sorted(path.glob("test_*.py")) if path.is_dir() else [path]
    return found


def counts_of(file: Path, deadline: float) -> str | None:
    """Run *file*; its counts as pytest sums them up, or None where it is later than *deadline*."""
    if time.monotonic() >= deadline:
        return None
    done = subprocess.run(
        [*COVERAGE, "run", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    counts = pythons.SUMMARY.findall(done.stdout)
    said = counts[-1] if counts else f"status {done.returncode}"
    print(f"{file.name}: {said}", flush=True)
    return str(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1500, help="no file begins later")
    parser.add_argument("--beside", type=int, default=2, metavar="N", help="that many at a time")
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "tests" / "python"])
    arguments = parser.parse_args()
    for old in DATA.glob("coverage*"):
        old.unlink()
    files = files_of(arguments.files)
    deadline = time.monotonic() + arguments.seconds
    with ThreadPoolExecutor(arguments.beside) as pool:
        counts = list(pool.map(lambda file: counts_of(file, deadline), files))
    left_out = [file.name for file, said in zip(files, counts, strict=True) if said is None]
    for command in (["combine", "--quiet"], ["report", "--skip-covered"]):
        if subprocess.run([*COVERAGE, *command], cwd=ROOT).returncode:
            return 1
    print(f"measured: {len(files) - len(left_out)} of {len(files)} files of tests")
    if left_out:
        print(f"not begun within {arguments.seconds:g} s: {', '.join(left_out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
