from __future__ import annotations

import select
from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery import gate
from kelpie_celery.running import RunningJobs


class Hub:
    """Notes who wants to be woken."""

    def __init__(self) -> None:
        self.readers: dict[int, Any] = {}

    def add_reader(self, fd: int, callback: Any) -> None:
        self.readers[fd] = callback


class Consumer:
    """As much of Celery's consumer as the gate touches."""

    def __init__(self, *queues: str, slots: int = 1) -> None:
        self.transport_agrees = True
        self.qos = SimpleNamespace(can_consume=lambda: self.transport_agrees)
        self.channel = SimpleNamespace(qos=self.qos, _in_poll=None)
        self.task_consumer = SimpleNamespace(channel=self.channel)
        self.hub: Hub | None = Hub()
        self.app = SimpleNamespace(
            amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=dict.fromkeys(queues))),
            runner=SimpleNamespace(slots=slots),
            running=RunningJobs(),
        )


@pytest.fixture
def reserved(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    requests: set[Any] = set()
    monkeypatch.setattr("kelpie_celery.gate.state.reserved_requests", requests)
    return requests


class Request:
    def __init__(self, *, slot_is_free: bool = False) -> None:
        self.slot_is_free = slot_is_free


def start(consumer: Consumer) -> None:
    gate.SlotGate(consumer).start(consumer)


def test_a_worker_fetches_while_a_slot_is_free(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g", slots=2)
    start(consumer)
    seen = []
    for request in (Request(), Request()):
        seen.append(consumer.qos.can_consume())
        reserved.add(request)
    assert [*seen, consumer.qos.can_consume()] == [True, True, False]


def test_a_job_that_only_uploads_holds_no_slot(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g")
    start(consumer)
    job = Request()
    reserved.add(job)
    assert not consumer.qos.can_consume()
    job.slot_is_free = True
    assert consumer.qos.can_consume()


def test_an_ordinary_task_holds_a_slot_as_well(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g", "celery")
    start(consumer)
    reserved.add(object())
    assert not consumer.qos.can_consume()


def test_the_transports_own_no_counts(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g")
    start(consumer)
    consumer.transport_agrees = False
    assert not consumer.qos.can_consume()


@pytest.mark.parametrize("why", ["ends", "drains", "has no slot", "transport"])
def test_what_was_asked_for_already_is_read_whatever_came_between(reserved: set[Any], why: str) -> None:
    consumer = Consumer("kelpie.g")
    start(consumer)
    assert consumer.qos.can_consume()
    consumer.channel._in_poll = object()
    if why == "ends":
        consumer.app.running.shut_down()
    elif why == "drains":
        consumer.app.running.hold_back("draining", on=True)
    elif why == "has no slot":
        reserved.add(Request())
    else:
        consumer.transport_agrees = False
    assert consumer.qos.can_consume()
    consumer.channel._in_poll = None
    assert not consumer.qos.can_consume()


def test_a_worker_that_ends_fetches_nothing(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g")
    start(consumer)
    consumer.app.running.shut_down()
    assert not consumer.qos.can_consume()


def test_a_worker_that_drains_fetches_nothing_until_every_reason_is_gone(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g")
    start(consumer)
    running = consumer.app.running
    seen = []
    for why, on in (("draining", True), ("unfit", True), ("draining", False), ("unfit", False)):
        assert running.hold_back(why, on=on)
        assert not running.hold_back(why, on=on), "no change"
        seen.append(consumer.qos.can_consume())
    assert seen == [False, False, False, True]


@pytest.mark.parametrize(
    ("queues", "groups"),
    [(("kelpie.g", "celery"), ["g"]), (("kelpie.a", "kelpie.b"), ["a", "b"]), (("kelpie.control",), []), ((), [])],
)
def test_only_workers_of_a_container_group_are_gated(queues: tuple[str, ...], groups: list[str]) -> None:
    consumer = Consumer(*queues)
    assert gate.served_groups(consumer.app) == groups
    assert gate.SlotGate(consumer).include_if(consumer) is bool(groups)


def test_a_slot_that_becomes_free_wakes_the_workers_loop_once(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g")
    start(consumer)
    assert consumer.hub
    ((fd, drained),) = consumer.hub.readers.items()
    gate.wake()
    gate.wake()
    assert select.select([fd], [], [], 0)[0] == [fd]
    drained()
    assert select.select([fd], [], [], 0)[0] == []
    drained()


def test_waking_never_blocks_however_often(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g")
    start(consumer)
    for _ in range(70_000):
        gate.wake()
    assert consumer.hub
    ((_, drained),) = consumer.hub.readers.items()
    while select.select(list(consumer.hub.readers), [], [], 0)[0]:
        drained()


def test_a_pool_without_a_loop_is_gated_too(reserved: set[Any]) -> None:
    consumer = Consumer("kelpie.g")
    consumer.hub = None
    start(consumer)
    assert consumer.qos.can_consume()
