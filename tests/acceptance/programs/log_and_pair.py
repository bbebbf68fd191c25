"""A program with a log that it never closes, beside a checkpoint of two files that are replaced one after the other.

The log is opened for appending and grows all the time; each line depends on the one before. The two files say which
step they are of, how many lines the log had by then, and which digest the other one has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import IO

from tests.acceptance.programs.diary import Diary, Refused

LOG, PAIR = "run.log", ("left.json", "right.json")
LINES = 50  # a step, at least: what was logged before a kill is not logged again
PAYLOAD = 40_000


def line(number: int, before: str) -> str:
    return f"{number} {hashlib.sha256(f'{number} {before}'.encode()).hexdigest()}\n"


def log_until(count: int) -> str:
    """The log's first lines, as they must be."""
    lines, before = [], ""
    for number in range(count):
        before = line(number, before)
        lines.append(before)
    return "".join(lines)


def load(directory: Path) -> tuple[int, int]:
    """Step, and lines of the log; 0 and 0 before the first checkpoint.

    Raises:
        Refused: It does not fit together.
    """
    names = {path.name for path in directory.iterdir()}
    text = (directory / LOG).read_text() if LOG in names else ""
    count = text.count("\n")
    if text != log_until(count):
        raise Refused(f"the log of {len(text)} bytes is not what it must be")
    if not names & set(PAIR):
        return 0, count
    if not names >= set(PAIR):
        raise Refused(f"half of a pair: {names}")
    left, right = (json.loads((directory / name).read_text()) for name in PAIR)
    if (left["step"], left["lines"]) != (right["step"], right["lines"]):
        raise Refused(f"a mixture of steps {left['step']} and {right['step']}")
    if left["other"] != right["digest"] or right["other"] != left["digest"]:
        raise Refused("the digests differ")
    if count < left["lines"]:
        raise Refused(f"the log has {count} lines, and had {left['lines']} when the checkpoint was taken")
    return int(left["step"]), count


def save(directory: Path, step: int, lines: int, pause_s: float) -> None:
    digests = [hashlib.sha256(f"{name} {step}".encode()).hexdigest() for name in PAIR]
    drafts = []
    for name, mine, other in zip(PAIR, digests, reversed(digests), strict=True):
        draft = directory / f"{name}.draft"
        filling = hashlib.shake_128(mine.encode()).hexdigest(PAYLOAD)
        draft.write_text(json.dumps({"step": step, "lines": lines, "digest": mine, "other": other, "filling": filling}))
        drafts.append(draft)
    for draft in drafts:
        draft.replace(draft.with_suffix(""))
        time.sleep(pause_s)


def work(log: IO[str], count: int, lines: int) -> int:
    """Write the log up to a number of lines."""
    before = log_until(count).splitlines(keepends=True)[-1] if count else ""
    while count < lines:
        before = line(count, before)
        log.write(before)
        log.flush()
        count += 1
        time.sleep(0.02)
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--diary", type=Path, required=True)
    parser.add_argument("--go", type=Path, required=True, help="there are more steps until this file is there")
    options = parser.parse_args()
    diary = Diary(options.diary)
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    try:
        step, count = load(options.checkpoint)
    except Refused as error:
        diary.refuse(error)
    diary.write("start", step)
    with (options.checkpoint / LOG).open("a") as log:
        while step < options.steps or not options.go.exists():
            count = work(log, count, count + LINES)
            step += 1
            save(options.checkpoint, step, count, 0.05)
            diary.write("saved", step)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "lines").write_text(str(count))
    (options.output / LOG).write_bytes((options.checkpoint / LOG).read_bytes())
    diary.write("done", step)


if __name__ == "__main__":
    main()
