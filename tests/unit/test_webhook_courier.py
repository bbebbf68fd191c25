"""The courier on a ledger in memory: what is sent when, how often, and to how many at a time."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import LedgerRefused, LedgerUnavailable
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import Granted, NewJob
from kelpie_celery.ledger.webhooks import Webhook
from kelpie_celery.settings import load_settings
from kelpie_scaler.webhooks import courier as module
from kelpie_scaler.webhooks.courier import PER_HOST, THREADS, Courier
from kelpie_scaler.webhooks.sending import Answer

SECRET = "s3cret-path"
SENT, FAILED, GONE = (
    Answer(sent=True, code=200),
    Answer(code=500, error="answered 500"),
    Answer(final=True, error="gone"),
)


class Post:
    """What receivers answer, and what they got."""

    def __init__(self, answer: Callable[[Webhook], Answer] = lambda _: SENT) -> None:
        self.answer, self.sent = answer, list[Webhook]()
        self.busy, self.most = Counter[str](), Counter[str]()
        self._lock = threading.Lock()

    def __call__(self, hook: Webhook) -> Answer:
        host = hook.url.split("/")[2]
        with self._lock:
            self.sent.append(hook)
            for name in (host, "all"):
                self.busy[name] += 1
                self.most[name] = max(self.most[name], self.busy[name])
        try:
            return self.answer(hook)
        finally:
            with self._lock:
                self.busy.subtract((host, "all"))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(fakeredis.FakeRedis(decode_responses=True))


def make(ledger: Ledger, post: Post, **more: str) -> Courier:
    settings = load_settings({"KELPIE_REDIS_URL": "rediss://h", **more})
    return Courier(ledger, settings, ManualClock(), send=post)


def start(ledger: Ledger, job_id: str, host: str = "h1.example", group: str = "g") -> None:
    """A job that runs, and has a webhook."""
    ledger.submit(NewJob(job_id, group, "{}", "@KELPIE_TAG@", 5, 1.0, 3, webhook=f"https://{host}/{SECRET}"))
    assert isinstance(ledger.claim(job_id, "n", "m", "w", None, may_run=True), Granted)


def state(ledger: Ledger, job_id: str) -> tuple[str, int]:
    [hook] = ledger.webhooks_of([job_id])
    return hook.told.state, hook.told.tries


def test_what_is_due_is_sent_and_recorded(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    start(ledger, "a")
    start(ledger, "b", group="other")
    post = Post()
    with caplog.at_level(logging.INFO):
        assert make(ledger, post).round() == 2
    assert sorted(hook.job_id for hook in post.sent) == ["a", "b"]
    assert state(ledger, "a") == state(ledger, "b") == ("sent", 1)
    assert {getattr(record, "action", "") for record in caplog.records} == {"webhook_sent"}
    assert SECRET not in caplog.text


def test_nothing_is_sent_twice(ledger: Ledger) -> None:
    start(ledger, "a")
    post = Post()
    courier = make(ledger, post)
    assert [courier.round(), courier.round()] == [1, 0]


def test_what_is_not_taken_waits_for_its_next_try(ledger: Ledger) -> None:
    start(ledger, "a")
    courier = make(ledger, Post(lambda _: FAILED))
    assert courier.round() == 1
    assert courier.round() == 0
    [hook] = ledger.webhooks_of(["a"])
    assert (hook.told.state, hook.told.code, hook.told.error) == ("waiting", 500, "answered 500")
    assert hook.due is not None
    assert 2.0 <= hook.due - ledger.server_time() <= 5.1


def test_the_pauses_double_up_to_a_bound_and_no_two_are_alike(ledger: Ledger) -> None:
    courier = make(ledger, Post(), KELPIE_WEBHOOK_RETRY_BASE_S="4", KELPIE_WEBHOOK_RETRY_MAX_S="60")
    for tries, full_s in ((1, 4), (2, 8), (4, 32), (5, 60), (1000, 60)):
        pauses = [courier.pause_s(tries) for _ in range(50)]
        assert full_s / 2 <= min(pauses) < max(pauses) <= full_s


def test_a_receivers_wish_for_a_longer_pause_is_honoured(ledger: Ledger) -> None:
    start(ledger, "a")
    make(ledger, Post(lambda _: Answer(code=503, error="x", retry_after_s=1000))).round()
    [hook] = ledger.webhooks_of(["a"])
    assert hook.due is not None
    assert hook.due - ledger.server_time() > 990


def test_after_the_last_try_it_is_dead(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    start(ledger, "a")
    courier = make(ledger, Post(lambda _: FAILED), KELPIE_WEBHOOK_TRIES="2", KELPIE_WEBHOOK_RETRY_BASE_S="0.000001")
    while state(ledger, "a")[0] == "waiting":
        courier.round()
    assert state(ledger, "a") == ("dead", 2)
    [record] = [record for record in caplog.records if getattr(record, "action", "") == "webhook_dead"]
    assert "kelpie webhooks retry" in record.getMessage()
    assert SECRET not in caplog.text


def test_what_is_of_no_use_to_try_again_is_dead_at_once(ledger: Ledger) -> None:
    start(ledger, "a")
    make(ledger, Post(lambda _: GONE)).round()
    assert state(ledger, "a") == ("dead", 1)


def test_a_fault_of_ours_counts_as_a_try(ledger: Ledger) -> None:
    start(ledger, "a")
    start(ledger, "b")

    def answer(hook: Webhook) -> Answer:
        if hook.job_id == "a":
            raise RuntimeError(SECRET)
        return SENT

    make(ledger, Post(answer)).round()
    assert (state(ledger, "a"), state(ledger, "b")) == (("waiting", 1), ("sent", 1))
    assert SECRET not in ledger.webhooks_of(["a"])[0].told.error


def test_a_slow_host_gets_few_at_a_time_and_keeps_no_other_waiting(ledger: Ledger) -> None:
    for n in range(20):
        start(ledger, f"slow{n}", host="slow.example")
    for n in range(4):
        start(ledger, f"quick{n}", host=f"quick{n}.example")
    quick = threading.Semaphore(0)

    def answer(hook: Webhook) -> Answer:
        if "slow" in hook.job_id:
            assert quick.acquire(timeout=30)  # not before a quick one was sent
            quick.release()
        else:
            quick.release()
        return SENT

    post = Post(answer)
    courier = make(ledger, post)
    courier.round()
    assert {hook.job_id for hook in post.sent} >= {f"quick{n}" for n in range(4)}
    assert post.most["slow.example"] <= PER_HOST
    assert post.most["all"] <= THREADS
    assert all(tries <= 1 for _, tries in (state(ledger, f"slow{n}") for n in range(20)))


def test_two_rounds_of_one_process_do_not_overlap(ledger: Ledger) -> None:
    start(ledger, "a")
    inner: list[int] = []
    post = Post()
    courier = make(ledger, post)

    def answer(_: Webhook) -> Answer:
        inner.append(courier.round())
        return SENT

    post.answer = answer
    assert courier.round() == 1
    assert inner == [0]


def test_a_round_has_an_end_whatever_comes_in(ledger: Ledger) -> None:
    clock = ManualClock()
    numbers = iter(range(10_000))
    start(ledger, "first")

    def answer(_: Webhook) -> Answer:
        clock.advance(1.0)
        start(ledger, f"more{next(numbers)}")
        return SENT

    courier = Courier(ledger, load_settings({"KELPIE_REDIS_URL": "rediss://h"}), clock, send=Post(answer))
    assert 10 <= courier.round() <= module.ROUND_S + THREADS


def test_a_group_whose_keys_are_spoilt_does_not_stop_the_others(ledger: Ledger) -> None:
    start(ledger, "a", group="spoilt")
    start(ledger, "b", group="whole")
    ledger.redis.delete("kelpie:g:spoilt:webhooks")
    ledger.redis.set("kelpie:g:spoilt:webhooks", "no sorted set")
    with pytest.raises(LedgerRefused):
        ledger.take_webhooks("spoilt", 1, 1.0)
    assert make(ledger, Post()).round() == 1
    assert state(ledger, "b") == ("sent", 1)


def test_what_could_not_be_recorded_is_tried_again_after_its_lease(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(ledger, "a")
    clock = ManualClock()
    courier = Courier(ledger, load_settings({"KELPIE_REDIS_URL": "rediss://h"}), clock, send=Post())

    def away(*_: Any, **__: Any) -> str:
        clock.advance(100)
        raise LedgerUnavailable("Redis is away") from RedisConnectionError()

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "settle_webhook", away)
        assert courier.round() == 1
    assert state(ledger, "a") == ("waiting", 1)


def test_a_host_is_sent_to_again_after_redis_went_away_in_the_midst_of_a_round(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(PER_HOST):
        start(ledger, f"a{number}")
    gone, take, looks = threading.Event(), ledger.take_webhooks, [0]

    def slow(_: Webhook) -> Answer:
        assert gone.wait(60)
        return SENT

    courier = make(ledger, Post(slow))
    monkeypatch.setattr(module, "LOOK_S", 0.01)

    def once(*args: Any) -> list[Webhook]:
        looks[0] += 1
        if looks[0] > 1:
            gone.set()
            raise LedgerUnavailable("Redis is away") from RedisConnectionError()
        return take(*args)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "take_webhooks", once)
        with pytest.raises(LedgerUnavailable):
            courier.round()
    start(ledger, "later")
    courier.round()
    assert state(ledger, "later") == ("sent", 1)


def test_one_that_cannot_be_given_back_keeps_no_other_waiting(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(PER_HOST + 1):
        start(ledger, f"a{number}")
    settle = ledger.settle_webhook

    def refuses(hook: Webhook, what: str, **more: Any) -> str:
        if what == "unsent":
            raise LedgerRefused("the entry is spoilt")
        return settle(hook, what, **more)

    monkeypatch.setattr(ledger, "settle_webhook", refuses)
    assert make(ledger, Post()).round() == PER_HOST
