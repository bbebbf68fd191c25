"""What an attempt knows to be on the storage, and what differs from it on the disk.

Limits: pure bookkeeping; a key that two blocks would store belongs to the later one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.object_store import StoredObject
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.restore import RestoreReport
from kelpie_worker.sync.snapshot import Snapshot, Stamp
from kelpie_worker.sync.upload import Stored

Address = tuple[str, str]
"""Bucket and key."""


@dataclass(frozen=True)
class LocalFile:
    """A file that is to be on the storage.

    Attributes:
        block: Of which block.
        relative: Its path below the block's directory.
        path: Where it is.
        stamp: As it was seen.
        key: The key that it is to have.
    """

    block: Placed
    relative: str
    path: Path
    stamp: Stamp
    key: str

    @property
    def address(self) -> Address:
        """Bucket and key."""
        return self.block.bucket, self.key


@dataclass(frozen=True)
class KnownFile:
    """A file that is on the storage.

    Attributes:
        block: Of which block.
        relative: Its path below the block's directory.
        object: As the storage has it.
        stamp: Of the file that it was made from, or became; None when that does not count any more.
        source_sha256: Of that file; empty for what was not sent by this attempt.
        sent_sha256: Of the object; empty likewise.
    """

    block: Placed
    relative: str
    object: StoredObject
    stamp: Stamp | None
    source_sha256: str = ""
    sent_sha256: str = ""


@dataclass(frozen=True)
class Differences:
    """What a commit would do: store ``changed``, the oldest first, then delete ``gone``."""

    changed: list[LocalFile] = field(default_factory=list)
    gone: list[Address] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone)


class KnownFiles:
    """What is on the storage, by bucket and key."""

    def __init__(self) -> None:
        self._by_address: dict[Address, KnownFile] = {}

    def get(self, address: Address) -> KnownFile | None:
        """What is known of an object."""
        return self._by_address.get(address)

    def items(self) -> list[tuple[Address, KnownFile]]:
        """All, in no particular order."""
        return list(self._by_address.items())

    def note_restored(
        self, report: RestoreReport, blocks: Sequence[Placed], snapshots: Mapping[Path, Snapshot]
    ) -> None:
        """Note what a restore brought, for the blocks that store to where it came from."""
        homes = {(block.bucket, block.prefix, block.path): block for block in blocks if block.role == "checkpoint"}
        for file in report.files:
            block = homes.get((file.block.bucket, file.block.prefix, file.block.path))
            stamp = snapshots[block.path].files.get(file.relative) if block else None
            if block and stamp:
                known = KnownFile(block, file.relative, file.object, stamp)
                self._by_address[block.bucket, file.object.key] = known

    def note_stored(self, file: LocalFile, stored: Stored) -> None:
        """Note that a file was sent."""
        captured = stored.captured
        self._by_address[file.address] = KnownFile(
            file.block, file.relative, stored.object, captured.stamp, captured.source_sha256, stored.sent.sha256
        )

    def note_placed(self, file: LocalFile, stored: StoredObject) -> None:
        """Note that an object is what this file was as it was seen, although it was not sent."""
        self._by_address[file.address] = KnownFile(file.block, file.relative, stored, file.stamp)

    def note(self, bucket: str, known: KnownFile) -> None:
        """Note an object, unless more is known of it."""
        self._by_address.setdefault((bucket, known.object.key), known)

    def forget_stamp(self, address: Address) -> None:
        """Let the next comparison find that this file differs."""
        self._by_address[address] = replace(self._by_address[address], stamp=None)

    def forget(self, address: Address) -> None:
        """It is not on the storage any more."""
        self._by_address.pop(address, None)

    def differences(self, blocks: Sequence[Placed], snapshots: Mapping[Path, Snapshot], *, pack: bool) -> Differences:
        """What differs between the disk and the storage; a file whose name cannot be a key is left out.

        Args:
            blocks: Which blocks are looked at.
            snapshots: Of their directories.
            pack: Whether what is stored is gzipped.
        """
        files = wanted(blocks, snapshots, pack=pack, strict=False)
        changed = [file for file in files.values() if self._differs(file)]
        gone = [
            address
            for address, known in self.items()  # a copy: the event loop may note something meanwhile
            if address not in files and known.block in blocks and _is_gone(known, snapshots[known.block.path], pack)
        ]
        return Differences(sorted(changed, key=lambda file: (file.stamp.mtime_ns, file.key)), gone)

    def _differs(self, file: LocalFile) -> bool:
        known = self._by_address.get(file.address)
        return known is None or known.stamp != file.stamp


def wanted(
    blocks: Sequence[Placed], snapshots: Mapping[Path, Snapshot], *, pack: bool, strict: bool = True
) -> dict[Address, LocalFile]:
    """Every file that is to be on the storage, by where.

    Raises:
        LocalFileError: A file's name cannot be a key.
    """
    files: dict[Address, LocalFile] = {}
    for block in blocks:
        for relative, stamp in snapshots[block.path].files.items():
            if not block.selects(relative):
                continue
            key = key_of(block, relative, pack=pack)
            if key is not None:
                file = LocalFile(block, relative, block.path / relative, stamp, key)
                files[file.address] = file
            elif strict:
                raise LocalFileError(
                    f"{block}: the name of file {relative!r} is not UTF-8, so it cannot be stored; rename it, or leave"
                    " it out with a pattern"
                )
    return files


def key_of(block: Placed, relative: str, *, pack: bool) -> str | None:
    """The plain key of a file; None when its name cannot be one."""
    key = f"{block.prefix}{relative}{'.gz' if pack else ''}"
    try:
        key.encode()
    except UnicodeEncodeError:
        return None
    return key


def _is_gone(known: KnownFile, snapshot: Snapshot, pack: bool) -> bool:
    """Whether an object's file was deleted, or is stored under another key now.

    Where the whole directory is missing, or the pattern hides the file, nothing is said about it.
    """
    if known.block.role != "checkpoint" or not snapshot.exists or not known.block.selects(known.relative):
        return False
    renamed = known.object.key != key_of(known.block, known.relative, pack=pack)
    return renamed or known.relative not in snapshot.files
