"""The import hook, seen from fresh interpreters.

Each test starts its own, because modules are bound once for each process.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from _children import environment, run_command, run_python

from osloxide.activation import environment as hook_environment
from osloxide.activation import import_hook, versions
from osloxide.exceptions import ActivationError

SUBMODULES = ("", ".service", ".loopingcall", ".threadgroup")


def passes(code: str, **changes: str) -> str:
    result = run_python(code, **changes)
    assert result.returncode == 0, result.stderr
    return result.stdout


def fails(code: str, **changes: str) -> str:
    result = run_python(code, **changes)
    assert result.returncode == 1, result.stdout
    return result.stderr


@pytest.mark.parametrize("kind", ["threading", "eventlet"])
def test_aliased_modules_are_the_real_ones_under_both_names(kind: str) -> None:
    passes(f"""
        import importlib
        from osloxide.activation import import_hook
        import_hook.install()
        for end in {SUBMODULES!r}:
            alias = importlib.import_module("oslo_service.backend._{kind}" + end)
            real = importlib.import_module("osloxide.backends.{kind}" + end)
            assert alias is real, (alias, real)
            assert real.__name__ == real.__spec__.name == "osloxide.backends.{kind}" + end
        import oslo_service.backend
        assert oslo_service.backend._{kind}.{kind.capitalize()}Backend
    """)


def test_wsgi_is_ours() -> None:
    passes("""
        from osloxide.activation import import_hook
        import_hook.install()
        import oslo_service.wsgi, osloxide.wsgi
        assert oslo_service.wsgi is osloxide.wsgi
    """)


def test_wsgi_lists_every_name_of_oslo_services() -> None:
    passes("""
        from osloxide import wsgi
        missing = {"ConfigNotFound", "InvalidInput", "Loader", "PasteAppNotFound", "Request",
                   "Router", "Server", "list_opts", "register_opts"} - {*dir(wsgi)}
        assert not missing, missing
        import sys
        assert "webob" not in sys.modules and "routes" not in sys.modules
    """)


@pytest.mark.parametrize(
    "name",
    ["backend", "backend._common", "_options", "opts", "backend.exceptions", "periodic_task"],
)
def test_other_modules_stay_upstream(name: str) -> None:
    passes(f"""
        import importlib, pathlib
        from osloxide.activation import import_hook
        import_hook.install()
        module = importlib.import_module("oslo_service.{name}")
        assert pathlib.Path(module.__file__).parts[-{name.count(".") + 2}:][0] != "osloxide"
        assert module.__name__ == module.__spec__.name == "oslo_service.{name}"
        assert type(module.__spec__.loader).__name__ == "SourceFileLoader"
    """)


@pytest.mark.parametrize("kind", ["THREADING", "EVENTLET"])
def test_components_come_from_osloxide_for_either_type(kind: str) -> None:
    passes(f"""
        from osloxide.activation import import_hook
        import_hook.install()
        from oslo_service import backend
        backend.init_backend(backend.BackendType.{kind})
        from oslo_service import loopingcall, service, threadgroup
        for thing in (service.launch, service.ProcessLauncher, threadgroup.ThreadGroup):
            assert thing.__module__.startswith("osloxide."), thing.__module__
        from oslo_service.backend.base import ServiceBase
        assert service.ServiceBase is ServiceBase
    """)


@pytest.mark.parametrize("early", [True, False])
def test_default_type_is_threading(early: bool) -> None:
    first, second = "import_hook.install()", "from oslo_service import backend"
    if early:
        first, second = second, first
    passes(f"""
        from osloxide.activation import import_hook
        {first}
        {second}
        import oslo_service.service
        assert backend.get_backend_type() is backend.BackendType.THREADING
        backend.init_backend(backend.BackendType.THREADING)
    """)


@pytest.mark.parametrize("call", ["monkey_patch()", "monkey_patch(os=False)"])
def test_default_type_of_a_program_that_monkey_patches_is_eventlet(call: str) -> None:
    passes(f"""
        from osloxide.activation import import_hook
        import_hook.install(serve_eventlet=True)
        from oslo_service import backend
        import eventlet
        eventlet.{call}
        import oslo_service.service
        assert backend.get_backend_type() is backend.BackendType.EVENTLET
        assert oslo_service.service.launch.__module__ == "osloxide.backends.eventlet.service"
    """)


def test_an_import_of_eventlet_alone_leaves_the_default_type() -> None:
    passes("""
        from osloxide.activation import import_hook
        import_hook.install(serve_eventlet=True)
        import eventlet
        import oslo_service.service
        from oslo_service import backend
        assert backend.get_backend_type() is backend.BackendType.THREADING
    """)


def test_a_registered_default_hook_is_kept() -> None:
    passes("""
        from oslo_service import backend
        backend.register_backend_default_hook(lambda: backend.BackendType.EVENTLET)
        from osloxide.activation import import_hook
        import_hook.install()
        backend.get_backend()
        assert backend.get_backend_type() is backend.BackendType.EVENTLET
    """)


def test_hook_never_imports_eventlet() -> None:
    # futurist, a dependency of oslo.service, imports eventlet where it is installed: poison it.
    passes("""
        import sys
        class Poison:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("eventlet", "greenlet"):
                    raise ImportError(name + " is poisoned")
        sys.meta_path.insert(0, Poison())
        from osloxide.activation import import_hook
        import_hook.install()
        import oslo_service.backend
        assert "eventlet" not in sys.modules
    """)


def test_names_that_are_no_modules_are_not_found() -> None:
    passes("""
        import importlib, importlib.util
        from osloxide.activation import import_hook
        import_hook.install()
        for name in ("oslo_service.backend._threading.ThreadingBackend",
                     "oslo_service.backend._threading.service.launch",
                     "oslo_service.wsgi.Server", "oslo_service.nothing"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                assert error.name == name, error.name
            else:
                raise AssertionError(name)
        assert importlib.util.find_spec("oslo_service.backend._threading.nothing") is None
    """)


def test_patching_by_string_is_seen_through_both_names() -> None:
    passes("""
        from unittest import mock
        from osloxide.activation import import_hook
        import_hook.install()
        import osloxide.backends.threading.service as real
        with mock.patch("oslo_service.backend._threading.service.launch") as fake:
            assert real.launch is fake
        import oslo_service.backend._eventlet.loopingcall as alias
        with mock.patch("osloxide.backends.eventlet.loopingcall.LoopingCallBase._sleep") as fake:
            assert alias.LoopingCallBase._sleep is fake
    """)


def test_reload_runs_the_module_again() -> None:
    passes("""
        import importlib
        from osloxide.activation import import_hook
        import_hook.install()
        import oslo_service.backend._threading.service as alias
        before = alias.launch
        assert importlib.reload(alias) is alias
        assert alias.launch is not before
        import osloxide.backends.threading.service as real
        assert real is alias
        from oslo_service import backend
        importlib.reload(backend)
        assert backend._backend_hook is not None
    """)


def test_classes_can_be_pickled_into_a_process_without_the_hook() -> None:
    dumped = passes("""
        import pickle
        from osloxide.activation import import_hook
        import_hook.install()
        from oslo_service.backend._threading import loopingcall
        print(pickle.dumps(loopingcall.FixedIntervalLoopingCall).hex())
    """)
    passes(f"""
        import pickle
        found = pickle.loads(bytes.fromhex("{dumped.strip()}"))
        assert found.__name__ == "FixedIntervalLoopingCall"
        assert found.__module__.startswith(("osloxide.", "oslo_service.backend._common"))
    """)


@pytest.mark.parametrize("shared_first", [True, False])
def test_what_both_backends_share_upstream_is_one_class_under_each_name(shared_first: bool) -> None:
    pytest.importorskip("oslo_service.backend._common.service", reason="oslo.service 4.2 has none")
    imports = [
        "from oslo_service.backend._common import loopingcall as calls, service as services",
        "from oslo_service import loopingcall, service",
    ]
    passes(f"""
        import importlib
        import osloxide
        osloxide.install()
        {"; ".join(imports if shared_first else imports[::-1])}
        for name in ("LoopingCallDone", "LoopingCallTimeOut"):
            assert getattr(calls, name) is getattr(loopingcall, name), name
        for name in ("SignalExit", "Singleton"):
            assert getattr(services, name) is getattr(service, name), name

        def once():
            raise calls.LoopingCallDone("over")

        assert loopingcall.FixedIntervalLoopingCall(once).start(interval=60).wait() == "over"
    """)


def test_spawned_process_gets_the_hook_from_the_environment(tmp_path: Path) -> None:
    script = tmp_path / "spawner.py"
    script.write_text("""
import multiprocessing, sys

def child():
    import oslo_service.backend._threading.service as alias
    sys.exit(0 if alias.__name__ == "osloxide.backends.threading.service" else 3)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
    sys.exit(process.exitcode)
""")

    result = run_command(
        [sys.executable, str(script)], environ=hook_environment.activated(environment())
    )

    assert result.returncode == 0, result.stderr


def test_an_interpreter_that_uses_no_oslo_service_imports_next_to_nothing() -> None:
    root = Path(import_hook.__file__).parents[2]
    result = run_command(
        [
            sys.executable,
            "-S",
            "-c",
            "import sys\n"
            f"sys.path.insert(0, {str(root)!r})\n"
            "before = set(sys.modules)\n"
            "from osloxide.activation import import_hook\n"
            "import_hook.install(deferred=True)\n"
            "print(*sorted(set(sys.modules) - before))\n",
        ],
        environ=environment(),
    )
    loaded = set(result.stdout.split())
    assert "osloxide.activation.import_hook" in loaded
    assert not loaded & {"contextlib", "importlib.metadata", "importlib.util", "logging", "re"}
    assert not loaded & {"typing", "osloxide._native", "oslo_service"}


def test_oslo_service_has_the_classes_that_osloxide_service_names() -> None:
    passes("""
        from osloxide import service
        import oslo_service.service
        for name in set(service.__all__) - {"list_opts"}:
            assert getattr(oslo_service.service, name) is getattr(service, name), name
    """)


def test_osloxide_service_comes_too_late_without_harm() -> None:
    passes("""
        import oslo_service.backend._threading.service as upstream
        from osloxide import service
        from osloxide.activation import import_hook
        assert not import_hook.is_installed()
        assert service.launch is not upstream.launch
        assert service.ServiceBase is upstream.ServiceBase
    """)


def test_install_is_idempotent() -> None:
    passes("""
        import sys
        from osloxide.activation import import_hook
        import_hook.install(deferred=True)
        import_hook.install()
        import oslo_service.service
        import_hook.install()
        assert sys.meta_path.count(import_hook._finder) == 1
        assert import_hook.is_installed()
    """)


def test_one_line_is_logged_once_logging_is_configured() -> None:
    stderr = run_python("""
        import logging
        from osloxide.activation import import_hook
        import_hook.install()
        logging.basicConfig(level=logging.INFO)
        import oslo_service.service
        import_hook.announce()
        import_hook.install()
    """).stderr
    assert stderr.count("serves the backends and the WSGI server of oslo.service") == 1


@pytest.mark.parametrize(
    ("module", "register"),
    [("eventlet.patcher", "already_patched"), ("gevent.monkey", "saved")],
)
def test_monkey_patched_process_is_refused(module: str, register: str) -> None:
    stderr = fails(f"""
        import sys, types
        patcher = types.ModuleType("{module}")
        patcher.{register} = {{"socket": True}}
        sys.modules["{module}"] = patcher
        from osloxide.activation import import_hook
        import_hook.install()
    """)
    library = module.partition(".")[0]
    assert "ActivationError: osloxide cannot work in process" in stderr
    assert f"{library} has monkey-patched it" in stderr
    assert "DISABLE_EVENTLET_PATCHING=1" in stderr


def test_patching_after_the_hook_is_refused_when_the_backend_is_loaded() -> None:
    pytest.importorskip("eventlet")
    stderr = fails("""
        from osloxide.activation import import_hook
        import_hook.install(deferred=True)
        import eventlet
        eventlet.monkey_patch()
        import oslo_service.service
    """)
    assert "eventlet has monkey-patched it" in stderr


def test_imported_but_not_patched_eventlet_is_accepted() -> None:
    pytest.importorskip("eventlet")
    passes("""
        import eventlet, eventlet.patcher
        from osloxide.activation import import_hook
        import_hook.install()
        import oslo_service.service
    """)


def test_upstream_backend_imported_before_is_refused() -> None:
    stderr = fails("""
        import oslo_service.backend._threading
        from osloxide.activation import import_hook
        import_hook.install()
    """)
    assert "cannot replace oslo_service.backend._threading: it is already imported" in stderr
    assert "osloxide run" in stderr


@pytest.mark.parametrize("version", ["4.1.1", "4.0.2", "3.5.0", "2.8.0", "4"])
def test_too_old_oslo_service_is_refused(version: str) -> None:
    with pytest.raises(ActivationError, match=r"install oslo\.service >= 4\.2, < 5"):
        versions.check(version)


@pytest.mark.parametrize("version", ["5.0.0", "5.0.0.0rc1", "10.1"])
def test_untested_newer_oslo_service_is_refused(version: str) -> None:
    with pytest.raises(ActivationError, match="or a newer osloxide"):
        versions.check(version)


@pytest.mark.parametrize("version", ["4.2.0", "4.8.0", "4.10", "4.8.1.dev3"])
def test_supported_oslo_service_is_accepted(version: str) -> None:
    assert versions.check(version)[0] == 4


@pytest.mark.parametrize("deferred", [True, False])
def test_version_is_refused_when_oslo_service_is_imported(tmp_path: Path, deferred: bool) -> None:
    _fake_distribution(tmp_path, "3.5.0")

    stderr = fails(
        f"""
        from osloxide.activation import import_hook
        import_hook.install(deferred={deferred})
        import oslo_service.service
        """,
        PYTHONPATH=str(tmp_path),
    )

    assert "ActivationError: osloxide cannot replace oslo.service 3.5.0" in stderr


def test_missing_distribution_is_named(tmp_path: Path) -> None:
    stderr = fails("""
        import importlib.metadata as metadata
        def version(name):
            raise metadata.PackageNotFoundError(name)
        metadata.version = version
        from osloxide.activation import import_hook
        import_hook.install()
    """)
    assert "no distribution of that name is installed" in stderr


def test_sitecustomize_installs_the_hook() -> None:
    result = run_command(
        [sys.executable, "-c", "import osloxide; print(osloxide.is_installed())"],
        environ=hook_environment.activated(environment()),
    )
    assert result.stdout == "True\n"


def test_sitecustomize_does_nothing_when_switched_off() -> None:
    environ = hook_environment.activated(environment())
    environ["OSLOXIDE"] = "0"
    result = run_command(
        [sys.executable, "-c", "import sys; print('osloxide' in sys.modules)"], environ=environ
    )
    assert result.stdout == "False\n"


def test_sitecustomize_runs_the_one_it_hides(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.hidden_ran = 1\n")

    result = run_command(
        [
            sys.executable,
            "-c",
            "import sys, sitecustomize; print(sys.hidden_ran, sitecustomize.__file__)",
        ],
        environ=hook_environment.activated(environment(PYTHONPATH=str(tmp_path))),
    )

    assert result.stdout == f"1 {tmp_path}/sitecustomize.py\n"


def test_sitecustomizes_that_chain_to_each_other_run_once_each(tmp_path: Path) -> None:
    # ddtrace chains this way: it drops its directory from sys.path and imports the name again.
    (tmp_path / "tracer").mkdir()
    (tmp_path / "tracer/sitecustomize.py").write_text("""
import os, sys
print("tracer")
saved = list(sys.path)
sys.path[:] = [p for p in sys.path if p != os.path.dirname(__file__)]
mine = sys.modules.pop("sitecustomize")
try:
    import sitecustomize
except ImportError:
    sys.modules["sitecustomize"] = mine
sys.path[:] = saved
""")
    (tmp_path / "distribution").mkdir()
    (tmp_path / "distribution/sitecustomize.py").write_text("print('distribution')\n")
    path = f"{tmp_path}/tracer:{tmp_path}/distribution"

    result = run_command(
        [sys.executable, "-c", "import osloxide; print(osloxide.is_installed())"],
        environ=hook_environment.activated(environment(PYTHONPATH=path)),
    )

    assert result.stdout.splitlines() == ["tracer", "distribution", "True"]
    assert not result.stderr


def test_sitecustomize_leaves_interpreters_without_osloxide_alone() -> None:
    # -S hides site-packages, as another environment's interpreter does.
    result = run_command(
        [sys.executable, "-S", "-c", "import sitecustomize; print('alive')"],
        environ=hook_environment.activated(environment()),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "alive\n", "")


def test_switches_that_are_set_stay() -> None:
    environ = hook_environment.activated({"OS_NOVA_DISABLE_EVENTLET_PATCHING": "no"})
    assert environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] == "no"
    assert environ["OS_CINDER_DISABLE_EVENTLET_PATCHING"] == "1"
    assert hook_environment.keeps_eventlet(environ) == ["OS_NOVA_DISABLE_EVENTLET_PATCHING"]


def test_pythonpath_is_extended_once() -> None:
    environ = hook_environment.activated(hook_environment.activated({"PYTHONPATH": "/a::/b"}))
    assert environ["PYTHONPATH"] == f"{hook_environment.SITECUSTOMIZE_DIR}:/a::/b"
    assert hook_environment.activated({"PYTHONPATH": ""})["PYTHONPATH"] == (
        hook_environment.SITECUSTOMIZE_DIR
    )


def _fake_distribution(where: Path, version: str) -> None:
    """Metadata of another oslo.service, found before the real one's."""
    info = where / f"oslo_service-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: oslo.service\nVersion: {version}\n"
    )


@pytest.mark.parametrize(("version", "prefix"), [("4.2.0", ""), ("4.3.0", "_"), ("4.8.0", "_")])
def test_aliases_are_those_of_the_installed_release_before_it_is_imported(
    version: str, prefix: str
) -> None:
    said = passes(
        f"""
        from osloxide.activation import import_hook, versions

        versions.installed = lambda: "{version}"
        print(*sorted(import_hook.aliases()))
        """
    )

    assert said.split() == [
        f"oslo_service.backend.{prefix}eventlet",
        f"oslo_service.backend.{prefix}threading",
        "oslo_service.wsgi",
    ]
