"""The table of amendments: what osloxide changes in modules of other projects after their import.

Owns the table, the check that comes before each change, and the record of what was left alone. An
amendment is a function that is given the module; it names with :func:`relies_on` the names that it
uses or replaces and that no documentation promises. Where one of them is missing, the module stays
as its project made it, and the log says which name is missing. Imports no amended project and,
until one of the modules is imported, none of the functions. Loaded at the start of every
interpreter below ``osloxide run``, so it imports nothing that the interpreter has not loaded
already.

Rules: the amended projects' own code; each amendment says why it is needed.
"""

from __future__ import annotations

# Type checkers know the name; importing it would cost every interpreter another 5 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_MESSAGING = "osloxide.messaging.hook"
_NOVA = "osloxide.adapters.nova:amend"
_POLICY = "osloxide.adapters.policy"

TABLE: dict[str, tuple[str, ...]] = {
    "amqp.channel": (
        f"{_MESSAGING}:tell_epochs_apart",
        f"{_MESSAGING}:explain_forbidden_queues",
    ),
    "amqp.connection": (f"{_MESSAGING}:amend_amqp_connection",),
    "amqp.serialization": (f"{_MESSAGING}:read_all_properties",),
    "amqp.transport": (f"{_MESSAGING}:make_tls_natively",),
    "barbican.common.policy": (f"{_POLICY}:by_init",),
    "blazar.policy": (f"{_POLICY}:by_init",),
    "cinder.policy": (f"{_POLICY}:by_init",),
    "magnum.common.policy": (f"{_POLICY}:by_init",),
    "manila.policy": (f"{_POLICY}:by_init",),
    "masakari.policy": (f"{_POLICY}:by_init",),
    "mistral.api.access_control": (f"{_POLICY}:by_check",),
    "neutron.policy": (f"{_POLICY}:by_init",),
    "neutron_lib.policy._engine": (f"{_POLICY}:by_init",),
    "nova.policy": (f"{_POLICY}:by_init",),
    "nova.service": (_NOVA,),
    "oslo_concurrency.lockutils": ("osloxide.adapters.named_locks:amend",),
    "oslo_context.context": ("osloxide.adapters.context:amend",),
    "oslo_log.log": ("osloxide.adapters.log:amend",),
    "oslo_messaging._drivers.amqpdriver": (
        f"{_MESSAGING}:begin_replies_in_child",
        f"{_MESSAGING}:end_lost_calls",
        f"{_MESSAGING}:wake_reply_waiter",
        f"{_MESSAGING}:pace_rpc",
        f"{_MESSAGING}:send_natively",
    ),
    "oslo_messaging._drivers.impl_rabbit": (
        f"{_MESSAGING}:share_heartbeat_thread",
        f"{_MESSAGING}:survive_outages",
        f"{_MESSAGING}:leave_dead_hosts",
        f"{_MESSAGING}:check_tls_options",
        f"{_MESSAGING}:reject_unreadable",
    ),
    "oslo_messaging._drivers.pool": (
        f"{_MESSAGING}:begin_pools_in_child",
        f"{_MESSAGING}:sweep_connections",
    ),
    "oslo_messaging.rpc.client": (f"{_MESSAGING}:amend_rpc_client",),
    "oslo_messaging.rpc.dispatcher": (f"{_MESSAGING}:amend_dispatcher",),
    "oslo_messaging.rpc.server": (f"{_MESSAGING}:amend_rpc_server",),
    "oslo_messaging.server": (
        f"{_MESSAGING}:amend_server",
        f"{_MESSAGING}:end_servers_in_child",
    ),
    "oslo_policy.policy": (f"{_POLICY}:load_as_a_whole",),
    "oslo_service.backend": ("osloxide.activation.default_backend:amend",),
    "oslo_service.backend._common.loopingcall": ("osloxide.backends.shared_names:of_loopingcall",),
    "oslo_service.backend._common.service": ("osloxide.backends.shared_names:of_service",),
    "oslo_service.fixture": ("osloxide.backends.sleep_fixture:amend",),
    "placement.policy": (f"{_POLICY}:by_init",),
    "senlin.common.policy": (f"{_POLICY}:by_private_getter",),
    "sqlalchemy.engine.base": ("osloxide.adapters.database_pools:amend",),
    "tacker.policy": (f"{_POLICY}:by_init",),
    "trove.common.policy": (f"{_POLICY}:by_getter",),
    "watcher.common.policy": (f"{_POLICY}:by_init",),
    "zun.common.policy": (f"{_POLICY}:by_init",),
}
"""Module -> amendments, each ``"package.module:function"``, made in this order after its body ran.
"""

left_alone: dict[str, str] = {}
"""Amendments that were not made in this process: ``"amended.module by package.module:function"`` ->
the reason."""


def relies_on(
    *names: str, wanted: Callable[[], bool] | None = None
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Declare the names of the amended module without which an amendment cannot work.

    :param names: attributes of the module, with dots for attributes of those: ``"Pool.get"``.
        An instance attribute that only ``__init__`` sets cannot be named: the check makes no
        instances.
    :param wanted: whether the operator wants the amendment at all; ``None``: it is always made.
    """

    def declare(amendment: Callable[[Any], None]) -> Callable[[Any], None]:
        amendment.relies_on = names  # type: ignore[attr-defined]
        amendment.wanted = wanted  # type: ignore[attr-defined]
        return amendment

    return declare


def missing_names(amendment: Callable[[Any], None], module: ModuleType) -> list[str]:
    """The names that *amendment* relies on and *module* does not have."""
    return [name for name in getattr(amendment, "relies_on", ()) if not _has(module, name)]


def found(target: str) -> Callable[[Any], None]:
    """The function that *target* names as the tables do, ``"package.module:function"``."""
    from importlib import import_module

    place, _, name = target.partition(":")
    function: Callable[[Any], None] = getattr(import_module(place), name)
    return function


def apply(module: ModuleType) -> None:
    """Make the amendments of *module*, whose body has just run.

    An amendment of which a name is missing is left out, with a warning in the log: a release that
    keeps things elsewhere runs as it is without osloxide. One that is not wanted is not checked.
    """
    for target in TABLE.get(module.__name__, ()):
        amendment = found(target)
        wanted = getattr(amendment, "wanted", None)
        if wanted is not None and not wanted():
            continue
        missing = missing_names(amendment, module)
        if missing:
            _leave_alone(module, target, missing)
        else:
            amendment(module)


def _has(module: Any, dotted: str) -> bool:
    found = module
    for name in dotted.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def _leave_alone(module: ModuleType, target: str, missing: list[str]) -> None:
    import logging

    reason = (
        f"{module.__name__} ({_release_of(module)}) has no {', '.join(missing)}, on which osloxide "
        "relies to change it"
    )
    left_alone[f"{module.__name__} by {target}"] = reason
    logging.getLogger("osloxide").warning(
        "%s; it runs as it is, without the changes of %s; install a newer osloxide, or a release "
        "that osloxide was tested with",
        reason,
        target.partition(":")[0],
    )


def _release_of(module: ModuleType) -> str:
    """Name and version of the distribution that *module* belongs to, as far as they can be told."""
    from importlib import metadata

    package = module.__name__.partition(".")[0]
    for name in (package, package.replace("_", ".")):
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return f"{package}, of an unknown version"
