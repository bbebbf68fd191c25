"""The machine's cache of inputs: what is shared with a job and what never, what gives way, and what a crash leaves."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kelpie_worker.sync import cache_folder, cloning
from kelpie_worker.sync.cache import CacheAddress, InputCache
from kelpie_worker.sync.cache_folder import OVERHEAD_BYTES

LARGE = 1 << 30
DATA = b"input" * 1000


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' disk has room, whatever the machine's has; some take that away."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=LARGE * 100, free=LARGE * 90))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def cache(home: Path) -> InputCache:
    return InputCache(home, LARGE)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def address(key: str = "in/a", **more: Any) -> CacheAddress:
    return replace(CacheAddress("http://s3", "bucket", key, "etag", len(DATA)), **more)


def seed(cache: InputCache, job: Path, key: str = "in/a", data: bytes = DATA, *, read_only: bool = False) -> Path:
    """A file that was brought down, and is in the cache."""
    file = job / f"seed-{key.replace('/', '-')}"
    file.write_bytes(data)
    os.utime(file, (1e9, 1e9))  # as if it had been written long ago: clocks of file systems can be coarse
    assert cache.add(address(key), file, read_only=read_only)
    return file


def entries(home: Path) -> list[Path]:
    return [path for path in (home / "objects").rglob("*") if path.is_file()]


def actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [getattr(record, "action", "") for record in caplog.records]


def no_clones(fd: int, request: int, source: int) -> int:
    raise OSError(errno.EOPNOTSUPP, "no reflinks here")


@pytest.fixture(params=["copy", "reflink"])
def sharing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system without reflinks, and one with (which to the reader of a file is a very quick copy)."""

    def clones(fd: int, request: int, source: int) -> int:
        assert request == cloning.FICLONE
        os.write(fd, os.pread(source, LARGE, 0))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clones if request.param == "reflink" else no_clones)
    return str(request.param)


# -- hits and misses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_what_was_added_is_placed_for_the_next_who_wants_it(
    cache: InputCache, job: Path, sharing: str, read_only: bool
) -> None:
    seed(cache, job, read_only=read_only)

    assert cache.place(address(), job / "b", read_only=read_only)
    assert (job / "b").read_bytes() == DATA


@pytest.mark.parametrize(
    "other",
    [
        {"endpoint": ""},
        {"bucket": "other"},
        {"key": "in/b"},
        {"etag": "other"},
        {"size_bytes": 1},
        {"unpacked": True},
    ],
)
def test_anything_else_is_not_found_and_leaves_what_is_there(
    cache: InputCache, job: Path, other: dict[str, Any]
) -> None:
    seed(cache, job)
    (job / "b").write_text("mine")

    assert not cache.place(replace(address(), **other), job / "b")
    assert (job / "b").read_text() == "mine"


def test_parts_of_an_address_cannot_run_into_each_other() -> None:
    assert CacheAddress("e", "ab", "c", "", 1).digest != CacheAddress("e", "a", "bc", "", 1).digest


def test_a_file_and_an_empty_folder_in_its_place_are_replaced(cache: InputCache, job: Path) -> None:
    seed(cache, job)
    (job / "file").write_text("old")
    (job / "folder").mkdir()

    assert cache.place(address(), job / "file")
    assert cache.place(address(), job / "folder")
    assert (job / "file").read_bytes() == (job / "folder").read_bytes() == DATA
    assert len(list(job.iterdir())) == 3


def test_an_object_without_etag_is_not_kept(cache: InputCache, job: Path) -> None:
    (job / "a").write_bytes(DATA)

    assert not cache.add(address(etag=""), job / "a")


def test_another_process_finds_it_too(cache: InputCache, home: Path, job: Path) -> None:
    seed(cache, job)

    assert InputCache(home, LARGE).place(address(), job / "b")


# -- what is shared -------------------------------------------------------------------------------------------------


def test_a_job_that_writes_to_its_files_never_writes_to_the_cache(cache: InputCache, job: Path, sharing: str) -> None:
    added = seed(cache, job)
    assert cache.place(address(), job / "b")
    for file in (added, job / "b"):
        assert file.stat().st_nlink == 1
        with file.open("r+b") as opened:
            opened.write(b"POISON")

    assert cache.place(address(), job / "c")
    assert (job / "c").read_bytes() == DATA


def test_files_of_read_only_blocks_are_hard_links_that_say_so(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    added = seed(cache, job, read_only=True)
    assert cache.place(address(), job / "b", read_only=True)

    assert {file.stat().st_ino for file in (added, job / "b", *entries(home))} == {added.stat().st_ino}
    assert added.stat().st_mode & 0o777 == 0o444


def test_a_reflink_comes_before_a_hard_link(cache: InputCache, home: Path, job: Path, sharing: str) -> None:
    added = seed(cache, job, read_only=True)
    assert cache.place(address(), job / "b", read_only=True)

    links = 3 if sharing == "copy" else 1
    assert [file.stat().st_nlink for file in (added, job / "b", *entries(home))] == [links] * 3
    assert (job / "b").stat().st_mode & 0o777 == 0o444


def test_a_hard_linked_entry_is_copied_for_a_job_that_writes(
    cache: InputCache, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    added = seed(cache, job, read_only=True)

    assert cache.place(address(), job / "b")
    assert (job / "b").stat().st_ino != added.stat().st_ino
    assert (job / "b").stat().st_mode & 0o200
    with (job / "b").open("ab") as opened:
        opened.write(b"more")
    assert added.read_bytes() == DATA


def test_another_disk_gets_copies_also_where_the_kernel_cannot_copy(
    cache: InputCache, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*args: Any, **more: Any) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(cloning, "_PIECE_BYTES", 1000)
    for name in ("link", "copy_file_range"):
        monkeypatch.setattr(os, name, elsewhere)
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    added = seed(cache, job, read_only=True)

    assert cache.place(address(), job / "b", read_only=True)
    assert (job / "b").read_bytes() == DATA
    assert (job / "b").stat().st_nlink == added.stat().st_nlink == 1


def test_an_empty_file_is_cached_as_any_other(cache: InputCache, job: Path) -> None:
    seed(cache, job, data=b"")

    assert cache.place(address(), job / "b")
    assert (job / "b").read_bytes() == b""


# -- poison ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"POISON", b"", DATA[:-1] + b"X"])
def test_an_entry_that_a_job_wrote_to_is_dropped_and_not_found(
    cache: InputCache, home: Path, job: Path, content: bytes, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    added = seed(cache, job, read_only=True)
    added.chmod(0o644)
    added.write_bytes(content)

    assert not cache.place(address(), job / "b", read_only=True)
    assert not (job / "b").exists()
    assert entries(home) == []
    assert "cache_dropped" in actions(caplog)
    added.write_bytes(DATA)
    assert cache.add(address(), added, read_only=True)
    assert cache.place(address(), job / "b")


@pytest.mark.parametrize("first", ["added as a link", "added as a copy"])
def test_what_is_written_in_place_with_its_time_put_back_reaches_nobody(
    cache: InputCache, home: Path, job: Path, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``rsync --inplace --times`` and ``touch -r`` do."""
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    linked = seed(cache, job, read_only=first == "added as a link")
    for name in ("b", "c"):  # links change the time of the last change, too: that alone is no reason to drop it
        assert cache.place(address(), job / name, read_only=True)
        linked = job / name
    status = linked.stat()
    linked.chmod(0o644)
    with linked.open("r+b") as opened:
        opened.write(b"INPUT")
    os.utime(linked, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert not cache.place(address(), job / "d")
    assert entries(home) == []


def test_a_copy_for_which_there_is_no_room_is_not_begun(
    cache: InputCache, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    copied: list[Any] = []
    monkeypatch.setattr("kelpie_worker.sync.cache.copy", lambda *args: copied.append(args))
    linked = seed(cache, job, "linked", read_only=True)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(DATA) - 1))

    assert not cache.place(address("linked"), job / "b")
    assert copied == []
    assert cache.place(address("linked"), job / "b", read_only=True)
    assert (job / "b").samefile(linked)


def test_a_lock_that_nobody_gives_back_is_a_miss_after_a_while(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_folder, "LOCK_S", 0.1)
    (job / "a").write_bytes(DATA)
    with (home / "lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not cache.add(address(), job / "a", cancelled=lambda: True)
        assert actions(caplog) == []
        assert not cache.add(address(), job / "a")
    assert actions(caplog) == ["cache_failed"]
    assert cache.add(address(), job / "a")


def test_a_file_that_took_an_entrys_place_is_dropped(cache: InputCache, home: Path, job: Path) -> None:
    seed(cache, job)
    (entry,) = entries(home)
    status = entry.stat()
    other = entry.with_name("other")
    other.write_bytes(b"x" * len(DATA))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(entry)

    assert not cache.place(address(), job / "b")


def test_what_is_written_to_an_entry_while_it_is_copied_reaches_no_job(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    seed(cache, job)
    (entry,) = entries(home)

    def copying(source: int, target: int, count: int, at: int, to: int) -> int:
        entry.chmod(0o644)
        entry.write_bytes(b"POISON")
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "copy_file_range", copying)

    assert not cache.place(address(), job / "b")
    assert not (job / "b").exists()
    assert entries(home) == []


def test_entries_of_an_earlier_boot_are_dropped(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(cache, job)
    monkeypatch.setattr(cache_folder, "_boot", lambda: "another1")

    assert not cache.place(address(), job / "b")
    assert entries(home) == []


# -- how much -------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_give_way(home: Path, job: Path) -> None:
    size = 10_000
    cache = InputCache(home, 3 * (size + OVERHEAD_BYTES) + 100)
    for number, name in enumerate("abc"):
        seed(cache, job, name, b"x" * size)
        os.utime(cache._folder.folder(address(name).digest), (number, number))
    assert cache.place(address("a"), job / "used")

    seed(cache, job, "d", b"x" * size)

    found = {name for name in "abcd" if cache.place(address(name), job / "found")}
    assert found <= {"a", "c", "d"}
    assert {"a", "d"} <= found


def test_the_cache_never_holds_more_than_it_may_and_makes_room_ahead(home: Path, job: Path) -> None:
    limit = 20 * (1000 + OVERHEAD_BYTES)
    cache = InputCache(home, limit)
    for number in range(100):
        seed(cache, job, f"k{number}", b"x" * 1000)
        assert sum(entry.stat().st_size + OVERHEAD_BYTES for entry in entries(home)) <= limit

    assert cache.place(address("k99"), job / "last")
    assert len(entries(home)) >= 17


def test_what_is_larger_than_the_cache_is_not_kept_and_evicts_nothing(home: Path, job: Path) -> None:
    cache = InputCache(home, 20_000 + OVERHEAD_BYTES)
    seed(cache, job, "a")
    (job / "large").write_bytes(b"x" * 20_001)

    assert not cache.add(address("large"), job / "large")
    assert cache.place(address("a"), job / "b")


def test_entries_in_the_making_count(home: Path, job: Path) -> None:
    cache = InputCache(home, 2 * (len(DATA) + OVERHEAD_BYTES))
    (job / "a").write_bytes(DATA)
    with cache._folder.reserved(2 * len(DATA)) as place:
        assert place is not None
        assert not cache.add(address(), job / "a")
    assert cache.add(address(), job / "a")


def test_a_lost_count_is_made_anew(cache: InputCache, home: Path, job: Path) -> None:
    seed(cache, job, "a")
    (home / "lock").write_text("")
    seed(cache, job, "b")

    assert int((home / "lock").read_text()) == 2 * (len(DATA) + OVERHEAD_BYTES)


@pytest.mark.parametrize(
    ("total", "kept"), [(5 * LARGE, LARGE), (100 * LARGE, 10 * LARGE)], ids=["1 GiB of a small disk", "10 % of a large"]
)
def test_some_of_the_disk_stays_free(
    cache: InputCache, job: Path, monkeypatch: pytest.MonkeyPatch, total: int, kept: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    usage = shutil.disk_usage("/")
    (job / "a").write_bytes(DATA)
    for free, fits in ((kept + len(DATA) - 1, False), (kept + len(DATA), True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(total=total, free=free))
        assert cache.add(address(), job / "a") is fits
    assert cache.add(address("link"), job / "a", read_only=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=total, free=kept - 1))
    assert not cache.add(address("no more"), job / "a", read_only=True)


def test_the_cache_gives_way_to_who_needs_the_disk_the_oldest_first(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate("abc"):
        seed(cache, job, name)
        os.utime(cache._folder.folder(address(name).digest), (number, number))
    usage, free = shutil.disk_usage("/"), {3: 0, 2: 11 * LARGE}  # bytes that are free, by how many entries there are
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=LARGE, free=free[len(entries(home))]))

    cache.make_room(10 * LARGE)

    assert [cache.place(address(name), job / name) for name in "abc"] == [False, True, True]


def test_an_entry_that_a_job_holds_a_link_to_is_not_evicted_for_space_that_it_would_not_give(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    seed(cache, job, "linked", read_only=True)
    seed(cache, job, "copied")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))

    cache.make_room(1)

    assert cache.place(address("linked"), job / "b", read_only=True)
    assert not cache.place(address("copied"), job / "c")


def test_an_evicted_entry_leaves_the_jobs_hard_link_as_it_is(
    home: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    cache = InputCache(home, len(DATA) + OVERHEAD_BYTES)
    added = seed(cache, job, "a", read_only=True)
    seed(cache, job, "b")

    assert added.read_bytes() == DATA
    assert not cache.place(address("a"), job / "again")


# -- crashes and failures -------------------------------------------------------------------------------------------


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_makes_is_not(home: Path, cache: InputCache) -> None:
    dead = home / "tmp" / "0123456789abcdef-1000"
    dead.mkdir()
    (dead / "data").write_bytes(b"half")
    (home / "tmp" / "fedcba9876543210-gone").mkdir()
    with cache._folder.reserved(10) as living:
        assert living is not None
        InputCache(home, LARGE)
        assert list((home / "tmp").iterdir()) == [living]
    assert list((home / "tmp").iterdir()) == []


def test_who_comes_second_with_the_same_content_leaves_the_first_alone(
    cache: InputCache, home: Path, job: Path
) -> None:
    (job / "a").write_bytes(DATA)
    with cache._folder.reserved(len(DATA)) as place:
        assert place is not None
        (place / "1-1-1-x").write_bytes(b"second")
        assert cache.add(address(), job / "a")
        cache._folder.publish(place, address().digest)

    assert cache.place(address(), job / "b")
    assert (job / "b").read_bytes() == DATA
    assert list((home / "tmp").iterdir()) == []


def test_a_copy_that_is_told_to_stop_leaves_nothing(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    monkeypatch.setattr(cloning, "_PIECE_BYTES", 1000)
    seed(cache, job)
    left = 3

    def soon() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    assert not cache.place(address(), job / "b", cancelled=soon)
    left = 3
    assert not cache.add(address("b"), job / "seed-in-a", cancelled=soon)
    assert [path.name for path in job.iterdir()] == ["seed-in-a"]
    assert list((home / "tmp").iterdir()) == []
    assert len(entries(home)) == 1
    assert "cache_failed" not in actions(caplog)


def test_a_full_disk_is_a_miss_that_leaves_nothing_and_is_warned_of_once(
    cache: InputCache, home: Path, job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "ioctl", no_clones)
    seed(cache, job)
    monkeypatch.setattr(os, "copy_file_range", full)
    (job / "new").write_bytes(DATA)

    assert not cache.place(address(), job / "b")
    assert not cache.add(address("new"), job / "new")
    assert sorted(path.name for path in job.iterdir()) == ["new", "seed-in-a"]
    assert list((home / "tmp").iterdir()) == []
    assert actions(caplog).count("cache_failed") == 1


def test_a_cache_whose_folder_is_taken_away_finds_nothing_and_raises_nothing(
    cache: InputCache, home: Path, job: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed(cache, job)
    shutil.rmtree(home)
    with caplog.at_level(logging.WARNING):
        assert not cache.place(address(), job / "b")
        assert not cache.add(address("c"), job / "seed-in-a")
        cache.make_room(1 << 60)
    assert actions(caplog) == ["cache_failed"]
