"""What the ledger tells of container groups, for Prometheus: read at a scrape, at most every few seconds.

Limits: a few commands a group, whatever its jobs are; a scrape waits for Redis for two seconds at most and answers with
what is known. Words that a group's worker made up count as ``other``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from kelpie_celery.clock import Clock
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.sums import GroupPicture
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.metrics.catalog import KINDS_OF_TIME, METRICS
from kelpie_celery.metrics.fresh import FRESH_S, WAIT_S, Fresh

OTHER = "other"
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_REASONS = frozenset(reason.value for reason in Reason)
# Those of kelpie_scaler.decision.Action and kelpie_scaler.history, which the library does not import.
ACTIONS = ("nothing", "start", "stop", "set_replicas", "drain", "undrain", "error", "suspended")

Labels = tuple[str, ...]
Pictures = Mapping[str, GroupPicture]


class Ratchet:
    """Keeps counters from going back by a little, which Prometheus would take for a restart.

    The ledger takes back what it counted for a death that was none. What falls to less than half is told as it is:
    another Redis, or an older backup of it.
    """

    def __init__(self) -> None:
        self._highest: dict[Labels, float] = {}

    def of(self, labels: Labels, value: float) -> float:
        """The value to be told."""
        highest = self._highest.get(labels, 0.0)
        told = highest if highest / 2 <= value < highest else value
        self._highest[labels] = told
        return told


class LedgerCollector(Collector):
    """Collects what the ledger tells.

    Args:
        ledger: The ledger.
        groups: The groups to tell of; may ask the ledger.
        clock: Of this machine.
        fresh_s: How long what was read is told again, in seconds.
        wait_s: How long a scrape waits for Redis, in seconds.
    """

    def __init__(
        self, ledger: Ledger, groups: Callable[[], Sequence[str]], clock: Clock, *, fresh_s: float = FRESH_S,
        wait_s: float = WAIT_S,
    ) -> None:  # fmt: skip
        self._ledger, self._groups = ledger, groups
        self._known = Fresh[Pictures](self._read, clock, fresh_s=fresh_s, wait_s=wait_s)
        self._ratchet = Ratchet()

    def describe(self) -> Iterable[Family]:
        """Nothing is read when this is registered."""
        return []

    def _read(self) -> Pictures:
        return self._ledger.pictures(self._groups())

    def collect(self) -> Iterable[Family]:
        """What is known."""
        known = self._known.get()
        yield GaugeMetricFamily("kelpie_ledger_up", METRICS["kelpie_ledger_up"].help, value=float(known.up))
        if known.value is None or known.age_s is None:
            return
        name = "kelpie_ledger_age_seconds"
        yield GaugeMetricFamily(name, METRICS[name].help, value=known.age_s)
        yield from self._families(known.value)

    def _families(self, pictures: Pictures) -> Iterator[Family]:
        yield _gauge("kelpie_jobs", [((g, s), float(n)) for g, p in pictures.items() for s, n in p.jobs.items()])
        yield _gauge("kelpie_queue_age_seconds", [((g,), p.queue_age_s) for g, p in pictures.items()])
        yield _gauge("kelpie_workers", [((g,), float(p.workers)) for g, p in pictures.items()])
        for name, told in (("kelpie_attempts_total", _attempts), ("kelpie_job_seconds_total", _times),
                           ("kelpie_scaler_decisions_total", _decisions)):  # fmt: skip
            yield self._counter(name, [((g, *labels), n) for g, p in pictures.items() for labels, n in told(p).items()])
        for name, count in (("desired", "desired"), ("running", "actual")):
            nodes = {g: getattr(p, count) for g, p in pictures.items()}
            yield _gauge(f"kelpie_scaler_{name}_replicas", [((g,), n) for g, n in nodes.items() if n is not None])

    def _counter(self, name: str, samples: list[tuple[Labels, float]]) -> Family:
        family = CounterMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)
        for labels, value in samples:
            family.add_metric(labels, self._ratchet.of((name, *labels), value))
        return family


def _gauge(name: str, samples: Iterable[tuple[Labels, float]]) -> Family:
    family = GaugeMetricFamily(name, METRICS[name].help, labels=METRICS[name].labels)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _attempts(picture: GroupPicture) -> dict[Labels, float]:
    found: dict[Labels, float] = {}
    for what, count in picture.totals.items():
        kind, _, end = what.partition(":")
        if kind == "end":
            outcome, _, reason = end.partition(":")
            labels = (outcome if outcome in _OUTCOMES else OTHER, reason if reason in _REASONS else OTHER)
            found[labels] = found.get(labels, 0.0) + max(0.0, count)
    return found


def _times(picture: GroupPicture) -> dict[Labels, float]:
    return {(kind,): max(0.0, picture.totals.get(f"{kind}_s", 0.0)) for kind in KINDS_OF_TIME}


def _decisions(picture: GroupPicture) -> dict[Labels, float]:
    told = {action: picture.totals.get(f"decision:{action}", 0.0) for action in ACTIONS}
    return {(action,): count for action, count in told.items() if count > 0}


def groups_of(ledger: Ledger, served: Sequence[str]) -> Callable[[], Sequence[str]]:
    """The groups that a worker tells of: those that it serves, or all where it serves none (the control worker)."""
    return (lambda: served) if served else ledger.groups
