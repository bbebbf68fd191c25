"""What a restore from a commit brings back, exactly; and what it refuses: damage, and manifests that lead astray."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kelpie_celery.checkpoints import content
from kelpie_celery.checkpoints.manifest import BadManifest, decode
from kelpie_celery.errors import StorageSetupError, StorageUnavailable, UnsafeKey
from kelpie_worker.sync.bodies import BytesBody
from kelpie_worker.sync.errors import DiskFull
from kelpie_worker.sync.fetching import make_links
from kelpie_worker.sync.object_store import Sink
from tests.contract.desk import MIB, Desk, said, tree
from tests.contract.fakes_s3 import HandFence, MemoryStore

# -- odd trees -------------------------------------------------------------------------------------------------------


def picture(directory: Path) -> dict[bytes, Any]:
    """All that a checkpoint keeps of a directory: by name, which need not be text."""
    found: dict[bytes, Any] = {}
    top = os.fsencode(directory)
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(folder, name)  # noqa: PTH118 -- bytes
            status, relative = os.lstat(path), os.path.relpath(path, top)
            if stat.S_ISLNK(status.st_mode):
                found[relative] = ("link", os.readlink(path))  # noqa: PTH115
            elif stat.S_ISDIR(status.st_mode):
                found[relative] = ("folder",)
            else:
                with open(path, "rb") as file:  # noqa: PTH123
                    found[relative] = ("file", file.read(), status.st_mode & 0o777, status.st_mtime_ns)
    return found


async def test_an_odd_tree_comes_back_exactly_as_it_was(desk: Desk) -> None:
    odd = os.fsdecode(b"not \xff\xfe UTF-8")
    async with desk.attempt(desk.checkpoint(plain="never")) as sync:
        for name in ("a", "with space", "ünï/cödé ✓", "new\nline", "a\\b", "deep/er/est", f"{odd}/file", odd + "-2"):
            desk.write(name, name.encode(errors="replace"))
        desk.write("empty", b"")
        desk.write("run.sh", b"#!/bin/sh").chmod(0o755)
        desk.write("secret", b"1").chmod(0o600)
        desk.write("read-only", b"1").chmod(0o444)
        desk.write("old", b"1", mtime=86400.5)
        os.utime(desk.ck / "a", ns=(0, 1_234_567_890_123_456_789))
        desk.write("large", os.urandom(9 * MIB))
        (desk.ck / "no" / "files" / "here").mkdir(parents=True)
        (desk.ck / odd / "empty").mkdir()
        os.link(desk.ck / "a", desk.ck / "deep" / "same")
        for name, target in (("link", "a"), ("deep/link", "../a"), ("to-folder", "deep"), ("dangling", "nowhere"),
                             (f"{odd}/link", "file")):  # fmt: skip
            (desk.ck / name).symlink_to(target)
        await sync.commit("exit")
        before = picture(desk.ck)
    assert picture(desk.ck) == {}
    async with desk.attempt() as sync:
        assert picture(desk.ck) == before
        assert (await sync.commit("exit")).id == ""


async def test_links_that_lead_out_are_not_stored(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret")
    async with desk.attempt() as sync:
        desk.write("deep/a", b"1")
        for name, target in (("absolute", tmp_path / "outside"), ("up", "../outside"), ("deep/up", "../../outside"),
                             ("self", desk.ck), ("inside", "deep/a")):  # fmt: skip
            (desk.ck / name).symlink_to(target)
        await sync.commit("exit")
    manifest = await desk.manifest()
    assert (list(manifest.files), manifest.links) == (["deep/a"], {"inside": "deep/a"})


async def test_what_became_a_link_or_a_folder_is_restored_as_that(desk: Desk) -> None:
    async with desk.attempt() as sync:
        for name in ("a", "b", "c/d"):
            desk.write(name)
        await sync.commit("one", plain=False)
        (desk.ck / "a").unlink()
        (desk.ck / "a").symlink_to("c")
        (desk.ck / "b").unlink()
        desk.write("b/file", b"1")
        (desk.ck / "c" / "d").unlink()
        (desk.ck / "c").rmdir()
        desk.write("c", b"1")
        await sync.commit("two", plain=False)
        before = picture(desk.ck)
    async with desk.attempt():
        assert picture(desk.ck) == before


async def test_links_and_folders_that_went_away_do_not_come_back(desk: Desk) -> None:
    async with desk.attempt() as sync:
        (desk.ck / "link").symlink_to("a")
        (desk.ck / "folder").mkdir()
        desk.write("a")
        await sync.commit("one", plain=False)
    async with desk.attempt() as sync:
        (desk.ck / "link").unlink()
        (desk.ck / "folder").rmdir()
        assert (await sync.commit("two", plain=False)).id
    async with desk.attempt():
        assert [path.name for path in desk.ck.iterdir()] == ["a"]


async def test_a_restore_brings_the_files_of_the_commit_and_no_others(desk: Desk) -> None:
    async with desk.attempt() as sync:
        desk.write("a", b"1")
        await sync.commit("exit")
    await desk.shelf.seed("ck/by-hand", b"beside the commit")
    desk.write("leftover", b"of an earlier job")
    async with desk.attempt():
        assert tree(desk.ck) == {"a": b"1"}


# -- damage ----------------------------------------------------------------------------------------------------------


async def one_file(desk: Desk, data: bytes = b"content") -> str:
    """A commit of one file; the key of its segment."""
    async with desk.attempt() as sync:
        desk.write("a", data)
        await sync.commit("exit", plain=False)
    (key,) = await desk.segments()
    return key


async def refused(desk: Desk, kind: type[StorageSetupError] = StorageSetupError) -> StorageSetupError:
    """The error of the next attempt's restore."""
    async with desk.open() as sync:
        with pytest.raises(kind) as caught:
            await sync.restore()
        assert tree(desk.ck).keys() <= {f".kelpie-tmp-{number}" for number in range(10)}
        sync.clean()
    return caught.value


@pytest.mark.parametrize("damage", [b"Content", b"con\0\0\0\0", b"and content"])
async def test_a_damaged_segment_stops_the_start_and_is_named(desk: Desk, damage: bytes) -> None:
    key = await one_file(desk)
    await desk.shelf.store.put(desk.bucket, key, BytesBody(damage), HandFence())
    error = await refused(desk)
    assert (error.bucket, error.key) == (desk.bucket, key)
    assert "rollback" in str(error)


async def test_a_missing_segment_stops_the_start_and_is_named(desk: Desk) -> None:
    key = await one_file(desk)
    await desk.shelf.store.delete(desk.bucket, key, HandFence())
    error = await refused(desk)
    assert (error.bucket, error.key) == (desk.bucket, key)


async def test_content_that_arrives_damaged_is_fetched_again(
    memory: MemoryStore, of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, fetched = await one_file(of_memory), 0

    async def fetch(bucket: str, name: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        nonlocal fetched
        fetched += name == key
        if name == key and fetched == 1:
            sink(memoryview(b"dontent"))
            return
        await MemoryStore.fetch(
            memory, bucket, name, sink, etag=etag, start_byte=start_byte, length_bytes=length_bytes
        )  # fmt: skip

    monkeypatch.setattr(memory, "fetch", fetch)
    async with of_memory.attempt():
        assert tree(of_memory.ck) == {"a": b"content"}
    assert fetched == 2


async def test_a_storage_that_breaks_off_is_asked_again(
    memory: MemoryStore, of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.sync.retry.FIRST_PAUSE_S", 0.01)
    data = os.urandom(3 * MIB)
    key, fetched = await one_file(of_memory, data), 0

    async def fetch(bucket: str, name: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        nonlocal fetched
        fetched += name == key
        if name == key and fetched < 3:
            sink(memoryview(data)[:MIB])
            raise StorageUnavailable("cut", bucket=bucket, key=name)
        await MemoryStore.fetch(
            memory, bucket, name, sink, etag=etag, start_byte=start_byte, length_bytes=length_bytes
        )  # fmt: skip

    monkeypatch.setattr(memory, "fetch", fetch)
    async with of_memory.attempt():
        assert tree(of_memory.ck) == {"a": data}


async def test_more_than_the_disk_can_hold_is_refused_before_it_is_fetched(
    memory: MemoryStore, of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_file(of_memory, b"x" * 1000)
    usage = shutil.disk_usage("/")
    async with of_memory.open() as sync:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=999))
        with pytest.raises(DiskFull, match="1000 bytes"):
            await sync.restore()


async def test_a_cancelled_restore_leaves_nothing_behind_once_it_is_cleaned(
    memory: MemoryStore, of_memory: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, started = await one_file(of_memory), asyncio.Event()

    async def fetch(bucket: str, name: str, sink: Sink, **more: Any) -> None:
        if name == key:
            started.set()
            await asyncio.Event().wait()
        await MemoryStore.fetch(memory, bucket, name, sink, **more)

    monkeypatch.setattr(memory, "fetch", fetch)
    async with of_memory.open() as sync:
        task = asyncio.ensure_future(sync.restore())
        await asyncio.wait_for(started.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sync.clean()
    assert list(of_memory.ck.iterdir()) == []


# -- manifests that lead astray --------------------------------------------------------------------------------------


@pytest.fixture
def liar(of_memory: Desk) -> Desk:
    """A machine whose storage holds what is planted there; which storage it is does not matter here."""
    return of_memory


@pytest.mark.parametrize(
    "path", ["../escaped", "a/../../escaped", "/etc/escaped", "./a", "a//b", "..", "", "a\0b", "..\\escaped", "x" * 300]
)
async def test_a_file_that_has_no_place_in_the_directory_stops_the_start(liar: Desk, path: str) -> None:
    await liar.plant(files={path: await liar.planted()})
    error = await refused(liar)
    assert error.bucket == liar.bucket
    assert not (liar.work / "escaped").exists()


@pytest.mark.parametrize("folder", ["../escaped", "/escaped", "a/../../escaped"])
async def test_a_folder_that_has_no_place_in_the_directory_stops_the_start(liar: Desk, folder: str) -> None:
    await liar.plant(files={}, folders=(folder,))
    await refused(liar, UnsafeKey)
    assert not (liar.work / "escaped").exists()


@pytest.mark.parametrize("path", ["../escaped", "/escaped"])
async def test_a_link_that_has_no_place_in_the_directory_stops_the_start(liar: Desk, path: str) -> None:
    await liar.plant(files={}, links={path: "a"})
    await refused(liar, UnsafeKey)
    assert not (liar.work / "escaped").is_symlink()


@pytest.mark.parametrize("target", ["/etc/passwd", "../escaped", "deep/../../escaped", ".."])
async def test_a_link_that_leads_out_is_left_out_and_told(
    liar: Desk, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    await liar.plant(files={"a": await liar.planted()}, links={"link": target, "good": "a"})
    async with liar.attempt():
        assert sorted(path.name for path in liar.ck.iterdir()) == ["a", "good"]
    assert [record.path for record in said(caplog, "link_refused")] == [str(liar.ck / "link")]


async def test_links_that_lead_out_by_way_of_one_another_are_left_out_and_told(
    liar: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """By its text ``out`` leads to ``deep``; but ``deep/up`` is the directory itself, and ``..`` of that outside."""
    links = {"deep/up": "..", "out": "deep/up/..", "far": "deep/up/../.."}
    await liar.plant(files={"deep/a": await liar.planted()}, links=links)
    async with liar.attempt():
        left = {path.name for path in liar.ck.iterdir()}
        assert left == {"deep"}
        for path in liar.ck.rglob("*"):
            assert path.resolve().is_relative_to(liar.ck)
    assert {record.path for record in said(caplog, "link_refused")} == {str(liar.ck / "out"), str(liar.ck / "far")}


async def test_nothing_is_made_or_deleted_through_a_link(liar: Desk) -> None:
    precious = liar.work / "precious"
    precious.write_text("mine")
    links = {"deep/up": "..", "out": "deep/up/..", "out/precious": "a", "out/planted": "a"}
    await liar.plant(files={"deep/a": await liar.planted()}, links=links)
    async with liar.open() as sync:
        with pytest.raises(StorageSetupError):
            await sync.restore()
        sync.clean()
    assert precious.read_text() == "mine"
    assert not precious.is_symlink()
    assert not (liar.work / "planted").is_symlink()


async def test_a_path_that_is_a_file_and_a_folder_stops_the_start(liar: Desk) -> None:
    entry = await liar.planted()
    await liar.plant(files={"a": entry, "a/b": entry})
    error = await refused(liar)
    (commit,) = liar.kept()
    assert error.bucket == liar.bucket
    assert all(word in str(error) for word in (liar.bucket, commit.id, "'a'", "kelpie checkpoints rollback"))


async def test_content_that_unpacks_to_more_than_is_said_stops_the_start(liar: Desk) -> None:
    """Its own header asks for a terabyte."""
    bomb = zstandard.ZstdCompressor().compress(b"0" * 1000)
    assert bomb[4] & 0xC0 == 0x40  # two bytes of length follow
    huge = bomb[:4] + bytes([bomb[4] | 0xC0]) + (1 << 40).to_bytes(8, "little") + bomb[7:]
    assert zstandard.frame_content_size(huge) == 1 << 40
    entry = await liar.planted(huge, length=1000, codec=content.ZSTD, digest=content.digest(b"0" * 1000))
    await liar.plant(files={"a": entry})
    assert "another length" in str(await refused(liar))


async def test_a_manifest_of_a_newer_version_says_what_to_do(liar: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_celery.checkpoints.manifest.VERSION", 2)
    await liar.plant(files={"a": await liar.planted()})
    monkeypatch.setattr("kelpie_celery.checkpoints.manifest.VERSION", 1)
    assert "update kelpie-celery" in str(await refused(liar))


async def test_extents_that_do_not_add_up_stop_the_start(liar: Desk) -> None:
    entry = await liar.planted()
    await liar.plant(files={"a": entry._replace(size=1 << 50)})
    assert "add up" in str(await refused(liar))


@pytest.mark.parametrize("key", ["other.kelpie/data/secret", "secret", "ck.kelpie/database"])
async def test_content_of_others_is_not_followed_to(liar: Desk, key: str) -> None:
    await liar.plant(files={"a": await liar.planted(key=key)})
    error = await refused(liar)
    (commit,) = liar.kept()
    assert error.key == commit.manifest
    assert all(word in str(error) for word in ("'a'", "not where a checkpoint has it", "kelpie checkpoints rollback"))


async def test_content_of_others_is_no_commit_where_the_ledger_was_lost(liar: Desk) -> None:
    await liar.plant(files={"a": await liar.planted(key="other.kelpie/data/secret")})
    liar.ledger.lines.clear()
    async with liar.attempt():
        assert tree(liar.ck) == {}


@pytest.mark.parametrize("changes", [{"mtime_ns": 2**63}, {"mtime_ns": -(2**80)}, {"mode": -1}])
async def test_times_and_modes_that_no_file_has_stop_the_start(liar: Desk, changes: dict[str, Any]) -> None:
    entry = await liar.planted()
    await liar.plant(files={"a": entry._replace(**changes)})
    assert "no file can have" in str(await refused(liar))


@pytest.mark.parametrize("document", [b'{"version": 1, "generation": Infinity, "id": "x"}', b"[" * 100_000])
def test_numbers_and_depths_that_nothing_can_hold_are_no_manifest(document: bytes) -> None:
    with pytest.raises(BadManifest, match="cannot be read"):
        decode("key", zstandard.ZstdCompressor().compress(document))


@pytest.mark.parametrize("links", [
    {"x/y": "..", "x/y/l": "..", "l/train.py": "l2/payload"},
    {"x/y": "..", "x/y/train.py": "payload"},
])  # fmt: skip
def test_links_below_links_are_refused_before_any_is_made(tmp_path: Path, links: dict[str, str]) -> None:
    """By the third of them a file beside the directory would be replaced."""
    root = tmp_path / "app" / "state"
    (root / "x").mkdir(parents=True)
    (tmp_path / "app" / "train.py").write_text("good")
    with pytest.raises(UnsafeKey, match="rollback"):
        make_links(root, "b", "p/", links)
    assert not (tmp_path / "app" / "train.py").is_symlink()
    assert list((root / "x").iterdir()) == []


def test_a_link_does_not_take_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UnsafeKey, match="folder"):
        make_links(tmp_path, "b", "p/", {"a": "c"})
    assert (tmp_path / "a").is_dir()


async def test_a_mode_of_a_manifest_sets_no_more_than_permissions(liar: Desk) -> None:
    entry = await liar.planted()
    await liar.plant(files={"a": entry._replace(mode=0o6755)})
    async with liar.attempt():
        assert stat.S_IMODE((liar.ck / "a").stat().st_mode) == 0o755
