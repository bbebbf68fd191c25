"""Signals reach a command's whole tree, and nothing of it outlives its command, supervisor or worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kelpie_worker.command import CommandExit, process, supervisor
from tests.harness.waiting import eventually
from tests.integration.command_support import (
    SLEEPER,
    STUBBORN,
    Heard,
    alive,
    base_env,
    parent_of,
    running,
    shell,
    until,
)

# Far below the graces, and below the 5 s and more after which what does not die is given up.
TIMELY_S = 5.0

# A grandchild in a session of its own that ignores every polite signal.
ESCAPED = f'setsid sh -c "{STUBBORN.replace("$", chr(92) + "$")}" & '


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Bounds the waits of each test by an alarm, as a hung wait is what these tests look for."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the test took longer than 40 s"))
    signal.alarm(40)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def settling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Gives helpers another time to settle, which a busy machine does not use up."""

    def set_time(seconds: float) -> None:
        code = Path(supervisor.__file__).read_text()
        changed = code.replace(f"SETTLE_S = {supervisor.SETTLE_S:g}\n", f"SETTLE_S = {seconds:g}\n")
        assert changed != code
        (tmp_path / "supervisor.py").write_text(changed)
        monkeypatch.setattr(process, "_SUPERVISOR", tmp_path / "supervisor.py")

    return set_time


async def timed(what: asyncio.Future[CommandExit] | asyncio.Task[CommandExit]) -> tuple[CommandExit, float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    return await what, loop.time() - began


async def test_a_signal_reaches_children_and_grandchildren() -> None:
    child = f"trap 'echo child; exit' TERM; echo ready; {SLEEPER}"
    script = f"(setsid sh -c \"{child}\" &); ({child}) & trap 'echo main' TERM; {SLEEPER}"
    async with running(shell(script)) as (command, heard):
        await until("both children are ready", lambda: heard.lines().count("ready") == 2)
        command.send_signal(signal.SIGTERM)
        await until("all three have heard", lambda: sorted(heard.lines()[2:]) == ["child", "child", "main"])


async def test_each_process_gets_a_signal_once() -> None:
    script = f"trap 'echo main' USR1; sh -c \"trap 'echo child' USR1; echo ready; {SLEEPER}\" & {SLEEPER}"
    async with running(shell(script)) as (command, heard):
        await heard.line("ready")
        for times in (1, 2, 3):
            command.send_signal(signal.SIGUSR1)
            await until("both have heard", lambda n=times: len(heard.lines()) > 2 * n)  # type: ignore[misc]
        await asyncio.sleep(0.2)
        assert sorted(heard.lines()) == ["child"] * 3 + ["main"] * 3 + ["ready"]


async def test_stop_returns_as_soon_as_the_command_has_ended() -> None:
    async with running(shell(f"trap 'echo saved; exit 7' TERM; echo ready; {SLEEPER}")) as (command, heard):
        await heard.line("ready")
        exit_, seconds = await timed(asyncio.ensure_future(command.stop(30)))
        assert exit_ == CommandExit(code=7)
        assert heard.lines()[-1] == "saved"
        assert seconds < TIMELY_S


async def test_stop_kills_when_the_grace_is_over() -> None:
    async with running(shell(STUBBORN)) as (command, heard):
        await heard.number("stubborn")
        exit_, seconds = await timed(asyncio.ensure_future(command.stop(0.4)))
        assert exit_ == CommandExit(signal=signal.SIGKILL)
        assert 0.4 <= seconds < 0.4 + TIMELY_S


async def test_stop_without_grace_kills_at_once() -> None:
    async with running(shell(f"trap 'echo polite' TERM; echo ready; {ESCAPED} {SLEEPER}")) as (command, heard):
        grandchild = await heard.number("stubborn")
        exit_, seconds = await timed(asyncio.ensure_future(command.stop(0)))
        assert exit_ == CommandExit(signal=signal.SIGKILL)
        assert seconds < TIMELY_S
        assert "polite" not in heard.lines()
        assert not alive(grandchild)


async def test_the_shorter_of_two_graces_counts() -> None:
    async with running(shell(STUBBORN)) as (command, heard):
        await heard.number("stubborn")
        patient = asyncio.ensure_future(command.stop(60))
        await asyncio.sleep(0)
        _, seconds = await timed(asyncio.ensure_future(command.stop(0.1)))
        assert seconds < TIMELY_S
        assert await patient == CommandExit(signal=signal.SIGKILL)


async def test_stop_can_begin_with_another_signal() -> None:
    async with running(shell(f"trap 'exit 2' INT; echo ready; {SLEEPER}")) as (command, heard):
        await heard.line("ready")
        assert await command.stop(30, first=signal.SIGINT) == CommandExit(code=2)


async def test_a_suspended_command_hears_of_its_end() -> None:
    async with running(shell(f"trap 'exit 5' TERM; echo ready; {SLEEPER}")) as (command, heard):
        await heard.line("ready")
        command.send_signal(signal.SIGSTOP)
        await until("it is suspended", lambda: ") T" in Path(f"/proc/{command.pid}/stat").read_text())
        assert await command.stop(30) == CommandExit(code=5)


async def test_a_grandchild_that_left_the_session_and_ignores_sigterm_is_gone_after_stop() -> None:
    async with running(shell(f"{ESCAPED} {SLEEPER}")) as (command, heard):
        grandchild = await heard.number("stubborn")
        assert os.getsid(grandchild) != command.pid
        exit_, seconds = await timed(asyncio.ensure_future(command.stop(0.5)))
        assert exit_ == CommandExit(signal=signal.SIGTERM)
        assert not alive(grandchild)
        assert seconds < 0.5 + TIMELY_S


async def test_what_a_shell_wrapped_has_the_whole_grace_although_the_shell_dies_at_once() -> None:
    saving = f"trap 'sleep 1.5; echo saved; exit 0' TERM; echo ready; {SLEEPER}"
    async with running(shell(f'sh -c "{saving}"; echo never')) as (command, heard):
        await heard.line("ready")
        assert await command.stop(30) == CommandExit(signal=signal.SIGTERM)
        assert heard.lines() == ["ready", "saved"]


# -- a job ends when its main command ends ----------------------------------------------------------------------------


async def test_helpers_that_hold_the_pipes_are_ended_with_the_command() -> None:
    async with running(shell(f"{ESCAPED} sleep 600 & echo sleeper $!; sleep 0.3; exit 3")) as (command, heard):
        helpers = [await heard.number("stubborn"), await heard.number("sleeper")]
        exit_, seconds = await timed(asyncio.ensure_future(command.wait()))
        assert exit_ == CommandExit(code=3)
        assert seconds < 1.3 + TIMELY_S
        assert not any(map(alive, helpers))


async def test_a_helper_that_is_about_to_end_may_finish(settling: Callable[[float], None]) -> None:
    settling(10)
    async with running(shell("(sleep 0.2; echo last) & echo first")) as (command, heard):
        assert await command.wait() == CommandExit(code=0)
        assert heard.lines() == ["first", "last"]


async def test_a_helper_hears_sigterm_before_it_is_killed(settling: Callable[[float], None]) -> None:
    settling(2)
    async with running(shell(f"(trap 'echo flushed; exit' TERM; {SLEEPER}) & sleep 0.2")) as (command, heard):
        assert await command.wait() == CommandExit(code=0)
        assert heard.lines() == ["flushed"]


async def test_a_pipe_that_somebody_else_holds_does_not_hold_the_job(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    script = f"echo one; until [ -e '{go_on}' ]; do sleep 0.02; done; echo two"
    async with running(shell(script)) as (command, heard):
        await heard.line("one")
        held = os.open(f"/proc/{command.pid}/fd/1", os.O_WRONLY)
        try:
            go_on.touch()
            exit_, seconds = await timed(asyncio.ensure_future(command.wait()))
        finally:
            os.close(held)
        assert exit_ == CommandExit(code=0)
        assert heard.lines() == ["one", "two"]
        assert seconds < 1 + TIMELY_S


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_to_the_supervisor_itself_changes_nothing(number: signal.Signals) -> None:
    async with running(shell(f"echo ready; {SLEEPER}")) as (command, heard):
        await heard.line("ready")
        os.kill(parent_of(command.pid), number)
        await asyncio.sleep(0.1)
        assert alive(command.pid)
        assert await command.stop(5) == CommandExit(signal=signal.SIGTERM)


async def test_the_death_of_the_supervisor_is_the_death_of_the_tree(caplog: pytest.LogCaptureFixture) -> None:
    marks = {"KELPIE_JOB_ID": "job-of-this-test", "KELPIE_ATTEMPT": str(os.getpid())}
    script = f"{ESCAPED} ({STUBBORN.replace('stubborn', 'near')}) & echo ready; {SLEEPER}"
    async with running(shell(script, **marks)) as (command, heard):
        tree = [command.pid, await heard.number("stubborn"), await heard.number("near")]
        os.kill(parent_of(command.pid), signal.SIGKILL)
        exit_, seconds = await timed(asyncio.ensure_future(command.wait()))
        assert exit_ == CommandExit(signal=signal.SIGKILL)
        assert seconds < TIMELY_S
        assert not any(map(alive, tree))
    assert [r.__dict__["action"] for r in caplog.records if r.levelname == "ERROR"] == ["supervisor_lost"]


async def test_a_supervisor_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PATIENCE_S", 0.3)
    async with running(shell(f"echo ready; {SLEEPER}")) as (command, heard):
        await heard.line("ready")
        os.kill(parent_of(command.pid), signal.SIGSTOP)
        exit_, seconds = await timed(asyncio.ensure_future(command.stop(0.2)))
        assert exit_ == CommandExit(signal=signal.SIGKILL)
        assert seconds < 0.5 + TIMELY_S
        assert not alive(command.pid)


WORKER = """
import asyncio, sys
from pathlib import Path
from kelpie_worker.command import Command, CommandSpec
async def work():
    spec = CommandSpec(("sh", "-c", sys.argv[1]), {"PATH": "/usr/bin:/bin"}, Path("/"))
    command = await Command.start(spec, lambda stream, line: print(line, flush=True))
    print("command", command.pid, flush=True)
    await command.wait()
asyncio.run(work())
"""


@contextlib.contextmanager
def worker(script: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", WORKER, script]
    env = base_env() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as started:
        try:
            yield started
        finally:
            started.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_worker_is_the_death_of_the_tree(number: signal.Signals) -> None:
    heard = Heard()
    with worker(f"trap '' TERM; {ESCAPED} {SLEEPER}") as started:
        assert started.stdout is not None
        while len(heard.all) < 2:
            heard("stdout", started.stdout.readline().strip())
        tree = [*heard.after("command"), *heard.after("stubborn")]
        tree.append(parent_of(tree[0]))
        assert all(map(alive, tree))
        started.send_signal(number)
        eventually("the whole tree is gone", lambda: not any(map(alive, tree)), timeout_s=TIMELY_S)
