"""Lines of jobs as they are shown: nothing in them drives a terminal."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kelpie_celery.log_text import printable, shortened


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ("step\t1", "step    1"),
        ("größe ✓", "größe ✓"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;196;1mred", "red"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq sixel \x1b\\after", "after"),
        ("\x9b2Jcleared", "cleared"),
        ("\x1bcreset", "reset"),
        ("\x1b(Bcharset", "charset"),
        ("bell\x07", "bell\N{REPLACEMENT CHARACTER}"),
        ("broken \x1b", "broken \N{REPLACEMENT CHARACTER}"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}x", "\N{REPLACEMENT CHARACTER}x"),
    ],
)
def test_a_line_is_shown_without_what_drives_a_terminal(line: str, shown: str) -> None:
    assert printable(line) == shown


@given(st.text(alphabet=st.characters(), max_size=200))
def test_whatever_a_line_holds_can_be_printed(line: str) -> None:
    assert printable(line).isprintable()
    assert printable(printable(line)) == printable(line)


@pytest.mark.parametrize("begins", ["\x9d", "\x90", "\x98", "\x9b", "\x9e", "\x9f", "\x1b", "\x1b]", "\x1b[", "\x1bP"])
def test_a_line_full_of_sequences_that_never_end_takes_no_longer_than_another(begins: str) -> None:
    # One pass takes 20 ms; looking at the rest of the line at each of them took longer than a minute.
    line, began = begins * (65_536 // len(begins)), time.process_time()
    assert printable(line).isprintable()
    assert time.process_time() - began < 2


def test_a_short_line_stays_and_a_long_one_says_what_is_left_out() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcde", 3) == "abc [2 more characters]"
