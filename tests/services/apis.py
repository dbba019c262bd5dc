"""APIs of OpenStack as they are released: configuration, schema, and the work that each has to do.

Owns the reading of ``apis.toml``, the table of APIs. Nothing of an API is changed, no other service
runs beside it, and lock files pin its version. What is done to a running API is scenario.py's part.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waiting import wait_until

from services.calls import Answer, Body, Call
from services.cinder import Environment
from services.subject import REPOSITORY

TABLE = Path(__file__).with_name("apis.toml")
RECORD = Path(__file__).with_name("apis-record.json")
"""What a run counted, by API and way."""
DEPLOYMENTS = REPOSITORY / "tests" / "deployments"
SERVE, NGINX_WAY = "serve", "nginx"
"""Ways of starting an API beside the ini files of deployment tools."""


@dataclass
class Api:
    """One API of the table; ``apis.toml`` says what each field is."""

    name: str
    module: str
    environment: str
    script: str
    load: dict[str, Any]
    requests: list[dict[str, Any]]
    files: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    manage: list[str] = field(default_factory=list)
    application: str = ""
    arguments: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    database: str = "sqlite"
    options: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Words that files and requests may name, such as a token; known once it is prepared."""

    @property
    def project(self) -> str:
        """Whose directories it has: of ``nova-metadata`` it is ``nova``."""
        return self.module.partition(".")[0]

    def installed(self) -> Environment:
        lock = REPOSITORY / "requirements" / f"{self.environment}.lock"
        return Environment(self.environment, lock, self.script)

    def prepare(self, directory: Path, **names: str) -> dict[str, str]:
        """Write configuration and schema; the environment to start it with.

        :param names: further words that the files may name, such as ``database``.
        """
        installed = self.installed()
        names |= {"directory": str(directory), "prefix": str(installed.directory)}
        self.names = names
        for name in self.directories:
            (directory / name).mkdir(mode=0o700)
        for source, target in self.copies.items():
            (directory / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(installed.directory / source, directory / target)
        for name, text in self.files.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(filled(text, names))
        variables = installed.variables()
        variables |= {key: filled(value, names) for key, value in self.variables.items()}
        for line in self.manage:
            words = shlex.split(filled(line, names))
            done = subprocess.run(
                [str(installed.bin / words[0]), *words[1:]],
                env=variables, capture_output=True, text=True, cwd=directory,
            )  # fmt: skip
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return variables

    def use(self, call: Call) -> int:
        """Do the work of the table; returns how many requests that took."""
        names = self.names | {"unique": os.urandom(6).hex()}
        sent = b""
        for request in self.requests:
            body: Body = None
            if "bytes" in request:
                body = sent = os.urandom(request["bytes"])
            answer = ask(call, request, names, body)
            if "until" in request:
                answer = wait_answer(call, request, names)
            where = f"{self.name}: {request['send']}"
            for path, wanted in request.get("find", {}).items():
                assert answer.part(path) == filled(wanted, names), f"{where}: {answer.data[:500]!r}"
            if request.get("same_bytes"):
                assert answer.data == sent, f"{where}: other bytes than were sent"
            for name, path in request.get("keep", {}).items():
                names[name] = answer.part(path)
        return len(self.requests)


class WrongStatusError(AssertionError):
    """An answer that the table does not want."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def ask(
    call: Call, request: Mapping[str, Any], names: Mapping[str, str], body: Body = None
) -> Answer:
    """Send one request of the table.

    :raises WrongStatusError: it was answered with another status than the table says.
    """
    method, _, path = request["send"].partition(" ")
    headers = {key: filled(value, names) for key, value in request.get("headers", {}).items()}
    if "body" in request:
        body = json.dumps(filled(request["body"], names)).encode()
        headers.setdefault("Content-Type", "application/json")
    elif body is not None:
        headers.setdefault("Content-Type", "application/octet-stream")
    if request.get("chunked"):
        assert isinstance(body, bytes)
        body = iter([body[:1000], body[1000:]])
    answer = call(method, filled(path, names), body, headers)
    wanted = request.get("status", [200])
    if answer.status not in wanted:
        raise WrongStatusError(
            answer.status,
            f"{request['send']}: {answer.status}, not {wanted}: {answer.data[:1000]!r}",
        )
    return answer


def wait_answer(call: Call, request: Mapping[str, Any], names: Mapping[str, str]) -> Answer:
    """Ask until the answer has the parts that the request's ``until`` names."""
    wanted = filled(request["until"], names)

    def settled() -> Answer | None:
        answer = ask(call, request, names)
        try:
            found = {path: answer.part(path) for path in wanted}
        except LookupError:
            return None  # a list that is still empty
        return answer if found == wanted else None

    return wait_until(settled, f"{request['send']}: {wanted}", 120, pause=0.1)


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """*value* with ``{name}`` replaced in every text of it, where *names* has the name."""
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda it: names.get(it[1], it[0]), value)
    if isinstance(value, dict):
        return {key: filled(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, names) for inner in value]
    return value


def _read() -> dict[str, Api]:
    table = tomllib.loads(TABLE.read_text())
    found = {}
    for name, values in table.items():
        # What is served twice, as nova, shares its configuration.
        base = table.get(values.pop("like", ""), {})
        more = values.pop("more", {})
        api = found[name] = Api(name, **{**base, **values})
        # In a file of oslo.config the last value of an option holds.
        api.files = {file: text + more.get(file, "") for file, text in api.files.items()}
    return found


ALL = _read()


def cases() -> dict[str, dict[str, Any]]:
    """The ini files of deployment tools, by their path below ``files``."""
    return tomllib.loads((DEPLOYMENTS / "cases.toml").read_text())


def ways() -> list[tuple[str, str]]:
    """Every API, and each way of starting it."""
    found = []
    for name in ALL:
        deployed = sorted(file for file, case in cases().items() if case["api"] == name)
        deployed += ALL[name].also
        found += [(name, way) for way in (SERVE, NGINX_WAY, *deployed)]
    return found
