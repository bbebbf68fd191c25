"""How long segments wait for a storage, and what its own disk's errors become."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any, cast

import pytest

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync import segments
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.segments import Spool
from tests.contract.fakes_s3 import HandFence


class _TakesAllAndFails:
    async def put(self, bucket: str, key: str, body: Any, _: Any) -> None:
        await asyncio.sleep(0)
        list(body.chunks())
        raise StorageUnavailable("500", bucket=bucket, key=key)


async def test_a_storage_that_takes_bodies_and_refuses_them_in_the_end_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_LONGEST_PAUSE_S", 0.2)
    spool = Spool(cast("ObjectStore", _TakesAllAndFails()), HandFence(), tmp_path, lambda _: None)
    spool.patience_s = 1.0
    segment = await spool.new("b", "k/")
    segment.append(b"x" * 1000)
    spool.send(segment)
    async with asyncio.timeout(10):
        with pytest.raises(StorageUnavailable, match="500"):
            await spool.stored([segment])
    await spool.close()


async def test_a_disk_that_cannot_be_read_is_said_to_whoever_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(cast("ObjectStore", _TakesAllAndFails()), HandFence(), tmp_path, lambda _: None)
    segment = await spool.new("b", "k/")
    segment.append(b"x" * 1000)

    def broken(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    spool.send(segment)
    async with asyncio.timeout(10):
        with pytest.raises(LocalFileError, match="Input/output error"):
            await spool.stored([segment])
    await spool.close()


async def test_an_error_that_nobody_thought_of_is_said_to_whoever_waits_and_tried_again_when_asked_again(
    tmp_path: Path,
) -> None:
    failures = [RuntimeError("can't start new thread")]

    class Fails:
        async def put(self, *_: Any) -> None:
            await asyncio.sleep(0)
            if failures:
                raise failures.pop()

    spool = Spool(cast("ObjectStore", Fails()), HandFence(), tmp_path, lambda _: None)
    segment = await spool.new("b", "k/")
    segment.append(b"x")
    spool.send(segment)
    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="thread"):
            await spool.stored([segment])
        await spool.stored([segment])
    await spool.close()


class _TakesAll:
    async def put(self, bucket: str, key: str, body: Any, _: Any) -> None:
        list(body.chunks())


async def test_a_segment_that_is_stored_counts_although_its_file_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(cast("ObjectStore", _TakesAll()), HandFence(), tmp_path, lambda _: None)
    spool.patience_s = 1.0
    segment = await spool.new("b", "k/")
    segment.append(b"x" * 1000)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", broken)
    spool.send(segment)
    async with asyncio.timeout(10):
        await spool.stored([segment])
    await spool.close()
