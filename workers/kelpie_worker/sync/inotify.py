"""Hears from the kernel what changes below some directories, on a thread of its own.

What is heard is a hint: it says when to look and which files are finished, and a walk (``snapshot``) decides. After
each batch of events the thread rests for 10 ms: a program that writes byte by byte then costs the kernel's merging of
equal events, and not a core of ours. Only a new folder is not kept waiting, as what happens in it is not heard yet.

Limits: Linux. Never heard: writes through a mapping, through a hard link that lies elsewhere, or by another machine on
a network file system. Each folder takes one of the user's watches (fs.inotify.max_user_watches).
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kelpie_worker.sync import inotify_calls as calls
from kelpie_worker.sync.inotify_hints import Events, Hints
from kelpie_worker.sync.inotify_tree import OURS, RESERVED, Folder, Tree
from kelpie_worker.sync.order import CHANGED, SAID, UNKNOWN, Order
from kelpie_worker.sync.snapshot import is_real_directory

__all__ = ["Events", "Inotify"]

log = logging.getLogger(__name__)

_REST_MS = 10
_NEW_FOLDER = calls.CREATE | calls.ISDIR
_LOOK_S = 1.0
"""How often the roots are looked at: no event says that a folder above one of them was moved."""
_START_AGAIN_S = 1.0
_CLOSE_S = 5.0


@dataclass(frozen=True)
class _Root:
    """A root that is watched: which directory it was, and its folder in the tree."""

    identity: tuple[int, int]
    folder: Folder


class Inotify:
    """Watches directories, whether they exist already or not.

    Args:
        roots: The directories; their paths are resolved. What they hold at the start counts as created.
        wake: Called from the thread when there is something new, once until `drain`; must not block.
        now: The time of events, seconds by a clock that never goes back, such as the event loop's ``time``.
    """

    def __init__(self, roots: Sequence[Path], wake: Callable[[], None], *, now: Callable[[], float]) -> None:
        self._hints = Hints(roots, wake, now)
        self._now = now
        self._all_roots = tuple(dict.fromkeys(roots))
        self._roots = _outermost(self._all_roots)
        self._watched: dict[Path, _Root] = {}
        self._tree: Tree
        self._watches: calls.Watches | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # over the descriptor, whose number may be somebody else's once it is closed
        self._call = self._spoken = -1
        self._report, self._order = b"", Order()
        self._waiting: list[Callable[[], None]] = []  # for the thread to have handled all that has happened
        # How often folders were found, and how often when all was read that had happened by then: what changed in them
        # before they were watched, nobody told.
        self._finds = self._finds_read = 0
        self._closing = self._asked = self._moved = self._missed = self._warned = False
        self._started_again_s, self._pause_s = now() - _START_AGAIN_S, _START_AGAIN_S

    # -- for its owner ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin. Without inotify there is no thread, and `drain` says ``blind``."""
        try:
            watches = calls.Watches()
            try:
                self._call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                watches.close()
                raise
        except OSError as error:
            self._limited(error)
            return
        self._watches = watches
        self._thread = threading.Thread(target=self._run, args=(watches,), name="kelpie-inotify", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and let go of everything, promptly; may be called again."""
        self._closing = True
        self._ring()
        if self._thread:
            self._thread.join(_CLOSE_S)

    def drain(self) -> Events:
        """What has been heard since the last call; never waits for the thread."""
        return self._hints.drain()

    def listen_to(self, report: Path) -> None:
        """The file that the job speaks in; its folder exists, and is below no root."""
        with self._lock:
            if self._watches is None:
                return
            self._report = os.fsencode(report.name)
            try:
                self._spoken = self._watches.add(os.fsencode(report.parent))
            except OSError as error:
                self._limited(error)

    def when_caught_up(self, done: Callable[[], None]) -> bool:
        """Have ``done`` called, from the thread, once all is handled that has happened until now, or that has ended.

        Returns:
            Whether there is a thread; if not, it is not called.
        """
        with self._lock:
            if self._watches is None:
                return False
            self._waiting.append(done)
        self._ring()
        return True

    def order(self) -> str:
        """In which order the job spoke and changed something since the last call; see ``sync.order``."""
        order = self._order.take()
        return order if self._spoken >= 0 and not self._hints.blind else UNKNOWN

    def exempt(self, paths: Iterable[Path]) -> None:
        """Writing to these files and closing them, until the next such call, is no event and wakes nobody.

        It still makes ``changed`` true: their owner looks at them when it looks anyway.
        """
        self._hints.exempt(paths)

    def rearm(self) -> None:
        """Look at the roots now, not within a second; when ``blind``, try to watch everything again."""
        self._asked = True
        self._ring()

    def _ring(self) -> None:
        with self._lock:
            if self._call >= 0:
                os.eventfd_write(self._call, 1)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, watches: calls.Watches) -> None:
        try:
            self._tree = Tree(watches, self._all_roots, self._found, self._limited, lambda: self._closing)
            self._serve(watches)
        except OSError as error:
            self._limited(error)
        finally:
            if not self._closing:
                self._hints.set_blind(True)
                self._hints.tell()
            with self._lock:
                os.close(self._call)
                self._call = -1
                self._watches = None
                waiting, self._waiting = self._waiting, []
            for done in waiting:
                done()
            watches.close()

    def _serve(self, watches: calls.Watches) -> None:
        events, rest = select.poll(), select.poll()
        rest.register(self._call, select.POLLIN)
        events.register(self._call, select.POLLIN)
        events.register(watches.fd, select.POLLIN)
        looked_s = float("-inf")
        while not self._closing:
            with self._lock:
                waiting = len(self._waiting)
            finds = self._finds
            heard, is_all = watches.read(self._spoken)
            for event in heard:
                self._handle(event)
            if is_all:
                self._finds_read = finds
            if waiting or self._asked or self._moved or self._missed or self._now() - looked_s >= _LOOK_S:
                looked_s = self._now()
                self._look_at_roots()
            if is_all:
                self._say_caught_up(waiting)
            self._hints.tell()
            if heard and not any(event.mask & _NEW_FOLDER == _NEW_FOLDER for event in heard):
                rest.poll(_REST_MS)
            for fd, _ in events.poll(0 if self._finds != self._finds_read else int(_LOOK_S * 1000)):
                if fd == self._call:
                    os.eventfd_read(self._call)

    def _say_caught_up(self, count: int) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting[:count], self._waiting[count:]
        for done in waiting:
            done()

    def _handle(self, event: calls.RawEvent) -> None:
        if event.mask & calls.Q_OVERFLOW:
            self._missed = True
            self._order.note(UNKNOWN)
            self._hints.missed()
        elif event.watch == self._spoken and event.name:
            if event.name == self._report:
                self._spoke(event)
        elif event.mask & calls.IGNORED:
            self._tree.forget(event.watch)
        elif folder := self._tree.get(event.watch):
            if not event.name:
                self._moved = True  # the folder itself, which may be a root
                self._order.note(CHANGED)
            elif event.mask & calls.ISDIR:
                self._folder_changed(event, folder)
            elif not event.name.startswith(OURS):
                self._file_changed(event, folder)

    def _spoke(self, event: calls.RawEvent) -> None:
        if event.mask & calls.MOVED_TO:
            self._order.note(UNKNOWN)  # written under another name, nobody heard when
        elif event.mask & calls.MODIFY:
            # As long as folders are missed, or were found only now, changes in them may not have been told of.
            sure = self._finds == self._finds_read and not self._missed
            self._order.note(SAID if sure else UNKNOWN)

    def _folder_changed(self, event: calls.RawEvent, parent: Folder) -> None:
        if event.name.endswith(RESERVED):
            return
        self._order.note(CHANGED)
        if event.mask & (calls.MOVED_FROM | calls.DELETE) and (child := parent.children.pop(event.name, None)):
            self._tree.drop(child)
        self._hints.touched(parent.roots)
        if event.mask & (calls.MOVED_TO | calls.CREATE):
            self._finds += 1
            self._tree.adopt(parent.path + b"/" + event.name, parent)

    def _file_changed(self, event: calls.RawEvent, folder: Folder) -> None:
        path = folder.path + b"/" + event.name
        if not (event.mask & calls.MODIFY and self._hints.is_exempt(path)):
            self._order.note(CHANGED)
        if event.mask & calls.CLOSE_WRITE:
            self._hints.closed(path, folder.roots)
        elif event.mask & calls.MOVED_TO:
            self._hints.moved_in(path, folder.roots)
        elif event.mask & (calls.DELETE | calls.MOVED_FROM):
            self._hints.gone(path, folder.roots)
        elif event.mask & calls.CREATE:
            self._hints.created(path, folder.roots)
        else:
            self._hints.written(path, folder.roots)

    def _found(self, path: bytes, folder: Folder) -> None:
        self._hints.created(path, folder.roots)

    # -- roots --------------------------------------------------------------------------------------------------------

    def _look_at_roots(self) -> None:
        asked, self._asked, self._moved = self._asked, False, False
        if asked and self._hints.blind:
            self._missed, self._pause_s = True, 0.0
        if self._missed and self._now() - self._started_again_s >= self._pause_s:
            self._start_again()
        for root in self._roots:
            self._look_at(root)

    def _start_again(self) -> None:
        """Events are missing, of new folders perhaps: watch all that is there now, and have it walked after that."""
        self._started_again_s = self._now()
        self._missed = False
        self._order.note(UNKNOWN)
        self._hints.set_blind(False)
        end_unused = self._tree.start_again()
        self._watched.clear()
        for root in self._roots:
            self._look_at(root)
        end_unused()
        # Under a flood of events this must not be all that we do.
        self._pause_s = max(_START_AGAIN_S, 10 * (self._now() - self._started_again_s))
        self._hints.missed()

    def _look_at(self, root: Path) -> None:
        identity, watched = _identity(root), self._watched.get(root)
        if watched and watched.identity == identity and self._tree.get(watched.folder.watch) is watched.folder:
            return
        if watched:
            del self._watched[root]
            self._tree.drop(watched.folder)
            self._hints.touched(watched.folder.roots)
        if identity:
            self._finds += 1
        if identity and (folder := self._tree.adopt(os.fsencode(root), None)):
            self._order.doubt()
            self._order.note(CHANGED)
            self._hints.touched(folder.roots)
            self._watched[root] = _Root(identity, folder)

    def _limited(self, error: OSError) -> None:
        self._order.note(UNKNOWN)
        self._hints.set_blind(True)
        if not self._warned:
            self._warned = True
            log.warning(
                "the kernel does not tell of all changes, so directories are walked more often; raise"
                " fs.inotify.max_user_watches (on ENOSPC) or fs.inotify.max_user_instances (on EMFILE)",
                extra={"action": "watch_limited", "error": str(error)},
            )


def _outermost(roots: Sequence[Path]) -> tuple[Path, ...]:
    """The roots that are not watched as part of another one; below a reserved folder that does not watch."""

    def is_part(root: Path, other: Path) -> bool:
        return other in root.parents and not any(
            os.fsencode(name).endswith(RESERVED) for name in root.relative_to(other).parts
        )

    return tuple(root for root in roots if not any(is_part(root, other) for other in roots))


def _identity(root: Path) -> tuple[int, int] | None:
    """Which directory is there; None if there is none, or a link leads to it."""
    try:
        status = root.lstat()
        return (status.st_dev, status.st_ino) if is_real_directory(root) else None
    except OSError:
        return None
