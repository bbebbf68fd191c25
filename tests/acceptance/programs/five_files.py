"""A program whose checkpoint is five files that only make sense together, and that refuses to go on with anything else.

Each file ends in the same table: the step, and the length and digest of every file. In each burst one is appended to,
one is rewritten in place, one is truncated and written anew, two are replaced by renaming. Between the files the
program pauses, for longer than what counts as quiet; one file stays open all the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from tests.acceptance.programs.diary import Diary, Refused, report

HISTORY, STATE, OPTIMIZER, WEIGHTS, INDEX = "history.log", "state.bin", "optimizer.bin", "weights.bin", "index.bin"
SIZES = {HISTORY: 25_000, STATE: 600_000, OPTIMIZER: 200_000, WEIGHTS: 2_500_000, INDEX: 20_000}
MARKER = "DONE"
TABLE_BYTES = 1024
RUN_ME_AGAIN = 75


@dataclass
class State:
    """What the computation depends on: the payload of each file; that of the history grows."""

    step: int
    payloads: dict[str, bytes] = field(repr=False)

    @classmethod
    def fresh(cls, seed: int) -> State:
        return cls(0, {name: f"{seed}/{name}".encode() for name in SIZES})

    def advance(self) -> None:
        """One step; it depends on every byte of the last one."""
        digests = [hashlib.sha256(payload).digest() for payload in self.payloads.values()]
        new = {
            name: hashlib.shake_128(b"".join([*digests, name.encode()])).digest(size) for name, size in SIZES.items()
        }
        new[HISTORY] = self.payloads[HISTORY] + (self.table() if self.step else b"") + new[HISTORY]
        self.step, self.payloads = self.step + 1, new

    def table(self) -> bytes:
        files = {
            name: [len(payload) + TABLE_BYTES, hashlib.sha256(payload).hexdigest()]
            for name, payload in self.payloads.items()
        }
        return json.dumps({"step": self.step, "files": files}).encode().ljust(TABLE_BYTES)

    def file(self, name: str) -> bytes:
        return self.payloads[name] + self.table()

    def digest(self) -> str:
        return hashlib.sha256(b"".join(self.file(name) for name in SIZES)).hexdigest()


def load(directory: Path, *, marker: bool = False) -> State | None:
    """The state of a checkpoint; None when the directory is empty.

    Raises:
        Refused: It does not fit together.
    """
    expected = {*SIZES, MARKER} if marker else set(SIZES)
    there = {path.name for path in directory.iterdir()}
    if not there:
        return None
    if there != expected:
        raise Refused(f"files are missing or too many: {sorted(there ^ expected)}")
    contents = {name: (directory / name).read_bytes() for name in sorted(expected)}
    tables = {name: _table(name, content) for name, content in contents.items()}
    steps = {name: table["step"] for name, table in tables.items()}
    if len(set(steps.values())) > 1:
        raise Refused(f"a mixture of steps: {steps}")
    if len({json.dumps(table) for table in tables.values()}) > 1:
        raise Refused("the tables differ")
    payloads = {}
    for name, (length, digest) in tables[STATE]["files"].items():
        payload = contents[name][:-TABLE_BYTES]
        if len(contents[name]) != length:
            raise Refused(f"{name} has the length {len(contents[name])}, not {length}")
        if hashlib.sha256(payload).hexdigest() != digest:
            raise Refused(f"{name} has another digest")
        payloads[name] = payload
    return State(steps[STATE], {name: payloads[name] for name in SIZES})


def _table(name: str, content: bytes) -> dict[str, Any]:
    try:
        table = json.loads(content[-TABLE_BYTES:])
        return {"step": int(table["step"]), "files": dict(table["files"])}
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{name} of {len(content)} bytes does not end in a table: {error}") from None


def save(
    directory: Path, state: State, pause_s: float, *, marker: bool = False, on_file: Callable[[str], object] = str
) -> None:
    """One burst: file by file in an order that differs from step to step, with pauses; one stays open."""
    order = sorted(SIZES)
    random.Random(state.step).shuffle(order)
    with _held_open(directory / STATE) as held:
        for name in order:
            content = state.file(name)
            if name == STATE:
                held.write(content[: len(content) // 2])
                held.flush()
                time.sleep(pause_s / 2)
                held.write(content[len(content) // 2 :])
                held.flush()
            elif name == HISTORY:
                with (directory / name).open("ab") as file:
                    file.write(content[-SIZES[HISTORY] - TABLE_BYTES :] if state.step > 1 else content)
            elif name == OPTIMIZER:
                (directory / name).write_bytes(content)
            else:
                _replace(directory / name, content)
            on_file(name)
            time.sleep(pause_s)
    if marker:
        _replace(directory / MARKER, state.table())


def _held_open(path: Path) -> IO[bytes]:
    return path.open("r+b" if path.exists() else "wb")


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)


def outputs(state: State) -> dict[str, bytes]:
    """What the program writes at its end."""
    return {"digest": state.digest().encode(), "weights": state.payloads[WEIGHTS]}


def undisturbed(seed: int, steps: int) -> dict[str, bytes]:
    """What it writes when nobody disturbs it."""
    state = State.fresh(seed)
    for _ in range(steps):
        state.advance()
    return outputs(state)


class Told:
    """Whether the program was told to stop."""

    def __init__(self, how: str) -> None:
        self.to_stop = False
        if how != "die":
            signal.signal(signal.SIGTERM, self._note if how == "finish" else self._exit)

    def _note(self, *_: object) -> None:
        self.to_stop = True

    @staticmethod
    def _exit(*_: object) -> None:
        sys.exit(1)


def run(options: argparse.Namespace, diary: Diary) -> State:
    """To the last step, or until told to stop."""
    marker = options.say == "marker"
    told = Told(options.sigterm)
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        state = load(options.checkpoint, marker=marker)
    except Refused as error:
        diary.refuse(error)
    state = state or State.fresh(options.seed)
    diary.write("start", state.step)
    dice = random.Random()
    while state.step < options.steps:
        time.sleep(dice.uniform(*options.rest))
        while options.leave and not (options.leave / str(state.step + 1)).exists() and not told.to_stop:
            time.sleep(0.02)
        if told.to_stop:
            sys.exit(RUN_ME_AGAIN)
        state.advance()
        in_burst = partial(diary.write, "burst", state.step)
        save(options.checkpoint, state, options.pause, marker=marker, on_file=in_burst)
        diary.write("saved", state.step)
        if options.say == "report":
            report(commit=True)
        report(progress=state.step / options.steps)
    return state


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--diary", type=Path, required=True)
    parser.add_argument("--say", choices=["", "report", "marker"], default="")
    parser.add_argument("--sigterm", choices=["finish", "exit", "die"], default="finish")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two files")
    parser.add_argument("--rest", type=float, nargs=2, default=(0.0, 0.0), help="seconds between two bursts")
    parser.add_argument("--leave", type=Path, help="where a file named after a step allows its burst")
    options = parser.parse_args()
    diary = Diary(options.diary)
    state = run(options, diary)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, content in outputs(state).items():
        (options.output / name).write_bytes(content)
    diary.write("done", state.step)


if __name__ == "__main__":
    main()
