"""Telling a job's owner, once an attempt, what lies in a directory and is not stored."""

from __future__ import annotations

import logging
from pathlib import Path

from kelpie_worker.sync.snapshot import Snapshot

log = logging.getLogger(__name__)


class Notices:
    """Remembers what was said; one for each attempt."""

    def __init__(self) -> None:
        self._said: set[tuple[Path, str]] = set()

    def look(self, directory: Path, snapshot: Snapshot, *, place: Path | None = None) -> None:
        """Say what a walk left out.

        Args:
            directory: As the job knows it.
            snapshot: Of it.
            place: Where its content is now, if not there.
        """
        if snapshot.reserved:
            self._say(
                "folders whose names end in .kelpie are not stored, nor is what they hold; rename them",
                "ignored_kelpie_folder", directory, directory / snapshot.reserved[0],
            )  # fmt: skip
        if not snapshot.exists and (place or directory).is_symlink():
            self._say(
                "a link took the directory's place; it is not followed, so nothing is stored for the directory",
                "link_not_followed", directory, directory,
            )  # fmt: skip

    def _say(self, message: str, action: str, directory: Path, path: Path) -> None:
        if (directory, action) not in self._said:
            self._said.add((directory, action))
            log.warning(message, extra={"action": action, "path": str(path)})
