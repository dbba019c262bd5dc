"""The import hook: oslo.service's implementation modules are served from osloxide.

Owns the table of aliases, the checks that guard it (oslo.service's version, monkey-patched
processes, modules that were imported too early), the default backend type, and the list of modules
of others, oslo.messaging's above all, that are amended once they are imported. It never imports
eventlet, never imports the modules it aliases before somebody asks for them, and leaves
``oslo_service.backend``, ``_common``, ``_options``, ``opts``, ``exceptions``, ``periodic_task`` and
``systemd`` to oslo.service. Loaded at the start of every interpreter below ``osloxide run``, so it
imports nothing that the interpreter has not loaded already.

Rules: PEP 451 (module specs), oslo_service.backend (selection of a backend).
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

from osloxide.exceptions import ActivationError

# Type checkers know the name; importing it would cost every interpreter another 5 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

OLDEST_SUPPORTED = (4, 2)
"""The first oslo.service release with two backends to choose from."""

FIRST_UNSUPPORTED = (5,)
"""Releases from here on are refused until they have been tested."""

_PRIVATE_NAMES_SINCE = (4, 3)
"""Release that renamed ``backend.threading`` to ``backend._threading``, ``eventlet`` likewise."""

_BACKENDS = ("eventlet", "threading")


def install(*, deferred: bool = False, tolerate_eventlet: bool = False) -> None:
    """Serve oslo.service's backends and ``oslo_service.wsgi`` from osloxide from now on.

    Idempotent. Must run before anything imports ``oslo_service.service``, ``.loopingcall``,
    ``.threadgroup`` or ``.wsgi``: these bind their names once.

    :param deferred: check oslo.service's version when it is imported, and for monkey-patching when
        an aliased module is, instead of now: an interpreter that uses neither pays nothing.
    :param tolerate_eventlet: accept a process that eventlet or gevent has monkey-patched. For test
        suites only: native threads do not switch green ones.
    :raises ActivationError: the process is monkey-patched, oslo.service has an untested version,
        or one of its aliased modules is already imported.
    """
    _finder.tolerate_eventlet = _finder.tolerate_eventlet or tolerate_eventlet
    if not deferred:
        _finder.refuse_if_monkey_patched()
    if not deferred or "oslo_service" in sys.modules:
        _finder.check_version()
    alias = _imported_too_early()
    if alias is not None:
        place = getattr(sys.modules[alias], "__file__", "an unknown place")
        raise ActivationError(
            f"osloxide cannot replace {alias}: it is already imported from {place}; install the "
            "hook earlier: start the service with 'osloxide run', or call install() before "
            "anything imports oslo_service"
        )
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    backend = sys.modules.get("oslo_service.backend")
    if backend is not None:
        _prefer_threading(backend)
    announce()


def adopt() -> bool:
    """Install the hook for a program that imports osloxide by its own name, if it is not too late.

    Then what imports oslo.service beside it, such as oslo.messaging, gets the same classes and
    neither eventlet nor cotyledon.

    :returns: False when oslo.service's own backends are in use already; they stay in use.
    :raises ActivationError: oslo.service is imported, and its version is not supported.
    """
    if _imported_too_early() is not None:
        return False
    install(deferred=True)
    return True


def is_installed() -> bool:
    """Whether the hook is active in this process."""
    return _finder in sys.meta_path


def aliases() -> dict[str, str]:
    """Names of oslo.service's modules that are replaced, each with its replacement."""
    return dict(_finder.aliases())


def patched_by() -> str | None:
    """Name of the library that has monkey-patched this process, without importing any.

    :returns: ``"eventlet"``, ``"gevent"`` or None.
    """
    for library, module, register in (
        ("eventlet", "eventlet.patcher", "already_patched"),
        ("gevent", "gevent.monkey", "saved"),
    ):
        if getattr(sys.modules.get(module), register, None):
            return library
    return None


def refuse_if_monkey_patched() -> None:
    """Check that native threads can work here, for callers that start some or fork.

    :raises ActivationError: eventlet or gevent has replaced the primitives that native threads
        need. A test suite may do that and import what it likes; nothing can be launched there.
    """
    library = patched_by()
    if library is not None:
        raise ActivationError(
            f"osloxide cannot work in process {_pid()}: {library} has monkey-patched it, and "
            "native threads would wait on green primitives; do not patch (set "
            "OS_<PROJECT>_DISABLE_EVENTLET_PATCHING=1 where the project knows it), or start "
            "this service without osloxide"
        )


def require_supported_version() -> str:
    """Read the version of the installed oslo.service.

    :raises ActivationError: it is not installed, or not supported.
    """
    return _finder.check_version()


def announce() -> None:
    """Log once, at INFO, what is served by whom. Does nothing until INFO is being logged.

    The hook is usually installed long before the service configures logging, so launchers call
    this again when they start.
    """
    if _finder.announced or _finder.version is None or not is_installed():
        return
    import logging

    log = logging.getLogger("osloxide")
    if not log.isEnabledFor(logging.INFO):
        return
    from importlib import metadata

    _finder.announced = True
    log.info(
        "osloxide %s serves the backends and the WSGI server of oslo.service %s",
        metadata.version("osloxide"),
        _finder.version,
    )


def check_version(version: str) -> tuple[int, ...]:
    """Compare a version of oslo.service with the supported range.

    :returns: its release numbers.
    :raises ActivationError: it is too old, or newer than what was tested.
    """
    release: list[int] = []
    for piece in version.split("."):
        if not piece.isdigit():
            break
        release.append(int(piece))
    oldest = ".".join(map(str, OLDEST_SUPPORTED))
    limit = ".".join(map(str, FIRST_UNSUPPORTED))
    if tuple(release) < OLDEST_SUPPORTED:
        raise ActivationError(
            f"osloxide cannot replace oslo.service {version}: it has no threading backend "
            "whose place could be taken; "
            f"install oslo.service >= {oldest}, < {limit}"
        )
    if tuple(release) >= FIRST_UNSUPPORTED:
        raise ActivationError(
            f"osloxide cannot replace oslo.service {version}: it was tested with "
            f">= {oldest}, < {limit} only; install such a version or a newer osloxide"
        )
    return tuple(release)


class _AliasFinder:
    """Meta-path finder that knows a few names and returns None for everything else."""

    def __init__(self) -> None:
        self.tolerate_eventlet = False
        self.announced = False
        self.version: str | None = None
        self._release: tuple[int, ...] = ()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        amend = _AMENDMENTS.get(fullname)
        if amend is not None:
            return self._amended_spec(amend, fullname, path, target)
        if not fullname.startswith("oslo_service"):
            return None
        if fullname == "oslo_service":
            self.check_version()
            return None
        return self._alias_spec(fullname)

    def check_version(self) -> str:
        """Read oslo.service's version from its distribution and refuse what was not tested."""
        from importlib import metadata

        try:
            version = metadata.version("oslo.service")
        except metadata.PackageNotFoundError:
            raise ActivationError(
                "osloxide cannot tell the version of oslo.service: no distribution of that name is "
                "installed; install oslo.service with pip or from a distribution package"
            ) from None
        self._release = check_version(version)
        self.version = version
        return version

    def aliases(self) -> dict[str, str]:
        """The roots of the replaced module trees, with their replacements."""
        private = not self._release or self._release >= _PRIVATE_NAMES_SINCE
        prefix = "oslo_service.backend._" if private else "oslo_service.backend."
        table = {f"{prefix}{name}": f"osloxide.backends.{name}" for name in _BACKENDS}
        table["oslo_service.wsgi"] = "osloxide.wsgi"
        return table

    def refuse_if_monkey_patched(self) -> None:
        if not self.tolerate_eventlet:
            refuse_if_monkey_patched()

    def _alias_spec(self, fullname: str) -> ModuleSpec | None:
        """The spec of an aliased module, or None when no such module exists in osloxide.

        mock and pkgutil resolve ``package.module.Class`` by importing ever longer prefixes, so
        names that are no modules arrive here in normal use.
        """
        for alias, real in self.aliases().items():
            if fullname != alias and not fullname.startswith(alias + "."):
                continue
            self.refuse_if_monkey_patched()
            from importlib.util import find_spec

            name = real + fullname[len(alias) :]
            spec = find_spec(name)
            if spec is None:
                return None
            announce()
            return ModuleSpec(
                fullname,
                _AliasLoader(name),  # type: ignore[arg-type] # a Loader without the base class
                origin=spec.origin,
                is_package=spec.submodule_search_locations is not None,
            )
        return None

    def _amended_spec(
        self,
        amend: Callable[[Any], None],
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None,
    ) -> ModuleSpec | None:
        """The real spec of a module that *amend* completes after its body ran."""
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    # INVARIANT: the import system and importlib.reload() only use the two methods
                    # that every PEP 451 loader has.
                    spec.loader = _AmendingLoader(spec.loader, amend)  # type: ignore[assignment]
                return spec
        return None


class _AliasLoader:
    """Hands out the module that osloxide already has under its own name."""

    def __init__(self, real: str) -> None:
        self._real = real
        self._real_spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from importlib import import_module

        try:
            module = import_module(self._real)
        except ModuleNotFoundError as error:
            # oslo.service reports that class as "Unknown backend", whatever it was that is missing.
            raise ImportError(
                f"osloxide cannot serve {spec.name}: {error}; reinstall osloxide and what it "
                "depends on",
                name=error.name,
            ) from error
        self._real_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just replaced the module's spec by the alias's. Put it back:
        # importlib.reload() goes by it, and must find the code.
        if self._real_spec is not None:
            module.__spec__ = self._real_spec


class _AmendingLoader:
    """Runs a module's own loader, then an amendment."""

    def __init__(self, loader: Any, amend: Callable[[Any], None]) -> None:
        self._loader = loader
        self._amend = amend

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        # Leave no trace: inspect and pkgutil want the real loader.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._amend(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _imported_too_early() -> str | None:
    """The first aliased name that somebody has already imported from oslo.service, if any."""
    for alias, real in _finder.aliases().items():
        module = sys.modules.get(alias)
        if module is not None and module is not sys.modules.get(real):
            return alias
    return None


def _prefer_threading(backend: Any) -> None:
    """Make THREADING the default, unless somebody has chosen already.

    Without this, importing oslo.messaging selects EVENTLET, and a later
    ``init_backend(THREADING)`` of the service fails.
    """
    chosen = getattr(backend, "_cached_backend_type", None)
    if chosen is None and getattr(backend, "_backend_hook", None) is None:
        backend.register_backend_default_hook(lambda: backend.BackendType.THREADING)


def _amend_messaging(module: Any) -> None:
    """Let oslo.messaging's servers run on osloxide (see :mod:`osloxide.messaging.hook`)."""
    from osloxide.messaging import hook

    hook.amend(module)


def _amend_nova(module: Any) -> None:
    """Let nova's API serve without eventlet (see :mod:`osloxide.adapters.nova`)."""
    from osloxide.adapters import nova

    nova.amend(module)


def _amend_context(module: Any) -> None:
    """Tell coroutines apart (see :mod:`osloxide.adapters.context`)."""
    from osloxide.adapters import context

    context.amend(module)


_AMENDMENTS: dict[str, Callable[[Any], None]] = {
    "amqp.connection": _amend_messaging,
    "oslo_context.context": _amend_context,
    "oslo_service.backend": _prefer_threading,
    "nova.compute.multi_cell_list": _amend_nova,
    "nova.context": _amend_nova,
    "nova.service": _amend_nova,
    "nova.utils": _amend_nova,
    "oslo_messaging._drivers.amqpdriver": _amend_messaging,
    "oslo_messaging._drivers.impl_rabbit": _amend_messaging,
    "oslo_messaging._drivers.pool": _amend_messaging,
    "oslo_messaging.rpc.dispatcher": _amend_messaging,
    "oslo_messaging.rpc.server": _amend_messaging,
    "oslo_messaging.server": _amend_messaging,
}
"""What is done to a module of somebody else right after its own body ran."""


def _pid() -> int:
    import os

    return os.getpid()


_finder = _AliasFinder()
