"""The recording of a simulated SaladCloud's traffic on a disk that fills."""

from __future__ import annotations

import errno
import json
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.local.salad.recording import Recording


class SmallDisk(FileIO):
    """A file that takes a few bytes at a time, as long as there is room."""

    room = 10**9

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "no space left")
        taken = super().write(bytes(data)[: min(50, self.room)])
        self.room -= taken
        return taken


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    made = Recording(tmp_path / "record")
    made.close()
    made._file = SmallDisk(tmp_path / "record", "ab")
    return made


def note(recording: Recording, url: str) -> None:
    recording.note("api", method="GET", url=url, headers={}, body=None, status=200, response={}, at="now")


def urls(path: Path) -> list[str]:
    return [json.loads(line)["url"] for line in path.read_text().splitlines()]


def test_a_line_that_is_taken_piece_by_piece_is_whole(recording: Recording, tmp_path: Path) -> None:
    for number in range(3):
        note(recording, f"u{number}")
    assert urls(tmp_path / "record") == ["u0", "u1", "u2"]


def test_a_line_for_which_there_is_no_room_spoils_no_other(recording: Recording, tmp_path: Path) -> None:
    note(recording, "before")
    assert isinstance(recording._file, SmallDisk)
    recording._file.room = 70
    with pytest.raises(OSError, match="no space left"):
        note(recording, "lost")
    recording._file.room = 10**9
    note(recording, "after")
    assert urls(tmp_path / "record") == ["before", "after"]
