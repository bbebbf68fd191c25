"""One transfer by our own functions, in a process of its own: ``python -m benchmarks.transfer_client HOW ...``.

``down`` is what a restore does; ``up`` is how files of our own are sent, which a commit consists of, with the digest
that announces them; ``outputs`` is how those of a job's are, which are read consistently and digested before, and
looked up after.

What a worker has done by the time that a job needs it (imports, an open store) is done before the clock starts. Prints
one line of JSON: wall time and processor time of the transfer.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from zlib_ng.zlib_ng import crc32

from kelpie_celery.clock import SystemClock
from kelpie_worker.sync.batches import Batching, Direct, Done, divided, in_batches
from kelpie_worker.sync.bodies import ScratchBody, pieces
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.download import Downloader, Wanted
from kelpie_worker.sync.fence import OpenFence
from kelpie_worker.sync.known import KnownFiles
from kelpie_worker.sync.notices import Notices
from kelpie_worker.sync.object_store import ObjectStore, StoredObject
from kelpie_worker.sync.outputs import Outputs
from kelpie_worker.sync.paths import check_parents
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.progress import Meter
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.stable_read import PART_BYTES, SINGLE_BYTES
from kelpie_worker.sync.store import open_store
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.upload import PARTS_AT_ONCE

T = TypeVar("T")

_PATIENCE_S = 60.0


async def down(store: ObjectStore, bucket: str, prefix: str, directory: Path) -> None:
    """Everything below a prefix, verified, as a restore does it."""
    downloader = Downloader(store, Patience(_PATIENCE_S, "bench"), Meter("restore").add)

    async def done(wanted: Wanted, found: StoredObject) -> None:
        pass

    def check(wanted: Wanted) -> None:
        check_parents(directory, wanted.object.key.removeprefix(prefix), bucket=bucket, key=wanted.object.key)

    found = [item async for item in store.list(bucket, prefix)]
    wanted = [Wanted(bucket, item, directory / item.key.removeprefix(prefix)) for item in found]
    await downloader.download_all(wanted, check=check, done=done)


def _files(directory: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_size) for path in directory.iterdir())


async def up(store: ObjectStore, bucket: str, prefix: str, directory: Path) -> None:
    """Every file in a directory, as one of our own; large ones in parts."""
    free = asyncio.Semaphore(PARTS_AT_ONCE)

    async def sent(path: Path, start: int, size: int, send: Callable[[ScratchBody], Awaitable[T]]) -> T:
        async with free:
            return await send(await in_thread(partial(_body, path, start, size)))

    async def one(file: tuple[Path, int]) -> None:
        path, size = file
        key, fence = f"{prefix}{path.name}", OpenFence()
        if size <= SINGLE_BYTES:
            await sent(path, 0, size, lambda body: store.put(bucket, key, body, fence))
            return
        upload_id = await store.begin(bucket, key)
        starts = range(0, size, PART_BYTES)
        etags = await asyncio.gather(
            *(
                sent(path, at, min(PART_BYTES, size - at), partial(store.put_part, bucket, key, upload_id, number))
                for number, at in enumerate(starts, 1)
            )
        )
        await store.complete(bucket, key, upload_id, etags, fence, size_bytes=size)

    async def together(batch: Sequence[tuple[Path, int]], done: Done) -> None:
        def work(direct: Direct) -> None:
            with done:
                for path, size in batch:
                    direct.put(bucket, f"{prefix}{path.name}", _body(path, 0, size))
                    done.count += 1

        async with free:
            await cast("Batching", store).batch([bucket], work, OpenFence())

    batches = divided(_files(directory), lambda file: file[1], PARTS_AT_ONCE)
    await in_batches(batches, together, one, PARTS_AT_ONCE)


def _body(path: Path, start: int, size: int) -> ScratchBody:
    crc = 0
    with path.open("rb") as file:
        for piece in pieces(path, file.fileno(), start, size):
            crc = crc32(piece, crc)
    return ScratchBody(path, size, crc, start)


async def outputs(store: ObjectStore, bucket: str, prefix: str, directory: Path) -> None:
    """Everything in a directory, as outputs are stored: read consistently, digested, sent, and looked up at the end."""
    job_outputs = Outputs(
        store, OpenFence(), KnownFiles(), lambda path: path, directory, pack=False, give_up_s=_PATIENCE_S,
        meter=Meter("outputs"), notices=Notices(), on_progress=None,
    )  # fmt: skip
    await job_outputs.upload([Placed("after", "output", bucket, prefix, directory)])


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main(how: str, bucket: str, prefix: str, directory: str) -> None:
    """Do it and say how long it took."""
    config = StorageConfig(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"], access_key=os.environ["AWS_ACCESS_KEY_ID"],
        secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    clock = SystemClock()
    async with open_store(config) as store:
        began_s, used_s = clock.boottime(), _cpu_s()
        await {"up": up, "outputs": outputs, "down": down}[how](store, bucket, prefix, Path(directory))
        spent = {"wall_s": clock.boottime() - began_s, "cpu_s": _cpu_s() - used_s}
    sys.stdout.write(json.dumps(spent) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
