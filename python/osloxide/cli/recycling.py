"""After what ``osloxide serve`` replaces a worker that is well.

Owns the limits of a worker's life as the options give them, and the chance by which they differ
from worker to worker. The worker counts, and asks its parent for a successor; nothing is lost.

Rules: gunicorn's settings for the names, uWSGI's ``max-worker-lifetime`` and ``reload-on-rss``.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from osloxide import _native
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    import argparse

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
_MOST_BYTES = 2**63 - 1
_KINDS = ("rss", "pss", "uss")


def memory(text: str) -> tuple[str, int]:
    """Kind and bytes of ``[KIND:]SIZE``.

    :raises ValueError: it is none.
    """
    kind, colon, size = text.rpartition(":")
    found = re.fullmatch(r"(\d{1,999})([KMG]?)(?:i?B)?", size.strip(), re.ASCII | re.IGNORECASE)
    if found is None or (colon and kind not in _KINDS):
        raise ValueError(
            f"{text!r} is no amount of memory; give bytes, or a number with K, M or G, for example "
            "512M, behind rss:, pss: or uss: if it is not the resident memory that counts"
        )
    amount = int(found[1]) << _UNITS[found[2].upper()]
    if amount > _MOST_BYTES:
        raise ValueError(f"{text!r} is more memory than there can be; give {_MOST_BYTES} at most")
    return kind or "rss", amount


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be meant.

    :raises CommandError: an option without the one that it belongs to, or two in the wrong order.
    """
    for limit in ("max_requests", "max_worker_lifetime"):
        jitter = getattr(options, f"{limit}_jitter")
        if jitter and not getattr(options, limit):
            name = limit.replace("_", "-")
            raise CommandError(f"--{name}-jitter {jitter} needs --{name}; give both")
    if options.max_stuck_threads and not options.request_timeout:
        raise CommandError(
            f"--max-stuck-threads {options.max_stuck_threads} needs --request-timeout; give both"
        )
    if options.request_timeout and 0 < (options.timeout or 0) <= options.request_timeout:
        raise CommandError(
            f"--timeout {options.timeout} replaces the worker before --request-timeout "
            f"{options.request_timeout} can answer a request 504; give --timeout a larger number, "
            "or 0"
        )


def is_wanted(options: argparse.Namespace) -> bool:
    """Whether workers are replaced after some time, work or growth."""
    return bool(
        options.request_timeout
        or options.max_requests
        or options.max_worker_lifetime
        or (options.max_worker_memory and options.max_worker_memory[1])
    )


def limit(options: argparse.Namespace, threads: int) -> None:
    """Set the limits of this worker; called in it, before it serves.

    :param threads: how many requests may be in flight in it.
    """
    kind, size = options.max_worker_memory or ("rss", 0)
    lifetime = options.max_worker_lifetime
    if lifetime:
        lifetime += random.uniform(0, options.max_worker_lifetime_jitter or 0)  # noqa: S311
    requests = options.max_requests
    if requests:
        requests += random.randint(0, options.max_requests_jitter or 0)  # noqa: S311
    _native.limit_worker(
        requests=requests or None,
        lifetime=lifetime or None,
        memory=size or None,
        memory_kind=kind,
        stuck=options.max_stuck_threads or max(1, threads // 10),
    )
