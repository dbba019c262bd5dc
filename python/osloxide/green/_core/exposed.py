"""Names that eventlet's modules have because they import them; and the error for the others.

Programs write ``eventlet.wsgi.BaseHTTPServer`` or ``eventlet.greenthread.GreenletExit`` and get
what eventlet's module has imported for its own use. Owns the table of these names, each of which is
found when it is first asked for, and what a module says of a name that it does not have. This
package itself uses no name of the table.

Rules: PEP 562 (``__getattr__`` of a module); the modules of eventlet 0.41.3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

_ROOT = "osloxide.green"

_TABLE = {
    "": "os sys warnings greenlet",
    "asyncio": "asyncio GreenletExit=greenlet: spawn=.greenthread: getcurrent=greenlet:"
    " Event=.event: get_hub=.hubs:",
    "backdoor": "errno socket sys eventlet hubs=.hubs greenlets=.support.greenlets"
    " InteractiveConsole=code: get_errno=.support:",
    "convenience": "ssl=.green.ssl",
    "corolocal": "greenthread=.greenthread",
    "db_pool": "deque=collections: contextmanager=contextlib:",
    "event": "hubs=.hubs greenlet=.support.greenlets",
    "green.BaseHTTPServer": "SocketServer=.green.SocketServer",
    "green.CGIHTTPServer": "BaseHTTPServer=.green.BaseHTTPServer"
    " SimpleHTTPServer=.green.SimpleHTTPServer",
    "green.OpenSSL.SSL": "orig_SSL=OpenSSL.SSL trampoline=.hubs: get_errno=.support:",
    "green.Queue": "queue=.queue",
    "green.SimpleHTTPServer": "BaseHTTPServer=.green.BaseHTTPServer",
    "green.SocketServer": "patcher=.patcher select=.green.select",
    "green._socket_nodns": "eventlet greenio=.greenio",
    "green.asynchat": "sys socket=.green.socket",
    "green.builtin": "hubs=.hubs hub=.hubs.hub sys slurp_properties=.patcher:",
    "green.http.client": "os=.green.os Iterable=collections.abc:",
    "green.http.cookiejar": "http_client=.green.http.client",
    "green.http.server": "argparse subprocess=.green.subprocess http_client=.green.http.client",
    "green.httplib": "patcher=.patcher client=.green.http.client os=.green.os"
    " Iterable=collections.abc:",
    "green.os": "os_orig=os errno socket greenio=.greenio greenthread=.greenthread hubs=.hubs"
    " S_ISREG=stat: get_errno=.support: slurp_properties=.patcher:",
    "green.profile": "profile_orig=profile functools greenthread=.greenthread patcher=.patcher"
    " thread=_thread slurp_properties=.patcher:",
    "green.select": "eventlet get_hub=.hubs:",
    "green.socket": "eventlet greenio=.greenio slurp_properties=.patcher:",
    "green.ssl": "greenio=.greenio hubs=.hubs orig_socket=socket slurp_properties=.patcher:"
    " GreenSocket=.greenio: trampoline=.hubs: get_errno=.support: contextmanager=contextlib:"
    " CONNECT_ERR=.greenio.base: CONNECT_SUCCESS=.greenio.base: timeout_exc=builtins:TimeoutError"
    " green_create_default_context=.green.ssl:create_default_context"
    " _original_sslsocket=ssl:SSLSocket _original_sslcontext=ssl:SSLContext",
    "green.subprocess": "eventlet greenio=.greenio patcher=.patcher subprocess_orig=subprocess"
    " FunctionType=types:",
    "green.thread": "greenlet=.support.greenlets greenthread=.greenthread sys"
    " with_timeout=.timeout:",
    "green.threading": "eventlet thread=.green.thread time=.green.time"
    " greenlet=.support.greenlets namedtuple=collections:",
    "green.time": "slurp_properties=.patcher:",
    "green.urllib": "patcher=.patcher socket=.green.socket time=.green.time"
    " httplib=.green.httplib ftplib=.green.ftplib",
    "green.urllib.error": "response=.green.urllib.response",
    "green.urllib.request": "patcher=.patcher http_client=.green.http.client",
    "greenio.base": "sys eventlet trampoline=.hubs:",
    "greenio.py3": "errno FunctionType=types: DEFAULT_BUFFER_SIZE=io: trampoline=.hubs:"
    " _original_os=os _original_socket=socket",
    "greenpool": "eventlet",
    "greenthread": "deque=collections: GreenletExit=greenlet:",
    "hubs": "inspect warnings threading patcher=.patcher greenlet=.support.greenlets"
    " timeout=.timeout",
    "hubs.asyncio": "os sys hub=.hubs.hub",
    "hubs.epolls": "errno select patcher=.patcher support=.support hub=.hubs.hub poll=.hubs.poll",
    "hubs.hub": "heapq math eventlet timer=.hubs.timer monotonic=time:",
    "hubs.kqueue": "os sys select time patcher=.patcher support=.support hub=.hubs.hub",
    "hubs.poll": "errno sys select time patcher=.patcher support=.support hub=.hubs.hub",
    "hubs.selects": "errno sys select time patcher=.patcher support=.support hub=.hubs.hub",
    "hubs.timer": "traceback io eventlet greenlet=.support.greenlets",
    "lock": "hubs=.hubs",
    "patcher": "eventlet pkgutil asyncio_module=asyncio register_at_fork=os:",
    "pools": "contextmanager=contextlib:",
    "queue": "sys traceback Stdlib_Queue=queue get_hub=.hubs:",
    "semaphore": "eventlet hubs=.hubs",
    "support": "sys",
    "support.greendns": "re struct sys eventlet patcher=.patcher os=.green.os time=.green.time"
    " select=.green.select ssl=.green.ssl _socket_nodns=.green._socket_nodns",
    "timeout": "eventlet greenlet=.support.greenlets get_hub=.hubs:",
    "tpool": "eventlet greenio=.greenio greenthread=.greenthread patcher=.patcher"
    " timeout=.timeout socket Queue_module=queue",
    "websocket": "string time Random=random: SocketError=builtins:OSError md5=hashlib:"
    " sha1=hashlib:",
    "wsgi": "types eventlet BaseHTTPServer=.green.BaseHTTPServer socket=.green.socket",
}
"""By module of eventlet, words of the form ``name=module:attribute``. A leading dot stands for
eventlet; an attribute of the same name and a module of the same name need not be repeated."""


def complete(module: ModuleType) -> None:
    """Give a module that serves one of eventlet's the names of the table, and the error."""
    name = module.__name__.removeprefix(_ROOT).lstrip(".")
    if not name.startswith("_core"):
        module.__getattr__ = _finder(module, name)  # type: ignore[method-assign]


def _finder(module: ModuleType, name: str) -> Callable[[str], Any]:
    served = f"eventlet.{name}".rstrip(".") if name != "greenlet" else name
    words = dict(_entry(word) for word in _TABLE.get(name, "").split())

    def find(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(f"module {served!r} has no attribute {attribute!r}")
        place, member = words.get(attribute, ("", ""))
        if place:
            found: Any = import_module(place)
            value = getattr(found, member) if member else found
        elif hasattr(module, "__path__") and not attribute.startswith("_"):
            # Importing eventlet loads most of its modules.
            try:
                value = import_module(f"{module.__name__}.{attribute}")
            except ImportError as error:
                if error.name != f"{module.__name__}.{attribute}":
                    # It is there, and what it stands on is not.
                    raise AttributeError(f"{served}.{attribute}: {error}") from error
                raise _absent(served, attribute) from None
        else:
            raise _absent(served, attribute)
        setattr(module, attribute, value)
        return value

    return find


def _entry(word: str) -> tuple[str, tuple[str, str]]:
    name, _, target = word.partition("=")
    place, colon, member = (target or name).partition(":")
    place = _ROOT + place if place.startswith(".") else place
    places = {"eventlet": _ROOT, "greenlet": f"{_ROOT}.greenlet"}
    return name, (places.get(place, place), member or (name if colon else ""))


def _absent(served: str, attribute: str) -> Exception:
    from osloxide.green._version import __version__  # which this module completes

    text = (
        f"module {served!r} has no attribute {attribute!r} here: osloxide serves eventlet "
        f"{__version__} from native threads and does not have it; run on the real eventlet with "
        "OSLOXIDE_EVENTLET=real if it does"
    )
    if _is_from_import():
        # The interpreter would replace an AttributeError by one that names no remedy.
        return ImportError(text, name=served)
    return AttributeError(text)


def _is_from_import() -> bool:
    """Whether ``from module import attribute`` asks."""
    from opcode import opmap

    frame = sys._getframe(3)
    return frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == opmap["IMPORT_FROM"]
