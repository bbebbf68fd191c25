"""Lines: several moved together, handed from job to job, held against others; what is carried forward; which commit
a restore takes when the ledger does not say.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.address import endpoint_of
from kelpie_celery.definition import JobDefinition
from kelpie_celery.errors import LeaseLost, LineMoved, PrefixHeld, StorageSetupError
from kelpie_worker.sync.bodies import BytesBody
from tests.contract.desk import JOB, Desk, job, said, tree
from tests.contract.fakes_s3 import HandFence


def elsewhere(desk: Desk, name: str = "other") -> Desk:
    """Another machine with the same storage and ledger."""
    return Desk(desk.home / name, desk.shelf, desk.ledger)


async def one_commit(desk: Desk, files: dict[str, bytes], definition: JobDefinition | None = None, **how: Any) -> str:
    """An attempt that restores, writes files, commits and ends; the commit's id."""
    async with desk.attempt(definition, **how) as sync:
        for name, data in files.items():
            desk.write(name, data)
        report = await sync.commit("exit", plain=False)
        return report.id


async def remove(desk: Desk, *keys: str) -> None:
    for key in keys:
        await desk.shelf.store.delete(desk.bucket, key, HandFence(), forever=True)


# -- several lines ---------------------------------------------------------------------------------------------------


async def test_two_blocks_are_two_lines_that_move_together(desk: Desk) -> None:
    blocks = [desk.block("one", "one"), desk.block("two", "two")]
    before = [{**block, "direction": "download"} for block in blocks]
    definition = job(sync={"before": before, "during": blocks})
    one, two = desk.work / "one", desk.work / "two"
    async with desk.attempt(definition) as sync:
        desk.write("a", b"1", at=one)
        desk.write("b", b"1", at=two)
        first = await sync.commit("exit")
        assert (first.files, first.bytes) == (2, 2)
        desk.write("a", b"2", at=one)
        second = await sync.commit("exit")
    assert desk.ledger.calls == 2
    for prefix in ("one/", "two/"):
        assert [commit.id for commit in desk.kept(prefix)] == [first.id, second.id]
        lines = (await desk.manifest(prefix)).header.lines
        assert lines == ((desk.bucket, "one/"), (desk.bucket, "two/"))
    async with desk.attempt(definition):
        assert (tree(one), tree(two)) == ({"a": b"2"}, {"b": b"1"})
        assert desk.report.commits == (second.id, second.id)


async def test_a_commit_of_two_lines_of_which_one_is_held_moves_neither(desk: Desk) -> None:
    mine, both = desk.block("mine", "mine"), desk.block("theirs", "theirs")
    async with desk.attempt(job(sync={"during": [mine, both]})) as sync:
        other = elsewhere(desk)
        await one_commit(other, {"a": b"theirs"}, other.checkpoint(prefix="theirs"), job_id="other")
        desk.write("a", b"1", at=desk.work / "mine")
        desk.write("a", b"1", at=desk.work / "theirs")
        with pytest.raises(PrefixHeld, match="job other"):
            await sync.commit("exit")
    assert desk.kept("mine/") == []
    assert len(desk.kept("theirs/")) == 1


async def test_generations_go_on_from_the_highest_of_all_lines(desk: Desk) -> None:
    for number in range(3):
        await one_commit(desk, {"a": b"%d" % number})
    both = job(sync={"during": [desk.block(), desk.block("new", "new")]})
    id_ = await one_commit(desk, {"b": b"1"}, both)
    name = layout.parse_id(id_)
    assert name is not None
    assert name.generation == 4
    assert [commit.generation for commit in desk.kept("new/")] == [4]


# -- from job to job -------------------------------------------------------------------------------------------------


async def test_a_later_job_goes_on_from_the_ledgers_head(desk: Desk) -> None:
    data = os.urandom(200_000)
    await one_commit(desk, {"a": data})
    desk.ledger.live.clear()
    async with desk.attempt(job_id="second", number=1) as sync:
        assert tree(desk.ck) == {"a": data}
        desk.write("b", b"2")
        report = await sync.commit("exit", plain=False)
        assert (report.generation, report.sent_bytes < 4000) == (2, True)
    assert await desk.committed() == {"a": data, "b": b"2"}
    assert desk.kept()[-1].job_id == "second"


async def test_a_ledger_that_was_lost_is_made_up_for_by_the_listing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    await one_commit(desk, {"a": b"1"})
    newest = await one_commit(desk, {"a": b"2"})
    desk.ledger.lines.clear()
    async with desk.attempt(job_id="second", number=1) as sync:
        assert tree(desk.ck) == {"a": b"2"}
        assert desk.report.commits == (newest,)
        desk.write("a", b"3")
        assert (await sync.commit("exit")).generation == 3
    assert await desk.committed() == {"a": b"3"}
    assert [record.taken for record in said(caplog, "head_missing")] == [newest]


async def test_of_the_listing_only_whole_commits_count(desk: Desk) -> None:
    whole = await one_commit(desk, {"a": os.urandom(100)})
    kept = set(await desk.segments())
    for _ in range(2):
        await one_commit(desk, {"a": os.urandom(100)})
    newest = desk.kept()[-1].id
    await desk.shelf.store.put(desk.bucket, layout.manifest_key("ck/", newest), BytesBody(b"cut"), HandFence())
    await remove(desk, *(set(await desk.segments()) - kept))
    desk.ledger.lines.clear()
    async with desk.attempt():
        assert desk.report.commits == (whole,)


async def test_a_commit_of_two_lines_counts_only_with_both_manifests(desk: Desk) -> None:
    definition = job(
        sync={
            "before": [desk.block("one", "one", down=True), desk.block("two", "two", down=True)],
            "during": [desk.block("one", "one"), desk.block("two", "two")],
        }
    )
    ids = []
    for number in range(2):
        async with desk.attempt(definition) as sync:
            desk.write("a", b"%d" % number, at=desk.work / "one")
            desk.write("a", b"%d" % number, at=desk.work / "two")
            ids.append((await sync.commit("exit", plain=False)).id)
    await remove(desk, layout.manifest_key("two/", ids[1]))
    desk.ledger.lines.clear()
    async with desk.attempt(definition):
        assert desk.report.commits == (ids[0], ids[0])
        assert tree(desk.work / "one") == tree(desk.work / "two") == {"a": b"0"}


async def test_a_head_whose_manifest_is_gone_is_replaced_by_the_newest_whole_one_and_told(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    older = await one_commit(desk, {"a": b"1"})
    newest = await one_commit(desk, {"a": b"2"})
    await remove(desk, layout.manifest_key("ck/", newest))
    async with desk.attempt() as sync:
        assert tree(desk.ck) == {"a": b"1"}
        desk.write("a", b"3")
        assert (await sync.commit("exit", plain=False)).generation == 3
    (record,) = said(caplog, "head_missing")
    assert (record.head, record.taken) == (newest, older)


async def test_a_commit_that_the_ledger_refused_is_not_restored_where_it_knows_better(desk: Desk) -> None:
    """A stale attempt left a whole commit behind, newer than all that are left of those that were accepted."""
    older = await one_commit(desk, {"a": b"1"})
    stale = elsewhere(desk, "stale")
    async with stale.attempt(number=2) as sync:
        stale.write("a", b"stale")
        desk.ledger.claim(JOB, 3)
        with pytest.raises(LeaseLost):
            await sync.commit("exit", plain=False)
    newest = await one_commit(desk, {"a": b"2"}, number=3)
    await remove(desk, layout.manifest_key("ck/", newest))
    async with desk.attempt():
        assert desk.report.commits == (older,)
        assert tree(desk.ck) == {"a": b"1"}


async def test_without_any_commit_the_plain_keys_are_restored(desk: Desk) -> None:
    await desk.shelf.seed("ck/deep/a", b"by hand")
    async with desk.attempt() as sync:
        assert tree(desk.ck) == {"deep/a": b"by hand"}
        assert desk.report.commits == ()
        assert (await sync.commit("exit")).files == 1
    assert await desk.committed() == {"deep/a": b"by hand"}


async def test_a_head_that_cannot_be_read_stops_the_start_and_is_named(desk: Desk) -> None:
    """It is the truth, and it is there: nobody but its user may say that an older one will do."""
    id_ = await one_commit(desk, {"a": b"1"})
    key = layout.manifest_key("ck/", id_)
    await desk.shelf.store.put(desk.bucket, key, BytesBody(b"no manifest"), HandFence())
    async with desk.open() as sync:
        with pytest.raises(StorageSetupError, match="rollback") as caught:
            await sync.restore()
    assert (caught.value.bucket, caught.value.key) == (desk.bucket, key)


# -- held ------------------------------------------------------------------------------------------------------------


async def test_a_live_job_on_the_same_prefix_is_refused_before_it_starts(desk: Desk) -> None:
    await one_commit(desk, {"a": b"1"})
    async with desk.open(job_id="second") as sync:
        with pytest.raises(PrefixHeld, match=rf"job {desk.kept()[-1].job_id} .*s3://{desk.bucket}/ck/") as caught:
            await sync.restore()
    assert caught.value.holder == desk.kept()[-1].job_id


async def test_a_live_job_that_committed_first_is_named_at_the_first_commit(desk: Desk) -> None:
    other = elsewhere(desk)
    async with desk.attempt(job_id="second") as sync:
        await one_commit(other, {"a": b"1"}, job_id="first")
        desk.write("a", b"2")
        with pytest.raises(PrefixHeld, match="job first"):
            await sync.commit("exit")
    assert await desk.committed() == {"a": b"1"}
    assert await desk.plain() == {}


async def test_a_refused_job_ends_its_watch(desk: Desk) -> None:
    other = elsewhere(desk)
    async with desk.attempt(job_id="second") as sync:
        await one_commit(other, {"a": b"1"}, job_id="first")
        async with desk.watching(sync) as watch:
            desk.write("a", b"2")
            with pytest.raises(PrefixHeld):
                await watch


async def test_a_line_that_moved_on_meanwhile_is_not_built_upon(desk: Desk) -> None:
    """The other job has come and gone: what this attempt took over from the older head may be deleted by now."""
    other = elsewhere(desk)
    await one_commit(desk, {"a": b"1"}, job_id="second")
    async with desk.attempt(job_id="second") as sync:
        desk.ledger.live.clear()
        await one_commit(other, {"a": b"2"}, job_id="first")
        desk.ledger.live.clear()
        desk.write("a", b"3")
        with pytest.raises(LineMoved, match="job first"):
            await sync.commit("exit")
    assert await desk.committed() == {"a": b"2"}


async def test_a_job_may_restore_from_a_prefix_that_another_live_job_commits_to(desk: Desk) -> None:
    await one_commit(desk, {"a": b"theirs"})
    blocks = {"before": [desk.block("ck", "mine", down=True)], "during": [desk.block("mine", "mine")]}
    async with desk.attempt(job(sync=blocks), job_id="second") as sync:
        assert tree(desk.work / "mine") == {"a": b"theirs"}
        await sync.commit("exit", plain=False)
    assert await desk.committed("mine/") == {"a": b"theirs"}
    assert len(desk.kept()) == 1


# -- carried forward -------------------------------------------------------------------------------------------------


async def test_what_the_pattern_of_a_before_block_leaves_out_stays_in_the_next_commit(desk: Desk) -> None:
    await one_commit(desk, {"keep.pt": b"1", "deep/other.txt": b"2"})
    definition = desk.checkpoint(before={"pattern": r"\.pt$"})
    async with desk.attempt(definition) as sync:
        assert tree(desk.ck) == {"keep.pt": b"1"}
        desk.write("keep.pt", b"new")
        await sync.commit("exit", plain=False)
    assert await desk.committed() == {"keep.pt": b"new", "deep/other.txt": b"2"}


async def test_what_the_pattern_of_a_during_block_hides_is_neither_stored_nor_taken_for_deleted(desk: Desk) -> None:
    await one_commit(desk, {"a.pt": b"1", "notes.txt": b"1"})
    async with desk.attempt(desk.checkpoint(pattern=r"^[ab]\.pt$")) as sync:
        (desk.ck / "notes.txt").unlink()
        (desk.ck / "a.pt").unlink()
        for name in ("b.pt", "c.pt", "b.txt"):
            desk.write(name, b"2")
        await sync.commit("exit", plain=False)
    assert await desk.committed() == {"b.pt": b"2", "notes.txt": b"1"}


async def test_files_of_another_job_below_the_prefix_stay(desk: Desk) -> None:
    await one_commit(desk, {"theirs": b"1"})
    desk.ledger.live.clear()
    async with desk.attempt(job(sync={"during": [desk.block()]}), job_id="second") as sync:
        assert tree(desk.ck) == {}
        desk.write("mine", b"2")
        await sync.commit("one", plain=False)
        (desk.ck / "mine").unlink()
        await sync.commit("two", plain=False)
    assert await desk.committed() == {"theirs": b"1"}


async def test_a_block_that_brings_the_same_file_later_is_what_the_next_commit_holds(desk: Desk) -> None:
    await one_commit(desk, {"a": b"1"})
    async with desk.attempt(job(sync={"during": [desk.block("b")]}), job_id="second") as sync:
        desk.write("a", b"2")
        await sync.commit("exit", plain=False)
    blocks = [desk.block("ck", down=True), desk.block("b", down=True)]
    async with desk.attempt(job(sync={"before": blocks, "during": [desk.block("ck")]})) as sync:
        assert tree(desk.ck) == {"a": b"2"}
        await sync.commit("exit", plain=False)
    assert await desk.committed("ck/") == {"a": b"2"}


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [(None, ""), ("http://Key:secret@S3.example:8333/path", "s3.example:8333"), ("https://r2.dev", "r2.dev")],
)
def test_a_storage_is_told_by_host_and_port_without_credentials(url: str | None, endpoint: str) -> None:
    assert endpoint_of(url) == endpoint


# -- several lines of which one lacks something ----------------------------------------------------------------------


def two_lines(desk: Desk) -> Any:
    return job(
        sync={
            "before": [desk.block("one", "one", down=True), desk.block("two", "two", down=True)],
            "during": [desk.block("one", "one"), desk.block("two", "two")],
        }
    )


async def commits_of_two(desk: Desk, count: int) -> list[str]:
    ids = []
    async with desk.attempt(two_lines(desk)) as sync:
        for number in range(count):
            for line in ("one", "two"):
                desk.write("a", b"%d" % number, at=desk.work / line)
            ids.append((await sync.commit("exit", plain=False)).id)
    return ids


@pytest.mark.parametrize("ledger", ["whole", "knows one", "lost"])
@pytest.mark.parametrize("gone", ["one", "two"])
async def test_lines_that_were_committed_together_come_back_together(
    desk: Desk, gone: str, ledger: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = await commits_of_two(desk, 3)
    await remove(desk, layout.manifest_key(f"{gone}/", ids[2]))
    if ledger == "knows one":
        del desk.ledger.lines[desk.address(f"{gone}/")]
    elif ledger == "lost":
        desk.ledger.lines.clear()
    async with desk.attempt(two_lines(desk)) as sync:
        assert tree(desk.work / "one") == tree(desk.work / "two") == {"a": b"1"}
        assert desk.report.commits == (ids[1], ids[1])
        for line in ("one", "two"):
            desk.write("a", b"new", at=desk.work / line)
        assert (await sync.commit("exit", plain=False)).generation == 4
    (record,) = said(caplog, "head_missing")
    assert record.taken == ids[1]


async def test_content_that_one_line_lacks_counts_for_all_of_them(desk: Desk) -> None:
    ids = await commits_of_two(desk, 2)
    newest = (await desk.manifest("two/")).segments() - (await desk.manifest("one/")).segments()
    await remove(desk, *newest)
    desk.ledger.lines.clear()
    async with desk.attempt(two_lines(desk)):
        assert desk.report.commits == (ids[0], ids[0])


async def test_lines_whose_heads_were_made_apart_stay_apart(desk: Desk) -> None:
    ids = await commits_of_two(desk, 2)
    desk.ledger.live.clear()
    alone = await one_commit(desk, {"a": b"alone"}, desk.checkpoint(prefix="two"), job_id="other")
    desk.ledger.live.clear()
    await remove(desk, layout.manifest_key("one/", ids[1]))
    async with desk.attempt(two_lines(desk)):
        assert desk.report.commits == (ids[0], alone)


async def test_a_line_keeps_its_head_where_the_other_has_nothing_left(desk: Desk) -> None:
    ids = await commits_of_two(desk, 2)
    await remove(desk, *await desk.manifests("one"))
    async with desk.attempt(two_lines(desk)):
        assert desk.report.commits == (ids[1],)
        assert tree(desk.work / "two") == {"a": b"1"}


async def test_a_manifest_that_is_there_and_refused_stops_the_start(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not gone: an attempt that went on without would begin anew, and in the end replace what is there."""
    id_ = await one_commit(desk, {"a": b"a month of work"})
    store = desk.shelf.store

    async def refuse(bucket: str, key: str, *_: Any, **__: Any) -> None:
        raise StorageSetupError("403 InvalidObjectState", bucket=bucket, key=key)

    monkeypatch.setattr(store, "fetch", refuse)
    async with desk.open() as sync:
        with pytest.raises(StorageSetupError, match="403") as caught:
            await sync.restore()
    assert caught.value.key == layout.manifest_key("ck/", id_)
