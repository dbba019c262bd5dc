"""neutron's and neutron-lib's policy enforcers, made by one thread at a time.

Owns a lock around the function that makes the enforcer of a process. It assigns the enforcer first
and loads its rules afterwards, so a thread that comes meanwhile finds one without rules and answers
403. Under eventlet nothing came between, and uWSGI's files for neutron have one thread in a worker.
Each check calls the function before it uses the enforcer, and so waits for the rules.

Rules: neutron/policy.py and neutron_lib/policy/_engine.py (``init``).
"""

from __future__ import annotations

import functools
from threading import RLock
from types import ModuleType

from osloxide.activation.amendments import relies_on


@relies_on("init")
def amend(module: ModuleType) -> None:
    """Let threads of *module* make its enforcer one after the other."""
    make = module.init
    # Loading rules may check a policy, which asks for the enforcer again.
    lock = RLock()

    @functools.wraps(make)
    def init(*arguments: object, **options: object) -> object:
        with lock:
            return make(*arguments, **options)

    module.init = init  # type: ignore[attr-defined]
