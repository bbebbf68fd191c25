"""How busy this machine's GPUs are, by NVIDIA's library NVML.

Limits: needs the extra ``gpu`` and NVIDIA's driver; where either is missing nothing is told of GPUs. All GPUs that NVML
shows, also those of others. A driver that hangs holds one thread, and no scrape.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kelpie_celery.clock import Clock
from kelpie_celery.metrics.catalog import METRICS
from kelpie_celery.metrics.fresh import FRESH_S, Fresh

log = logging.getLogger(__name__)

_PARTS = {
    "kelpie_gpu_utilization_ratio": "utilization",
    "kelpie_gpu_memory_used_bytes": "used_bytes",
    "kelpie_gpu_memory_total_bytes": "total_bytes",
}


@dataclass(frozen=True)
class Gpu:
    """One GPU; None is what NVML does not tell of it."""

    number: int
    utilization: float | None
    used_bytes: int | None
    total_bytes: int | None


def open_nvml() -> Any | None:
    """NVML, ready to be asked; None where there is none, which is said once."""
    try:
        import pynvml  # noqa: PLC0415 - an extra

        pynvml.nvmlInit()
    except Exception as e:  # the module is missing, or its library, or the driver
        log.info("no metrics of GPUs", extra={"action": "no_gpu_metrics", "why": f"{type(e).__name__}: {e}"})
        return None
    return pynvml


class GpuCollector(Collector):
    """Asks NVML at a scrape, at most every few seconds."""

    def __init__(
        self, clock: Clock, *, open_it: Callable[[], Any | None] = open_nvml, fresh_s: float = FRESH_S
    ) -> None:
        self._open, self._opened = open_it, False
        self._nvml: Any = None
        self._known = Fresh(self._read, clock, fresh_s=fresh_s)

    def describe(self) -> Iterable[Family]:
        """Nothing is asked when this is registered."""
        return []

    def _read(self) -> list[Gpu]:
        if not self._opened:
            # Not before: a driver that hangs must not hold up the worker's start.
            self._nvml, self._opened = self._open(), True
        if self._nvml is None:
            return []
        return [self._gpu(number) for number in range(self._nvml.nvmlDeviceGetCount())]

    def _gpu(self, number: int) -> Gpu:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(number)
        rates = self._told(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._told(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        return Gpu(
            number, None if rates is None else rates.gpu / 100, None if memory is None else int(memory.used),
            None if memory is None else int(memory.total),
        )  # fmt: skip

    def _told(self, ask: Any, handle: Any) -> Any | None:
        try:
            return ask(handle)
        except self._nvml.NVMLError:
            return None  # not every GPU tells everything: one that is cut into instances has no utilization

    def collect(self) -> Iterable[Family]:
        """What was told last, unless it is old."""
        known = self._known.get()
        if not known.up or not known.value:
            return
        for name, part in _PARTS.items():
            family = GaugeMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)
            for gpu in known.value:
                if (value := getattr(gpu, part)) is not None:
                    family.add_metric([str(gpu.number)], value)
            yield family
