"""How plain keys are put together from segments: what is copied, what is sent, and that it is the file."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie_celery.checkpoints.content import MIB, RAW, SMALL_BYTES, ZSTD
from kelpie_celery.checkpoints.manifest import Extent, FileEntry
from kelpie_worker.sync import assembly_plan
from kelpie_worker.sync.assembly_plan import Copied, Older, Plan, Sent, plan
from kelpie_worker.sync.object_store import StoredObject

KEY = "p/file"


def extent(segment: str, at: int, length: int, *, codec: str = RAW, digest: str = "") -> Extent:
    stored = length if codec == RAW else length // 2
    return Extent(segment, at, stored, length, codec, digest or f"{segment}@{at}")


def entry(*extents: Extent) -> FileEntry:
    return FileEntry(sum(one.length for one in extents), 0o644, 0, extents)


def windows(segment: str, count: int, at: int = 0) -> list[Extent]:
    return [extent(segment, at + n * 8 * MIB, 8 * MIB) for n in range(count)]


def older(one: FileEntry) -> Older:
    return Older(StoredObject(KEY, one.size, "etag"), one)


def test_a_file_that_is_one_whole_segment_is_copied() -> None:
    found = plan(entry(*windows("s", 3)), {"s": 24 * MIB})
    assert found == Plan((Copied("s", 0, 24 * MIB),), copy_of="s")
    assert (found.size_bytes, found.sent_bytes) == (24 * MIB, 0)


@pytest.mark.parametrize(("at", "size"), [(0, 25 * MIB), (MIB, 25 * MIB)])
def test_a_part_of_a_segment_is_an_upload_of_one_part(at: int, size: int) -> None:
    assert plan(entry(*windows("s", 3, at)), {"s": size}) == Plan((Copied("s", at, 24 * MIB),))


def test_a_segment_of_unknown_size_is_not_taken_to_be_whole() -> None:
    found = plan(entry(*windows("s", 3)), {})
    assert found is not None
    assert found.copy_of == ""


def test_parts_are_whole_segments_where_every_segment_is_full() -> None:
    extents = [*windows("a", 4), *windows("b", 4), *windows("c", 1)]
    assert plan(entry(*extents), {}) == Plan(
        (Copied("a", 0, 32 * MIB), Copied("b", 0, 32 * MIB), Copied("c", 0, 8 * MIB))
    )


def test_parts_are_windows_where_some_segment_is_not_full() -> None:
    extents = [*windows("a", 4), *windows("b", 2), *windows("c", 4)]
    found = plan(entry(*extents), {})
    assert found is not None
    assert {part.length for part in found.parts} == {8 * MIB}
    assert found.sent_bytes == 0
    assert found.parts[4:7] == (Copied("b", 0, 8 * MIB), Copied("b", 8 * MIB, 8 * MIB), Copied("c", 0, 8 * MIB))


def test_a_window_of_two_segments_is_sent_and_the_others_are_copied() -> None:
    tail = [extent("b", 0, 3 * MIB), extent("c", 0, 5 * MIB)]
    found = plan(entry(*windows("a", 4), *tail, *windows("d", 1)), {})
    assert found is not None
    assert found.parts[4] == Sent(32 * MIB, 8 * MIB, tuple(tail))
    assert found.sent_bytes == 8 * MIB


def test_a_window_of_two_segments_is_copied_from_the_plain_key_that_holds_it() -> None:
    mixed = [extent("b", 0, 3 * MIB), extent("c", 0, 5 * MIB)]
    before = entry(*windows("a", 4), *mixed)
    found = plan(entry(*windows("a", 4), *mixed, *windows("d", 1)), {}, older(before))
    assert found is not None
    assert found.parts[4] == Copied(KEY, 32 * MIB, 8 * MIB)
    assert found.sent_bytes == 0


@pytest.mark.parametrize(
    "before",
    [
        entry(*windows("a", 4), extent("b", 0, 3 * MIB), extent("x", 0, 5 * MIB)),
        entry(*windows("a", 4), extent("b", 0, 3 * MIB)),
        entry(*windows("a", 3), extent("b", 0, 3 * MIB), extent("c", 0, 5 * MIB)),
    ],
    ids=["other content", "shorter", "elsewhere"],
)
def test_a_plain_key_that_does_not_hold_a_window_is_not_copied_from(before: FileEntry) -> None:
    mixed = [extent("b", 0, 3 * MIB), extent("c", 0, 5 * MIB)]
    found = plan(entry(*windows("a", 4), *mixed), {}, older(before))
    assert found is not None
    assert found.parts == (Copied("a", 0, 32 * MIB), Sent(32 * MIB, 8 * MIB, tuple(mixed)))


def test_extents_side_by_side_in_one_segment_are_one_range() -> None:
    found = plan(entry(extent("a", 5, 3 * MIB), extent("a", 5 + 3 * MIB, 5 * MIB)), {"a": 100 * MIB})
    assert found == Plan((Copied("a", 5, 8 * MIB),))


@pytest.mark.parametrize(
    "one",
    [
        entry(),
        entry(extent("a", 0, SMALL_BYTES - 1)),
        entry(extent("a", 0, 3 * MIB), extent("b", 0, 2 * MIB)),
        entry(extent("a", 0, 8 * MIB, codec=ZSTD)),
        entry(*windows("a", 3)[::2], extent("a", 0, 0, codec=ZSTD))._replace(size=400 * 1024 * MIB),
    ],
    ids=["empty", "small", "nothing to copy", "packed", "too large"],
)
def test_what_cannot_be_put_together_is_sent(one: FileEntry) -> None:
    assert plan(one, {"a": SMALL_BYTES}) is None


def test_what_is_packed_is_never_copied() -> None:
    found = plan(entry(*windows("a", 1), extent("a", 8 * MIB, 8 * MIB, codec=ZSTD)), {})
    assert found is not None
    assert [type(part) for part in found.parts] == [Copied, Sent]


def test_large_files_have_at_most_ten_thousand_parts() -> None:
    large = [extent(f"s{n}", 0, 32 * MIB) for n in range(9_999)]
    found = plan(entry(*large, extent("t", 0, 1)), {})
    assert found is not None
    assert len(found.parts) == 10_000
    assert plan(entry(*large, extent("t", 0, 32 * MIB), extent("u", 0, 1)), {}) is None


lengths = st.integers(1, 8 * MIB)


@st.composite
def files(draw: st.DrawFn) -> FileEntry:
    """A file as captures leave it: windows of one or several extents, full but the last."""
    segments, extents = ["s0", "s1"], list[Extent]()
    ends = dict.fromkeys(segments, 0)
    count = draw(st.integers(1, 12))
    for window in range(count):
        size = draw(lengths) if window == count - 1 else 8 * MIB
        cuts = sorted({0, size, *(cut for cut in draw(st.lists(lengths, max_size=2)) if cut < size)})
        for start, end in itertools.pairwise(cuts):
            segment, gap = draw(st.sampled_from(segments)), draw(st.sampled_from([0, 0, 0, 7]))
            codec = draw(st.sampled_from([RAW, RAW, RAW, RAW, ZSTD]))
            one = extent(segment, ends[segment] + gap, end - start, codec=codec)
            ends[segment] = one.at + one.stored
            extents.append(one)
    return entry(*extents)


@given(files(), st.integers(0, 12), st.booleans())
def test_every_plan_makes_the_file(one: FileEntry, kept: int, has_older: bool) -> None:
    before = entry(*one.extents[:kept], extent("x", 0, 9 * MIB)) if has_older else None
    sizes = {"s0": one.size}
    found = plan(one, sizes, older(before) if before else None)
    if found is None:
        return
    assert found.size_bytes == one.size
    if found.copy_of:
        assert sizes[found.copy_of] == one.size
    else:
        part_bytes = found.parts[0].length
        assert len(found.parts) == 1 or part_bytes in assembly_plan.PART_SIZES
        assert {part.length for part in found.parts[:-1]} <= {part_bytes}
        assert found.parts[-1].length <= part_bytes
    starts = itertools.accumulate((part.length for part in found.parts), initial=0)
    for start, part in zip(starts, found.parts, strict=False):
        wanted = list(between(one, start, start + part.length))
        if isinstance(part, Sent):
            assert part.at == start
            assert [(e, 0, e.length) for e in part.extents] == wanted
        elif part.source == KEY:
            assert before is not None
            theirs = between(before, part.at, part.at + part.length)
            assert [(e.digest, a, b) for e, a, b in theirs] == [(e.digest, a, b) for e, a, b in wanted]
        else:
            at = part.at
            for piece, first, last in wanted:
                assert (piece.codec, piece.segment, piece.at + first) == (RAW, part.source, at)
                at += last - first


def between(one: FileEntry, start: int, end: int) -> list[tuple[Extent, int, int]]:
    """The extents of a range of a file, each with the part of it that lies in the range."""
    found, at = [], 0
    for piece in one.extents:
        first, last = max(start - at, 0), min(end - at, piece.length)
        if first < last:
            found.append((piece, first, last))
        at += piece.length
    return found
