"""What the collector costs the attempt beside which it works."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from kelpie_celery.checkpoints.manifest import Manifest, Stored, decode
from tests.contract.desk import Desk, parts


async def test_of_the_manifests_that_are_read_none_is_kept(of_memory: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a line's together may be larger than the memory."""
    desk, read, most = of_memory, list[weakref.ref[Stored]](), 0

    def watched(key: str, data: bytes) -> Stored:
        nonlocal most
        gc.collect()
        most = max(most, sum(one() is not None for one in read))
        stored = decode(key, data)
        read.append(weakref.ref(stored))
        return stored

    async with desk.attempt() as sync:
        for number in range(5):
            desk.write("a", b"%d" % number)
            await sync.commit("exit", plain=False)
        collector = parts(sync)._collector
        state = desk.ledger.line(desk.address())
        dropped = {one.commit.id: one.commit.manifest for one in state.dropped}
        assert len(dropped) >= 2
        await collector.collect()
        collector._refers_to.clear()
        monkeypatch.setattr("kelpie_worker.sync.manifests.decode", watched)
        known = await collector._references((desk.bucket, "ck/"), state, set())
        assert all(key in known[id_] for id_, key in dropped.items())
    assert len(read) >= 3
    assert most <= 1  # the one before, which nobody has let go of yet


async def test_what_a_commit_refers_to_is_found_out_off_the_event_loop(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, threads = of_memory, set[threading.Thread]()
    refers_to = Manifest.refers_to

    def watched(self: Manifest) -> set[str]:
        threads.add(threading.current_thread())
        return refers_to(self)

    monkeypatch.setattr(Manifest, "refers_to", watched)
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        report = await sync.commit("exit", plain=False)
        collector = parts(sync)._collector
        await collector.collect()
        assert collector._refers_to[desk.bucket, "ck/"][report.id] == refers_to(await desk.manifest())
    assert threads
    assert threading.current_thread() not in threads
