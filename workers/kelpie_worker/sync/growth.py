"""Whether a file only grows, as looks at its stamp and at who has it open show. Pure, one object a file.

Limits: what happens between two looks and leaves a longer file looks like growth; that is why a file that may also be
written to elsewhere than at its end must be open all the time, and prove itself for minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

from kelpie_worker.sync.open_files import OpenFile
from kelpie_worker.sync.snapshot import Stamp

_GROWN_TIMES = 3


@dataclass
class Growth:
    """What is known of one file since it was first seen open, or growing.

    Attributes:
        still_since_s: Since when it is unchanged.
        grown_since_s: When it was first seen to have grown.
        grown: How often it was seen to have grown.
        only_appended: Whether whoever had it open could only append to it; None when nobody had.
        mapped: Whether somebody has it mapped.
        rewritten: Whether it was seen to have changed otherwise.
    """

    still_since_s: float
    grown_since_s: float = 0.0
    grown: int = 0
    only_appended: bool | None = None
    mapped: bool = False
    rewritten: bool = False

    def note_change(self, before: Stamp, after: Stamp, now_s: float) -> None:
        """It has another stamp; still the same inode."""
        if after.size_bytes > before.size_bytes:
            self.grown_since_s = self.grown_since_s if self.grown else now_s
            self.grown += 1
        elif after.size_bytes < before.size_bytes or after.mtime_ns != before.mtime_ns:
            self.grown, self.rewritten = 0, True
        self.still_since_s = now_s

    def note_open(self, file: OpenFile) -> None:
        """It is open for writing."""
        self.only_appended = file.append and self.only_appended is not False
        self.mapped = file.mapped

    def is_stream(self, now_s: float, after_s: float) -> bool:
        """Whether it only grows; proven over ``after_s`` seconds where anything else can be."""
        if self.mapped:
            return False
        if self.only_appended and not self.rewritten:
            return True
        return self.grown >= _GROWN_TIMES and now_s - self.grown_since_s >= after_s

    def is_lock(self, size_bytes: int, now_s: float, after_s: float) -> bool:
        """Whether it has been open and empty for so long that nothing will be written to it."""
        return size_bytes == 0 and now_s - self.still_since_s >= after_s


def same_file(before: Stamp, after: Stamp) -> bool:
    """Whether two stamps are of one inode."""
    return (before.device, before.inode) == (after.device, after.inode)
