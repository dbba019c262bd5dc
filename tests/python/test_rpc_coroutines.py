"""Endpoints and jobs written as ``async def``: one loop, no thread each, nothing forgotten."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import until

from osloxide.messaging import executor as rpc
from osloxide.threads import event_loop

PATIENCE = 45.0
number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


@pytest.fixture
def executor() -> Iterator[rpc.Executor]:
    executor = rpc.Executor(max_workers=64)
    yield executor
    executor.shutdown(wait=True)


async def where() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_a_coroutine_runs_on_the_loop_and_its_future_gets_the_result(
    executor: rpc.Executor,
) -> None:
    assert executor.submit(where).result(PATIENCE) == "osloxide-asyncio"


def test_a_coroutines_exception_is_the_futures_with_its_traceback(executor: rpc.Executor) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("on purpose")

    error = executor.submit(fail).exception(PATIENCE)

    assert isinstance(error, KeyError)
    names = []
    trace = error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert names[-1] == "fail"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_coroutine_that_wants_to_exit_ends_neither_the_loop_nor_its_neighbours(
    executor: rpc.Executor, kind: type[BaseException]
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def neighbour() -> str:
        begun.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        return "done"

    async def leave() -> None:
        await asyncio.sleep(0)
        raise kind

    async def leave_in_a_task() -> str:
        task = asyncio.create_task(leave())
        await asyncio.wait([task])
        return type(task.exception()).__name__

    waiting = executor.submit(neighbour)
    assert begun.wait(PATIENCE)
    # More than there are threads: each of them would be lost to a loop that has ended.
    errors = [executor.submit(leave).exception(PATIENCE) for _ in range(70)]
    go_on.set()

    assert {type(error) for error in errors} == {kind}
    assert executor.submit(leave_in_a_task).result(PATIENCE) == kind.__name__
    assert waiting.result(PATIENCE) == "done"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_that_exits_ends_as_a_plain_one_does(workers: int) -> None:
    code = SERVICE.replace("WORKERS", str(workers))
    code = code.replace('say("started")', 'say("started"); sys.exit(7)')
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            if workers == 1:
                assert process.wait(PATIENCE) == 7
            else:
                # A worker that ends so is replaced, again and again.
                said: list[str] = []
                while said.count("started") <= workers:
                    said.append(process.stdout.readline().strip())
                    assert said[-1], "the launcher has ended"
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def test_waiting_coroutines_hold_no_threads(executor: rpc.Executor) -> None:
    gate = threading.Event()

    async def wait() -> int:
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return 1

    futures = [executor.submit(wait) for _ in range(60)]
    assert until(lambda: executor.stats()["held"] == 60)

    stats = executor.stats()
    assert stats["busy"] == 0
    assert stats["threads"] < 20
    assert executor.submit(lambda: "plain").result(PATIENCE) == "plain"
    gate.set()
    assert sum(future.result(PATIENCE) for future in futures) == 60


def test_coroutines_and_plain_jobs_stay_within_the_bound_together() -> None:
    gate, lock = threading.Event(), threading.Lock()
    now, most = 0, 0

    def count(step: int) -> None:
        nonlocal now, most
        with lock:
            now += step
            most = max(most, now)

    async def soft() -> None:
        count(1)
        while not gate.is_set():
            await asyncio.sleep(0.005)
        count(-1)

    def hard() -> None:
        count(1)
        gate.wait()
        count(-1)

    with rpc.Executor(max_workers=6) as executor:
        futures = [executor.submit(job) for _ in range(10) for job in (soft, hard)]
        assert until(lambda: now == 6)
        gate.set()
        for future in futures:
            future.result(PATIENCE)

    assert most == 6


def test_a_coroutine_sees_the_context_variables_of_its_job(executor: rpc.Executor) -> None:
    async def read() -> int:
        await asyncio.sleep(0)
        return number.get()

    def job(value: int) -> Any:
        number.set(value)
        return read()

    futures = [executor.submit(job, value) for value in range(20)]

    assert [future.result(PATIENCE) for future in futures] == list(range(20))


def test_shutdown_waits_for_coroutines() -> None:
    executor = rpc.Executor(max_workers=4)
    done = []

    async def work() -> None:
        await asyncio.sleep(0.2)
        done.append(1)

    for _ in range(4):
        executor.submit(work)
    assert until(lambda: executor.stats()["held"] == 4)

    assert not executor.drain(0)
    executor.shutdown(wait=True)

    assert len(done) == 4


def test_what_is_cancelled_may_clean_up_and_its_future_says_so() -> None:
    loop = event_loop.EventLoop()
    cleaned, outcomes = threading.Event(), []
    begun = threading.Event()

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.set()

    loop.start(forever(), outcomes.append)
    assert begun.wait(PATIENCE)

    loop.cancel_at(time.monotonic())

    assert cleaned.wait(PATIENCE)
    assert until(lambda: bool(outcomes))
    with pytest.raises(event_loop.CancelledAtStopError, match="forever"):
        outcomes[0]()
    assert loop.running == 0


def test_a_forked_child_gets_a_loop_of_its_own() -> None:
    executor = rpc.Executor()
    assert executor.submit(where).result(PATIENCE) == "osloxide-asyncio"
    # The loop stays. Native threads must not be there: a fork copies the locks that they hold.
    executor.shutdown()
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(PATIENCE))  # a child that hangs fails
        status = 1
        try:
            with rpc.Executor() as own:
                status = 0 if own.submit(where).result(PATIENCE) == "osloxide-asyncio" else 2
        finally:
            os._exit(status)

    _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == 0


def test_a_loop_is_not_made_for_those_who_need_none() -> None:
    code = (
        "import sys, threading; from osloxide.messaging import executor as rpc\n"
        "with rpc.Executor() as executor: executor.submit(print, 'x').result()\n"
        "assert 'asyncio' not in sys.modules\n"
        "assert not [t for t in threading.enumerate() if 'asyncio' in t.name]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_complete_returns_plain_values_and_what_coroutines_come_to() -> None:
    assert event_loop.complete(5) == 5
    assert event_loop.complete(where()) == "osloxide-asyncio"


SERVER = """
import asyncio, json, sys, threading, warnings
warnings.simplefilter("ignore")
from osloxide import _native
from osloxide.activation import import_hook
import_hook.install()
import oslo_messaging
from oslo_config import cfg

conf = cfg.CONF
conf([], project="test", default_config_files=[])
board = _native.Scoreboard("test")
board.claim(0, 0)
gate = threading.Event()

class Endpoint:
    async def where(self, context):
        await asyncio.sleep(0)
        return threading.current_thread().name

    def plain(self, context):
        return threading.current_thread().name

    @oslo_messaging.expected_exceptions(KeyError)
    async def expected(self, context):
        await asyncio.sleep(0)
        raise KeyError("expected")

    async def unexpected(self, context):
        await asyncio.sleep(0)
        raise ValueError("unexpected")

    async def exits(self, context):
        await asyncio.sleep(0)
        raise SystemExit(3)

    async def interrupted(self, context):
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    def exits_plainly(self, context):
        raise SystemExit(3)

    async def slow(self, context):
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return 1

    def blocked(self, context):
        gate.wait()
        return 100

transport = oslo_messaging.get_rpc_transport(conf, url="osloxide+memory://",
                                             allowed_remote_exmods=["builtins"])
target = oslo_messaging.Target(topic="t", server="s")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()])
server.start()
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="t"))
seen = {"where": client.call({}, "where"), "plain": client.call({}, "plain")}
for method in ("expected", "unexpected", "exits", "interrupted", "exits_plainly"):
    try:
        client.call({}, method)
    except Exception as error:
        seen[method] = type(error).__name__
slow = []
monitored = client.prepare(call_monitor_timeout=2, timeout=60)
callers = [threading.Thread(target=lambda: slow.append(monitored.call({}, "slow")))
           for _ in range(30)]
callers.append(threading.Thread(target=lambda: slow.append(monitored.call({}, "blocked"))))
for caller in callers:
    caller.start()
while server._work_executor.stats()["held"] < 30 or not server._work_executor.stats()["busy"]:
    pass
methods = {m["name"]: m for m in board.read()[0]["methods"]}
seen["running"] = methods["slow"]["running"]
seen["aged"] = methods["slow"]["oldest_since"] is not None
# Longer than a call that is monitored every 2 s lives without a heartbeat.
threading.Event().wait(3)
gate.set()
for caller in callers:
    caller.join()
seen["answered"] = sum(slow)
server.stop()
server.wait()
seen["methods"] = {m["name"]: [m["done"], m["failed"], m["queued"], m["running"]]
                   for m in board.read()[0]["methods"]}
seen["served"] = board.read()[0]["served"]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    pytest.importorskip("oslo_messaging", reason="`make setup` installs it")
    done = subprocess.run(
        [sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_endpoints_may_be_coroutines_beside_plain_ones(served: dict[str, Any]) -> None:
    assert served["where"] == "osloxide-asyncio"
    assert served["plain"].startswith("osloxide-rpc")


def test_exceptions_of_coroutine_endpoints_reach_the_caller(served: dict[str, Any]) -> None:
    assert (served["expected"], served["unexpected"]) == ("KeyError", "ValueError")


@pytest.mark.parametrize("method", ["exits", "interrupted", "exits_plainly"])
def test_an_endpoint_that_wants_to_exit_fails_its_call_and_no_other(
    served: dict[str, Any], method: str
) -> None:
    # Of no class that a client lets in: oslo.messaging gives it this one.
    assert served[method] == "RemoteError"
    assert served["answered"] > 0  # by coroutines on the same loop, later


def test_a_monitored_call_gets_heartbeats(served: dict[str, Any]) -> None:
    assert served["answered"] == 30 + 100


def test_each_method_is_counted(served: dict[str, Any]) -> None:
    assert (served["running"], served["aged"]) == (30, True)
    assert served["methods"] == {
        "where": [1, 0, 0, 0],
        "plain": [1, 0, 0, 0],
        "expected": [1, 0, 0, 0],
        "unexpected": [1, 1, 0, 0],
        "exits": [1, 1, 0, 0],
        "interrupted": [1, 1, 0, 0],
        "exits_plainly": [1, 1, 0, 0],
        "slow": [30, 0, 0, 0],
        "blocked": [1, 0, 0, 0],
    }
    assert served["served"] == 38


CONTEXTS = """
import asyncio, json, threading, warnings
warnings.simplefilter("ignore")
from osloxide.activation import import_hook
import_hook.install()
import oslo_messaging
from oslo_config import cfg
from oslo_context import context, fixture

conf = cfg.CONF
conf([], project="test", default_config_files=[])
waiting, gate = [], threading.Event()

class Serializer(oslo_messaging.NoOpSerializer):
    def deserialize_context(self, ctxt):
        return context.RequestContext.from_dict(ctxt)

class Endpoint:
    async def who(self, ctxt, renames):
        if renames:
            context.RequestContext(request_id=ctxt.request_id + "-renamed")
        waiting.append(1)
        while not gate.is_set():
            await asyncio.sleep(0.01)
        in_thread = await asyncio.to_thread(lambda: context.get_current().request_id)
        return [context.get_current().request_id, in_thread]

transport = oslo_messaging.get_rpc_transport(conf, url="osloxide+memory://")
target = oslo_messaging.Target(topic="t", server="s")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], serializer=Serializer())
server.start()
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="t"))
answers = {}

def call(number):
    request = context.RequestContext(request_id=f"req-{number}").to_dict()
    answers[number] = client.call(request, "who", renames=number % 2 == 1)

callers = [threading.Thread(target=call, args=(number,)) for number in range(10)]
for caller in callers:
    caller.start()
while len(waiting) < 10:
    pass
gate.set()
for caller in callers:
    caller.join()
server.stop()
server.wait()
mine = context.get_current()
context.RequestContext(request_id="main")
kept = context.get_current().request_id
with fixture.ClearRequestContext():
    cleared = context.get_current()
print(json.dumps({"answers": answers, "mine": mine, "kept": kept, "cleared": cleared}))
"""


def test_coroutines_have_request_contexts_of_their_own() -> None:
    pytest.importorskip("oslo_messaging", reason="`make setup` installs it")
    done = subprocess.run(
        [sys.executable, "-c", CONTEXTS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])

    expected = {n: f"req-{n}-renamed" if n % 2 else f"req-{n}" for n in range(10)}
    assert seen["answers"] == {str(n): [name, name] for n, name in expected.items()}
    assert (seen["mine"], seen["kept"], seen["cleared"]) == (None, "main", None)


SERVICE = """
import asyncio, os, sys
from osloxide.activation import import_hook
import_hook.install()
from oslo_config import cfg
from oslo_service import service

def say(word):
    os.write(1, word.encode() + b"\\n")

class Service(service.Service):
    async def start(self):
        await asyncio.sleep(0)
        self.left = asyncio.Event()
        say("started")

    async def stop(self, graceful=False):
        if "hang" not in sys.argv:
            self.left.set()
        say("stopped")

    async def wait(self):
        try:
            await self.left.wait()
        finally:
            say("waited")

    async def reset(self):
        say("reset")

conf = cfg.ConfigOpts()
launcher = service.launch(conf, Service(), workers=WORKERS, restart_method="mutate")
conf([], project="test", default_config_files=[])
conf.set_override("graceful_shutdown_timeout", 2)
sys.exit(launcher.wait())
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_may_be_written_in_coroutines(workers: int) -> None:
    code = SERVICE.replace("WORKERS", str(workers))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert [process.stdout.readline().strip() for _ in range(workers)] == ["started"] * workers

        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline().strip() == "reset"
        process.send_signal(signal.SIGTERM)

        rest = process.stdout.read().split()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert rest.count("stopped") == rest.count("waited") == workers


def test_a_coroutine_that_does_not_end_is_cancelled_before_the_deadline() -> None:
    code = SERVICE.replace("WORKERS", "1")
    process = subprocess.Popen(
        [sys.executable, "-c", code, "hang"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "started"
        process.send_signal(signal.SIGTERM)

        rest = process.stdout.read().split()
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert rest == ["stopped", "waited"], "its clean-up ran"


def test_cancelled_futures_and_futures_of_coroutines_are_both_final() -> None:
    executor = rpc.Executor(max_workers=1)
    gate = threading.Event()

    async def wait() -> int:
        while not gate.is_set():
            await asyncio.sleep(0.005)
        return 7

    running = executor.submit(wait)
    waiting = executor.submit(wait)
    assert until(lambda: executor.stats()["held"] == 1)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.set()

    assert running.result(PATIENCE) == 7
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result(PATIENCE)
    executor.shutdown(wait=True)
