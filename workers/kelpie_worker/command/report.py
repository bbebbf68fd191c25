"""``KELPIE_REPORT``: a file to which a job appends JSON lines about itself.

A line is an object with ``progress`` (0 to 1), ``message`` (text) and ``"commit": true`` (what lies in the checkpoint
directory now is worth keeping). Limits: what is wrong with a line is said once and the line is dropped; at most 256 KiB
are read at a time, the rest the next time.
"""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_MAX_BYTES = 256 * 1024
_MAX_MESSAGE_CHARS = 500


@dataclass(frozen=True)
class Report:
    """One line of a job about itself."""

    progress: float | None = None
    message: str | None = None
    commit: bool = False


class ReportFile:
    """Reads what is new since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self._rest = b""
        self._warned = False

    def poll(self) -> list[Report]:
        """The complete new lines, oldest first."""
        *lines, self._rest = (self._rest + self._new()).split(b"\n")
        if len(self._rest) > _MAX_BYTES:
            self._complain("a line is longer than 256 KiB")
            self._rest = b""
        return [report for line in lines if line.strip() and (report := self._parsed(line))]

    def _new(self) -> bytes:
        try:
            with self._path.open("rb") as f:
                self._notice_replacement(f.fileno())
                f.seek(self._offset)
                data = f.read(_MAX_BYTES)
        except OSError:
            return b""
        self._offset += len(data)
        return data

    def _notice_replacement(self, fd: int) -> None:
        stat = os.fstat(fd)
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._inode, self._offset, self._rest = stat.st_ino, 0, b""

    def _parsed(self, line: bytes) -> Report | None:
        try:
            value = json.loads(line)
            return _checked(value)
        except (ValueError, RecursionError) as e:
            self._complain(str(e))
            return None

    def _complain(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("a line in KELPIE_REPORT is not understood", extra={"action": "bad_report", "why": why})


def _checked(value: Any) -> Report:
    if not isinstance(value, dict):
        raise ValueError('a line must be a JSON object, such as {"progress": 0.5}')  # noqa: TRY004 - one kind of error
    progress = value.get("progress")
    if progress is not None and (
        isinstance(progress, bool) or not isinstance(progress, int | float) or not math.isfinite(progress)
    ):
        raise ValueError("progress must be a number from 0 to 1")
    if progress is not None and not 0 <= progress <= 1:
        raise ValueError("progress must be from 0 to 1, not a percentage")
    message = value.get("message")
    if message is not None and not isinstance(message, str):
        raise ValueError("message must be a string")
    return Report(progress, message[:_MAX_MESSAGE_CHARS] if message else message, value.get("commit") is True)
