"""What the job of a history does to its files, and what a directory holds, read independently of the product."""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kelpie_celery.checkpoints.names import leads_inside

NAMES = ("a", "b", "d/x", "d/y", "d/e/z", os.fsdecode(b"caf\xe9"))
FOLDERS = ("d", "d/e", "f", "g/h")
LINKS = ("l", "d/l")
TARGETS = ("a", "x", "../a", "nowhere", "../../out", "/etc/hostname")
MODES = (0o644, 0o600, 0o755, 0o640)
SIZES = (0, 1, 90, 255, 256, 1024, 2300, 4096, 9000, 20_000)
"""Around the limits that the histories work with: small below 256 bytes, windows of 1 KiB, segments of 4 KiB."""

UTF8_NAMES = NAMES[:-1]

Entry = tuple[str, int, bytes] | tuple[str, str] | tuple[str]
State = dict[str, Entry]
"""By relative path: a file with its permission bits and content, a link with its text, or a folder."""


def scan(directory: Path) -> State:
    """What a directory holds that a commit is to record: links that lead out of it are none of it."""
    found: State = {}
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            relative = os.fspath(path.relative_to(directory))
            if path.is_symlink():
                target = os.readlink(path)  # noqa: PTH115 -- the text as it is
                if leads_inside(relative, target):
                    found[relative] = "link", target
            elif path.is_dir():
                found[relative] = ("folder",)
            else:
                found[relative] = "file", path.stat().st_mode & 0o777, path.read_bytes()
    return found


def shown(state: State) -> str:
    """A state in few words."""
    words = []
    for relative, entry in sorted(state.items()):
        if entry[0] == "file":
            _, mode, data = entry  # type: ignore[misc]  # mypy does not narrow by the first member
            words.append(f"{relative!a}:{mode:o}:{len(data)}b#{zlib.crc32(data):08x}")
        else:
            words.append(f"{relative!a}={entry}")
    return "{" + ", ".join(words) + "}"


@dataclass(frozen=True)
class FileOp:
    """One thing that a job does to its files.

    Attributes:
        what: A method of `Job`.
        name: Which of the names.
        other: Which of the other names, sizes, modes or targets, depending on ``what``.
        seed: Makes the content; 0 mod 3 is content that can be packed.
    """

    what: str
    name: int
    other: int
    seed: int

    def __str__(self) -> str:
        return f"{self.what}({self.name},{self.other},{self.seed})"


def content(size: int, seed: int) -> bytes:
    """Bytes that another seed does not give."""
    if seed % 3 == 0:
        return (f"{seed}.".encode() * (size // 2 + 1))[:size]
    return random.Random(seed).randbytes(size)


class Job:
    """The program whose checkpoints are kept; whatever it is asked to do is possible somehow."""

    def __init__(self, directory: Path, names: Sequence[str] = NAMES) -> None:
        self.directory, self.names = directory, names

    def do(self, op: FileOp) -> list[Path]:
        """Do it; the files that were closed after writing."""
        path = self.directory / self.names[op.name % len(self.names)]
        return [written for written in getattr(self, op.what)(path, op) if written is not None]

    def _room(self, path: Path) -> Path:
        """Make the place of a file free of whatever is in its way."""
        for above in reversed(path.relative_to(self.directory).parents):
            folder = self.directory / above
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                folder.unlink()
            folder.mkdir(exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink():
            path.unlink()
        return path

    def write(self, path: Path, op: FileOp) -> list[Path]:
        self._room(path).write_bytes(content(SIZES[op.other % len(SIZES)], op.seed))
        return [path]

    def replace(self, path: Path, op: FileOp) -> list[Path]:
        self._room(path)
        temporary = path.parent / "temporary"
        temporary.write_bytes(content(SIZES[op.other % len(SIZES)], op.seed))
        temporary.replace(path)
        return [path]

    def patch(self, path: Path, op: FileOp) -> list[Path]:
        """Overwrite a few bytes in place."""
        if path.is_symlink() or not path.is_file():
            return self.write(path, op)
        size = path.stat().st_size
        at = op.seed % max(1, size)
        data = content(min(1 + op.other * 7, max(1, size - at)), op.seed)
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)
        return [path]

    def sly(self, path: Path, op: FileOp) -> list[Path]:
        """Overwrite in place, and put the time of the last change back."""
        if path.is_symlink() or not path.is_file():
            return self.write(path, op)
        before = path.stat()
        written = self.patch(path, op)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return written

    def append(self, path: Path, op: FileOp) -> list[Path]:
        if path.is_symlink() or not path.is_file():
            self._room(path)
        with path.open("ab") as file:
            file.write(content(1 + SIZES[op.other % len(SIZES)] // 8, op.seed))
        return [path]

    def truncate(self, path: Path, op: FileOp) -> list[Path]:
        if path.is_symlink() or not path.is_file():
            return []
        os.truncate(path, path.stat().st_size * (op.seed % 8) // 8)
        return [path]

    def delete(self, path: Path, op: FileOp) -> list[Path]:
        if path.is_symlink() or path.is_file():
            path.unlink()
        return []

    def rename(self, path: Path, op: FileOp) -> list[Path]:
        target = self.directory / self.names[op.other % len(self.names)]
        if path.is_symlink() or not path.is_file() or target == path:
            return []
        self._room(target)
        if not path.is_file():  # it was in the way
            return []
        path.rename(target)
        return [target]

    def link(self, path: Path, op: FileOp) -> list[Path]:
        """A second name for a file."""
        target = self.directory / self.names[op.other % len(self.names)]
        if path.is_symlink() or not path.is_file() or target == path:
            return []
        self._room(target).unlink(missing_ok=True)
        if path.is_file():
            os.link(path, target)
        return []

    def chmod(self, path: Path, op: FileOp) -> list[Path]:
        if not path.is_symlink() and path.is_file():
            path.chmod(MODES[op.other % len(MODES)])
        return []

    def symlink(self, path: Path, op: FileOp) -> list[Path]:
        place = self._room(self.directory / LINKS[op.name % len(LINKS)])
        place.unlink(missing_ok=True)
        place.symlink_to(TARGETS[op.other % len(TARGETS)])
        return []

    def mkdir(self, path: Path, op: FileOp) -> list[Path]:
        folder = self.directory / FOLDERS[op.other % len(FOLDERS)]
        if not folder.is_dir() or folder.is_symlink():
            self._room(folder).unlink(missing_ok=True)
            folder.mkdir()
        return []

    def rmtree(self, path: Path, op: FileOp) -> list[Path]:
        folder = self.directory / FOLDERS[op.other % len(FOLDERS)]
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
        return []


FILE_OPS = ("write", "replace", "patch", "sly", "append", "truncate", "delete", "rename", "link", "chmod", "symlink",
            "mkdir", "rmtree")  # fmt: skip
