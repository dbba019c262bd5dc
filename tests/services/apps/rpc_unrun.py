"""Requests that an RPC server has fetched and does not run: ``rpc_unrun.py URL HOW``.

HOW is ``cancelled`` (by the end of the server's executor), ``acknowledged`` (the same, after they
had waited for so long that they were acknowledged) or ``refused`` (by an executor that had ended).
Prints one JSON object: which requests have begun to run, and the warnings of the server. With
``interrupted`` and ``overdue`` the process is cut off after they were acknowledged, by SIGINT and
at the deadline of a stop, and prints warnings alone, to its standard error.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import sys

from osloxide.activation import import_hook

import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_service import service
from served import Served

from osloxide.messaging.rabbit import listener as kombu_listener
from osloxide.messaging.rabbit import native_listener

SENT = range(1, 5)
PATIENCE = 60.0
SOON = 0.2
"""Seconds after which a request counts as one that has waited for long."""

begun: list[int] = []
may_end = threading.Event()
warnings: list[str] = []


class Endpoint:
    def work(self, ctxt: dict[str, Any], number: int) -> None:
        begun.append(number)
        may_end.wait(PATIENCE)


class Collector(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warnings.append(record.getMessage())


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, (what, warnings)
        time.sleep(0.01)


def warned(text: str) -> Callable[[], bool]:
    return lambda: any(text in line for line in list(warnings))


def patience_of(server: Any) -> Any:
    """How long requests of *server* may wait."""
    listener = server.listener._poll_style_listener
    return getattr(listener, "_patience", None) or listener._waiting._patience


def main() -> None:
    url, how = sys.argv[1:]
    is_cut_off = how in ("interrupted", "overdue")
    acknowledges_early = is_cut_off or how == "acknowledged"
    for module in (kombu_listener, native_listener):
        module.LONGEST_SLEEP = SOON / 2
    logging.getLogger().addHandler(Collector(logging.WARNING))
    conf = cfg.CONF
    conf([], project="rpc_unrun", default_config_files=[])
    transport = oslo_messaging.get_rpc_transport(conf, url=url)
    conf.register_opts(oslo_messaging.server._pool_opts)
    conf.set_override("executor_thread_pool_size", 1)
    conf.set_override("rabbit_qos_prefetch_count", len(SENT), "oslo_messaging_rabbit")
    target = oslo_messaging.Target(topic="unrun", server="host")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="unrun"))

    def cast(numbers: range) -> None:
        for number in numbers:
            client.cast({}, "work", number=number)

    def fetch() -> None:
        cast(range(1))
        until(lambda: begun == [0], "the thread is busy")
        if acknowledges_early:
            patience_of(server).longest = SOON
        cast(SENT)
        until(lambda: server._work_executor.stats()["queued"] == len(SENT), "all are fetched")
        if not acknowledges_early:
            return
        early = "acknowledged before it runs"
        until(lambda: sum(early in line for line in list(warnings)) == len(SENT), early)

    def cut_off() -> None:
        fetch()
        os.kill(os.getpid(), signal.SIGINT if how == "interrupted" else signal.SIGTERM)

    if is_cut_off:
        logging.getLogger().addHandler(logging.StreamHandler())
        begins = threading.Thread(target=cut_off).start
        launcher = service.launch(conf, Served(lambda: server, begins))
        conf.set_override("graceful_shutdown_timeout", 1)  # known since there is a launcher
        launcher.wait()
        return
    server.start()
    executor, patience = server._work_executor, patience_of(server)
    if how == "refused":
        executor.shutdown(wait=False)
        patience.longest = SOON
        cast(SENT)
    else:
        fetch()
        executor.shutdown(wait=False, cancel_futures=True)
        patience.longest = SOON
    if how == "acknowledged":
        until(warned("requests are lost"), "what is lost is named")
    else:
        # The second is what went wrong once: they were forgotten, and acknowledged nevertheless.
        came = warned("a request waits"), warned("acknowledged before it runs")
        until(lambda: any(has_come() for has_come in came), "they come again")
    may_end.set()
    server.stop()
    server.wait()
    transport.cleanup()
    print(json.dumps({"begun": begun, "warnings": warnings}))


main()
