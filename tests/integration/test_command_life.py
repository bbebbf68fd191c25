"""A command starts with exactly what it is given, and its end is told as it was."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from kelpie_celery.errors import CommandError
from kelpie_worker.command import Command, CommandExit, CommandSpec
from tests.integration.command_support import (
    SLEEPER,
    Heard,
    alive,
    base_env,
    parent_of,
    python,
    running,
    shell,
    spec,
    until,
)

SECRET = "hunter2-canary"


async def run(what: CommandSpec, timeout_s: float = 20.0) -> tuple[CommandExit, Heard]:
    async with asyncio.timeout(timeout_s), running(what) as (command, heard):
        return await command.wait(), heard


@pytest.mark.parametrize("code", [0, 1, 75, 255])
async def test_an_exit_code_is_told(code: int) -> None:
    exit_, _ = await run(shell(f"exit {code}"))
    assert exit_ == CommandExit(code=code)
    assert exit_.ok == (code == 0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM, signal.SIGPIPE])
async def test_a_signal_is_told(number: signal.Signals) -> None:
    exit_, _ = await run(shell(f"kill -{int(number)} $$"))
    assert exit_ == CommandExit(signal=number)


async def test_output_and_errors_come_line_by_line_with_the_name_of_their_stream() -> None:
    _, heard = await run(shell("echo one; echo two >&2; printf three"))
    assert heard.lines() == ["one", "three"]
    assert heard.lines("stderr") == ["two"]


async def test_wait_can_be_asked_for_twice_and_after_the_end() -> None:
    async with running(shell("echo bye; exit 4")) as (command, _):
        first, second = await asyncio.gather(command.wait(), command.wait())
        assert first == second == await command.wait() == await command.stop(5) == CommandExit(code=4)
        command.send_signal(signal.SIGTERM)
        assert command.tail == command.last_lines(5, 100) == ["bye"]


# -- what cannot be started -------------------------------------------------------------------------------------------


async def refusal(what: CommandSpec) -> CommandError:
    with pytest.raises(CommandError) as refused:
        await Command.start(what, Heard())
    return refused.value


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "./no-such-program"])
async def test_a_command_that_is_not_there_is_named(name: str) -> None:
    error = await refusal(spec(name))
    assert error.reason == "not_found"
    assert repr(name) in str(error)


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        ("#!/bin/sh\n", 0o644, "chmod +x"),
        ("echo no first line\n", 0o755, "#!/bin/sh"),
        ("#!/no/such/interpreter\n", 0o755, "interpreter"),
    ],
)
async def test_a_file_that_cannot_be_executed_is_explained(tmp_path: Path, content: str, mode: int, says: str) -> None:
    program = tmp_path / "program"
    program.write_text(content)
    program.chmod(mode)
    for what in (spec(str(program)), spec("program", env={"PATH": str(tmp_path)}), spec("./program", cwd=tmp_path)):
        error = await refusal(what)
        assert error.reason == "not_executable"
        assert says in str(error)


async def test_a_directory_is_no_command(tmp_path: Path) -> None:
    error = await refusal(spec(str(tmp_path)))
    assert error.reason == "not_executable"
    assert "is a directory" in str(error)


@pytest.mark.parametrize("name", ["missing", "file"])
async def test_a_working_directory_that_cannot_be_entered_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    error = await refusal(spec("true", cwd=tmp_path / name))
    assert error.reason == "no_workdir"
    assert str(tmp_path / name) in str(error)


async def test_arguments_that_are_too_large_are_explained() -> None:
    error = await refusal(spec("true", "x" * 1_000_000))
    assert "too large" in str(error)


async def test_a_refused_start_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Command] = []
    create = Command.__init__

    def remember(self: Command, *arguments: object) -> None:
        started.append(self)
        create(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Command, "__init__", remember)
    await refusal(spec("no-such-program"))
    assert not alive(started[0]._process.pid)


async def test_a_start_that_is_given_up_leaves_no_process_behind(tmp_path: Path) -> None:
    for give_up_after in (0, 1, 2, 4):
        task = asyncio.create_task(Command.start(shell(f"echo $$ > {tmp_path}/pid; {SLEEPER}"), Heard()))
        for _ in range(give_up_after):
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result().stop(0)
        written = tmp_path / "pid"
        if written.exists() and written.read_text().strip():
            assert not alive(int(written.read_text()))


@pytest.mark.parametrize("ends", [False, True])
async def test_a_start_that_gets_no_answer_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    marked = base_env() | {"KELPIE_JOB_ID": str(tmp_path), "KELPIE_ATTEMPT": "1"}
    stuck = tmp_path / "stuck.py"
    stuck.write_text(
        "import os, subprocess, time\n"
        f"env = {marked!r}\n"
        "null = subprocess.DEVNULL\n"
        "left = subprocess.Popen(['/bin/sleep', '600'], env=env, start_new_session=True, stdin=null, stdout=null,"
        " stderr=null)\n"
        f"open({str(tmp_path / 'written')!r}, 'w').write(str(left.pid))\n"
        f"os.rename({str(tmp_path / 'written')!r}, {str(tmp_path / 'pid')!r})\n"
        f"time.sleep({0 if ends else 600})\n"
    )
    monkeypatch.setattr("kelpie_worker.command.process._SUPERVISOR", stuck)
    start = asyncio.create_task(Command.start(spec("true", env=marked), Heard()))
    await until("it has started something", (tmp_path / "pid").exists)
    if ends:
        with pytest.raises(ChildProcessError):
            await start
    else:
        start.cancel()
        await asyncio.wait({start})
        assert start.cancelled()
    left = int((tmp_path / "pid").read_text())
    await until("what it started is gone", lambda: not alive(left))


# -- what it is given -------------------------------------------------------------------------------------------------


async def test_the_environment_is_exactly_the_one_given() -> None:
    env = {"PATH": "/usr/bin:/bin", "EMPTY": "", "TWO": "a=b", "TEXT": "é 'quoted' $HOME", "NEWLINE": "a b"}
    _, heard = await run(CommandSpec(("env",), env, Path("/")))
    assert sorted(heard.lines()) == sorted(f"{name}={value}" for name, value in env.items())


async def test_a_large_environment_arrives_whole() -> None:
    env = base_env() | {f"VARIABLE_{number}": "x" * 1000 for number in range(1000)}
    _, heard = await run(spec("env", env=env))
    assert len(heard.all) == len(env)


async def test_the_arguments_are_exactly_those_given() -> None:
    arguments = ["", " ", "é", "*", "a'b\"c", "$HOME", "two\nlines", "-c"]
    _, heard = await run(python("import sys; print(ascii(sys.argv[1:]))", *arguments))
    assert heard.lines() == [ascii(arguments)]


async def test_it_runs_in_its_directory_and_relative_commands_are_found_there(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\npwd\n")
    program.chmod(0o755)
    _, heard = await run(spec("./program", cwd=tmp_path))
    assert heard.lines() == [str(tmp_path)]


async def test_no_secret_is_in_what_ps_and_proc_show_of_the_supervisor() -> None:
    async with running(shell(f"{SLEEPER} # {SECRET}", TOKEN=SECRET)) as (command, _):
        supervisor = Path(f"/proc/{parent_of(command.pid)}")
        assert b"supervisor" in (supervisor / "cmdline").read_bytes()
        assert SECRET.encode() not in (supervisor / "cmdline").read_bytes() + (supervisor / "environ").read_bytes()


async def test_no_connection_of_the_workers_leaks_into_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.set_inheritable(True)
        code = (
            "import os\nfor fd in range(1024):\n try: print(fd, os.readlink(f'/proc/self/fd/{fd}'))\n except OSError: 0"
        )
        _, heard = await run(python(code))
    opened = dict(line.split(maxsplit=1) for line in heard.lines())
    assert opened.keys() == {"0", "1", "2"}
    assert opened["0"] == "/dev/null"
    assert opened["1"] != opened["2"]


async def test_it_starts_with_default_signals_whatever_the_worker_ignores() -> None:
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    try:
        _, heard = await run(spec("grep", "Sig...:", "/proc/self/status"))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        signal.signal(signal.SIGHUP, before)
    masks = dict(line.split() for line in heard.lines())
    # Signals 32 and 33 are glibc's own: no program can set or see them through its API.
    ours = ~(1 << 31 | 1 << 32)
    assert int(masks["SigIgn:"], 16) & ours == int(masks["SigBlk:"], 16) & ours == 0


async def test_it_leads_a_session_of_its_own() -> None:
    _, heard = await run(python("import os; print(os.getpid() == os.getsid(0) == os.getpgrp())"))
    assert heard.lines() == ["True"]


# -- where and how fast -----------------------------------------------------------------------------------------------


def test_it_runs_from_the_loop_of_any_thread() -> None:
    exits: list[CommandExit] = []

    def work() -> None:
        exits.append(asyncio.run(run(shell("exit 3")))[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert exits == [CommandExit(code=3)] * 4


async def test_many_run_side_by_side() -> None:
    results = await asyncio.gather(*(run(shell(f"echo {number}; exit {number}"), 60) for number in range(20)))
    assert [(exit_.code, heard.lines()) for exit_, heard in results] == [(n, [str(n)]) for n in range(20)]


async def bare_interpreter_s() -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", "pass")
    await process.wait()
    return loop.time() - began


async def latencies_s() -> tuple[float, float]:
    """Seconds that a start takes, and a signal until the command's end is known."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with running(shell(f"echo ready; {SLEEPER}")) as (command, heard):
        start_s = loop.time() - began
        await heard.line("ready")
        began = loop.time()
        command.send_signal(signal.SIGUSR1)
        assert await command.wait() == CommandExit(signal=signal.SIGUSR1)
        return start_s, loop.time() - began


async def test_starting_and_signalling_take_no_time_worth_mentioning() -> None:
    start_s = signal_s = bare_s = float("inf")
    # The best of a few, and no more than a few bare interpreters take: other tests share the machine.
    for _ in range(20):
        bare_s = min(bare_s, await bare_interpreter_s())
        start, signalled = await latencies_s()
        start_s, signal_s = min(start_s, start), min(signal_s, signalled)
        if start_s < max(0.06, 3 * bare_s) and signal_s < max(0.1, 3 * bare_s):
            return
    pytest.fail(f"start {start_s:.3f} s, signal {signal_s:.3f} s, a bare interpreter {bare_s:.3f} s")


async def test_waiting_for_it_costs_nothing() -> None:
    async with running(spec("sleep", "60")) as (command, _):
        status = Path(f"/proc/{parent_of(command.pid)}/status")

        def wake_ups() -> str:
            return next(line for line in status.read_text().splitlines() if line.startswith("voluntary_ctxt"))

        async def woken_within(seconds: float) -> bool:
            before = wake_ups()
            await asyncio.sleep(seconds)
            return wake_ups() != before

        async with asyncio.timeout(10):
            while await woken_within(0.05):  # it is still on its way to sleep
                pass
        assert not await woken_within(0.5)


async def test_a_loop_that_ends_takes_its_commands_along() -> None:
    heard = Heard()

    async def forgetful() -> int:
        command = await Command.start(shell(SLEEPER), heard)
        return command.pid

    pid = await asyncio.to_thread(lambda: asyncio.run(forgetful()))
    await until("the command is gone", lambda: not alive(pid))
