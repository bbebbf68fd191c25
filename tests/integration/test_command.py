"""A job's command as a real process tree."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from kelpie_celery.errors import CommandError
from kelpie_worker.command import Command, CommandExit, CommandSpec

ENV = {"PATH": os.environ["PATH"]}

# Ignores SIGTERM, leaves the session, and says its pid.
STUBBORN = "setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done'"


class Output(list[tuple[str, str]]):
    """Lines as they come, and a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.grew = asyncio.Event()

    def take(self, stream: str, line: str) -> None:
        self.append((stream, line))
        self.grew.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self) < count:
                self.grew.clear()
                await self.grew.wait()


def shell(script: str, **env: str) -> CommandSpec:
    return CommandSpec(argv=("sh", "-c", script), env={**ENV, **env}, cwd=Path("/tmp"))


async def run(spec: CommandSpec) -> tuple[CommandExit, Output]:
    output = Output()
    command = await Command.start(spec, output.take)
    async with asyncio.timeout(30):
        return await command.wait(), output


async def vanished(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await asyncio.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("exit 0", CommandExit(code=0)),
        ("exit 3", CommandExit(code=3)),
        ("exit 75", CommandExit(code=75)),
        ("kill -SEGV $$", CommandExit(signal=signal.SIGSEGV)),
        ("kill -KILL $$", CommandExit(signal=signal.SIGKILL)),
    ],
)
async def test_an_exit_is_told_as_it_was(script: str, expected: CommandExit) -> None:
    exit_, _ = await run(shell(script))
    assert exit_ == expected
    assert exit_.ok is (expected.code == 0)


@pytest.mark.parametrize(
    ("argv", "cwd", "reason", "words"),
    [
        (("no-such-command",), "/tmp", "not_found", "'no-such-command' was not found"),
        (("/etc/passwd",), "/tmp", "not_executable", "chmod"),
        (("true",), "/no/such/directory", "no_workdir", "/no/such/directory"),
    ],
)
async def test_a_command_that_cannot_start_is_explained(
    argv: tuple[str, ...], cwd: str, reason: str, words: str
) -> None:
    with pytest.raises(CommandError, match=words) as caught:
        await Command.start(CommandSpec(argv, ENV, Path(cwd)), Output().take)
    assert caught.value.reason == reason


async def test_a_command_sees_its_environment_and_nothing_else() -> None:
    spec = CommandSpec(("env",), {"PATH": os.environ["PATH"], "SECRET": "s3cr3t"}, Path("/tmp"))
    _, output = await run(spec)
    assert sorted(line for _, line in output) == sorted([f"PATH={os.environ['PATH']}", "SECRET=s3cr3t"])
    assert "s3cr3t" not in repr(spec)


async def test_no_descriptor_of_the_worker_leaks_into_the_command() -> None:
    with open("/etc/hostname") as held:  # noqa: ASYNC230, PTH123 - any open file does
        os.set_inheritable(held.fileno(), True)
        _, output = await run(shell("ls /proc/self/fd"))
    assert {line for _, line in output} <= {"0", "1", "2", "3"}  # 3 is the directory that ls reads


async def test_the_environment_is_on_no_command_line_and_in_no_supervisors_environment() -> None:
    output = Output()
    command = await Command.start(shell("echo ready; sleep 30", SECRET="s3cr3t"), output.take)
    await output.until(1)
    supervisor = psutil.Process(command.pid).parent()
    assert supervisor is not None
    assert "s3cr3t" not in str(supervisor.cmdline()) + str(supervisor.environ())
    await command.stop(0)


async def test_a_signal_reaches_the_whole_tree_within_100_ms() -> None:
    output = Output()
    script = (
        "(trap 'echo child; exit' TERM; echo up; while :; do sleep 0.01; done) & trap 'echo main; wait; exit 5' TERM; "
    )
    command = await Command.start(shell(script + "echo up; wait"), output.take)
    await output.until(2)
    started = time.monotonic()
    exit_ = await command.stop(5)
    assert time.monotonic() - started < 1
    assert exit_ == CommandExit(code=5)
    assert {line for stream, line in output if stream == "stdout"} == {"up", "child", "main"}


async def test_a_grandchild_that_ignores_sigterm_and_left_the_session_is_gone_after_the_end() -> None:
    output = Output()
    command = await Command.start(shell(f"{STUBBORN} & sleep 0.2; wait"), output.take)
    await output.until(1)
    await command.stop(1)
    assert await vanished(int(output[0][1]))


async def test_a_command_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    output = Output()
    command = await Command.start(shell("trap '' TERM; echo up; while :; do sleep 1; done"), output.take)
    await output.until(1)
    started = time.monotonic()
    assert await command.stop(0.5) == CommandExit(signal=signal.SIGKILL)
    assert 0.5 <= time.monotonic() - started < 3


async def test_a_grandchild_that_holds_the_pipe_open_does_not_keep_the_job_running() -> None:
    started = time.monotonic()
    exit_, output = await run(shell("sleep 60 & echo done"))
    assert exit_.ok
    assert list(output) == [("stdout", "done")]
    assert time.monotonic() - started < 5


async def test_the_tree_dies_with_its_worker() -> None:
    worker = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from kelpie_worker.command import Command, CommandSpec
        async def main():
            spec = CommandSpec(("sh", "-c", {f"{STUBBORN} & echo $$; wait"!r}), {ENV!r}, Path("/tmp"))
            command = await Command.start(spec, lambda stream, line: print(line, flush=True))
            await command.wait()
        asyncio.run(main())
    """)
    process = subprocess.Popen(  # noqa: ASYNC220 - two lines of output are awaited, nothing else runs here
        [sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    process.stdout.close()
    for pid in pids:
        assert await vanished(pid)


async def test_the_tree_dies_with_its_supervisor() -> None:
    output = Output()
    command = await Command.start(shell("echo up; sleep 60"), output.take)
    await output.until(1)
    supervisor = psutil.Process(command.pid).parent()
    assert supervisor is not None
    supervisor.kill()
    async with asyncio.timeout(10):
        assert await command.wait() == CommandExit(signal=signal.SIGKILL)
    assert await vanished(command.pid)


async def test_a_terminal_interrupt_does_not_end_the_supervisor() -> None:
    output = Output()
    command = await Command.start(shell("echo up; sleep 0.3; exit 4"), output.take)
    await output.until(1)
    supervisor = psutil.Process(command.pid).parent()
    assert supervisor is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        supervisor.send_signal(number)
    assert await command.wait() == CommandExit(code=4)


async def test_a_flood_of_output_takes_bounded_memory_and_leaves_the_loop_alive() -> None:
    seen = 0

    def count(_: str, line: str) -> None:
        nonlocal seen
        seen += len(line)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    command = await Command.start(shell("head -c 200000000 /dev/zero | tr '\\0' y"), count)
    ended = asyncio.ensure_future(command.wait())
    turns = 0
    while not ended.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert (await ended).ok
    assert seen == 200_000_000
    assert turns > 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
    assert sum(map(len, command.last_lines(100, 10_000))) <= 10_000


async def test_binary_output_carriage_returns_and_closed_streams_are_taken_as_they_come() -> None:
    exit_, output = await run(shell(r"printf '10%%\r20%%\r\n\377\376\nlast'; printf err >&2; exec >&- 2>&-; exit 6"))
    assert exit_ == CommandExit(code=6)
    assert [line for stream, line in output if stream == "stdout"] == ["10%", "20%", "\ufffd\ufffd", "last"]
    assert ("stderr", "err") in output


def test_a_command_may_be_started_from_any_thread() -> None:
    ended: list[CommandExit] = []
    thread = threading.Thread(target=lambda: ended.append(asyncio.run(run(shell("exit 0")))[0]))
    thread.start()
    thread.join(30)
    assert ended == [CommandExit(code=0)]


async def test_stopping_what_has_ended_changes_nothing() -> None:
    command = await Command.start(shell("exit 9"), Output().take)
    assert await command.wait() == CommandExit(code=9)
    assert await command.stop(5) == CommandExit(code=9)
    command.send_signal(signal.SIGTERM)
