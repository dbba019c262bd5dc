"""Request and Router of ``oslo_service.wsgi``, apart because they need WebOb and Routes.

Contract: oslo.service 4.8, ``oslo_service/wsgi.py``. Imported on first use by
:mod:`osloxide.wsgi`; import the names from there.
"""

from __future__ import annotations

from typing import Any

import webob
import webob.dec
import webob.exc
from routes import middleware


class Request(webob.Request):
    """The request that a :class:`Router` hands on; services extend it."""


class Router:
    """Sends requests to the WSGI applications that a map names.

    :param mapper: a ``routes.Mapper`` whose routes each name a ``controller``: a WSGI application.
        A request that no route matches is answered with 404.
    """

    def __init__(self, mapper: Any) -> None:
        self.map = mapper
        self._router = middleware.RoutesMiddleware(self._dispatch, self.map)

    @webob.dec.wsgify(RequestClass=Request)  # type: ignore[untyped-decorator]
    def __call__(self, req: Request) -> Any:
        """Match *req* against the map."""
        return self._router

    @staticmethod
    @webob.dec.wsgify(RequestClass=Request)  # type: ignore[untyped-decorator]
    def _dispatch(req: Request) -> Any:
        """Hand *req* to the controller that the map has found."""
        match = req.environ["wsgiorg.routing_args"][1]
        return match["controller"] if match else webob.exc.HTTPNotFound()
