"""``kelpie webhooks``, and the same from Python."""

from __future__ import annotations

import pytest

from kelpie_celery.cli.webhooks import WebhookCommands
from kelpie_celery.errors import WebhookNotFound, WebhookSent
from kelpie_celery.lifecycle import Status
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture

URL = "https://user:pw@hooks.example/secret-path?token=secret"
SHOWN = "https://***@hooks.example/***"


def ended(cli: Cli, *states: str, group: str = "g", error: str = "h answered 500") -> str:
    """A job that ran and completed, whose webhooks (running, completed) got these states."""
    job_id = cli.submit(webhook=URL, container_group_id=group)
    cli.end(job_id)
    ledger = cli.kelpie.app.ledger
    taken = {hook.status.value: hook for hook in ledger.take_webhooks(group, 10, 60.0)}
    for status, state in zip(("running", "completed"), states, strict=True):
        ledger.settle_webhook(taken[status], {"waiting": "again"}.get(state, state), delay_s=60, code=500, error=error)
    return job_id


def states(cli: Cli, job_id: str) -> dict[str, str]:
    return {hook.status.value: hook.told.state for hook in cli.kelpie.webhooks([job_id])}


def test_what_is_open_is_listed_without_the_url(cli: Cli) -> None:
    job_id = ended(cli, "waiting", "dead")
    ended(cli, "sent", "sent")
    answer = cli("webhooks", "list", "--json")
    assert answer.code == 0
    waiting, dead = answer.document
    assert [waiting["state"], dead["state"]] == ["waiting", "dead"]
    assert (dead["job_id"], dead["status"], dead["url"], dead["code"]) == (job_id, "completed", SHOWN, 500)
    assert (dead["tries"], dead["attempt"], dead["error"], dead["next_try"]) == (1, 1, "h answered 500", None)
    assert waiting["next_try"].endswith("Z")
    text = cli("webhooks", "list")
    assert job_id in text.out
    for part in ("secret", "pw"):
        assert part not in text.out + answer.out


def test_only_the_dead_or_one_groups_are_listed_when_asked_for(cli: Cli) -> None:
    one, other = ended(cli, "waiting", "dead"), ended(cli, "dead", "sent", group="other")
    assert [(row["job_id"], row["status"]) for row in cli("webhooks", "list", "--dead", "--json").document] == [
        (one, "completed"),
        (other, "running"),
    ]
    assert {row["job_id"] for row in cli("webhooks", "list", "--group", "other", "--json").document} == {other}
    assert len(cli("webhooks", "list", "--limit", "1", "--json").document) == 1


def test_of_named_jobs_the_sent_ones_are_listed_too(cli: Cli) -> None:
    job_id = ended(cli, "sent", "dead")
    rows = cli("webhooks", "list", job_id, "nonesuch", "--json").document
    assert [(row["status"], row["state"]) for row in rows] == [("running", "sent"), ("completed", "dead")]


def test_none_are_told(cli: Cli) -> None:
    answer = cli("webhooks", "list")
    assert (answer.code, answer.out) == (0, "")
    assert "there are no such webhooks" in answer.err


def test_those_of_a_job_that_were_not_sent_are_tried_again(cli: Cli) -> None:
    job_id = ended(cli, "sent", "dead")
    assert cli("webhooks", "retry", job_id).out == f"{job_id} completed\n"
    [hook] = cli.kelpie.app.ledger.take_webhooks("g", 10, 60.0)
    assert (hook.status, hook.told.tries) == (Status.COMPLETED, 1)


def test_all_dead_ones_are_tried_again_or_dropped(cli: Cli) -> None:
    one, other = ended(cli, "dead", "waiting"), ended(cli, "dead", "dead", group="other")
    assert len(cli("webhooks", "retry", "--dead", "--group", "other", "--json").document) == 2
    assert states(cli, other) == {"running": "waiting", "completed": "waiting"}
    assert states(cli, one) == {"running": "dead", "completed": "waiting"}
    assert cli("webhooks", "drop", "--dead", "--json").document == [{"id": one, "status": "running"}]
    assert states(cli, one) == {"running": "dropped", "completed": "waiting"}


def test_one_status_alone_may_be_named(cli: Cli) -> None:
    job_id = ended(cli, "dead", "dead")
    assert cli("webhooks", "drop", job_id, "--status", "running").code == 0
    assert states(cli, job_id) == {"running": "dropped", "completed": "dead"}


@pytest.mark.parametrize(
    ("status", "words"), [("running", "was sent: there is nothing to retry"), ("failed", "no webhook for failed")]
)
def test_what_cannot_be_tried_again_is_told(cli: Cli, status: str, words: str) -> None:
    job_id = ended(cli, "sent", "dead")
    answer = cli("webhooks", "retry", job_id, "--status", status)
    assert answer.code == 2
    assert words in answer.err


@pytest.mark.parametrize("arguments", [[], ["--dead", "id"]])
def test_jobs_or_all_dead_ones_have_to_be_named(cli: Cli, arguments: list[str]) -> None:
    answer = cli("webhooks", "drop", *arguments)
    assert answer.code == 2
    assert "name the jobs" in answer.err


def test_nothing_to_do_is_an_error(cli: Cli) -> None:
    answer = cli("webhooks", "retry", "nonesuch")
    assert answer.code == 2
    assert "there are no such webhooks" in answer.err


def test_what_a_worker_wrote_cannot_drive_the_terminal(cli: Cli) -> None:
    ended(cli, "dead", "dead", error="\x1b[2J\nspoof")
    assert "\x1b" not in cli("webhooks", "list").out


def test_from_python_the_same_can_be_done(cli: Cli) -> None:
    job_id = ended(cli, "sent", "dead")
    assert [hook.told.state for hook in cli.kelpie.open_webhooks()] == ["dead"]
    cli.kelpie.drop_webhook(job_id, "completed")
    cli.kelpie.retry_webhook(job_id, Status.COMPLETED)
    assert states(cli, job_id)["completed"] == "waiting"
    with pytest.raises(WebhookSent):
        cli.kelpie.drop_webhook(job_id, Status.RUNNING)
    with pytest.raises(WebhookNotFound):
        cli.kelpie.drop_webhook(job_id, Status.FAILED)


@pytest.mark.parametrize("name", list(WebhookCommands.table))
def test_every_command_has_help(cli: Cli, name: str) -> None:
    assert cli("webhooks", name, "--help").code == 0
