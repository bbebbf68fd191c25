"""However the command line is called and whatever goes wrong: one line, the right exit code, no traceback."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import exceptions as redis_errors

from kelpie_celery import cli as cli_module
from kelpie_celery.cli import COMMANDS, Commands, _errors
from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import DefinitionError, JobNotFound, LedgerUnavailable
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "sleep", lambda _self, _seconds: None)


def test_help_lists_every_command_with_its_own_words(cli: Cli) -> None:
    answer = cli("--help")
    assert answer.code == 0
    for name, (_, words) in COMMANDS.items():
        assert name in answer.out
        assert words in answer.out
        command = Commands("kelpie").get_command(click.Context(click.Command("x")), name)
        assert command is not None
        assert command.get_short_help_str(100) == words
        assert command.name == name


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    assert cli().out == cli("--help").out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(cli: Cli, name: str) -> None:
    answer = cli(name, "--help")
    assert answer.code == 0
    assert answer.out.startswith("Usage: kelpie " + name)


def test_the_version_is_shown(cli: Cli) -> None:
    assert cli("--version").out.startswith("kelpie-celery 0.")


def test_a_misspelt_command_is_told_with_the_one_that_was_meant(cli: Cli) -> None:
    answer = cli("sumbit", "x")
    assert answer.code == 2
    assert answer.err == "kelpie: error: no such command: 'sumbit'; did you mean 'submit'? (try 'kelpie --help')\n"


def test_a_misspelt_option_is_told_with_the_one_that_was_meant(cli: Cli) -> None:
    answer = cli("list", "--satus", "failed")
    assert answer.code == 2
    assert "'--status'" in answer.err
    assert answer.err.count("\n") == 1


def test_an_unknown_job_is_a_users_error(cli: Cli) -> None:
    answer = cli("get", "nonesuch")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "kelpie: error: no job has the id 'nonesuch'; 'kelpie list' shows the ids that exist\n"


def test_no_redis_is_a_users_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KELPIE_REDIS_URL")
    answer = cli("list")
    assert answer.code == 2
    assert "KELPIE_REDIS_URL" in answer.err


def test_redis_away_has_its_own_exit_code_and_the_password_is_not_shown(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> Any:
        raise redis_errors.ConnectionError("Error 111 connecting to redis.example:6379. Connection refused.")

    monkeypatch.setattr("kelpie_celery.ledger.ledger.Ledger.groups", refuse)
    monkeypatch.setattr("kelpie_celery._calls.LONGEST_PAUSE_S", 10)
    ticks = iter(range(1000))
    monkeypatch.setattr(SystemClock, "boottime", lambda _self: float(next(ticks)))
    answer = cli("list")
    assert (answer.code, answer.out) == (69, "")
    error = answer.err.splitlines()[-1]
    assert error.startswith("kelpie: error: could not list the jobs: Redis at rediss://redis.example:6379/0 cannot be")
    assert "the-password" not in answer.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DefinitionError([("command", "nothing", "is required")]), 2),
        (JobNotFound("no such job"), 2),
        (LedgerUnavailable("away"), 69),
        (click.UsageError("wrong"), 2),
        (KeyboardInterrupt(), 130),
        (click.exceptions.Abort(), 130),
        (SystemExit(3), 3),
        (RuntimeError("secret words"), 70),
        (RecursionError(), 70),
    ],
)
def test_every_error_has_its_exit_code_and_at_most_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail() -> None:
        raise error

    assert _errors.guarded(fail) == code
    err = capsys.readouterr().err
    assert err.count("\n") <= 1
    assert err == "" or err.startswith("kelpie: error: ")
    assert "secret words" not in err


def test_the_traceback_of_our_own_fault_is_shown_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KELPIE_LOG_LEVEL", "debug")

    def fail() -> None:
        raise RuntimeError

    _errors.guarded(fail)
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_who_goes_away_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BrokenPipeError

    assert _errors.guarded(fail) == 1
    assert capsys.readouterr().err == ""


def test_the_entry_point_exits_with_the_code(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setattr(sys, "argv", ["kelpie", "get", "nonesuch"])
    with pytest.raises(SystemExit) as caught:
        cli_module.main()
    assert caught.value.code == 2


def test_the_log_level_of_the_settings_counts(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("list")
    assert logging.getLogger().level == logging.WARNING
    monkeypatch.setenv("KELPIE_LOG_LEVEL", "error")
    cli("list")
    assert logging.getLogger().level == logging.ERROR


WORDS = st.one_of(
    st.sampled_from([
        *COMMANDS, "--json", "--group", "--status", "--limit", "--timeout", "--yes", "--wait", "--redis-url", "--help",
        "rollback", "gc", "-o", "s3://bkt/p", "--delete", "-", "--", "-1", "0", "failed", "1e999", "nan", "redis://",
        "redis://x:99999/0", "unix://", "@nope", "..", "\x00",
    ]),
    st.text(max_size=12),
    st.binary(max_size=6).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)  # fmt: skip


# Half of them get past the name of the command.
ARGV = st.lists(WORDS, max_size=6) | st.builds(
    lambda name, rest: [name, *rest], st.sampled_from(list(COMMANDS)), st.lists(WORDS, max_size=6)
)


@given(argv=ARGV, stdin=st.one_of(st.binary(max_size=60), st.text(max_size=60)))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_arguments_and_no_input_lead_to_a_traceback(cli: Cli, argv: list[str], stdin: str | bytes) -> None:
    _never_start_servers(argv)
    if "watch" in argv:
        argv.append("--once")  # else it never ends
        if "--" in argv:
            return
    answer = cli(*argv, stdin=stdin if isinstance(stdin, bytes) else stdin.encode("utf-8", "replace"))
    assert answer.code in (0, 1, 2, 69, 124), answer
    assert "Traceback" not in answer.err + answer.out
    if answer.code in (2, 69):
        assert answer.err.splitlines()[-1].startswith("kelpie: error: ")


def _never_start_servers(argv: list[str]) -> None:
    argv[:] = ["list" if word in {"up", "salad-sim", "verify", "doctor"} else word for word in argv]


@pytest.mark.parametrize("arguments", [["--group", "a b"], ["--redis-url", "http://x"], ["--workers", "-1"]])
def test_up_refuses_what_is_wrong_before_anything_is_started(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("kelpie_celery.cli.up.run_up", lambda **options: started.append(options))
    assert cli("up", *arguments).code == 2
    assert started == []


def test_up_starts_the_local_stack(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []

    def start(**options: Any) -> int:
        started.append(options)
        return 1

    monkeypatch.setattr("kelpie_celery.cli.up.run_up", start)
    assert cli("up", "--workers", "3", "--no-s3", "--dir", "/tmp/x").code == 1
    assert started[0]["workers"] == 3
    assert started[0]["s3"] is False
    assert str(started[0]["directory"]) == "/tmp/x"
