"""The storage as a person's commands of a history use it (rollback, gc), which may be killed before any request."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kelpie_celery.checkpoints.storage import Found, Storage
from kelpie_celery.errors import StorageSetupError
from tests.contract.fakes_s3 import MemoryStore


class Killed(Exception):
    """The command was killed with Ctrl-C or worse: nothing more of it happens."""


class PersonsStorage(Storage):
    """See ``kelpie_celery.checkpoints.storage.Storage``.

    Args:
        store: The storage in memory.
        killed_at: Before which request the command is killed; 0: never.
        before_write: Told of each key that is about to be written.
    """

    def __init__(self, store: MemoryStore, killed_at: int, before_write: Callable[[str], None]) -> None:
        self._store, self._left, self._before_write = store, killed_at, before_write

    def _ask(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed

    def list(self, bucket: str, prefix: str) -> Iterator[Found]:
        self._ask()
        for key, kept in sorted(self._store.objects[bucket].items()):
            if key.startswith(prefix):
                yield Found(key, len(kept.data), kept.modified)

    def versions(self, bucket: str, prefix: str) -> Iterator[Found]:
        raise StorageSetupError("no versions are told", bucket=bucket, key=prefix)

    def read(self, bucket: str, key: str, max_bytes: int) -> bytes | None:
        self._ask()
        found = self._store.objects[bucket].get(key)
        return found.data if found else None

    def put(self, bucket: str, key: str, data: bytes) -> str:
        self._ask()
        self._before_write(key)
        self._store.seed(bucket, key, data)
        return ""

    def delete(self, bucket: str, key: str, version: str = "") -> None:
        self._ask()
        self._store.objects[bucket].pop(key, None)
