"""``kelpie stats`` and ``Kelpie().stats``."""

from __future__ import annotations

import pytest

from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Phase, Reason
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture


def busy(cli: Cli) -> None:
    """Of the group g: one attempt that completed, two that failed, one that was interrupted."""
    cli.end(cli.submit())
    for outcome in (Outcome.FAILURE, Outcome.FREE, Outcome.INTERRUPTION):
        job_id = cli.submit()
        token = cli.claim(job_id)
        cli.kelpie.app.ledger.renew(token, Phase.EXECUTING)
        reason = Reason.WORKER_SHUTDOWN if outcome is Outcome.INTERRUPTION else Reason.EXIT_CODE
        cli.kelpie.app.ledger.end_attempt(token, Ending(outcome, reason))


def test_stats_are_one_document_with_every_figure(cli: Cli) -> None:
    busy(cli)
    cli.submit(container_group_id="other")
    one, other = cli("stats", "--json", "--since", "2h").document
    assert (one["container_group_id"], other["container_group_id"]) == ("g", "other")
    assert (one["completed"], one["failures"], one["interruptions"], one["others"]) == (1, 2, 1, 0)
    assert one["ends"] == {
        "completed:exit_code": 1, "failure:exit_code": 1, "free:exit_code": 1, "interruption:worker_shutdown": 1,
    }  # fmt: skip
    slot_s = sum(one[f"{name}_s"] for name in ("useful", "lost", "restoring", "syncing"))
    assert one["gpu_hours"] == pytest.approx(slot_s / 3600, abs=1e-5)
    assert (other["useful_fraction"], other["between_interruptions_s"], other["ends"]) == (None, None, {})
    assert set(one) == {
        "container_group_id", "since", "until", "useful_s", "lost_s", "restoring_s", "syncing_s", "silent_s",
        "waiting_s", "gpu_hours", "useful_fraction", "completed", "failures", "interruptions", "others",
        "between_interruptions_s", "ends",
    }  # fmt: skip


def test_stats_are_a_table_for_people(cli: Cli) -> None:
    busy(cli)
    answer = cli("stats", "--group", "g")
    assert answer.code == 0
    assert "GPU HOURS" in answer.out
    assert "since " in answer.err
    assert "g" in [line.split()[0] for line in answer.out.splitlines() if line.strip()]


def test_a_group_that_nobody_knows_is_told_with_what_was_meant(cli: Cli) -> None:
    cli.submit(container_group_id="render-farm")
    answer = cli("stats", "--group", "render-frm")
    assert answer.code == 1
    assert "did you mean 'render-farm'" in answer.err


def test_without_any_job_that_is_said(cli: Cli) -> None:
    assert cli("stats").code == 0
    assert "no job was ever submitted" in cli("stats").err
    assert cli("stats", "--json").document == []


@pytest.mark.parametrize(("since", "words"), [("0", "above 0"), ("91d", "at most 90d"), ("soon", "is no duration")])
def test_a_time_that_cannot_be_is_refused(cli: Cli, since: str, words: str) -> None:
    answer = cli("stats", "--since", since)
    assert answer.code == 2
    assert words in answer.err


@pytest.mark.parametrize("since_s", [0, -1, 91 * 86_400, float("nan"), float("inf")])
def test_the_client_refuses_it_too(cli: Cli, since_s: float) -> None:
    with pytest.raises(ValueError, match="since_s"):
        cli.kelpie.stats("g", since_s)
