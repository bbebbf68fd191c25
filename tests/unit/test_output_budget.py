"""A flood of output is left out, told, and its end kept."""

from __future__ import annotations

from kelpie_celery.clock import ManualClock
from kelpie_worker.command.budget import LINE_BYTES, Gap, OutputBudget


def budget(clock: ManualClock, burst_bytes: int = 1000, rate_bytes_s: float = 100) -> OutputBudget:
    return OutputBudget(clock.boottime, burst_bytes, rate_bytes_s)


def test_a_burst_goes_through_and_what_is_beyond_it_does_not() -> None:
    one = budget(ManualClock())
    assert [one.lets(b"x" * 400) for _ in range(4)] == [True, True, False, False]
    assert one.left_out_bytes == 800


def test_a_line_costs_more_than_its_bytes() -> None:
    one = budget(ManualClock(), burst_bytes=2 * LINE_BYTES)
    assert one.lets(b"\n")
    assert not one.lets(b"\n")


def test_after_a_flood_it_opens_again_once_half_a_burst_may_go_through() -> None:
    clock = ManualClock()
    one = budget(clock)
    assert one.lets(b"x" * 1000)
    assert not one.lets(b"x")
    clock.advance(4.9)
    assert not one.lets(b"x"), "or a gap would be told at every piece"
    clock.advance(0.2)
    assert one.lets(b"x" * 100)


def test_what_comes_slowly_always_goes_through() -> None:
    clock = ManualClock()
    one = budget(clock)
    for _ in range(1000):
        assert one.lets(b"x" * 90)
        clock.advance(1)
    assert one.left_out_bytes == 0


def test_a_pause_saves_up_one_burst_and_no_more() -> None:
    clock = ManualClock()
    one = budget(clock)
    clock.advance(1e6)
    assert one.lets(b"x" * 1000)
    assert not one.lets(b"x" * 1000)


def test_a_gap_tells_its_size_and_keeps_its_last_whole_lines() -> None:
    gap = Gap()
    for number in range(10_000):
        gap.add(b"line %d\n" % number)
    gap.add(b"and a half")
    assert "98900 bytes" in gap.notice[0]
    assert gap.last.startswith(b"line ")
    assert gap.last.endswith(b"line 9999\nand a half")
    assert len(gap.last) <= 4096


def test_a_small_gap_is_none() -> None:
    gap = Gap()
    gap.add(b"one\n")
    gap.add(b"two\n")
    assert (gap.notice, gap.last) == ([], b"one\ntwo\n")
