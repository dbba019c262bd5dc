"""A Debian release in a folder: made by debootstrap, given packages, entered by a script.

Owns the trees below the user's cache directory, where all checkouts share them, and the scripts
that start a program in one. A program in a tree sees the network, the processes and the devices of
this machine, and this checkout and ``/tmp`` at their usual places, and trusts the authorities that
the host trusts; it sees no other file of the host. Installing a package never starts a daemon
there. Needs root (chroot(2), mount_namespaces(7)).

    tools/debian_tree.py sid python3-dev nova-conductor           make the tree, install packages
    tools/debian_tree.py sid --run nova-conductor --version       and run a program in it
"""

import argparse
import fcntl
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osloxide" / "trees"
FIRST_PACKAGES = "python3,python3-venv,ca-certificates"
ENTER = """#!/bin/sh
# Starts {what} in the Debian tree {tree}, in a mount namespace of its own.
exec unshare --mount --propagation=private sh -ceu '
    for shared in {shared}; do
        mkdir -p "$0$shared" && mount --bind "$shared" "$0$shared"
    done
    mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev"
    if [ -s {bundle} ] && [ -e "$0{bundle}" ]; then
        mount --bind {bundle} "$0{bundle}" && export SSL_CERT_FILE={bundle}
    fi
    exec chroot "$0" /bin/sh -c "cd \\"\\$0\\" && exec \\"\\$@\\"" "$PWD" "$@"
' {tree} {program} "$@"
"""
# A mirror that stands still is good enough for a tree that is only tested in.
APT = ["apt-get", "-qq", "-o", "Acquire::Check-Valid-Until=false"]
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
NO_DAEMONS = "#!/bin/sh\n# invoke-rc.d asks this: nothing is started in a tree.\nexit 101\n"


def tree_of(release: str) -> Path:
    """The tree of the Debian *release*, made when it is missing."""
    tree = TREES / release
    TREES.mkdir(parents=True, exist_ok=True)
    with (TREES / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (tree / "etc" / "debian_version").exists():
            if os.geteuid() != 0:
                sys.exit(f"making a tree of Debian {release} needs root; run this as root")
            subprocess.run([ROOT / "tools" / "debian.sh", "debootstrap"], check=True)
            print(f"a tree of Debian {release} in {tree}", flush=True)
            unfinished = TREES / f"{release}.new"
            subprocess.run(["rm", "-rf", "--one-file-system", unfinished], check=True)
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={FIRST_PACKAGES}", release,
                 str(unfinished)],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            unfinished.rename(tree)
        policy = tree / "usr" / "sbin" / "policy-rc.d"
        policy.write_text(NO_DAEMONS)
        policy.chmod(0o755)
        hosts = tree / "etc" / "hosts"
        if not hosts.exists() or "localhost" not in hosts.read_text():
            hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        resolver = Path("/etc/resolv.conf")
        if resolver.exists():
            (tree / "etc" / "resolv.conf").unlink(missing_ok=True)
            (tree / "etc" / "resolv.conf").write_text(resolver.read_text())
    return tree


def entrance(release: str, program: str = "") -> Path:
    """A script that starts *program* of the tree, or else the program that it is given."""
    tree = tree_of(release)
    name = program.rpartition("/")[2]
    checkout = f"{zlib.crc32(os.fsencode(ROOT)):08x}"
    script = TREES / f"{release}-{name or 'enter'}-{checkout}"
    shared = "/tmp" if ROOT.is_relative_to("/tmp") else f"/tmp {ROOT}"  # noqa: S108
    text = ENTER.format(
        what=program or "a program", tree=tree, shared=shared, program=program, bundle=BUNDLE
    )
    if not (script.exists() and script.read_text() == text):
        unfinished = script.with_suffix(f".{os.getpid()}")
        unfinished.write_text(text)
        unfinished.chmod(0o755)
        unfinished.rename(script)  # it may be running
    return script


def install(release: str, packages: Sequence[str]) -> None:
    """Install Debian *packages* in the tree, without asking; does nothing when all are there."""
    tree = tree_of(release)
    enter = str(entrance(release))
    query = subprocess.run(
        [enter, "dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *packages],
        capture_output=True, text=True,
    )  # fmt: skip
    have = {line.split()[0] for line in query.stdout.splitlines() if line.endswith(" installed")}
    missing = [package for package in packages if package not in have]
    if not missing:
        return
    print(f"installing in {tree}: {' '.join(missing)}", flush=True)
    with (TREES / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plain = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        for command in (
            [*APT, "update"],
            [*APT, "install", "-y", "--no-install-recommends", *missing],
        ):
            done = subprocess.run(
                [enter, *command], cwd="/", env=plain, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
            if done.returncode != 0:
                sys.exit(f"{' '.join(command)} failed in {tree}\n{done.stdout[-4000:]}")


def pythons(release: str) -> Iterator[str]:
    """Scripts that start the CPythons of the tree, one for each minor version."""
    for program in sorted((tree_of(release) / "usr" / "bin").glob("python3.[0-9][0-9]")):
        yield str(entrance(release, f"/usr/bin/{program.name}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("release", help="a release of Debian: sid, trixie")
    parser.add_argument("packages", nargs="*", help="packages to install there")
    parser.add_argument("--run", nargs=argparse.REMAINDER, metavar="ARG", help="a command line")
    arguments = parser.parse_args()
    install(arguments.release, arguments.packages)
    if arguments.run:
        return subprocess.run([entrance(arguments.release), *arguments.run]).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
