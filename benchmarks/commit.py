"""What a commit costs: bytes on the uplink, requests, and the time until it counts.

Through the whole storage side of an attempt, with a real Redis and a SeaweedFS on loopback; bytes are counted by a
forwarder between both, headers included. Limits: the storage's own CPU is part of every time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
from collections import Counter as Counts
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks import attempts, stage
from benchmarks.attempts import BUCKET, Site
from benchmarks.figures import Figure, Target
from benchmarks.transfer_tools import program
from kelpie_celery.checkpoints.content import SEGMENT_BYTES
from kelpie_celery.settings import load_settings
from kelpie_worker.sync import CommitReport, SyncSession
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.fence import OpenFence
from kelpie_worker.sync.segments import Segment, Spool
from kelpie_worker.sync.store import open_store

MIB = 1 << 20
LARGE_BYTES, APPEND_BYTES, APPENDS = 1 << 30, 10 * MIB, 10
NEW_BYTES = 200 * MIB
MANY, MANY_BYTES, SMALL_BYTES = 2000, 64 * 1024, 4096
ROUNDS = 5
QUIET_S = 2.0


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    with attempts.site(directory) as site:
        yield from asyncio.run(_uplink(site))
        yield from asyncio.run(_requests(site))
        yield from asyncio.run(_latency(site))
        yield from asyncio.run(_packed(site))


def _sync(site: Site, name: str) -> dict[str, Any]:
    return {"during": [site.block(f"{name}/", plain="never")]}


# -- bytes ------------------------------------------------------------------------------------------------------------


async def _uplink(site: Site) -> list[Figure]:
    forwarder = attempts.Counter(site.s3.env()["AWS_ENDPOINT_URL"])
    try:
        async with site.attempt(_sync(site, "uplink"), settings={"AWS_ENDPOINT_URL": forwarder.url}) as session:
            await session.restore()
            file = site.checkpoint / "trajectory.xtc"
            write_random(file, LARGE_BYTES)
            await session.commit("exit")
            for _ in range(APPENDS):
                write_random(file, APPEND_BYTES, append=True)
                await session.commit("exit")
            appended = forwarder.sent_bytes
            with file.open("r+b") as f:
                f.seek(LARGE_BYTES // 2 + 12345)
                byte = f.read(1)
                f.seek(-1, os.SEEK_CUR)
                f.write(bytes([byte[0] ^ 1]))
            await session.commit("exit")
            changed = forwarder.sent_bytes - appended
    finally:
        forwarder.close()
    size = f"{LARGE_BYTES // MIB} MiB file"
    most = LARGE_BYTES * 1.1 / MIB + APPENDS * 24
    return [
        Figure("commit.append_uplink", appended / MIB, "MiB", Target(most),
               f"{size}, then {APPENDS} appends of {APPEND_BYTES // MIB} MiB, a commit after each"),
        Figure("commit.one_byte_uplink", changed / MIB, "MiB", Target(9), f"{size}, one byte changed"),
    ]  # fmt: skip


def write_random(file: Path, count: int, *, append: bool = False) -> None:
    """Fill a file with bytes that cannot be compressed, or add such to it."""
    with file.open("ab" if append else "wb") as sink:
        left = count
        while left:
            piece = os.urandom(min(left, 16 * MIB))
            sink.write(piece)
            left -= len(piece)


# -- requests ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _counted(session: SyncSession, counts: Counts[str]) -> AsyncIterator[None]:
    """Count the requests that a session's storage is asked for meanwhile."""
    store: Any = session._store
    names = ("put", "begin", "put_part", "complete", "copy", "copy_part", "delete", "head", "list")
    originals = {name: getattr(store, name) for name in names}

    def counting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return originals[name](*args, **kwargs)

        return call

    for name in originals:
        setattr(store, name, counting(name))
    try:
        yield
    finally:
        for name in originals:
            delattr(store, name)


async def _requests(site: Site) -> list[Figure]:
    appended: Counts[str] = Counts()
    many: Counts[str] = Counts()
    made = asyncio.Event()

    async def told(_: CommitReport) -> None:
        made.set()

    async with site.attempt(_sync(site, "requests"), told) as session:
        await session.restore()
        watching = asyncio.ensure_future(session.watch())
        file, folder = site.checkpoint / "trajectory.xtc", site.checkpoint / "small"
        folder.mkdir()
        await asyncio.to_thread(write_random, file, 64 * MIB)
        await asyncio.to_thread(write_many, folder, 10_000, SMALL_BYTES)
        await _reported(session, made, Counts())
        await asyncio.to_thread(write_random, file, APPEND_BYTES, append=True)
        await _reported(session, made, appended)
        await asyncio.to_thread(write_many, folder, 10_000, SMALL_BYTES)
        await _reported(session, made, many)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return [
        Figure("commit.append_requests", appended.total(), "requests", Target(3.5), "64 MiB file, 10 MiB appended"),
        Figure("commit.small_requests", many.total(), "requests", Target(20.5), "10,000 files of 4 kB, all changed"),
    ]


async def _reported(session: SyncSession, made: asyncio.Event, counts: Counts[str]) -> None:
    """Commit at the job's word, and count what that asks of the storage."""
    made.clear()
    async with _counted(session, counts):
        session.request_commit()
        await asyncio.wait_for(made.wait(), 60)


def write_many(folder: Path, count: int, size: int) -> None:
    """Write many files of random bytes."""
    for number in range(count):
        (folder / f"{number:05}.bin").write_bytes(os.urandom(size))


# -- time -------------------------------------------------------------------------------------------------------------


async def _latency(site: Site) -> list[Figure]:
    bare = [await _bare_s(site, number) for number in range(ROUNDS)]
    from_close = [await _from_close_s(site, number) for number in range(ROUNDS)]
    what = f"{NEW_BYTES // MIB} MiB, all new, median of {ROUNDS}"
    bare_s, close_s = statistics.median(bare), statistics.median(from_close)
    return [
        Figure("commit.bare_upload", bare_s, "s", against=f"{what}, the same bytes sent as segments, and nothing else"),
        Figure("commit.close_to_pointer", close_s, "s", against=f"{what}, {QUIET_S:g} s of quiet included"),
        Figure("commit.quiet_to_pointer", max(0.0, close_s - QUIET_S), "s", Target(bare_s), f"{what}, after the quiet"),
    ]


async def _bare_s(site: Site, number: int) -> float:
    """How long it takes to send so many bytes, and nothing else."""
    loop = asyncio.get_running_loop()
    piece = os.urandom(8 * MIB)
    scratch = site.directory / f"bare-{number}"
    scratch.mkdir()
    config = StorageConfig.from_settings(load_settings(site.environment()))
    async with open_store(config) as store:
        spool = Spool(store, OpenFence(), scratch, lambda _: None)
        segments: list[Segment] = []
        for _ in range(0, NEW_BYTES, SEGMENT_BYTES):
            segment = await spool.new(BUCKET, f"bare/{number}/")
            while segment.has_room(len(piece)) and sum(s.size_bytes for s in [*segments, segment]) < NEW_BYTES:
                segment.append(piece)
            segments.append(segment)
        began_s = loop.time()
        for segment in segments:
            spool.send(segment)
        await spool.stored(segments)
        return loop.time() - began_s


async def _from_close_s(site: Site, number: int) -> float:
    made = asyncio.Event()

    async def told(_: CommitReport) -> None:
        made.set()

    loop = asyncio.get_running_loop()
    async with site.attempt(_sync(site, f"close-{number}"), told, {"KELPIE_QUIET_S": str(QUIET_S)}) as session:
        await session.restore()
        watching = asyncio.ensure_future(session.watch())
        await asyncio.to_thread(write_random, site.checkpoint / "weights.bin", NEW_BYTES)
        closed_s = loop.time()
        await asyncio.wait_for(made.wait(), 60)
        took_s = loop.time() - closed_s
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return took_s


# -- many small files -------------------------------------------------------------------------------------------------


async def _packed(site: Site) -> list[Figure]:
    folder = site.directory / "many"
    folder.mkdir()
    await asyncio.to_thread(write_many, folder, MANY, MANY_BYTES)
    back = site.directory / "back"
    up: dict[str, list[float]] = {"theirs": [], "ours": []}
    down: dict[str, list[float]] = {"theirs": [], "ours": []}
    for number in range(ROUNDS):
        place = f"s3://{BUCKET}/s5cmd-{number}/"
        up["theirs"].append(await _s5cmd_s(site, f"{folder}/", place))
        up["ours"].append(await _packed_s(site, folder, number))
        down["theirs"].append(await _s5cmd_s(site, f"{place}*", f"{back}/"))
        shutil.rmtree(back)
        down["ours"].append(await _restored_s(site, number))
    what = f"{MANY:,} files of {MANY_BYTES // 1024} KiB, median of {ROUNDS}"
    their_up_s, our_up_s = statistics.median(up["theirs"]), statistics.median(up["ours"])
    their_down_s, our_down_s = statistics.median(down["theirs"]), statistics.median(down["ours"])
    return [
        Figure("commit.many_s5cmd", their_up_s, "s", against=f"{what}, s5cmd cp"),
        Figure("commit.many", our_up_s, "s", against=f"{what}, one commit"),
        Figure("commit.many_to_s5cmd", our_up_s / their_up_s, "x", Target(0.5), what),
        Figure("commit.many_back_s5cmd", their_down_s, "s", against=f"{what}, s5cmd cp of as many objects"),
        Figure("commit.many_back", our_down_s, "s", against=f"{what}, the restore of one commit"),
        Figure("commit.many_back_to_s5cmd", our_down_s / their_down_s, "x", Target(0.7), what),
    ]


async def _packed_s(site: Site, folder: Path, number: int) -> float:
    async with site.attempt(_sync(site, f"many-{number}")) as session:
        await session.restore()
        shutil.copytree(folder, site.checkpoint, dirs_exist_ok=True)
        began_s = asyncio.get_running_loop().time()
        await session.commit("exit")
        return asyncio.get_running_loop().time() - began_s


async def _restored_s(site: Site, number: int) -> float:
    """How long the next job on that prefix takes to have the files back."""
    before = {"before": [site.block(f"many-{number}/", "download")]}
    async with site.attempt({**before, **_sync(site, f"many-{number}")}) as session:
        began_s = asyncio.get_running_loop().time()
        report = await session.restore()
        took_s = asyncio.get_running_loop().time() - began_s
    if report.bytes != MANY * MANY_BYTES:
        raise RuntimeError(f"{report.bytes} bytes were restored, not {MANY * MANY_BYTES}")
    return took_s


async def _s5cmd_s(site: Site, source: str, target: str) -> float:
    """How long s5cmd takes to copy."""
    environment = {**os.environ, **site.s3.env()}
    argv = [program("s5cmd"), "--endpoint-url", environment["AWS_ENDPOINT_URL"], "--log", "error", "cp", source, target]

    def copy() -> None:
        subprocess.run(argv, env=environment, check=True, timeout=120)

    return await asyncio.to_thread(stage.seconds, copy)
