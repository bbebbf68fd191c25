"""Turns metrics on in a worker process, where ``KELPIE_METRICS_PORT`` asks for it.

Limits: nothing that goes wrong here ends a worker: it says so once, and works without metrics.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kelpie_celery.clock import SystemClock

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp
    from kelpie_celery.metrics.server import MetricsServer

log = logging.getLogger(__name__)

_MENDS = {
    errno.EADDRINUSE: "give each worker of a machine a KELPIE_METRICS_PORT of its own",
    errno.EADDRNOTAVAIL: "set KELPIE_METRICS_ADDRESS to an address of this machine; 0.0.0.0 or :: stands for all",
    errno.EACCES: "set KELPIE_METRICS_PORT to one from 1024 on",
}


def start_metrics(app: KelpieApp, groups: Sequence[str]) -> MetricsServer | None:
    """Serve metrics, and have the app's attempts counted; None where no port is set, or it cannot be had.

    Call it before the first job is taken.

    Args:
        app: The app of this worker.
        groups: The groups whose jobs this worker runs; none for the control worker.
    """
    if app.settings.metrics_port is None:
        return None
    try:
        return _start(app, groups, app.settings.metrics_port)
    except ImportError as e:
        log.warning(
            "no metrics: prometheus-client is not installed; pip install 'kelpie-celery[worker]'",
            extra={"action": "metrics_off", "error": str(e)},
        )
    except OSError as e:
        log.warning(
            "no metrics: the address cannot be had; the worker works without",
            extra={"action": "metrics_off", "error": str(e), "address": app.settings.metrics_address,
                   "port": app.settings.metrics_port,
                   "mend": _MENDS.get(e.errno or 0, "look at KELPIE_METRICS_ADDRESS and KELPIE_METRICS_PORT")},
        )  # fmt: skip
    return None


def _start(app: KelpieApp, groups: Sequence[str], port: int) -> MetricsServer:
    # Imported here: most workers serve no metrics, and clients need not have the library.
    from prometheus_client import CollectorRegistry  # noqa: PLC0415

    from kelpie_celery.metrics.gpu import GpuCollector  # noqa: PLC0415
    from kelpie_celery.metrics.ledger import LedgerCollector, groups_of  # noqa: PLC0415
    from kelpie_celery.metrics.process import ProcessMeters, SlotsCollector  # noqa: PLC0415
    from kelpie_celery.metrics.server import MetricsServer  # noqa: PLC0415

    registry, clock, address = CollectorRegistry(), SystemClock(), app.settings.metrics_address
    registry.register(LedgerCollector(app.ledger, groups_of(app.ledger, groups), clock))
    if groups:
        registry.register(SlotsCollector(app.running, app.runner.slots))
        registry.register(GpuCollector(clock))
        meters = ProcessMeters(registry)
    server = MetricsServer(address, port, registry)
    if groups:
        app.meters = meters
    log.info("metrics are served", extra={"action": "metrics_served", "address": address, "port": port})
    return server
