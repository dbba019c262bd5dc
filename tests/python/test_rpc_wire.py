"""What is said to a broker, for each setting that changes it: stock's, and the same here.

``rpc_wire.json`` holds what plain oslo.messaging declares and sends, as support/amqp_broker.py has
noted it. A release of oslo.messaging that says something else fails the first test; look at what
has changed, and write the file again: ``PYTHONPATH=tests python tests/python/test_rpc_wire.py``.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from _children import environment, run_command
from support.amqp_broker import Broker

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

HERE = Path(__file__).parent
GOLDEN = HERE / "rpc_wire.json"
PROCESS = f"rpc_wire_{os.getpid()}"
"""Of the queue manager, whose counter all processes of that name share."""

QUORUM = {
    "rabbit_quorum_queue": "true",
    "rabbit_quorum_delivery_limit": "7",
    "rabbit_quorum_max_memory_length": "100",
    "rabbit_quorum_max_memory_bytes": "100000",
}
ROLES = ("client", "server", "listener")
SETTINGS: dict[str, dict[str, str]] = {
    "transient": {},
    "durable": {"amqp_durable_queues": "true", "enable_cancel_on_failover": "true"},
    "auto_delete": {"amqp_auto_delete": "true", "rabbit_transient_queues_ttl": "0"},
    "mirrored": {"rabbit_ha_queues": "true", "rabbit_transient_queues_ttl": "300"},
    "quorum": QUORUM,
    "transient_quorum": QUORUM | {"rabbit_transient_quorum_queue": "true"},
    "queue_manager": {
        "use_queue_manager": "true",
        "hostname": "wire",
        "processname": PROCESS,
        "amqp_durable_queues": "true",
    },
    "stream": QUORUM
    | {
        "rabbit_transient_quorum_queue": "true",
        "rabbit_stream_fanout": "true",
        "rabbit_qos_prefetch_count": "1",
    },
}


def said(directory: Path, **variables: str) -> dict[str, dict[str, Any]]:
    """What clients and servers have said with each setting."""
    for name, options in SETTINGS.items():
        lines = [f"{option} = {value}" for option, value in options.items()]
        (directory / f"{name}.conf").write_text("\n".join(["[oslo_messaging_rabbit]", *lines, ""]))
    broker = Broker()
    try:
        program = [sys.executable, str(HERE / "apps" / "rpc_wire.py")]
        done = run_command(
            [*program, str(broker.port), str(directory)], environ=environment(**variables)
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return {
            setting: {role: broker.kinds(f"{setting}.{role}") for role in ROLES}
            for setting in SETTINGS
        }
    finally:
        broker.close()
        Path(f"/dev/shm/wire_{PROCESS}_qmanager").unlink(missing_ok=True)


def lines(recorded: dict[str, dict[str, list[Any]]]) -> str:
    """JSON with one line for each thing that is said."""
    settings = []
    for setting, roles in recorded.items():
        parts = []
        for role, kinds in roles.items():
            each = ",\n  ".join(json.dumps(kind, sort_keys=True) for kind in kinds)
            parts.append(f" {json.dumps(role)}: [\n  {each}\n ]")
        settings.append(f"{json.dumps(setting)}: {{\n" + ",\n".join(parts) + "\n}")
    return "{\n" + ",\n".join(settings) + "\n}\n"


def differences(expected: Any, found: Any) -> str:
    texts = [json.dumps(each, indent=1, sort_keys=True).splitlines() for each in (expected, found)]
    return "\n".join(difflib.unified_diff(*texts, "expected", "found", lineterm="", n=6))


def test_the_golden_file_is_what_oslo_messaging_says(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())

    found = said(tmp_path)

    assert found == golden, differences(golden, found)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    variables = {"RPC_WIRE_IS_OURS": "1", "OSLOXIDE_NATIVE_RPC": "1"}
    return said(tmp_path_factory.mktemp("wire"), **variables)


def alike(kinds: list[dict[str, Any]], *left_out: str) -> list[dict[str, Any]]:
    """*kinds* without the methods *left_out*, and without what the native client may do otherwise.

    It asks for what no queue takes to be sent back (docs/rpc.md: sent after a reconnection), and by
    a message id it knows what that was.
    """
    found = []
    for each in kinds:
        if each["method"] in left_out:
            continue
        kind = dict(each)
        if kind["method"] == "basic.publish":
            del kind["mandatory"]
            kind["properties"] = dict(kind["properties"])
            kind["properties"].pop("message_id", None)
        if kind not in found:
            found.append(kind)
    return sorted(found, key=lambda kind: json.dumps(kind, sort_keys=True))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_native_client_declares_and_sends_what_kombu_does(
    setting: str, ours: dict[str, dict[str, Any]]
) -> None:
    golden = json.loads(GOLDEN.read_text())[setting]["client"]
    found = ours[setting]["client"]

    # Replies are taken as they come: each has its caller.
    expected = alike(golden, "basic.qos")

    assert alike(found) == expected, differences(expected, alike(found))
    published = [kind for kind in found if kind["method"] == "basic.publish"]
    fanout = [kind for kind in published if kind["exchange"].endswith("_fanout")]
    assert [kind["mandatory"] for kind in fanout] == [False]
    assert all("message_id" in kind["properties"] for kind in published), "not kombu's"


@pytest.mark.parametrize("role", ["server", "listener"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_servers_and_listeners_declare_what_they_do_on_stock(
    setting: str, role: str, ours: dict[str, dict[str, Any]]
) -> None:
    golden = json.loads(GOLDEN.read_text())[setting][role]

    # How many it fetches, and how its reply is known when it comes back, are its own (docs/rpc.md).
    found = alike(ours[setting][role], "basic.qos", "confirm.select")

    expected = alike(golden, "basic.qos", "confirm.select")
    assert found == expected, differences(expected, found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        recorded = said(Path(scratch))
    GOLDEN.write_text(lines(recorded))
