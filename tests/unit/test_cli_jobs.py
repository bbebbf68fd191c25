"""``kelpie get``, ``list``, ``wait``, ``cancel``, ``purge`` and ``schema``."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from kelpie_celery.bulk import Glance
from kelpie_celery.cli import wait as wait_module
from kelpie_celery.clock import SystemClock
from kelpie_celery.definition import json_schema
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture

CANARY = "canary-secret-value"

RECORD_FIELDS = {
    "id", "container_group_id", "name", "status", "phase", "priority", "created", "started", "ended", "heartbeat",
    "next_try", "attempt", "machine_id", "worker", "num_failures", "max_failures", "num_free",
    "num_interruptions", "num_heartbeats", "num_commits", "cancel_requested", "reason", "message", "progress",
    "transfer", "result", "definition", "committed",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "sleep", lambda _self, _seconds: None)


# -- get ---------------------------------------------------------------------------------------------------------


def test_get_shows_state_history_and_what_comes_next(cli: Cli) -> None:
    job_id = cli.submit(arguments=["--epochs", "3"], tags={"team": "x"})
    facts = {"exit_code": 3}
    cli.end(job_id, Outcome.FAILURE, "machine-1", final=False, delay_s=60.0, message="exit code 3", facts=facts)
    answer = cli("get", job_id)
    assert answer.code == 0
    for words in (job_id, "pending", "true --epochs 3", "team=x", "machine-1", "failure", "exit_code", "exit code 3"):
        assert words in answer.out, words
    assert "next try" in answer.out


def test_get_of_a_running_job_shows_what_it_said_last(cli: Cli) -> None:
    job_id = cli.submit()
    said = json.dumps({"progress": 0.42, "message": "epoch 3"})
    cli.kelpie.app.ledger.renew(cli.claim(job_id), Phase.EXECUTING, said)
    answer = cli("get", job_id)
    assert "running (executing), attempt 1 on m" in answer.out
    assert "42 %: epoch 3" in answer.out


def test_get_of_a_running_job_shows_the_transfer_under_way_in_words(cli: Cli) -> None:
    job_id = cli.submit()
    token = cli.claim(job_id)
    transfer = {"stage": "restore", "done_bytes": 3 << 29, "total_bytes": 3 << 30, "rate_bytes_s": 5e7, "left_s": 32.2}
    cli.kelpie.app.ledger.renew(token, Phase.RESTORING, transfer=json.dumps(transfer))
    assert "restore: 1.5 GiB of 3.0 GiB, 47.7 MiB/s, 32 s left" in cli("get", job_id).out
    assert cli("get", job_id, "--json").document["transfer"] == transfer
    cli.kelpie.app.ledger.renew(token, Phase.EXECUTING, transfer='{"stage":"commit","done_bytes":512}')
    assert "commit: 512 B\n" in "".join(line.rstrip() + "\n" for line in cli("get", job_id).out.splitlines())
    cli.kelpie.app.ledger.renew(token, Phase.EXECUTING, transfer="{}")
    assert "transfer" not in cli("get", job_id).out
    assert cli("get", job_id, "--json").document["transfer"] is None


def test_get_of_a_completed_job_shows_its_result(cli: Cli) -> None:
    job_id = cli.submit()
    cli.end(job_id, result={"exit_code": 0, "loss": float("nan")})
    assert "result" in cli("get", job_id).out
    assert cli("get", job_id, "--json").document["result"] == {"exit_code": 0, "loss": None}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_secrets_of_a_job_are_masked_always(cli: Cli, options: list[str]) -> None:
    job_id = cli.submit(environment={"TOKEN": CANARY}, webhook=f"https://u:{CANARY}@h.example/{CANARY}?t={CANARY}")
    for command in (["get", job_id], ["list"], ["wait", job_id, "--timeout", "0"]):
        answer = cli(*command, *options)
        assert CANARY not in answer.out + answer.err
    assert "TOKEN" in cli("get", job_id, *options).out


def test_get_json_has_the_documented_fields(cli: Cli) -> None:
    job_id = cli.submit()
    cli.end(job_id, Outcome.INTERRUPTION, reason=Reason.LEASE_EXPIRED, final=False)
    document = cli("get", job_id, "--json").document
    assert set(document) == RECORD_FIELDS | {"attempts"}
    assert document["created"].endswith("Z")
    attempt = document["attempts"][0]
    assert (attempt["n"], attempt["machine"], attempt["outcome"]) == (1, "m", "interruption")
    assert attempt["ended"].endswith("Z")
    assert "nonce" not in attempt


# -- list --------------------------------------------------------------------------------------------------------


def test_list_shows_the_newest_first_with_whole_ids(cli: Cli) -> None:
    ids = [cli.submit(container_group_id=group) for group in ("a", "b")]
    lines = [line.split()[0] for line in cli("list").out.splitlines() if line.split() and line.split()[0] in ids]
    assert lines == ids[::-1]


def test_list_is_limited_by_group_status_and_number(cli: Cli) -> None:
    first, second, other = cli.submit(), cli.submit(), cli.submit(container_group_id="other")
    cli.end(first)

    def ids(*options: str) -> list[str]:
        return [record["id"] for record in cli("list", "--json", *options).document]

    assert ids("--group", "g") == [second, first]
    assert ids("--status", "completed") == [first]
    assert ids("--limit", "1") == [other]
    assert ids("--oldest-first", "--limit", "1") == [first]


def test_list_json_has_the_documented_fields(cli: Cli) -> None:
    cli.submit()
    assert set(cli("list", "--json").document[0]) == RECORD_FIELDS


def test_list_says_when_there_is_nothing_and_when_a_group_may_be_misspelt(cli: Cli) -> None:
    assert "no such jobs" in cli("list").err
    cli.submit(container_group_id="training")
    answer = cli("list", "--group", "trainin", "--json")
    assert answer.document == []
    assert "did you mean 'training'" in answer.err


def test_list_says_when_it_may_not_be_all(cli: Cli) -> None:
    cli.submit()
    assert "--limit shows more" in cli("list", "--limit", "1").err


# -- wait --------------------------------------------------------------------------------------------------------


def test_wait_is_zero_only_when_all_completed(cli: Cli) -> None:
    done, failed, canceled = cli.submit(), cli.submit(), cli.submit()
    cli.end(done)
    cli.end(failed, Outcome.FAILURE)
    cli.kelpie.cancel(canceled)
    assert cli("wait", done).code == 0
    answer = cli("wait", done, failed, done)
    assert answer.code == 1
    assert [line.split()[0] for line in answer.out.splitlines()] == [done, failed]
    assert "exit_code: exit code 1" in answer.out
    assert cli("wait", canceled).code == 1


def test_wait_is_124_when_the_time_is_over_and_prints_how_the_jobs_stand(cli: Cli) -> None:
    done, open_ = cli.submit(), cli.submit()
    cli.end(done)
    answer = cli("wait", done, open_, "--timeout", "0", "--json")
    assert answer.code == 124
    assert [record["status"] for record in answer.document] == ["completed", "pending"]
    assert f"kelpie: error: 1 job has not ended within 0 s: {open_} (pending)" in answer.err


def test_wait_needs_an_id(cli: Cli) -> None:
    assert cli("wait").code == 2


@pytest.mark.parametrize("timeout", ["soon", "-1", "1w", ""])
def test_a_wrong_duration_is_refused(cli: Cli, timeout: str) -> None:
    answer = cli("wait", "x", "--timeout", timeout)
    assert answer.code == 2
    assert "is no duration" in answer.err


def test_without_a_terminal_each_change_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    pending = Glance("a", Status.PENDING)
    running = Glance("a", Status.RUNNING, Phase.EXECUTING, 1, "m")
    further = Glance("a", Status.RUNNING, Phase.EXECUTING, 1, "m", progress=0.5)
    with wait_module.display(1) as show:
        for glance in (pending, pending, running, further, Glance("a", Status.COMPLETED)):
            show([glance])
    assert capsys.readouterr().err.splitlines() == [
        "a pending",
        "a running (executing), attempt 1 on m",
        "a completed",
    ]


def test_the_picture_counts_all_and_shows_the_running_ones_first() -> None:
    glances = [Glance(str(n), Status.PENDING) for n in range(30)]
    glances += [Glance("r", Status.RUNNING, Phase.EXECUTING, 1, "m"), Glance("c", Status.COMPLETED)]
    lines = [str(line) for line in wait_module.picture(glances).renderables]
    assert lines[0] == "30 pending, 1 running, 1 completed"
    assert lines[1].startswith("r running")
    assert lines[-1] == "and 11 more"


# -- cancel and purge --------------------------------------------------------------------------------------------


def test_cancel_tells_what_became_of_each_job(cli: Cli) -> None:
    pending, running, done = cli.submit(), cli.submit(), cli.submit()
    cli.claim(running)
    cli.end(done)
    answer = cli("cancel", pending, running, done)
    assert answer.code == 0
    assert answer.out.splitlines() == [f"{pending} canceled", f"{running} canceling", f"{done} completed"]


def test_an_unknown_id_does_not_keep_the_others_from_being_canceled(cli: Cli) -> None:
    job_id = cli.submit()
    answer = cli("cancel", "nonesuch", job_id, "--json")
    assert answer.code == 2
    assert answer.document == [{"id": job_id, "status": "canceled"}]
    assert "nonesuch" in answer.err


def test_purge_cancels_a_group(cli: Cli) -> None:
    cli.submit()
    cli.claim(cli.submit())
    cli.submit(container_group_id="other")
    answer = cli("purge", "--group", "g", "--yes", "--json")
    assert answer.document == {"container_group_id": "g", "canceled": 1, "canceling": 1}
    assert cli("purge", "--group", "g", "--status", "pending", "--yes").out == "0 canceled, 0 canceling\n"


def test_purge_asks_nobody_who_is_not_there(cli: Cli) -> None:
    job_id = cli.submit()
    answer = cli("purge", "--group", "g")
    assert answer.code == 2
    assert "--yes" in answer.err
    assert cli.kelpie.get(job_id).status is Status.PENDING


def test_purge_needs_a_group(cli: Cli) -> None:
    assert "--group" in cli("purge", "--yes").err


def test_purge_of_an_unknown_group_says_so(cli: Cli) -> None:
    cli.submit(container_group_id="training")
    assert "did you mean 'training'" in cli("purge", "--group", "trainings", "--yes").err


@pytest.mark.parametrize(
    ("reply", "code", "status"), [("y\n", 0, "canceled"), ("n\n", 1, "pending"), ("", 2, "pending")]
)
def test_purge_asks_on_a_terminal(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, reply: str, code: int, status: str
) -> None:
    job_id = cli.submit()
    asked: list[str] = []
    monkeypatch.setattr("kelpie_celery.cli._asking._is_terminal", lambda: True)

    def ask(question: str) -> str:
        asked.append(question)
        if not reply:
            raise EOFError
        return reply.strip()

    monkeypatch.setattr("click.termui.visible_prompt_func", ask)
    answer = cli("purge", "--group", "g")
    assert answer.code == code
    assert cli.kelpie.get(job_id).status == status


# -- schema ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_schema_prints_the_schema(cli: Cli, options: list[str]) -> None:
    assert cli("schema", *options).document == json_schema()


def test_output_is_ascii_where_a_program_reads_it(cli: Cli) -> None:
    cli.submit(tags={"name": "Größe \u202e"})
    assert cli("list", "--json").out.isascii()


def test_stdout_that_cannot_show_a_letter_is_no_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    reconfigured: list[Any] = []

    class Out:
        encoding = "ascii"

        def reconfigure(self, **options: Any) -> None:
            reconfigured.append(options)

        def write(self, text: str) -> int:
            return len(text)

        def flush(self) -> None:
            return None

    monkeypatch.setattr(sys, "stdout", Out())
    cli("schema")
    assert reconfigured == [{"errors": "backslashreplace"}]
