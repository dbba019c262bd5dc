"""The import hook: oslo.service's implementation modules are served from osloxide.

Owns the checks that guard the hook (oslo.service's version, monkey-patched processes, modules that
were imported too early) and the finder on ``sys.meta_path``. Which modules are replaced is in
osloxide.activation.versions, which modules of others are amended in osloxide.activation.amendments,
who serves eventlet in osloxide.activation.eventlet_names.
It never imports eventlet, never imports the modules it aliases before they are asked for, and
leaves ``oslo_service.backend``, ``_common``, ``_options``, ``opts``, ``exceptions``,
``periodic_task`` and ``systemd`` to oslo.service. Loaded at the start of every interpreter below
``osloxide run``, so it imports nothing that the interpreter has not loaded already.

Rules: PEP 451 (module specs), oslo_service.backend (selection of a backend).
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

from osloxide.activation import amendments, eventlet_names, versions
from osloxide.exceptions import ActivationError

# Type checkers know the name; importing it would cost every interpreter another 5 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any


def install(
    *, deferred: bool = False, tolerate_eventlet: bool = False, serve_eventlet: bool = False
) -> None:
    """Serve oslo.service's backends and ``oslo_service.wsgi`` from osloxide from now on.

    Idempotent. Must run before anything imports ``oslo_service.service``, ``.loopingcall``,
    ``.threadgroup`` or ``.wsgi``: these bind their names once.

    :param deferred: check oslo.service's version when it is imported, and for monkey-patching when
        an aliased module is, instead of now: an interpreter that uses neither pays nothing.
    :param tolerate_eventlet: accept a process that eventlet or gevent has monkey-patched. For test
        suites only: native threads do not switch green ones.
    :param serve_eventlet: serve ``eventlet`` and ``greenlet`` from osloxide.green as well, which is
        what ``osloxide run`` does.
    :raises ActivationError: the process is monkey-patched, oslo.service has an untested version,
        or one of its aliased modules is already imported.
    """
    _finder.tolerate_eventlet = _finder.tolerate_eventlet or tolerate_eventlet
    if not deferred:
        _finder.refuse_if_monkey_patched()
    if not deferred or "oslo_service" in sys.modules:
        _finder.check_version()
    if serve_eventlet:
        eventlet_names.serve()
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
        amendments.apply(backend)
    announce()


def install_if_possible() -> bool:
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
    """Names of oslo.service's modules that are replaced, each with its replacement.

    Those of the installed release, whether or not it has been imported.

    :raises ActivationError: oslo.service is not installed, or its version is not supported.
    """
    _finder.check_version()
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
            "OS_<PROJECT>_DISABLE_EVENTLET_PATCHING=1 where the project knows it), let osloxide "
            "serve eventlet (set OSLOXIDE_EVENTLET=native), or start this service without "
            "osloxide"
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
        if fullname in amendments.TABLE:
            return self._amended_spec(fullname, path, target)
        replacement = eventlet_names.replacement(fullname)
        if replacement is not None:
            return self._served_spec(fullname, replacement, path)
        if eventlet_names.refuses(fullname):
            return self._refused_spec(fullname, path)
        if not fullname.startswith("oslo_service"):
            return None
        if fullname == "oslo_service":
            self.check_version()
            return None
        return self._alias_spec(fullname)

    def check_version(self) -> str:
        """Read oslo.service's version from its distribution and refuse what was not tested."""
        version = versions.installed()
        self._release = versions.check(version)
        self.version = version
        return version

    def aliases(self) -> dict[str, str]:
        """The roots of the replaced module trees, with their replacements."""
        return versions.aliases(self._release)

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

    def _served_spec(
        self, fullname: str, name: str, path: Sequence[str] | None
    ) -> ModuleSpec | None:
        """The spec of a module of eventlet or greenlet, which is one of osloxide.green.

        :raises ImportError: there is no such module.
        """
        from importlib.machinery import PathFinder
        from importlib.util import find_spec

        if fullname == name:
            spec = PathFinder.find_spec(fullname, path)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _AmendingLoader(  # type: ignore[assignment] # as above
                        spec.loader, eventlet_names.adopt
                    )
                return spec
        else:
            try:
                spec = find_spec(name)
            except ModuleNotFoundError:  # a submodule of what is no package
                spec = None
        if spec is None:
            raise eventlet_names.refuse(fullname)
        return ModuleSpec(
            fullname,
            _AliasLoader(name),  # type: ignore[arg-type] # a Loader without the base class
            origin=spec.origin,
            is_package=spec.submodule_search_locations is not None,
        )

    def _refused_spec(self, fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
        """The spec of an installed module that may be found, and raises when it is imported."""
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path)
        if spec is not None:
            spec.loader = _RefusingLoader()  # type: ignore[assignment] # as above
        return spec

    def _amended_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        """The real spec of a module that is amended after its body ran."""
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    # INVARIANT: the import system and importlib.reload() only use the two methods
                    # that every PEP 451 loader has.
                    spec.loader = _AmendingLoader(spec.loader)  # type: ignore[assignment]
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
            # oslo.service reports every missing module as "Unknown backend".
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


class _RefusingLoader:
    """Raises instead of running a module's body."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        raise eventlet_names.refuse_linked()

    def exec_module(self, module: ModuleType) -> None:
        raise eventlet_names.refuse_linked()


class _AmendingLoader:
    """Runs a module's own loader, then *amend*: the amendments, unless said otherwise."""

    def __init__(self, loader: Any, amend: Callable[[Any], None] = amendments.apply) -> None:
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
    """The first aliased name that is already imported from oslo.service, if any."""
    for alias, real in _finder.aliases().items():
        module = sys.modules.get(alias)
        if module is not None and module is not sys.modules.get(real):
            return alias
    return None


def _pid() -> int:
    import os

    return os.getpid()


_finder = _AliasFinder()
