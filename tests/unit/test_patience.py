from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from kelpie_celery.errors import JobExists, LedgerRefused, LedgerUnavailable
from kelpie_celery.patience import until_the_ledger_answers


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted and not made."""
    made: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", made.append)
    return made


def failing(*errors: Exception) -> Iterator[Exception | None]:
    yield from errors
    while True:
        yield None


@pytest.mark.parametrize("error", [LedgerUnavailable, OperationalError, RedisConnectionError, RedisTimeoutError])
def test_a_call_is_made_again_until_redis_answers(error: type[Exception]) -> None:
    outcomes = failing(error("away"), error("away"))

    def call() -> str:
        outcome = next(outcomes)
        if outcome:
            raise outcome
        return "answer"

    assert until_the_ledger_answers(call) == "answer"


def test_what_is_not_an_outage_is_raised_at_once(pauses: list[float]) -> None:
    def call() -> None:
        raise JobExists("taken")

    with pytest.raises(JobExists):
        until_the_ledger_answers(call)
    assert pauses == []


def test_it_gives_up_with_the_last_error_when_it_is_told_to() -> None:
    tries: list[int] = []

    def call() -> None:
        tries.append(1)
        raise LedgerUnavailable(f"try {len(tries)}")

    with pytest.raises(LedgerUnavailable, match="try 4"):
        until_the_ledger_answers(call, give_up=lambda: len(tries) == 4)


def test_pauses_stay_short_and_a_long_outage_is_logged_now_and_then(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = failing(*[LedgerUnavailable("away")] * 60)

    def call() -> None:
        outcome = next(outcomes)
        if outcome:
            raise outcome

    with caplog.at_level(logging.WARNING):
        until_the_ledger_answers(call)
    assert len(pauses) == 60
    assert max(pauses) <= 2
    assert [vars(record)["tries"] for record in caplog.records] == [1, 5, 20, 40, 60]


@pytest.mark.parametrize(
    ("error", "action"), [(LedgerUnavailable("away"), "ledger_away"), (LedgerRefused("NOPERM"), "ledger_refuses")]
)
def test_an_outage_and_a_refusal_are_told_as_what_they_are(
    error: Exception, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = failing(error)

    def call() -> None:
        if outcome := next(outcomes):
            raise outcome

    until_the_ledger_answers(call)
    assert [getattr(record, "action", "") for record in caplog.records] == [action]
