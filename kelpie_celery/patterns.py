r"""The ``pattern`` of a sync block: an ECMAScript regular expression that cannot hang.

It is searched for, not anchored: against the whole key in ``before``, against the path relative to
``local_path`` in ``during`` and ``after``. RE2 matches in time that is linear in the text, so no pattern, by
accident or malice, holds up a worker; `MAX_PATTERN_CHARS` and a bound on the compiled size keep the factor
small (a key of 1,024 bytes takes at most some tens of milliseconds, a usual one 3 microseconds).

Limits: what RE2 cannot do is refused at submit (see ``kelpie_celery._ecmascript``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import re2  # type: ignore[import-untyped]  # google-re2 ships no type hints

from kelpie_celery._ecmascript import Refused, translate
from kelpie_celery.errors import DefinitionError

MAX_PATTERN_CHARS = 1000
_MAX_PROGRAM = 10_000  # RE2 instructions
_MAX_REASON_CHARS = 80
_MAX_MEMORY_BYTES = 2 << 20


@dataclass(frozen=True)
class _Conditions:
    """What must and what must not be found, compiled."""

    needs: tuple[Any, ...]
    forbids: tuple[Any, ...]

    def hold(self, text: bytes) -> bool:
        return all(regex.search(text) for regex in self.needs) and not any(regex.search(text) for regex in self.forbids)


@dataclass(frozen=True)
class Pattern:
    """A compiled pattern; may be used by several threads at once."""

    source: str
    _branches: tuple[_Conditions, ...] = field(repr=False)

    def matches(self, text: str) -> bool:
        """Whether the pattern is found anywhere in ``text``; takes any text, never raises."""
        data = as_utf8(text)
        return any(branch.hold(data) for branch in self._branches)


@functools.lru_cache(maxsize=512)
def compile_pattern(pattern: str) -> Pattern:
    """Compile an ECMAScript regular expression.

    Raises:
        DefinitionError: When it is none, or needs what cannot be matched in bounded time.
    """
    try:
        return _compile(pattern)
    except Refused as refused:
        rule = str(refused)
    raise DefinitionError([("pattern", repr(pattern[:80]), rule)])


def _compile(pattern: str) -> Pattern:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise Refused(f"must have at most {MAX_PATTERN_CHARS} characters, not {len(pattern)}")
    whole, branches = translate(pattern)
    if len(branches) > 1 or branches[0].needs != (whole,):
        compile_re2(whole)  # unbalanced brackets show in the whole; a branch by itself could hide them
    return Pattern(pattern, tuple(_Conditions(_compile_all(b.needs), _compile_all(b.forbids)) for b in branches))


def _compile_all(expressions: Iterable[str]) -> tuple[Any, ...]:
    return tuple(compile_re2(expression) for expression in expressions)


def compile_re2(expression: str) -> Any:
    """Compile an expression in RE2's own syntax, over UTF-8.

    Raises:
        Refused: It is none, or too large.
    """
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MAX_MEMORY_BYTES
    try:
        compiled = re2.compile(expression.encode(), options)
    except re2.error as error:
        raise Refused(f"is not a regular expression: {_reason(error)}") from None
    if compiled.programsize > _MAX_PROGRAM:
        raise Refused("is too large once its repetitions are written out; use fewer or smaller counts")
    return compiled


def _reason(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
    return text if len(text) <= _MAX_REASON_CHARS else text[:_MAX_REASON_CHARS] + "..."


def as_utf8(text: str) -> bytes:
    """What expressions are matched against; takes any text, never raises."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A file name that is not UTF-8 reaches Python with lone surrogates; Kelpie, on Node, saw U+FFFD.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
