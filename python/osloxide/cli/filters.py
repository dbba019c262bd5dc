"""What stands between the server and the application of ``osloxide serve``.

Owns headers that are added or taken out, and files of ``--static-map``. An application for which
none of this is asked is called by the server itself.

Rules: PEP 3333 (middleware; ``wsgi.file_wrapper``), RFC 9110 (conditional requests).
"""

from __future__ import annotations

import math
import mimetypes
import os
import stat
import threading
from collections.abc import Callable, Iterable
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from osloxide.cli import contradictions
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    import argparse

    Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_COMPRESSED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}

_request = threading.local()
"""Of the request that this thread handles: its input, and what the application notes about it."""


def check(options: argparse.Namespace) -> None:
    """Refuse directories of ``--static-map`` that are none, or that this user may not enter.

    To list a directory is a right of its own (path_resolution(7)); serving files does not need it.

    :raises CommandError: names the prefix, the directory and the remedy.
    """
    if not contradictions.is_given(options, "static_map"):
        return
    for prefix, directory in options.static_map:
        try:
            os.stat(os.path.join(directory, "."))
        except OSError as error:
            raise CommandError(
                f"--static-map {prefix}={directory}: {error.strerror}; create the directory, or "
                "name one that this user may enter"
            ) from error


def current_input() -> Any:
    """``wsgi.input`` of the request that this thread handles, or None."""
    return getattr(_request, "input", None)


def current_notes() -> dict[str, bytes]:
    """What the application has noted about the request that this thread handles, by name.

    Blank at the beginning of each request, and outside of one.
    """
    notes: dict[str, bytes] | None = getattr(_request, "notes", None)
    return {} if notes is None else notes


class Filters:
    """Made before the fork, from the options of the command.

    :param keeps_input: whether :func:`current_input` is asked for.
    """

    def __init__(self, options: argparse.Namespace, *, keeps_input: bool) -> None:
        self._added: list[tuple[str, str]] = options.add_header or []
        self._removed = {name.lower() for name in options.remove_header or ()}
        self._static = [StaticMap(*pair) for pair in options.static_map or ()]
        self._keeps_input = keeps_input

    def wrap(self, application: Application) -> Application:
        """The application as the server calls it."""
        has_work = self._added or self._removed or self._static or self._keeps_input
        if not has_work:
            return application

        def filtered(
            environ: dict[str, Any], start_response: Callable[..., Any]
        ) -> Iterable[bytes]:
            _request.input, _request.notes = environ["wsgi.input"], {}
            respond = self._responder(start_response)
            for mapped in self._static:
                if (found := mapped.answer(environ, respond)) is not None:
                    return found
            return application(environ, respond)

        return filtered

    def _responder(self, start_response: Callable[..., Any]) -> Callable[..., Any]:
        if not (self._added or self._removed):
            return start_response

        # The names are those by which PEP 3333 has them: an application may give them so.
        def respond(
            status: str, response_headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Any:
            kept = [pair for pair in response_headers if pair[0].lower() not in self._removed]
            return start_response(status, [*kept, *self._added], exc_info)

        return respond


def _precondition(environ: dict[str, Any], changed: int) -> str | None:
    """The status that the request's conditions demand instead of the file.

    Files have no entity tag, so that no tag matches, and ``*`` does. A date that is none is
    ignored. Rules: RFC 9110 section 13.2.2.

    :param changed: when the file was changed, in seconds since the epoch.
    """
    if (tags := environ.get("HTTP_IF_MATCH")) is not None:
        if tags.strip() != "*":
            return "412 Precondition Failed"
    elif changed > _seconds(environ.get("HTTP_IF_UNMODIFIED_SINCE"), math.inf):
        return "412 Precondition Failed"
    if (tags := environ.get("HTTP_IF_NONE_MATCH")) is not None:
        return "304 Not Modified" if tags.strip() == "*" else None
    is_known = changed <= _seconds(environ.get("HTTP_IF_MODIFIED_SINCE"), -math.inf)
    return "304 Not Modified" if is_known else None


def _seconds(date: str | None, otherwise: float) -> float:
    """A date of HTTP in seconds since the epoch; *otherwise*, if it is none."""
    if not date or not date.isascii():
        return otherwise
    try:
        found = parsedate_to_datetime(date)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return otherwise


def _described(name: str) -> list[tuple[str, str]]:
    """The headers that say what a file is.

    One that is compressed is just that: with a Content-Encoding, clients would unpack an archive
    that their users asked for. Only pictures of ``.svgz`` are never wanted otherwise.
    """
    kind, encoding = mimetypes.guess_type(name)
    if encoding is not None and name.endswith(".svgz"):
        return [("Content-Type", "image/svg+xml"), ("Content-Encoding", encoding)]
    if encoding is not None:
        kind = _COMPRESSED.get(encoding)
    return [("Content-Type", kind or "application/octet-stream")]


class StaticMap:
    """Files below a directory, under a prefix of the path.

    :param prefix: begins with a slash; ``/static`` holds for ``/static/a``, not for ``/statics``.
    :param directory: nothing outside of it is ever sent, whichever links lie in it.
    """

    def __init__(self, prefix: str, directory: str) -> None:
        self._prefix = prefix.rstrip("/") + "/"
        self._directory = os.path.realpath(directory)

    def answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes] | None:
        """Send the file that the request names; None when there is none: the application's turn."""
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or not path.startswith(self._prefix):
            return None
        # PEP 3333: bytes of the path, decoded as Latin-1.
        relative = os.fsdecode(path[len(self._prefix) :].encode("latin-1", "replace"))
        descriptor = self.open(relative)
        if descriptor is None:
            return None
        status = os.fstat(descriptor)
        changed = int(status.st_mtime)
        headers = [("Last-Modified", formatdate(changed, usegmt=True))]
        if (refusal := _precondition(environ, changed)) is not None:
            os.close(descriptor)
            start_response(refusal, headers)
            return []
        headers += _described(relative)
        headers.append(("Content-Length", str(status.st_size)))
        start_response("200 OK", headers)
        if environ["REQUEST_METHOD"] == "HEAD":
            os.close(descriptor)
            return []
        found: Iterable[bytes] = environ["wsgi.file_wrapper"](os.fdopen(descriptor, "rb"))
        return found

    def open(self, relative: str) -> int | None:
        """A descriptor of the regular file *relative*, or None."""
        if "\0" in relative or ".." in relative.split("/"):
            return None
        try:
            descriptor = os.open(
                os.path.join(self._directory, relative.lstrip("/")),
                os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY,
            )
        except OSError:
            return None
        # Asked of what was opened: a link that is replaced after a check has no effect.
        place = os.path.realpath(f"/proc/self/fd/{descriptor}")
        inside = place.startswith(self._directory.rstrip("/") + "/")
        if inside and stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None
