"""A service that takes a new configuration without restarting.

Run it with a configuration file, change the file, send SIGHUP to the supervisor:

    osloxide run python examples/reload_on_sighup.py --config-file greeter.conf

``restart_method="mutate"`` re-reads the file in the supervisor and in each worker and then calls
``reset()``; no process is replaced. Only options that are marked ``mutable`` change.
"""

import os
import sys

from oslo_config import cfg
from oslo_log import log as logging
from oslo_service import service

CONF = cfg.CONF
CONF.register_opt(cfg.StrOpt("greeting", default="hello", mutable=True, help="What to say."))


class Greeter(service.Service):
    def start(self) -> None:
        self.greet()

    def reset(self) -> None:
        self.greet()

    def greet(self) -> None:
        print(f"worker {os.getpid()} says {CONF.greeting}", flush=True)


def main() -> None:
    logging.register_options(CONF)
    CONF(sys.argv[1:], project="greeter")
    logging.setup(CONF, "greeter")
    service.launch(CONF, Greeter(), workers=2, restart_method="mutate").wait()


if __name__ == "__main__":
    main()
