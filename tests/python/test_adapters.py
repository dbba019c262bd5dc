"""Adapters for services that use eventlet by themselves: what stands in its place, and when."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from oslo_config import cfg
from oslo_policy import policy as oslo_policy

from osloxide.adapters import log, nova, policy
from osloxide.server import options as server_options


def module(name: str, **names: Any) -> Any:
    made = ModuleType(name)
    vars(made).update(names)
    return made


def test_releases_of_nova_without_eventlet_are_left_alone() -> None:
    newer = module("nova.service", WSGIServer=int)
    before = dict(vars(newer))
    nova.amend(newer)
    assert vars(newer) == before


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


POLICY = """
_ENFORCER = None

def MAKE():
    global _ENFORCER
    if not _ENFORCER:
        _ENFORCER = {}
        begun.set()
        loaded.wait(60)
        _ENFORCER["rule"] = True

def check():
    MAKE()
    return "rule" in _ENFORCER
"""


class Watched:
    """A lock that tells how many have asked for it."""

    def __init__(self) -> None:
        self.asked, self._lock = threading.Semaphore(0), threading.RLock()
        locks.append(self)

    def __enter__(self) -> None:
        self.asked.release()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


locks: list[Watched] = []


MAKERS = {
    "init": policy.by_init,
    "get_enforcer": policy.by_getter,
    "_get_enforcer": policy.by_private_getter,
    "_ensure_enforcer_initialization": policy.by_check,
}


@pytest.mark.parametrize(("make", "amend"), list(MAKERS.items()), ids=list(MAKERS))
def test_no_thread_checks_a_policy_before_its_rules_are_registered(
    monkeypatch: pytest.MonkeyPatch, make: str, amend: Any
) -> None:
    begun, loaded = threading.Event(), threading.Event()
    engine = module("neutron.policy", begun=begun, loaded=loaded)
    exec(POLICY.replace("MAKE", make), vars(engine))
    monkeypatch.setattr(policy, "RLock", Watched)
    amend(engine)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(engine.check)
        assert begun.wait(60)
        second = threads.submit(engine.check)
        # Both have come before the rules are there.
        assert all(locks[-1].asked.acquire(timeout=60) for _ in range(2))
        loaded.set()
        assert first.result(60)
        assert second.result(60)


LATER = 4_000_000_000
"""A time of change, in seconds: of a file that was written after it had been read."""


def test_a_policy_file_that_is_read_again_refuses_nobody_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, go_on = threading.Event(), threading.Event()

    class Enforcer(oslo_policy.Enforcer):
        """Pauses where it has emptied the rules and has not filled them again."""

        def _record_file_rules(self, *arguments: Any, **options: Any) -> None:
            super()._record_file_rules(*arguments, **options)
            half.set()
            assert go_on.wait(60)

    monkeypatch.setattr(policy, "RLock", Watched)
    policy.load_as_a_whole(module("oslo_policy.policy", Enforcer=Enforcer))
    (file := tmp_path / "policy.yaml").write_text("seen: role:admin\n")
    conf = cfg.ConfigOpts()
    conf(["--config-dir", str(tmp_path)])
    enforcer = Enforcer(conf, policy_file=str(file))
    enforcer.register_default(oslo_policy.RuleDefault("by-default", "role:reader"))
    go_on.set()
    enforcer.load_rules()

    file.write_text("seen: role:reader\n")
    os.utime(file, (LATER, LATER))
    half.clear()
    go_on.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(enforcer.authorize, "by-default", {}, {"roles": ["reader"]})
        assert half.wait(60)
        # What a check sees that has looked at the file before it was written.
        assert set(enforcer.rules) == {"seen", "by-default"}
        assert str(enforcer.rules["seen"]) == "role:admin"
        second = threads.submit(enforcer.enforce, "seen", {}, {"roles": ["reader"]})
        assert all(locks[-1].asked.acquire(timeout=60) for _ in range(3))
        go_on.set()
        assert first.result(60)
        assert second.result(60), "the file's new rule counts once it is read"
    assert set(enforcer.rules) == {"seen", "by-default"}


def test_a_policy_file_that_cannot_be_read_leaves_the_rules_as_they_are(tmp_path: Path) -> None:
    class Enforcer(oslo_policy.Enforcer):
        pass

    policy.load_as_a_whole(module("oslo_policy.policy", Enforcer=Enforcer))
    (file := tmp_path / "policy.yaml").write_text("seen: role:admin\n")
    (directory := tmp_path / "policy.d").mkdir()
    conf = cfg.ConfigOpts()
    conf(["--config-dir", str(tmp_path)])
    enforcer = Enforcer(conf, policy_file=str(file))
    enforcer.register_default(oslo_policy.RuleDefault("by-default", "role:reader"))
    enforcer.load_rules()

    file.write_text("seen: role:reader\n")
    os.utime(file, (LATER, LATER))
    (directory / "broken.yaml").write_text("{")
    with pytest.raises(ValueError, match="parsing"):
        enforcer.load_rules()

    assert {name: str(rule) for name, rule in enforcer.rules.items()} == {
        "seen": "role:admin",
        "by-default": "role:reader",
    }


def test_handlers_of_logging_keep_its_locks_where_oslo_log_would_replace_them() -> None:
    replaced: list[str] = []
    oslo_log = module("oslo_log.log", _fix_eventlet_logging=lambda: replaced.append("createLock"))

    log.amend(oslo_log)
    oslo_log._fix_eventlet_logging()

    assert replaced == []


def test_a_release_of_oslo_log_that_replaces_no_locks_is_left_alone() -> None:
    oslo_log = module("oslo_log.log")

    log.amend(oslo_log)

    assert not hasattr(oslo_log, "_fix_eventlet_logging")
