"""What is asked of the storage for files, and where what comes goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kelpie_celery.checkpoints import content
from kelpie_celery.checkpoints.manifest import Extent
from kelpie_celery.checkpoints.pieces import Scatter, runs

A, B, C = Path("a"), Path("b"), Path("c")


def extent(at: int, raw: bytes, segment: str = "s") -> Extent:
    return Extent(segment, at, len(raw), len(raw), "", content.digest(raw))


def test_neighbours_come_with_one_request_and_what_is_far_with_another() -> None:
    near, far = extent(10, b"near"), extent(10 * content.MIB, b"far")
    first, second = runs([(A, [near, far]), (B, [extent(0, b"first")])])
    assert (first.start_byte, first.length_bytes, len(first.pieces)) == (0, 14, 2)
    assert (second.start_byte, second.length_bytes) == (10 * content.MIB, 3)


def test_an_extent_that_several_files_share_comes_once() -> None:
    shared = extent(0, b"shared")
    (run,) = runs([(A, [shared, shared]), (B, [shared])])
    assert run.pieces[0].places == [(A, 0), (A, 6), (B, 0)]


def test_segments_are_asked_for_one_by_one_and_empty_files_for_nothing() -> None:
    assert [run.segment for run in runs([(A, [extent(0, b"x", "s"), extent(0, b"y", "t")]), (B, [])])] == ["s", "t"]


@pytest.mark.parametrize("step", [1, 3, 100])
def test_whatever_the_pieces_of_an_answer_each_extent_is_written_whole(step: int) -> None:
    stored = b"..aaaa....bb"
    (run,) = runs([(A, [extent(2, b"aaaa"), extent(10, b"bb")]), (C, [extent(10, b"bb")])])
    written: list[tuple[Path, int, bytes]] = []
    scatter = Scatter(run, lambda path, at, raw: written.append((path, at, bytes(raw))))
    body = stored[run.start_byte :]
    for at in range(0, len(body), step):
        assert not scatter.is_complete
        scatter.take(memoryview(body[at : at + step]))
    assert scatter.is_complete
    assert written == [(A, 0, b"aaaa"), (A, 4, b"bb"), (C, 0, b"bb")]


def test_damage_is_told_before_it_is_written() -> None:
    (run,) = runs([(A, [extent(0, b"right")])])
    written: list[bytes] = []
    with pytest.raises(content.Damaged):
        Scatter(run, lambda _path, _at, raw: written.append(bytes(raw))).take(memoryview(b"wrong"))
    assert written == []
