"""nova 30 and 31, whose API serves itself with eventlet.wsgi: ``nova-api``, ``nova-api-metadata``.

Owns what takes the place of ``nova.service.WSGIServer``, which is no subclass of
``oslo_service.wsgi.Server``: the native server. Greenthreads, queues and timeouts are those that
osloxide serves as eventlet's. nova 32 and later have no such server, and are left alone. nova's own
files stay as they are.

Options are nova's, of its group ``wsgi``, with their meaning. What is different: with TLS, files
that cannot be used are an error when the server is made, and not when it starts in each worker.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from osloxide.wsgi import WSGIApplication


def amend(service: ModuleType) -> None:
    """Change ``nova.service``, if it is of a release that needs it."""
    if hasattr(service, "eventlet") and hasattr(service, "WSGIServer"):
        service.WSGIServer = _server_class(service)  # type: ignore[attr-defined]


class _Options:
    """nova's group ``wsgi`` under the names that oslo.service has in its group DEFAULT."""

    _NAMES: ClassVar[dict[str, str]] = {
        "wsgi_default_pool_size": "default_pool_size",
        "wsgi_keep_alive": "keep_alive",
        "wsgi_log_format": "wsgi_log_format",
        "client_socket_timeout": "client_socket_timeout",
        "max_header_line": "max_header_line",
        "tcp_keepidle": "tcp_keepidle",
    }

    def __init__(self, conf: Any) -> None:
        self._conf = conf

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conf.wsgi, self._NAMES[name])

    #: nova has no such option; an answer to a failed request shows no source code.
    wsgi_server_debug = False

    def register_opts(self, options: Any, group: str | None = None) -> None:
        """Register those of osloxide's own group; nova has registered what stands for the rest."""
        if group is not None:
            self._conf.register_opts(options, group=group)

    def __getitem__(self, group: str) -> Any:
        return self._conf[group]

    @property
    def ssl(self) -> SimpleNamespace:
        """The group that :mod:`oslo_service.sslutils` reads."""
        group = self._conf.wsgi
        return SimpleNamespace(
            cert_file=group.ssl_cert_file,
            key_file=group.ssl_key_file,
            ca_file=group.ssl_ca_file,
            version=None,
            ciphers=None,
        )


def _server_class(service: ModuleType) -> type:
    from osloxide import wsgi

    conf = service.CONF

    class WSGIServer(wsgi.Server):
        """``nova.service.WSGIServer`` on the native server; arguments as there."""

        default_pool_size = conf.wsgi.default_pool_size

        def __init__(
            self,
            name: str,
            app: WSGIApplication,
            host: str = "0.0.0.0",  # noqa: S104 - nova's default
            port: int = 0,
            pool_size: int | None = None,
            protocol: Any = None,
            backlog: int = 128,
            use_ssl: bool = False,
            max_url_len: int | None = None,
        ) -> None:
            try:
                super().__init__(
                    _Options(conf),
                    name,
                    app,
                    host=host,
                    port=port,
                    pool_size=pool_size,
                    protocol=protocol,
                    backlog=backlog,
                    use_ssl=use_ssl,
                    max_url_len=max_url_len,
                    logger_name=f"nova.{name}.wsgi.server",
                )
            except wsgi.InvalidInput as error:
                raise service.exception.InvalidInput(reason=str(error)) from error

        @property
        def _socket(self) -> Any:
            return self.socket

    return WSGIServer
