"""A systemd of its own, as process 1 of namespaces of its own: real units, as an operator has them.

Owns that systemd and its few units, and proves that no process of it is left. Knows nothing of
what the units start. It has the file system of the machine, but a ``/run``, a process table and a
tree of control groups of its own. It ends with the process that started it, also by SIGKILL.

Rules: systemd(1), systemctl(1), the container interface of systemd (``container=``), cgroups(7).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path

from _children import environment
from procfs import children
from waiting import wait_until

SYSTEMD = Path("/lib/systemd/systemd")
_CGROUPS = Path("/sys/fs/cgroup")
_TARGETS = ("sysinit", "basic", "shutdown", "sockets", "umount", "all")
"""Units that systemd wants to exist for others; here they have nothing to do."""

_UNSHARE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--mount", "--uts",
            "--ipc", "--cgroup", "--fork", "--mount-proc", "--kill-child")  # fmt: skip
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
echo {machine} > /run/machine-id
if [ -e /etc/machine-id ]; then mount --bind /run/machine-id /etc/machine-id; fi
exec env -i PATH="$PATH" container=osloxide SYSTEMD_UNIT_PATH={units} {systemd} --system \\
    --unit=all.target --log-level=info --log-target=console --show-status=no
"""


def why_not() -> str | None:
    """Why there can be no systemd of its own here; None where there can."""
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "systemd is not installed here"
    if shutil.which("setpriv") is None or shutil.which("unshare") is None:
        return "setpriv(1) and unshare(1) of util-linux are not installed here"
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode:
        return "unshare(1) may not make namespaces here (needs CAP_SYS_ADMIN)"
    if not os.access(_hierarchy(), os.W_OK):
        return "the control groups of this machine cannot be written to"
    return None


def _hierarchy() -> Path:
    """Where systemd keeps track of processes: all of version 2, or its own tree of version 1."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return _CGROUPS
    return _CGROUPS / "systemd"


class Systemd:
    """One that runs.

    :param place: an empty directory for its units and logs.
    :ivar cgroup: the control group that holds it and all that it has started.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._units = place / "units"
        self._units.mkdir()
        self._log = place / "systemd.log"
        self.cgroup = _hierarchy() / f"osloxide-{uuid.uuid4().hex[:8]}"
        self._unshare: subprocess.Popen[bytes] | None = None
        try:
            self.cgroup.mkdir()
            self._unshare = self._boot()
            (self.pid,) = wait_until(self._first, lambda: f"process 1\n{self.log}")
            wait_until(self._is_up, lambda: f"systemd\n{self.log}")
        except BaseException:
            self.close()
            raise

    def _boot(self) -> subprocess.Popen[bytes]:
        for target in _TARGETS:
            self.write(f"{target}.target", f"[Unit]\nDescription={target}\n")
        boot = self.place / "boot"
        boot.write_text(
            _BOOT.format(
                machine=uuid.uuid4().hex, units=shlex.quote(str(self._units)), systemd=SYSTEMD
            )
        )
        words = shlex.join([*_UNSHARE, "sh", str(boot)])
        entered = f"echo $$ > {shlex.quote(str(self.cgroup / 'cgroup.procs'))} && exec {words}"
        with self._log.open("wb") as sink:
            return subprocess.Popen(
                ["sh", "-c", entered],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _first(self) -> list[int]:
        assert self._unshare is not None
        assert self._unshare.poll() is None, f"systemd has ended\n{self.log}"
        return children(self._unshare.pid)

    def _is_up(self) -> bool:
        assert self._first(), f"systemd has ended\n{self.log}"
        return "active" in self.systemctl("is-active", "all.target", check=False).split()

    def write(self, name: str, text: str) -> None:
        """A unit, as a file."""
        (self._units / name).write_text(textwrap.dedent(text))

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What systemctl(1) prints, called inside.

        :raises AssertionError: it failed, and *check*.
        """
        done = subprocess.run(
            [*self.enter(), "systemctl", "--no-pager", *words],
            capture_output=True, text=True, check=False, timeout=120, env=environment(),
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}{done.stdout}{self.log}"
        return done.stdout

    def enter(self) -> list[str]:
        """A command that runs another one inside."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--cgroup"]

    def show(self, unit: str, name: str) -> str:
        """One property of *unit*, as systemctl shows it."""
        return self.systemctl("show", f"--property={name}", "--value", "--", unit).strip()

    def members(self, unit: str) -> list[int]:
        """Processes of *unit*, with their pids outside."""
        return [pid for group in _groups(self.cgroup) if group.name == unit for pid in _pids(group)]

    def is_empty(self, unit: str) -> bool:
        """Whether no process of *unit* is left."""
        return not self.members(unit)

    def outside(self, pid: int) -> int:
        """The pid outside of the process that has *pid* inside."""
        for group in _groups(self.cgroup):
            for each in _pids(group):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{each}/status").read_text()
                    found = re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE)
                    if found is not None and int(found[1]) == pid:
                        return each
        raise AssertionError(f"no process has pid {pid} inside")

    def close(self) -> None:
        """End it and all that it has started."""
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait()
        wait_until(lambda: has_gone(self.cgroup), f"no process below {self.cgroup}")


def has_gone(cgroup: Path) -> bool:
    """Whether no process is left in a control group and those below it, which are removed then."""
    for group in sorted(_groups(cgroup), reverse=True):
        with contextlib.suppress(OSError):
            group.rmdir()  # refused while a process of it lives
    return not cgroup.exists()


def _groups(cgroup: Path) -> Iterator[Path]:
    """*cgroup* and those below it. systemd removes some meanwhile: :func:`os.walk` passes over."""
    for place, _directories, _files in os.walk(cgroup):
        yield Path(place)


def _pids(group: Path) -> list[int]:
    """Processes of a control group; none where it was removed meanwhile."""
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []
