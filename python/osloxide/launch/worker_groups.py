"""The services of one launcher, and how many workers each is to have.

Owns the numbers by which the native supervisor knows them: one group of slots for each service, in
the order in which they were launched. Forks nothing and ends nothing: the supervisor says so.

Rules: docs/lifecycle.md, "Words".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from osloxide import _native
from osloxide.launch import service_name
from osloxide.launch.worker_fork import ServiceWrapper
from osloxide.signals import careful_log

LOG = careful_log.logger(careful_log.OF_PROCESS_LAUNCHER)


class WorkerGroups:
    """The groups of one launcher.

    :param supervisor: hears of each.
    """

    def __init__(self, supervisor: Callable[[], _native.Supervisor]) -> None:
        self._supervisor = supervisor
        self._wrappers: list[ServiceWrapper] = []
        self._adding = threading.RLock()
        self._difference = 0

    def __bool__(self) -> bool:
        return bool(self._wrappers)

    def __getitem__(self, group: int) -> ServiceWrapper:
        return self._wrappers[group]

    def name_of(self, group: int) -> str:
        """What the log calls its service."""
        return service_name.of(self._wrappers[group].service)

    def with_workers(self) -> list[ServiceWrapper]:
        """Those that have any: one without could not be launched, or was to have none."""
        return [wrapper for wrapper in self._wrappers if wrapper.workers]

    def add(self, service: Any, workers: int) -> int:
        """Have its workers forked from now on, by the main thread where that supervises already.

        :returns: the number of the group.
        """
        supervisor, wrapper = self._supervisor(), ServiceWrapper(service, workers)
        with self._adding:  # threads may launch at the same time
            self._wrappers.append(wrapper)  # the main thread may fork the first before this returns
            try:
                group = supervisor.add_group(service_name.of(service), workers)
            except BaseException:
                self._wrappers.pop()
                raise
            assert group == len(self._wrappers) - 1
        return group

    def give_up(self, group: int) -> None:
        """It could not be launched; the program may go on and launch it again."""
        self._supervisor().resize(group, 0)
        self._wrappers[group].workers = 0

    def change(self, difference: int) -> None:
        """Have more or fewer workers of the first group that has any, from :meth:`settle` on.

        Signal handlers may call it.
        """
        self._difference += difference

    def settle(self) -> None:
        """Do what :meth:`change` was asked for; one worker stays (main thread only)."""
        difference, self._difference = self._difference, 0
        group = next((at for at, each in enumerate(self._wrappers) if each.workers), None)
        if not difference or group is None:
            return
        wrapper, name = self._wrappers[group], self.name_of(group)
        wanted = max(1, wrapper.workers + difference)
        if wanted == wrapper.workers:
            LOG.info("%s keeps its only worker", name)
            return
        try:
            self._supervisor().resize(group, wanted)
        except ValueError as error:
            LOG.warning("%s keeps %d workers: %s", name, wrapper.workers, error)
            return
        LOG.info("%s has %d workers from now on, not %d", name, wanted, wrapper.workers)
        wrapper.workers = wanted
