"""The product's ledger on a history's clock, whose whole database can be looked at and brought back."""

from __future__ import annotations

from typing import Any

from redis import Redis

from kelpie_celery.clock import Clock
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.scripts import OPERATIONS, source
from kelpie_celery.ledger.types import Line, Timings
from tests.contract.ledger_cases import SERVER_TIME

GIVEN_TIME = "local us, s = table.remove(ARGV), table.remove(ARGV)\nlocal t = {s, us}"
"""The time comes with each call."""
PICTURE = """
local rows = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  rows[#rows + 1] = key
  local kind, content = redis.call('TYPE', key).ok, nil
  if kind == 'string' then content = {redis.call('GET', key)}
  elseif kind == 'hash' then content = redis.call('HGETALL', key)
  elseif kind == 'set' then content = redis.call('SMEMBERS', key)
  elseif kind == 'list' then content = redis.call('LRANGE', key, 0, -1)
  else content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  rows[#rows + 1] = cjson.encode({kind, content})
end
return rows
"""
RESTORE = """
redis.call('FLUSHDB')
for i = 1, #ARGV, 2 do
  local kind, content = unpack(cjson.decode(ARGV[i + 1]))
  if kind == 'string' then redis.call('SET', ARGV[i], content[1])
  elseif kind == 'hash' then redis.call('HSET', ARGV[i], unpack(content))
  elseif kind == 'set' then redis.call('SADD', ARGV[i], unpack(content))
  elseif kind == 'list' then redis.call('RPUSH', ARGV[i], unpack(content))
  else for k = 1, #content, 2 do redis.call('ZADD', ARGV[i], content[k + 1], content[k]) end end
end
"""
"""All that the ledger has, as text: DUMP's bytes would be no text."""


class HistoryLedger(Ledger):
    """See the module."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        super().__init__(redis, Timings(tick_interval_s=0.0, poison_deaths=10_000))
        self._history_clock = clock
        for operation in OPERATIONS:
            lua = source(operation)
            assert lua.count(SERVER_TIME) == 1
            self._scripts[operation] = redis.register_script(lua.replace(SERVER_TIME, GIVEN_TIME))
        self._picture, self._restore = redis.register_script(PICTURE), redis.register_script(RESTORE)
        self.known_lines: list[Line] | None = None
        """What the history saw last; None when something was written since."""

    def _call(self, operation: str, doing: str, *args: Any, client: Any = None) -> Any:
        if operation in {"commit", "rollback", "collected"}:
            self.known_lines = None
        time = divmod(round(self._history_clock.now() * 1e6), 1_000_000)
        return super()._call(operation, doing, *args, *time, client=client)

    def server_time(self) -> float:
        return self._history_clock.now()

    def picture(self) -> list[str]:
        """The whole database: keys and their content, in turn."""
        rows: list[str] = self._picture()
        return rows

    def bring_back(self, picture: list[str]) -> None:
        """Lose all that was written since."""
        self._restore(args=picture)
        self.known_lines = None

    def forget_lines(self) -> None:
        """The lines have expired, or everything was lost; the job's record is there again."""
        lines = list(self.redis.scan_iter("kelpie:line:*"))
        if lines:
            self.redis.delete(*lines)
        self.known_lines = None
