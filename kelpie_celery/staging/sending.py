"""Sends a directory to a prefix: inputs of jobs, before they are submitted.

A file whose object is there, with the same size and an ETag that is of its content, is not sent again. What is sent is
verified: a small file by the MD5 that goes with it, a large one by the ETag of its parts, or by reading it back where
that tells nothing. At the end everything is looked for once more.

Limits: nothing is deleted on the storage; what lies below the prefix besides is counted. Symbolic links, sockets and
empty folders are left out, and told. A file that is written to meanwhile is an error.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from kelpie_celery.checkpoints.download import OnBytes
from kelpie_celery.checkpoints.names import conflict, is_reserved, relative_path
from kelpie_celery.checkpoints.storage import Found, Storage, open_storage
from kelpie_celery.errors import DirectoryError, StorageError, StorageSetupError, StorageUnavailable
from kelpie_celery.settings import Settings
from kelpie_celery.staging import content
from kelpie_celery.staging.carrier import Carrier
from kelpie_celery.staging.crowd import Crowd
from kelpie_celery.staging.place import checked, storage_settings
from kelpie_celery.staging.tree import Tree, named, shown, walk

_MAX_KEY_BYTES = 1024


@dataclass(frozen=True)
class Uploaded:
    """What became of a directory.

    Attributes:
        url: Where it lies now.
        files: How many the directory has.
        bytes: Of all of them.
        sent: How many were sent; with ``dry_run`` how many would be.
        sent_bytes: Of those.
        replaced: How many of those took the place of another content.
        unchanged: How many were there already.
        links: Symbolic links, which were left out.
        others: Sockets, pipes, devices, and names that are kelpie's own; likewise.
        empty: Folders without anything in them; likewise.
        extra: How many objects lie below the prefix that the directory does not have.
    """

    url: str
    files: int
    bytes: int
    sent: int
    sent_bytes: int
    replaced: int
    unchanged: int
    links: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    extra: int = 0


def upload(
    directory: str | Path, bucket: str, prefix: str, *, force: bool = False, dry_run: bool = False,
    progress: OnBytes | None = None, settings: Settings | None = None,
) -> Uploaded:  # fmt: skip
    """Send a directory; what is there already is not sent again.

    Args:
        directory: Everything below it is sent.
        bucket: Where to.
        prefix: Likewise, as in a job definition; a missing last ``/`` is added.
        force: Send everything, without comparing.
        dry_run: Only tell what would be sent.
        progress: Told how many of how many bytes are done, what is there already included.
        settings: Name the storage; by default the environment does.

    Raises:
        DirectoryError: The directory cannot be read, holds no file, or changes meanwhile.
        StorageSetupError: A name cannot be a key, or the storage refuses.
        StorageUnavailable: It is away; what was sent stays, and is not sent again.
    """
    bucket, prefix = checked(bucket, prefix)
    root = Path(directory)
    tree = walk(root)
    if not tree.files:
        raise DirectoryError(f"{shown(root)} holds no file, so there is nothing to send{_left_out(tree)}")
    _check_names(tree, bucket, prefix)
    sending = _Sending(open_storage(storage_settings(settings)), root, tree, bucket, prefix, progress)
    return sending.run(force=force, dry_run=dry_run)


def _left_out(tree: Tree) -> str:
    return f"; symbolic links are not followed: {named(tree.links)}" if tree.links else ""


def _check_names(tree: Tree, bucket: str, prefix: str) -> None:
    """Refuse what no key can name, and what no worker would bring down."""
    odd = [name for name in tree.files if not _is_text(name)]
    if odd:
        raise DirectoryError(f"names that are not UTF-8 cannot be keys; rename these files: {named(odd)}")
    for name in tree.files:
        key = prefix + name
        relative_path(bucket, prefix, key)
        if len(key.encode()) > _MAX_KEY_BYTES:
            raise DirectoryError(
                f"{shown(name)} would get a key of {len(key.encode())} bytes, and a key has at most {_MAX_KEY_BYTES};"
                " shorten its path, or the prefix"
            )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Sending:
    """One upload of one directory."""

    def __init__(
        self, storage: Storage, root: Path, tree: Tree, bucket: str, prefix: str, progress: OnBytes | None
    ) -> None:
        self._storage, self._root, self._tree, self._progress = storage, root, tree, progress
        self._bucket, self._prefix = bucket, prefix
        self._crowd, self._lock = Crowd(), threading.Lock()
        self._carrier = Carrier(storage, self._crowd, self._add)
        self._done_bytes = self._sent = self._sent_bytes = self._replaced = self._unchanged = 0

    def run(self, *, force: bool, dry_run: bool) -> Uploaded:
        there = self._list()
        self._check_clash(there)

        def one(name: str) -> None:
            self._one(name, there.get(name), force=force, dry_run=dry_run)

        with self._carrier:
            self._crowd.do(self._tree.files, one, self._carrier.cancel)
        if self._sent and not dry_run:
            there = self._list()
            self._check_all_there(there)
        tree = self._tree
        return Uploaded(
            f"s3://{self._bucket}/{self._prefix}", len(tree.files), tree.total_bytes, self._sent, self._sent_bytes,
            self._replaced, self._unchanged, tuple(tree.links), (*tree.others, *tree.reserved), tuple(tree.empty),
            sum(1 for name in there if name not in tree.files and name and not name.endswith("/")),
        )  # fmt: skip

    def _list(self) -> dict[str, Found]:
        """What lies below the prefix, by the rest of its key."""
        cut = len(self._prefix)
        found = {one.key[cut:]: one for one in self._storage.list(self._bucket, self._prefix)}
        return {name: one for name, one in found.items() if not is_reserved(name)}

    def _check_clash(self, there: dict[str, Found]) -> None:
        names = {name for name in there if name and not name.endswith("/")}
        clash = conflict(names | self._tree.files.keys())
        if clash:
            file, inner = (f"s3://{self._bucket}/{self._prefix}{name}" for name in clash)
            raise StorageSetupError(
                f"{file} and {inner} cannot both be: one is a file where the other needs a folder, and no job would"
                " start with them; delete the one that is old, or use another prefix",
                bucket=self._bucket, key=self._prefix + clash[0],
            )  # fmt: skip

    def _one(self, name: str, found: Found | None, *, force: bool, dry_run: bool) -> None:
        path = self._root / name
        stamp = content.Stamp.of(path)
        if found and not force and self._is_same(path, found, stamp.size_bytes):
            self._add(stamp.size_bytes)
            with self._lock:
                self._unchanged += 1
            return
        if dry_run:
            self._add(stamp.size_bytes)
        else:
            self._send(path, self._prefix + name, stamp)
        with self._lock:
            self._sent, self._sent_bytes = self._sent + 1, self._sent_bytes + stamp.size_bytes
            self._replaced += found is not None

    def _is_same(self, path: Path, found: Found, size_bytes: int) -> bool:
        return found.size_bytes == size_bytes and content.has_etag(path, found.etag, size_bytes, self._crowd.check)

    def _send(self, path: Path, key: str, stamp: content.Stamp) -> None:
        try:
            if stamp.size_bytes <= content.SINGLE_BYTES:
                self._carrier.send_small(path, self._bucket, key, stamp)
            else:
                self._carrier.send_large(path, self._bucket, key)
                self._verify(path, key, stamp.size_bytes)
        except StorageError:
            stamp.check_still(path)  # that would be why
            raise
        stamp.check_still(path)

    def _verify(self, path: Path, key: str, size_bytes: int) -> None:
        """Compare what was made of parts with the file."""
        stored = next((one for one in self._storage.list(self._bucket, key) if one.key == key), None)
        if stored and stored.size_bytes == size_bytes:
            if content.has_etag(path, stored.etag, size_bytes, self._crowd.check):
                return
            if self._carrier.md5_of(self._bucket, key, size_bytes) == content.etag_of(path, 0, self._crowd.check):
                return  # an ETag that is no digest, as with some kinds of encryption
        raise StorageUnavailable(
            f"s3://{self._bucket}/{key}: what is stored is not what was sent; run it again",
            bucket=self._bucket,
            key=key,
        )

    def _check_all_there(self, there: dict[str, Found]) -> None:
        for name, size_bytes in self._tree.files.items():
            found = there.get(name)
            if found is None or found.size_bytes != size_bytes:
                key = self._prefix + name
                what = "is not there" if found is None else f"has {found.size_bytes} bytes instead of {size_bytes}"
                raise StorageUnavailable(
                    f"s3://{self._bucket}/{key} was sent, and {what}: somebody else writes or deletes below this"
                    " prefix; run it again",
                    bucket=self._bucket, key=key,
                )  # fmt: skip

    def _add(self, count_bytes: int) -> None:
        with self._lock:
            self._done_bytes += count_bytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._tree.total_bytes)
