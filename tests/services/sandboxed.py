"""Inside a sandbox: starts a real API as its tool does and prints, as JSON, what happens.

Owns what the tool has prepared before: /etc/PROJECT, /var/lib/PROJECT and /var/log/PROJECT, which
belong to the service's user. What the API then goes through is scenario.py's part.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import re
import shutil
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from services.apis import ALL, Api
from services.calls import call_to
from services.processes import RunningService
from services.scenario import go_through

_CONFIGURATION = (".conf", ".ini", ".yaml", ".json")


def install(api: Api, prepared: Path, user: str) -> None:
    """Put what was prepared where the packages of a distribution have it."""
    state, etc = Path("/var/lib", api.project), Path("/etc", api.project)
    shutil.copytree(prepared, state, dirs_exist_ok=True)
    for path in state.rglob("*"):
        if path.is_file() and path.suffix in _CONFIGURATION:
            target = etc / path.relative_to(state)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text().replace(str(prepared), str(state)))
    (etc / f"{api.project}.conf.d").mkdir(parents=True, exist_ok=True)
    logs = [Path("/var/log", api.project), Path("/var/log/kolla", api.project)]
    for place in logs:
        place.mkdir(parents=True, exist_ok=True)
    number, group = pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid
    for place in (state, etc, *logs):
        for path in (place, *place.rglob("*")):
            os.chown(path, number, group, follow_symlinks=False)


def is_up(address: str) -> bool:
    if address.startswith("uwsgi:///"):
        family, where = socket.AF_UNIX, address.removeprefix("uwsgi://")
        with socket.socket(family) as probe:
            return probe.connect_ex(where) == 0
    host, _, port = address.partition("://")[2].partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def main() -> None:
    case = json.loads(sys.argv[1])
    real, text = case["real"], Path(case["path"]).read_text()
    api = ALL[real["api"]]
    found = re.search(r"^uid = (\w+)$", text, re.MULTILINE)
    install(api, Path(real["prepared"]), found[1] if found else "root")
    virtualenv = re.search(r"^virtualenv = (\S+)$", text, re.MULTILINE)
    python = f"{virtualenv[1] if virtualenv else real['prefix']}/bin/python"
    arguments = [case["path"] if word == "FILE" else word for word in case["arguments"]]
    user = case.get("user")
    service = RunningService(
        [python, "-m", "osloxide", "uwsgi", *arguments],
        Path("/sandbox/service.log"),
        real["variables"] | {"PWD": os.getcwd()},
        ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else [],
    )
    try:
        outcome = go_through(
            api, service, call_to(case["answers"]), case["workers"],
            lambda: is_up(case["answers"]),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the test outside tells what it was
        logs = "".join(path.read_text()[-6000:] for path in Path("/var/log").rglob("*.log")
                       if api.project in str(path))  # fmt: skip
        print(json.dumps({"failed": f"{error!r}\n{service.text()[-6000:]}\n{logs}"}))
    else:
        print(json.dumps(dataclasses.asdict(outcome)))
    finally:
        service.kill()


if __name__ == "__main__":
    main()
