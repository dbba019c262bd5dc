"""What launchers are told: a plain object of a command, or a service's oslo.config.

Owns the one door between the two. oslo.config, and with it dozens of modules that a parent of
workers has no use for, is imported where a caller brings its options and not before.

Rules: the names are oslo.config's, so that launchers read either object in the same way.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from osloxide.signals import careful_log


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """The group ``osloxide`` of :class:`Settings`."""

    worker_timeout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a command tells its launcher. There are no files, so a reload reads none."""

    #: oslo.service's default.
    graceful_shutdown_timeout: int = 60
    osloxide: WorkerSettings = dataclasses.field(default_factory=WorkerSettings)


def register_options(conf: Any) -> None:
    """See :func:`osloxide.launch.configuration.register_options`."""
    if not isinstance(conf, Settings):
        from osloxide.launch import configuration

        configuration.register_options(conf)


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


def worker_timeout(conf: Any) -> float:
    """Seconds after which a worker that does not get on is replaced; 0 means never."""
    timeout: float = conf.osloxide.worker_timeout
    return timeout


def log_options(conf: Any, log: careful_log.CarefulLogger) -> None:
    """See :func:`osloxide.launch.configuration.log_options`; a command's are not logged."""
    if not isinstance(conf, Settings):
        from osloxide.launch import configuration

        configuration.log_options(conf, log)


def reload(conf: Any, restart_method: str) -> bool:
    """See :func:`osloxide.launch.configuration.reload`."""
    if isinstance(conf, Settings):
        return True
    from osloxide.launch import configuration

    return configuration.reload(conf, restart_method)
