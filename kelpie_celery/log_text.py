"""Lines of a job's output as people may be shown them: nothing in them drives a terminal, and none is endless.

Limits: one line at a time; what a sequence of control characters would have drawn is not worked out.
"""

from __future__ import annotations

import re

MAX_LINE_CHARS = 2000
"""What is shown of a line that is longer."""

_TAB = 8
# ECMA-48: CSI (colours, cursor), strings up to their end (titles, links), and the short ones; 7-bit and C1 forms. What
# begins a sequence ends the one before: no part of a line is looked at twice, whatever a job writes.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9b-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_NOT_ALL_PLAIN = re.compile(r"[^ -~]")


def printable(line: str) -> str:
    """A line without sequences that drive a terminal; other characters that cannot be printed become U+FFFD."""
    if not _NOT_ALL_PLAIN.search(line):
        return line
    line = _SEQUENCES.sub("", line).expandtabs(_TAB)
    return line if line.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def shortened(line: str, max_chars: int = MAX_LINE_CHARS) -> str:
    """A line of bounded length that says how much of it is left out."""
    more = len(line) - max_chars
    return line if more <= 0 else f"{line[:max_chars]} [{more} more characters]"
