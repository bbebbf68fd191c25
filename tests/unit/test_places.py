"""Slots and directories: what two attempts must not share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kelpie_worker.places import Places


async def test_a_slot_is_held_by_one_attempt() -> None:
    places = Places(["0"])
    async with places.slot() as first:
        second = asyncio.create_task(places.slots.acquire())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.1)
        first.leave()
        assert await asyncio.wait_for(second, 5) == 0


async def test_leaving_twice_does_not_free_the_slot_of_another() -> None:
    places = Places(["0"])
    async with places.slot() as first:
        first.leave()
        async with places.slot():
            first.leave()
            assert places.slots._take() is None


@pytest.mark.parametrize(
    ("mine", "other", "clash"),
    [("/a", "/a", True), ("/a", "/a/b", True), ("/a/b", "/a", True), ("/a", "/ab", False), ("/a/b", "/a/c", False)],
)
async def test_directories_clash_when_one_lies_within_the_other(mine: str, other: str, clash: bool) -> None:
    places = Places(["0", "1"])
    async with places.slot() as place:
        await place.take([Path(mine)])
        assert places.directories._try(object(), [Path(other)]) is not clash


async def test_a_directory_is_free_again_after_its_holder() -> None:
    places = Places([None, None])
    async with places.slot() as first:
        await first.take([Path("/a")])
        waiting = asyncio.create_task(places.directories.acquire("other", [Path("/a")]))
        await asyncio.sleep(0)
        first.leave()
        await asyncio.wait_for(waiting, 5)
    assert places.slots.gpus(0) is None


async def test_a_long_wait_for_directories_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_worker.places.TELL_S", 0.0)
    monkeypatch.setattr("kelpie_worker.places._POLL_S", 0.0)
    directories = Places([None, None]).directories
    await directories.acquire("first", [Path("/a")])
    waits: list[bool] = []
    waiting = asyncio.create_task(directories.acquire("second", [Path("/a/b")], waits.append))
    for _ in range(10):
        await asyncio.sleep(0)
    directories.release("first")
    await asyncio.wait_for(waiting, 5)
    told = [record for record in caplog.records if getattr(record, "action", "") == "directories_wait"]
    assert [record.__dict__["paths"] for record in told] == [["/a/b"]]
    assert waits == [True, False], "who looks at the job's record sees it too, and no longer than it is so"


async def test_each_slot_has_directories_of_its_own() -> None:
    places = Places([None, None])
    async with places.slot() as first, places.slot() as second:
        assert first.directory(Path("/input")) == Path("/input")
        assert second.directory(Path("/input")) == Path("/input-1")
