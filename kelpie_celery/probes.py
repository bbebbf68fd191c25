"""A file whose age tells a container's probe that a process works, and not merely lives.

Limits: a file system that is full or read-only is told in the log; it stops no work.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def touch(file: Path | None) -> None:
    """Say that a round is done; without a file, nobody asks."""
    if file is None:
        return
    try:
        file.touch()
    except OSError as e:
        log.warning(
            "KELPIE_READY_FILE cannot be written, so probes will take this process for stuck",
            extra={"action": "ready_file_unwritable", "error": str(e)},
        )
