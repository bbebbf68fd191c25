"""When directories are quiet: what they hold is then a state that its writers meant to leave, and may be committed.

Quiet means that nothing changes and no process of the job has a file open for writing. A checkpoint of several files
whose writer keeps one of them open, and pauses for seconds, is one burst. Excepted are *streams*: a trajectory or a log
is open for days, is right at any length, and must not keep a job from ever being committed.

A stream only grows: its descriptors can only append; or it is open all the time and has grown at three looks and more,
over five minutes and more, and never changed otherwise. It stays one while it only grows, and an appended one also
while nobody has it open. What is mapped is none, since it changes without a trace.

An empty file that has been open for five minutes is a lock, and no burst either.

Limits: pure policy; it knows what it is fed. A change that no event told of is dated by the look that saw it, so
quiet counts too short, not too long. Where nobody can tell what is open, or mapped, a stream is what only grows, and an
open file does not disturb.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kelpie_worker.sync.growth import Growth, same_file
from kelpie_worker.sync.open_files import OpenFile
from kelpie_worker.sync.paths import is_reserved
from kelpie_worker.sync.snapshot import Snapshot, Stamp

_MOST_NAMED = 3


class Calm:
    """Remembers since when each directory, and each file, is as it is. Times are seconds by one clock.

    Args:
        quiet_s: For how long nothing must have happened; which files disturb is told by it.
        stream_after_s: For how long a file must have been growing to be a stream.
    """

    def __init__(self, quiet_s: float, stream_after_s: float = 300.0) -> None:
        self._quiet_s, self._stream_after_s = quiet_s, stream_after_s
        self._directories: dict[Path, _Directory] = {}

    def observe(
        self,
        snapshots: Mapping[Path, Snapshot],
        now_s: float,
        *,
        last_events_s: Mapping[Path, float] | None = None,
        open_files: Sequence[OpenFile] | None = None,
    ) -> None:
        """Take note of a look.

        Args:
            snapshots: The directories; an earlier one may be given again when nothing has changed.
            now_s: When the look ended.
            last_events_s: When something last happened below each, as events tell; streams exempt. None where events
                are not told, or not all: then a change is dated by the look that saw it.
            open_files: What the job's processes have open for writing; None if that cannot be told.
        """
        for directory, snapshot in snapshots.items():
            seen = self._directories.get(directory)
            if seen is None:
                seen = self._directories[directory] = _Directory(snapshot, now_s, self._stream_after_s)
            opened = None if open_files is None else _below(directory, open_files)
            told_s = last_events_s.get(directory) if last_events_s else None
            seen.observe(snapshot, now_s, opened, told_s)
            if told_s is not None:
                seen.note_disturbance(told_s)

    def quiet_for_s(self, paths: Iterable[Path], now_s: float) -> float:
        """How long all of these directories have been quiet; 0 for one that was never looked at, and for none."""
        known = [self._directories.get(path) for path in paths]
        return min((seen.quiet_for_s(now_s) if seen else 0.0 for seen in known), default=0.0)

    def streams(self) -> frozenset[Path]:
        """The files that only grow."""
        return frozenset(
            directory / relative for directory, seen in self._directories.items() for relative in seen.streams
        )

    def appended(self) -> frozenset[Path]:
        """Those of them that could only be appended to: what they held once, they hold."""
        return frozenset(
            directory / relative
            for directory, seen in self._directories.items()
            for relative in seen.streams
            if seen.is_appended(relative)
        )

    def disturbed_by(self, paths: Iterable[Path] | None = None) -> list[str]:
        """Which files keep directories, by default all, from being quiet; at most three, the open ones first."""
        among = self._directories.keys() if paths is None else self._directories.keys() & set(paths)
        found = sorted(
            (age_s, str(directory / relative))
            for directory in among
            for age_s, relative in self._directories[directory].disturbing(self._quiet_s)
        )
        return list(dict.fromkeys(path for _, path in found))[:_MOST_NAMED]

    def settled_s(self, path: Path, now_s: float) -> float:
        """How long a file has not changed and has not been open for writing; 0 if it is not there."""
        above = (directory for directory in path.parents if directory in self._directories)
        return min(
            (
                self._directories[directory].settled_s(path.relative_to(directory).as_posix(), now_s)
                for directory in above
            ),
            default=0.0,
        )


def _below(directory: Path, open_files: Sequence[OpenFile]) -> dict[str, OpenFile]:
    """The open files of a directory by relative path, but those that are never stored."""
    found = {file.path.relative_to(directory).as_posix(): file for file in open_files if directory in file.path.parents}
    return {relative: file for relative, file in found.items() if not is_reserved(relative)}


class _Directory:
    """One directory, as the last look saw it; ``streams`` are its files that only grow."""

    def __init__(self, snapshot: Snapshot, now_s: float, stream_after_s: float) -> None:
        self._snapshot, self._stream_after_s = snapshot, stream_after_s
        self._first_s = self._looked_s = self._disturbed_s = now_s
        self._changed_s: dict[str, float] = {}  # of those that changed, or were open, since the first look
        self._growths: dict[str, Growth] = {}
        self._opened: dict[str, OpenFile] = {}
        self._in_burst: set[str] = set()
        self.streams: frozenset[str] = frozenset()

    # -- a look -------------------------------------------------------------------------------------------------------

    def observe(
        self, snapshot: Snapshot, now_s: float, opened: dict[str, OpenFile] | None, told_s: float | None
    ) -> None:
        """Take note of a look."""
        before, self._snapshot = self._snapshot, snapshot
        changed, gone = _differences(before.files, snapshot.files)
        self._follow(before, changed, gone, now_s)
        self._follow_open(opened, now_s)
        self.streams = frozenset(
            relative for relative, growth in self._growths.items() if growth.is_stream(now_s, self._stream_after_s)
        )
        self._in_burst = {relative for relative in self._opened if self._is_written(relative, now_s)}
        grew = {relative for relative in changed if relative in self.streams and _continues(before, snapshot, relative)}
        if self._in_burst:
            self.note_disturbance(now_s)
        elif gone or changed.keys() - grew or _is_reshaped(before, snapshot):
            # Told of since the last look: then that is when it happened, and not only now that it was seen.
            self.note_disturbance(told_s if told_s is not None and told_s >= self._looked_s else now_s)
        self._looked_s = now_s

    def _follow(self, before: Snapshot, changed: dict[str, Stamp], gone: set[str], now_s: float) -> None:
        for relative, stamp in changed.items():
            self._changed_s[relative] = now_s
            earlier = before.files.get(relative)
            if earlier is None or not same_file(earlier, stamp):
                self._growths.pop(relative, None)
            else:
                self._growths.setdefault(relative, Growth(now_s)).note_change(earlier, stamp, now_s)
        for relative in gone:
            self._changed_s.pop(relative, None)
            self._growths.pop(relative, None)

    def _follow_open(self, opened: dict[str, OpenFile] | None, now_s: float) -> None:
        self._opened = opened or {}
        for relative, file in self._opened.items():
            self._changed_s[relative] = now_s
            self._growths.setdefault(relative, Growth(now_s)).note_open(file)
        for relative, growth in list(self._growths.items()):
            if relative not in self._opened:
                growth.mapped = False
                if opened is not None and not (growth.only_appended and not growth.rewritten):
                    del self._growths[relative]

    def _is_written(self, relative: str, now_s: float) -> bool:
        """Whether an open file means a burst."""
        if relative in self.streams:
            return False
        stamp = self._snapshot.files.get(relative)
        size_bytes = stamp.size_bytes if stamp else -1
        return not self._growths[relative].is_lock(size_bytes, now_s, self._stream_after_s)

    def is_appended(self, relative: str) -> bool:
        """Whether nobody could ever write to a stream elsewhere than at its end."""
        growth = self._growths.get(relative)
        return growth is not None and bool(growth.only_appended) and not growth.rewritten

    def note_disturbance(self, when_s: float) -> None:
        """Something happened."""
        self._disturbed_s = max(self._disturbed_s, when_s)

    # -- answers ------------------------------------------------------------------------------------------------------

    def quiet_for_s(self, now_s: float) -> float:
        """How long nothing has happened."""
        return 0.0 if self._in_burst else max(0.0, now_s - self._disturbed_s)

    def settled_s(self, relative: str, now_s: float) -> float:
        """How long a file is finished."""
        if relative in self._opened or relative not in self._snapshot.files:
            return 0.0
        return max(0.0, now_s - self._changed_s.get(relative, self._first_s))

    def disturbing(self, quiet_s: float) -> list[tuple[float, str]]:
        """Files that are, or were ``quiet_s`` before the last look, being written: since how long not, and the path."""
        recent = [
            (self._looked_s - changed_s, relative)
            for relative, changed_s in self._changed_s.items()
            if relative not in self._opened and relative not in self.streams
        ]
        return [(-1.0, relative) for relative in self._in_burst] + [found for found in recent if found[0] < quiet_s]


def _differences(before: dict[str, Stamp], after: dict[str, Stamp]) -> tuple[dict[str, Stamp], set[str]]:
    """What changed or is new, and what is gone."""
    if before is after or before == after:
        return {}, set()
    changed = {relative: stamp for relative, stamp in after.items() if before.get(relative) != stamp}
    return changed, before.keys() - after.keys()


def _continues(before: Snapshot, after: Snapshot, relative: str) -> bool:
    """Whether a file is the one that was there before."""
    earlier = before.files.get(relative)
    return earlier is not None and same_file(earlier, after.files[relative])


def _is_reshaped(before: Snapshot, after: Snapshot) -> bool:
    """Whether anything but the files' content changed."""
    return (before.exists, before.links, before.folders, before.modes) != (
        after.exists, after.links, after.folders, after.modes
    )  # fmt: skip
