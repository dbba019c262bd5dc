"""The executor under oslo.messaging: what it promises beside and beyond concurrent.futures."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until

from osloxide.messaging import executor as rpc

PATIENCE = 45.0


@pytest.fixture
def executor() -> Iterator[rpc.Executor]:
    executor = rpc.Executor(8)
    yield executor
    executor.shutdown(cancel_futures=True)
    assert until(lambda: executor.num_workers == 0)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


# ---- futures -----------------------------------------------------------------------------------


def test_a_future_has_the_result_of_the_call(executor: rpc.Executor) -> None:
    future = executor.submit(lambda a, *, b: (a, b), 1, b=2)

    assert isinstance(future, concurrent.futures.Future)
    assert future.result(PATIENCE) == (1, 2)
    assert future.done()
    assert not future.cancelled()
    assert future.exception() is None


def test_a_future_has_the_exception_of_the_call_with_its_traceback(executor: rpc.Executor) -> None:
    def fail() -> None:
        raise KeyError("on purpose")

    future = executor.submit(fail)

    with pytest.raises(KeyError, match="on purpose") as raised:
        future.result(PATIENCE)
    assert raised.traceback[-1].name == "fail"


def test_an_exit_raised_by_a_job_ends_neither_thread_nor_process(executor: rpc.Executor) -> None:
    future = executor.submit(sys.exit, 3)

    assert isinstance(future.exception(PATIENCE), SystemExit)
    assert executor.submit(int, "7").result(PATIENCE) == 7


def test_every_waiter_is_woken_whenever_it_looks(executor: rpc.Executor) -> None:
    # Threads that look before, while and after the job ends: none may miss it.
    for _ in range(300):
        futures = [executor.submit(int, number) for number in range(10)]

        found = concurrent.futures.wait(futures, PATIENCE)
        assert not found.not_done
        assert [future.result(0) for future in futures] == list(range(10))


def test_map_and_as_completed_work(executor: rpc.Executor) -> None:
    futures = [executor.submit(abs, -number) for number in range(100)]

    done = {future.result() for future in concurrent.futures.as_completed(futures, PATIENCE)}

    assert done == set(range(100))
    assert list(executor.map(abs, range(-5, 0), timeout=PATIENCE)) == [5, 4, 3, 2, 1]


def test_callbacks_run_once_whether_added_before_or_after(executor: rpc.Executor) -> None:
    begin = threading.Event()
    future = executor.submit(begin.wait, PATIENCE)
    called: list[object] = []

    future.add_done_callback(called.append)
    begin.set()
    assert future.result(PATIENCE)
    future.add_done_callback(called.append)

    assert until(lambda: called == [future, future])


def test_a_queued_future_can_be_cancelled_and_its_job_never_runs() -> None:
    executor = rpc.Executor(1)
    begin, ran = threading.Event(), threading.Event()
    running = executor.submit(begin.wait, PATIENCE)
    assert until(running.running)
    queued = executor.submit(ran.set)

    assert queued.cancel()
    assert not running.cancel()
    begin.set()
    executor.shutdown()

    assert queued.cancelled()
    assert running.result(0)
    assert not ran.is_set()


def test_results_and_arguments_are_not_kept_alive(executor: rpc.Executor) -> None:
    class Thing:
        pass

    thing = Thing()
    seen = weakref.ref(thing)
    future = executor.submit(id, thing)
    future.result(PATIENCE)

    del thing, future

    assert until(lambda: gc.collect() >= 0 and seen() is None)


# ---- threads -----------------------------------------------------------------------------------


def test_nothing_starts_before_the_first_job() -> None:
    before = threading.active_count()

    executor = rpc.Executor(64)

    assert threading.active_count() == before
    assert executor.num_workers == 0
    executor.shutdown()


def test_jobs_run_on_threads_that_python_knows(executor: rpc.Executor) -> None:
    def describe() -> tuple[str, bool, bool]:
        thread = threading.current_thread()
        return thread.name, thread in threading.enumerate(), thread.daemon

    name, is_listed, is_daemon = executor.submit(describe).result(PATIENCE)

    assert name.startswith("osloxide-rpc_")
    assert is_listed
    assert is_daemon


def test_threads_can_be_joined_like_any_other() -> None:
    executor = rpc.Executor(2)
    gate = threading.Event()

    def job() -> threading.Thread:
        with pytest.raises(RuntimeError, match="cannot join current thread"):
            threading.current_thread().join()
        gate.wait(PATIENCE)
        return threading.current_thread()

    future = executor.submit(job)
    assert until(lambda: executor.stats()["busy"] == 1)
    [thread] = [t for t in threading.enumerate() if t.name.startswith("osloxide-rpc_0")]

    assert type(thread).__mro__[1] is threading.Thread
    assert thread.native_id in {int(task) for task in os.listdir("/proc/self/task")}
    with pytest.raises(RuntimeError, match="only be started once"):
        thread.start()
    thread.join(0.01)
    assert thread.is_alive()
    gate.set()
    assert future.result(PATIENCE) is thread
    executor.shutdown()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_forked_child_knows_that_the_threads_are_not_there(executor: rpc.Executor) -> None:
    thread = executor.submit(threading.current_thread).result(PATIENCE)
    assert thread.is_alive()
    pid = os.fork()
    if pid == 0:
        os._exit(int(thread.is_alive() or thread in threading.enumerate()))

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_threads_leave_pythons_list_when_they_end() -> None:
    executor = rpc.Executor(4, "leaving")
    gate = threading.Barrier(5)
    for _ in range(4):
        executor.submit(gate.wait, PATIENCE)
    gate.wait(PATIENCE)

    executor.shutdown()

    assert not [t for t in threading.enumerate() if t.name.startswith("leaving")]


def test_thread_local_data_stays_with_its_thread(executor: rpc.Executor) -> None:
    local = threading.local()

    def count() -> tuple[int, int]:
        local.count = getattr(local, "count", 0) + 1
        return threading.get_ident(), local.count

    seen: dict[int, int] = {}
    for _ in range(200):
        thread, number = executor.submit(count).result(PATIENCE)
        assert number == seen.get(thread, 0) + 1
        seen[thread] = number


def test_all_workers_may_block_at_once_and_no_more(executor: rpc.Executor) -> None:
    begin = threading.Event()
    arrived: list[int] = []

    def block(number: int) -> None:
        arrived.append(number)
        begin.wait(PATIENCE)

    futures = [executor.submit(block, number) for number in range(12)]

    assert until(lambda: len(arrived) == 8)
    stats = executor.stats()
    assert (stats["busy"], stats["queued"]) == (8, 4)
    assert stats["oldest_wait"] > 0
    assert executor.queue_size == 4
    begin.set()
    assert not concurrent.futures.wait(futures, PATIENCE).not_done


def test_jobs_one_after_the_other_need_few_threads() -> None:
    executor = rpc.Executor(64)

    for _ in range(300):
        executor.submit(int).result(PATIENCE)

    assert executor.num_workers <= 4
    executor.shutdown()


def test_an_idle_executor_wakes_nobody() -> None:
    executor = rpc.Executor(8)
    executor.submit(int).result(PATIENCE)
    tasks = Path("/proc/self/task")

    def switches() -> dict[str, int]:
        # The threads are named by the pool, not by Python.
        found = {}
        for task in tasks.iterdir():
            if (task / "comm").read_text().startswith("rpc-"):
                status = (task / "status").read_text()
                line = next(x for x in status.splitlines() if x.startswith("voluntary_ctxt"))
                found[task.name] = int(line.split()[1])
        return found

    def stays_quiet() -> bool:
        before = switches()
        time.sleep(0.5)  # the thing measured
        return switches() == before

    assert switches()
    assert until(stays_quiet, 10)
    executor.shutdown()


# ---- the end -----------------------------------------------------------------------------------


def test_shutdown_runs_what_is_queued() -> None:
    executor = rpc.Executor(2)
    futures = [executor.submit(int, number) for number in range(500)]

    executor.shutdown()

    assert [future.result(0) for future in futures] == list(range(500))


def test_shutdown_can_cancel_what_nobody_has_begun() -> None:
    executor = rpc.Executor(1)
    begin = threading.Event()
    running = executor.submit(begin.wait, PATIENCE)
    assert until(running.running)
    queued = [executor.submit(int) for _ in range(5)]

    executor.shutdown(wait=False, cancel_futures=True)

    # At once, although the only thread is busy; and their waiters learn of it.
    assert all(future.cancelled() for future in queued)
    assert not concurrent.futures.wait(queued, PATIENCE).not_done
    assert executor.stats()["cancelled"] == 5
    begin.set()
    assert running.result(PATIENCE)


def test_a_shut_executor_refuses_jobs(executor: rpc.Executor) -> None:
    executor.shutdown()

    assert not executor.alive
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    executor.shutdown()  # again is no error


def test_drain_tells_whether_everything_ended_in_time() -> None:
    executor = rpc.Executor(1)
    begin = threading.Event()
    executor.submit(begin.wait, PATIENCE)

    assert not executor.drain(0.05)
    begin.set()
    assert executor.drain(PATIENCE)


def test_the_context_manager_waits() -> None:
    with rpc.Executor(2) as executor:
        future = executor.submit(time.sleep, 0.05)

    assert future.done()


def test_a_full_queue_holds_the_submitter_until_there_is_room() -> None:
    executor = rpc.Executor(1, max_queued=1)
    begin = threading.Event()
    running = executor.submit(begin.wait, PATIENCE)
    assert until(running.running)
    executor.submit(int)
    entered, passed = threading.Event(), threading.Event()

    def submit_one_more() -> None:
        entered.set()
        executor.submit(int)
        passed.set()

    submitter = threading.Thread(target=submit_one_more)
    submitter.start()
    assert entered.wait(PATIENCE)
    assert not passed.wait(0.3)
    begin.set()

    assert passed.wait(PATIENCE)
    submitter.join(PATIENCE)
    executor.shutdown()


@pytest.mark.parametrize(("workers", "queued"), [(0, 0), (-1, 0), (1, -1)])
def test_impossible_sizes_are_refused(workers: int, queued: int) -> None:
    with pytest.raises(ValueError, match="give"):
        rpc.Executor(workers, max_queued=queued)


def test_what_cannot_be_called_is_refused_at_once(executor: rpc.Executor) -> None:
    with pytest.raises(TypeError, match="not callable"):
        executor.submit("text")  # type: ignore[arg-type]


def test_an_executor_refuses_to_work_in_a_forked_process() -> None:
    done = run_python(
        "import os\n"
        "from osloxide.messaging import executor as rpc\n"
        "executor = rpc.Executor(2)\n"
        "executor.submit(int).result()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    try:\n"
        "        executor.submit(int)\n"
        "    except RuntimeError as exc:\n"
        "        assert 'after the fork' in str(exc)\n"
        "        rpc.Executor(2).submit(int).result(20)\n"
        "        os._exit(7)\n"
        "    os._exit(1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )

    assert done.stdout.split() == ["7"], done.stderr


def test_queued_jobs_are_run_before_the_interpreter_exits() -> None:
    done = run_python(
        "import time\n"
        "from osloxide.messaging import executor as rpc\n"
        "executor = rpc.Executor(1)\n"
        "for number in range(3):\n"
        "    executor.submit(lambda n=number: (time.sleep(0.02), print(n, flush=True)))\n"
    )

    assert done.stdout.split() == ["0", "1", "2"], done.stderr
    assert done.returncode == 0, done.stderr


def test_queued_jobs_of_a_dropped_executor_are_run_before_the_interpreter_exits() -> None:
    done = run_python(
        "import time\n"
        "from osloxide.messaging import executor as rpc\n"
        "def submit():\n"
        "    executor = rpc.Executor(1)\n"
        "    for number in range(3):\n"
        "        executor.submit(lambda n=number: (time.sleep(0.02), print(n, flush=True)))\n"
        "submit()\n"
    )

    assert done.stdout.split() == ["0", "1", "2"], done.stderr
    assert done.returncode == 0, done.stderr


def test_a_dropped_executor_ends_its_threads() -> None:
    executor = rpc.Executor(2, "dropped")
    executor.submit(int).result(PATIENCE)

    del executor
    gc.collect()

    assert until(lambda: not [t for t in threading.enumerate() if t.name.startswith("dropped")])


def test_an_executor_dropped_before_its_last_job_has_ended_ends_its_threads() -> None:
    executor, go_on, began = rpc.Executor(2, "late"), threading.Event(), threading.Event()
    begin = threading.Event()
    future = executor.submit(begin.wait, PATIENCE)
    # The result is there, and the thread is still busy with it.
    future.add_done_callback(lambda _: (began.set(), go_on.wait(PATIENCE)))
    begin.set()
    assert began.wait(PATIENCE)

    del executor
    gc.collect()
    go_on.set()

    assert until(lambda: not [t for t in threading.enumerate() if t.name.startswith("late")])


def test_signal_handlers_run_while_shutdown_waits() -> None:
    done = run_python(
        "import os, signal, threading\n"
        "from osloxide.messaging import executor as rpc\n"
        "begin = threading.Event()\n"
        "executor = rpc.Executor(1)\n"
        "executor.submit(begin.wait, 20)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: begin.set())\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()\n"
        "executor.shutdown()\n"
        "print(begin.is_set())\n"
    )

    assert done.stdout.split() == ["True"], done.stderr


def test_a_python_with_other_futures_gets_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "_fields", lambda future: {"_something_new"})
    executor = rpc.Executor(2)

    future = executor.submit(int, "3")

    assert type(future) is not rpc.Future
    assert "_condition" in vars(future)
    assert future.result(PATIENCE) == 3
    executor.shutdown()


CHILDREN = """
import os, signal, threading
from osloxide.messaging.executor import Executor

def used():
    executor = Executor(3)
    started = threading.Barrier(4)
    for _ in range(3):
        executor.submit(started.wait)
    started.wait()
    return executor

def child():
    signal.alarm(20)
    own = used()
    for _ in range(10):
        own.submit(os.getpid).result()
    own.shutdown()
    os._exit(0)

for _ in range(50):
    parents = used()
    pid = os.fork() or child()
    parents.shutdown()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("ended")
"""


def test_executors_of_children_end_whatever_the_threads_of_the_parent_wait_for() -> None:
    """Threads of a child get the stacks of those of its parent. Wake-ups went to the latter while
    locks kept all that waits in one table: one child in eight ended at its alarm."""
    done = run_python(CHILDREN)

    assert done.stdout == "ended\n", done.stderr
