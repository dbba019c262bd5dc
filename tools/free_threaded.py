"""A free-threaded CPython, built from Debian's source package into the user's cache directory.

Owns the builds below that directory, which all checkouts share: Debian has no such package, so this
is the one way to get such a CPython from where the other packages come from. The newest version
whose source the mirror has is taken: an index may name a file that is gone. apt-get fetches it with
lists of its own, and verifies the signature of the release and the SHA-256 of the file; nothing of
the host's apt is read or changed, and root is not needed. Needs gcc, make, apt-get, dpkg-dev and
the headers that bindep.txt names.

    tools/free_threaded.py               build it, unless it is there, and print its path
    tools/free_threaded.py --with-gil    the same version with the lock, built with the same flags:
                                         what a free-threaded one is compared with
    tools/free_threaded.py --list        the paths of those that are there
"""

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

BUILDS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osloxide" / "pythons"
MIRROR = "http://deb.debian.org/debian"
RELEASES = ("trixie", "testing", "unstable")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MINORS = range(13, 16)
"""PEP 703 is in CPython from 3.13 on."""
CONFIGURE = ("--without-ensurepip", "--disable-test-modules")
"""Without PGO and LTO, which take half an hour and change no answer; pip comes from outside."""
NEEDED_MODULES = ("ssl", "sqlite3", "ctypes", "zlib", "bz2", "lzma", "hashlib", "uuid")
"""Left out silently by CPython's build where a header is missing."""
APT = """
Dir::State "{root}/state";
Dir::State::status "/dev/null";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "";
"""


def run(
    command: Sequence[str | Path], cwd: Path, log: Path, variables: Mapping[str, str] | None = None
) -> None:
    """Run *command* with its output in *log*; ends the program with its last lines on failure.

    :param variables: of its environment, beside this program's.
    """
    with log.open("ab") as output:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **(variables or {})}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode != 0:
        end = log.read_text(errors="replace")[-3000:]
        sys.exit(f"{' '.join(map(str, command))} failed; all of it is in {log}\n{end}")


# ---- the source ----------------------------------------------------------------------------------


def versions(index: str) -> list[tuple[str, str]]:
    """Source packages in the output of ``apt-cache showsrc``, the newest version first.

    :return: pairs such as ``("python3.14", "3.14.9-1")``.
    """
    found = set(re.findall(r"^Package: (\S+)\n(?:.*\n)*?Version: (\S+)$", index, re.M))

    def order(pair: tuple[str, str]) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", pair[1])]

    return sorted(found, key=order, reverse=True)


class Sources:
    """Debian's source packages, fetched by apt-get with lists of its own.

    :param folder: for the lists and the archives; must be empty.
    """

    def __init__(self, folder: Path) -> None:
        for program in ("apt-get", "dpkg-source"):
            if shutil.which(program) is None:
                sys.exit(f"{program} is missing; this needs Debian's apt and dpkg-dev")
        self.folder = folder
        for part in ("state/lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        (folder / "sources.list").write_text(
            "".join(f"deb-src [signed-by={KEYRING}] {MIRROR} {name} main\n" for name in RELEASES)
        )
        self._configuration = folder / "apt.conf"
        self._configuration.write_text(APT.format(root=folder))
        self.log = self._apt("apt-get", "-q", "update").stdout

    def newest(self, *packages: str) -> Path:
        """The archive of the newest of *packages* that the mirror has, as its own project made it.

        Ends the program where the mirror has none.
        """
        index = self._apt("apt-cache", "showsrc", *packages)
        self.log += index.stdout[-500:]
        for package, version in versions(index.stdout):
            fetch = self._apt(
                "apt-get", "-q", "source", "--download-only", "--only-source",
                f"{package}={version}",
            )  # fmt: skip
            self.log += fetch.stdout
            found = sorted(self.folder.glob(f"{package}_*.orig.tar.*z*"))
            archives = [path for path in found if path.suffix != ".asc"]
            if fetch.returncode == 0 and archives:
                return archives[0]
            for path in found:  # of a version whose other files are gone
                path.unlink()
            what = f"{package} {version}"
            print(f"the mirror has not {what}, which its index names", file=sys.stderr)
        sys.exit(f"no source of {', '.join(packages)} could be fetched\n{self.log[-3000:]}")

    def _apt(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ, "APT_CONFIG": str(self._configuration), "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        return subprocess.run(
            command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def unpack(archive: Path, into: Path) -> Path:
    """The folder that *archive* has, unpacked below *into*."""
    with tarfile.open(archive) as source:
        source.extractall(into, filter="data")
    (tree,) = into.iterdir()
    return tree


def version_of(tree: Path) -> str:
    """The version of the CPython whose sources are in *tree*."""
    patchlevel = (tree / "Include" / "patchlevel.h").read_text()
    version = re.search(r'#define PY_VERSION\s+"(3\.\d+\.\d+)', patchlevel)
    if version is None:
        sys.exit(f"{tree.name} names no version in Include/patchlevel.h")
    return version[1]


# ---- the build -----------------------------------------------------------------------------------


def built(with_gil: bool = False) -> Iterator[str]:
    """The interpreters that were built, newest first."""
    mark = "" if with_gil else "t"
    found = BUILDS.glob(f"3.*.*[0-9]{mark}/bin/python3.*[0-9]{mark}")

    def order(path: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path.parents[1].name)]

    yield from (str(path) for path in sorted(found, key=order, reverse=True))


def build(with_gil: bool, minors: Sequence[int], jobs: int) -> str:
    """The interpreter of a finished build, made when none of *minors* is there.

    :param with_gil: the ordinary build, for comparison.
    """
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in built(with_gil):
            if any(f"/3.{minor}." in path for minor in minors):
                return path
        log = BUILDS / "build.log"
        log.write_bytes(b"")
        with tempfile.TemporaryDirectory(prefix="cpython-", dir=BUILDS) as name:
            folder = Path(name)
            sources, names = Sources(folder), [f"python3.{minor}" for minor in minors]
            tree = unpack(sources.newest(*names), folder / "source")
            version = version_of(tree)
            prefix = BUILDS / (version + ("" if with_gil else "t"))
            unfinished = BUILDS / f"{prefix.name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)
            print(f"building CPython {prefix.name} in {BUILDS}", file=sys.stderr, flush=True)
            options = [*CONFIGURE, f"--prefix={prefix}"]
            options += [] if with_gil else ["--disable-gil"]
            run(["./configure", *options], tree, log)
            run(["nice", "make", f"-j{jobs}"], tree, log)
            run(["nice", "make", "altinstall", f"DESTDIR={folder / 'root'}"], tree, log)
            installed = Path(f"{folder / 'root'}{prefix}")
            program = installed / "bin" / built_name(version, with_gil)
            missing = [
                module
                for module in NEEDED_MODULES
                if subprocess.run([program, "-c", f"import {module}"], capture_output=True,
                                  env={**os.environ, "PYTHONHOME": str(installed)}).returncode
            ]  # fmt: skip
            if missing:
                sys.exit(f"built without {', '.join(missing)}: install what bindep.txt names")
            shutil.rmtree(prefix, ignore_errors=True)
            installed.rename(prefix)
        return str(prefix / "bin" / program.name)


def built_name(version: str, with_gil: bool) -> str:
    """The program of CPython *version*: ``python3.13t``."""
    return f"python{version.rpartition('.')[0]}" + ("" if with_gil else "t")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--with-gil", action="store_true", help="the build to compare it with")
    parser.add_argument("--minor", type=int, help="of this CPython alone, such as 14")
    parser.add_argument("--jobs", type=int, default=2, help="compilers that run at once")
    parser.add_argument("--list", action="store_true", help="what is there; builds nothing")
    arguments = parser.parse_args()
    if arguments.list:
        print(*built(arguments.with_gil), sep="\n")
        return 0
    wanted = list(MINORS) if arguments.minor is None else [arguments.minor]
    print(build(arguments.with_gil, wanted, arguments.jobs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
