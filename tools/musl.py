"""A CPython on musl, built from Debian's sources, and the musllinux wheel proven on it.

Owns that build, below the user's cache directory, which all checkouts share, and the proof. The
CPythons of Debian are linked against glibc; its package musl-tools has the other libc and a
compiler for it. zlib and libffi are linked into the CPython; it has neither ssl nor sqlite3, bz2
and lzma, which the proofs do without. So pip runs beside it, and takes pure wheels and those of
musllinux alone. The wheel is built with a CPython of this machine that has the same minor version,
as a release is.

    tools/musl.py [--page FILE]      build it, unless it is there; make the wheel; run the proofs
    tools/musl.py --build            the CPython alone; prints its path
"""

import argparse
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import free_threaded
import pythons
import wheels
from free_threaded import BUILDS

ROOT = Path(__file__).resolve().parents[1]
TRIPLET = "x86_64-linux-musl"
COMPILER = """#!/bin/sh
# musl-gcc is gcc with musl's headers and library; the kernel's headers come from here.
case " $* " in
*" --print-multiarch "*) echo {triplet} ;;
*) exec musl-gcc -idirafter {headers} "$@" ;;
esac
"""
KERNEL_HEADERS = {
    "linux": "/usr/include/linux", "asm-generic": "/usr/include/asm-generic",
    "asm": "/usr/include/x86_64-linux-gnu/asm", "mtd": "/usr/include/mtd",
}  # fmt: skip
TOOLS = ("musl-tools", "autoconf", "automake", "libtool", "libltdl-dev")
LIBRARIES = {
    "zlib": ("--static",),
    "libffi": ("--disable-shared", "--with-pic", "--disable-docs", f"--host={TRIPLET}"),
}
"""Debian's source packages that the CPython needs, and how each is configured."""
NEED_SSL = "test_green_"
"""What the suites are called that import what imports ssl."""
NEEDED_MODULES = ("ctypes", "zlib", "hashlib", "select", "_socket")


def built() -> Iterator[str]:
    """The interpreters that were built."""
    yield from map(str, sorted(BUILDS.glob("3.*-musl/bin/python3.*[0-9]")))


def compiler(folder: Path) -> Path:
    """A musl-gcc that finds the kernel's headers, and none of glibc's."""
    headers = folder / "headers"
    headers.mkdir()
    for name, place in KERNEL_HEADERS.items():
        if Path(place).exists():
            (headers / name).symlink_to(place)
    program = folder / "musl-cc"
    program.write_text(COMPILER.format(triplet=TRIPLET, headers=headers))
    program.chmod(0o755)
    return program


def build(minor: int, jobs: int) -> str:
    """The interpreter of a finished build, made when there is none of that *minor* version."""
    subprocess.run([ROOT / "tools" / "debian.sh", *TOOLS], check=True)
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / "lock-musl").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in built():
            if f"/3.{minor}." in path:
                return path
        log = BUILDS / "build-musl.log"
        log.write_bytes(b"")
        with tempfile.TemporaryDirectory(prefix="cpython-", dir=BUILDS) as name:
            folder = Path(name)
            (folder / "apt").mkdir()
            sources = free_threaded.Sources(folder / "apt")
            libraries = folder / "libraries"
            variables = {"CC": str(compiler(folder))}
            for package, options in LIBRARIES.items():
                tree = free_threaded.unpack(sources.newest(package), folder / package)
                if not (tree / "configure").exists():  # as the project's repository has it
                    free_threaded.run(["autoreconf", "--install"], tree, log)
                configure = ["./configure", f"--prefix={libraries}", *options]
                free_threaded.run(configure, tree, log, variables)
                make = ["nice", "make", f"-j{jobs}", "install"]
                free_threaded.run(make, tree, log, variables)
            tree = free_threaded.unpack(sources.newest(f"python3.{minor}"), folder / "source")
            prefix = BUILDS / f"{free_threaded.version_of(tree)}-musl"
            print(f"building CPython {prefix.name} in {BUILDS}", file=sys.stderr, flush=True)
            found = f"-I{libraries}/include", f"-L{libraries}/lib"
            variables |= {
                "CPPFLAGS": found[0], "LDFLAGS": found[1], "PKG_CONFIG": "/bin/false",
                "ZLIB_CFLAGS": found[0], "ZLIB_LIBS": f"{found[1]} -lz",
                "LIBFFI_CFLAGS": found[0], "LIBFFI_LIBS": f"{found[1]} -lffi",
            }  # fmt: skip
            options = (*free_threaded.CONFIGURE, f"--prefix={prefix}")
            free_threaded.run(["./configure", *options], tree, log, variables)
            free_threaded.run(["nice", "make", f"-j{jobs}"], tree, log, variables)
            command = ["nice", "make", "altinstall", f"DESTDIR={folder / 'root'}"]
            free_threaded.run(command, tree, log, variables)
            installed = Path(f"{folder / 'root'}{prefix}")
            program = installed / "bin" / f"python3.{minor}"
            script = "; ".join(f"import {module}" for module in NEEDED_MODULES)
            subprocess.run([program, "-c", script], check=True, env={"PYTHONHOME": str(installed)})
            shutil.rmtree(prefix, ignore_errors=True)
            installed.rename(prefix)
        return str(prefix / "bin" / program.name)


def install(python: pythons.Python, name: str, *requirements: str | Path) -> pythons.Environment:
    """An environment with *requirements*: pure wheels and those for musl."""
    environment = pythons.Environment(python, name)
    with tempfile.TemporaryDirectory(prefix="osloxide-musl-") as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        version = python.version.rpartition(".")[0]
        subprocess.run(
            [*pip, "download", f"--dest={folder}", "--only-binary=:all:",
             "--platform=musllinux_1_2_x86_64", "--platform=musllinux_1_1_x86_64",
             "--implementation=cp", f"--python-version={version}",
             "-c", environment.constraints(), *requirements],
            check=True,
        )  # fmt: skip
        files = sorted(Path(folder).glob("*.whl"))
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        environment.install("--no-deps", "--no-index", "--force-reinstall", *files, key=digest)
    return environment


def proofs(executable: str, wheel: Path) -> Iterator[pythons.Outcome]:
    """The wheel in an empty environment, then the suites that touch each room."""
    python = pythons.describe(executable)
    if python is None:
        sys.exit(f"{executable} does not start; remove its folder and try again")
    python = python._replace(version=f"{python.version} {pythons.MUSL}")
    environment = install(python, "musl", wheel)
    smoke = ROOT / "tests" / "installed" / "smoke.py"
    yield pythons.run(python, "installed", environment.command("-I", smoke))
    tools = "pytest", "pytest-timeout", "hypothesis"
    environment = install(python, "musl-suites", wheel, *tools)
    names = [name for name in pythons.SMOKE_SUITES if not name.startswith(NEED_SSL)]
    left_out = ", ".join(name for name in pythons.SMOKE_SUITES if name not in names)
    print(f"left out, eventlet's and oslo.messaging's modules import ssl: {left_out}")
    files = [ROOT / "tests" / "python" / name for name in names]
    yield pythons.run(python, "suites", environment.command("-m", "pytest", "-q", *files))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minor", type=int, default=13, help="of CPython 3")
    parser.add_argument("--jobs", type=int, default=2, help="compilers that run at once")
    parser.add_argument("--build", action="store_true", help="the CPython alone; print its path")
    parser.add_argument("--page", type=Path, help="a page whose table gets the counts")
    arguments = parser.parse_args()
    executable = build(arguments.minor, arguments.jobs)
    if arguments.build:
        print(executable)
        return 0
    tag = f"cp3{arguments.minor}"
    found = (python for python in map(pythons.describe, pythons.candidates()) if python)
    host = next((python.executable for python in found if python.tag == tag), None)
    if host is None:
        print(f"FAILED: no CPython 3.{arguments.minor} here to build the wheel with")
        return 1
    wheel = wheels.wheel_for(host, wheels.UNOPTIMISED / "dist", unoptimised=True, musl=True)
    outcomes = list(proofs(executable, wheel))
    if arguments.page:
        pythons.write_page(arguments.page, outcomes)
    return pythons.summary(outcomes)


if __name__ == "__main__":
    sys.exit(main())
