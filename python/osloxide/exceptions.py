"""The exceptions that osloxide raises by name.

Each derives from what callers of oslo.service already catch, so that existing ``except`` clauses
keep working. Imports nothing: neither the native extension nor oslo.service.
"""


class ActivationError(RuntimeError):
    """osloxide cannot take over oslo.service in this process; the message says why."""


class ForkAfterThreadsError(RuntimeError):
    """A worker cannot be forked: native threads already run in this process.

    A fork copies one thread only. Locks that the others hold stay locked in the child for ever,
    so osloxide refuses instead of producing a worker that may hang.
    """


class StartMethodError(ValueError):
    """*start_method* names a way of starting workers that osloxide does not offer."""


class RequestTimeout(BaseException):
    """Raised in the thread of a request that took too long and was given up.

    No ``Exception``: an application that catches those must not go on with a request whose client
    has left with a 504.
    """
