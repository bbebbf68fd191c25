"""A command's output, whatever it is and however much, never costs memory, the loop's time or the job's end."""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path

import pytest

from kelpie_worker.command import Command, CommandExit
from kelpie_worker.command.budget import OutputBudget
from tests.integration.command_support import Heard, python, running, shell, until

MIB = 1 << 20


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("text", "total"), [("x" * 1000, 200 * MIB), ("step 17 loss 0.25 accuracy 0.875\n" * 30, 30 * MIB)]
)
async def test_a_flood_costs_neither_memory_nor_the_loops_time(text: str, total: int) -> None:
    count, peak, worst_s, worst_lag = 0, 0, 0.0, 0.0
    loop = asyncio.get_running_loop()

    def take(stream: str, text: str) -> None:
        nonlocal count
        count += len(text) + 1

    async def beat() -> None:
        nonlocal peak, worst_s, worst_lag
        while True:
            began, cpu_s = loop.time(), time.thread_time()
            await asyncio.sleep(0.02)
            worst_s = max(worst_s, time.thread_time() - cpu_s)
            worst_lag = max(worst_lag, loop.time() - began - 0.02)
            peak = max(peak, rss_bytes())

    before = rss_bytes()
    code = f"import os\nfor _ in range({total} // {len(text)}): os.write(1, {text.encode()!r})"
    heart = asyncio.create_task(beat())
    async with asyncio.timeout(60), running(python(code), take=take) as (command, _):
        assert await command.wait() == CommandExit(code=0)
    heart.cancel()
    assert count >= total // len(text) * len(text)
    assert peak - before < 16 * MIB
    # In the loop's own CPU time, as a busy machine makes it late as well, though not for as long as it could wait.
    assert worst_s < 0.5
    assert worst_lag < 5


async def test_a_flood_beyond_the_budget_is_read_in_no_time_and_its_end_is_kept() -> None:
    budget = OutputBudget(asyncio.get_running_loop().time)
    heard = Heard()
    before, began = rss_bytes(), asyncio.get_running_loop().time()
    command = await Command.start(shell("yes | head -c 500000000; echo the end; echo last >&2"), heard, budget=budget)
    async with asyncio.timeout(60):
        assert await command.wait() == CommandExit(code=0)
    took_s = asyncio.get_running_loop().time() - began
    assert budget.left_out_bytes > 480_000_000
    assert len(heard.all) < 100_000 + 10_000 * took_s
    assert heard.lines()[-2:] == ["y", "the end"]
    assert heard.lines("stderr") == ["last"]
    assert [line for line in heard.lines() if line.startswith("kelpie: ") and "left out" in line]
    # Each stream's end is kept; which of the two is read last is anybody's guess.
    assert "the end" in command.last_lines(3, 1000)
    assert rss_bytes() - before < 32 * MIB


async def test_a_command_waits_while_its_lines_are_not_taken() -> None:
    taken = 0

    def slowly(stream: str, text: str) -> None:
        nonlocal taken
        taken += 1
        time.sleep(0.001)

    code = "import os\nfor n in range(100000): os.write(1, b'x' * 99 + b'\\n'); n % 1000 or os.write(2, b'%d\\n' % n)"
    heard = Heard()

    def take(stream: str, text: str) -> None:
        (slowly if stream == "stdout" else heard)(stream, text)

    async with running(python(code), take=take) as (command, _):
        await until("some lines are taken", lambda: taken > 200)
        written = int(heard.lines("stderr")[-1])
        # What is written and not taken lies in the pipe (64 KiB) and in one read of it (64 KiB).
        assert written - taken < 3 * 65536 / 100
        exit_ = await command.stop(0)
    assert exit_ == CommandExit(signal=9)


async def test_lines_that_are_taken_slowly_all_arrive_after_the_end() -> None:
    lines: list[str] = []

    def slowly(stream: str, text: str) -> None:
        lines.append(text)
        time.sleep(0.002)

    async with running(shell("i=0; while [ $i -lt 1000 ]; do echo $i; i=$((i+1)); done")) as (command, heard):
        command._on_line = slowly
        await command.wait()
    assert heard.lines() + lines == [str(number) for number in range(1000)]


async def test_bytes_that_are_no_text_are_replaced() -> None:
    async with running(python("import os; os.write(1, bytes(range(256)) * 100 + b'\\nend')")) as (command, heard):
        assert await command.wait() == CommandExit(code=0)
    assert heard.lines()[-1] == "end"


async def test_a_command_may_close_its_output() -> None:
    async with running(shell("echo before; exec >&- 2>&-; sleep 0.2; exit 6")) as (command, heard):
        assert await command.wait() == CommandExit(code=6)
    assert heard.lines() == ["before"]


async def test_a_progress_bar_is_seen_while_it_moves() -> None:
    async with running(python("import os,time; os.write(1, b'\\r10%\\r20%\\r'); time.sleep(60)")) as (_, heard):
        await heard.line("20%")
    assert heard.lines() == ["10%", "20%"]


async def test_a_line_that_cannot_be_taken_does_not_end_the_job(caplog: pytest.LogCaptureFixture) -> None:
    taken = []

    def fussy(stream: str, text: str) -> None:
        taken.append(text)
        if text != "fine":
            raise ValueError(text)

    async with running(shell("echo bad; echo worse; echo fine"), take=fussy) as (command, _):
        assert await command.wait() == CommandExit(code=0)
    assert taken == ["bad", "worse", "fine"]
    assert [r.__dict__["action"] for r in caplog.records if r.levelname == "ERROR"] == ["output_lost"]


async def test_the_last_lines_of_both_streams_are_kept() -> None:
    script = "i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done; sleep 0.1; echo the error >&2; exit 1"
    async with running(shell(script)) as (command, _):
        await command.wait()
    assert command.last_lines(3, 1000) == ["298", "299", "the error"]
    assert len(command.tail) == 100
