"""Two workers with a timer each. Run it with: osloxide run python examples/minimal_service.py"""

import os

from oslo_config import cfg
from oslo_service import service


class Ticker(service.Service):
    def start(self) -> None:
        self.tg.add_timer(1, lambda: print(f"worker {os.getpid()} ticks", flush=True))


if __name__ == "__main__":
    cfg.CONF([], project="minimal")
    service.launch(cfg.CONF, Ticker(), workers=2).wait()
