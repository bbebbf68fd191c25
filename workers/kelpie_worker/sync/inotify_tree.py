"""Which folders are watched: all below some roots, as folders come, move and go.

A folder is watched first and looked into afterwards. Whatever appears in it is then found, or told by an event, or
both; and as the events of a folder come in order, the last word on each name is right.

Limits: paths are bytes, as names need not be text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_worker.sync.inotify_calls import Watches
from kelpie_worker.sync.paths import CONTROL_SUFFIX, TEMPORARY

RESERVED = CONTROL_SUFFIX.encode()
OURS = TEMPORARY.encode()
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(eq=False, slots=True)
class Folder:
    """A watched folder.

    Attributes:
        path: Where it is; another object takes its place when it moves.
        watch: The number of its watch.
        roots: The roots that it is below, or is.
        children: The watched folders in it, by name.
    """

    path: bytes
    watch: int
    roots: tuple[Path, ...]
    children: dict[bytes, Folder] = field(default_factory=dict)


class Tree:
    """The watched folders.

    Args:
        watches: The kernel's side.
        roots: All that there are.
        found: Told of each file in a folder that was looked into: its path and that folder.
        failed: Told why not all can be watched.
        stopped: Whether to give up a long look.
    """

    def __init__(
        self,
        watches: Watches,
        roots: Sequence[Path],
        found: Callable[[bytes, Folder], None],
        failed: Callable[[OSError], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._watches, self._found, self._failed, self._stopped = watches, found, failed, stopped
        self._roots = {os.fsencode(root): root for root in roots}
        self._folders: dict[int, Folder] = {}

    def get(self, watch: int) -> Folder | None:
        """The folder of a watch, if it is one of ours still."""
        return self._folders.get(watch)

    def adopt(self, path: bytes, parent: Folder | None) -> Folder | None:
        """Watch a folder and all below it, as far as that can be done.

        Returns:
            The folder, unless it is gone, cannot be watched, or has been watched all the time.
        """
        top = None
        try:
            top = self._watch(path, parent)
            pending = [top] if top else []
            while pending and not self._stopped():
                folder = pending.pop()
                children = (self._watch(below, folder) for below in self._look_into(folder))
                pending += [child for child in children if child]
        except OSError as error:
            self._failed(error)
        return top

    def _watch(self, path: bytes, parent: Folder | None) -> Folder | None:
        """Watch one folder; None if it is gone, or has been watched all the time."""
        try:
            watch = self._watches.add(path)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return None
            raise
        known = self._folders.get(watch)
        if known and parent and parent.children.get(_name(path)) is known:
            return None
        mine = (self._roots[path],) if path in self._roots else ()
        folder = Folder(path, watch, (*parent.roots, *mine) if parent else mine)
        self._folders[watch] = folder
        if parent:
            parent.children[_name(path)] = folder
        return folder

    def _look_into(self, folder: Folder) -> list[bytes]:
        """Tell of the files in a folder; the folders in it."""
        below = []
        try:
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.endswith(RESERVED):
                            below.append(entry.path)
                    elif not entry.name.startswith(OURS):
                        self._found(entry.path, folder)
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
        return below

    def drop(self, folder: Folder) -> None:
        """Watch a folder and all below it no longer."""
        pending = [folder]
        while pending:
            folder = pending.pop()
            pending += folder.children.values()
            # It may have been found at another place already, which keeps the watch.
            if self._folders.get(folder.watch) is folder:
                del self._folders[folder.watch]
                self._watches.remove(folder.watch)

    def forget(self, watch: int) -> None:
        """The kernel has ended a watch: its folder is gone."""
        self._folders.pop(watch, None)

    def start_again(self) -> Callable[[], None]:
        """Forget everything, since nothing is sure any more.

        Returns:
            To be called once what is there was adopted again: ends the watches that were not used for that.
        """
        before, self._folders = self._folders, {}

        def end_unused() -> None:
            for watch in before.keys() - self._folders.keys():
                self._watches.remove(watch)

        return end_unused


def _name(path: bytes) -> bytes:
    return path[path.rfind(b"/") + 1 :]
