"""The last lines of a command's output for the ledger: what is new of them, now and then.

They ride along with renewals of the lease. Lines are made printable, and secrets masked, only when they are told, so
that a flood costs next to nothing: what was pushed out before is never looked at.

Limits: at most `MAX_LINES` lines and `MAX_BYTES` are kept; a line of more than `log_text.MAX_LINE_CHARS` is cut. News
is due `LEAST_PAUSE_S` after the last, later where there was much: a job tells `BYTES_PER_S` at most in the long run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kelpie_celery.ledger.types import NewOutput, encodable
from kelpie_celery.log_text import MAX_LINE_CHARS, printable, shortened
from kelpie_celery.redaction import Redactor

MAX_LINES = 200
MAX_BYTES = 16384
LEAST_PAUSE_S = 2.5
BYTES_PER_S = 2048.0

_RAW_CHARS = 3 * MAX_LINE_CHARS
"""How much of a line is looked at: sequences for terminals and secrets make it shorter."""


class RecentOutput:
    """The last lines of one attempt's command.

    Args:
        redactor: Masks secrets.
        now_s: A clock that never goes back, seconds.
    """

    def __init__(self, redactor: Redactor, now_s: Callable[[], float]) -> None:
        self._redactor, self._now_s = redactor, now_s
        self._lines = deque[tuple[str, int]](maxlen=MAX_LINES)
        self._count = self._told = 0
        self._costs: list[int] = []
        self._due_at_s = now_s()

    def add(self, line: str) -> None:
        """Take a line."""
        self._count += 1
        if len(line) <= _RAW_CHARS:
            self._lines.append((line, 0))
        else:
            looked_at = _RAW_CHARS + self._redactor.longest_chars
            self._lines.append((line[:looked_at], max(0, len(line) - looked_at)))

    @property
    def is_due(self) -> bool:
        """Whether there is something to tell, and it is time."""
        return self._count > self._told and self._now_s() >= self._due_at_s

    def news(self, *, last: bool = False) -> NewOutput | None:
        """What is to be told now; None when nothing is. The same again, and more, until `told` is called.

        Args:
            last: Whether nothing will follow: then it is time in any case.
        """
        if self._count == self._told or not (last or self.is_due):
            return None
        new = self._count - self._told
        lines: list[str] = []
        room = MAX_BYTES
        for raw, more in reversed(self._lines):
            line = self._shown(raw, more)
            room -= _cost(line)
            if room < 0 or len(lines) == new:
                break
            lines.append(line)
        # Where some are left out, those before them do not belong to the last ones any more.
        older = self._older(MAX_BYTES - sum(map(_cost, lines)), MAX_LINES - new) if len(lines) == new else 0
        return NewOutput(tuple(lines[::-1]), self._count, len(lines) + older)

    def _older(self, room_bytes: int, most: int) -> int:
        """How many of the lines that the ledger has may stay there."""
        count = 0
        for cost in reversed(self._costs):
            room_bytes -= cost
            if room_bytes < 0 or count == most:
                break
            count += 1
        return count

    def told(self, news: NewOutput) -> None:
        """The ledger has heard of it."""
        costs = [_cost(line) for line in news.lines]
        self._costs = ([*self._costs, *costs])[-news.kept :]
        self._told = news.last
        self._due_at_s = self._now_s() + max(LEAST_PAUSE_S, sum(costs) / BYTES_PER_S)

    def _shown(self, raw: str, more: int) -> str:
        mask, whole_chars = self._redactor.mask, len(raw) + more
        text = mask(raw)
        if more:
            # What a secret's beginning may be, of which the rest was not looked at.
            text = text[: max(0, len(text) - self._redactor.longest_chars)]
        text = mask(printable(text))
        if not more:
            return encodable(shortened(text))
        return encodable(f"{text[:MAX_LINE_CHARS]} [{whole_chars - MAX_LINE_CHARS} more characters]")


def _cost(line: str) -> int:
    return len(line.encode()) + 1
