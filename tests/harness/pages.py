"""Pages of the documentation, read as what they promise: blocks, links, anchors, words in code.

A fenced block says in its info string what it is; ``HOW_TO_MARK`` tells the words. GitHub takes the first word for the
language and ignores the rest, so that marks are seen by whoever edits a page and by nobody else.

Limits: the Markdown that these pages use: backtick fences, ``#`` headings, inline links.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOW_TO_MARK = """\
How a block of a page is marked, by the words behind its three backticks:
  sh                    is run: one bash for all of a page, in a fresh checkout with `.kelpie/env` of a running stack,
                        whose two workers serve the group `local`; a page that starts `kelpie up` itself gets none
  sh terminal           runs on in a terminal of its own, until the page's end: `kelpie up` and other servers
  sh eventually         is run again and again until it succeeds: for what takes a moment
  sh cloud              needs SaladCloud, or another service that is not on this machine; only its syntax is checked
  sh shown              is not run: placeholders, other machines, docker; only its syntax is checked
  sh tested-by=PATH     is run by that test, or that script
  sh needs=PROGRAM      is run where that program is on PATH: for what `make test` must not need, such as curl
  python                is run, as a whole program; `python shown`: part of one; its names are checked
  json, toml            a job definition, a file of scaling rules; `json shown`, `toml shown`: something else
  text, yaml, mermaid.. are only looked at"""

LANGUAGES = {"sh", "python", "json", "toml", "text", "yaml", "dockerfile", "mermaid", "ini", "conf"}
RUN = {"sh", "python"}
MARKS = {"sh": {"terminal", "eventually", "cloud", "shown"}, "python": {"shown"}, "json": {"shown"}, "toml": {"shown"}}
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
_LINK = re.compile(r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page's path, as it is named to people.
        line: Where its content begins.
        info: What stands behind the backticks.
        text: Its content.
    """

    page: str
    line: int
    info: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def language(self) -> str:
        return (self.info.split() or [""])[0]

    @property
    def marks(self) -> set[str]:
        return {mark for mark in self.info.split()[1:] if "=" not in mark}

    @property
    def tested_by(self) -> str | None:
        """The path of the test that runs it, where it says so."""
        found = re.search(r"(?<!\S)tested-by=(\S+)", self.info)
        return found[1] if found else None

    @property
    def is_run(self) -> bool:
        """Whether the tests of the pages run it."""
        needs = re.search(r"(?<!\S)needs=(\S+)", self.info)
        return (
            self.language in RUN
            and not self.marks & {"cloud", "shown"}
            and not self.tested_by
            and not (needs and shutil.which(needs[1]) is None)
        )


@dataclass(frozen=True)
class Word:
    """A link's target, or words in backticks, and the line that they stand on."""

    line: int
    text: str


class Page:
    """One page.

    Args:
        path: The file.
        root: What its name is relative to.
    """

    def __init__(self, path: Path, root: Path = ROOT) -> None:
        self.path, self.name = path, str(path.relative_to(root))
        self.text = path.read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return self.name

    @cached_property
    def blocks(self) -> list[Block]:
        """Its fenced blocks, in order."""
        return [block for _, block in self._parts() if block is not None]

    @cached_property
    def prose(self) -> list[Word]:
        """Its lines outside of fenced blocks."""
        return [word for word, _ in self._parts() if word is not None]

    def _parts(self) -> Iterator[tuple[Word | None, Block | None]]:
        lines = iter(enumerate(self.text.splitlines(), 1))
        for number, line in lines:
            fence = _FENCE.match(line)
            if fence is None:
                yield Word(number, line), None
                continue
            indent, content = len(fence["indent"]), []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                content.append(inner[indent:])
            yield None, Block(self.name, number + 1, fence["info"].strip(), "".join(f"{one}\n" for one in content))

    @cached_property
    def links(self) -> list[Word]:
        """Targets of its links."""
        found = [(word.line, _CODE.sub("x", word.text)) for word in self.prose]
        return [Word(line, match["target"]) for line, text in found for match in _LINK.finditer(text)]

    @cached_property
    def codes(self) -> list[Word]:
        """What stands in backticks within a line."""
        return [Word(word.line, match[1]) for word in self.prose for match in _CODE.finditer(word.text)]

    @cached_property
    def anchors(self) -> set[str]:
        """What a link may name behind ``#``: its headings, as GitHub makes anchors of them."""
        found: dict[str, int] = {}
        for word in self.prose:
            if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", word.text):
                anchor = slug(heading[1])
                found[anchor] = found.get(anchor, -1) + 1
        return {f"{name}-{n}" if n else name for name, count in found.items() for n in range(count + 1)}


def slug(heading: str) -> str:
    """A heading's anchor: small letters, no punctuation, ``-`` for blanks."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def pages(root: Path = ROOT) -> list[Page]:
    """README and all pages of ``docs`` and ``examples``."""
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md")), *sorted((root / "examples").rglob("*.md"))]
    return [Page(path, root) for path in paths]
