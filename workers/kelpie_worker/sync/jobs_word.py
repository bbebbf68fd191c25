"""What the job says of its checkpoint, by a report or a marker, and whether that is still about what is there.

Limits: see ``wholeness``, which compares the times.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_worker.sync.commit import Snapshots, moved
from kelpie_worker.sync.known import LocalFile
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.timing import Rules
from kelpie_worker.sync.wholeness import marker_written, overtaken

log = logging.getLogger(__name__)


@dataclass
class Survey:
    """What a look at the directories found.

    Attributes:
        seen: What is there.
        changed: Whether that is something else than the last commit was made of.
        marker_ns: When the newest new marker was written.
        alive: Whether the command runs.
        streams: Files that only grow.
        appended: Those of them that are only appended to.
        mapped: Files that are mapped for writing.
        outputs: Outputs that have settled.
    """

    seen: Snapshots
    changed: bool
    marker_ns: int | None
    alive: bool
    streams: frozenset[Path] = frozenset()
    appended: frozenset[Path] = frozenset()
    mapped: frozenset[Path] = frozenset()
    outputs: list[LocalFile] = field(default_factory=list)


class JobsWord:
    """The job's word.

    Args:
        rules: When to commit.
        blocks: That store the checkpoint.

    Attributes:
        on_request_only: Whether nothing but a report counts.
        mapped: Files that are mapped for writing: of what changes in them nobody tells.
    """

    def __init__(self, rules: Rules, blocks: Sequence[Placed]) -> None:
        self._rules, self._blocks = rules, blocks
        self.on_request_only = rules.on_request_only
        self.mapped: frozenset[Path] = frozenset()
        self._reported_ns: int | None = None
        self._reported_followed = False
        self._missed_ns: int | None = None
        self._owed: tuple[str, Snapshots, frozenset[Path]] | None = None

    @property
    def by_quiet(self) -> bool:
        """Whether quiet moments count, as it says nothing."""
        return self._rules.by_quiet and not self.on_request_only

    def report(self, reported_ns: int | None, *, followed: bool) -> None:
        """It says that its checkpoint is whole; see `kelpie_worker.sync.watching.Watch.request_commit`."""
        self.on_request_only = True
        self._reported_ns, self._reported_followed = reported_ns, followed

    def is_marker(self, path: Path) -> bool:
        """Whether that is the name of a marker."""
        marker = self._rules.marker
        return marker is not None and any(
            path.is_relative_to(block.path) and marker.matches(path.relative_to(block.path).as_posix())
            for block in self._blocks
        )

    def marker_ns(self, before: Snapshots | None, seen: Snapshots, still_open: frozenset[Path]) -> int | None:
        """See `marker_written`."""
        return marker_written(self._blocks, self._rules.marker, before, seen, still_open)

    def why(self, survey: Survey, *, reported: bool) -> str:
        """The reason to commit what was seen; empty where there is no word that is about that.

        Args:
            survey: A look.
            reported: Whether there was a report since the last one.
        """
        report_late = reported and self._is_report_overtaken(survey.seen, survey.streams)
        marker_late = overtaken(self._blocks, survey.seen, survey.streams, survey.marker_ns)
        if reported and not report_late:
            return "report"
        if reported:
            self.miss("report")
        if survey.marker_ns is not None and not marker_late:
            return "marker"
        # A report is met once, a marker at each look.
        if survey.marker_ns is not None and survey.marker_ns != self._missed_ns:
            self._missed_ns = survey.marker_ns
            self.miss("marker")
        if self._owed is not None:
            why, of, streams = self._owed
            if not moved(of, survey.seen, streams):
                return why
            self.miss(why)
        return ""

    def owe(self, why: str, survey: Survey) -> None:
        """What it said was heard, and could not be done yet."""
        if why != "quiet":
            self._owed = why, survey.seen, survey.streams

    def met(self) -> None:
        """What it said was done."""
        self._owed = None

    def miss(self, why: str) -> None:
        """It was about a state that is gone; a quiet moment says nothing where the job's word counts."""
        self._owed = None
        if why == "quiet":
            return
        log.warning(
            "a checkpoint that the job said was whole changed before it was read; leave it alone for a moment after"
            " saying so, or write the next one under other names",
            extra={"action": "commit_missed", "why": why},
        )

    def holds(
        self, before: Snapshots | None, seen: Snapshots, streams: frozenset[Path], *, reported: bool
    ) -> bool | None:
        """Whether the last word of a command that has ended was about what it left; None: it does not speak.

        Args:
            before: What the last commit was made of.
            seen: What is there.
            streams: Files that only grow.
            reported: Whether there was a report since the last look.
        """
        if self.on_request_only:
            return (reported or self._owed is not None) and not self._is_report_overtaken(seen, streams)
        if self._rules.marker is not None:
            marker_ns = self.marker_ns(before, seen, frozenset())
            return marker_ns is not None and not overtaken(self._blocks, seen, streams, marker_ns)
        return None

    def _is_report_overtaken(self, seen: Snapshots, streams: frozenset[Path]) -> bool:
        # Of what is mapped nobody tells, so that the time of a later word is of no use.
        mapped = any(path.is_relative_to(block.path) for path in self.mapped for block in self._blocks)
        return (self._reported_followed and mapped) or overtaken(self._blocks, seen, streams, self._reported_ns)
