"""What the ledger is told of a command's last lines: bounded, sparse, printable, without secrets."""

from __future__ import annotations

import time

from kelpie_celery.ledger.types import NewOutput
from kelpie_celery.redaction import Redactor
from kelpie_worker.command.recent import BYTES_PER_S, LEAST_PAUSE_S, MAX_BYTES, MAX_LINES, RecentOutput


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make(*secrets: str) -> tuple[RecentOutput, Clock]:
    clock = Clock()
    return RecentOutput(Redactor(secrets), clock), clock


def tell(recent: RecentOutput) -> NewOutput:
    news = recent.news(last=True)
    assert news is not None
    recent.told(news)
    return news


def test_lines_are_told_once_and_those_before_them_stay() -> None:
    recent, _ = make()
    recent.add("a")
    recent.add("b")
    assert tell(recent) == NewOutput(("a", "b"), last=2, kept=2)
    assert recent.news(last=True) is None
    recent.add("c")
    assert tell(recent) == NewOutput(("c",), last=3, kept=3)


def test_what_was_not_heard_of_is_told_again_with_what_came_since() -> None:
    recent, _ = make()
    recent.add("a")
    assert recent.news(last=True) == NewOutput(("a",), last=1, kept=1)
    recent.add("b")
    assert recent.news(last=True) == NewOutput(("a", "b"), last=2, kept=2)


def test_news_is_due_after_a_pause_that_grows_with_what_was_told() -> None:
    recent, clock = make()
    assert not recent.is_due
    recent.add("a")
    assert recent.is_due
    tell(recent)
    recent.add("b")
    assert recent.news() is None
    clock.now_s += LEAST_PAUSE_S
    assert recent.is_due
    for _ in range(MAX_LINES):
        recent.add("x" * 79)
    assert len(tell(recent).lines) == MAX_LINES
    recent.add("c")
    clock.now_s += MAX_LINES * 80 / BYTES_PER_S - 0.1
    assert not recent.is_due
    clock.now_s += 0.2
    assert recent.is_due


def test_of_a_flood_the_last_lines_are_told_within_the_bounds_and_none_before_them_stays() -> None:
    recent, _ = make()
    recent.add("before")
    tell(recent)
    for number in range(10_000):
        recent.add(f"{number} " + "y" * 200)
    news = tell(recent)
    assert news.last == 10_001
    assert news.lines[-1].startswith("9999 ")
    assert sum(len(line) + 1 for line in news.lines) <= MAX_BYTES
    assert news.kept == len(news.lines) < MAX_LINES


def test_older_lines_give_way_to_new_ones_byte_by_byte() -> None:
    recent, _ = make()
    for _ in range(16):
        recent.add("z" * 999)
    assert len(tell(recent).lines) == 16
    recent.add("w" * 1499)
    news = tell(recent)
    assert (len(news.lines), news.kept) == (1, 15)


def test_a_very_long_line_is_cut_and_says_how_much_is_left_out() -> None:
    recent, _ = make()
    recent.add("q" * 65_536)
    (line,) = tell(recent).lines
    assert line == "q" * 2000 + f" [{65_536 - 2000} more characters]"


def test_secrets_are_masked_also_at_the_place_where_a_line_is_cut() -> None:
    secret = "s3cret-" + "k" * 40
    recent, _ = make(secret)
    recent.add(f"token {secret}")
    recent.add(secret * 2000)
    recent.add("\x1b[1m" * 1490 + " " * 30 + secret)
    recent.add("pad " * 498 + secret + "x" * 9000)
    for line in tell(recent).lines:
        assert "s3cret" not in line
        assert "kkkkk" not in line


def test_sequences_that_drive_terminals_do_not_get_into_the_ledger() -> None:
    recent, _ = make()
    recent.add("\x1b[2J\x1b]0;title\x07red \x1b[31mtext\x1b[0m\x00\x08 \udcff")
    assert tell(recent).lines == (
        "red text\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}",
    )


def test_a_line_costs_next_to_nothing_while_nothing_is_told() -> None:
    recent, _ = make(*(f"secret-number-{n}" for n in range(50)))
    began = time.perf_counter()
    for _ in range(200_000):
        recent.add("a line of a flood that is as long as such lines are, say eighty characters or so")
    assert time.perf_counter() - began < 5
