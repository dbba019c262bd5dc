"""The two databases of OVN, Northbound and Southbound, each on a unix socket: gone afterwards.

Owns Debian's programs for them: those of the machine, or those of the packages, unpacked into the
cache directory and not installed, since installing them brings a switch that this needs not. There
is no ``ovn-northd`` and no chassis: what neutron writes and reads is what its API does.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from waiting import wait_until

from services.infra import MissingProgramError, cache_directory, required
from services.processes import RunningService
from services.subject import clean_environment

_PACKAGES = ("openvswitch-switch", "openvswitch-common", "ovn-central", "libxdp1")
_SCHEMAS = {"nb": "ovn-nb.ovsschema", "sb": "ovn-sb.ovsschema"}


@functools.cache
def _tree() -> Path:
    """Below which ``usr`` has the programs and schemas.

    :raises MissingProgramError: neither the machine nor a mirror of Debian has them.
    """
    own = Path("/usr/share/ovn/ovn-nb.ovsschema").exists()
    if own and shutil.which("ovsdb-server", path="/usr/sbin:/usr/bin"):
        return Path("/")
    kept = cache_directory() / "ovn"
    if (kept / "complete").exists():
        return kept
    fetch, unpack = required("apt-get", "apt"), required("dpkg-deb", "dpkg")
    with tempfile.TemporaryDirectory(dir=cache_directory()) as name:
        part = Path(name)
        part.chmod(0o777)  # apt's own user writes there
        done = subprocess.run(
            [fetch, "download", "-q", *_PACKAGES], cwd=part, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise MissingProgramError(
                f"ovsdb-server is not installed and cannot be fetched: {done.stderr.strip()}; "
                "install Debian's openvswitch-switch and ovn-central"
            )
        for package in part.glob("*.deb"):
            subprocess.run([unpack, "-x", str(package), str(part / "tree")], check=True)
        (part / "tree" / "complete").touch()
        shutil.rmtree(kept, ignore_errors=True)
        (part / "tree").rename(kept)
    return kept


class Ovn:
    """Both databases, empty. ``address`` is what ``ovn_nb_connection`` and its like take."""

    def __init__(self) -> None:
        tree = _tree()
        self._bin = tree / "usr" / "bin"
        self._environment = clean_environment()
        if tree != Path("/"):
            libraries = [str(path) for path in (tree / "usr" / "lib").glob("*-linux-gnu")]
            self._environment["LD_LIBRARY_PATH"] = ":".join(libraries)
        # A unix socket's path is limited to 107 bytes: keep the directory's name short.
        self.directory = Path(tempfile.mkdtemp(prefix="osloxide-ovn-"))
        self.directory.chmod(0o755)
        self.readable = [str(self.directory), str(tree)]
        """What an API that runs as a user of its own reads."""
        self._offer_client()
        self._processes: list[RunningService] = []
        try:
            for name, schema in _SCHEMAS.items():
                self._start(name, tree / "usr" / "share" / "ovn" / schema)
            # What ovn-nbctl and ovn-sbctl put there first, and what northd would say of its limits.
            limits = ["map", [["max_tunid", "16711680"]]]
            self._transact("nb", "OVN_Northbound", "NB_Global", {"options": limits})
            self._transact("sb", "OVN_Southbound", "SB_Global", {"options": limits})
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, schema: Path) -> None:
        base = self.directory
        database, control = base / f"{name}.db", base / f"{name}.ctl"
        self._run("ovsdb-tool", "create", str(database), str(schema))
        program = self._bin.with_name("sbin") / "ovsdb-server"
        server = RunningService(
            [
                str(program), f"--remote=punix:{self.socket(name)}",
                f"--unixctl={control}", f"--pidfile={base / name}.pid", "--no-chdir", str(database),
            ],
            base / f"{name}.log", self._environment | {"OVS_RUNDIR": str(base)},
        )  # fmt: skip
        self._processes.append(server)

        def is_up() -> bool:
            server.assert_running()
            return self.socket(name).exists()

        wait_until(is_up, f"ovsdb-server of {name} listens", 60)
        self.socket(name).chmod(0o777)  # an API that runs as a user of its own connects

    def _offer_client(self) -> None:
        """neutron asks ``ovsdb-client`` for the schema: a program of that name in ``bin``."""
        self.bin.mkdir()
        program = self.bin / "ovsdb-client"
        libraries = self._environment.get("LD_LIBRARY_PATH", "")
        program.write_text(
            f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {self._bin}/ovsdb-client "$@"\n'
        )
        program.chmod(0o755)

    @property
    def bin(self) -> Path:
        """Belongs into the ``PATH`` of what uses these databases."""
        return self.directory / "bin"

    def socket(self, name: str) -> Path:
        """Of the database *name*: ``nb`` or ``sb``."""
        return self.directory / f"{name}.sock"

    def address(self, name: str) -> str:
        return f"unix:{self.socket(name)}"

    def rows(self, table: str, *columns: str) -> list[dict[str, Any]]:
        """All rows of a *table* of the Northbound database."""
        query = ["OVN_Northbound", {"op": "select", "table": table, "where": [],
                                    "columns": list(columns)}]  # fmt: skip
        said = self._run("ovsdb-client", "query", self.address("nb"), json.dumps(query))
        return list(json.loads(said)[0]["rows"])

    def _transact(self, name: str, database: str, table: str, row: dict[str, Any]) -> None:
        insertion = json.dumps([database, {"op": "insert", "table": table, "row": row}])
        self._run("ovsdb-client", "transact", self.address(name), insertion)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            env=self._environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stop(self) -> None:
        """End both servers and prove it."""
        for process in self._processes:
            process.kill()
            assert not process.family()
        shutil.rmtree(self.directory, ignore_errors=True)
