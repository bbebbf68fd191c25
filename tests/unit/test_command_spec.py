"""What is handed to the supervisor, and what its errors mean."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kelpie_celery.errors import CommandError
from kelpie_worker.command.spec import CommandExit, CommandSpec, start_error
from kelpie_worker.command.supervisor import descendants

SECRET = "hunter2-canary"


def spec(*argv: str, env: dict[str, str] | None = None, cwd: str = "/") -> CommandSpec:
    return CommandSpec(argv, env or {}, Path(cwd))


def test_a_spec_is_framed_by_its_length_and_nuls() -> None:
    raw = spec("run", "", "ü", env={"A": "b=c", "EMPTY": ""}, cwd="/w").encoded()
    assert int.from_bytes(raw[:4], "big") == len(raw) - 4
    assert raw[4:].split(b"\0") == [b"/w", b"3", b"run", b"", "ü".encode(), b"A=b=c", b"EMPTY="]


def test_bytes_that_are_not_utf_8_pass_unchanged() -> None:
    assert spec("x", env={"A": b"\xff".decode("utf-8", "surrogateescape")}).encoded().endswith(b"A=\xff")


@pytest.mark.parametrize(
    "bad",
    [
        spec("x", env={"A=B": SECRET}),
        spec("x", env={"": SECRET}),
        spec("x", env={"A": SECRET + "\0"}),
        spec("x", "a\0b", env={"A": SECRET}),
        spec("x", env={"A": SECRET}, cwd="/a\0"),
    ],
)
def test_what_no_process_can_be_given_is_refused_without_showing_a_value(bad: CommandSpec) -> None:
    with pytest.raises(CommandError) as refused:
        bad.encoded()
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("argv", [(), ("",)])
def test_an_empty_command_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(CommandError, match="name a program") as refused:
        spec(*argv).encoded()
    assert refused.value.reason == "not_found"


def test_the_environment_is_not_in_the_repr() -> None:
    assert SECRET not in repr(spec("x", env={"A": SECRET}))


def test_a_command_line_in_one_string_is_explained() -> None:
    error = start_error("command", errno.ENOENT, spec("no-such-program --flag", env={"PATH": "/nowhere"}))
    assert isinstance(error, CommandError)
    assert error.reason == "not_found"
    assert "'arguments'" in str(error)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
@pytest.mark.parametrize("stage", ["start", "command"])
def test_a_machine_that_is_short_of_something_is_no_error_of_the_users(stage: str, number: int) -> None:
    error = start_error(stage, number, spec("x"))
    assert isinstance(error, OSError)
    assert error.errno == number
    assert os.strerror(number) in str(error)


def test_only_code_0_is_ok() -> None:
    assert CommandExit(code=0).ok
    assert not CommandExit(code=1).ok
    assert not CommandExit(signal=9).ok


def test_the_tree_is_found_whatever_its_groups_and_sessions() -> None:
    table = {1: (0, 1, 1), 10: (1, 10, 10), 20: (10, 20, 20), 21: (20, 20, 20), 22: (21, 22, 22), 30: (1, 30, 30)}
    assert sorted(descendants(10, table)) == [20, 21, 22]
    assert descendants(30, table) == []
