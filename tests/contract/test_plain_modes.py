"""When plain keys follow commits, under which names, and which of them may go; P10."""

from __future__ import annotations

import asyncio
import gzip
import os
from pathlib import Path

import pytest

from kelpie_celery.errors import LeaseLost
from tests.contract.desk import JOB, Desk, tree, until
from tests.contract.fakes_s3 import HandFence, MemoryStore


@pytest.mark.parametrize(
    ("plain", "beside", "at_the_end"), [("interval", True, True), ("end", False, True), ("never", False, False)]
)
async def test_plain_keys_follow_as_the_block_says(desk: Desk, plain: str, beside: bool, at_the_end: bool) -> None:
    async with desk.attempt(desk.checkpoint(plain=plain), plain_interval_s=0) as sync:
        async with desk.watching(sync):
            for step in (b"1", b"2"):
                desk.write("a", step)
                await desk.next_report()
            if beside:
                async with asyncio.timeout(20):
                    while await desk.plain() != {"a": b"2"}:
                        await asyncio.sleep(0.02)
        if not beside:
            assert await desk.plain() == {}
        await sync.commit("exit")
    assert await desk.plain() == ({"a": b"2"} if at_the_end else {})
    assert await desk.committed() == {"a": b"2"}


async def test_plain_keys_rest_between_two_rounds(of_memory: Desk) -> None:
    desk = of_memory
    async with desk.attempt(plain_interval_s=3600) as sync:
        async with desk.watching(sync):
            desk.write("a", b"1")
            await desk.next_report()
            desk.write("a", b"2")
            await desk.next_report()
        assert await desk.plain() == {}
        await sync.commit("exit")
    assert await desk.plain() == {"a": b"2"}


async def test_an_end_that_the_next_attempt_goes_on_from_leaves_plain_keys_alone(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        await sync.commit("sigterm", plain=False)
    assert await desk.plain() == {}


async def test_plain_keys_follow_at_the_end_also_when_the_last_attempt_changed_nothing(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        await sync.commit("sigterm", plain=False)
    async with desk.attempt() as sync:
        assert (await sync.commit("exit")).id == ""
    assert await desk.plain() == {"a": b"1"}


async def test_plain_keys_follow_a_file_that_was_touched_since_its_commit(desk: Desk) -> None:
    async with desk.attempt() as sync:
        path = desk.write("a", b"1")
        await sync.commit("quiet", plain=False)
        os.utime(path, (1.0, 1.0))
        assert (await sync.commit("exit")).id == ""
    assert await desk.plain() == {"a": b"1"}


async def test_no_plain_key_follows_a_commit_that_was_refused(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        desk.ledger.claim(JOB, 90)
        with pytest.raises(LeaseLost):
            await sync.commit("exit")
    assert await desk.plain() == {}


# -- names and content -----------------------------------------------------------------------------------------------


async def test_plain_keys_are_gzipped_always_to_the_same_bytes_when_the_job_compresses(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(compression=True)) as sync:
        desk.write("a", b"text" * 1000)
        await sync.commit("exit")
    (name, packed), *others = (await desk.plain()).items()
    assert (name, others) == ("a.gz", [])
    assert gzip.decompress(packed) == b"text" * 1000
    assert packed[4:8] == b"\0\0\0\0"  # gzip's own time stamp


async def test_a_file_restored_from_a_plain_key_is_stored_packed_and_the_plain_key_goes(desk: Desk) -> None:
    await desk.shelf.seed("ck/a", b"by hand")
    async with desk.attempt(desk.checkpoint(compression=True)) as sync:
        await sync.commit("exit")
    assert {name: gzip.decompress(data) for name, data in (await desk.plain()).items()} == {"a.gz": b"by hand"}


async def test_a_name_that_no_key_can_have_keeps_nothing_else_from_its_plain_key(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        desk.write(os.fsdecode(b"\xff"), b"2")
        (desk.ck / "link").symlink_to("a")
        (desk.ck / "empty").mkdir()
        await sync.commit("exit")
        assert len(tree(desk.ck)) == 2
    assert await desk.plain() == {"a": b"1"}


async def test_the_pattern_holds_for_plain_keys_as_well(desk: Desk) -> None:
    await desk.shelf.seed("ck/notes.txt", b"restored, but not of the during block")
    async with desk.attempt(desk.checkpoint(pattern=r"^keep/.*\.pt$")) as sync:
        (desk.ck / "notes.txt").unlink()
        for name in ("keep/a.pt", "keep/a.txt", "other/b.pt"):
            desk.write(name, b"1")
        await sync.commit("exit")
    assert set(await desk.plain()) == {"keep/a.pt", "notes.txt"}


async def test_what_vanished_from_the_plain_keys_is_placed_again_at_the_end(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        desk.write("b", b"1")
        await sync.commit("one")
        await desk.shelf.store.delete(desk.bucket, "ck/a", HandFence())
        await desk.shelf.seed("ck/b", b"somebody else's")
        desk.write("c", b"1")
        await sync.commit("exit")
    assert await desk.plain() == {"a": b"1", "b": b"1", "c": b"1"}


# -- deletion --------------------------------------------------------------------------------------------------------


async def test_a_file_that_went_away_loses_its_plain_key(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        desk.write("b", b"1")
        await sync.commit("one")
        (desk.ck / "a").unlink()
        await sync.commit("two")
    assert await desk.plain() == {"b": b"1"}


async def test_what_this_job_did_not_place_is_never_deleted(desk: Desk) -> None:
    async with desk.attempt() as sync:
        await desk.shelf.seed("ck/somebody-else", b"x")
        desk.write("a", b"1")
        await sync.commit("one")
        (desk.ck / "a").unlink()
        await sync.commit("two")
    assert await desk.plain() == {"somebody-else": b"x"}


async def test_what_an_earlier_job_placed_stays_when_this_one_deletes_its_file(desk: Desk) -> None:
    async with desk.attempt(job_id="first") as sync:
        desk.write("a", b"1")
        await sync.commit("exit")
    desk.ledger.live.clear()
    async with desk.attempt(job_id="second") as sync:
        (desk.ck / "a").unlink()
        desk.write("b", b"1")
        await sync.commit("exit")
    assert set(await desk.plain()) == {"a", "b"}


async def test_plain_keys_that_were_restored_are_not_sent_again_and_go_with_their_files(
    memory: MemoryStore, of_memory: Desk
) -> None:
    desk = of_memory
    for name in ("kept", "dropped"):
        memory.seed("bucket", f"ck/{name}", b"1")
    async with desk.attempt() as sync:
        (desk.ck / "dropped").unlink()
        await sync.commit("exit")
    assert [key for key in memory.written if key.startswith("ck/")] == []
    assert memory.deleted == ["ck/dropped"]


# -- order -----------------------------------------------------------------------------------------------------------


async def test_uploads_come_before_deletions_and_the_commit_before_both(memory: MemoryStore, of_memory: Desk) -> None:
    desk = of_memory
    async with desk.attempt() as sync:
        desk.write("old", b"x")
        await sync.commit("one")
        (desk.ck / "old").unlink()
        desk.write("new", b"y")
        memory.written.clear()
        memory.calls.clear()
        await sync.commit("two")
    assert [Path(key).parts[0] for key in memory.written] == ["ck.kelpie", "ck.kelpie", "ck"]
    assert memory.deleted == ["ck/old"]
    assert [call for call in memory.calls if call in {"put", "delete"}] == ["put", "delete"]


async def test_small_files_get_their_plain_keys_in_the_order_in_which_they_were_written(
    memory: MemoryStore, of_memory: Desk
) -> None:
    """The file that names the others is written last, and becomes visible last."""
    desk, names = of_memory, [f"f{number}" for number in (5, 3, 9, 1, 7)]
    async with desk.attempt() as sync:
        for age, name in enumerate(names):
            desk.write(name, b"x" * 10, mtime=1000.0 + age)
        await sync.commit("exit")
    assert [key for key in memory.written if key.startswith("ck/")] == [f"ck/{name}" for name in names]


async def test_of_many_files_the_newest_get_their_plain_keys_last_and_in_order(
    memory: MemoryStore, of_memory: Desk
) -> None:
    desk = of_memory
    async with desk.attempt() as sync:
        for age in range(100):
            desk.write(f"f{age:03}", b"x", mtime=1000.0 + age)
        await sync.commit("exit")
    placed = [key for key in memory.written if key.startswith("ck/")]
    assert placed[-64:] == [f"ck/f{age:03}" for age in range(36, 100)]
    assert sorted(placed) == [f"ck/f{age:03}" for age in range(100)]


async def test_plain_keys_of_a_burst_that_is_over_are_those_of_its_commit(of_memory: Desk) -> None:
    """What is written while they follow belongs to the next commit: none of it is seen under a plain key before."""
    desk = of_memory
    async with desk.attempt(plain_interval_s=0) as sync, desk.watching(sync):
        for step in range(5):
            desk.write("a", b"%d" % step)
            await desk.next_report()
            plain = await desk.plain()
            assert plain.get("a", b"0") <= b"%d" % step
        await until(lambda: sync.commits == 5)
