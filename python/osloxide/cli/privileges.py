"""The user and the group that ``osloxide serve`` runs as, when root starts it.

Owns the change, which is for ever and comes after everything that only root may do: binding, log
files, the pid file. A process that is not root stays what it is.

Rules: credentials(7), prctl(2).
"""

from __future__ import annotations

import ctypes
import grp
import logging
import os
import pwd
from dataclasses import dataclass

from osloxide.cli.errors import CommandError
from osloxide.server.numbers import whole_number

LOG = logging.getLogger("osloxide.serve")

_PR_SET_DUMPABLE = 4
_LAST_ID = 2**32 - 2
"""The number behind it means "leave alone" (chown(2))."""


def owner(text: str, option: str) -> Identity:
    """``USER``, ``USER:GROUP`` or ``:GROUP``.

    :raises CommandError: there is no such user or group.
    """
    user, _, group = text.partition(":")
    return Identity.of(user, group, option)


def _number(text: str, option: str) -> int | None:
    """The number of a user or a group; None for a name.

    :raises CommandError: the kernel has no such numbers.
    """
    if not text.isascii() or not text.isdigit():
        return None
    if (number := whole_number(text, _LAST_ID)) is None:
        raise CommandError(f"{option} {text} is too large a number; give {_LAST_ID} at most")
    return number


@dataclass(frozen=True)
class Identity:
    """A user and a group by their numbers; None leaves one alone."""

    uid: int | None
    gid: int | None
    name: str | None

    @classmethod
    def of(cls, user: str | None, group: str | None, option: str = "--user") -> Identity:
        """Look the names up; numbers are taken as they are.

        :raises CommandError: there is no such user or group.
        """
        uid, gid, name = None, None, None
        if user:
            uid = _number(user, option)
            try:
                entry = pwd.getpwnam(user) if uid is None else pwd.getpwuid(uid)
                uid, gid, name = entry.pw_uid, entry.pw_gid, entry.pw_name
            except KeyError:
                if uid is None:
                    raise CommandError(
                        f"{option} {user}: there is no such user; create it, or name another one"
                    ) from None
        if group:
            named = "--group" if option == "--user" else option
            number = _number(group, named)
            try:
                gid = grp.getgrnam(group).gr_gid if number is None else number
            except KeyError:
                raise CommandError(
                    f"{named} {group}: there is no such group; create it, or name another one"
                ) from None
        return cls(uid, gid, name)

    def give(self, path: str) -> None:
        """Make the file *path* theirs, where root may.

        :raises CommandError: that is refused.
        """
        if os.geteuid() != 0 or (self.uid is None and self.gid is None):
            return
        try:
            uid, gid = (-1 if number is None else number for number in (self.uid, self.gid))
            os.chown(path, uid, gid)
        except OSError as error:
            raise CommandError(f"cannot give {path} away: {error.strerror}") from error

    def assume(self) -> None:
        """Become them, for ever.

        :raises CommandError: that is refused.
        """
        if self.uid is None and self.gid is None:
            return
        if os.geteuid() != 0:
            if self.uid not in (None, os.geteuid()) or self.gid not in (None, os.getegid()):
                LOG.warning(
                    "only root can change user and group: this process stays uid %d, gid %d",
                    os.geteuid(),
                    os.getegid(),
                )
            return
        try:
            if self.gid is not None:
                if self.name is not None:
                    os.initgroups(self.name, self.gid)
                else:
                    os.setgroups([self.gid])
                os.setgid(self.gid)
            if self.uid is not None:
                os.setuid(self.uid)
        except OSError as error:
            raise CommandError(f"cannot become uid {self.uid}: {error.strerror}") from error
        # The kernel hides /proc of a process that changed its user, and osloxide status reads it.
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
