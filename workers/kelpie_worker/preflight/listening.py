"""Hears what a command does to its checkpoint's files: which it reads, and how it writes them.

By inotify, on a thread of its own, from before the command starts. What the worker does to the same files is kept out:
it reads those only that were changed, so a read counts only of a file that is as it was restored, and while the command
lives. A read is a read or an open without a write, as a file may be mapped.

Limits: Linux. A file that is kept open and written to is not judged before it is closed. Writes through a mapping are
not heard.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_celery.clock import Clock
from kelpie_worker.command.report import ReportFile
from kelpie_worker.preflight.samples import Sample, grew, sample_of
from kelpie_worker.sync import inotify_calls as calls
from kelpie_worker.sync.inotify_tree import OURS, RESERVED
from kelpie_worker.sync.stable_read import nobody_writes

IN_PLACE, NEW, RENAMED, APPENDED = "in_place", "new", "renamed", "appended"

_ALSO = calls.ACCESS | calls.OPEN | calls.CLOSE_NOWRITE
_POLL_MS = 200
_CLOSE_S = 5.0
_O_APPEND = os.O_APPEND


@dataclass(frozen=True)
class Root:
    """A directory of the checkpoint.

    Attributes:
        path: Where it is.
        shown: What the definition calls it.
        selects: Whether a file, by its path in it, is part of the checkpoint.
    """

    path: Path
    shown: str
    selects: Callable[[str], bool] = lambda _name: True


@dataclass(frozen=True)
class Write:
    """A file that was written: ``how`` is one of the module's words, times are seconds since the epoch."""

    path: str
    how: str
    began: float
    ended: float


@dataclass(frozen=True)
class Said:
    """What the command said through ``KELPIE_REPORT``, and which files it had open for writing at that moment."""

    at: float
    progress: float | None
    commit: bool
    writing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heard:
    """All that was heard of one attempt.

    Attributes:
        restored: The files that were there before the command started.
        read: Those of them that it read before it changed them.
        writes: Files that were written, in order.
        said: Its reports, in order.
        early: Files that went on being written after a commit was asked for, while they were open.
        writing: Files that are open for writing now.
        missed: The kernel dropped events, so that nothing follows from what was not heard.
    """

    restored: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    writes: tuple[Write, ...] = ()
    said: tuple[Said, ...] = ()
    early: tuple[str, ...] = ()
    writing: tuple[str, ...] = ()
    missed: bool = False

    @property
    def last_progress(self) -> float | None:
        """What it last said."""
        return next((one.progress for one in reversed(self.said) if one.progress is not None), None)

    @property
    def first_progress(self) -> float | None:
        """What it said first."""
        return next((one.progress for one in self.said if one.progress is not None), None)

    def progress_at(self, moment: float) -> float | None:
        """What it had said by then."""
        told = [one.progress for one in self.said if one.progress is not None and one.at <= moment]
        return told[-1] if told else None


@dataclass
class _File:
    """What is known of one file."""

    shown: str
    restored: bool = False
    whole: bool = False
    read: bool = False
    opened: bool = False
    changed: bool = False
    since: float | None = None
    asked: bool = False
    early: bool = False
    sample: Sample | None = None


@dataclass
class _Folder:
    path: Path
    root: Root
    within: str = ""


@dataclass
class Listener:
    """Listens to one attempt; ``start`` it before the command runs, ``stop`` it at the end."""

    roots: Sequence[Root]
    report: Path
    pid: int
    clock: Clock
    _files: dict[Path, _File] = field(default_factory=dict)
    _folders: dict[int, _Folder] = field(default_factory=dict)
    _writes: list[Write] = field(default_factory=list)
    _said: list[Said] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _missed: bool = False
    _ending: bool = False
    _lived: bool = True

    def start(self) -> None:
        """Watch all that is there, and listen from then on.

        Raises:
            OSError: The kernel has no inotify, or no watch to spare.
        """
        self._reports = ReportFile(self.report)
        self._watches = calls.Watches(_ALSO)
        self._spoken = self._watches.add(os.fsencode(self.report.parent))
        for root in self.roots:
            root.path.mkdir(parents=True, exist_ok=True)
            self._adopt(root.path, root, "")
        for path, one in self._files.items():
            one.restored = one.whole = True
            one.sample = sample_of(path)
        while self._watches.read()[0]:  # our own looks
            pass
        self._thread = threading.Thread(target=self._run, name="kelpie-preflight", daemon=True)
        self._thread.start()

    def stop(self) -> Heard:
        """Listen no more; what was heard."""
        self._ending = True
        self._thread.join(_CLOSE_S)
        return self.heard()

    def heard(self) -> Heard:
        """What was heard until now."""
        with self._lock:
            files = [one for one in self._files.values() if one.shown]
            return Heard(
                restored=tuple(one.shown for one in files if one.restored),
                read=tuple(one.shown for one in files if one.read or (one.opened and not one.changed)),
                writes=tuple(self._writes), said=tuple(self._said),
                early=tuple(one.shown for one in files if one.early),
                writing=tuple(one.shown for one in files if one.since is not None), missed=self._missed,
            )  # fmt: skip

    def shown(self, path: Path) -> str:
        """What a file of the checkpoint is called; empty where it is none."""
        with self._lock:
            for root in self.roots:
                if path.is_relative_to(root.path.resolve()):
                    return f"{root.shown.rstrip('/')}/{path.relative_to(root.path.resolve()).as_posix()}"
        return ""

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._watches.fd, select.POLLIN)
        try:
            while not self._ending:
                poll.poll(_POLL_MS)
                self._take()
            self._take()
        finally:
            self._watches.close()

    def _take(self) -> None:
        while True:
            # What it did just before its end is heard after it, so the look before counts.
            lived, self._lived = self._lived, self._alive()
            events, is_all = self._watches.read(self._spoken)
            now = self.clock.now()
            with self._lock:
                for event in events:
                    self._handle(event, now, alive=lived)
            if is_all:
                return

    def _handle(self, event: calls.RawEvent, now: float, *, alive: bool) -> None:
        if event.mask & calls.Q_OVERFLOW:
            self._missed = True
        elif event.watch == self._spoken:
            if event.name == os.fsencode(self.report.name) and event.mask & (calls.MODIFY | calls.MOVED_TO):
                self._hear(now)
        elif (folder := self._folders.get(event.watch)) and event.name:
            name = os.fsdecode(event.name)
            if event.mask & calls.ISDIR:
                if event.mask & (calls.CREATE | calls.MOVED_TO) and not event.name.endswith(RESERVED):
                    how = RENAMED if event.mask & calls.MOVED_TO else NEW
                    self._adopt(folder.path / name, folder.root, folder.within + name + "/", now, how)
                elif event.mask & (calls.MOVED_FROM | calls.DELETE):
                    self._forget_below(folder.path / name)
            elif not event.name.startswith(OURS):
                self._touched(event.mask, self._file(folder, name), folder.path / name, now, alive=alive)

    def _file(self, folder: _Folder, name: str) -> _File:
        within = folder.within + name
        shown = f"{folder.root.shown.rstrip('/')}/{within}" if folder.root.selects(within) else ""
        return self._files.setdefault(folder.path / name, _File(shown))

    def _touched(self, mask: int, one: _File, path: Path, now: float, *, alive: bool) -> None:
        if mask & (calls.ACCESS | calls.CLOSE_NOWRITE | calls.OPEN):
            if one.restored and not one.changed and alive:
                one.opened = True
                one.read = one.read or not mask & calls.OPEN
        elif mask & (calls.MODIFY | calls.CREATE):
            one.changed, one.early = True, one.early or (one.asked and bool(mask & calls.MODIFY))
            one.since = now if one.since is None else one.since
        elif mask & calls.CLOSE_WRITE:
            self._closed(one, path, now)
        elif mask & calls.MOVED_TO:
            self._moved_in(one, path, now)
        elif mask & calls.MOVED_FROM:
            # The name is free again: what comes under it next is new.
            one.changed, one.whole, one.since, one.sample = True, False, None, None
        elif mask & calls.DELETE:
            one.changed, one.since = True, None

    def _forget_below(self, path: Path) -> None:
        """The folder has another name, or is gone: so are its files under this one."""
        for there, one in self._files.items():
            if there.is_relative_to(path):
                one.changed, one.whole, one.since, one.sample = True, False, None, None

    def _closed(self, one: _File, path: Path, now: float) -> None:
        began, one.since, one.asked = one.since, None, False
        if began is None:
            return  # opened for writing, and nothing was written
        before, one.sample = one.sample, sample_of(path)
        how = NEW
        if one.whole:
            how = APPENDED if before and grew(path, before) else IN_PLACE
        if how == APPENDED:
            one.early = False  # a log may go on, see `_appending`, which cannot always tell in time
        one.whole = True
        if one.shown:
            self._writes.append(Write(one.shown, how, began, now))

    def _moved_in(self, one: _File, path: Path, now: float) -> None:
        one.changed, one.whole, one.since, one.sample = True, True, None, sample_of(path)
        if one.shown:
            self._writes.append(Write(one.shown, RENAMED, now, now))

    def _hear(self, now: float) -> None:
        for report in self._reports.poll():
            writing: tuple[str, ...] = ()
            if report.commit:
                writing = self._asked_while_writing()
            self._said.append(Said(now, report.progress, report.commit, writing))

    def _asked_while_writing(self) -> tuple[str, ...]:
        found = [(path, one) for path, one in self._files.items() if one.since is not None and one.shown]
        appending = self._appending() if found else set()
        for path, one in found:
            one.asked = path not in appending
        return tuple(one.shown for _, one in found if one.asked)

    def _appending(self) -> set[Path]:
        """What the command has open for appending only: such logs may go on."""
        found = set()
        try:
            for fd in Path(f"/proc/{self.pid}/fdinfo").iterdir():
                flags = next(line for line in fd.read_text().splitlines() if line.startswith("flags:"))
                if int(flags.split()[1], 8) & _O_APPEND:
                    found.add(Path(f"/proc/{self.pid}/fd/{fd.name}").readlink())
        except (OSError, StopIteration, ValueError):
            return found
        return found

    def _adopt(self, path: Path, root: Root, within: str, now: float | None = None, how: str = NEW) -> None:
        """Watch a folder and those in it; files that are there already, and that nobody writes, count as written."""
        try:
            watch = self._watches.add(os.fsencode(path))
            folder = self._folders[watch] = _Folder(path, root, within)
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.endswith(os.fsdecode(RESERVED)):
                            self._adopt(path / entry.name, root, f"{within}{entry.name}/", now, how)
                    elif entry.is_file(follow_symlinks=False) and not entry.name.startswith(os.fsdecode(OURS)):
                        one = self._file(folder, entry.name)
                        if now is not None:
                            self._found(one, path / entry.name, now, how)
        except (FileNotFoundError, NotADirectoryError):
            return  # it is gone again

    def _found(self, one: _File, path: Path, now: float, how: str) -> None:
        one.changed, one.since = True, now
        if not _is_whole(path):
            return  # its end will be heard
        one.whole, one.since, one.sample = True, None, sample_of(path)
        if one.shown:
            self._writes.append(Write(one.shown, how, now, now))

    def _alive(self) -> bool:
        """Whether the command lives; one that is only to be collected does not."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state not in {"Z", "X"}


def _is_whole(path: Path) -> bool:
    """Whether a file is there, and nobody has it open for writing."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return nobody_writes(file.fileno())
    return False
