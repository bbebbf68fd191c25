"""What a job says in its report, each line with the time that it is about.

Limits: the time of a line that others follow is known only where nothing changed between them; see
`kelpie_worker.sync.order`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from kelpie_worker.command.report import Report, ReportFile
from kelpie_worker.sync.order import UNKNOWN, nothing_between

TOO_LATE = 0
"""A time before everything: whatever is there may have changed since."""
_MOST_ROUNDS = 20
_LONGEST_S = 2.0
"""How long is asked for the order: a job's words are its sign of life, too, and must not wait for long."""


class Word(NamedTuple):
    """A line, and when it was said.

    Attributes:
        report: What it says.
        said_ns: By the clock of file times; of a line that others follow, the time of the last of them.
        followed: Whether others follow it: then nobody told of a change between them, as far as changes are told of.
    """

    report: Report
    said_ns: int | None
    followed: bool = False


class Words:
    """Hears a job.

    Args:
        report: Its file.
        order: What happened since it was last asked: see `kelpie_worker.sync.order.Order`.
    """

    def __init__(self, report: ReportFile, order: Callable[[], Awaitable[str]]) -> None:
        self._report, self._order = report, order
        self._heard: list[Report] = []
        self._happened = ""

    async def hear(self) -> list[Word]:
        """The new lines, oldest first; none is lost when this is cancelled."""
        self._heard += self._report.poll()
        if not self._heard:
            return []
        complete = await self._hear_out()
        known = complete and nothing_between(self._happened)
        heard, self._heard, self._happened = self._heard, [], ""
        last_ns = self._report.written_ns
        *followed, last = heard
        return [
            *(Word(report, last_ns if known else TOO_LATE, followed=True) for report in followed),
            Word(last, last_ns if complete else TOO_LATE),
        ]

    async def _hear_out(self) -> bool:
        """Ask what happened until nothing was said meanwhile: then it is the order of just these lines."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + _LONGEST_S
        for _ in range(_MOST_ROUNDS):
            if UNKNOWN not in self._happened:
                happened = await self._order() if loop.time() < end_s else UNKNOWN
                self._happened += happened
            self._heard += self._report.poll()
            if not self._report.read_bytes:
                return True
        return False
