"""nova-api of nova 31, unmodified: it brings an eventlet.wsgi server of its own.

Its database is real; what it would ask other services for is refused at once.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from typing import Any

import procfs
import pytest
from waiting import wait_until

from services.cinder import Environment
from services.client import get
from services.conftest import Start
from services.infra import Broker, Database, retried
from services.nova import LOCK_31, NovaApi
from services.processes import RunningService, free_port, is_refused
from services.subject import IS_STOCK

pytestmark = pytest.mark.timeout(300)

HEADERS = {"X-Auth-Token": "admin:p1", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def nova(broker: Broker, database: Database, tmp_path_factory: pytest.TempPathFactory) -> NovaApi:
    environment = Environment("nova31", LOCK_31, "nova-api")
    nova = NovaApi(environment, broker, database, tmp_path_factory.mktemp("nova31"))
    nova.create_schema()
    return nova


@pytest.fixture(scope="module")
def api(nova: NovaApi, shared_start: Start) -> RunningService:
    return retried(lambda: nova.start_api(shared_start))


class Client:
    """One keep-alive connection to the compute API."""

    def __init__(self, nova: NovaApi) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", nova.port, timeout=60)

    def call(self, expected: int, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, HEADERS)
        response = self._connection.getresponse()
        answer = response.read()
        assert response.status == expected, (method, path, response.status, answer[:300])
        return json.loads(answer) if answer else None

    def close(self) -> None:
        self._connection.close()


def whole_job(nova: NovaApi) -> None:
    """Versions, flavors from their making to their end, services, servers of all cells."""
    client = Client(nova)
    try:
        client.call(200, "GET", "/")
        client.call(200, "GET", "/v2.1/")
        client.call(200, "GET", "/v2.1/flavors/detail")
        client.call(400, "POST", "/v2.1/flavors", {"flavor": {}})
        flavor = {"name": os.urandom(6).hex(), "ram": 512, "vcpus": 1, "disk": 1}
        made = client.call(200, "POST", "/v2.1/flavors", {"flavor": flavor})["flavor"]["id"]
        client.call(200, "GET", f"/v2.1/flavors/{made}")
        client.call(202, "DELETE", f"/v2.1/flavors/{made}")
        client.call(404, "GET", f"/v2.1/flavors/{made}")
        services = client.call(200, "GET", "/v2.1/os-services")["services"]
        # What serves the API is registered, but is no service that users are shown.
        assert isinstance(services, list)
        # Both cells are asked, side by side.
        assert client.call(200, "GET", "/v2.1/servers/detail?all_tenants=1") == {"servers": []}
    finally:
        client.close()


def test_the_whole_job_is_done(nova: NovaApi, api: RunningService) -> None:
    whole_job(nova)

    assert get(nova.metadata_port)[0] == 200
    assert "Traceback" not in api.text()


def test_the_access_log_has_the_format_of_novas_own_option(
    nova: NovaApi, api: RunningService
) -> None:
    since = api.mark()
    client = Client(nova)
    client.call(200, "GET", "/v2.1/?access-log")
    client.close()

    (line,) = api.wait_log(r"GET /v2\.1/\?access-log", since=since)
    assert "nova.osapi_compute.wsgi.server" in line
    assert '127.0.0.1 "GET /v2.1/?access-log HTTP/1.1" 200' in line


@pytest.mark.skipif(IS_STOCK, reason="stock nova-api is monkey-patched, as released")
def test_requests_run_on_native_threads(nova: NovaApi, api: RunningService) -> None:
    clients = [threading.Thread(target=whole_job, args=(nova,)) for _ in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(120)
        assert not client.is_alive()

    threads = [procfs.threads(pid) for pid in api.workers()]
    assert max(threads) > 3, threads
    assert "Traceback" not in api.text()


def test_a_mutate_keeps_the_workers_and_the_connections(nova: NovaApi, api: RunningService) -> None:
    before = api.workers()
    client = Client(nova)
    client.call(200, "GET", "/v2.1/")
    since = api.mark()
    nova.write(debug=True)

    api.signal(signal.SIGHUP)
    api.wait_log(r"Option DEFAULT\.debug changed", since=since, times=nova.workers + 1)

    client.call(200, "GET", "/v2.1/flavors/detail")
    client.close()
    assert api.workers() == before


def test_a_stop_answers_what_is_in_flight_and_leaves_nothing(nova: NovaApi, start: Start) -> None:
    def begin() -> RunningService:
        nova.port, nova.metadata_port = free_port(), free_port()
        nova.write()
        return nova.start_api(start)

    service = retried(begin)
    body = json.dumps({"flavor": {"name": os.urandom(6).hex(), "ram": 1, "vcpus": 1, "disk": 1}})
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with socket.create_connection(("127.0.0.1", nova.port), timeout=60) as client:
        client.sendall(
            f"POST /v2.1/flavors HTTP/1.1\r\nHost: a\r\n{head}Expect: 100-continue\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
        )
        reader = client.makefile("rb")
        # Sent when nova reads: the request is in flight, and waits for its body.
        assert reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert reader.readline() == b"\r\n"
        service.signal(signal.SIGTERM)
        wait_until(lambda: is_refused(nova.port), "the port is refused", 20)
        client.sendall(body.encode())
        answer = reader.read()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert service.wait_exit(30) == 0
    service.wait_gone()
