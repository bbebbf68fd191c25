"""What a checkpoint is made of on a disk: names, extents and links, checked, from all lines that it is of.

What a manifest says was written by a worker on a stranger's machine: no name leads out of the directory, nor does a
link; content is taken from the line's own objects alone, and in pieces of a bounded size.

Limits: decides and names; `kelpie_celery.checkpoints.download` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kelpie_celery.checkpoints.manifest import BadManifest, FileEntry, Manifest, check_places
from kelpie_celery.checkpoints.names import leads_inside, relative_path
from kelpie_celery.errors import StorageSetupError, UnsafeKey
from kelpie_celery.ledger.types import LineAddress


@dataclass(frozen=True)
class Source:
    """One line of a checkpoint, and the folder below the directory that it goes to; empty for the directory itself."""

    address: LineAddress
    manifest: Manifest
    folder: str = ""


@dataclass(frozen=True)
class Contents:
    """What a directory is to hold, by relative path.

    Attributes:
        files: With the bucket that the content comes from.
        links: Targets.
        folders: Those that must exist, parents of files and links left out.
        refused: Links that lead out and are left out.
    """

    files: dict[str, tuple[str, FileEntry]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(entry.size for _, entry in self.files.values())


def folders_of(addresses: Sequence[LineAddress]) -> list[str]:
    """Where each line goes below one directory: a single one to itself, several to folders by their prefixes.

    Bucket and prefix name the folder where prefixes alone do not tell lines apart.
    """
    if len(addresses) == 1:
        return [""]
    prefixes = [address.prefix.strip("/") for address in addresses]
    if all(prefixes) and len(set(prefixes)) == len(prefixes):
        return prefixes
    return [f"{address.bucket}/{prefix}".rstrip("/") for address, prefix in zip(addresses, prefixes, strict=True)]


def contents_of(sources: Iterable[Source]) -> Contents:
    """Put the lines of a checkpoint together.

    Where the prefixes of two lines are nested, both hold the same file: then the later one counts.

    Raises:
        UnsafeKey: A name has no place below the directory, or two cannot both exist.
        StorageSetupError: Content lies where a checkpoint has none.
    """
    found = Contents()
    for source in sources:
        _add(found, source)
    _check_clashes(found)
    return found


def _add(found: Contents, source: Source) -> None:
    manifest = source.manifest
    _check_places(source)
    for relative, entry in manifest.files.items():
        found.files[_place(source, relative)] = source.address.bucket, entry
    for relative, target in manifest.links.items():
        place = _place(source, relative)
        if leads_inside(relative, target):
            found.links[place] = target
        else:
            found.refused.append(place)
    found.folders.update(_place(source, relative) for relative in manifest.folders)
    if source.folder:
        found.folders.add(relative_path(source.address.bucket, "", source.folder))


def _place(source: Source, relative: str) -> str:
    """A path below the directory."""
    bucket = source.address.bucket
    try:
        if relative and not relative.endswith("/"):
            return relative_path(bucket, "", f"{source.folder}/{relative}" if source.folder else relative)
    except UnsafeKey:
        pass
    raise UnsafeKey(
        f"checkpoint {source.manifest.header.id} below {source.address.url} holds {relative!r}, which has no place in a"
        " directory; no worker of kelpie's stores such a name: look at who may write to the bucket",
        bucket=bucket, key=source.manifest.key,
    )  # fmt: skip


def _check_places(source: Source) -> None:
    try:
        check_places(source.manifest, source.address.prefix)
    except BadManifest as error:
        raise StorageSetupError(
            f"checkpoint {source.manifest.header.id} below {source.address.url}: {error}; choose another one, and"
            " look at who may write to the bucket", bucket=source.address.bucket, key=source.manifest.key,
        ) from error  # fmt: skip


def _check_clashes(found: Contents) -> None:
    """No file or link may stand where another name needs a folder."""
    taken = found.files.keys() | found.links.keys()
    both = (found.files.keys() & found.links.keys()) | (found.folders & taken)
    for name in (*taken, *found.folders):
        parent = name.rpartition("/")[0]
        while parent and not both:
            if parent in taken:
                both = {parent}
            parent = parent.rpartition("/")[0]
    if both:
        name = min(both)
        raise UnsafeKey(
            f"the checkpoint holds {name!r} as two things at once, so it cannot be put on a disk; choose another one",
            bucket="", key=name,
        )  # fmt: skip
