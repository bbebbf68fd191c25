"""Redis that refuses is told apart from Redis that is away."""

from __future__ import annotations

from typing import Any, cast

import pytest
from redis import exceptions as redis_errors

from kelpie_celery.errors import LedgerRefused, LedgerUnavailable
from kelpie_celery.ledger.calls import mapped_errors
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import FencingToken
from kelpie_worker.journal import LedgerJournal


@pytest.mark.parametrize("error", [
    redis_errors.NoPermissionError("this user has no permissions"), redis_errors.ResponseError("WRONGTYPE Operation"),
    redis_errors.ResponseError("user_script:1: attempt to index a nil value"),
])  # fmt: skip
def test_what_waiting_does_not_mend_is_a_refusal(error: Exception) -> None:
    with pytest.raises(LedgerRefused, match="KELPIE_REDIS_URL"), mapped_errors("answer"):
        raise error


@pytest.mark.parametrize("error", [
    redis_errors.ConnectionError("refused"), redis_errors.TimeoutError("late"),
    redis_errors.BusyLoadingError("loading"),
    redis_errors.ReadOnlyError("replica"), redis_errors.ResponseError("BUSY Redis is busy running a script"),
    redis_errors.ResponseError("-READONLY You can't write against a read only replica. script: 1"),
])  # fmt: skip
def test_what_may_pass_is_no_refusal(error: Exception) -> None:
    with pytest.raises(LedgerUnavailable) as caught, mapped_errors("answer"):
        raise error
    assert not isinstance(caught.value, LedgerRefused)


class _Refusing:
    def __init__(self) -> None:
        self.asked = 0

    def lines(self, _: Any) -> Any:
        self.asked += 1
        if self.asked == 1:
            raise LedgerUnavailable("away")
        raise LedgerRefused("no permission")


async def test_a_journal_waits_for_redis_but_not_for_a_permission() -> None:
    ledger = _Refusing()
    with pytest.raises(LedgerRefused, match="no permission"):
        await LedgerJournal(cast("Ledger", ledger), FencingToken("job", 1, "nonce")).lines([])
    assert ledger.asked == 2
