"""Policy enforcers, made by one thread at a time, and their rules, seen only as a whole.

Owns two amendments. One puts a lock around the function by which a service makes the enforcer of a
process at the first check: it assigns the enforcer first and registers its rules afterwards, so a
thread that comes in between finds one without rules and answers 403, or 500
(``PolicyNotRegistered``). Each check calls the function before it uses the enforcer, and so waits
for the rules. Services that take a lock themselves, assign last, or make their enforcer at start
are not in the table.

The other is for all of them: an edited policy file is read again by the request that comes next. It
empties the rules first and fills them afterwards, and a check of another thread in between would
find its rule missing and refuse. Here it fills a copy, and puts that in their place at the end.

Under eventlet nothing came in between: neither reads anything but files.

Rules: the services' ``policy`` modules as the table names them; oslo_policy/policy.py
(``Enforcer.load_rules``, ``set_rules``, ``enforce``).
"""

from __future__ import annotations

import functools
from threading import RLock
from typing import TYPE_CHECKING, Any

from osloxide.activation.amendments import relies_on

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


def _made_by(name: str) -> Callable[[Any], None]:
    """The amendment for modules whose function *name* makes the enforcer unless there is one."""

    @relies_on(name)
    def amend(module: ModuleType) -> None:
        make = getattr(module, name)
        # Loading rules may check a policy, which asks for the enforcer again.
        lock = RLock()

        @functools.wraps(make)
        def make_alone(*arguments: object, **options: object) -> object:
            with lock:
                return make(*arguments, **options)

        setattr(module, name, make_alone)

    return amend


by_init = _made_by("init")
by_getter = _made_by("get_enforcer")
by_private_getter = _made_by("_get_enforcer")
by_check = _made_by("_ensure_enforcer_initialization")


@relies_on("Enforcer.load_rules", "Enforcer.set_rules")
def load_as_a_whole(module: ModuleType) -> None:
    """Let ``oslo_policy.policy.Enforcer`` show the rules of a file once all of them are there."""
    load = module.Enforcer.load_rules
    # Of all enforcers: a process has few, and a load that finds nothing new waits for nothing.
    lock = RLock()

    @functools.wraps(load)
    def load_rules(self: Any, *arguments: object, **options: object) -> None:
        shown = vars(self)
        with lock:
            before = dict(shown)
            filled = object.__new__(type(self))
            vars(filled).update(before)
            load(filled, *arguments, **options)
            for name, value in vars(filled).items():
                if name not in before or before[name] is not value:
                    shown[name] = value

    module.Enforcer.load_rules = load_rules
