"""What an attempt knows of one line: the commit that its next one is based on, and how the disk differs from it.

Three things are told apart by path. *Known* files are as the base says, by their stamps. *Staged* ones have been read
since, and their new content is under way to the storage or there. What is neither is *pending*: it has to be read. So
is what somebody had open for writing when it was read: writes through a mapping may not show in its stamp.

An entry of the base is carried forward as long as this attempt never saw its file: a pattern kept it from being
restored, or it is another job's. Once seen, the disk decides.

Limits: bookkeeping; it reads no file's content.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from kelpie_celery.checkpoints.content import SMALL_BYTES
from kelpie_celery.checkpoints.manifest import Extent, FileEntry, Header, Manifest
from kelpie_celery.checkpoints.names import leads_inside
from kelpie_celery.ledger.types import LineAddress
from kelpie_worker.sync.capturing import Candidate, Captured
from kelpie_worker.sync.paths import is_reserved
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.segments import Segment
from kelpie_worker.sync.snapshot import Snapshot, Stamp


@dataclass(frozen=True)
class Pending:
    """A file that has to be read before the next commit."""

    relative: str
    path: Path
    stamp: Stamp


@dataclass
class LineState:
    """One line of the attempt; see the module.

    Attributes:
        address: Of the line.
        blocks: The ``during`` blocks that store to it.
        base: The commit that the next one is based on.
        head: Id of the ledger's head when the attempt looked; empty without one.
        garbage: Segments of the base that are mostly garbage: the next commit takes nothing over from them.
        lost: Segments of the base that are gone from the storage.
    """

    address: LineAddress
    blocks: list[Placed]
    base: Manifest | None = None
    head: str = ""
    garbage: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    _known: dict[str, tuple[Stamp, FileEntry]] = field(default_factory=dict)
    _staged: dict[str, Captured] = field(default_factory=dict)
    _fresh: dict[str, Segment] = field(default_factory=dict)
    _read: set[str] = field(default_factory=set)
    _unsure: set[str] = field(default_factory=set)
    _seen: set[str] = field(default_factory=set)
    _inodes: dict[tuple[int, int], FileEntry] = field(default_factory=dict)

    # -- what it starts from ------------------------------------------------------------------------------------------

    def begin(self, base: Manifest | None) -> None:
        """Go on from this commit."""
        self.base = base
        self.garbage = base.mostly_garbage() if base else set()
        self.lost = set()

    def note_restored(self, relative: str, stamp: Stamp, entry: FileEntry) -> None:
        """A file of the base was put where a block stores from."""
        self._seen.add(relative)
        if stamp.size_bytes == entry.size:
            self._known[relative] = stamp, entry
            self._inodes[stamp.device, stamp.inode] = entry

    def note_seen(self, names: Iterable[str]) -> None:
        """Links and folders of the base that were put where a block stores from."""
        self._seen.update(names)

    # -- how the disk differs -----------------------------------------------------------------------------------------

    def wanted(self, snapshots: Mapping[Path, Snapshot]) -> dict[str, Pending]:
        """Every file that the line is to hold, by relative path; of two blocks that bring one, the later counts."""
        return {
            relative: Pending(relative, block.path / relative, stamp)
            for block in self.blocks
            for relative, stamp in snapshots[block.path].files.items()
            if block.selects(relative)
        }

    def pending(
        self, snapshots: Mapping[Path, Snapshot], streams: Set[Path] = frozenset(), mapped: Set[Path] = frozenset()
    ) -> list[Pending]:
        """The files that have to be read; of those that only grow the stamp says enough, of mapped ones nothing."""
        wanted = self.wanted(snapshots)
        pending = {
            relative: file
            for relative, file in wanted.items()
            if self._entry(file) is None
            or file.path in mapped
            or (relative in self._unsure and file.path not in streams)
        }
        # What is sent only to be rid of garbage comes along with a change: by itself it makes no commit.
        moving = [file for relative, file in wanted.items() if relative not in pending and self._is_in_garbage(file)]
        return [*pending.values(), *moving] if pending else []

    def large_of(self, paths: Iterable[Path]) -> list[Pending]:
        """Those of these paths that are large files of the line's which have to be read."""
        found = []
        for path in paths:
            for block in self.blocks:
                if path.is_relative_to(block.path) and (file := _large(block, path)) and self._entry(file) is None:
                    found.append(file)
                    break
        return found

    def _entry(self, file: Pending) -> FileEntry | None:
        """What is known of a file, if it is still the file that is known."""
        staged = self._staged.get(file.relative)
        if staged is not None and staged.stamp == file.stamp:
            return staged.entry
        known = self._known.get(file.relative)
        if known is None or known[0] != file.stamp:
            return None
        return None if _lies_in(self.lost, known[1].extents) else known[1]

    def _is_in_garbage(self, file: Pending) -> bool:
        """Whether what is known of a file is to be moved to another segment, and was not yet."""
        staged, known = self._staged.get(file.relative), self._known.get(file.relative)
        if known is None or (staged is not None and staged.stamp == file.stamp):
            return False
        return _lies_in(self.garbage, known[1].extents)

    def candidate(self, file: Pending) -> Candidate:
        """What a file may be made of: as its inode was known, should it have been renamed, or else its path."""
        staged, known = self._staged.get(file.relative), self._known.get(file.relative)
        found = self._inodes.get((file.stamp.device, file.stamp.inode))
        if found is None and staged is not None:
            found = staged.entry
        if found is None and known is not None:
            found = known[1]
        return Candidate(found.extents if found else (), self.garbage | self.lost)

    def stage(self, file: Pending, captured: Captured) -> None:
        """Note what was read."""
        self._staged[file.relative] = captured
        self._fresh |= {segment.key: segment for segment in captured.segments}
        self._read.add(file.relative)
        (self._unsure.discard if captured.sure else self._unsure.add)(file.relative)
        self._inodes[captured.stamp.device, captured.stamp.inode] = captured.entry

    def verifiable(self) -> list[tuple[str, Path, Stamp, FileEntry]]:
        """Files that this attempt read before, and holds to be unchanged as long as they have these stamps."""
        return [
            (relative, block.path / relative, *self._known[relative])
            for block in self.blocks
            for relative in self._read & self._known.keys()
            if block.selects(relative)
        ]

    def doubt(self, relative: str) -> None:
        """A file must be read again, whatever its stamp says."""
        stamp, entry = self._known[relative]
        self._known[relative] = stamp._replace(ctime_ns=-1), entry

    # -- the next commit ----------------------------------------------------------------------------------------------

    def compose(self, header: Header, key: str, snapshots: Mapping[Path, Snapshot]) -> Manifest:
        """The manifest of what the disk holds; everything must have been read.

        Raises:
            KeyError: A file has not been read.
        """
        files: dict[str, FileEntry] = {}
        links: dict[str, str] = {}
        folders: set[str] = set()
        for file in self.wanted(snapshots).values():
            entry = self._entry(file)
            if entry is None:
                raise KeyError(file.relative)
            files[file.relative] = entry
        for block in self.blocks:
            snapshot = snapshots[block.path]
            links |= {
                path: target
                for path, target in snapshot.links.items()
                if block.selects(path) and leads_inside(path, target)
            }
            folders |= set(snapshot.folders) if block.pattern is None else set()
        self._carry(snapshots, files, links, folders)
        sizes = self._sizes(files)
        return Manifest(header, key, files, links, tuple(sorted(folders)), sizes)

    def _carry(
        self, snapshots: Mapping[Path, Snapshot], files: dict[str, FileEntry], links: dict[str, str], folders: set[str]
    ) -> None:
        """Add what the base has and this attempt never saw, where it has a place beside what is on the disk."""
        if self.base is None:
            return
        decided = all(snapshots[block.path].exists for block in self.blocks)
        gone = {path for path in self._seen if decided and any(block.selects(path) for block in self.blocks)}
        leaves, inner = {*files, *links}, set(folders)
        for path in leaves:
            inner.update(_above(path))

        def has_place(path: str) -> bool:
            return path not in gone and path not in leaves and path not in inner and leaves.isdisjoint(_above(path))

        carried = {path: entry for path, entry in self.base.files.items() if has_place(path)}
        links_too = {path: target for path, target in self.base.links.items() if has_place(path)}
        folders |= {f for f in self.base.folders if f not in gone and f not in leaves and leaves.isdisjoint(_above(f))}
        files |= carried
        links |= links_too

    def _sizes(self, files: Mapping[str, FileEntry]) -> dict[str, int]:
        known = dict(self.base.segment_bytes) if self.base else {}
        known |= {key: segment.size_bytes for key, segment in self._fresh.items()}
        used = {extent.segment for entry in files.values() for extent in entry.extents}
        return {segment: size for segment, size in known.items() if segment in used}

    def fresh(self) -> set[Segment]:
        """Segments that were filled since the last commit."""
        return set(self._fresh.values())

    def needed(self, manifest: Manifest) -> set[Segment]:
        """Those of them that a manifest refers to."""
        return {self._fresh[key] for key in manifest.segments() & self._fresh.keys()}

    def holds(self, manifest: Manifest) -> bool:
        """Whether the base says the same as a manifest, and is whole."""
        if self.base is None:
            return not (manifest.files or manifest.links or manifest.folders)
        return manifest.is_same_state(self.base) and not self.lost & self.base.segments()

    def on_disk(self) -> dict[str, int]:
        """The segments of the base, with their sizes, that hold content which could be sent anew."""
        if self.base is None:
            return {}
        used = {extent.segment for _, entry in self._known.values() for extent in entry.extents}
        return {segment: size for segment, size in self.base.segment_bytes.items() if segment in used}

    def accept(self, manifest: Manifest, snapshots: Mapping[Path, Snapshot]) -> None:
        """The commit is the ledger's now: the next one is based on it."""
        self.begin(manifest)
        self.settle(snapshots)
        self._seen |= self._known.keys()
        for block in self.blocks:
            self._seen |= snapshots[block.path].links.keys() | snapshots[block.path].folders

    def settle(self, snapshots: Mapping[Path, Snapshot]) -> None:
        """The disk is as the base says: from now on the stamps tell what changes."""
        base = self.base.files if self.base else {}
        self._known = {
            file.relative: (file.stamp, base[file.relative])
            for file in self.wanted(snapshots).values()
            if file.relative in base and self._entry(file) is not None
        }
        self._inodes = {(stamp.device, stamp.inode): entry for stamp, entry in self._known.values()}
        self._staged, self._fresh = {}, {}


def _above(path: str) -> Iterator[str]:
    """The folders that a path lies in."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)


def _lies_in(segments: Set[str], extents: Sequence[Extent]) -> bool:
    return bool(segments) and any(extent.segment in segments for extent in extents)


def _large(block: Placed, path: Path) -> Pending | None:
    relative = os.fspath(path.relative_to(block.path))
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode) or status.st_size < SMALL_BYTES or not block.selects(relative):
        return None
    return None if is_reserved(relative) else Pending(relative, path, Stamp.of(status))
