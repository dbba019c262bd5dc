"""A service that is told what to do wrong: ``misconfigured.py PORT STATEMENTS``.

Listens on PORT first, so that a test can tell whether something of a failed start is left. Runs on
osloxide through oslo.service's own names.
"""

import sys

from osloxide.activation import import_hook

import_hook.install()

from oslo_config import cfg  # noqa: E402
from oslo_service import _options, service, sslutils, wsgi  # noqa: E402, F401


def application(environ, start_response):
    start_response("200 OK", [])
    return [b""]


conf = cfg.ConfigOpts()
conf([], project="misconfigured", default_config_files=[], default_config_dirs=[])
conf.register_opts(_options.service_opts)
conf.register_opts(_options.wsgi_opts)
conf.register_opts(_options.ssl_opts, "ssl")
port = int(sys.argv[1])


def listen(**arguments):
    return wsgi.Server(conf, "site", application, host="127.0.0.1", **arguments)


class Site(service.Service):
    def __init__(self):
        super().__init__()
        self.server = listen(port=port)


exec(compile(sys.argv[2], "statements", "exec"))
