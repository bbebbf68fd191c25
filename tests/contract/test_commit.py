"""What every last commit must do, on a storage in memory and on a real one; P1, P3, P4."""

from __future__ import annotations

import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import LeaseLost, StorageSetupError
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.errors import LocalFileError
from kelpie_worker.sync.snapshot import Stamp
from tests.contract.desk import MIB, Desk, job, parts
from tests.contract.fakes_s3 import HandFence


async def test_the_last_commit_stores_every_file(desk: Desk) -> None:
    files = {"a": b"1", "deep/b": b"22", "empty": b"", "odd näme\n": b"3"}
    async with desk.attempt() as sync:
        for name, data in files.items():
            desk.write(name, data)
        report = await sync.commit("exit")
        assert (report.why, report.files, report.bytes, report.generation) == ("exit", 4, 4, 1)
        assert desk.reports == [report]
        assert sync.commits == 1
    assert await desk.committed() == files
    assert [commit.id for commit in desk.kept()] == [report.id]


async def test_the_ledger_learns_what_a_commit_is(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"12345")
        report = await sync.commit("exit")
    (commit,) = desk.kept()
    assert (commit.why, commit.files, commit.bytes, commit.sent_bytes) == ("exit", 1, 5, report.sent_bytes)
    assert commit.manifest == f"ck.kelpie/commits/{commit.id}.json.zst"
    header = (await desk.manifest()).header
    assert (header.id, header.generation, header.why, header.lines) == (report.id, 1, "exit", ((desk.bucket, "ck/"),))


async def test_a_commit_without_changes_sends_and_reports_nothing(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        await sync.commit("exit")
        sent, keys = sync.bytes_sent, await desk.shelf.keys()
        report = await sync.commit("again")
        assert (report.files, report.sent_bytes, report.id) == (0, 0, "")
        assert (sync.commits, sync.bytes_sent, len(desk.reports)) == (1, sent, 1)
        assert await desk.shelf.keys() == keys


async def test_an_empty_directory_is_no_checkpoint(desk: Desk) -> None:
    async with desk.attempt() as sync:
        assert (await sync.commit("exit")).id == ""
    assert desk.kept() == []
    assert await desk.shelf.keys() == []


async def test_only_what_changed_is_sent_again(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        kept = os.urandom(900_000)
        desk.write("a", kept)
        desk.write("b", b"1")
        await sync.commit("one")
        desk.write("b", b"2")
        report = await sync.commit("two")
        assert report.sent_bytes < 2000
    assert await desk.committed() == {"a": kept, "b": b"2"}


async def test_a_file_that_is_only_touched_is_no_new_checkpoint(desk: Desk) -> None:
    async with desk.attempt() as sync:
        path = desk.write("a", b"1")
        await sync.commit("one")
        os.utime(path, (1.0, 1.0))
        assert (await sync.commit("two")).id == ""


async def test_a_file_that_is_made_executable_is_a_new_checkpoint(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        desk.write("a", b"1").chmod(0o644)
        await sync.commit("one")
        (desk.ck / "a").chmod(0o755)
        report = await sync.commit("two")
        assert report.id
    assert (await desk.manifest()).files["a"].mode == 0o755


async def test_a_large_file_goes_in_segments_and_is_the_same(desk: Desk) -> None:
    data = os.urandom(41 * MIB + 1)
    async with desk.attempt() as sync:
        desk.write("big", data)
        await sync.commit("exit", plain=False)
    assert await desk.committed() == {"big": data}
    sizes = [found.size_bytes async for found in desk.shelf.store.list(desk.bucket, "ck.kelpie/data/")]
    assert sorted(sizes) == [9 * MIB + 1, 32 * MIB]


async def test_a_file_that_went_away_is_not_in_the_next_commit(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        desk.write("b", b"1")
        await sync.commit("one")
        (desk.ck / "a").unlink()
        assert (await sync.commit("two")).files == 1
    assert await desk.committed() == {"b": b"1"}


async def test_a_checkpoint_that_was_deleted_whole_is_an_empty_one(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("deep/a", b"1")
        await sync.commit("one")
        shutil.rmtree(desk.ck / "deep")
        assert (await sync.commit("two")).id
    assert await desk.committed() == {}


async def test_a_directory_that_is_gone_deletes_nothing(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        await sync.commit("one")
        shutil.rmtree(desk.ck)
        assert (await sync.commit("two")).id == ""
    assert await desk.committed() == {"a": b"1"}
    assert await desk.plain() == {"a": b"1"}


async def test_a_directory_that_was_gone_and_is_back_decides_again(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        desk.write("b", b"1")
        await sync.commit("one")
        shutil.rmtree(desk.ck)
        await sync.commit("two")
        desk.write("b", b"1")
        await sync.commit("three")
    assert await desk.committed() == {"b": b"1"}


async def test_what_was_restored_is_not_sent_again_and_goes_when_the_job_deletes_it(desk: Desk) -> None:
    kept = os.urandom(300_000)
    async with desk.attempt() as sync:
        desk.write("kept", kept)
        desk.write("dropped", b"1")
        await sync.commit("exit")
    async with desk.attempt() as sync:
        assert (await sync.commit("nothing")).id == ""
        (desk.ck / "dropped").unlink()
        report = await sync.commit("exit", plain=False)
        assert report.files == 1
        assert report.sent_bytes < 2000
    assert await desk.committed() == {"kept": kept}


async def test_two_blocks_may_store_parts_of_one_directory_to_one_prefix(desk: Desk) -> None:
    definition = job(sync={"during": [desk.block(pattern="^a"), desk.block(pattern="^b")]})
    async with desk.attempt(definition) as sync:
        for name in ("a", "b", "c"):
            desk.write(name, name.encode())
        await sync.commit("one")
        (desk.ck / "a").unlink()
        await sync.commit("two", plain=False)
    assert await desk.committed() == {"b": b"b"}
    assert await desk.plain() == {"a": b"a", "b": b"b"}


async def test_pipes_and_our_own_files_are_not_stored(desk: Desk) -> None:
    async with desk.attempt() as sync:
        os.mkfifo(desk.ck / "pipe")
        desk.write(".kelpie-tmp-1")
        desk.write("x.kelpie/jobs/1/completed.json")
        desk.write("a", b"1")
        await sync.commit("exit")
    manifest = await desk.manifest()
    assert (list(manifest.files), manifest.links, manifest.folders) == (["a"], {}, ())


async def test_what_vanished_from_the_storage_is_sent_again_by_the_last_commit(desk: Desk) -> None:
    data = os.urandom(2 * MIB)
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        desk.write("large", data)
        desk.write("small", b"1")
        await sync.commit("one")
        for key in await desk.segments():
            await desk.shelf.store.delete(desk.bucket, key, HandFence())
        await sync.commit("exit")
    assert await desk.committed() == {"large": data, "small": b"1"}


async def test_content_that_was_cut_is_sent_again_by_the_last_commit(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        desk.write("a", b"content")
        await sync.commit("one")
        (key,) = await desk.segments()
        await desk.shelf.store.put(desk.bucket, key, BytesBody(b"con"), HandFence())
        await sync.commit("exit")
    assert await desk.committed() == {"a": b"content"}


@pytest.mark.parametrize("size", [100, 2 * MIB])
async def test_a_change_through_a_mapping_is_in_the_next_commit(desk: Desk, size: int) -> None:
    """Only the first store into a page moves the time of the file."""
    async with desk.attempt() as sync:
        path = desk.write("a", b"1" * size)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[10] = ord("2")
            await sync.commit("one")
            stamp = Stamp.of(path.stat())
            mapped[10] = ord("3")
            assert Stamp.of(path.stat()) == stamp
            await sync.commit("two")
            assert (await desk.committed())["a"] == b"1" * 10 + b"3" + b"1" * (size - 11)


async def test_a_change_that_left_no_trace_is_found_by_the_last_commit(desk: Desk) -> None:
    """As by a mapping that was closed in between, on a file system that does not tell of it."""
    async with desk.attempt() as sync:
        path = desk.write("a", b"1")
        await sync.commit("one")
        path.write_bytes(b"2")
        (line,) = parts(sync).lines
        line._known["a"] = Stamp.of(path.stat()), line._known["a"][1]
        await sync.commit("exit")
    assert await desk.committed() == {"a": b"2"}


async def test_an_unreadable_folder_is_an_error_and_not_a_deletion(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk.attempt() as sync:
        desk.write("sub/a", b"1")
        await sync.commit("one")
        scandir = os.scandir

        def refuse(path: str) -> Any:
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        with monkeypatch.context() as patch:
            patch.setattr("kelpie_worker.sync.snapshot.os.scandir", refuse)
            with pytest.raises(LocalFileError, match="sub"):
                await sync.commit("two")
    assert await desk.committed() == {"sub/a": b"1"}
    assert await desk.plain() == {"sub/a": b"1"}


async def test_files_that_change_after_the_command_ended_are_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody still writes: nothing is stored that never was whole."""
    async with desk.attempt() as sync:
        path = desk.write("a", b"0")
        looked = 0

        def look() -> Any:
            nonlocal looked
            looked += 1
            path.write_bytes(str(looked).encode())
            return real()

        committer = parts(sync)._committer
        real = committer._look
        monkeypatch.setattr(committer, "_look", look)
        with pytest.raises(LocalFileError, match=str(path)):
            await sync.commit("exit")
    assert desk.kept() == []


async def test_a_missing_bucket_is_a_mistake_in_the_set_up(desk: Desk) -> None:
    definition = job(sync={"during": [desk.block() | {"bucket": "no-such-bucket"}]})
    async with desk.open(definition) as sync:
        with pytest.raises(StorageSetupError, match="no-such-bucket"):
            await sync.restore()
        desk.write("a", b"1")
        with pytest.raises(StorageSetupError, match="no-such-bucket"):
            await sync.commit("exit")


async def test_an_attempt_that_lost_its_lease_commits_nothing(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        desk.fence.lose()
        with pytest.raises(LeaseLost):
            await sync.commit("exit")
    assert desk.kept() == []
    assert await desk.shelf.keys() == []


async def test_an_attempt_whose_job_another_one_owns_is_refused_by_the_ledger(desk: Desk) -> None:
    """It is still trusted, and all of its content is stored: nobody will ever see it."""
    async with desk.attempt(number=1) as sync:
        desk.write("a", b"1")
        await sync.commit("one")
        desk.write("a", b"stale")
        desk.ledger.claim(sync._token.job_id, 2)
        with pytest.raises(LeaseLost):
            await sync.commit("exit")
    assert await desk.committed() == {"a": b"1"}
    assert await desk.plain() == {"a": b"1"}


async def test_nothing_is_left_in_the_scratch_folder(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("large", os.urandom(2 * MIB))
        desk.write("small", b"1")
        await sync.commit("exit")
        assert list(desk.scratch.rglob("*")) == list(desk.scratch.glob("sync-*"))
    assert list(desk.scratch.iterdir()) == []


async def test_a_job_without_a_lasting_checkpoint_commits_to_no_line(desk: Desk, tmp_path: Path) -> None:
    async with desk.attempt(job(sync={"after": [desk.block("out", "output")]})) as sync:
        assert (await sync.commit("exit")).id == ""
    assert desk.ledger.lines == {}
