"""``osloxide metrics``: the figures of running services for Prometheus.

Owns the names and the meaning of the metrics, and the process that answers scrapes: one of its own,
so that no scrape can disturb a supervisor, which starts no thread and serves nothing itself. Each
scrape reads the scoreboards again; nothing is kept in between.

Rules: Prometheus' text format and naming conventions; osloxide's scoreboard (src/scoreboard).
"""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from osloxide.cli import address, snapshot
from osloxide.cli.arrivals import Arrivals
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from osloxide.cli.snapshot import Launcher, Method, Worker

_LEAVING = (signal.SIGINT, signal.SIGTERM)
_SCRAPES = 4
"""At once; more than one Prometheus is rare."""
_CLIENT_TIMEOUT = 30.0
"""Seconds that a client may stay silent."""
_BACKLOG = 128

_SUPERVISOR_LABELS = ("service", "supervisor")
_WORKER_LABELS = ("service", "supervisor", "group", "slot")
_METHOD_LABELS = ("service", "supervisor", "method")
_LISTENER_LABELS = ("service", "supervisor", "address")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide metrics``."""
    snapshot.add_argument(
        parser,
        "every launcher that may be read; without a pid they are looked for at each scrape, with "
        "one the command ends when that launcher does",
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--listen", type=address.parse, metavar="HOST:PORT", help="answer GET /metrics there"
    )
    way.add_argument("--unix", metavar="PATH", help="answer GET /metrics on a unix socket")
    way.add_argument("--once", action="store_true", help="print the metrics and end")


def main(options: argparse.Namespace) -> int:
    """Print the metrics, or answer scrapes until a signal or the end of the one supervisor."""
    try:
        import prometheus_client
    except ImportError as error:
        raise CommandError(
            f"metrics need the package prometheus_client ({error}); install it with "
            "pip install 'osloxide[metrics]'"
        ) from error
    wanted: str | None = options.launcher
    only = snapshot.View(int(wanted)) if wanted is not None and wanted.isdigit() else None

    def source() -> list[snapshot.View]:
        # A service that is down for a moment is a scrape without it, not a failed one.
        if only is not None:
            return [only]
        return [view for view in snapshot.views() if wanted in (None, view.name)]

    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(source))
    if options.once:
        if only is None:
            snapshot.chosen(wanted)  # says which one is missing
        sys.stdout.write(prometheus_client.generate_latest(registry).decode())
        return 0
    with Arrivals(_LEAVING) as arrivals:
        if only is not None and not arrivals.add_process(only.pid):
            raise CommandError(f"supervisor {only.pid} has ended; name one that runs")
        _serve(prometheus_client.make_wsgi_app(registry), options, arrivals)
    return 0


class Collector:
    """prometheus_client's side of a scrape: reads every launcher and names its figures."""

    def __init__(self, source: Callable[[], Iterable[snapshot.View]]) -> None:
        self._source = source

    def describe(self) -> list[Any]:
        """Nothing: registering must not look at the launchers."""
        return []

    def collect(self) -> Iterator[Any]:
        """All metrics, of one look at each launcher."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        launchers = [view.read() for view in self._source()]
        found = GaugeMetricFamily("osloxide_supervisors", "Launchers that were found.")
        found.add_metric([], len(launchers))
        yield found
        for name, text, figure in _OF_SUPERVISORS:
            gauge = GaugeMetricFamily(name, text, labels=_SUPERVISOR_LABELS)
            for launcher in launchers:
                gauge.add_metric(_identity(launcher), figure(launcher))
            yield gauge
        queues = GaugeMetricFamily(
            "osloxide_listen_queue",
            "Connections that wait in the kernel to be accepted.",
            labels=_LISTENER_LABELS,
        )
        for launcher in launchers:
            for queue in launcher.listening:
                queues.add_metric([*_identity(launcher), queue.address], queue.waiting)
        yield queues
        slots = [
            ([*_identity(launcher), workers[0].service, str(slot)], workers)
            for launcher in launchers
            for slot, workers in _slots(launcher).items()
        ]
        for is_counter, name, text, of in _OF_SLOTS:
            family = (CounterMetricFamily if is_counter else GaugeMetricFamily)(
                name, text, labels=_WORKER_LABELS
            )
            for labels, workers in slots:
                family.add_metric(labels, of(workers))
            yield family
        answers = CounterMetricFamily(
            "osloxide_worker_answers",
            "Answers by class of their status.",
            labels=[*_WORKER_LABELS, "class"],
        )
        times = HistogramMetricFamily(
            "osloxide_worker_request_seconds",
            "Requests by the time from their arrival at the application to the last byte.",
            labels=_WORKER_LABELS,
        )
        for labels, workers in slots:
            figures = _youngest(workers).figures
            for kind, number in figures.answers.items():
                answers.add_metric([*labels, kind], number)
            buckets, total = [], 0
            for bound, number in figures.times.items():
                total += number
                buckets.append((bound, total))
            times.add_metric(labels, buckets, figures.seconds)
        yield answers
        yield times
        for is_counter, name, text, of_method in _OF_METHODS:
            family = (CounterMetricFamily if is_counter else GaugeMetricFamily)(
                name, text, labels=_METHOD_LABELS
            )
            for launcher in launchers:
                for method in launcher.methods():
                    labels = [*_identity(launcher), method.name]
                    family.add_metric(labels, of_method(method))
            yield family


def _identity(launcher: Launcher) -> list[str]:
    # The pid keeps services of one name apart, and the old from the new one across a restart: two
    # samples with the same labels would make Prometheus refuse the whole scrape.
    return [launcher.name, str(launcher.pid)]


def _slots(launcher: Launcher) -> dict[int, list[Worker]]:
    """Workers of each slot: during a reload the one that drains and the one that serves."""
    slots: dict[int, list[Worker]] = {}
    for worker in launcher.workers:
        slots.setdefault(worker.slot, []).append(worker)
    return slots


def _youngest(workers: list[Worker]) -> Worker:
    """All workers of a slot show the same counters."""
    return workers[-1]


_OF_SUPERVISORS: tuple[tuple[str, str, Callable[[Launcher], float]], ...] = (
    ("osloxide_supervisor_up", "1 while the supervisor runs.", lambda it: it.is_alive),
    (
        "osloxide_supervisor_start_time_seconds",
        "When the launcher was made, seconds since the epoch.",
        # Two clocks: to the hundredth, so that the same instant is the same figure every time.
        lambda it: round(time.time() - (time.monotonic() - it.read_at) - it.uptime, 2),
    ),
    (
        "osloxide_supervisor_resident_memory_bytes",
        "Resident memory of the supervisor without its workers.",
        lambda it: it.rss_bytes or 0,
    ),
)

_OF_SLOTS: tuple[tuple[bool, str, str, Callable[[list[Worker]], float]], ...] = (
    (
        False,
        "osloxide_worker_up",
        "1 while the slot has a worker that is ready to serve.",
        lambda its: any(it.state == "running" for it in its),
    ),
    (
        False,
        "osloxide_worker_processes",
        "Processes of the slot; 2 while one drains and its successor is there already.",
        lambda its: sum(it.pid is not None for it in its),
    ),
    (
        True,
        "osloxide_worker_requests",
        "Requests finished by all workers that the slot ever had.",
        lambda its: max(it.slot_served for it in its),
    ),
    (
        False,
        "osloxide_worker_in_flight",
        "Requests that are being handled.",
        lambda its: sum(it.in_flight for it in its),
    ),
    (
        False,
        "osloxide_worker_oldest_request_seconds",
        "Age of the oldest request in flight; 0 without one.",
        lambda its: max(it.oldest or 0.0 for it in its),
    ),
    (
        False,
        "osloxide_worker_connections",
        "Open client connections.",
        lambda its: sum(it.connections for it in its),
    ),
    (False, "osloxide_worker_threads", "Pool threads.", lambda its: sum(it.threads for it in its)),
    (
        True,
        "osloxide_worker_respawns",
        "How often the slot was forked again after its worker had ended by itself.",
        lambda its: max(it.respawns for it in its),
    ),
    (
        False,
        "osloxide_worker_uptime_seconds",
        "Seconds since the fork of the slot's youngest worker; 0 without one.",
        lambda its: min((it.uptime for it in its if it.uptime is not None), default=0.0),
    ),
    (
        False,
        "osloxide_worker_resident_memory_bytes",
        "Resident memory of the slot's processes.",
        lambda its: sum(it.rss_bytes or 0 for it in its),
    ),
    (
        True,
        "osloxide_worker_exceptions",
        "Requests whose application raised.",
        lambda its: _youngest(its).figures.exceptions,
    ),
    (
        True,
        "osloxide_worker_timeouts",
        "Requests that were given up because they took too long.",
        lambda its: _youngest(its).figures.timed_out,
    ),
    (
        True,
        "osloxide_worker_sent_bytes",
        "Bytes of answers that the kernel has taken, heads included.",
        lambda its: _youngest(its).figures.sent_bytes,
    ),
    (
        True,
        "osloxide_worker_interpreter_wait_seconds",
        "Time that requests waited for the interpreter before the application began.",
        lambda its: _youngest(its).figures.waited,
    ),
    (
        False,
        "osloxide_worker_cpu_seconds",
        "CPU time of the slot's processes, of those that live.",
        lambda its: sum(it.cpu_seconds or 0.0 for it in its),
    ),
    (
        False,
        "osloxide_worker_queued",
        "Requests that wait for a thread.",
        lambda its: sum(it.figures.queued for it in its),
    ),
    (
        False,
        "osloxide_worker_unsent_bytes",
        "Memory of complete answers that clients have not taken yet.",
        lambda its: sum(it.figures.unsent_bytes for it in its),
    ),
    (
        False,
        "osloxide_worker_held_uploads",
        "Uploads that get no thread yet, and whose bodies are collected.",
        lambda its: sum(it.figures.held_uploads for it in its),
    ),
    (
        False,
        "osloxide_worker_stuck_threads",
        "Threads in requests that were given up.",
        lambda its: sum(it.figures.stuck for it in its),
    ),
    (
        False,
        "osloxide_worker_broker_connections",
        "Native connections with message brokers.",
        lambda its: sum(it.broker.connections for it in its),
    ),
    (
        False,
        "osloxide_worker_broker_channels",
        "Channels that are used on them.",
        lambda its: sum(it.broker.channels for it in its),
    ),
    (
        False,
        "osloxide_worker_broker_queues",
        "Queues that are consumed from natively.",
        lambda its: sum(it.broker.queues for it in its),
    ),
    (
        False,
        "osloxide_worker_broker_unconfirmed",
        "Messages that were sent natively and that the broker has not confirmed.",
        lambda its: sum(it.broker.unconfirmed for it in its),
    ),
    (
        True,
        "osloxide_worker_broker_sent",
        "Messages that were sent natively, those sent again included.",
        lambda its: _youngest(its).broker.sent,
    ),
    (
        True,
        "osloxide_worker_broker_resent",
        "Messages that were sent again natively: no confirm, or no queue that took them.",
        lambda its: _youngest(its).broker.resent,
    ),
    (
        True,
        "osloxide_worker_broker_reconnects",
        "Native connections that took the place of one that was lost.",
        lambda its: _youngest(its).broker.reconnects,
    ),
)

# Of all workers together: a method of each slot would be a series for each pair of them.
_OF_METHODS: tuple[tuple[bool, str, str, Callable[[Method], float]], ...] = (
    (
        True,
        "osloxide_method_requests",
        "Requests of this name (an RPC method) that were finished, failed ones included.",
        lambda it: it.done,
    ),
    (
        True,
        "osloxide_method_failures",
        "Those that ended in an unexpected error.",
        lambda it: it.failed,
    ),
    (
        False,
        "osloxide_method_queued",
        "Requests that no thread has begun.",
        lambda it: it.queued,
    ),
    (False, "osloxide_method_running", "Requests in flight.", lambda it: it.running),
    (
        False,
        "osloxide_method_oldest_request_seconds",
        "Age of the oldest request in flight; 0 without one.",
        lambda it: it.oldest or 0.0,
    ),
)


def _serve(scrape: Callable[..., Any], options: argparse.Namespace, arrivals: Arrivals) -> None:
    """Answer scrapes until a signal arrives or the supervisor that is watched ends."""
    # The native server itself: osloxide.wsgi would show this process as a launcher.
    from osloxide import _native
    from osloxide.server.listener import listen_tcp, listen_unix

    where = options.unix or options.listen
    try:
        if isinstance(where, str):
            listener = listen_unix("osloxide metrics", where, None, _BACKLOG)
            at = f"unix:{where}"
        else:
            host, port = where
            listener = listen_tcp("osloxide metrics", host, port, _BACKLOG)
            host, port = listener.getsockname()[:2]
            at = f"http://{address.shown(host, port)}"
    except OSError as error:
        raise CommandError(error.strerror or str(error)) from error

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"osloxide metrics answers GET /metrics alone\n"]
        answer: Iterable[bytes] = scrape(environ, start_response)
        return answer

    with listener:
        server = _native.Server(
            application,
            listener.fileno(),
            pool_size=_SCRAPES,
            client_socket_timeout=_CLIENT_TIMEOUT,
            name="metrics",
        )
        server.start()
        print(f"osloxide: {at}/metrics", file=sys.stderr, flush=True)
        arrived = arrivals.wait()
        while not arrived.signals and not arrived.ended:
            arrived = arrivals.wait()
    for pid in arrived.ended:
        print(f"osloxide: supervisor {pid} has ended", file=sys.stderr, flush=True)
    server.stop(close=True)
    server.wait(_CLIENT_TIMEOUT)
