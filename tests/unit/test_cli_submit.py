"""``kelpie submit``: the forms of a file, what is printed, what happens when not all could be submitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.batches import NotAllSubmitted
from kelpie_celery.cli import _files
from kelpie_celery.client import Kelpie
from kelpie_celery.errors import DefinitionError, LedgerUnavailable
from kelpie_celery.lifecycle import Outcome, Status
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture

ONE = {"command": "true", "container_group_id": "g", "sync": {}}


def named(*names: str) -> list[dict[str, Any]]:
    return [{**ONE, "tags": {"name": name}} for name in names]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(named("a", "b")),
        json.dumps(named("a", "b"), indent=2),
        "\n".join(map(json.dumps, named("a", "b"))),
        "\n\n  " + "\r\n\r\n".join(map(json.dumps, named("a", "b"))) + "\n\n",
        "\ufeff" + "\n".join(map(json.dumps, named("a", "b"))),
    ],
    ids=["array", "pretty array", "lines", "lines with blanks", "with a byte order mark"],
)
def test_many_definitions_are_read_in_every_form(cli: Cli, text: str) -> None:
    answer = cli("submit", "-", stdin=text)
    assert answer.code == 0
    ids = answer.out.split()
    assert [record.name for record in cli.kelpie.get_many(ids)] == ["a", "b"]


@pytest.mark.parametrize("text", [json.dumps(ONE), json.dumps(ONE, indent=2), "  " + json.dumps(ONE) + "\n"])
def test_one_definition_is_read_whatever_its_white_space(cli: Cli, text: str) -> None:
    answer = cli("submit", "-", stdin=text)
    assert len(answer.out.split()) == 1


def test_a_file_is_read(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(ONE))
    assert cli("submit", str(path)).code == 0


def test_a_file_that_does_not_exist_is_named(cli: Cli) -> None:
    answer = cli("submit", "/nonesuch/job.json")
    assert answer.code == 2
    assert "/nonesuch/job.json" in answer.err


def test_a_directory_in_place_of_a_file_is_a_users_error(cli: Cli, tmp_path: Path) -> None:
    assert cli("submit", str(tmp_path)).code == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least one job definition"),
        ("[]", "at least one job definition"),
        ("{", "is not valid JSON"),
        ("nonsense", "is not valid JSON"),
        ('{"command": "a"', "is not valid JSON"),
        (json.dumps(ONE) + "\n{broken\n", "line 2: definition: is not valid JSON"),
        (json.dumps(ONE) + "\n\n" + json.dumps({**ONE, "comand": 1}), "line 3: comand: is not a field"),
        (json.dumps([ONE, {**ONE, "max_failures": 0}]), "[1].max_failures: must be at least 1"),
        (json.dumps({**ONE, "max_failures": 0}), "refused: max_failures: must be at least 1"),
        ("3", "must be an object"),
        ('[3, "x"]', "[0].definition: must be an object"),
    ],
)
def test_a_fault_is_told_with_its_place_and_nothing_is_submitted(cli: Cli, text: str, words: str) -> None:
    answer = cli("submit", "-", stdin=text)
    assert answer.code == 2
    assert words in answer.err
    assert answer.err.count("\n") == 1
    assert cli.kelpie.list() == []


def test_input_that_is_not_utf8_is_a_users_error(cli: Cli) -> None:
    assert "UTF-8" in cli("submit", "-", stdin=b"\xff\xfe{}").err


def test_a_value_of_the_environment_is_in_no_error(cli: Cli) -> None:
    faulty = {**ONE, "environment": {"TOKEN": "canary-secret", "N": 3}, "enviroment": {"A": "canary-secret"}}
    answer = cli("submit", "-", stdin=json.dumps(faulty))
    assert answer.code == 2
    assert "canary-secret" not in answer.err


def test_the_group_replaces_that_of_every_definition(cli: Cli) -> None:
    bare = {"command": "true", "sync": {}}
    ids = cli("submit", "-", "--group", "other", stdin=json.dumps([ONE, bare])).out.split()
    assert {record.container_group_id for record in cli.kelpie.get_many(ids)} == {"other"}


def test_a_job_that_existed_already_is_printed_and_said(cli: Cli) -> None:
    text = json.dumps({**ONE, "idempotency_key": "k"})
    first, second = cli("submit", "-", stdin=text), cli("submit", "-", "--json", stdin=text)
    assert second.document == [{"id": first.out.strip(), "created": False}]
    assert "existed already" in second.err


def test_json_is_one_document(cli: Cli) -> None:
    answer = cli("submit", "-", "--json", stdin=json.dumps(named("a", "b")))
    assert [entry["created"] for entry in answer.document] == [True, True]
    assert answer.err == ""


def test_what_was_submitted_is_printed_when_a_key_is_taken(cli: Cli) -> None:
    cli("submit", "-", stdin=json.dumps({**ONE, "idempotency_key": "k"}))
    taken = {**ONE, "idempotency_key": "k", "arguments": ["other"]}
    answer = cli("submit", "-", stdin=json.dumps([ONE, taken]))
    assert answer.code == 2
    assert len(answer.out.split()) == 1
    assert "1 of 2 jobs were submitted" in answer.err


def test_what_was_submitted_is_printed_when_redis_goes_away(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Kelpie, _definitions: Any, _progress: Any = None) -> Any:
        job = self.submit(ONE)
        raise NotAllSubmitted("1 of 2 jobs were submitted", [job, None], {}, ["x"]) from LedgerUnavailable("away")

    monkeypatch.setattr(Kelpie, "submit_many", half)
    answer = cli("submit", "-", "--json", stdin=json.dumps([ONE, ONE]))
    assert answer.code == 69
    assert len(answer.document) == 1


def test_wait_prints_the_ids_and_then_the_endings(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    end_when_waited_for(cli, monkeypatch, Outcome.COMPLETED)
    answer = cli("submit", "-", "--wait", stdin=json.dumps(ONE))
    assert answer.code == 0
    job_id, ending = answer.out.splitlines()
    assert ending.startswith(f"{job_id} completed")


def test_wait_with_json_is_one_document(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    end_when_waited_for(cli, monkeypatch, Outcome.FAILURE)
    answer = cli("submit", "-", "--wait", "--json", stdin=json.dumps(ONE))
    assert answer.code == 1
    assert answer.document[0]["status"] == "failed"


def end_when_waited_for(cli: Cli, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> None:
    real = Kelpie.wait

    def wait(self: Kelpie, jobs: Any, *args: Any, **kwargs: Any) -> Any:
        for job_id in jobs:
            cli.end(job_id, outcome)
        return real(self, jobs, *args, **kwargs)

    monkeypatch.setattr(Kelpie, "wait", wait)


def test_a_time_out_needs_wait(cli: Cli) -> None:
    assert "--timeout needs --wait" in cli("submit", "-", "--timeout", "3", stdin=json.dumps(ONE)).err


def test_too_large_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(DefinitionError, match="at most 10 bytes"):
        _files.read_definitions(b" " * 11)


def test_jobs_are_pending_after_their_submission(cli: Cli) -> None:
    (job_id,) = cli("submit", "-", stdin=json.dumps(ONE)).out.split()
    assert cli.kelpie.get(job_id).status is Status.PENDING
