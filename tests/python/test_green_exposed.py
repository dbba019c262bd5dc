"""Every public name of eventlet's modules is served, or refused with the remedy.

That holds for names that a module of eventlet has because it imports them, which programs use too.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from _children import run_python

ACTIVE = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
"""

REAL = """
import __future__, importlib, json, pkgutil, warnings
warnings.simplefilter("ignore")
import eventlet
loaded = [name for name in __import__("sys").modules if name.startswith("eventlet.")]
names = {}
places = [m.name for m in pkgutil.walk_packages(eventlet.__path__, "eventlet.", lambda _: None)]
for place in ["eventlet", "greenlet", *places]:
    try:
        module = importlib.import_module(place)
    except Exception:
        continue
    names[place] = [
        name for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, __future__._Feature)
    ]
print(json.dumps([loaded, names]))
"""

REFUSED = {
    "a hub's loop is not served": {
        "eventlet.asyncio": {"AsyncioHub"},
        "eventlet.hubs": {"builtin_hub_modules"},
        "eventlet.hubs.hub": {"alarm_itimer", "arm_alarm", "noop"},
        "eventlet.hubs.selects": {"BAD_SOCK"},
    },
    "the backdoor is refused": {"eventlet.backdoor": {"FileProxy", "SocketConsole"}},
    "the C library's resolver is used": {
        "eventlet.support.greendns": {
            "DNS_QUERY_TIMEOUT", "EAI_EAGAIN_ERROR", "EAI_NODATA_ERROR", "EAI_NONAME_ERROR",
            "HOSTS_TTL", "HostsAnswer", "HostsResolver", "ResolverProxy", "compute_expiration",
            "dns", "getaliases", "pkg", "reset", "resolve", "resolve_cname", "resolver", "tcp",
            "udp",
        }
    },
    "no data goes through pipes of a pool of threads": {
        "eventlet.tpool": {"tpool_trampoline", "tworker"}
    },
    "no lock and no class is replaced": {
        "eventlet.green.profile": {"ContextWrap"},
        "eventlet.green.thread": {"start_joinable_thread"},
        "eventlet.green.zmq": {"deque", "eventlet", "greenlet", "slurp_properties"},
    },
    "native threads may wait in the C library": {
        "eventlet.support.psycopg2_patcher": {
            "eventlet", "eventlet_wait_callback", "extensions", "psycopg2",
        }
    },
    "it is of greenlet's C code": {
        "greenlet": {
            "CLOCKS_PER_SEC", "enable_optional_cleanup", "get_clocks_used_doing_optional_cleanup"
        }
    },
    "CPython 3.15 has no server for CGI any more": {
        "eventlet.green.CGIHTTPServer": {"select"},
        "eventlet.green.http.server": {"CGIHTTPRequestHandler", "copy", "select"},
    },
    "it is a variable of a loop or of an old Python": {
        "eventlet": {"zipkin"},
        "eventlet._version": {"annotations", "commit_id"},
        "eventlet.green.MySQLdb": {"var"},
        "eventlet.green.builtin": {
            "builtins_orig", "clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem",
            "setdefault", "update", "values",
        },
        "eventlet.green.http.client": {"MAXAMOUNT"},
        "eventlet.green.http.cookiejar": {"month", "vals_sorted_by_key"},
        "eventlet.green.httplib": {"MAXAMOUNT", "name", "to_patch"},
        "eventlet.green.ssl": {"PY33"},
        "eventlet.green.subprocess": {"mswindows", "to_patch"},
        "eventlet.greenio.base": {"greenpipe_doc"},
        "eventlet.greenio.py3": {"greenpipe_doc"},
        "eventlet.patcher": {"imp"},
        "eventlet.tpool": {"imp"},
        "eventlet.websocket": {"utf8validator"},
    },
}  # fmt: skip
"""Public names that are not served, by the reason."""

LOOK = """
import importlib, json, sys
absent = {}
for place, names in json.load(sys.stdin).items():
    if place.startswith("eventlet.zipkin"):
        continue
    module = importlib.import_module(place)
    for name in names:
        try:
            getattr(module, name)
        except AttributeError as error:
            assert "OSLOXIDE_EVENTLET=real" in str(error), (place, name, error)
            absent.setdefault(place, []).append(name)
print(json.dumps(absent))
"""


@pytest.fixture(scope="module")
def real() -> tuple[list[str], dict[str, list[str]]]:
    """What an import of the real eventlet loads, and the names that its modules have."""
    pytest.importorskip("eventlet")
    result = run_python(REAL)
    assert result.returncode == 0, result.stderr
    loaded, names = json.loads(result.stdout.splitlines()[-1])
    return loaded, names


def run_here(text: str, data: Any = None) -> str:
    """What *text* prints on the eventlet that osloxide serves."""
    feed = f"import io, sys\nsys.stdin = io.StringIO({json.dumps(data)!r})\n"
    result = run_python(ACTIVE + feed + text)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_public_name_is_served_or_refused_with_the_remedy(
    real: tuple[list[str], dict[str, list[str]]],
) -> None:
    absent = json.loads(run_here(LOOK, real[1]).splitlines()[-1])
    refused = {
        (place, name)
        for places in REFUSED.values()
        for place, names in places.items()
        for name in names
    }
    found = {(place, name) for place, names in absent.items() for name in names}
    assert not sorted(found - refused)


def test_what_an_import_of_eventlet_loads_is_there_without_a_further_import(
    real: tuple[list[str], dict[str, list[str]]],
) -> None:
    names = [name for name in real[0] if not name.rpartition(".")[2].startswith("_")]
    run_here("import eventlet, json\nfor name in json.load(sys.stdin): eval(name)", names)


@pytest.mark.parametrize("module", ["eventlet", "eventlet.wsgi", "eventlet.green.os", "greenlet"])
def test_a_name_that_is_imported_from_a_module_fails_with_the_remedy(module: str) -> None:
    result = run_python(ACTIVE + f"from {module} import no_such_name")
    # In a package what is no name of it may be a module, which is looked for.
    kinds = ("ImportError: ", "ModuleNotFoundError: ")
    assert result.stderr.splitlines()[-1].startswith(kinds), result.stderr
    assert "no_such_name" in result.stderr
    assert "OSLOXIDE_EVENTLET=real" in result.stderr


def test_a_program_asks_for_a_name_and_goes_on_without_it() -> None:
    text = """
import eventlet.wsgi
try:
    from eventlet.wsgi import no_such_name
except ImportError:
    no_such_name = None
print(hasattr(eventlet.wsgi, "no_such_name"), getattr(eventlet.wsgi, "no_such_name", 1))
"""
    assert run_here(text) == "False 1\n"


def test_names_that_modules_import_are_what_eventlet_has_there() -> None:
    text = """
import eventlet
from eventlet.green import BaseHTTPServer, socket
from eventlet.wsgi import BaseHTTPServer as imported
assert imported is BaseHTTPServer
import eventlet.wsgi
assert eventlet.wsgi.socket is socket
import greenlet
assert eventlet.greenthread.GreenletExit is greenlet.GreenletExit
assert eventlet.green.ssl.trampoline is eventlet.hubs.trampoline
print(eventlet.support.greendns.is_ipv4_addr("127.0.0.1"))
"""
    assert run_here(text) == "True\n"
