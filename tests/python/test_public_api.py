"""The names, signatures and validation of oslo.service 4.8, under both backend types."""

from __future__ import annotations

import importlib
import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from oslo_config import cfg
from oslo_service.backend.base import ComponentRegistry, ServiceBase

from osloxide import exceptions, service
from osloxide.backends.eventlet import EventletBackend
from osloxide.backends.threading import ThreadingBackend
from osloxide.signals import signal_handler

BACKENDS = {"eventlet": EventletBackend, "threading": ThreadingBackend}

COMPONENTS = {
    "ServiceBase", "ServiceLauncher", "Launcher", "ProcessLauncher", "Service", "Services",
    "ServiceWrapper", "SignalExit", "SignalHandler", "Singleton", "LoopingCallBase",
    "LoopingCallDone", "LoopingCallTimeOut", "FixedIntervalLoopingCall",
    "FixedIntervalWithTimeoutLoopingCall", "DynamicLoopingCall", "BackOffLoopingCall",
    "RetryDecorator", "Thread", "ThreadGroup", "launch", "_is_daemon", "_is_sighup_and_daemon",
}  # fmt: skip

SIGNATURES = {
    "eventlet": {
        "launch": "conf, service, workers=1, restart_method='reload', no_fork=False",
        "Launcher": "conf, restart_method='reload'",
        "ServiceLauncher": "conf, restart_method='reload'",
        "ProcessLauncher": "conf, wait_interval=0.01, restart_method='reload'",
        "ServiceLauncher.launch_service": "self, service, workers=1",
        "ProcessLauncher.launch_service": "self, service, workers=1",
        "ServiceWrapper": "service, workers",
    },
    "threading": {
        "launch": (
            "conf, service, workers=1, restart_method='reload', no_fork=False, start_method=None"
        ),
        "Launcher": "conf, restart_method='reload'",
        "ServiceLauncher": "conf, restart_method='reload', start_method=None",
        "ProcessLauncher": (
            "conf, wait_interval=None, restart_method='reload', no_fork=False, start_method=None"
        ),
        "ServiceLauncher.launch_service": "self, service_instance, workers=1",
        "ProcessLauncher.launch_service": "self, service, workers=1",
        "ServiceWrapper": "worker_id, service_instance, **_kwargs",
    },
    "both": {
        "Launcher.launch_service": "self, service, workers=1",
        "Service": "threads=1000",
        "Services": "restart_method='reload'",
        "SignalExit": "signo, exccode=1",
        "SignalHandler.add_handler": "self, sig, handler",
        "SignalHandler.add_handlers": "self, signals, handler",
        "FixedIntervalLoopingCall": "f=None, *args, **kw",
        "FixedIntervalLoopingCall.start": (
            "self, interval, initial_delay=None, stop_on_exception=True"
        ),
        "FixedIntervalWithTimeoutLoopingCall.start": (
            "self, interval, initial_delay=None, stop_on_exception=True, timeout=0"
        ),
        "DynamicLoopingCall.start": (
            "self, initial_delay=None, periodic_interval_max=None, stop_on_exception=True"
        ),
        "BackOffLoopingCall.start": (
            "self, initial_delay=None, starting_interval=1, timeout=300, max_interval=300, "
            "jitter=0.75, min_interval=0.001"
        ),
        "RetryDecorator": (
            "max_retry_count=-1, inc_sleep_time=10, max_sleep_time=60, exceptions=()"
        ),
        "ThreadGroup.add_timer": "self, interval, callback, initial_delay=None, *args, **kwargs",
        "ThreadGroup.add_timer_args": (
            "self, interval, callback, args=None, kwargs=None, initial_delay=None, "
            "stop_on_exception=True"
        ),
        "ThreadGroup.add_dynamic_timer": (
            "self, callback, initial_delay=None, periodic_interval_max=None, *args, **kwargs"
        ),
        "ThreadGroup.stop": "self, graceful=False",
        "_is_sighup_and_daemon": "signo, signal_handler",
    },
}


class Plain(ServiceBase):
    def start(self) -> None: ...

    def stop(self) -> None: ...

    def wait(self) -> None: ...

    def reset(self) -> None: ...


@pytest.fixture(autouse=True)
def dispositions() -> Iterator[None]:
    """Put back what launchers that are never waited for have installed in this process."""
    yield
    signal_handler.SignalHandler().clear()


@pytest.fixture
def components(flavour: str) -> dict[str, Any]:
    return BACKENDS[flavour].get_service_components()


@pytest.fixture
def conf() -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    conf(args=[], default_config_files=[])
    return conf


def signature(thing: Any) -> str:
    # A class that takes its constructor from a metaclass or from C shows __init__'s.
    target = thing.__init__ if inspect.isclass(thing) else thing
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(target).parameters.values()
    ]
    if inspect.isclass(thing):
        parameters = parameters[1:]
    return ", ".join(map(str, parameters))


@pytest.mark.parametrize(
    ("backend", "name", "expected"),
    [
        (backend, name, expected)
        for group, table in SIGNATURES.items()
        for backend in (BACKENDS if group == "both" else [group])
        for name, expected in table.items()
    ],
)
def test_signatures_are_those_of_oslo_service(backend: str, name: str, expected: str) -> None:
    first, *rest = name.split(".")
    thing = BACKENDS[backend].get_service_components()[first]
    for attribute in rest:
        thing = getattr(thing, attribute)

    assert signature(thing) == expected


def test_a_backend_offers_exactly_oslo_services_components(components: dict[str, Any]) -> None:
    assert set(components) == COMPONENTS
    registry = ComponentRegistry(components)
    assert all(name in registry for name in COMPONENTS)


def test_service_base_is_oslo_services_own(components: dict[str, Any]) -> None:
    assert components["ServiceBase"] is ServiceBase
    assert service.ServiceBase is ServiceBase
    assert issubclass(components["Service"], ServiceBase)


def test_the_service_module_has_oslo_services_names() -> None:
    names = {"ServiceBase", "ServiceLauncher", "Launcher", "ProcessLauncher", "Service"}
    names |= {"Services", "ServiceWrapper", "SignalHandler", "SignalExit", "Singleton"}
    names |= {"launch", "_is_daemon", "_is_sighup_and_daemon", "list_opts"}

    assert names <= set(vars(service))
    assert {opt.name for opt in service.list_opts()[0][1]} >= {"graceful_shutdown_timeout"}


def test_nothing_of_it_imports_eventlet_greenlet_or_cotyledon() -> None:
    code = """
import sys
class Poison:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("eventlet", "greenlet", "cotyledon", "futurist"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Poison())
import osloxide.service, osloxide.launch.service_launcher
import osloxide.launch.worker, osloxide.launch.runner
import osloxide.backends.threading, osloxide.backends.eventlet
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("workers", ["2", 1.5, [], "a"])
def test_workers_that_are_no_int_are_refused(
    components: dict[str, Any], conf: cfg.ConfigOpts, workers: Any
) -> None:
    with pytest.raises(TypeError, match=r"Type of workers should be int!.*got"):
        components["launch"](conf, Plain(), workers)


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_must_be_positive(
    components: dict[str, Any], conf: cfg.ConfigOpts, workers: int
) -> None:
    with pytest.raises(ValueError, match=rf"Number of workers should be positive!.*{workers}"):
        components["launch"](conf, Plain(), workers)


@pytest.mark.parametrize("launcher", ["Launcher", "ServiceLauncher", "ProcessLauncher"])
def test_every_launcher_refuses_an_unknown_restart_method(
    components: dict[str, Any], conf: cfg.ConfigOpts, launcher: str
) -> None:
    with pytest.raises(ValueError, match=r"Invalid restart_method: sometimes.*reload, mutate"):
        components[launcher](conf, restart_method="sometimes")


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_what_is_no_service_is_refused(
    components: dict[str, Any], conf: cfg.ConfigOpts, workers: int | None
) -> None:
    with pytest.raises(TypeError, match="must be an instance of"):
        components["launch"](conf, object(), workers)


def test_a_plain_launcher_refuses_several_workers(
    components: dict[str, Any], conf: cfg.ConfigOpts
) -> None:
    with pytest.raises(ValueError, match="Launcher asked to start multiple workers"):
        components["Launcher"](conf).launch_service(Plain(), workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_spawning_is_refused_with_the_remedy(conf: cfg.ConfigOpts, workers: int) -> None:
    launch = ThreadingBackend.get_service_components()["launch"]

    with pytest.raises(exceptions.StartMethodError, match="leave start_method out"):
        launch(conf, Plain(), workers, start_method="spawn")
    with pytest.raises(ValueError, match="leave it out or pass 'fork'"):
        launch(conf, Plain(), workers, start_method="teleport")


def test_a_launcher_without_services_returns_at_once(
    components: dict[str, Any], conf: cfg.ConfigOpts
) -> None:
    assert components["ProcessLauncher"](conf).wait() == 0


def test_stop_before_wait_does_not_hang(components: dict[str, Any], conf: cfg.ConfigOpts) -> None:
    launcher = components["ServiceLauncher"](conf)
    launcher.launch_service(Plain())

    launcher.stop()

    assert launcher.wait() == 0


def test_options_are_registered_by_the_launcher(components: dict[str, Any]) -> None:
    for name in ("Launcher", "ServiceLauncher", "ProcessLauncher"):
        conf = cfg.ConfigOpts()
        components[name](conf)

        assert conf.graceful_shutdown_timeout == 60
        assert conf.log_options is True


def test_a_service_survives_pickling_with_the_size_of_its_group(
    components: dict[str, Any],
) -> None:
    original = components["Service"](threads=7)
    original.colour = "red"

    copy = pickle.loads(pickle.dumps(original))

    assert copy.colour == "red"
    assert copy.tg.thread_pool_size == 7
    assert copy.tg is not original.tg


def test_a_plain_launcher_starts_at_once_and_stops(
    components: dict[str, Any], conf: cfg.ConfigOpts
) -> None:
    import threading

    started = threading.Event()
    stopped = threading.Event()

    class Recorder(Plain):
        def start(self) -> None:
            started.set()

        def stop(self) -> None:
            stopped.set()

    launcher = components["Launcher"](conf)
    launcher.launch_service(Recorder())

    assert started.wait(30)
    launcher.stop()
    launcher.wait()
    assert stopped.is_set()


def test_a_failing_start_surfaces_from_wait_of_a_plain_launcher(
    components: dict[str, Any], conf: cfg.ConfigOpts, caplog: pytest.LogCaptureFixture
) -> None:
    class Crash(components["Service"]):  # type: ignore[misc]
        def start(self) -> None:
            self.tg.add_timer(3600, lambda: None)
            raise ValueError("planted")

    launcher = components["Launcher"](conf)
    launcher.launch_service(Crash())

    with pytest.raises(SystemExit, match="1"):
        launcher.wait()
    assert "Error starting thread." in caplog.text
    assert "planted" in caplog.text


def test_restart_of_a_plain_launcher_reloads_or_mutates(
    components: dict[str, Any], conf: cfg.ConfigOpts
) -> None:
    import threading

    for method, expected in (("mutate", ["reset"]), ("reload", ["stop", "reset", "start"])):
        steps: list[str] = []
        started = threading.Semaphore(0)

        class Recorder(Plain):
            def start(self, steps: list[str] = steps, started: Any = started) -> None:
                steps.append("start")
                started.release()

            def stop(self, steps: list[str] = steps) -> None:
                steps.append("stop")

            def reset(self, steps: list[str] = steps) -> None:
                steps.append("reset")

        launcher = components["Launcher"](conf, restart_method=method)
        launcher.launch_service(Recorder())
        assert started.acquire(timeout=30)
        steps.clear()

        launcher.restart()
        if method == "reload":
            assert started.acquire(timeout=30)

        assert steps == expected
        launcher.stop()
        launcher.wait()


def test_modules_of_a_flavour_are_where_oslo_service_has_them(flavour: str) -> None:
    package = importlib.import_module(f"osloxide.backends.{flavour}")
    for name in ("service", "loopingcall", "threadgroup"):
        module = importlib.import_module(f"osloxide.backends.{flavour}.{name}")

        assert isinstance(module, ModuleType)
        assert getattr(package, name) is module


def test_a_backdoor_that_is_asked_for_is_refused_in_the_log(
    components: dict[str, Any], conf: cfg.ConfigOpts, caplog: pytest.LogCaptureFixture
) -> None:
    components["Launcher"](conf)
    assert "backdoor" not in caplog.text
    conf.set_override("backdoor_port", "4444")

    components["Launcher"](conf)

    assert "Option backdoor_port=4444 has no effect" in caplog.text
