"""Tries to serve on a port that is taken."""

from __future__ import annotations

import sys

from oslo_config import cfg

from osloxide import wsgi

conf = cfg.ConfigOpts()
conf([], default_config_files=[], default_config_dirs=[])
wsgi.Server(conf, "second", None, host="127.0.0.1", port=int(sys.argv[1]))
