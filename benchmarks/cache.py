"""How long a job waits for an input of 2 GiB that its machine has had before, beside one that it has not.

Restores through the whole storage side of an attempt, from a SeaweedFS on loopback: without a cache, into an empty one,
and out of a full one, for a block that is ``read_only`` and for one that is not. Limits: no network is that quick; on
a file system with reflinks the last two are the same.
"""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks import attempts
from benchmarks.attempts import BUCKET, Site
from benchmarks.figures import Figure, Target
from kelpie_celery.local.servers import SeaweedServer

SIZE_BYTES = 2 << 30
LIMIT_S = 0.5
ROUNDS = 3
KEY = "model/weights.bin"


def measure(directory: Path) -> Iterator[Figure]:
    """Run the part."""
    with attempts.site(directory) as site:
        _seed(site.s3, directory / "seed")
        cache = {"KELPIE_CACHE_BYTES": "8G", "KELPIE_CACHE_DIR": str(directory / "cache")}
        fetched = _restore_s(site, {}, read_only=False)
        kept = _restore_s(site, cache, read_only=True)
        if not any(path.is_file() for path in (directory / "cache").rglob("objects/*/*/*")):
            raise RuntimeError(f"the cache keeps nothing: the disk of {directory} is too full")
        linked = [_restore_s(site, cache, read_only=True) for _ in range(ROUNDS)]
        copied = [_restore_s(site, cache, read_only=False) for _ in range(ROUNDS)]
    size = f"{SIZE_BYTES >> 30} GiB, one object"
    yield Figure("cache.none", fetched, "s", against=f"{size}, fetched, no cache")
    yield Figure("cache.first", kept, "s", against=f"{size}, fetched into an empty cache, read_only")
    yield Figure("cache.read_only", statistics.median(linked), "s", Target(LIMIT_S), f"{size}, cached, read_only")
    yield Figure("cache.writable", statistics.median(copied), "s", against=f"{size}, cached, not read_only")


def _seed(server: SeaweedServer, file: Path) -> None:
    piece = os.urandom(64 << 20)
    with file.open("wb") as sink:
        for _ in range(SIZE_BYTES // len(piece)):
            sink.write(piece)
    server.client(timeout_s=60.0).upload_file(str(file), BUCKET, KEY)
    file.unlink()


def _restore_s(site: Site, settings: dict[str, str], *, read_only: bool) -> float:
    """How long a restore takes; its files are gone afterwards."""
    before = [site.block("model/", "download", read_only=read_only)]

    async def attempt() -> float:
        loop = asyncio.get_running_loop()
        async with site.attempt({"before": before}, settings=settings) as session:
            # What the run before wrote must not be what this one waits for.
            await asyncio.to_thread(os.sync)
            began_s = loop.time()
            report = await session.restore()
            took_s = loop.time() - began_s
        if report.bytes != SIZE_BYTES:
            raise RuntimeError(f"{report.bytes} bytes were restored, not {SIZE_BYTES}")
        return took_s

    return asyncio.run(attempt())
