"""What launchers need from oslo.config: registering options, reading files again, dumping values.

Owns the rule that a broken file changes nothing: the process goes on with the configuration that
it has, and the log says why. Never restarts anything.

Rules: oslo_service._options and oslo_config.cfg.ConfigOpts.{reload,mutate}_config_files.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

from oslo_config import cfg
from oslo_service import _options

from osloxide._typing import override
from osloxide.signals import careful_log
from osloxide.signals.signal_handler import SignalExit

LOG = careful_log.logger(__name__)

GROUP = "osloxide"
OPTIONS = [
    cfg.FloatOpt(
        "worker_timeout",
        default=0.0,
        min=0.0,
        mutable=True,
        help="Seconds after which a worker that was stopped (SIGSTOP), is busy with one and the "
        "same request, or whose interpreter does not run, is ended and replaced, the tracebacks "
        "of its threads in the log. 0, the default, never does that.",
    ),
]
"""Options that oslo.service does not have."""


def list_opts() -> list[tuple[str, list[Any]]]:
    """List :data:`OPTIONS` with their group, as ``oslo-config-generator`` asks for them.

    The namespace is ``osloxide``; oslo.service's own namespaces have the other options.
    """
    return [(GROUP, copy.deepcopy(OPTIONS))]


def register_options(conf: Any) -> None:
    """Register ``log_options``, ``graceful_shutdown_timeout`` and the rest, if they are not yet.

    Options that cannot be honoured are named in a warning when they are set.
    """
    conf.register_opts(_options.service_opts)
    conf.register_opts(_options.eventlet_backdoor_opts)
    conf.register_opts(OPTIONS, group=GROUP)
    for name in ("backdoor_port", "backdoor_socket"):
        if conf[name]:
            LOG.warning(
                "Option %s=%s has no effect: eventlet's backdoor needs green threads; unset it",
                name,
                conf[name],
            )


def grace_seconds(conf: Any) -> float:
    """How long a graceful stop may take, from ``graceful_shutdown_timeout``.

    :returns: seconds; 0 means for ever.
    :raises ValueError: the option is negative.
    """
    seconds = float(conf.graceful_shutdown_timeout or 0)
    if seconds < 0:
        raise ValueError(
            f"graceful_shutdown_timeout is {seconds:g}; give seconds, or 0 to wait for ever"
        )
    return seconds


def log_options(conf: Any, log: careful_log.CarefulLogger) -> None:
    """Write all option values at DEBUG, unless ``log_options`` is off."""
    if conf.log_options and log.isEnabledFor(logging.DEBUG):
        log.debug("Full set of CONF:")
        conf.log_opt_values(log, logging.DEBUG)


def reload(conf: Any, restart_method: str) -> bool:
    """Read the configuration files again.

    :param restart_method: ``"reload"`` replaces all values, ``"mutate"`` only those of options
        that are declared mutable, and tells the hooks.
    :returns: False when that failed; then the configuration is unchanged.
    """
    try:
        if restart_method == "reload":
            # Logs and returns False for a file that it cannot parse.
            done = conf.reload_config_files() is not False
        else:
            with _nothing_cached(conf):
                conf.mutate_config_files()
            done = True
    except SignalExit:
        raise  # a stop, of a parent whose files take too long to be read
    except (Exception, SystemExit):
        LOG.exception("The configuration files could not be read; nothing changes")
        return False
    if not done:
        LOG.error("The configuration files could not be read; nothing changes")
    return done


class _Forgetful(dict[Any, Any]):
    """A cache that keeps nothing."""

    @override
    def __setitem__(self, key: Any, value: Any) -> None:
        pass


@contextlib.contextmanager
def _nothing_cached(conf: Any) -> Iterator[None]:
    """Keep threads that read options at the same time from caching values of the old files.

    oslo.config empties its cache of values *before* it reads the files. A native thread that
    handles a request just then puts the old value back, and it stays: in the mutation hooks (the
    log level would not change) and for good. The attribute is private (oslo.config has no other
    way to it); without it the mutation goes ahead unguarded.
    """
    name = "_ConfigOpts__cache"
    if not isinstance(getattr(conf, name, None), dict):
        yield
        return
    setattr(conf, name, _Forgetful())
    try:
        yield
    finally:
        setattr(conf, name, {})
