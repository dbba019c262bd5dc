"""Real APIs beside uWSGI, which reads the very same ini file: CPU of a request, latency, memory.

The file is that of openstack-ansible for keystone; its user, paths, address and module are
replaced, and it has two processes. Keystone looks a token up and lists projects; placement lists
resource providers. Beside them runs ``osloxide uwsgi --warm`` with that file, whose workers share
what loading made.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from services.apis import ALL, Api, ask
from services.calls import call_to

from measure import machine
from measure.peers import ROOT, Serving, until
from measure.wsgi import Round, Workload, in_turn

INI = ROOT / "tests" / "deployments" / "files" / "openstack-ansible" / "keystone.ini"
UWSGI, SUBJECT, WARM = "uwsgi", "osloxide", "warm"
SERVERS = (SUBJECT, UWSGI, WARM)
_PLACES = ("uid", "gid", "env", "safe-pidfile")
_SAYS = "same ini file, one thread in each of two workers, 8 connections"
MEASURED = {
    "placement": Workload("placement", f"`GET /resource_providers`; {_SAYS}",
                          path="/resource_providers", connections=8, workers=2,
                          headers={"X-Auth-Token": "admin"}),
    "keystone": Workload("keystone", f"`GET /v3/projects` with a token; {_SAYS}",
                         path="/v3/projects", connections=8, workers=2),
}  # fmt: skip


def ini_of(api: Api, virtualenv: Path, port: int) -> str:
    """The file of openstack-ansible for *api*, with this machine's places."""
    lines = [
        line
        for line in INI.read_text().splitlines()
        if line.partition(" = ")[0] not in _PLACES and not line.startswith("virtualenv")
    ]
    text = "\n".join([*lines, f"virtualenv = {virtualenv}", ""])
    text = re.sub(r"^http-socket = .*$", f"http-socket = 127.0.0.1:{port}", text, flags=re.M)
    text = re.sub(r"^processes = .*$", "processes = 2", text, flags=re.M)
    return re.sub(r"^wsgi = .*$", f"wsgi = {api.module}:application", text, flags=re.M)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def started(api: Api, server: str, made: Path, variables: dict[str, str], python: str) -> Serving:
    """*api* under *server*."""
    port, installed = free_port(), api.installed()
    ini = made / f"{server}.ini"
    ini.write_text(ini_of(api, installed.directory, port))
    command = [installed.python, "-m", "osloxide", "uwsgi"]
    if server == UWSGI:
        command = [str(Path(python).with_name(UWSGI))]
        # osloxide's sitecustomize has no business there.
        variables = {name: text for name, text in variables.items() if name != "PYTHONPATH"}
    command += ["--ini", str(ini)]
    if server == WARM:
        command.append("--warm")
    script = f'echo "listening {port}"; exec "$@"'
    cores = machine.cores(2)[0]
    return Serving(server, ["sh", "-c", script, "sh", *command], cores, variables)


def answers(api: Api, serving: Serving) -> bool:
    """Whether the application is loaded."""
    try:
        ask(call_to(serving.url), api.load, {})
    except OSError:
        return False
    return True


def token_of(serving: Serving) -> str:
    """A token of keystone's admin."""
    request = next(it for it in ALL["keystone"].requests if "/tokens" in it["send"])
    return str(ask(call_to(serving.url), request, {}).part("header X-Subject-Token"))


def run(python: str, rounds: int, seconds: int) -> Iterator[tuple[Workload, str, Round]]:
    """All servers in each round, one API after the other.

    Each round has servers of its own: where the memory of a process happens to lie changes what its
    requests cost by some per cent, as long as it runs.
    """
    for name, workload in MEASURED.items():
        api = ALL[name]
        with tempfile.TemporaryDirectory(prefix="bench-") as made:
            directory = Path(made)
            try:
                database = f"sqlite:///{directory}/{name}.sqlite"
                variables = api.prepare(directory, database=database)
            except subprocess.CalledProcessError as error:
                print(f"left out {name}: {error}")
                continue
            for number in range(rounds):
                first = number % len(SERVERS)
                order = SERVERS[first:] + SERVERS[:first]
                with contextlib.ExitStack() as stack:
                    up = [
                        stack.enter_context(started(api, server, directory, variables, python))
                        for server in order
                    ]
                    yield from one_round(api, workload, up, seconds)


def one_round(
    api: Api, workload: Workload, up: list[Serving], seconds: int
) -> Iterator[tuple[Workload, str, Round]]:
    """Measure servers that have just been started, in their order."""
    for serving in up:
        # An application that loads slowly costs the first client its socket-timeout.
        if not until(functools.partial(answers, api, serving), 120):
            raise RuntimeError(f"{serving.server} does not serve {api.name}:\n{serving.log()}")
    if "X-Auth-Token" not in workload.headers:
        workload.headers["X-Auth-Token"] = token_of(up[0])
    for server, measured in in_turn(up, workload, machine.cores(2)[1], 1, seconds):
        yield workload, server, measured
