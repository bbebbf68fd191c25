"""``KELPIE_REPORT``: a file to which a job appends JSON lines about itself.

A line is an object with any of ``progress`` (a number from 0 to 1), ``message`` (text) and ``"commit": true`` (what is
in the checkpoint directory now is a state worth keeping). Limits: at most 256 KiB are read at a look, the rest at the
next; a line that is wrong is dropped and counted, and the first one is explained in the log. A job that writes the file
anew each time (``>`` for ``>>``) is followed too; of what it wrote between two looks only the last is seen.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_LOOK_BYTES = 256 * 1024
MAX_LINE_BYTES = 64 * 1024
MAX_MESSAGE_CHARS = 500
_SEEN_BYTES = 256


@dataclass(frozen=True)
class Report:
    """One line of a job about itself."""

    progress: float | None = None
    message: str | None = None
    commit: bool = False


class ReportFile:
    """Reads what is new since the last look.

    Attributes:
        num_bad: How many lines were dropped.
        written_ns: When the last line that was read was written, by the clock of file times; None before the first.
        read_bytes: How much there was to read at the last look.
    """

    def __init__(self, path: Path, log_fields: Mapping[str, object] | None = None) -> None:
        self.num_bad = 0
        self.written_ns: int | None = None
        self.read_bytes = 0
        self._path = path
        self._log_fields = dict(log_fields or {})
        self._complained = False
        self._forget()

    def _forget(self, file_id: tuple[int, int] = (0, 0)) -> None:
        """Begin (again) with a file's first byte."""
        self._file_id = file_id
        self._offset = 0
        self._rest = b""
        self._skipping = False
        self._seen = b""
        self._mtime_ns: int | None = None
        self._suspect_mtime_ns: int | None = None

    def clear(self) -> None:
        """Remove the file and forget it."""
        self._path.unlink(missing_ok=True)
        self._forget()

    def poll(self) -> list[Report]:
        """The complete new lines, oldest first."""
        new = self._new()  # which may begin again, and then there is no rest
        self.read_bytes = len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        if lines and self._skipping:
            self._skipping = False
            del lines[0]
        if len(self._rest) > MAX_LINE_BYTES:
            if not self._skipping:
                self._refuse(f"a line is longer than {MAX_LINE_BYTES} bytes")
            self._skipping, self._rest = True, b""
        return [report for line in lines if line.strip() and (report := self._parsed(line))]

    def _new(self) -> bytes:
        try:
            # A job can put anything in its place: a FIFO must not block the worker.
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return b""
        try:
            return self._read(fd)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def _read(self, fd: int) -> bytes:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        if self._is_new_content(fd, status):
            self._forget((status.st_dev, status.st_ino))
        data = os.pread(fd, MAX_LOOK_BYTES, self._offset)
        self._offset += len(data)
        if data or self._mtime_ns is None:
            self._seen = (self._seen + data)[-_SEEN_BYTES:]
            self._mtime_ns = status.st_mtime_ns
        if data:
            self.written_ns = os.fstat(fd).st_mtime_ns  # not the one from before, which a line may have come after
        return data

    def _is_new_content(self, fd: int, status: os.stat_result) -> bool:
        """Whether what was read before is no longer what the file begins with."""
        if (status.st_dev, status.st_ino) != self._file_id or status.st_size < self._offset:
            return True
        if status.st_size > self._offset:
            return os.pread(fd, len(self._seen), self._offset - len(self._seen)) != self._seen
        # As long as before, yet written: perhaps the same line once more. An append sets the time a moment before the
        # length, so that only a second look tells the two apart.
        again, self._suspect_mtime_ns = self._suspect_mtime_ns, status.st_mtime_ns
        return status.st_mtime_ns not in (self._mtime_ns, None) and again == status.st_mtime_ns

    def _parsed(self, line: bytes) -> Report | None:
        try:
            return _checked(json.loads(line))
        except json.JSONDecodeError as e:
            self._refuse(f"it is not JSON ({e.msg} at column {e.colno})")
        except (ValueError, RecursionError) as e:
            self._refuse(str(e))
        return None

    def _refuse(self, why: str) -> None:
        self.num_bad += 1
        if not self._complained:
            self._complained = True
            log.warning(
                "a line in KELPIE_REPORT is dropped, and so are later ones that are wrong",
                extra={"action": "report_refused", "why": why, **self._log_fields},
            )


def _checked(value: Any) -> Report:
    if not isinstance(value, dict) or not value.keys() & {"progress", "message", "commit"}:
        raise ValueError('a line is a JSON object with progress, message or commit, such as {"progress": 0.5}')
    progress, message, commit = value.get("progress"), value.get("message"), value.get("commit", False)
    if progress is not None and not _is_share(progress):
        raise ValueError("progress is a number from 0 to 1; divide a percentage by 100")
    if message is not None and not isinstance(message, str):
        raise ValueError("message is a string")
    if not isinstance(commit, bool):
        raise ValueError("commit is true or false")  # noqa: TRY004 - one kind of error for all that is wrong
    return Report(
        None if progress is None else float(progress),
        None if message is None else message[:MAX_MESSAGE_CHARS],
        commit,
    )


def _is_share(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= 1
