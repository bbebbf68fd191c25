"""What the tests of commands share: specs, what a command said, and whether a process lives."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kelpie_worker.command import Command, CommandSpec
from tests.harness.isolation import MARK

T = TypeVar("T")
SLEEPER = "while :; do sleep 0.05; done"
STUBBORN = f"trap '' TERM INT HUP; echo stubborn $$; {SLEEPER}"


def base_env() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", MARK) if name in os.environ}


def spec(*argv: str, env: dict[str, str] | None = None, cwd: str | Path = "/") -> CommandSpec:
    return CommandSpec(argv, base_env() if env is None else env, Path(cwd))


def shell(script: str, **more: str) -> CommandSpec:
    return spec("sh", "-c", script, env=base_env() | more)


def python(code: str, *arguments: str) -> CommandSpec:
    return spec(sys.executable, "-I", "-S", "-c", code, *arguments)


def alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] not in "ZX"


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    return int(text[text.rindex(")") + 2 :].split()[1])


async def until(what: str, look: Callable[[], T | None], timeout_s: float = 10.0) -> T:
    """Await that ``look`` gives something true-like."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (found := look()):
        assert loop.time() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.01)
    return found


@dataclass
class Heard:
    """What a command wrote."""

    all: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, stream: str, line: str) -> None:
        self.all.append((stream, line))

    def lines(self, stream: str = "stdout") -> list[str]:
        return [line for of, line in self.all if of == stream]

    def after(self, word: str) -> Iterator[int]:
        """The numbers in lines such as ``child 123``."""
        return (int(line.split()[1]) for line in self.lines() if line.startswith(word + " "))

    async def line(self, text: str) -> None:
        await until(f"the line {text!r}", lambda: text in self.lines())

    async def number(self, word: str) -> int:
        return await until(f"a line {word!r} with a number", lambda: next(self.after(word), None))


@asynccontextmanager
async def running(
    what: CommandSpec, heard: Heard | None = None, *, take: Callable[[str, str], None] | None = None
) -> AsyncIterator[tuple[Command, Heard]]:
    """A command that is gone at the end of the block, whatever happens in it; ``take`` may hear it instead."""
    heard = heard or Heard()
    command = await Command.start(what, take or heard)
    try:
        yield command, heard
    finally:
        await command.stop(0)
