"""What ``osloxide status`` and ``metrics`` say of a worker's native connections with its broker."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.amqp_broker import Broker
from support.serving import OSLOXIDE, fetch, starter

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

SITE = """
import os
import oslo_messaging
from oslo_config import cfg

cfg.CONF([], project="seen", default_config_files=[])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=os.environ["WIRE_URL"])
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="t"))

def application(environ, start_response):
    client.prepare(fanout=environ["PATH_INFO"] == "/fanout").cast({}, "echo", what=1)
    start_response("200 OK", [])
    return [b"sent"]
"""


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.close()


def test_messages_and_connections_are_counted_and_a_lost_one_is_told(
    tmp_path: Path, broker: Broker
) -> None:
    (tmp_path / "seen_site.py").write_text(SITE)
    variables = {
        "WIRE_URL": f"rabbit://u:p@127.0.0.1:{broker.port}/seen.client",
        "OSLOXIDE_NATIVE_RPC": "1",
    }
    with starter(tmp_path) as start:
        site = start(
            *("serve", "seen_site", "--bind", "127.0.0.1:0", "--no-access-log"), **variables
        )

        def seen() -> Any:
            return site.workers()[0]["broker"]

        port = site.port()
        site.running(1)
        assert seen() == dict.fromkeys(
            ("connections", "channels", "queues", "unconfirmed", "sent", "resent", "reconnects"), 0
        )
        for path in ("/", "/", "/fanout"):
            assert fetch(port, path) == ["sent"]
        assert seen() == {
            "connections": 1,
            "channels": 2,
            "queues": 0,
            "unconfirmed": 0,
            "sent": 3,
            "resent": 0,
            "reconnects": 0,
        }
        broker.drop()
        wait_until(lambda: seen()["connections"] == 0, "the connection is gone")
        assert fetch(port) == ["sent"]
        after = seen()
        assert (after["connections"], after["channels"]) == (1, 1)
        assert (after["sent"], after["reconnects"]) == (4, 1)

        shown = run_command([*OSLOXIDE, "status", str(site.pid)], environ=environment()).stdout
        metrics = [*OSLOXIDE, "metrics", "--once", str(site.pid)]
        scraped = run_command(metrics, environ=environment()).stdout
        assert site.stop() == 0, site.log

    assert (
        "slot 0: 1 connection to brokers, 1 channel, 0 queues, 4 messages sent, 0 unconfirmed, "
        "0 sent again, 1 reconnect"
    ) in shown
    figures = {line.split("{")[0]: line.split()[-1] for line in scraped.splitlines()}
    assert figures["osloxide_worker_broker_connections"] == "1.0"
    assert figures["osloxide_worker_broker_sent_total"] == "4.0"
    assert figures["osloxide_worker_broker_reconnects_total"] == "1.0"
