"""A long transfer shows in the job's record while it goes on, with the time that is left, and not a moment longer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from kelpie_celery.clock import Instant, SystemClock
from kelpie_celery.ledger.records import Transfer
from kelpie_celery.local.servers import SeaweedServer
from kelpie_worker.attempt import Attempt
from kelpie_worker.lease import Lease
from kelpie_worker.sync.progress import Progress
from kelpie_worker.sync.store import open_store
from tests.contract.fakes_s3 import HandFence
from tests.contract.ledger_cases import World
from tests.contract.plain_support import MIB, Desk
from tests.contract.shelf import Shelf, config_of
from tests.integration.sync_proxy import Proxy, proxy_before

SIZE = 24 * MIB
SLOW_BYTES_S = 1.0 * MIB


@dataclass
class Recorded:
    """An attempt's storage side behind a proxy, whose lease tells a real ledger of transfers."""

    desk: Desk
    proxy: Proxy
    world: World
    lease: Lease

    def told(self, progress: Progress) -> None:
        """What an attempt does with it."""
        attempt: Any = SimpleNamespace(_lease=self.lease)
        Attempt._transferred(attempt, progress)
        if progress.over:
            self.proxy.slow_bytes_s = SLOW_BYTES_S

    async def transfer(self) -> Transfer | None:
        record = await asyncio.to_thread(self.world.ledger.get, "j1")
        return record.transfer

    async def of(self, stage: str) -> Transfer:
        """Of a transfer of which is known how long it will take; before that something is read, or packed.

        It is slow until it is met, and then no more; the next one is slow again.
        """
        async with asyncio.timeout(30):
            while (found := await self.transfer()) is None or found.stage != stage or found.left_s is None:
                await asyncio.sleep(0.05)
        self.proxy.slow_bytes_s = 0
        return found

    async def gone(self) -> None:
        async with asyncio.timeout(10):
            while await self.transfer() is not None:
                await asyncio.sleep(0.05)


@pytest.fixture
async def recorded(
    redis_url: str, s3_server: SeaweedServer, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Recorded]:
    monkeypatch.setattr("kelpie_worker.sync.progress.LOG_EVERY_S", 0.2)
    with Redis.from_url(redis_url) as redis:
        world = World(redis)
        world.submit("j1")
        clock = SystemClock()
        lease = Lease(
            world.start("j1"), world.ledger, lease_s=5.0, margin_s=1.0, blind_s=60.0, heartbeat_s=1.0,
            granted=Instant.now(clock), clock=clock, on_cancel=lambda: None,
        )  # fmt: skip
        keeping = asyncio.ensure_future(lease.keep())
        try:
            async with proxy_before(s3_server.endpoint_url) as proxy:
                config = replace(config_of(s3_server.env()), endpoint_url=proxy.url)
                async with open_store(config) as store:
                    desk = Desk(Shelf(store, s3_bucket, HandFence()), tmp_path)
                    yield Recorded(desk, proxy, world, lease)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def test_a_long_commit_and_its_plain_keys_show_in_the_record_until_they_end(recorded: Recorded) -> None:
    desk = recorded.desk
    # Packed plain keys cannot be put together on the storage, so they are sent as well.
    async with desk.open(desk.job(compression=True), on_progress=recorded.told) as sync:
        await sync.restore()
        recorded.proxy.slow_bytes_s = SLOW_BYTES_S
        desk.write("model", os.urandom(SIZE))
        committing = asyncio.ensure_future(sync.commit("exit"))
        commit, plain = await recorded.of("commit"), await recorded.of("plain")
        for transfer in (commit, plain):
            assert 0 < transfer.done_bytes <= transfer.total_bytes
            assert SIZE <= transfer.total_bytes < SIZE + MIB
            assert transfer.rate_bytes_s > 0
            assert transfer.left_s == pytest.approx(
                (transfer.total_bytes - transfer.done_bytes) / transfer.rate_bytes_s, abs=0.1
            )
        await asyncio.wait_for(committing, 60)
        await recorded.gone()
