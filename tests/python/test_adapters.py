"""Adapters for services that use eventlet by themselves: what stands in its place, and when."""

from __future__ import annotations

import os
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg

from osloxide.adapters import nova
from osloxide.adapters.threads import Pool, Queue, Timeout
from osloxide.server import options as server_options


def test_calls_run_side_by_side_and_return_their_results() -> None:
    pool = Pool(2, "test")
    both = threading.Barrier(2, timeout=10)

    calls = [pool.spawn(lambda n=n: (both.wait(), n)[1]) for n in (1, 2)]

    assert [call.wait() for call in calls] == [1, 2]


def test_a_call_that_fails_raises_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise LookupError("no cell")

    with pytest.raises(LookupError, match="no cell"):
        Pool(1, "test").spawn(fail).wait()


def test_a_call_that_nobody_waits_for_reports_its_failure(monkeypatch: Any) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    pool = Pool(1, "test")

    pool.spawn_n(lambda: 1 / 0)
    pool.spawn(lambda: None).wait()  # the one thread has done the first by now

    assert [report.exc_type for report in seen] == [ZeroDivisionError]


def test_a_call_that_is_killed_before_it_begins_never_does() -> None:
    pool, release, ran = Pool(1, "test"), threading.Event(), []
    first = pool.spawn(release.wait, 10)
    second = pool.spawn(ran.append, 1)

    second.kill()
    release.set()
    first.wait()
    pool.spawn(lambda: None).wait()

    assert ran == []


def test_a_link_is_called_with_the_call() -> None:
    linked: list[Any] = []
    done = threading.Event()
    call = Pool(1, "test").spawn(lambda: 3)

    call.link(lambda of, more: (linked.append((of.wait(), more)), done.set()), 4)

    assert done.wait(10)
    assert linked == [(3, 4)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_has_threads_of_its_own() -> None:
    pool = Pool(1, "test")
    assert pool.spawn(os.getpid).wait() == os.getpid()

    child = os.fork()
    if child == 0:
        # A thread that was forgotten would never begin the call.
        os._exit(0 if pool.spawn(os.getpid).wait() == os.getpid() else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class TooLate(Exception):
    pass


def test_a_timeout_ends_the_wait_for_a_queue() -> None:
    queue = Queue()

    with Timeout(0.01, TooLate), pytest.raises(TooLate):
        queue.get()
    with Timeout(0.01), pytest.raises(TimeoutError):
        queue.get()


def test_the_nearest_timeout_counts_and_none_once_it_is_left() -> None:
    queue = Queue()
    queue.put(1)

    with Timeout(600, TooLate), Timeout(0, KeyError):
        assert queue.get() == 1  # what is there is taken, however late it is
        with pytest.raises(KeyError):
            queue.get()
    timer = threading.Timer(0.02, queue.put, [2])
    timer.start()
    with Timeout(None, TooLate):
        assert queue.get() == 2
    timer.join()


def test_timeouts_of_another_thread_do_not_count() -> None:
    queue, taken = Queue(), []
    waiting = threading.Thread(target=lambda: taken.append(queue.get()))
    with Timeout(0, TooLate):
        waiting.start()
        queue.put(1)
        waiting.join(10)

    assert taken == [1]


def module(name: str, **names: Any) -> Any:
    made = ModuleType(name)
    vars(made).update(names)
    return made


def test_releases_of_nova_without_eventlet_are_left_alone() -> None:
    for name in ("nova.service", "nova.utils", "nova.context"):
        newer = module(name, spawn=len, WSGIServer=int, _get_default_green_pool=len)
        before = dict(vars(newer))
        nova.amend(newer)
        assert vars(newer) == before


def test_novas_pool_is_one_of_native_threads() -> None:
    utils = module(
        "nova.utils",
        eventlet=object(),
        CONF=SimpleNamespace(default_green_pool_size=2),
        _get_default_green_pool=None,
    )
    nova.amend(utils)

    assert utils._get_default_green_pool() is utils._get_default_green_pool()
    assert utils._get_default_green_pool().spawn(lambda: 5).wait() == 5
    assert utils.tpool.execute(divmod, 7, 2) == (3, 1)


def test_novas_server_reads_novas_options(tmp_path: Any) -> None:
    class InvalidInput(Exception):
        def __init__(self, reason: str) -> None:
            super().__init__(reason)

    options = {
        "default_pool_size": 7,
        "keep_alive": False,
        "wsgi_log_format": "%(status_code)d",
        "client_socket_timeout": 0,
        "max_header_line": 1000,
        "tcp_keepidle": 60,
        "ssl_cert_file": None,
        "ssl_key_file": None,
        "ssl_ca_file": None,
    }
    conf = cfg.ConfigOpts()
    conf([], project="nova", default_config_files=[])
    for name, value in options.items():
        conf.register_opt(cfg.Opt(name, type=lambda given: given, default=value), "wsgi")
    conf.register_opts(server_options.OPTIONS, "osloxide")
    conf.set_override("max_connections", 50, "osloxide")
    service = module(
        "nova.service",
        eventlet=object(),
        CONF=conf,
        WSGIServer=object,
        exception=SimpleNamespace(InvalidInput=InvalidInput),
    )
    nova.amend(service)

    server = service.WSGIServer("api", None, host="127.0.0.1")
    assert (server.pool_size, server.client_socket_timeout) == (7, None)
    assert server.max_connections == 50
    assert server._socket.getsockname()[1] == server.port > 0
    server.start()
    server.stop()
    server.wait()
    server.reset()
    assert server._pool.size == 7
    server.socket.close()
    server.dup_socket.close()
    with pytest.raises(InvalidInput, match="backlog is 0"):
        service.WSGIServer("api", None, host="127.0.0.1", backlog=0)
    with pytest.raises(RuntimeError, match="cert_file"):
        service.WSGIServer("api", None, host="127.0.0.1", use_ssl=True)
