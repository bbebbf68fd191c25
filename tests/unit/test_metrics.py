"""Metrics: what is told of what was counted, that a scrape ends in time, and that nothing of it can end a worker."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kelpie_celery.clock import ManualClock, SystemClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger.sums import GroupPicture
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.meters import Meters
from kelpie_celery.metrics.catalog import METRICS
from kelpie_celery.metrics.exporter import start_metrics
from kelpie_celery.metrics.fresh import Fresh
from kelpie_celery.metrics.gpu import GpuCollector, open_nvml
from kelpie_celery.metrics.ledger import ACTIONS, LedgerCollector, Ratchet
from kelpie_celery.metrics.process import ProcessMeters, SlotsCollector
from kelpie_celery.metrics.server import CLIENTS, MetricsServer
from kelpie_celery.running import RunningJobs
from kelpie_scaler.decision import Action
from tests.harness.waiting import eventually

JOBS = {"pending": 2, "delayed": 1, "running": 3, "completed": 4, "failed": 0, "canceled": 0}
TOTALS = {
    "useful_s": 90.0, "lost_s": 10.0, "waiting_s": 5.0, "end:completed:done": 4.0, "end:failure:exit_code": 1.0,
    "end:failure:what a worker made up": 2.0, "end:failure:and another": 3.0, "end:nonsense": 1.0,
    "decision:start": 2.0, "decision:made up": 9.0, "more made up": 1.0,
}  # fmt: skip
PICTURE = GroupPicture(JOBS, 12.5, 2, TOTALS, 3, 1)


def samples(registry: CollectorRegistry) -> dict[str, float]:
    """What a scrape tells: ``name{label=value,...}`` without quotes, by what Prometheus itself would read."""
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class FakeLedger:
    """Tells pictures, fails, or hangs."""

    def __init__(self) -> None:
        self.found: dict[str, GroupPicture] = {"g": PICTURE}
        self.error: Exception | None = None
        self.hangs: threading.Event | None = None
        self.reads = 0

    def pictures(self, groups: Any) -> dict[str, GroupPicture]:
        self.reads += 1
        if self.hangs is not None:
            self.hangs.wait(30)
        if self.error is not None:
            raise self.error
        return {group: self.found[group] for group in groups if group in self.found}


def collector(ledger: FakeLedger, clock: Any = None, **more: Any) -> CollectorRegistry:
    registry, given = CollectorRegistry(), ledger
    registry.register(LedgerCollector(given, lambda: ["g"], clock or ManualClock(), **more))  # type: ignore[arg-type]  # a fake
    return registry


# -- of the ledger ------------------------------------------------------------------------------------------------


def test_a_scrape_tells_of_jobs_time_attempts_and_nodes() -> None:
    told = samples(collector(FakeLedger()))
    assert told["kelpie_ledger_up"] == 1
    assert told["kelpie_jobs{group=g,status=running}"] == 3
    assert sum(value for name, value in told.items() if name.startswith("kelpie_jobs{")) == 10
    assert told["kelpie_queue_age_seconds{group=g}"] == 12.5
    assert told["kelpie_job_seconds_total{group=g,kind=lost}"] == 10
    assert told["kelpie_job_seconds_total{group=g,kind=silent}"] == 0
    assert told["kelpie_attempts_total{group=g,outcome=completed,reason=done}"] == 4
    assert told["kelpie_scaler_decisions_total{action=start,group=g}"] == 2
    assert (told["kelpie_scaler_desired_replicas{group=g}"], told["kelpie_scaler_running_replicas{group=g}"]) == (3, 1)


def test_labels_have_no_values_that_a_worker_made_up() -> None:
    told = samples(collector(FakeLedger()))
    assert told["kelpie_attempts_total{group=g,outcome=failure,reason=other}"] == 5
    assert told["kelpie_attempts_total{group=g,outcome=other,reason=other}"] == 1
    assert "made up" not in " ".join(told)


def test_where_nothing_is_scaled_no_nodes_are_told_of() -> None:
    ledger = FakeLedger()
    ledger.found["g"] = replace(PICTURE, desired=None, actual=None)
    assert not [name for name in samples(collector(ledger)) if "replicas" in name]


def test_the_actions_are_those_of_the_scaler() -> None:
    assert set(ACTIONS) == {action.value for action in Action} | {"error", "suspended"}


def test_redis_is_read_once_in_a_while_however_often_it_is_scraped() -> None:
    ledger, clock = FakeLedger(), ManualClock()
    registry = collector(ledger, clock)
    for _ in range(10):
        samples(registry)
    assert ledger.reads == 1
    clock.advance(5.1)
    assert samples(registry)["kelpie_ledger_age_seconds"] == 0
    assert ledger.reads == 2


def test_an_outage_is_told_with_what_was_known_and_its_age() -> None:
    ledger, clock = FakeLedger(), ManualClock()
    registry = collector(ledger, clock)
    samples(registry)
    ledger.error = LedgerUnavailable("away")
    clock.advance(60)
    told = samples(registry)
    assert (told["kelpie_ledger_up"], told["kelpie_ledger_age_seconds"]) == (0, 60)
    assert told["kelpie_jobs{group=g,status=running}"] == 3
    ledger.error = None
    clock.advance(6)
    told = samples(registry)
    assert (told["kelpie_ledger_up"], told["kelpie_ledger_age_seconds"]) == (1, 0)


def test_before_redis_was_ever_reached_only_that_is_told() -> None:
    ledger = FakeLedger()
    ledger.error = LedgerUnavailable("away")
    assert samples(collector(ledger)) == {"kelpie_ledger_up": 0}


def test_a_redis_that_hangs_holds_up_no_scrape_and_one_thread() -> None:
    ledger, clock = FakeLedger(), ManualClock()
    registry = collector(ledger, clock, wait_s=0.05)
    samples(registry)
    ledger.hangs = threading.Event()
    clock.advance(10)
    for _ in range(5):
        told = samples(registry)
        assert (told["kelpie_ledger_up"], told["kelpie_jobs{group=g,status=pending}"]) == (0, 2)
    assert ledger.reads == 2
    ledger.hangs.set()


def test_a_counter_that_is_taken_back_a_little_stays_and_one_that_begins_anew_falls() -> None:
    ratchet = Ratchet()
    assert [ratchet.of(("a",), value) for value in (10, 9, 9.5, 11, 12)] == [10, 10, 10, 11, 12]
    assert [ratchet.of(("a",), value) for value in (3, 4)] == [3, 4]
    assert ratchet.of(("b",), 1) == 1


# -- fresh values -------------------------------------------------------------------------------------------------


def test_those_who_ask_at_once_share_one_try() -> None:
    began, go_on, reads = threading.Event(), threading.Event(), []

    def read() -> str:
        reads.append(1)
        began.set()
        go_on.wait(10)
        return "value"

    fresh: Fresh[str] = Fresh(read, SystemClock(), wait_s=10)
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(fresh.get().value)) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert began.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert (found, len(reads)) == (["value"] * 8, 1)


def test_where_no_thread_can_be_started_the_next_one_who_asks_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh: Fresh[str] = Fresh(lambda: "value", SystemClock(), wait_s=10)
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError):
            fresh.get()
    assert fresh.get().value == "value"


# -- of a worker --------------------------------------------------------------------------------------------------


def test_a_worker_counts_transfers_commits_and_heartbeats() -> None:
    registry = CollectorRegistry()
    meters = ProcessMeters(registry)
    assert samples(registry)["kelpie_lease_renewals_total{result=failed}"] == 0
    meters.transfer("restore", 1000, 2.0)
    meters.transfer("commit", 10, 0.5)
    meters.transfer("outputs", 5, 0.25)
    meters.transfer("outputs", 5, 0.25)
    meters.commit(3.0, 5000)
    meters.renewal("ok", 0.004)
    meters.renewal("failed", 5.0)
    told = samples(registry)
    assert told["kelpie_transfer_bytes_total{direction=down,stage=restore}"] == 1000
    assert told["kelpie_transfer_bytes_total{direction=up,stage=outputs}"] == 10
    assert told["kelpie_transfer_seconds_total{direction=up,stage=commit}"] == 0.5
    assert (told["kelpie_commit_seconds_sum"], told["kelpie_commit_seconds_bucket{le=5.0}"]) == (3, 1)
    assert (told["kelpie_commit_sent_bytes_sum"], told["kelpie_commit_sent_bytes_bucket{le=4096.0}"]) == (5000, 0)
    assert told["kelpie_lease_renewals_total{result=ok}"] == 1
    assert told["kelpie_lease_renewal_seconds_count"] == 1


class Nvml:
    """As nvidia-ml-py, of two GPUs, of which the second tells no utilization."""

    NVMLError = type("NVMLError", (Exception,), {})

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle == 1:
            raise self.NVMLError
        return SimpleNamespace(gpu=75, memory=10)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=4 << 30, total=80 << 30)


def test_the_stand_in_has_what_nvidias_library_has() -> None:
    for name in ("NVMLError", "nvmlInit", *(name for name in vars(Nvml) if name.startswith("nvml"))):
        assert hasattr(pynvml, name), name
    assert {name for name, _ in pynvml.c_nvmlUtilization_t._fields_} >= {"gpu"}
    assert {name for name, _ in pynvml.c_nvmlMemory_t._fields_} >= {"used", "total"}


def gpus(open_it: Callable[[], Any]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(GpuCollector(ManualClock(), open_it=open_it))
    return registry


def test_gpus_are_told_of_as_far_as_nvml_tells() -> None:
    told = samples(gpus(Nvml))
    assert told == {
        "kelpie_gpu_utilization_ratio{gpu=0}": 0.75,
        "kelpie_gpu_memory_used_bytes{gpu=0}": 4 << 30, "kelpie_gpu_memory_used_bytes{gpu=1}": 4 << 30,
        "kelpie_gpu_memory_total_bytes{gpu=0}": 80 << 30, "kelpie_gpu_memory_total_bytes{gpu=1}": 80 << 30,
    }  # fmt: skip


def test_without_nvml_nothing_is_told_of_gpus_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    caplog.set_level(logging.INFO)
    clock, registry = ManualClock(), CollectorRegistry()
    registry.register(GpuCollector(clock, open_it=open_nvml))
    for _ in range(3):
        assert samples(registry) == {}
        clock.advance(6)
    assert [r.levelname for r in caplog.records if getattr(r, "action", "") == "no_gpu_metrics"] == ["INFO"]


def test_every_metric_is_in_the_catalog_and_has_its_labels() -> None:
    registry = collector(FakeLedger())
    registry.register(GpuCollector(ManualClock(), open_it=Nvml))
    registry.register(SlotsCollector(RunningJobs(), 1))
    ProcessMeters(registry).commit(1.0, 1)
    seen = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        if family.name.endswith("_created"):
            continue  # the library's own: when each counter began
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        seen[name] = (family.type, labels)
        assert family.documentation == METRICS[name].help
    assert seen == {metric.name: (metric.kind, set(metric.labels)) for metric in METRICS.values()}
    assert len(Outcome) * len(Reason) < 200, "of these a group may have so many series"


# -- serving ------------------------------------------------------------------------------------------------------


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def worker(port: int | None, address: str = "127.0.0.1") -> Any:
    settings = SimpleNamespace(metrics_port=port, metrics_address=address)
    return SimpleNamespace(
        settings=settings, ledger=FakeLedger(), running=RunningJobs(), runner=SimpleNamespace(slots=2), meters=Meters()
    )


def scrape(server: MetricsServer) -> dict[str, float]:
    address, port = server.address
    host = f"[{address}]" if ":" in address else address
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        return parsed(answer.read().decode())


def test_without_a_port_nothing_is_served_nor_counted() -> None:
    app = worker(None)
    assert start_metrics(app, ["g"]) is None
    assert type(app.meters) is Meters


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_worker_tells_of_its_group_and_of_itself(address: str) -> None:
    app = worker(free_port(address), address)
    server = start_metrics(app, ["g"])
    assert server is not None
    app.meters.renewal("ok", 0.1)
    told = scrape(server)
    assert (told["kelpie_slots"], told["kelpie_lease_renewals_total{result=ok}"]) == (2, 1)
    assert told["kelpie_jobs{group=g,status=running}"] == 3
    server.close()
    with socket.create_server(server.address, family=socket.AF_INET6 if ":" in address else socket.AF_INET):
        pass


def test_the_control_worker_tells_of_all_groups_and_of_no_slots() -> None:
    app = worker(free_port())
    app.ledger.groups = lambda: ["g", "h"]
    app.ledger.found["h"] = PICTURE
    server = start_metrics(app, [])
    assert server is not None
    told = scrape(server)
    server.close()
    assert told["kelpie_jobs{group=h,status=running}"] == 3
    assert "kelpie_slots" not in told
    assert type(app.meters) is Meters


@pytest.mark.parametrize(
    ("address", "mend"), [("127.0.0.1", "KELPIE_METRICS_PORT of its own"), ("192.0.2.1", "0.0.0.0 or ::")]
)
def test_an_address_that_cannot_be_had_is_a_warning_with_the_mend(
    caplog: pytest.LogCaptureFixture, address: str, mend: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = worker(taken.getsockname()[1], address)
        assert start_metrics(app, ["g"]) is None
    [record] = [r for r in caplog.records if getattr(r, "action", "") == "metrics_off"]
    assert record.levelname == "WARNING"
    assert mend in str(vars(record)["mend"])
    assert type(app.meters) is Meters, "nobody reads what would be counted"


def test_without_the_library_a_worker_works_and_says_what_to_install(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    assert start_metrics(worker(free_port()), ["g"]) is None
    assert "pip install 'kelpie-celery[worker]'" in caplog.text


def test_a_client_that_says_nothing_holds_nobody_up() -> None:
    server = MetricsServer("127.0.0.1", free_port(), CollectorRegistry())
    with socket.create_connection(server.address):
        assert scrape(server) == {}
    server.close()


def test_more_clients_than_there_is_room_for_are_sent_away_and_later_ones_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kelpie_celery.metrics.server._Handler.timeout", 300.0)
    server = MetricsServer("127.0.0.1", free_port(), CollectorRegistry())
    with contextlib.ExitStack() as stack:
        before = threading.active_count()
        silent = [stack.enter_context(socket.create_connection(server.address, timeout=30)) for _ in range(CLIENTS)]
        for one in silent:
            one.sendall(b"GET")  # it is being heard
        late = stack.enter_context(socket.create_connection(server.address, timeout=30))
        assert late.recv(1) == b""
        assert threading.active_count() <= before + CLIENTS
    eventually("there is room again", lambda: served(server))
    server.close()


def served(server: MetricsServer) -> bool:
    try:
        return scrape(server) == {}
    except OSError:
        return False
