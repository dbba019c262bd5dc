"""Endpoints on our executor: counted by method, and written as ``async def`` where they like.

Owns what happens between a message that was handed to a server and the reply: the name under which
it is counted, whether it failed, and the way of a coroutine, which leaves its thread, runs on the
worker's event loop and comes back to a thread for the reply. Logs and replies through
oslo.messaging's own code, which the message of a coroutine passes twice: up to the coroutine, and
with its outcome. Never looks at the transport that a message came from.
Rules: oslo_messaging/rpc/server.py and dispatcher.py; docs/rpc.md.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from types import CoroutineType, ModuleType, SimpleNamespace
from typing import Any

from osloxide.threads import at_end, forked, identity, own
from osloxide.threads.event_loop import Later, Outcome

LOG = logging.getLogger(__name__)

REFUSED_FOR = 1.0
"""Seconds between two attempts to have an executor take a request."""


class _AwaitingError(BaseException):
    """An endpoint has returned a coroutine. No Exception: no handler on the way may catch it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], ctxt: Any, serializer: Any) -> None:
        self.coroutine = coroutine
        self.ctxt = ctxt
        self.serializer = serializer


class _Endpoint:
    """An endpoint whose coroutines get out of the dispatcher."""

    __slots__ = ("_endpoint", "_serializer")

    def __init__(self, endpoint: Any, serializer: Any) -> None:
        self._endpoint = endpoint
        self._serializer = serializer

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._endpoint, name)

        def call(ctxt: Any, **arguments: Any) -> Any:
            result = function(ctxt, **arguments)
            if type(result) is CoroutineType:
                raise _AwaitingError(result, ctxt, self._serializer)
            return result

        return call


class _Completion:
    """In the place of ``threading.Event``: one is made for each request, and waited for only in
    those whose callers monitor them."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._event: threading.Event | None = None
        self._is_set = False

    def set(self) -> None:
        # First the flag, then a look at the event; wait() does it the other way round.
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def wait(self, timeout: float) -> bool:
        if self._event is None:
            self._event = threading.Event()
        return self._is_set or self._event.wait(timeout)


class _Watchdog:
    """In the place of ``threading.Thread``: the one that waits for a :class:`_Completion`; most
    are never started, and no thread until they are."""

    __slots__ = ("_arguments", "_thread")

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = own.enter(threading.Thread(**self._arguments))
        self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()


def _remembering(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """*compare*, which compares each pair of texts once: few versions are asked for."""
    compare_once = functools.lru_cache(256)(compare)

    def remembered(offered: Any, asked: Any) -> bool:
        if type(offered) is type(asked) is str:
            return compare_once(offered, asked)
        return compare(offered, asked)

    return remembered


def amend_dispatcher(dispatcher: ModuleType) -> None:
    """Let ``RPCDispatcher`` run coroutines, and say of each message whether it failed."""
    dispatcher.threading = SimpleNamespace(Thread=_Watchdog)  # type: ignore[attr-defined]
    dispatcher.eventletutils = SimpleNamespace(Event=_Completion)  # type: ignore[attr-defined]
    utils = dict(vars(dispatcher.utils))
    utils["version_is_compatible"] = _remembering(utils["version_is_compatible"])
    dispatcher.utils = SimpleNamespace(**utils)  # type: ignore[attr-defined]
    cls = dispatcher.RPCDispatcher
    dispatch, do_dispatch = cls.dispatch, cls._do_dispatch

    @functools.wraps(do_dispatch)
    def do_dispatch_any(self: Any, endpoint: Any, *arguments: Any) -> Any:
        return do_dispatch(self, _Endpoint(endpoint, self.serializer), *arguments)

    @functools.wraps(dispatch)
    def dispatch_any(self: Any, incoming: Any) -> Any:
        outcome = incoming.__dict__.pop("_osloxide_outcome", None)
        try:
            return forked.call(dispatch, self, incoming) if outcome is None else outcome()
        except dispatcher.ExpectedException:
            raise
        except Exception:
            incoming._osloxide_failed = True
            raise

    cls.dispatch, cls._do_dispatch = dispatch_any, do_dispatch_any


def amend_rpc_server(server: ModuleType) -> None:
    """Pick messages up before they run, and send those of coroutines through the event loop."""
    process, create_listener = server.RPCServer._process_incoming, server.RPCServer._create_listener

    @functools.wraps(create_listener)
    def create_served_listener(self: Any) -> Any:
        adapter = create_listener(self)
        listener: Any = getattr(adapter, "_poll_style_listener", None)
        if hasattr(listener, "is_served"):
            listener.is_served = True
        executor = getattr(self._work_executor, "native", None)
        if executor is not None:
            _serving.add(self._work_executor)
        # A server with its own way of taking messages is handed all of them.
        way = type(self)._on_incoming
        is_ours = getattr(way, "_osloxide_named", None) is way
        if executor is not None and is_ours and hasattr(listener, "serve"):
            listener.serve(executor, self._process_incoming)
        return adapter

    def processed(self: Any, incoming: list[Any]) -> bool:
        try:
            process(self, incoming)
        except (SystemExit, KeyboardInterrupt):
            # oslo.messaging answers for an Exception only: the caller would wait for its timeout.
            LOG.exception("Exception during message handling")
            incoming[0].reply(failure=sys.exc_info())
            return False
        return not getattr(incoming[0], "_osloxide_failed", False)

    @functools.wraps(process)
    def process_incoming(self: Any, incoming: list[Any]) -> bool | Later:
        message = incoming[0]
        # Acknowledged, or given back, by the thread that is about to run it.
        pick_up = getattr(message, "pick_up", None)
        if pick_up is not None and not pick_up():
            return True
        try:
            return processed(self, incoming)
        except _AwaitingError as awaiting:

            def then(outcome: Outcome) -> bool:
                message._osloxide_outcome = outcome
                return processed(self, incoming)

            return Later(_answer(message, awaiting), then)

    process_incoming.when_cancelled = _give_back  # type: ignore[attr-defined]
    server.RPCServer._create_listener = create_served_listener
    server.RPCServer._process_incoming = process_incoming
    server.expected_exceptions = _expecting(  # type: ignore[attr-defined]
        server.expected_exceptions, server.rpc_dispatcher.ExpectedException
    )


def amend_server(server: ModuleType) -> None:
    """Count messages by the method that they ask for."""
    on_incoming = server.MessageHandlingServer._on_incoming

    @functools.wraps(on_incoming)
    def on_incoming_named(self: Any, incoming: list[Any]) -> None:
        submit_as = getattr(self._work_executor, "submit_as", None)
        message = incoming[0].message
        method = message.get("method") if isinstance(message, dict) else None
        if submit_as is None or not isinstance(method, str):
            on_incoming(self, incoming)
            return
        namespace = message.get("namespace")
        name = f"{namespace}.{method}" if namespace else method
        try:
            submit_as(name, self._process_incoming, incoming)
        except RuntimeError as refusal:
            if not hasattr(incoming[0], "give_back"):
                raise
            submit = functools.partial(submit_as, name, self._process_incoming, incoming)
            _submit_later(incoming, submit, refusal)

    # Itself: functools.wraps copies attributes to what wraps it.
    on_incoming_named._osloxide_named = on_incoming_named  # type: ignore[attr-defined]
    server.MessageHandlingServer._on_incoming = on_incoming_named


def _submit_later(incoming: list[Any], submit: Callable[[], object], refusal: RuntimeError) -> None:
    """Have an executor take a request that it has refused, as soon as it does.

    On the thread that polls: nothing more is fetched meanwhile. When the listener stops first, the
    request is given back; before that it would come here again.
    """
    LOG.warning("a request waits, and others behind it: %s", refusal)
    stopped = incoming[0].listener._shutdown
    while not stopped.wait(REFUSED_FOR):
        with contextlib.suppress(RuntimeError):
            submit()
            return
    _give_back([(incoming,)])


_serving: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()
"""Executors of servers whose requests are given back, or named, when nothing runs them."""


def _give_up() -> None:
    """The process is cut off: what waits for a thread goes back, and what cannot is named."""
    for executor in list(_serving):
        with contextlib.suppress(RuntimeError):  # made by the process that this one was forked from
            executor.shutdown(wait=False, cancel_futures=True)


at_end.when_cut_off(_give_up)


def _give_back(calls: list[tuple[Any, ...]]) -> None:
    """Let the broker deliver again what does not run here.

    :param calls: arguments of ``_process_incoming``.
    """
    lost = 0
    for ((message,),) in calls:
        give_back = getattr(message, "give_back", None)
        lost += give_back is None or not give_back()
    if lost:
        LOG.warning(
            "%d requests are lost: nothing delivers them again, and no thread runs them any more",
            lost,
        )


async def _answer(message: Any, awaiting: _AwaitingError) -> Any:
    """The reply's body. A caller that monitors its call is told that it goes on."""
    import asyncio

    beating = None
    if message.client_timeout:
        beating = asyncio.create_task(_beat(message))
    try:
        result = await awaiting.coroutine
    finally:
        if beating is not None:
            beating.cancel()
    return awaiting.serializer.serialize_entity(awaiting.ctxt, result)


async def _beat(message: Any) -> None:
    import asyncio

    try:
        pause = int(message.client_timeout) / 2
    except (TypeError, ValueError):
        return
    while pause >= 1:  # oslo.messaging ignores shorter ones as well
        await asyncio.sleep(pause)
        await asyncio.to_thread(message.heartbeat)


def _expecting(plain: Callable[..., Any], expected: type[Exception]) -> Callable[..., Any]:
    """oslo.messaging's decorator ``expected_exceptions``, also for coroutine functions."""

    @functools.wraps(plain)
    def expected_exceptions(*exceptions: type[Exception]) -> Callable[[Any], Any]:
        def outer(function: Any) -> Any:
            if not inspect.iscoroutinefunction(function):
                return plain(*exceptions)(function)

            @functools.wraps(function)
            async def inner(*arguments: Any, **keywords: Any) -> Any:
                try:
                    return await function(*arguments, **keywords)
                except exceptions:
                    raise expected() from None

            return inner

        return outer

    return expected_exceptions
