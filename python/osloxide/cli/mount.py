"""``osloxide serve --mount /PREFIX``: one application below a path instead of at the root.

Owns the split of a request's path between ``SCRIPT_NAME`` and ``PATH_INFO``, and the answer to what
lies outside. Looks at no file and loads nothing.

Rules: PEP 3333 (``SCRIPT_NAME``, ``PATH_INFO``); uWSGI's ``mount`` with ``manage-script-name`` and
mod_wsgi's ``WSGIScriptAlias`` have the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_NOT_FOUND = b"Nothing is mounted at this path.\n"


def prefix(text: str) -> str:
    """The prefix as ``SCRIPT_NAME`` has it: with a slash in front, without one at its end.

    :raises ValueError: *text* is no path below the root.
    """
    found = text.rstrip("/")
    if not found.startswith("/") or "//" in found or "?" in found or "#" in found:
        raise ValueError(f"'{text}' is no prefix of a path; give one such as /placement")
    return found


def mounted(application: Application, at: str) -> Application:
    """*application* for requests at *at* or below it; 404 for all others.

    A proxy that speaks uwsgi may have split the path already: what counts is the whole of it.

    :param at: what :func:`prefix` returned.
    """
    # PEP 3333: bytes of the path, decoded as Latin-1.
    at = at.encode().decode("latin-1")

    def below(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        rest = path[len(at) :]
        if not path.startswith(at) or (rest and not rest.startswith("/")):
            start_response(
                "404 Not Found",
                [("Content-Type", "text/plain"), ("Content-Length", str(len(_NOT_FOUND)))],
            )
            return [_NOT_FOUND]
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = at, rest
        return application(environ, start_response)

    return below
