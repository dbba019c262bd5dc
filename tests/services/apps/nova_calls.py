"""Calls nova's conductor or scheduler over RPC until its standard input closes.

Usage: nova_calls.py CONFIG TOPIC THREADS TIMEOUT RUN REPORT. Uses nova's own client classes, on
plain oslo.messaging. Each call has a key of its own, ``RUN-NUMBER``, and leaves a trace for each
time that it is run: in the conductor a row of table ``migrations`` whose ``source_node`` is the key
(what nova-compute asks for when it begins to move a server), in the scheduler a line of its log
(nova-compute's news of its servers; nova casts them, here they are calls, so that there is an
answer). Beside them one thread sends the pings that nova's services answer, which leave no trace:
they are counted by what came of them. Prints now and then how many calls were answered, and how
many are under way.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# nova decides at import how it runs its threads.
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"
from nova import monkey_patch

monkey_patch.patch(backend="threading")
import nova.conf  # noqa: E402
import nova.db.main.api  # noqa: E402
from nova import baserpc, config, context, objects, rpc  # noqa: E402
from nova.conductor import rpcapi as conductor_rpcapi  # noqa: E402
from nova.objects import base as objects_base  # noqa: E402
from nova.scheduler import rpcapi as scheduler_rpcapi  # noqa: E402

# Any server will do. The scheduler must not find what it knows of the (unknown) host confirmed:
# only what is news to it is logged at level INFO.
A_SERVER = "00000000-0000-4000-8000-000000000001"

Call = Callable[[context.RequestContext, str, str], bool]
"""Make one call with a run and a key; returns whether the answer is the right one."""


def conductor_call() -> Call:
    """As in nova-compute: objects do what they are asked to in the conductor, never here."""
    nova.db.main.api.DISABLE_DB_ACCESS = True
    objects_base.NovaObject.indirection_api = conductor_rpcapi.ConductorAPI()

    def call(admin: context.RequestContext, run: str, key: str) -> bool:
        # Without a uuid, which the conductor then makes: nothing hinders a second row.
        migration = objects.Migration(
            admin, source_compute=run, source_node=key, migration_type="migration", status="done"
        )
        migration.create()
        return bool(migration.id and migration.source_node == key)

    return call


def scheduler_call() -> Call:
    client = scheduler_rpcapi.SchedulerAPI().client.prepare(version="4.2")

    def call(admin: context.RequestContext, _run: str, key: str) -> bool:
        answer = client.call(admin, "sync_instance_info", host_name=key, instance_uuids=[A_SERVER])
        return answer is None

    return call


def main() -> None:
    configuration, topic, threads, timeout, run, report = sys.argv[1:]
    config.parse_args(["nova_calls", "--config-file", configuration])
    objects.register_all()
    call = {"conductor": conductor_call, "scheduler": scheduler_call}[topic]()
    # Only now is the option known: the client has registered it.
    nova.conf.CONF.set_override("rpc_response_timeout", int(timeout))
    numbers = itertools.count()
    ending = threading.Event()
    sent: dict[str, float] = {}
    took: list[float] = []
    failed: dict[str, str] = {}

    def go_on() -> None:
        admin = context.get_admin_context()
        while not ending.is_set():
            key = f"{run}-{next(numbers)}"
            sent[key] = begin = time.monotonic()
            try:
                right = call(admin, run, key)
            except Exception as error:  # noqa: BLE001 - every failure is counted
                failed[key] = type(error).__name__
                continue
            if right:
                took.append(time.monotonic() - begin)
            else:
                failed[key] = "wrong answer"

    pings: Counter[str] = Counter()
    base = baserpc.BaseAPI(topic)

    def ping() -> None:
        admin = context.get_admin_context()
        while not ending.wait(0.05):
            try:
                answer = base.ping(admin, arg=run)
            except Exception as error:  # noqa: BLE001 - every failure is counted
                pings[type(error).__name__] += 1
            else:
                pings["answered" if answer["arg"] == run else "wrong answer"] += 1

    def await_end() -> None:
        sys.stdin.read()
        ending.set()

    callers = [threading.Thread(target=go_on) for _ in range(int(threads))]
    callers.append(threading.Thread(target=ping))
    for caller in callers:
        caller.start()
    threading.Thread(target=await_end, daemon=True).start()
    while not ending.wait(0.1):
        answered = len(took)
        print(answered, len(sent) - len(failed) - answered, flush=True)
    for caller in callers:
        caller.join()
    rpc.cleanup()
    took.sort()
    summary = {
        "sent": sent,
        "failed": failed,
        "pings": pings,
        "median": took[len(took) // 2] if took else 0,
        "slowest": took[-1] if took else 0,
    }
    Path(report).write_text(json.dumps(summary))


main()
