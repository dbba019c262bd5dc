"""Build the Debian package in a tree of a Debian release, from the vendored source distribution.

Owns the steps from a checkout to a ``.deb``: what debian/ says is built with that release's own
cargo, rustc, maturin and CPythons, without a network, and copied to dist/. Installs nothing on this
machine. Needs root for the tree (tools/debian_tree.py).

The sources are unpacked at one place below target/, and what cargo compiled is kept beside it:
cargo compiles a crate anew that it finds at another path. It knows a vendored crate by its checksum
and the files of osloxide by their times, so these get the time of their unpacking: an archive has
the same one for every version of a file.

    tools/deb.py [--release sid] [--unoptimised]       prints the paths of the packages
    tools/deb.py --install                             and installs them in the tree
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import debian_tree
import wheels

ROOT = Path(__file__).resolve().parents[1]
DEBIAN = ROOT / "debian"
QUICK = {
    "CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
}  # fmt: skip
"""For a package that is built to be tested."""


def build_dependencies() -> list[str]:
    """The packages that debian/control needs, without their versions, and what builds any."""
    text = (DEBIAN / "control").read_text()
    field = re.search(r"^Build-Depends:\n((?: .*\n)+)", text, re.MULTILINE)
    if field is None:
        sys.exit("debian/control names no Build-Depends")
    names = [line.split("(")[0].strip(" ,\n") for line in field[1].splitlines()]
    virtual = {"debhelper-compat": "debhelper", "dh-sequence-python3": "dh-python"}
    return ["build-essential", "dpkg-dev", *(virtual.get(name, name) for name in names)]


def digest(release: str, unoptimised: bool) -> str:
    """Changes when anything does that the package is made of."""
    inputs = wheels.digest_of_inputs(sys.executable)
    parts = hashlib.sha256(f"{release} {unoptimised} {inputs}".encode())
    for path in sorted(DEBIAN.rglob("*")):
        if path.is_file():
            parts.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return parts.hexdigest()


def packages(release: str, unoptimised: bool) -> list[Path]:
    """The packages, built only when their inputs have changed; the one with the module first."""
    name = f"debian-{release}{'-unoptimised' if unoptimised else ''}"
    out, place = ROOT / "dist" / name, ROOT / "target" / name
    stamp = out / "inputs"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = digest(release, unoptimised)
        if not (stamp.exists() and stamp.read_text() == wanted):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            debian_tree.install(release, build_dependencies())
            build(release, place, out, unoptimised)
            stamp.write_text(wanted)
    return sorted(out.glob("*.deb"), key=lambda path: ("dbgsym" in path.name, path.name))


def unpack(archive: Path, into: Path) -> Path:
    """The folder that the source distribution *archive* has, unpacked below *into*.

    Files outside of vendor/ get the time of now, so that cargo compiles what has changed.
    """
    with tarfile.open(archive) as source:
        source.extractall(into, filter="data")
    (tree,) = (path for path in into.iterdir() if path.is_dir())
    for entry in tree.iterdir():
        for path in [entry, *entry.rglob("*")] if entry.name != "vendor" else ():
            os.utime(path)
    return tree


def build(release: str, place: Path, out: Path, unoptimised: bool) -> None:
    """Unpack the sources below *place*, build there, and copy the packages to *out*."""
    work = place / "sources"
    shutil.rmtree(work, ignore_errors=True)
    wheels.source_distribution(work, vendored=True, effort=1)
    (vendored,) = work.glob("*+vendored.tar.gz")
    version = vendored.name.removeprefix("osloxide-").removesuffix("+vendored.tar.gz")
    original = vendored.rename(work / f"osloxide_{version}.orig.tar.gz")
    source = unpack(original, work)
    shutil.copytree(DEBIAN, source / "debian", dirs_exist_ok=True)
    # Nothing of this machine's toolchain may be used: the tree's own programs alone are on PATH.
    plain = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8",
        "DEB_BUILD_OPTIONS": f"parallel={os.cpu_count() or 1}", **(QUICK if unoptimised else {}),
        "CARGO_TARGET_DIR": str(place / "compiled"),
    }  # fmt: skip
    done = subprocess.run(
        [debian_tree.entrance(release), "dpkg-buildpackage", "-us", "-uc", "-b"],
        cwd=source, env=plain, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    (out / "build.log").write_text(done.stdout)
    if done.returncode != 0:
        log = out / "build.log"
        sys.exit(f"dpkg-buildpackage failed; the whole log: {log}\n{done.stdout[-3000:]}")
    for package in work.glob("*.deb"):
        shutil.copy(package, out)
    shutil.rmtree(work)


def install(release: str, files: list[Path]) -> None:
    """Install the packages in the tree, with what they depend on."""
    (module, *_) = files
    with tempfile.TemporaryDirectory(prefix="osloxide-deb-", dir="/tmp") as name:
        copy = shutil.copy(module, name)
        # The same version may be installed, of an earlier build.
        options = ["-y", "--reinstall", "--no-install-recommends"]
        command = [*debian_tree.APT, "install", *options, copy]
        done = subprocess.run(
            [debian_tree.entrance(release), *command], cwd="/", text=True, capture_output=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        if done.returncode != 0:
            said = done.stdout[-2000:] + done.stderr[-2000:]
            sys.exit(f"{module.name} cannot be installed\n{said}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--release", default="sid", help="a release of Debian")
    parser.add_argument("--unoptimised", action="store_true", help="a package for tests alone")
    parser.add_argument("--install", action="store_true", help="install it in the tree")
    arguments = parser.parse_args()
    files = packages(arguments.release, arguments.unoptimised)
    for path in files:
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.relative_to(ROOT)}")
    if arguments.install:
        install(arguments.release, files)
    return 0


if __name__ == "__main__":
    sys.exit(main())
