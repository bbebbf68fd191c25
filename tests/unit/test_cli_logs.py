"""``kelpie logs`` against a Redis in memory: what is shown, followed and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger import keys
from kelpie_celery.ledger import ledger as ledger_module
from kelpie_celery.ledger.output import OutputNow
from kelpie_celery.ledger.types import Ending, FencingToken, NewOutput
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from tests.unit.cli_harness import Cli, cli  # noqa: F401 - a fixture

# ruff: noqa: F811 - fixtures are imported by name


def tell(cli: Cli, token: FencingToken, *lines: str, last: int) -> None:
    cli.kelpie.app.ledger.renew(token, Phase.EXECUTING, output=NewOutput(lines, last, len(lines)))


def end(cli: Cli, token: FencingToken, outcome: Outcome, **more: Any) -> None:
    cli.kelpie.app.ledger.end_attempt(token, Ending(outcome, Reason.EXIT_CODE, **more))


def test_the_last_lines_are_shown_and_nothing_in_them_drives_the_terminal(cli: Cli) -> None:
    job_id = cli.submit()
    token = cli.claim(job_id)
    tell(cli, token, "one", "\x1b[31mtwo\x1b[0m\x07", "x" * 5000, last=9)

    answer = cli("logs", job_id)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == ["one", "two\N{REPLACEMENT CHARACTER}", "x" * 2000 + " [3000 more characters]"]

    document = cli("logs", job_id, "--json").document
    assert {name: document[name] for name in ("id", "status", "attempt", "first_line")} == {
        "id": job_id, "status": "running", "attempt": 1, "first_line": 7,
    }  # fmt: skip
    assert document["lines"][0] == "one"
    assert cli.kelpie.logs(job_id).lines[0] == "one"


def test_a_job_that_wrote_nothing_is_told_on_stderr(cli: Cli) -> None:
    job_id = cli.submit()
    answer = cli("logs", job_id)
    assert (answer.code, answer.out) == (0, "")
    assert "has written nothing yet" in answer.err
    cli.end(job_id)
    assert "wrote nothing" in cli("logs", job_id).err
    assert cli("logs", "nope").code == 2


def test_of_an_earlier_attempt_only_what_its_failure_left_is_shown(cli: Cli) -> None:
    job_id = cli.submit()
    token = cli.claim(job_id)
    tell(cli, token, "one", last=1)
    end(cli, token, Outcome.FAILURE, facts={"output_tail": ["one"], "log": "s3://b/p/1-n.log"})
    second = cli.claim(job_id, "m2")
    tell(cli, second, "two", last=1)
    end(cli, second, Outcome.INTERRUPTION)
    third = cli.claim(job_id, "m3")
    tell(cli, third, "three", last=1)

    assert cli("logs", job_id).out == "three\n"
    assert cli("logs", job_id, "--attempt", "3").out == "three\n"
    assert cli("logs", job_id, "--attempt", "1").out == "one\n"
    answer = cli("logs", job_id, "--attempt", "2")
    assert (answer.code, answer.out) == (2, "")
    assert "no lines are kept of attempt 2" in answer.err
    answer = cli("logs", job_id, "--attempt", "4")
    assert answer.code == 2
    assert "has no attempt 4 in its history: it had 1 to 3" in answer.err


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (["-f", "--whole"], "leave --whole and --attempt out"),
        (["-f", "--attempt", "1"], "leave --whole and --attempt out"),
        (["-o", "x"], "add --whole"),
        (["--whole", "--json"], "name one with -o"),
        (["--attempt", "0"], "0 is not in the range"),
    ],
)
def test_options_that_do_not_go_together_are_refused(cli: Cli, argv: list[str], rule: str) -> None:
    answer = cli("logs", "some-job", *argv)
    assert (answer.code, answer.out) == (2, "")
    assert rule in answer.err


def test_why_no_whole_log_is_there_is_told(cli: Cli) -> None:
    job_id = cli.submit()
    assert "the job names no log_bucket" in cli("logs", "--whole", job_id).err
    token = cli.claim(job_id)
    assert "stored when the attempt ends" in cli("logs", "--whole", job_id).err
    end(cli, token, Outcome.COMPLETED, facts={"log_failed": "s3://b/k: access denied"}, result={})
    answer = cli("logs", "--whole", job_id)
    assert answer.code == 2
    assert "storing it failed: s3://b/k: access denied" in answer.err


class Script:
    """What a follower sees, look by look; what a look does beforehand comes with it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], None] | Exception) -> None:
        self._steps = list(steps)
        self._real = ledger_module.Ledger.output
        script = self

        def output(ledger: Any, job_id: str) -> OutputNow:
            return script._look(ledger, job_id)

        monkeypatch.setattr(ledger_module.Ledger, "output", output)
        monkeypatch.setattr(SystemClock, "sleep", lambda *_: None)

    def _look(self, ledger: Any, job_id: str) -> OutputNow:
        if self._steps:
            step = self._steps.pop(0)
            if isinstance(step, Exception):
                raise step
            step()
        return self._real(ledger, job_id)


def away() -> LedgerUnavailable:
    error = LedgerUnavailable("away")
    error.__cause__ = RedisConnectionError("refused")
    return error


def test_following_tells_of_attempts_of_what_was_missed_and_sits_an_outage_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = cli.submit()
    first: list[FencingToken] = []
    ledger = cli.kelpie.app.ledger

    def runs() -> None:
        first.append(cli.claim(job_id))
        tell(cli, first[0], "a1", "a2", last=2)

    def dies() -> None:
        end(cli, first[0], Outcome.INTERRUPTION, output=NewOutput(("a3",), 3, 3))

    def runs_again() -> None:
        first.append(cli.claim(job_id, "m2"))

    Script(
        monkeypatch, lambda: None, runs, lambda: tell(cli, first[0], "old", last=2), away(), away(), dies,
        runs_again,
        lambda: tell(cli, first[1], "b5", "b6", last=6),
        lambda: end(cli, first[1], Outcome.COMPLETED, result={}, output=NewOutput(("b7",), 7, 3)),
    )  # fmt: skip
    answer = cli("logs", "-f", job_id)
    assert answer.code == 0
    assert answer.out.splitlines() == ["a1", "a2", "a3", "b5", "b6", "b7"]
    said = [line for line in answer.err.splitlines() if line.startswith("kelpie: ")]
    assert said == [
        "kelpie: the job is pending; waiting for it to run",
        "kelpie: attempt 1 on m",
        "kelpie: the job is pending, after attempt 1; waiting for it to run",
        "kelpie: attempt 2 on m2",
        "kelpie: 4 lines are left out here: they came faster than a worker tells of them",
        f"kelpie: job {job_id} has ended: completed",
    ]
    assert answer.err.count("Redis is away") == answer.err.count("Redis is back") == 1
    assert ledger.redis.exists(keys.output("g", job_id))


def test_followed_lines_are_json_lines_where_that_is_asked_for(cli: Cli) -> None:
    job_id = cli.submit()
    token = cli.claim(job_id)
    end(cli, token, Outcome.COMPLETED, result={}, output=NewOutput(("ä", "\x1b[2J"), 2, 2))
    rows = [json.loads(line) for line in cli("logs", "-f", "--json", job_id).out.splitlines()]
    assert rows == [
        {"attempt": 1, "line": 1, "text": "ä"},
        {"attempt": 1, "line": 2, "text": "\x1b[2J"},
    ]
