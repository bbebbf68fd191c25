"""Counts, and saves where it is: as it should be done, or as it should not; ``saver.py HOW TICKS [older]``.

``atomic`` renames its file into place and goes on from it; ``ignores`` saves like that and begins again; ``in_place``
writes into its file and goes on from it; ``early`` reports a commit before it has closed its file; ``never`` saves
nothing; ``elsewhere`` saves where nobody looks, the first time at once; ``fails`` cannot go on from what it saved. With
``older``, the directories are those of the older bucket fields, and there must be an input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

TICK_S, SAVE_EVERY = 0.05, 20
OLDER = "older" in sys.argv
STATE = Path(os.environ["CHECKPOINT_DIR"] if OLDER else "state", "count.json")
OUT = Path(os.environ["OUTPUT_DIR"] if OLDER else "out", "result.txt")


class Saver:
    def __init__(self, how: str, ticks: int) -> None:
        self.how, self.ticks, self.told = how, ticks, False
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: object) -> None:
        self.told = True

    def run(self) -> None:
        if OLDER:
            assert list(Path(os.environ["INPUT_DIR"]).iterdir())
        done = self._load()
        self._say(progress=done / self.ticks)
        while done < self.ticks:
            time.sleep(TICK_S)
            done += 1
            at_once = self.how == "elsewhere" and done == 1
            if done % SAVE_EVERY == 0 or self.told or at_once:
                self._save(done)
            if self.told:
                sys.exit(75)
            self._say(progress=done / self.ticks)
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(f"counted to {done}\n")

    def _load(self) -> int:
        if self.how == "ignores" or not STATE.exists():
            return 0
        if self.how == "fails":
            sys.exit("cannot read " + os.environ["SECRET"])
        return int(json.loads(STATE.read_text())["count"])

    def _save(self, done: int) -> None:
        text = json.dumps({"count": done, "padding": "x" * 1000})
        if self.how == "elsewhere":
            Path("mine").mkdir(exist_ok=True)
            Path("mine/count.json").write_text(text)
        elif self.how in ("atomic", "ignores", "fails"):
            draft = STATE.with_name("count.tmp")
            draft.write_text(text)
            draft.replace(STATE)
        elif self.how in ("in_place", "early"):
            with STATE.open("w") as file:
                file.write(text[:20])
                file.flush()
                if self.how == "early":
                    self._say(commit=True)
                time.sleep(0.1)
                file.write(text[20:])

    def _say(self, **said: object) -> None:
        with Path(os.environ["KELPIE_REPORT"]).open("a") as file:
            file.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    Saver(sys.argv[1], int(sys.argv[2])).run()
