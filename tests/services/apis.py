"""APIs of OpenStack as they are released, on SQLite: configuration, schema, requests.

Nothing of them is changed, no other service runs beside them, and lock files pin their versions.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.cinder import Environment
from services.subject import REPOSITORY

CINDER = ("cinder", REPOSITORY / "requirements" / "cinder.lock", "cinder-api")
NOVA = ("nova", REPOSITORY / "requirements" / "nova.lock", "nova-conductor")
APIS = ("apis", REPOSITORY / "requirements" / "apis.lock", "keystone-manage")

Call = Callable[..., tuple[int, Any]]
"""``call(method, path, body, **headers)``: status and answer."""


@dataclass
class Api:
    """One API in a directory of its own.

    :ivar write: writes the configuration: a directory, and where the environment is installed.
    :ivar arguments: what the application finds in ``sys.argv[1:]``.
    :ivar variables: what its environment says besides.
    """

    name: str
    module: str
    pinned: tuple[str, Path, str]
    write: Callable[[Path, Path], None]
    manage: list[list[str]]
    use: Callable[[Call], None]
    arguments: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self) -> Environment:
        return Environment(*self.pinned)

    def prepare(self, directory: Path) -> dict[str, str]:
        """Configuration and schema; returns the environment to start it with."""
        environment = self.environment()
        self.write(directory, environment.directory)
        variables = environment.variables()
        variables |= {k: v.format(directory=directory) for k, v in self.variables.items()}
        for command in self.manage:
            words = [word.format(directory=directory) for word in command]
            done = subprocess.run(
                [str(environment.bin / words[0]), *words[1:]],
                env=variables, capture_output=True, text=True, cwd=directory,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return variables


def http_call(port: int) -> Call:
    """Requests over HTTP."""

    def call(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            data, names = encoded(body, headers)
            connection.request(method, path, data, names)
            answer = connection.getresponse()
            return answer.status, decoded(answer.read(), answer.headers)
        finally:
            connection.close()

    return call


def encoded(body: Any, headers: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None or isinstance(body, bytes) or hasattr(body, "__next__"):
        return body, names
    return json.dumps(body).encode(), {"Content-Type": "application/json", **names}


def decoded(data: bytes, headers: Any) -> Any:
    answer = json.loads(data) if "json" in headers.get("Content-Type", "") else data
    token = headers.get("X-Subject-Token")
    return (answer, token) if token else answer


# ---- placement


def _write_placement(directory: Path, _prefix: Path) -> None:
    (directory / "placement.conf").write_text(f"""\
[api]
auth_strategy = noauth2
[placement_database]
connection = sqlite:///{directory}/placement.db
""")


def _use_placement(call: Call) -> None:
    admin = {"X_Auth_Token": "admin", "OpenStack_API_Version": "placement 1.39"}
    assert call("GET", "/")[0] == 200
    assert call("GET", "/resource_providers")[0] == 401
    status, made = call("POST", "/resource_providers", {"name": os.urandom(6).hex()}, **admin)
    assert status == 200, made
    status, found = call("GET", f"/resource_providers/{made['uuid']}", **admin)
    assert (status, found["name"]) == (200, made["name"])
    assert call("DELETE", f"/resource_providers/{made['uuid']}", **admin)[0] == 204


# ---- keystone


def _write_keystone(directory: Path, _prefix: Path) -> None:
    for name in ("fernet", "credentials"):
        (directory / name).mkdir(mode=0o700)
    (directory / "keystone.conf").write_text(f"""\
[database]
connection = sqlite:///{directory}/keystone.db
[fernet_tokens]
key_repository = {directory}/fernet
[fernet_receipts]
key_repository = {directory}/fernet
[credential]
key_repository = {directory}/credentials
""")


def _use_keystone(call: Call) -> None:
    user = {"name": "admin", "password": "secret", "domain": {"id": "default"}}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    identity = {"methods": ["password"], "password": {"user": user}}
    assert call("GET", "/v3/projects")[0] == 401
    status, answer = call(
        "POST", "/v3/auth/tokens", {"auth": {"identity": identity, "scope": scope}}
    )
    assert status == 201, answer
    _, token = answer
    status, found = call("GET", "/v3/projects", X_Auth_Token=token)
    assert status == 200
    assert [project["name"] for project in found["projects"]] == ["admin"]


# ---- glance


def _write_glance(directory: Path, prefix: Path) -> None:
    (directory / "images").mkdir()
    # Without keystone in front there is no role that a rule could ask for.
    (directory / "policy.yaml").write_text(
        "".join(
            f'"{rule}": "@"\n'
            for rule in ("add_image", "get_image", "upload_image", "download_image", "delete_image")
        )
    )
    (directory / "glance-api.conf").write_text(f"""\
[DEFAULT]
enabled_backends = files:file
node_staging_uri = file://{directory}/staging
worker_self_reference_url = http://127.0.0.1:9
[database]
connection = sqlite:///{directory}/glance.db
[glance_store]
default_backend = files
[files]
filesystem_store_datadir = {directory}/images
[os_glance_staging_store]
filesystem_store_datadir = {directory}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {directory}/tasks
[oslo_policy]
policy_file = {directory}/policy.yaml
[paste_deploy]
flavor =
config_file = {prefix}/etc/glance/glance-api-paste.ini
""")


def _use_glance(call: Call) -> None:
    image = {"name": "cirros", "disk_format": "raw", "container_format": "bare"}
    status, made = call("POST", "/v2/images", image)
    assert status == 201, made
    data = os.urandom(300_000)
    status, answer = call(
        "PUT", f"/v2/images/{made['id']}/file", iter([data[:1000], data[1000:]]),
        Content_Type="application/octet-stream",
    )  # fmt: skip
    assert status == 204, answer
    assert call("GET", f"/v2/images/{made['id']}/file") == (200, data)
    assert call("DELETE", f"/v2/images/{made['id']}")[0] == 204


# ---- cinder


def _write_cinder(directory: Path, prefix: Path) -> None:
    (directory / "cinder.conf").write_text(f"""\
[DEFAULT]
auth_strategy = noauth
api_paste_config = {prefix}/etc/cinder/api-paste.ini
state_path = {directory}
transport_url = fake:/
[database]
connection = sqlite:///{directory}/cinder.db
[oslo_concurrency]
lock_path = {directory}
""")


def _use_cinder(call: Call) -> None:
    admin = {"X_Auth_Token": "admin:p1"}
    assert call("GET", "/")[0] in (200, 300)
    status, made = call(
        "POST", "/v3/types", {"volume_type": {"name": os.urandom(6).hex()}}, **admin
    )
    assert status == 200, made
    assert call("GET", "/v3/types", **admin)[0] == 200
    assert call("DELETE", f"/v3/types/{made['volume_type']['id']}", **admin)[0] == 202


# ---- nova


def _write_nova(directory: Path, prefix: Path) -> None:
    shutil.copy(prefix / "etc" / "nova" / "api-paste.ini", directory)
    (directory / "nova.conf").write_text(f"""\
[DEFAULT]
state_path = {directory}
transport_url = fake:/
my_ip = 127.0.0.1
[api_database]
connection = sqlite:///{directory}/nova_api.db
[database]
connection = sqlite:///{directory}/nova.db
[oslo_concurrency]
lock_path = {directory}
[keystone_authtoken]
auth_type = none
[placement]
auth_type = admin_token
endpoint = http://127.0.0.1:9
endpoint_override = http://127.0.0.1:9
token = admin
[neutron]
auth_type = none
endpoint_override = http://127.0.0.1:9
[glance]
endpoint_override = http://127.0.0.1:9
[cinder]
auth_type = none
""")


def _use_nova(call: Call) -> None:
    # nova 34 takes no request without keystone, which is not there: what it answers by itself.
    assert call("GET", "/")[0] == 200
    status, found = call("GET", "/v2.1/")
    assert (status, found["version"]["id"]) == (200, "v2.1")
    assert call("GET", "/v2.1/flavors")[0] == 401


ALL = {
    api.name: api
    for api in (
        Api(
            "placement", "placement.wsgi.api", APIS, _write_placement,
            [["placement-manage", "--config-file", "{directory}/placement.conf", "db", "sync"]],
            _use_placement,
            variables={"OS_PLACEMENT_CONFIG_DIR": "{directory}"},
        ),
        Api(
            "keystone", "keystone.wsgi.api", APIS, _write_keystone,
            [
                ["keystone-manage", "--config-dir", "{directory}", *words.split()]
                for words in (
                    "db_sync",
                    "fernet_setup --keystone-user root --keystone-group root",
                    "credential_setup --keystone-user root --keystone-group root",
                    "bootstrap --bootstrap-password secret",
                )
            ],
            _use_keystone,
            variables={"OS_KEYSTONE_CONFIG_DIR": "{directory}"},
        ),
        Api(
            "glance", "glance.wsgi.api", APIS, _write_glance,
            [["glance-manage", "--config-dir", "{directory}", "db", "sync"]], _use_glance,
            variables={"OS_GLANCE_CONFIG_DIR": "{directory}"},
        ),
        Api(
            "cinder", "cinder.wsgi.api", CINDER, _write_cinder,
            [["cinder-manage", "--config-file", "{directory}/cinder.conf", "db", "sync"]],
            _use_cinder, arguments=["--config-file", "{directory}/cinder.conf"],
        ),
        Api(
            "nova", "nova.wsgi.osapi_compute", NOVA, _write_nova,
            [
                ["nova-manage", "--config-file", "{directory}/nova.conf", *words.split()]
                for words in (
                    "api_db sync",
                    "cell_v2 map_cell0 --database_connection sqlite:///{directory}/cell0.db",
                    "db sync",
                )
            ],
            _use_nova,
            variables={"OS_NOVA_CONFIG_DIR": "{directory}"},
        ),
    )
}  # fmt: skip
