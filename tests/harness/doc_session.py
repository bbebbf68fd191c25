"""Runs the blocks of a page as its reader would: one shell, servers in terminals of their own, a fresh checkout.

Limits: what a block reaches over the network is this machine; a proxy that refuses everything stands in front of the
rest, which programs that ignore proxies do not ask.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kelpie_celery.local.ports import reserve
from kelpie_celery.local.salad.run import READY_LINE as SIM_IS_UP
from kelpie_celery.local.up import READY_LINE as STACK_IS_UP
from tests.harness.page_checks import commands
from tests.harness.pages import HOW_TO_MARK, ROOT, Block, Page
from tests.harness.waiting import eventually

BLOCK_S = 240.0  # a bound for what hangs; on two cores that others load, ten seconds become a minute
READY = {"up": STACK_IS_UP, "salad-sim": SIM_IS_UP}
VENV = ".venv"
_LINKED = {"kelpie_celery", "workers", "scaler", "tests", "benchmarks"}  # code; nothing is written there
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")
_REFUSES = "http://127.0.0.1:9"


class BlockFailed(AssertionError):
    """A block of a page does not do what the page says."""

    def __init__(self, block: Block, what: str, output: str) -> None:
        super().__init__(f"{block.place}: {what}\n{block.text}-- its output\n{output}\n--\n{HOW_TO_MARK}")


def lay_out(directory: Path) -> None:
    """A working directory as after ``git clone`` and ``make setup``."""
    directory.mkdir(parents=True)
    for entry in ROOT.iterdir():
        if entry.name.startswith(".") or entry.name in {"build", "dist", "bench.json"}:
            continue
        if entry.name in _LINKED:
            (directory / entry.name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, directory / entry.name, ignore=_LEFT_OUT)
        else:
            shutil.copy2(entry, directory / entry.name)
    (directory / VENV).symlink_to(Path(sys.prefix))


class DocSession:
    """The terminals of one reader of one page.

    Args:
        page: Which.
        directory: A new one, for the checkout, an empty home and the logs.
        env: More environment, such as quicker settings.
    """

    def __init__(self, page: Page, directory: Path, env: Mapping[str, str]) -> None:
        self.checkout, self._scripts = directory / "checkout", directory / "blocks"
        lay_out(self.checkout)
        for made in (self._scripts, directory / "home"):
            made.mkdir()
        self._env = {
            **os.environ,
            "PATH": f"{self.checkout / VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(directory / "home"),
            "https_proxy": _REFUSES,
            "http_proxy": _REFUSES,
            "no_proxy": "127.0.0.1,localhost",
            **env,
        }
        self._reserved = reserve()
        named = sorted(set(re.findall(r"--port[ =](\d+)", page.text)))
        self._ports = {port: str(self._reserved[number]) for number, port in enumerate(named)}
        self._terminals: list[tuple[Block, subprocess.Popen[bytes], Path]] = []
        self._log = self._scripts / "shell.log"
        self._shell = self._bash(["bash", "--noprofile", "--norc"], self._log, subprocess.PIPE)
        self._tell("set -eo pipefail")

    def _bash(self, argv: list[str], log: Path, stdin: int) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            return subprocess.Popen(
                argv, cwd=self.checkout, env=self._env, stdin=stdin, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def _tell(self, line: str) -> None:
        assert self._shell.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; whoever waits for the answer sees that
            self._shell.stdin.write(f"{line}\n".encode())
            self._shell.stdin.flush()

    def source(self, path: str) -> None:
        """Begin with a file that the reader has sourced already."""
        self._tell(f". {path}")

    def run(self, block: Block) -> None:
        """Run one block, or leave it running where it is a terminal of its own.

        Raises:
            BlockFailed: It failed, or took too long.
        """
        script = self._scripts / f"line-{block.line}.{'py' if block.language == 'python' else 'sh'}"
        script.write_text(self._with_free_ports(block.text))
        if "terminal" in block.marks:
            self._open_terminal(block, script)
        elif "eventually" in block.marks:
            self._repeat(block, script)
        else:
            how = f"python '{script}'" if block.language == "python" else f"source '{script}'"
            code = self._call(block, how, script)
            assert code == 0  # another one ends the shell

    def _with_free_ports(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    def _call(self, block: Block, how: str, script: Path) -> int:
        """Have the shell do something, and wait for its exit code."""
        before, done = self._log.stat().st_size, script.with_suffix(".done")
        done.unlink(missing_ok=True)
        self._tell(f"{how} </dev/null\necho $? >'{done}.new'; mv '{done}.new' '{done}'")
        deadline = time.monotonic() + BLOCK_S
        while not done.exists():
            if self._shell.poll() is not None and not done.exists():
                raise BlockFailed(block, f"ended with exit code {self._shell.returncode}", self._since(before))
            if time.monotonic() > deadline:
                raise BlockFailed(block, f"was not done after {BLOCK_S:g} s", self._since(before))
            time.sleep(0.02)
        return int(done.read_text())

    def _repeat(self, block: Block, script: Path) -> None:
        before, deadline = self._log.stat().st_size, time.monotonic() + BLOCK_S
        # In a shell that may fail: errexit is off in the condition of an `until`, also inside its subshells.
        self._tell("set +e")
        while self._call(block, f"(set -eo pipefail; source '{script}')", script):
            if time.monotonic() > deadline:
                raise BlockFailed(block, f"did not succeed within {BLOCK_S:g} s", self._since(before))
            time.sleep(0.5)
        self._tell("set -e")

    def _since(self, position: int) -> str:
        return self._log.read_bytes()[position:].decode(errors="replace")

    def _open_terminal(self, block: Block, script: Path) -> None:
        log = script.with_suffix(".log")
        process = self._bash(["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)], log, subprocess.DEVNULL)
        self._terminals.append((block, process, log))
        words = [READY[call[0]] for call in commands(block.text) if call[0] in READY]

        def is_up() -> bool:
            return process.poll() is not None or all(word in log.read_text(errors="replace") for word in words)

        eventually(f"{block.place} runs", is_up, BLOCK_S, lambda: log.read_text(errors="replace"))
        self._expect_running(block, process, log)

    def _expect_running(self, block: Block, process: subprocess.Popen[bytes], log: Path) -> None:
        if process.poll() is not None:
            what = f"is a terminal of its own, and ended with exit code {process.returncode}"
            raise BlockFailed(block, what, log.read_text(errors="replace"))

    def expect_terminals(self) -> None:
        """What was to run until the page's end does.

        Raises:
            BlockFailed: It has ended.
        """
        for terminal in self._terminals:
            self._expect_running(*terminal)

    def close(self) -> None:
        """Kill everything; what the stack and the simulator started dies with them."""
        for process in (self._shell, *(process for _, process, _ in self._terminals)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        self._reserved.release()
