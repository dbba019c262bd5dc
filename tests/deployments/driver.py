"""Inside a sandbox: starts a service as its tool does and prints, as JSON, what it does.

Starts, answers, reloads, loses a worker, stops. Decides nothing: test_files.py compares.
"""

from __future__ import annotations

import http.client
import json
import os
import pwd
import re
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starting import Service

LOG = "/sandbox/service.log"
SECONDS = 90.0


def until(what: str, condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + SECONDS
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}\n{Path(LOG).read_text()}\n{logs()}")
        time.sleep(0.05)
    return value


class Client:
    """Requests to the address of a case, over HTTP or the uwsgi protocol."""

    def __init__(self, address: str) -> None:
        self._address = urlsplit(address)

    def get(self, path: str = "/", body: bytes = b"", **headers: str) -> tuple[int, str, bytes]:
        """Status, Content-Type and body."""
        if self._address.scheme == "uwsgi":
            return self._speak_uwsgi(path, body, headers)
        host, port = self._address.hostname, self._address.port
        connection: http.client.HTTPConnection
        if self._address.scheme == "https":
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(host, port, timeout=30, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=30)
        try:
            connection.request("POST" if body else "GET", path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
        finally:
            connection.close()

    def _speak_uwsgi(
        self, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, str, bytes]:
        path, _, query = path.partition("?")
        variables = {
            "REQUEST_METHOD": "POST" if body else "GET", "REQUEST_URI": path,
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query, "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost",
            "CONTENT_LENGTH": str(len(body)) if body else "", "CONTENT_TYPE": "",
            "REMOTE_ADDR": "192.0.2.1", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
            **{"HTTP_" + name.upper(): value for name, value in headers.items()},
        }  # fmt: skip
        packet = b"".join(
            struct.pack("<H", len(text)) + text
            for pair in variables.items()
            for text in (pair[0].encode(), pair[1].encode())
        )
        where: Any = self._address.path
        family = socket.AF_UNIX
        if self._address.hostname:
            where, family = (self._address.hostname, self._address.port), socket.AF_INET
        with socket.socket(family) as peer:
            peer.settimeout(30)
            peer.connect(where)
            peer.sendall(struct.pack("<BHB", 0, len(packet), 0) + packet + body)
            answer = http.client.HTTPResponse(peer)
            answer.begin()
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()


def facts_of(client: Client, *arguments: Any, **headers: str) -> dict[str, Any]:
    return dict(json.loads(client.get(*arguments, **headers)[2]))


def accepts(client: Client) -> bool:
    try:
        return client.get()[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def main() -> None:
    case = json.loads(sys.argv[1])
    client = Client(case["answers"])
    result: dict[str, Any] = {}
    service = Service(case, LOG)
    service.wait_started(until)
    until("it answers", lambda: service.has_ended or accepts(client))
    if service.has_ended:
        print(json.dumps({"failed": Path(LOG).read_text()}))
        return
    result["supervisor"] = 1 if service.is_process_1 else service.pid
    result["verified"] = service.verify()
    result["first"] = facts_of(client, "/a%20b?c=d", b"x" * 100_000)
    result["user"] = pwd.getpwuid(result["first"]["uid"]).pw_name
    result["probe"] = client.get("/absent", **{"user-agent": "kube-probe/1.34"})[0]
    result["style"] = client.get("/static/style.css")[1]
    result["traversal"] = client.get("/static/../../../../etc/passwd")[1]
    result["stats"] = stats() if case.get("stats") else None

    until("all workers", lambda: len(workers(service.pid)) == case["workers"])
    before = workers(service.pid)
    service.reload()
    until(
        "every worker is replaced",
        lambda: not before & workers(service.pid) and len(workers(service.pid)) == len(before),
    )
    result["after_hup"] = facts_of(client)["path"]
    victim = outside(facts_of(client)["pid"], service.pid)
    os.kill(victim, signal.SIGKILL)
    until("another worker", lambda: is_replaced(victim, service.pid, len(before)))
    result["after_kill"] = facts_of(client)["path"]
    until("every worker serves", lambda: accepts(client))
    service.stop()
    result["status"] = service.process.wait(SECONDS)
    result["heard"], result["ready"] = service.heard, "READY=1" in service.heard
    result["left"] = len(list(Path("/sandbox/left").iterdir()))
    result["log"] = Path(LOG).read_text()
    result["files"] = logs()
    print(json.dumps(result))


def logs() -> dict[str, list[str]]:
    """The log files that the case's file names: text, mode, owner."""
    text = Path(json.loads(sys.argv[1])["path"]).read_text()
    named = [Path(name) for name in re.findall(r"^logto2? = (\S+)$", text, re.MULTILINE)]
    return {
        str(path): [path.read_text(), oct(path.stat().st_mode & 0o777), path.owner()]
        for path in named
        if path.exists()
    }


def workers(parent: int) -> set[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return {int(word) for word in text.split()}


def outside(pid: int, parent: int) -> int:
    """The pid of a worker that knows itself by another, in a namespace of its own."""
    for worker in workers(parent):
        status = Path(f"/proc/{worker}/status").read_text()
        found = re.search(r"^NSpid:.*?(\d+)$", status, re.MULTILINE)
        if found is not None and int(found[1]) == pid:
            return worker
    raise AssertionError(f"no worker of {parent} is {pid}")


def is_replaced(victim: int, parent: int, count: int) -> bool:
    now = workers(parent)
    return victim not in now and len(now) == count


def stats() -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", 1717, timeout=30)
    connection.request("GET", "/")
    return json.loads(connection.getresponse().read())


if __name__ == "__main__":
    main()
