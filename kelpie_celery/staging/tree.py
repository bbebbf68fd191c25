"""What a directory holds that is to be sent: its regular files, and what has to be left out.

Symbolic links are not followed: what they lead to may be anywhere. Folders whose names end in ``.kelpie`` and our own
temporary files are not sent, as no job would be given them.

Limits: a walk takes time; files that come meanwhile may be in it or not.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_celery.checkpoints.names import TEMPORARY
from kelpie_celery.errors import DirectoryError
from kelpie_celery.transfers import CONTROL_SUFFIX

_NAMED = 5


@dataclass
class Tree:
    """What was found, by relative path.

    Attributes:
        files: The size of each file, in bytes.
        links: Symbolic links.
        others: Sockets, pipes, devices.
        reserved: Folders and files whose names are kelpie's own.
        empty: Folders without anything in them.
    """

    files: dict[str, int] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    reserved: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(self.files.values())


def walk(root: Path) -> Tree:
    """Look through a directory.

    Raises:
        DirectoryError: It is none, or part of it cannot be read: what is hidden would be missing from the input.
    """
    try:
        what = "" if root.is_dir() else "is not a directory" if root.exists() else "does not exist"
    except OSError as error:
        what = f"cannot be looked into: {error.strerror}"
    if what:
        raise DirectoryError(f"{shown(root)} {what}; name the directory that holds the files")
    tree, pending = Tree(), [""]
    while pending:
        _look_into(root, pending.pop(), tree, pending)
    for names in (tree.links, tree.others, tree.reserved, tree.empty):
        names.sort()
    tree.files = dict(sorted(tree.files.items()))
    return tree


def _look_into(root: Path, folder: str, tree: Tree, pending: list[str]) -> None:
    found = False
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                found = True
                _note(entry, f"{folder}/{entry.name}" if folder else entry.name, tree, pending)
    except OSError as error:
        path = shown(error.filename or root / folder)
        raise DirectoryError(f"cannot read {path}: {error.strerror}; check its owner and mode") from error
    if folder and not found:
        tree.empty.append(folder)


def _note(entry: os.DirEntry[str], relative: str, tree: Tree, pending: list[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        tree.links.append(relative)
    elif stat.S_ISDIR(status.st_mode):
        if entry.name.endswith(CONTROL_SUFFIX):
            tree.reserved.append(relative)
        else:
            pending.append(relative)
    elif not stat.S_ISREG(status.st_mode):
        tree.others.append(relative)
    elif entry.name.startswith(TEMPORARY):
        tree.reserved.append(relative)
    else:
        tree.files[relative] = status.st_size


def named(names: list[str] | tuple[str, ...]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shown(name) for name in names[:_NAMED]) + more


def shown(path: str | bytes | Path) -> str:
    """A path as it may stand in a message: quoted where it holds a space, a line break, or what is no text."""
    text = os.fsdecode(path)
    return text if text.isprintable() and " " not in text and text else ascii(text)
