"""How the ledger's operations are called: a Lua script each, and Redis's errors as ours.

Limits: synchronous; what an operation answers is its caller's to read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors

from kelpie_celery.errors import JobNotFound, LedgerRefused, LedgerUnavailable
from kelpie_celery.ledger.scripts import register
from kelpie_celery.ledger.types import Timings

if TYPE_CHECKING:
    from redis import Redis

_PASSING_KINDS = (
    redis_errors.ReadOnlyError, redis_errors.ClusterError, redis_errors.TryAgainError, redis_errors.OutOfMemoryError,
)  # fmt: skip
# redis-py knows some of these only where a script has not wrapped them.
_PASSING = re.compile(r"\b(LOADING|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|BUSY|OOM|MISCONF|NOREPLICAS)\b")


def _passes(error: redis_errors.RedisError) -> bool:
    """Whether Redis may answer otherwise after a while."""
    if not isinstance(error, redis_errors.ResponseError):
        return True
    return isinstance(error, _PASSING_KINDS) or _PASSING.search(str(error)) is not None


@contextmanager
def mapped_errors(doing: str) -> Iterator[None]:
    """Redis's errors as ``LedgerUnavailable``; ``doing`` completes "Redis did not ..."."""
    try:
        yield
    except redis_errors.RedisError as e:
        # The text of redis-py's errors names host and port, never the password.
        said = f"Redis did not {doing}: {type(e).__name__}: {e}"
        if _passes(e):
            raise LedgerUnavailable(f"{said}; check that KELPIE_REDIS_URL points to a Redis that is up") from e
        raise LedgerRefused(
            f"{said}; check that KELPIE_REDIS_URL points to kelpie's Redis, and what its user may do there"
        ) from e


def no_such_job(job_id: str) -> JobNotFound:
    """The error for an id without a record."""
    return JobNotFound(f"no job has the id {job_id!r}; 'kelpie list' shows the ids that exist")


class Calls:
    """A Redis, the scripts that are registered with it, and the durations that they work with."""

    def __init__(self, redis: Redis, timings: Timings | None = None) -> None:
        self.redis = redis
        self.timings = timings or Timings()
        self._scripts = register(redis)

    def _call(self, operation: str, doing: str, *args: Any, client: Any = None) -> Any:
        with mapped_errors(doing):
            return self._scripts[operation](keys=[], args=list(args), client=client)

    def server_time(self) -> float:
        """The server's clock: seconds since the epoch."""
        seconds: Any
        with mapped_errors("tell its time"):
            seconds, micros = self.redis.time()
        return float(seconds) + float(micros) / 1e6
