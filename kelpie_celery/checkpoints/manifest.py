"""The manifest of one commit of one line: which files there are, and of which extents each of them is made.

Stored as JSON, compressed with a checksum. A manifest may be a *delta*: it names its parent, what changed and what is
gone; then the manifests of its chain are objects that the commit refers to like any content.

Limits: what is read here was written by a worker, which may lie: paths and links are checked by whoever restores, and
where content lies by `check_places`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import zstandard

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.content import SEGMENT_BYTES

VERSION = 1
MAX_BYTES = 1024 * 1024 * 1024
"""No manifest is unpacked to more."""
_LEVEL = 3
_DEEPEST = 16
_WORTH_A_DELTA = 256
_SHARE_OF_A_DELTA = 4
_LATEST_NS = 2**63
"""No clock of a file's goes further: what the kernel takes as nanoseconds."""


class BadManifest(ValueError):
    """Something that should be a manifest is none, or is cut."""


class Extent(NamedTuple):
    """A run of a file's bytes.

    Attributes:
        segment: Key of the object that holds it.
        at: Where its stored bytes begin there.
        stored: How many these are.
        length: How many bytes it is in the file.
        codec: How it is stored: as it is (empty), or ``zstd``.
        digest: Of the bytes in the file; see ``content.digest``.
    """

    segment: str
    at: int
    stored: int
    length: int
    codec: str
    digest: str


class FileEntry(NamedTuple):
    """One file: size, permission bits, time of its last change (ns since the epoch), and its extents in order."""

    size: int
    mode: int
    mtime_ns: int
    extents: tuple[Extent, ...]

    def is_same_content(self, other: FileEntry) -> bool:
        """Whether both are the same for a program that looks at content and mode."""
        return self.mode == other.mode and [e.digest for e in self.extents] == [e.digest for e in other.extents]


@dataclass(frozen=True)
class Header:
    """What a commit says of itself.

    Attributes:
        id: See ``layout.commit_id``.
        generation: Grows from commit to commit of a line.
        job_id: Who made it.
        attempt: Likewise.
        why: ``quiet``, ``report``, ``marker``, ``exit``, ``sigterm`` or ``rollback``.
        time: Seconds since the epoch by the maker's clock; for people only.
        lines: Bucket and prefix of every line that this commit moves together, this one among them.
    """

    id: str
    generation: int
    job_id: str
    attempt: int
    why: str
    time: float
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Manifest:
    """The whole state of a line at one commit.

    Attributes:
        header: Of the commit.
        key: Where it is stored.
        files: By path relative to the prefix.
        links: Symbolic links: target by path.
        folders: Paths of folders, also of those that are not empty.
        segment_bytes: How large each segment is that a file refers to.
        chain: Keys of the manifests that this one is a delta upon, the oldest (whole) one first.
    """

    header: Header
    key: str
    files: dict[str, FileEntry] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    segment_bytes: dict[str, int] = field(default_factory=dict)
    chain: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(entry.size for entry in self.files.values())

    def segments(self) -> set[str]:
        """Keys of the objects that hold its content."""
        return {extent.segment for entry in self.files.values() for extent in entry.extents}

    def mostly_garbage(self) -> set[str]:
        """Segments of which less than half is still in use."""
        used: dict[str, int] = {}
        for extent in {extent for entry in self.files.values() for extent in entry.extents}:
            used[extent.segment] = used.get(extent.segment, 0) + extent.stored
        return {segment for segment, count in used.items() if 2 * count < self.segment_bytes.get(segment, 0)}

    def refers_to(self) -> set[str]:
        """Keys of every object that must stay as long as this commit does."""
        return self.segments() | {self.key, *self.chain}

    def is_same_state(self, other: Manifest) -> bool:
        """Whether both hold the same files with the same content, links and folders."""
        return (
            self.files.keys() == other.files.keys()
            and self.links == other.links
            and set(self.folders) == set(other.folders)
            and all(entry.is_same_content(other.files[path]) for path, entry in self.files.items())
        )


def encode(manifest: Manifest, parent: Manifest | None) -> tuple[Manifest, bytes]:
    """A manifest as it is stored.

    Args:
        manifest: What to store; its chain does not count.
        parent: The commit that it is based on, if it is stored already: where little changed since, only that is said.

    Returns:
        The manifest with its chain, and the bytes.
    """
    document = _document(manifest)
    if parent is not None and len(parent.chain) < _DEEPEST:
        changed = {path: entry for path, entry in manifest.files.items() if parent.files.get(path) != entry}
        gone = [path for path in parent.files if path not in manifest.files]
        small = (len(changed) + len(gone)) * _SHARE_OF_A_DELTA < len(manifest.files)
        if small and len(manifest.files) >= _WORTH_A_DELTA:
            manifest = replace(manifest, chain=(*parent.chain, parent.key))
            document |= {"parent": parent.key, "gone": gone}
            return manifest, _pack(document | _files(changed, manifest.segment_bytes))
    return replace(manifest, chain=()), _pack(document | _files(manifest.files, manifest.segment_bytes))


def _document(manifest: Manifest) -> dict[str, Any]:
    header = manifest.header
    return {
        "version": VERSION, "id": header.id, "generation": header.generation, "job": header.job_id,
        "attempt": header.attempt, "why": header.why, "time": round(header.time, 3), "lines": header.lines,
        "links": manifest.links, "folders": manifest.folders,
    }  # fmt: skip


def _files(files: Mapping[str, FileEntry], sizes: Mapping[str, int]) -> dict[str, Any]:
    segments: dict[str, int] = {}
    rows = {
        path: [
            entry.size, entry.mode, entry.mtime_ns,
            [[segments.setdefault(e.segment, len(segments)), *e[1:]] for e in entry.extents],
        ]
        for path, entry in files.items()
    }  # fmt: skip
    return {"segments": [[key, sizes.get(key, 0)] for key in segments], "files": rows}


def _pack(document: dict[str, Any]) -> bytes:
    # ASCII only: names that are not UTF-8 come as lone surrogates, which JSON can carry and UTF-8 cannot.
    text = json.dumps(document, separators=(",", ":")).encode()
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True).compress(text)


@dataclass(frozen=True)
class Stored:
    """A manifest as it was read: perhaps a delta, which `resolve` completes."""

    manifest: Manifest
    parent: str | None
    gone: tuple[str, ...] = ()


def decode(key: str, data: bytes) -> Stored:
    """Read one stored manifest.

    Raises:
        BadManifest: It is none, or of a newer version.
    """
    try:
        return _stored(key, _unpack(key, data))
    except BadManifest:
        raise
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError,
            RecursionError) as error:  # fmt: skip
        raise BadManifest(f"{key} cannot be read ({type(error).__name__})") from error


def _unpack(key: str, data: bytes) -> dict[str, Any]:
    if zstandard.frame_content_size(data) > MAX_BYTES:
        raise BadManifest(f"{key} is too large")
    document: dict[str, Any] = json.loads(zstandard.ZstdDecompressor().decompress(data))
    version = document["version"]
    if version != VERSION:
        raise BadManifest(f"{key} is of version {version}, this is version {VERSION}: update kelpie-celery")
    return document


def _stored(key: str, document: dict[str, Any]) -> Stored:
    header = Header(
        str(document["id"]), int(document["generation"]), str(document["job"]), int(document["attempt"]),
        str(document["why"]), float(document["time"]),
        tuple((str(bucket), str(prefix)) for bucket, prefix in document["lines"]),
    )  # fmt: skip
    sizes = {str(segment): int(size) for segment, size in document["segments"]}
    segments = list(sizes)
    files = {path: _file(segments, *row) for path, row in document["files"].items()}
    links = {str(path): str(target) for path, target in document["links"].items()}
    manifest = Manifest(header, key, files, links, tuple(str(folder) for folder in document["folders"]), sizes)
    return Stored(manifest, document.get("parent"), tuple(document.get("gone", ())))


def _file(segments: list[str], size: Any, mode: Any, mtime: Any, rows: Iterable[list[Any]]) -> FileEntry:
    entry = FileEntry(int(size), int(mode), int(mtime), tuple(_extent(segments, row) for row in rows))
    if abs(entry.mtime_ns) >= _LATEST_NS or entry.mode < 0:
        raise BadManifest("a file with a time or a mode that no file can have")
    return entry


def _extent(segments: list[str], row: list[Any]) -> Extent:
    index, at, stored, length, codec, digest = row
    if min(index, at, stored, length) < 0:
        raise BadManifest("an extent with a negative place")
    return Extent(segments[index], at, stored, length, str(codec), str(digest))


def resolve(chain: Iterable[Stored]) -> Manifest:
    """The whole manifest from a chain of stored ones.

    Args:
        chain: The whole one first, each next one a delta upon the one before; at least one.

    Raises:
        BadManifest: It is no such chain.
    """
    whole: Manifest | None = None
    keys: list[str] = []
    for stored in chain:
        if stored.parent != (whole.key if whole else None):
            raise BadManifest(f"{stored.manifest.key} is a delta upon {stored.parent}, which is not here")
        if whole is None:
            whole = stored.manifest
        else:
            gone = set(stored.gone)
            files = {path: entry for path, entry in whole.files.items() if path not in gone}
            sizes = whole.segment_bytes | stored.manifest.segment_bytes
            whole = replace(stored.manifest, files=files | stored.manifest.files, segment_bytes=sizes)
        keys.append(whole.key)
    if whole is None:
        raise BadManifest("nothing to read")
    _check_sizes(whole)
    referred = whole.segments()
    sizes = {segment: size for segment, size in whole.segment_bytes.items() if segment in referred}
    return replace(whole, segment_bytes=sizes, chain=tuple(keys[:-1]))


def _check_sizes(manifest: Manifest) -> None:
    for path, entry in manifest.files.items():
        if sum(extent.length for extent in entry.extents) != entry.size:
            raise BadManifest(f"{manifest.key}: the extents of {path!r} do not add up to its size")


def check_places(manifest: Manifest, prefix: str) -> None:
    """Refuse content that lies elsewhere than a commit of this prefix has it, or in pieces that no commit is made of.

    A worker may write what it likes into its manifests; nobody who follows one reads, or copies, another job's objects.

    Raises:
        BadManifest: Names the file.
    """
    below = layout.data_prefix(prefix)
    for path, entry in manifest.files.items():
        for extent in entry.extents:
            longest = max(extent.length, extent.stored)
            if not extent.segment.startswith(below) or min(extent.length, extent.stored) < 1 or longest > SEGMENT_BYTES:
                raise BadManifest(f"{manifest.key}: the content of {path!r} is not where a checkpoint has it")


DEEPEST_CHAIN = _DEEPEST + 1
"""How many manifests a chain is made of at most, the last one included."""
