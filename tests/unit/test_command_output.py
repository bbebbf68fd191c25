"""Bytes become lines, and the last of them are kept."""

from __future__ import annotations

import random

import pytest

from kelpie_worker.command.output import MAX_LINE_BYTES, LineSplitter, OutputTail


def lines_of(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.close()


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"on", b"e\nt", b"wo"), ["one", "two"]),
        ((b"a\r\nb\r\n",), ["a", "b"]),
        ((b"a\r", b"\nb\r", b"\n"), ["a", "b"]),
        ((b"a\n\nb\n",), ["a", "", "b"]),
        ((b"\r 10%\r 20%", b"\r100%\n"), [" 10%", " 20%", "100%"]),
        ((b"\xff\xfe\n",), ["\ufffd\ufffd"]),
        (("né\n".encode()[:2], "né\n".encode()[2:]), ["né"]),
        (("a\u2028b\x0bc\x1cd\n".encode(),), ["a\u2028b\x0bc\x1cd"]),
        ((), []),
    ],
)
def test_bytes_become_lines(chunks: tuple[bytes, ...], lines: list[str]) -> None:
    assert lines_of(*chunks) == lines


def test_a_carriage_return_ends_a_line_at_once_so_that_progress_is_seen() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"50%\r") == ["50%"]
    assert splitter.feed(b"\n") == []
    assert splitter.feed(b"next\n") == ["next"]


@pytest.mark.parametrize("chunk_bytes", [1000, MAX_LINE_BYTES, 10 * MAX_LINE_BYTES])
def test_a_line_without_end_is_split_and_nothing_of_it_is_lost(chunk_bytes: int) -> None:
    data = b"x" * (3 * MAX_LINE_BYTES + 7)
    lines = lines_of(*(data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)), b"\nend\n")
    assert lines[-1] == "end"
    assert "".join(lines[:-1]) == data.decode()
    assert max(map(len, lines)) <= MAX_LINE_BYTES


def test_a_long_line_is_not_split_inside_a_character() -> None:
    text = "a" + "€" * MAX_LINE_BYTES
    lines = lines_of(text.encode() + b"\n")
    assert "".join(lines) == text
    assert all(len(line.encode()) <= MAX_LINE_BYTES for line in lines)


def test_a_long_line_of_bytes_that_are_no_text_is_split_too() -> None:
    lines = lines_of(b"\x80" * (2 * MAX_LINE_BYTES))
    assert sum(map(len, lines)) == 2 * MAX_LINE_BYTES


def test_the_lines_do_not_depend_on_how_the_bytes_arrive() -> None:
    rng = random.Random(7)
    data = b"".join(rng.choice([b"ab", "é".encode(), b"\n", b"\r\n", b"\rx", b"long " * 20]) for _ in range(2000))
    whole = lines_of(data)
    for _ in range(20):
        chunks, at = [], 0
        while at < len(data):
            size = rng.randint(1, 200)
            chunks.append(data[at : at + size])
            at += size
        # A blank line whose break is torn between its two bytes counts as part of a progress bar.
        assert [line for line in lines_of(*chunks) if line] == [line for line in whole if line]


def test_the_tail_keeps_the_last_lines() -> None:
    tail = OutputTail(max_lines=3)
    for number in range(10):
        tail.add(str(number))
    assert tail.text() == "7\n8\n9"
    assert tail.last(2, 100) == ["8", "9"]


def test_the_tail_is_bounded_in_bytes() -> None:
    tail = OutputTail(max_lines=1000, max_bytes=100)
    for _ in range(50):
        tail.add("é" * 20)
    assert tail.last(1000, 10_000) == ["é" * 20] * 2


def test_of_a_line_that_is_too_long_the_tail_keeps_the_end() -> None:
    tail = OutputTail(max_bytes=10)
    tail.add("€" * 100 + "end")
    assert tail.text() == "€€end"


def test_only_as_many_lines_are_given_as_fit() -> None:
    tail = OutputTail()
    for line in ("first", "second", "third"):
        tail.add(line)
    assert tail.last(10, 11) == ["second", "third"]
    assert tail.last(10, 10) == ["third"]
    assert tail.last(0, 100) == []
