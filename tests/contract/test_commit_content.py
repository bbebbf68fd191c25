"""What a commit sends: what is new and hardly anything else; how that is laid out, and how little of it is garbage."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from kelpie_celery.checkpoints.manifest import DEEPEST_CHAIN, Manifest, Stored, decode
from kelpie_worker.sync import CommitReport, SyncSession
from kelpie_worker.sync.errors import DiskFull, LocalFileError
from kelpie_worker.sync.stable_read import open_for_reading
from tests.contract.desk import MIB, Desk, parts
from tests.contract.fakes_s3 import MemoryStore

SLACK = 4000  # bytes of a manifest


async def commit(sync: SyncSession, why: str = "test") -> CommitReport:
    """Without plain keys, which are not what is looked at here."""
    return await sync.commit(why, plain=False)


# -- what is new -----------------------------------------------------------------------------------------------------


async def test_an_append_sends_only_the_new_bytes(desk: Desk) -> None:
    data = os.urandom(9 * MIB)
    async with desk.attempt() as sync:
        path = desk.write("trajectory", data)
        await commit(sync)
        for _ in range(2):
            more = os.urandom(50_000)
            with path.open("ab") as file:
                file.write(more)
            data += more
            report = await commit(sync)
            assert 50_000 <= report.sent_bytes <= 50_000 + SLACK
    assert await desk.committed() == {"trajectory": data}


async def test_an_append_over_the_end_of_a_window_is_whole(desk: Desk) -> None:
    data = os.urandom(8 * MIB - 10)
    async with desk.attempt() as sync:
        path = desk.write("trajectory", data)
        await commit(sync)
        with path.open("ab") as file:
            file.write(b"y" * 100)
        assert (await commit(sync)).sent_bytes <= 100 + SLACK
    assert await desk.committed() == {"trajectory": data + b"y" * 100}


async def test_many_appends_within_a_window_are_made_one_again(of_memory: Desk) -> None:
    desk = of_memory
    data = b"x" * MIB
    async with desk.attempt() as sync:
        path = desk.write("log", data)
        await commit(sync)
        for number in range(40):
            line = b"%05d\n" % number
            with path.open("ab") as file:
                file.write(line)
            data += line
            await commit(sync)
        assert len((await desk.manifest()).files["log"].extents) <= 33
    assert await desk.committed() == {"log": data}


async def test_a_byte_changed_in_a_large_file_sends_one_window(desk: Desk) -> None:
    data = bytearray(os.urandom(40 * MIB))
    async with desk.attempt() as sync:
        path = desk.write("model", data)
        await commit(sync)
        with path.open("r+b") as file:
            file.seek(20 * MIB)
            file.write(b"!")
        data[20 * MIB] = ord("!")
        report = await commit(sync)
        assert 8 * MIB <= report.sent_bytes <= 8 * MIB + SLACK
    assert (await desk.committed())["model"] == bytes(data)


async def test_a_file_that_was_cut_sends_at_most_its_last_window(desk: Desk) -> None:
    data = os.urandom(20 * MIB)
    async with desk.attempt() as sync:
        path = desk.write("model", data)
        await commit(sync)
        os.truncate(path, 18 * MIB)
        assert (await commit(sync)).sent_bytes <= 2 * MIB + SLACK
    assert await desk.committed() == {"model": data[: 18 * MIB]}


async def test_a_renamed_file_sends_nothing(desk: Desk) -> None:
    files = {"large": os.urandom(3 * MIB), "small": os.urandom(100_000)}
    async with desk.attempt() as sync:
        for name, data in files.items():
            desk.write(name, data)
        await commit(sync)
        for name in files:
            (desk.ck / name).rename(desk.ck / f"{name}-2")
        assert (await commit(sync)).sent_bytes <= SLACK
    async with desk.attempt() as sync:  # nor does one that was restored
        for name in files:
            (desk.ck / f"{name}-2").rename(desk.ck / name)
        assert (await commit(sync)).sent_bytes <= SLACK
    assert await desk.committed() == files


async def test_a_file_that_is_written_anew_with_the_same_content_sends_nothing(desk: Desk) -> None:
    data = os.urandom(3 * MIB)
    async with desk.attempt() as sync:
        desk.write("a", data)
        await commit(sync)
        (desk.ck / "new").write_bytes(data)
        (desk.ck / "new").rename(desk.ck / "a")
        report = await commit(sync)
        assert (report.id, report.sent_bytes) == ("", 0)


async def test_what_compresses_is_sent_compressed_where_no_plain_key_is_put_together_from_it(desk: Desk) -> None:
    data = b"text" * MIB
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        desk.write("large", data)
        desk.write("small", data[:1000])
        assert (await commit(sync)).sent_bytes < MIB
    assert await desk.committed() == {"large": data, "small": data[:1000]}
    async with desk.attempt(desk.checkpoint(plain="never"), number=2) as sync:
        assert (await commit(sync)).id == ""


# -- small files -----------------------------------------------------------------------------------------------------


async def test_small_files_share_segments(desk: Desk) -> None:
    files = {f"{number}": os.urandom(1000) for number in range(50)}
    async with desk.attempt() as sync:
        for name, data in files.items():
            desk.write(name, data)
        await commit(sync)
        assert len(await desk.segments()) == 1
        desk.write("7", b"changed")
        assert (await commit(sync)).sent_bytes <= SLACK
    assert await desk.committed() == files | {"7": b"changed"}


async def test_the_first_segment_of_many_small_files_is_short_so_that_sending_begins_soon(
    memory: MemoryStore, of_memory: Desk
) -> None:
    data = os.urandom(MIB // 2)
    async with of_memory.attempt(of_memory.checkpoint(plain="never")) as sync:
        for number in range(90):
            of_memory.write(f"{number}", bytes([number]) + data)
        await commit(sync)
    sizes = [len(memory.content("bucket", key)) for key in sorted(await of_memory.segments())]
    assert 8 * MIB <= sizes[0] < 17 * MIB
    assert [size > 17 * MIB for size in sizes[1:]] == [True] * (len(sizes) - 2) + [sizes[-1] > 17 * MIB]
    assert len(sizes) == 3


async def test_ten_thousand_changed_files_take_few_requests(memory: MemoryStore, of_memory: Desk) -> None:
    desk, content = of_memory, os.urandom(4096)
    names = [os.fspath(desk.ck / f"{number % 100}" / f"{number}") for number in range(10_000)]

    def write_all(step: bytes) -> None:
        for name in names:
            # In place: to cut files and to fill them anew costs some file systems ten times as long.
            fd = os.open(name, os.O_WRONLY | os.O_CREAT)
            os.write(fd, step + name.encode() + content)
            os.close(fd)

    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        for number in range(100):
            (desk.ck / f"{number}").mkdir()
        write_all(b"1")
        await commit(sync)
        write_all(b"2")
        memory.calls = Counter()
        report = await commit(sync)
        assert (report.files, report.generation) == (10_000, 2)
        assert memory.calls.total() <= 20


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1])
async def test_a_file_on_the_border_between_small_and_large_is_the_same(of_memory: Desk, size: int) -> None:
    data = os.urandom(size)
    async with of_memory.attempt() as sync:
        of_memory.write("a", data)
        await commit(sync)
        with (of_memory.ck / "a").open("ab") as file:
            file.write(b"12")
        await commit(sync)
    assert await of_memory.committed() == {"a": data + b"12"}


async def test_a_pack_that_an_error_left_half_filled_is_sent_before_a_commit_refers_to_it(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that were read into it before count as read: what they are must get to the storage."""
    desk, opened, broken = of_memory, 0, True

    def refuse(path: Path) -> int:
        nonlocal opened
        opened += 1
        if broken and opened == 300:
            raise LocalFileError(f"cannot read {path}")
        return open_for_reading(path)

    monkeypatch.setattr("kelpie_worker.sync.capturing.open_for_reading", refuse)
    files = {f"{number}": b"%d" % number for number in range(400)}
    async with desk.attempt() as sync:
        for name, data in files.items():
            desk.write(name, data)
        tried = parts(sync)._committer.try_once
        with pytest.raises(LocalFileError):
            await tried("quiet", 5.0)
        broken = False
        assert (await tried("quiet", 5.0)).report is not None
        assert await desk.committed() == files


# -- manifests -------------------------------------------------------------------------------------------------------


async def stored_manifest(desk: Desk, key: str) -> tuple[int, Stored]:
    data = await desk.shelf.content(key)
    return len(data), decode(key, data)


async def test_where_little_changes_the_manifest_says_only_that(desk: Desk) -> None:
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        for number in range(400):
            desk.write(f"{number}", os.urandom(20))
        await commit(sync)
        desk.write("1", b"changed")
        (desk.ck / "2").unlink()
        await commit(sync)
        first, second = desk.kept()
    (whole_bytes, whole), (delta_bytes, delta) = [await stored_manifest(desk, c.manifest) for c in (first, second)]
    assert (whole.parent, delta.parent) == (None, first.manifest)
    assert delta_bytes < whole_bytes / 10
    async with desk.attempt() as sync:
        assert len(list(desk.ck.iterdir())) == 399
        assert (desk.ck / "1").read_bytes() == b"changed"
        desk.write("3", b"of the next attempt")  # which goes on upon the same chain
        await commit(sync)
    assert (await desk.manifest()).chain == (first.manifest, second.manifest)
    assert (await desk.committed())["3"] == b"of the next attempt"


async def test_a_chain_of_manifests_has_a_longest_length(of_memory: Desk) -> None:
    desk = of_memory
    chains: list[int] = []
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        for number in range(300):
            desk.write(f"{number}", b"%d" % number)
        for step in range(DEEPEST_CHAIN + 3):
            desk.write("changing", b"%d" % step)
            await commit(sync)
            chains.append(len((await desk.manifest()).chain) + 1)
    assert chains == [*range(1, DEEPEST_CHAIN + 1), 1, 2, 3]
    assert (await desk.committed())["changing"] == b"%d" % (DEEPEST_CHAIN + 2)


async def test_small_checkpoints_are_told_whole_each_time(desk: Desk) -> None:
    async with desk.attempt() as sync:
        for number in range(3):
            desk.write(f"{number}", b"1")
            await commit(sync)
    assert (await desk.manifest()).chain == ()


# -- garbage ---------------------------------------------------------------------------------------------------------


def live_share(manifest: Manifest) -> dict[str, float]:
    used: Counter[str] = Counter()
    for extent in {extent for entry in manifest.files.values() for extent in entry.extents}:
        used[extent.segment] += extent.stored
    return {key: used[key] / size for key, size in manifest.segment_bytes.items()}


async def test_a_segment_that_is_mostly_garbage_is_left_with_the_next_change(desk: Desk) -> None:
    files = {f"{number}": os.urandom(100_000) for number in range(10)}
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        for name, data in files.items():
            desk.write(name, data)
        await commit(sync)
        (first,) = await desk.segments()
        for name in list(files)[:6]:
            files[name] = os.urandom(100_000)
            desk.write(name, files[name])
        await commit(sync)
        assert live_share(await desk.manifest())[first] == pytest.approx(0.4)
        desk.write("0", b"changed")
        report = await commit(sync)
        assert 400_000 <= report.sent_bytes <= 400_000 + SLACK
        assert first not in (await desk.manifest()).segments()
        assert await desk.committed() == files | {"0": b"changed"}


async def test_garbage_alone_is_no_reason_to_send_anything(desk: Desk) -> None:
    async with desk.attempt() as sync:
        for number in range(10):
            desk.write(f"{number}", os.urandom(100_000))
        await commit(sync)
        for number in range(6):
            (desk.ck / f"{number}").unlink()
        await commit(sync)
        sent = sync.bytes_sent
        assert (await commit(sync, "exit")).id == ""
        assert sync.bytes_sent == sent


async def test_windows_of_large_files_leave_garbage_as_well(desk: Desk) -> None:
    data = bytearray(os.urandom(32 * MIB))
    async with desk.attempt() as sync:
        path = desk.write("model", data)
        await commit(sync)
        (first,) = await desk.segments()
        for windows in ((0, 1, 2), (0,)):
            with path.open("r+b") as file:
                for window in windows:
                    data[window * 8 * MIB] ^= 1
                    file.seek(window * 8 * MIB)
                    file.write(data[window * 8 * MIB : window * 8 * MIB + 1])
            report = await commit(sync)
        assert report.sent_bytes == pytest.approx(16 * MIB, abs=SLACK)
        assert first not in (await desk.manifest()).segments()
    assert (await desk.committed())["model"] == bytes(data)


# -- room ------------------------------------------------------------------------------------------------------------


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_worker.sync.segments.space_for_copies", lambda _: 0)


async def test_without_room_on_the_disk_content_goes_through_memory(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"large": os.urandom(70 * MIB), "other": os.urandom(5 * MIB), "small": b"1"}
    no_room(monkeypatch)
    in_memory: list[int] = []
    async with desk.attempt() as sync:
        spool = parts(sync)._spool
        real = spool.new

        async def new(bucket: str, folder: str) -> object:
            segment = await real(bucket, folder)
            in_memory.append(sum(one.in_memory for one in (*spool._open, *spool._sending)))
            return segment

        monkeypatch.setattr(spool, "new", new)
        for name, data in files.items():
            desk.write(name, data)
        await commit(sync)
        assert list(desk.scratch.glob("*/segment-*")) == []
    assert max(in_memory) == 2
    assert len(in_memory) >= 5
    assert await desk.committed() == files


async def test_a_disk_that_fills_up_under_way_delays_the_commit_and_tears_nothing(
    of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, full = of_memory, True
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        if full and at + len(data) > 3000:
            raise OSError(28, "No space left on device")
        return real(fd, data, at)

    monkeypatch.setattr("kelpie_worker.sync.segments.os.pwrite", pwrite)
    files = {f"{number}": os.urandom(10) for number in range(600)}
    async with desk.attempt() as sync:
        for name, data in files.items():
            desk.write(name, data)
        tried = parts(sync)._committer.try_once
        with pytest.raises(DiskFull):
            await tried("quiet", 5.0)
        full = False
        assert (await tried("quiet", 5.0)).report is not None
        assert await desk.committed() == files
