"""How a subcommand says that it cannot go on."""

from __future__ import annotations

NOT_EXECUTABLE = 126
NOT_FOUND = 127


class CommandError(Exception):
    """Ends the command with a message and an exit status.

    :param message: names the thing, its value and the remedy; one line.
    :param status: exit status, not 0.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
