r"""Translates an ECMAScript regular expression into RE2's syntax, meaning for meaning.

Where the two differ, ECMAScript (without flags, as Kelpie used it) wins:

* ``\s`` and ``.`` know the same spaces and line ends as in ECMAScript;
* ``$`` is the very end of the text, never "before a last newline";
* ``[]`` matches nothing, ``[^]`` anything, ``[`` inside a class is itself, ``[\b]`` is backspace;
* ``{`` that begins no quantifier is itself; ``\uXXXX``, ``\xXX`` and ``\cX`` are characters.

RE2 has no look-around. Its two useful places need none, because their position is fixed: a look-ahead right
after a leading ``^`` and a look-behind right before a final ``$`` are conditions of their own on the whole
text. Each top-level alternative becomes a `Branch` of such conditions.

Limits: back-references and other look-around are refused; so is an escaped letter without a meaning (``\A``
is the letter A in ECMAScript, which nobody who writes it wants); astral characters count as one, not as two.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# WhiteSpace and LineTerminator of ECMA-262, and all the rest.
_SPACE = r"\t-\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
_NOT_SPACE = (
    r"\x{0}-\x{8}\x{e}-\x{1f}!-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}"
    r"\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{fefe}\x{ff00}-\x{10ffff}"
)
_ANY_BUT_LINE_END = r"[^\n\r\x{2028}\x{2029}]"
_NOTHING, _ANYTHING = r"[^\x{0}-\x{10ffff}]", r"[\x{0}-\x{10ffff}]"
_SETS = {"d": r"\d", "D": r"\D", "w": r"\w", "W": r"\W", "s": _SPACE, "S": _NOT_SPACE}
_HIGH_SURROGATES, _LOW_SURROGATES = range(0xD800, 0xDC00), range(0xDC00, 0xE000)
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}

_QUANTIFIER = re.compile(r"(?:[*+?]|\{\d+(?:,\d*)?\})\??")
_GROUP = re.compile(r"\((?:\?(?:(?P<look>=|!|<=|<!)|:|(?P<fold>i:)|<(?P<name>[A-Za-z_$][\w$]*)>))?")
_HEX_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\})")
_CONTROL_ESCAPE = re.compile(r"\\c([A-Za-z])")

_LOOK_HINT = (
    "may use look-around in two places only: a look-ahead right after a leading ^, a look-behind right before"
    " a final $; to leave names out, write it as in ^(?!.*\\.tmp$)"
)


class Refused(ValueError):
    """The pattern cannot be translated; the message is the rule that it breaks.

    It never leaves ``kelpie_celery.patterns`` and ``kelpie_celery.globs``, where it becomes a `DefinitionError`.
    """


@dataclass(frozen=True)
class Branch:
    """One top-level alternative, in RE2's syntax: all of ``needs`` and none of ``forbids`` must be found."""

    needs: tuple[str, ...]
    forbids: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Token:
    """A piece of the pattern; ``look`` is the operator of a look-around group that opens here."""

    kind: str
    text: str
    look: str = ""


def translate(pattern: str) -> tuple[str, tuple[Branch, ...]]:
    """Translate.

    Returns:
        The whole in RE2's syntax with look-around taken for plain groups, which is only good for a check of
        the syntax; and the branches that give the pattern its meaning.

    Raises:
        Refused: When RE2 or this module has no equivalent.
    """
    tokens = list(_Scanner(pattern).tokens())
    plain = _join(tokens)
    if not any(token.look for token in tokens):
        return plain, (Branch((plain,)),)
    return plain, tuple(_branch(part) for part in _split_alternatives(tokens))


def _join(tokens: list[_Token]) -> str:
    return "".join(token.text for token in tokens)


def _split_alternatives(tokens: list[_Token]) -> Iterator[list[_Token]]:
    depth, part = 0, list[_Token]()
    for token in tokens:
        depth += (token.kind == "open") - (token.kind == "close")
        if token.kind == "alt" and depth == 0:
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _branch(tokens: list[_Token]) -> Branch:
    """Take the look-arounds at the two fixed places out of one alternative."""
    needs, forbids = list[str](), list[str]()
    rest = tokens
    if rest and rest[0].kind == "start":
        rest = rest[1:]
        while rest and rest[0].look in {"=", "!"}:
            group, rest = _leading_group(rest)
            (needs if group[0].look == "=" else forbids).append(rf"\A{_join(group)}")
            _refuse_look_around(group[1:])
            _refuse_quantifier(rest)
        rest = [tokens[0], *rest]
    if rest and rest[-1].kind == "end":
        end, rest = rest[-1], rest[:-1]
        while (group := _trailing_group(rest)) and group[0].look in {"<=", "<!"}:
            rest = rest[: -len(group)]
            (needs if group[0].look == "<=" else forbids).append(rf"{_join(group)}\z")
            _refuse_look_around(group[1:])
        rest = [*rest, end]
    _refuse_look_around(rest)
    return Branch((_join(rest), *needs), tuple(forbids))


def _leading_group(tokens: list[_Token]) -> tuple[list[_Token], list[_Token]]:
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token.kind == "open") - (token.kind == "close")
        if depth == 0:
            return tokens[: index + 1], tokens[index + 1 :]
    raise Refused("is not a regular expression: a ( is not closed")


def _trailing_group(tokens: list[_Token]) -> list[_Token]:
    depth = 0
    for index in range(len(tokens) - 1, -1, -1):
        depth += (tokens[index].kind == "close") - (tokens[index].kind == "open")
        if depth <= 0:
            return tokens[index:]
    return []


def _refuse_look_around(tokens: list[_Token]) -> None:
    if any(token.look for token in tokens):
        raise Refused(_LOOK_HINT)


def _refuse_quantifier(tokens: list[_Token]) -> None:
    if tokens and tokens[0].kind == "quantifier":
        raise Refused("must not repeat a look-around group")


def _char(code: int) -> str:
    """One character as RE2 writes it, literally, whatever it is."""
    if code in _HIGH_SURROGATES or code in _LOW_SURROGATES or code > sys.maxunicode:
        raise Refused(f"names a code point that no text can contain: U+{code:04X}")
    character = chr(code)
    if character.isascii() and (character.isalnum() or character in "_/ "):
        return character
    return rf"\x{{{code:x}}}"


@dataclass
class _Scanner:
    """Reads the pattern from left to right; ``at`` is the index of the next character."""

    source: str
    at: int = 0
    _handlers: dict[str, Callable[[], _Token]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._handlers = {"\\": self._escape, "[": self._class, "(": self._group}

    def tokens(self) -> Iterator[_Token]:
        while self.at < len(self.source):
            handler = self._handlers.get(self.source[self.at])
            yield handler() if handler else self._quantifier() or self._simple()

    def _quantifier(self) -> _Token | None:
        match = _QUANTIFIER.match(self.source, self.at)
        if match is None:
            return None
        self.at = match.end()
        return _Token("quantifier", match[0])

    def _simple(self) -> _Token:
        character = self.source[self.at]
        self.at += 1
        match character:
            case "^":
                return _Token("start", r"\A")
            case "$":
                return _Token("end", r"\z")
            case "|":
                return _Token("alt", "|")
            case ")":
                return _Token("close", ")")
            case ".":
                return _Token("atom", _ANY_BUT_LINE_END)
            case _:
                return _Token("atom", _char(ord(character)))

    def _group(self) -> _Token:
        match = _GROUP.match(self.source, self.at)
        if match is None or self.source.startswith("?", match.end()):
            raise Refused("has a group that ECMAScript does not know; it has (...), (?:...), (?<name>...) and (?i:...)")
        self.at = match.end()
        # Captures are never asked for, so every group is opened as one that does not capture.
        return _Token("open", "(?i:" if match["fold"] else "(?:", look=match["look"] or "")

    def _escape(self) -> _Token:
        letter = self.source[self.at + 1 : self.at + 2]
        if letter in {"b", "B"}:
            self.at += 2
            return _Token("atom", "\\" + letter)
        if letter in _SETS and letter:
            self.at += 2
            text = _SETS[letter]
            return _Token("atom", f"[{text}]" if letter in "sS" else text)
        return _Token("atom", _char(self._escaped_char()))

    def _escaped_char(self) -> int:
        """The code point that the escape at ``at`` stands for."""
        if match := _HEX_ESCAPE.match(self.source, self.at):
            self.at = match.end()
            return self._with_low_surrogate(int(match[1] or match[2] or match[3], 16))
        if match := _CONTROL_ESCAPE.match(self.source, self.at):
            self.at = match.end()
            return ord(match[1]) % 32
        letter, after = self.source[self.at + 1 : self.at + 2], self.source[self.at + 2 : self.at + 3]
        self.at += 2
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter == "0" and not after.isdecimal():
            return 0
        return _literal(letter)

    def _with_low_surrogate(self, code: int) -> int:
        r"""Join ``\uD83D\uDE00``, which is how ECMAScript without flags writes one astral character."""
        low = _HEX_ESCAPE.match(self.source, self.at)
        if not (code in _HIGH_SURROGATES and low and low[2] and int(low[2], 16) in _LOW_SURROGATES):
            return code
        self.at = low.end()
        high_bits = _HIGH_SURROGATES.index(code) << 10
        return 0x10000 + high_bits + _LOW_SURROGATES.index(int(low[2], 16))

    def _class(self) -> _Token:
        negated = self.source.startswith("[^", self.at)
        self.at += 2 if negated else 1
        items = list[int | str]()  # code points, and sets in RE2's syntax
        while not self.source.startswith("]", self.at):
            if self.at >= len(self.source):
                raise Refused("is not a regular expression: a [ is not closed")
            items.append(self._class_item())
        self.at += 1
        if not items:
            return _Token("atom", _ANYTHING if negated else _NOTHING)
        return _Token("atom", f"[{'^' if negated else ''}{_class_body(items)}]")

    def _class_item(self) -> int | str:
        character, letter = self.source[self.at], self.source[self.at + 1 : self.at + 2]
        if character != "\\":
            self.at += 1
            return -1 if character == "-" else ord(character)
        if letter in _SETS and letter:
            self.at += 2
            return _SETS[letter]
        if letter == "b":
            self.at += 2
            return 8
        return self._escaped_char()


def _literal(letter: str) -> int:
    r"""The meaning of ``\`` before a character that has no meaning of its own there."""
    if not letter:
        raise Refused(r"is not a regular expression: it ends in a single \ ")
    if (letter.isascii() and letter.isdigit()) or letter == "k":
        raise Refused(f"must not use a back-reference (\\{letter}): it cannot be matched in bounded time")
    if letter.isascii() and letter.isalpha():
        raise Refused(f"uses \\{letter}, which has no meaning in ECMAScript; write the letter itself, ^ or $")
    return ord(letter)


_HYPHEN = -1  # a bare "-", which may stand for a range; an escaped one is an ordinary code point


def _class_body(items: list[int | str]) -> str:
    """Join a class's items; a hyphen makes a range only between two characters."""
    parts, index = list[str](), 0
    while index < len(items):
        item, high = items[index], items[index + 2] if index + 2 < len(items) else None
        if isinstance(item, int) and isinstance(high, int) and items[index + 1] == _HYPHEN:
            parts.append(_range(item, high))
            index += 3
        else:
            parts.append(item if isinstance(item, str) else _char(_bare(item)))
            index += 1
    return "".join(parts)


def _range(low: int, high: int) -> str:
    if _bare(low) > _bare(high):
        raise Refused(f"has a range in the wrong order: {chr(_bare(low))}-{chr(_bare(high))}")
    return f"{_char(_bare(low))}-{_char(_bare(high))}"


def _bare(code: int) -> int:
    return ord("-") if code == _HYPHEN else code
