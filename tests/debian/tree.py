"""Debian's own services in a tree of Debian sid, run by osloxide's Debian package.

Owns the environment that the service tests' deployments (tests/services) are given: programs that
start in the tree, and copies of the configuration files that Debian's packages bring. The tree and
the package are made by tools/debian_tree.py and tools/deb.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from services.cinder import Environment
from services.infra import digest
from services.subject import APPS, REPOSITORY, clean_environment

sys.path.insert(0, str(REPOSITORY / "tools"))

import deb
import debian_tree

RELEASE = "sid"
SERVICES = (
    "nova-conductor", "nova-scheduler", "cinder-api", "cinder-scheduler", "cinder-volume",
    "python3-pymysql",
)  # fmt: skip
DROP_INS = REPOSITORY / "debian" / "examples"


class DebianEnvironment(Environment):
    """Programs of the tree under the interface of a virtual environment of the service tests.

    :param directory: for the scripts that enter the tree; below /tmp, which the tree sees.
    """

    def __init__(self, directory: Path) -> None:
        debian_tree.install(RELEASE, SERVICES)
        deb.install(RELEASE, deb.packages(RELEASE, unoptimised=True))
        self.directory = directory
        self._path = [str(APPS)]
        tree = debian_tree.tree_of(RELEASE)
        self.bin.mkdir(parents=True)
        for program in ("python3", "nova-manage", "cinder-manage"):
            (self.bin / program).symlink_to(debian_tree.entrance(RELEASE, f"/usr/bin/{program}"))
        (self.bin / "python").symlink_to("python3")
        for project in ("nova", "cinder"):
            shutil.copytree(tree / "etc" / project, directory / "etc" / project)
        versions = self.output("dpkg-query", "-W", "nova-conductor", "cinder-volume")
        self.key = digest(RELEASE, versions)

    def output(self, *command: str) -> str:
        """What a program of the tree prints."""
        done = subprocess.run(
            [debian_tree.entrance(RELEASE), *command], cwd=self.directory, check=True,
            env=self.variables(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return done.stdout

    def command(self, script: str, *arguments: str) -> list[str]:
        """As the drop-in of the unit starts *script*, with *arguments* instead of its files."""
        drop_in = DROP_INS / f"{script}.service.d" / "osloxide.conf"
        if drop_in.exists():
            (line,) = re.findall(r"^ExecStart=(\S.*)$", drop_in.read_text(), re.MULTILINE)
            words = [word for word in shlex.split(line) if not word.startswith("--")]
        else:
            words = ["/usr/bin/osloxide", "run", f"/usr/bin/{script}"]
        return [str(debian_tree.entrance(RELEASE)), *words, *arguments]

    def variables(self) -> dict[str, str]:
        variables = clean_environment()
        variables["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
        variables["PYTHONPATH"] = ":".join(self._path)
        return variables


class Notifications:
    """The socket of a unit of ``Type=notify``: what systemd would hear (sd_notify(3))."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0)
        self._heard = ""

    def heard(self, line: str) -> bool:
        """Whether *line* has been said by now."""
        try:
            while True:
                self._heard += self._socket.recv(4096).decode() + "\n"
        except BlockingIOError:
            return line in self._heard.splitlines()

    def close(self) -> None:
        self._socket.close()
