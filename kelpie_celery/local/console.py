"""Many log files on one terminal: each line with the coloured name of the process that wrote it."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLOURS = ("cyan", "green", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "bright_blue")
CHUNK_BYTES = 1024 * 1024


class LogFollower:
    """Reads what is appended to a log file, by whole lines, from its present end on.

    Limits: a file that is cut short is read again from its start; one that is replaced by another is not
    noticed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._rest = path, b""
        self._position = path.stat().st_size if path.exists() else 0

    def new_lines(self) -> list[str]:
        """The lines that were completed since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                data = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return []
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


class LogConsole:
    """Prints the new lines of every log that was added, and notices of its own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._followers: dict[str, LogFollower] = {}
        self._width = 0

    def follow(self, name: str, log: Path) -> None:
        """Follow one more log; harmless when it is followed already."""
        if name not in self._followers:
            self._followers[name] = LogFollower(log)
            self._width = max(self._width, len(name))

    def drain(self) -> None:
        """Print what is new."""
        for index, (name, follower) in enumerate(self._followers.items()):
            prefix = Text(f"{name:<{self._width}} | ", style=COLOURS[index % len(COLOURS)])
            for line in follower.new_lines():
                # Text.from_ansi keeps what colours the process itself chose, and takes no markup from its output.
                self._console.print(prefix + Text.from_ansi(line), soft_wrap=True, highlight=False)

    def say(self, message: str, style: str = "bold") -> None:
        """Print a notice of the stack's own."""
        self._console.print(Text(message, style=style), soft_wrap=True, highlight=False)
