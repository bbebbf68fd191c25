"""What this process counts by itself, for Prometheus.

Limits: since its start; one process, as Celery's threads pool has it. Where the pool has processes of its own
(prefork), what they do is not counted: kelpie's workers have none.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kelpie_celery.meters import Meters, Renewed, Stage
from kelpie_celery.metrics.catalog import BYTES_BUCKETS, LATENCY_BUCKETS, METRICS, SECONDS_BUCKETS
from kelpie_celery.running import RunningJobs

_DIRECTIONS: dict[Stage, str] = {"restore": "down", "commit": "up", "outputs": "up"}


def _counter(name: str, registry: CollectorRegistry) -> Counter:
    known = METRICS[name]
    return Counter(name, known.help, known.labels, registry=registry)


def _histogram(name: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, METRICS[name].help, buckets=buckets, registry=registry)


class ProcessMeters(Meters):
    """Counts what a worker does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bytes = _counter("kelpie_transfer_bytes_total", registry)
        self._seconds = _counter("kelpie_transfer_seconds_total", registry)
        self._commit_s = _histogram("kelpie_commit_seconds", SECONDS_BUCKETS, registry)
        self._commit_bytes = _histogram("kelpie_commit_sent_bytes", BYTES_BUCKETS, registry)
        self._renewals = _counter("kelpie_lease_renewals_total", registry)
        self._renewal_s = _histogram("kelpie_lease_renewal_seconds", LATENCY_BUCKETS, registry)
        results: tuple[Renewed, ...] = ("ok", "failed", "lost")
        for result in results:
            # There from the start: what appears with its first event looks as if it had never happened.
            self._renewals.labels(result)
        for stage in _DIRECTIONS:
            self._count_transfer(stage, 0, 0.0)

    def _count_transfer(self, stage: Stage, count_bytes: int, seconds: float) -> None:
        labels = (_DIRECTIONS[stage], stage)
        self._bytes.labels(*labels).inc(max(0, count_bytes))
        self._seconds.labels(*labels).inc(max(0.0, seconds))

    def transfer(self, stage: Stage, count_bytes: int, seconds: float) -> None:
        """Count a transfer."""
        self._count_transfer(stage, count_bytes, seconds)

    def commit(self, seconds: float, sent_bytes: int) -> None:
        """Count a checkpoint."""
        self._commit_s.observe(seconds)
        self._commit_bytes.observe(sent_bytes)

    def renewal(self, result: Renewed, seconds: float) -> None:
        """Count a heartbeat."""
        self._renewals.labels(result).inc()
        if result == "ok":
            self._renewal_s.observe(seconds)


class SlotsCollector(Collector):
    """Slots of this worker, and attempts in them."""

    def __init__(self, running: RunningJobs, slots: int) -> None:
        self._running, self._slots = running, slots

    def collect(self) -> Iterable[Family]:
        """As they are now."""
        for name, value in (("kelpie_slots", self._slots), ("kelpie_running_attempts", len(self._running.all()))):
            yield GaugeMetricFamily(name, METRICS[name].help, value=value)
