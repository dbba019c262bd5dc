"""The log of a launcher's workers: who ended, why, where it was, and what it was busy with.

Owns the texts, oslo.service's own and those that it left out, and what a later text has to know
of an earlier event: how a slot ended last, whom the parent ended itself, the fault dump of each
worker. Decides nothing and signals no process; osloxide.launch.process_launcher calls it with the
native supervisor's commands, and osloxide.launch.worker_fork with each worker that was forked.

Rules: oslo_service.service.ProcessLauncher (oslo.service 4.8) for the first line of each pair.
"""

from __future__ import annotations

import os
import signal
import time

from osloxide import _native
from osloxide.launch import fault_dump
from osloxide.signals import careful_log
from osloxide.signals.signal_names import signal_name

LOG = careful_log.logger(careful_log.OF_PROCESS_LAUNCHER)


class WorkerLog:
    """What is to be said about the workers of one launcher."""

    def __init__(self) -> None:
        self._dumps: dict[int, fault_dump.FaultDump] = {}
        self._last_exits: dict[int, str] = {}
        self._ended_by_us: set[int] = set()

    def forked(self, pid: int, dump: fault_dump.FaultDump) -> None:
        """A worker was forked; *dump* is shared with it."""
        self._dumps[pid] = dump
        LOG.debug("Started child %d", pid)

    def close_inherited(self) -> None:
        """In a worker: give back what the parent shares with others."""
        for dump in self._dumps.values():
            dump.close()

    def exited(self, pid: int, service: str, slot: int, status: int, lifetime: float) -> None:
        """A worker ended.

        :param status: as from ``os.waitpid()``.
        :param lifetime: seconds since its fork.
        """
        self._last_exits[slot] = describe(status)
        if os.WIFSIGNALED(status):
            LOG.info(
                "Child %(pid)d killed by signal %(sig)d", {"pid": pid, "sig": os.WTERMSIG(status)}
            )
        else:
            LOG.info(
                "Child %(pid)s exited with status %(code)d",
                {"pid": pid, "code": os.waitstatus_to_exitcode(status)},
            )
        dump = self._dumps.pop(pid, None)
        if dump is not None:
            text = dump.read()
            dump.close()
            if text:
                LOG.error("Worker %d (pid %d) ended here:\n%s", slot, pid, text)
        expected = status == 0 or pid in self._ended_by_us
        self._ended_by_us.discard(pid)
        if not expected:
            LOG.warning(
                "Worker %d (pid %d) of %s ended after %.1f s: %s",
                slot,
                pid,
                service,
                lifetime,
                describe(status),
            )

    def put_off(self, service: str, slot: int, seconds: float, failures: int, others: int) -> None:
        """A slot waits before its next fork.

        :param others: how many workers there are now.
        """
        LOG.info("Forking too fast, sleeping")
        LOG.error(
            "Worker %d of %s has failed %d times in a row (most recently: %s); its next start is "
            "in %.1f s, %s",
            slot,
            service,
            failures,
            self._last_exits.get(slot, "it could not be forked"),
            seconds,
            "the other workers go on" if others else "no other worker runs",
        )

    def late(self, slot: int, pid: int, waited: float, board: _native.Scoreboard | None) -> None:
        """A worker was still there at its deadline."""
        # One that has hung got SIGABRT before, and it is sent once.
        sent = "SIGKILL" if pid in self._ended_by_us else "SIGABRT, and SIGKILL if it stays"
        self._ended_by_us.add(pid)
        LOG.warning(
            "Worker %d (pid %d) still running %.1f s after SIGTERM with %s; sent %s",
            slot,
            pid,
            waited,
            _work_of(pid, board),
            sent,
        )

    def hung(self, slot: int, pid: int, seconds: float, board: _native.Scoreboard | None) -> None:
        """A worker did nothing for longer than the worker timeout."""
        self._ended_by_us.add(pid)
        LOG.error(
            "Worker %d (pid %d) did nothing for %.1f s, longer than [osloxide] worker_timeout, "
            "with %s; sent SIGABRT, it is replaced",
            slot,
            pid,
            seconds,
            _work_of(pid, board),
        )

    def worn(self, pid: int, service: str, slot: int, why: str, number: int) -> None:
        """A worker has asked to be replaced.

        :param why: requests, lifetime, memory or stuck.
        :param number: requests, seconds, bytes or threads.
        """
        reason = {
            "requests": f"it has served {number} requests",
            "lifetime": f"it has run for {number} s",
            "memory": f"it holds {number / (1 << 20):.1f} MiB of memory",
            "stuck": f"{number} of its threads are stuck in requests that took too long",
        }.get(why, "it asked for that")
        LOG.info(
            "Worker %d (pid %d) of %s is replaced: %s; it serves until its successor is ready",
            slot,
            pid,
            service,
            reason,
        )

    def leaves_first(self, pid: int, service: str, slot: int, waited: float | None) -> None:
        """A worker is told to leave before its successor serves.

        :param waited: seconds for which that has been starting; None where it has failed again.
        """
        if waited is None:
            how = self._last_exits.get(slot, "it could not be forked")
            why = f"two have failed beside it (most recently: {how})"
        else:
            why = f"its successor has been starting beside it for {waited:.1f} s"
        LOG.warning(
            "Worker %d (pid %d) of %s leaves before its successor serves: %s, and may need "
            "something that one process alone can have, such as a port or a lock",
            slot,
            pid,
            service,
            why,
        )


def _work_of(pid: int, board: _native.Scoreboard | None) -> str:
    """What a worker is busy with, in words."""
    rows = [] if board is None else [row for row in board.read() if row["pid"] == pid]
    count = sum(row["in_flight"] for row in rows)
    text = f"{count} request{'' if count == 1 else 's'} in flight"
    oldest = [row["oldest_since"] for row in rows if row["oldest_since"] is not None]
    if oldest:
        text += f", the oldest for {time.monotonic() - min(oldest):.1f} s"
    return text


def describe(status: int) -> str:
    """A wait status in words."""
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        return f"exit status {code}" + (" (see its log above)" if code else "")
    signo = os.WTERMSIG(status)
    text = f"killed by {signal_name(signo)}"
    if signo == signal.SIGKILL:
        text += ", which this process did not send; if the kernel did because memory ran out, its "
        text += "log says 'Out of memory' (dmesg)"
    if os.WCOREDUMP(status):
        text += ", core dumped"
    return text
