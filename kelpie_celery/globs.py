r"""The glob of ``commit: marker:<glob>``: which file of a checkpoint directory says that the checkpoint is whole.

It is matched against a path relative to ``local_path``, whole, with case, segment by segment:

- ``*`` is any run of characters, also none, and ``?`` one character, but never a ``/``;
- ``[abc]``, ``[a-z]`` and ``[!abc]`` are one character of (or not of) a class, never a ``/``; ``[*]`` is a plain ``*``;
- ``**`` as a whole segment is any number of folders, also none; as the last segment everything below.

A leading dot is an ordinary character, and so is ``\``. RE2 matches in time that is linear in the path's length.

Limits: `MAX_GLOB_CHARS` characters; no ``{a,b}``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kelpie_celery._ecmascript import Refused
from kelpie_celery.errors import DefinitionError
from kelpie_celery.patterns import as_utf8, compile_re2

MAX_GLOB_CHARS = 200
MARKER = "marker:"
_ANY_FOLDERS = "**"
_SLASH = ord("/")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Glob:
    """A compiled glob; may be used by several threads at once."""

    source: str
    _regex: Any = field(repr=False, compare=False)

    def matches(self, relative: str) -> bool:
        """Whether the whole of a relative path matches; takes any text, never raises."""
        return self._regex.fullmatch(as_utf8(relative)) is not None


@functools.lru_cache(maxsize=512)
def compile_glob(text: str) -> Glob:
    """Compile a glob.

    Raises:
        DefinitionError: It is none, or could never match a file below a directory.
    """
    try:
        _check(text)
        return Glob(text, compile_re2("".join(_translated(text))))
    except Refused as refused:
        rule = str(refused)
    raise DefinitionError([("glob", repr(text[:80]), rule)])


def marker_of(commit: str) -> Glob | None:
    """The glob of a block's ``commit``; None where no file is waited for."""
    return compile_glob(commit.removeprefix(MARKER)) if commit.startswith(MARKER) else None


def _check(text: str) -> None:
    if not text:
        raise Refused("must not be empty")
    if len(text) > MAX_GLOB_CHARS:
        raise Refused(f"must have at most {MAX_GLOB_CHARS} characters, not {len(text)}")
    if text.startswith("/"):
        raise Refused("must not begin with '/': it is relative to local_path")
    if _CONTROL.search(text):
        raise Refused("must not contain control characters or lone surrogates")
    segments = text.split("/")
    if ".." in segments:
        raise Refused("must not contain '..' as a segment")
    if {"", "."} & set(segments):
        raise Refused("must not contain an empty or '.' segment: no file's path has one")
    if any(_ANY_FOLDERS in segment and segment != _ANY_FOLDERS for segment in segments):
        raise Refused("must have '**' as a whole segment only, as in '**/DONE'; '*' is any run of characters")


def _translated(text: str) -> Iterator[str]:
    *folders, name = text.split("/")
    for folder in folders:
        yield "(?:[^/]+/)*" if folder == _ANY_FOLDERS else "".join(_segment(folder)) + "/"
    yield "(?s:.+)" if name == _ANY_FOLDERS else "".join(_segment(name))


def _segment(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "*":
            yield "[^/]*"
        elif character == "?":
            yield "[^/]"
        elif character == "[":
            # A `]` that comes first is a member, as in a shell.
            end = text.find("]", at + 2 if text[at : at + 1] == "!" else at + 1)
            if end < 0:
                raise Refused("has a '[' without its ']'; write '[[]' for a plain one")
            yield _class(text[at:end])
            at = end + 1
        else:
            yield _literal(ord(character))


def _class(text: str) -> str:
    members = text.removeprefix("!")
    ranges: list[tuple[int, int]] = []
    at = 0
    while at < len(members):
        last = at + 2 if members[at + 1 : at + 2] == "-" and at + 2 < len(members) else at
        low, high = ord(members[at]), ord(members[last])
        if low > high:
            raise Refused(f"has the range {members[at : last + 1]!r}, which is empty; its ends are swapped")
        ranges += _without_slash(low, high)
        at = last + 1
    inside = "".join(f"{_literal(low)}-{_literal(high)}" for low, high in ranges)
    return f"[^/{inside}]" if text.startswith("!") else f"[{inside}]"


def _without_slash(low: int, high: int) -> list[tuple[int, int]]:
    if not low <= _SLASH <= high:
        return [(low, high)]
    return [part for part in ((low, _SLASH - 1), (_SLASH + 1, high)) if part[0] <= part[1]]


def _literal(code: int) -> str:
    return rf"\x{{{code:x}}}"
