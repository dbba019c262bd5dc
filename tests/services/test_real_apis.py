"""APIs of OpenStack, started in every way that they are deployed, under load: reload, kill, stop.

The ways: ``osloxide serve MODULE``; nginx in front by the uwsgi protocol; and the unedited ini file
of each deployment tool that has one, in a sandbox with its users, paths and ports. docs/apis.md has
the table of all of them.

Environments and databases come from lock files, and apis.toml says what each API is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from services.apis import ALL, DEPLOYMENTS, NGINX_WAY, RECORD, Api, ask, cases, ways
from services.calls import call_to
from services.cinder import package_directory
from services.conftest import Start, running
from services.infra import Database
from services.ovsdb import Ovn
from services.processes import RunningService, accepts_connections, free_port
from services.scenario import CLIENTS, Outcome, go_through
from services.subject import IS_STOCK, clean_environment
from services.test_proxies import NGINX, needs

pytestmark = [
    pytest.mark.skipif(IS_STOCK, reason="oslo.service has no such command"),
    pytest.mark.timeout(1800),
]

IS_LONG = os.environ.get("OSLOXIDE_LONG") == "1"
# With OSLOXIDE_RECORD=1 the counts of a run go to this file, from which docs/apis.md is made.
IS_RECORDING = os.environ.get("OSLOXIDE_RECORD") == "1"

# The others take half an hour: OSLOXIDE_LONG=1.
EVERYDAY = {
    "keystone-serve",
    "keystone-kolla-ansible/keystone-uwsgi.ini",
    "cinder-nginx",
    "nova-openstack-helm/nova-api-uwsgi.ini",
}


# What an API needs to know of keystone, in its own configuration.
AUTHTOKEN = """
[keystone_authtoken]
www_authenticate_uri = {0}
auth_url = {0}
auth_type = password
username = admin
password = secret
project_name = admin
user_domain_id = default
project_domain_id = default
"""

CHOSEN = [pair for pair in ways() if IS_LONG or "-".join(pair) in EVERYDAY]


class Prepared:
    """Makes the schema of each API once for all its ways."""

    def __init__(self, factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
        self._factory, self._request = factory, request
        self._made: dict[str, tuple[Path, dict[str, str]]] = {}
        self._identity: dict[str, str] = {}
        self.readable: list[str] = []
        """What users that are not root have to reach besides: the socket of the database."""

    def __call__(self, api: Api) -> tuple[Path, dict[str, str]]:
        """Its directory, and the environment to start it with."""
        if api.name not in self._made:
            names = {}
            if api.database == "mariadb":
                database: Database = self._request.getfixturevalue("database")
                self.readable.append(str(database.directory))
                schema = api.name.replace("-", "_")
                database.sql(f"DROP DATABASE IF EXISTS {schema}; CREATE DATABASE {schema}")
                # By its socket: a sandbox has a network of its own.
                url = f"mysql+pymysql://root@localhost/{schema}"
                names["database"] = f"{url}?unix_socket={database.socket}"
            if "ovn" in api.needs:
                ovn: Ovn = self._request.getfixturevalue("ovn")
                self.readable += ovn.readable
                names |= {"ovn_nb": ovn.address("nb"), "ovn_sb": ovn.address("sb")}
                names["ovn_bin"] = str(ovn.bin)
            if "keystone" in api.needs:
                names |= self._keystone()
            directory = self._factory.mktemp(api.name)
            self._made[api.name] = directory, api.prepare(directory, **names)
        return self._made[api.name]

    def _keystone(self) -> dict[str, str]:
        """A keystone that gives out tokens and takes them; one for all APIs."""
        if not self._identity:
            api, port = ALL["keystone"], free_port()
            made, variables = self(api)
            url = f"http://127.0.0.1:{port}"
            # Where keystonemiddleware finds it, by the catalogue.
            manage = [str(api.installed().bin / "keystone-manage"), "--config-dir", str(made)]
            manage += ["bootstrap", "--bootstrap-password", "secret"]
            manage += ["--bootstrap-region-id", "RegionOne"]
            for kind in ("admin", "internal", "public"):
                manage += [f"--bootstrap-{kind}-url", f"{url}/v3"]
            subprocess.run(manage, env=variables, check=True, capture_output=True, timeout=300)
            start: Start = self._request.getfixturevalue("shared_start")
            service = start(
                [api.installed().python, "-m", "osloxide", "serve", api.module,
                 "-b", f"127.0.0.1:{port}", "-w", "2"],
                made / "service.log", variables,
            )  # fmt: skip

            def is_up() -> bool:
                service.assert_running()
                return accepts_connections(port)

            wait_until(is_up, "keystone listens", 180)
            login = next(it for it in api.requests if it["send"] == "POST /v3/auth/tokens")
            token = ask(call_to(url), login, {}).part("header X-Subject-Token")
            self._identity = {"keystone": url, "token": token, "authtoken": AUTHTOKEN.format(url)}
        return self._identity


@pytest.fixture(scope="module")
def ovn() -> Iterator[Ovn]:
    yield from running(Ovn)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Prepared:
    return Prepared(tmp_path_factory, request)


@pytest.fixture(scope="module", params=CHOSEN, ids="-".join)
def outcome(
    request: pytest.FixtureRequest,
    prepared: Prepared,
    shared_start: Start,
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome:
    """What an API, started in one way, went through."""
    name, way = request.param
    api = ALL[name]
    directory = tmp_path_factory.mktemp("way")
    if "/" in way:
        found = in_sandbox(api, way, prepared, directory)
    else:
        found = on_this_machine(api, way, prepared, shared_start, directory)
    if IS_RECORDING:
        note("-".join(request.param), found)
    return found


def on_this_machine(
    api: Api, way: str, prepared: Prepared, start: Start, directory: Path
) -> Outcome:
    made, variables = prepared(api)
    port = free_port()
    command = [api.installed().python, "-m", "osloxide", "serve"]
    application = (api.application or api.module).replace("{directory}", str(made))
    address = f"127.0.0.1:{port}"
    if way == NGINX_WAY:
        address = f"uwsgi://{address}"
    command += [application, "-b", address, "-w", "2", *api.options, "--pyargv"]
    service = start(
        [*command, api.arguments.replace("{directory}", str(made))],
        directory / "service.log", variables,
    )  # fmt: skip
    if way != NGINX_WAY:
        call = call_to(f"http://127.0.0.1:{port}")
        return go_through(api, service, call, 2, lambda: accepts_connections(port))
    front = free_port()
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=front, upstream=f"127.0.0.1:{port}"))
    proxy = RunningService(
        [needs("nginx"), "-c", str(config)], directory / "nginx.log", clean_environment()
    )
    try:
        wait_until(lambda: accepts_connections(front), "nginx listens", 60)
        return go_through(
            api, service, call_to(f"http://127.0.0.1:{front}"), 2,
            lambda: accepts_connections(port), directory / "nginx-error.log",
        )  # fmt: skip
    finally:
        proxy.stop()


def in_sandbox(api: Api, way: str, prepared: Prepared, directory: Path) -> Outcome:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("users, privileged paths and mounts of a deployment need root and namespaces")
    made, variables = prepared(api)
    installed = api.installed()
    file = DEPLOYMENTS / "files" / way
    case = cases()[way]
    workers = [it for it in file.read_text().splitlines() if it.startswith("processes = ")]
    case |= {
        "workers": int(workers[-1].partition(" = ")[2]),
        "readable": [str(package_directory()), str(installed.directory), *prepared.readable],
        "real": {
            "api": api.name, "module": api.module, "prefix": str(installed.directory),
            "prepared": str(made), "variables": installed.variables() | {"PATH": variables["PATH"]},
        },
    }  # fmt: skip
    (directory / "case.json").write_text(json.dumps(case))
    (directory / "sandbox").mkdir()
    done = subprocess.run(
        [
            "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
            sys.executable, str(DEPLOYMENTS / "sandbox.py"), str(directory / "sandbox"),
            str(directory / "case.json"), str(file),
        ],
        capture_output=True, text=True, timeout=1780,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "failed" not in result, result["failed"]
    return Outcome(**result)


def note(row: str, outcome: Outcome) -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[row] = {
        "workers": outcome.workers, "worked": outcome.worked,
        "reload": outcome.reload_answered, "kill": outcome.kill_answered,
        "kill_lost": len(outcome.kill_lost), "stop": outcome.stop_answered,
    }  # fmt: skip
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def test_it_starts_with_its_workers_and_does_its_work(outcome: Outcome) -> None:
    assert outcome.workers >= 1
    assert outcome.worked > 0


def test_a_reload_under_load_loses_no_request(outcome: Outcome) -> None:
    assert outcome.reload_answered >= 20
    assert outcome.reload_lost == []


def test_a_killed_worker_is_replaced_and_only_its_own_requests_are_lost(outcome: Outcome) -> None:
    assert outcome.kill_answered >= 20
    assert len(outcome.kill_lost) <= CLIENTS, outcome.kill_lost


def test_a_stop_under_load_answers_what_it_accepted_and_leaves_nothing(outcome: Outcome) -> None:
    assert outcome.stop_lost == []
    assert outcome.stop_refused == CLIENTS
    assert outcome.status == 0
    assert outcome.left == []


def test_every_ini_file_names_an_api_of_the_table() -> None:
    assert {case["api"] for case in cases().values()} <= set(ALL)
