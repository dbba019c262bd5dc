"""Cinder's API, scheduler and volume service in one process, under one launcher.

Calls only what cinder's own start-up scripts (cinder/cmd/{api,scheduler,volume}.py) call, in
the same order; cinder itself is unmodified. The in-memory transport ``fake:///`` connects the
three, which works only because they share a process. Nothing here names osloxide: the same
file runs on stock oslo.service (eventlet) and, started by ``osloxide run``, on osloxide.
"""
# ruff: noqa: E402  (cinder wants to decide about monkey-patching before anything is imported)
import sys

from cinder import monkey_patch

monkey_patch.patch()

import os_brick
from cinder import coordination, i18n, objects, rpc, service, version

i18n.enable_lazy()

import cinder.cmd.volume  # registers the volume service's options
from cinder.common import config, constants
from oslo_config import cfg
from oslo_log import log as logging
from oslo_service import service as oslo_service

CONF = cfg.CONF


def main() -> None:
    objects.register_all()
    CONF(sys.argv[1:], project="cinder", version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(CONF, "cinder")
    os_brick.setup(CONF)
    coordination.COORDINATOR.start()
    rpc.init(CONF)

    launcher = oslo_service.ServiceLauncher(CONF, restart_method="mutate")
    launcher.launch_service(service.Service.create(binary=constants.SCHEDULER_BINARY))
    for backend in CONF.enabled_backends:
        CONF.register_opt(cinder.cmd.volume.host_opt, group=backend)
        launcher.launch_service(
            service.Service.create(
                host=f"{CONF.host}@{backend}",
                service_name=backend,
                binary=constants.VOLUME_BINARY,
                coordination=False,  # started above, once for the whole process
            )
        )
    launcher.launch_service(service.WSGIService("osapi_volume"))
    launcher.wait()


if __name__ == "__main__":
    main()
