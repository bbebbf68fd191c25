"""What is deleted of commits, when, and what never is; P3, P10."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import LeaseLost
from kelpie_celery.ledger.types import Line
from kelpie_worker.sync import SyncSession
from kelpie_worker.sync.object_store import StoredObject
from tests.contract.desk import JOB, Desk, parts, said, tree
from tests.contract.fakes_s3 import HandFence, MemoryStore
from tests.contract.shelf import Versions

GRACE_S = 100.0  # as the settings of the tests say


async def collect(sync: SyncSession) -> None:
    await parts(sync)._collector.collect()


async def commits(desk: Desk, sync: SyncSession, *steps: bytes) -> list[str]:
    """Commits of one file that is written anew each time; their segments, in order."""
    keys: list[str] = []
    for step in steps:
        desk.write("a", step)
        await sync.commit("quiet", plain=False)
        keys += sorted((await desk.manifest()).segments())
    return keys


@pytest.fixture
def listed_as(monkeypatch: pytest.MonkeyPatch, desk: Desk) -> Callable[[float], None]:
    """Lets every object seem to have been stored at one time, by the ledger's clock, whatever storage it is."""

    def set_time(modified: float) -> None:
        real = desk.shelf.store.list

        async def listed(bucket: str, prefix: str) -> Any:
            async for found in real(bucket, prefix):
                yield StoredObject(found.key, found.size_bytes, found.etag, modified)

        monkeypatch.setattr(desk.shelf.store, "list", listed)

    return set_time


# -- commits that are not kept any more ------------------------------------------------------------------------------


async def test_dropped_commits_are_deleted_after_the_grace_and_not_before(desk: Desk) -> None:
    async with desk.attempt() as sync:
        one, two, three, four = await commits(desk, sync, b"1", b"2", b"3", b"4")
        manifests = await desk.manifests()
        assert len(desk.kept()) == 2
        desk.ledger.now += GRACE_S - 1
        await collect(sync)
        assert await desk.segments() == [one, two, three, four]
        desk.ledger.now += 1
        await collect(sync)
        assert await desk.segments() == [three, four]
        assert await desk.manifests() == manifests[2:]
        assert desk.ledger.line(desk.address()).dropped == ()
    assert await desk.committed() == {"a": b"4"}


async def test_what_a_kept_commit_refers_to_stays_however_old_it_is(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("old", b"never changes")
        await commits(desk, sync, *[b"%d" % number for number in range(5)])
        desk.ledger.now += 1000 * GRACE_S
        await collect(sync)
    assert await desk.committed() == {"old": b"never changes", "a": b"4"}


async def test_what_a_commit_that_was_dropped_lately_refers_to_stays(desk: Desk) -> None:
    """A restore that began before it was dropped is still reading it."""
    async with desk.attempt() as sync:
        one, two, three = await commits(desk, sync, b"1", b"2", b"3")
        desk.ledger.now += GRACE_S / 2
        (four,) = await commits(desk, sync, b"4")
        desk.ledger.now += GRACE_S / 2
        await collect(sync)
        assert await desk.segments() == [two, three, four]
        assert one not in await desk.segments()


async def test_a_segment_that_was_left_as_mostly_garbage_is_deleted_in_the_end(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        for number in range(10):
            desk.write(f"{number}", os.urandom(10_000))
        await sync.commit("quiet", plain=False)
        (first,) = await desk.segments()
        for number in range(6):
            desk.write(f"{number}", os.urandom(10_000))
        await sync.commit("quiet", plain=False)
        await commits(desk, sync, b"1", b"2", b"3")
        desk.ledger.now += 2 * GRACE_S
        await collect(sync)
        assert first not in await desk.segments()
        before = tree(desk.ck)
    assert await desk.committed() == before


async def test_manifests_that_a_kept_delta_builds_upon_stay(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        for number in range(300):
            desk.write(f"{number}", b"%d" % number)
        await commits(desk, sync, b"1", b"2", b"3", b"4")
        chain = (await desk.manifest()).chain
        assert len(chain) == 3
        desk.ledger.now += 2 * GRACE_S
        await collect(sync)
        assert await desk.manifests() == [*chain, desk.kept()[-1].manifest]
    assert len(await desk.committed()) == 301


async def test_a_later_attempt_deletes_what_an_earlier_one_had_dropped(desk: Desk) -> None:
    async with desk.attempt() as sync:
        old = await commits(desk, sync, b"1", b"2", b"3")
    async with desk.attempt() as sync:
        new = await commits(desk, sync, b"4")
        desk.ledger.now += 2 * GRACE_S
        await collect(sync)
        assert await desk.segments() == sorted([old[2], *new])


async def test_nothing_is_deleted_while_a_kept_manifest_cannot_be_read(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk.attempt() as sync:
        await commits(desk, sync, b"1", b"2")
    async with desk.attempt() as sync:
        await commits(desk, sync, b"3", b"4", b"5")
        first_kept = desk.kept()[0]
        collector = parts(sync)._collector
        await asyncio.gather(*collector._counting)  # else it learns again what it is to forget
        collector._refers_to.clear()
        await desk.shelf.store.delete(desk.bucket, first_kept.manifest, HandFence())
        before = await desk.segments()
        desk.ledger.now += 2 * GRACE_S
        await collect(sync)
        assert await desk.segments() == before
    assert len(said(caplog, "collect_failed")) == 1


async def test_versions_are_deleted_for_good(desk: Desk, versions: Versions) -> None:
    """On a bucket that keeps versions, hiding is not enough: it would fill up."""
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        one, two, three = await commits(desk, sync, b"1", b"2", b"3")
        desk.ledger.now += 2 * GRACE_S
        await collect(sync)
        assert [key for key in versions() if "/data/" in key] == [two, three]
        assert one not in versions()


async def test_an_attempt_that_lost_its_lease_deletes_nothing(desk: Desk) -> None:
    async with desk.attempt() as sync:
        keys = await commits(desk, sync, b"1", b"2", b"3")
        desk.ledger.now += 2 * GRACE_S
        desk.fence.lose()
        with pytest.raises(LeaseLost):
            await collect(sync)
    assert await desk.segments() == keys


async def test_an_attempt_that_never_committed_deletes_nothing(desk: Desk, listed_as: Callable[[float], None]) -> None:
    """Who holds the line is known from the ledger's answer to a commit alone."""
    await desk.shelf.seed("ck.kelpie/data/other/1-dead/000001", b"x")
    listed_as(desk.ledger.now - 1000 * GRACE_S)
    async with desk.attempt() as sync:
        await collect(sync)
    assert await desk.segments() == ["ck.kelpie/data/other/1-dead/000001"]


async def test_what_a_manifest_names_elsewhere_is_not_deleted_with_its_commit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what a worker wrote, which may lie, and another one, which is not ours, may have gone on from."""
    monkeypatch.setattr("kelpie_worker.sync.finding.check_places", lambda *_: None)
    entry = await desk.planted(key="other/precious")
    await desk.plant(files={"theirs": entry}, segment_bytes={"other/precious": 4})
    async with desk.attempt() as sync:
        (desk.ck / "theirs").unlink()
        await commits(desk, sync, b"1", b"2", b"3")
        desk.ledger.now += 2 * GRACE_S
        await collect(sync)
        assert desk.ledger.line(desk.address()).dropped == ()
    assert await desk.shelf.content("other/precious") == b"evil"


# -- orphans ---------------------------------------------------------------------------------------------------------


async def leave_orphans(desk: Desk) -> list[str]:
    """An attempt dies after all was stored, before the ledger heard of it."""
    async with desk.attempt() as sync:
        desk.write("a", b"of a dead attempt")
        desk.ledger.claim(JOB, 90)
        with pytest.raises(LeaseLost):
            await sync.commit("exit", plain=False)
    return sorted([*await desk.segments(), *await desk.manifests()])


@pytest.mark.parametrize(("age_s", "gone"), [(2 * GRACE_S + 1, True), (2 * GRACE_S - 1, False)])
async def test_orphans_of_a_dead_attempt_are_deleted_once_they_are_old(
    desk: Desk, listed_as: Callable[[float], None], age_s: float, gone: bool
) -> None:
    orphans = await leave_orphans(desk)
    assert len(orphans) == 2
    async with desk.attempt() as sync:
        await settle(desk, sync)
        listed_as(desk.ledger.now - age_s)
        await collect(sync)
        left = {*await desk.segments(), *await desk.manifests()}
    assert left.isdisjoint(orphans) is gone
    assert await desk.committed() == {"a": b"2"}


async def settle(desk: Desk, sync: SyncSession) -> None:
    """Two commits with more than the grace between them: the first one will not be forgotten any more."""
    await commits(desk, sync, b"1")
    desk.ledger.now += GRACE_S + 1
    await commits(desk, sync, b"2")


async def test_nothing_is_swept_before_a_commit_of_this_attempt_is_older_than_the_grace(
    desk: Desk, listed_as: Callable[[float], None]
) -> None:
    orphans = await leave_orphans(desk)
    async with desk.attempt() as sync:
        await commits(desk, sync, b"1")
        desk.ledger.now += GRACE_S - 1
        await commits(desk, sync, b"2")
        listed_as(desk.ledger.now - 1000 * GRACE_S)
        await collect(sync)
        assert {*orphans} <= {*await desk.segments(), *await desk.manifests()}


async def test_objects_of_another_job_that_lives_are_no_orphans(desk: Desk, listed_as: Callable[[float], None]) -> None:
    orphans = [key for key in await leave_orphans(desk) if "/data/" in key]
    other = "4c6a2a10-7f2b-4f8e-9f43-2f1b7a1f0a22"
    theirs = orphans[0].replace(desk_job(orphans[0]), other)
    await desk.shelf.seed(theirs, b"x")
    desk.ledger.live.add(other)
    async with desk.attempt() as sync:
        await settle(desk, sync)
        listed_as(desk.ledger.now - 1000 * GRACE_S)
        await collect(sync)
        segments = await desk.segments()
    assert theirs in segments
    assert orphans[0] not in segments


def desk_job(key: str) -> str:
    return key.split("/data/")[1].split("/", maxsplit=1)[0]


async def test_own_objects_are_no_orphans_although_nothing_refers_to_them_yet(
    desk: Desk, listed_as: Callable[[float], None]
) -> None:
    async with desk.attempt() as sync:
        await settle(desk, sync)
        path = desk.write("large", b"x" * 2_000_000)
        await parts(sync)._committer.stage_early([path])
        async with asyncio.timeout(20):
            while len(await desk.segments()) < 3:
                await asyncio.sleep(0.01)
        listed_as(desk.ledger.now - 1000 * GRACE_S)
        await collect(sync)
        before = await desk.segments()
        await sync.commit("exit", plain=False)
        assert await desk.segments() == before, "what was sent early is what is committed"
    assert (await desk.committed())["large"] == b"x" * 2_000_000


async def test_plain_keys_and_records_are_no_orphans(desk: Desk, listed_as: Callable[[float], None]) -> None:
    kept = ["ck/a", "ck.kelpie/jobs/1/completed.json", "other"]
    for key in kept:
        await desk.shelf.seed(key, b"x")
    async with desk.attempt() as sync:
        await commits(desk, sync, b"1")
        listed_as(desk.ledger.now - 1000 * GRACE_S)
        await collect(sync)
    assert {*kept} <= {*await desk.shelf.keys()}


async def test_an_object_whose_age_the_storage_does_not_tell_stays(
    desk: Desk, listed_as: Callable[[float], None]
) -> None:
    orphans = await leave_orphans(desk)
    async with desk.attempt() as sync:
        await commits(desk, sync, b"1")
        listed_as(0.0)
        await collect(sync)
    assert {*orphans} <= {*await desk.segments(), *await desk.manifests()}


# -- what was made in vain -------------------------------------------------------------------------------------------


async def test_segments_of_a_file_that_never_became_part_of_a_commit_are_deleted(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        path = desk.write("large", b"1" * 2_000_000)
        await parts(sync)._committer.stage_early([path])
        async with asyncio.timeout(20):
            while not await desk.segments():
                await asyncio.sleep(0.01)
        path.unlink()
        (one,) = await commits(desk, sync, b"1")
        await collect(sync)
        assert await desk.segments() == [one]


async def test_what_the_ledger_may_have_accepted_is_never_taken_for_vain(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost; the next commit is made of something else."""
    desk = of_memory
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        journal = parts(sync)._committer._journal
        real = journal.commit

        async def lost(*args: Any) -> list[Line]:
            await real(*args)
            raise ConnectionError("the answer is lost")

        with monkeypatch.context() as patch:
            patch.setattr(journal, "commit", lost)
            desk.write("a", b"1")
            with pytest.raises(ConnectionError):
                await sync.commit("quiet", plain=False)
        accepted = (await desk.manifest()).segments()
        desk.write("a", b"2")
        await sync.commit("quiet", plain=False)
        await collect(sync)
        assert accepted <= {*await desk.segments()}


async def test_the_storage_may_be_away_while_garbage_is_collected(
    memory: MemoryStore, of_memory: Desk, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    desk = of_memory
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        one, two, three = await commits(desk, sync, b"1", b"2", b"3")
        desk.ledger.now += 2 * GRACE_S
        memory.down = True
        await collect(sync)
        assert len(said(caplog, "collect_failed")) == 1
        memory.down = False
        await collect(sync)
        assert await desk.segments() == [two, three]
    assert one in memory.deleted
