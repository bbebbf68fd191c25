"""``kelpie machines``: the list, and bans that are lifted."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie_celery.lifecycle import Outcome
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]  # a fixture


def alive(cli: Cli, *machines: str, group: str = "g") -> None:
    for machine in machines:
        cli.kelpie.app.ledger.pulse(group, machine, [], alive=True)


def fail(cli: Cli, machine: str, **more: Any) -> str:
    """A job that failed on a machine, and waits for another try."""
    job_id = cli.submit(max_failures=9)
    cli.end(job_id, Outcome.FAILURE, machine, final=False, **more)
    return job_id


@pytest.mark.parametrize("argv", [("machines", "g"), ("machines", "list", "g"), ("machines",)])
def test_machines_are_listed_with_what_they_did(cli: Cli, argv: tuple[str, ...]) -> None:
    alive(cli, "m1", "m2\x1b[31m")
    fail(cli, "m1")
    facts = {"received_bytes": 4 << 20, "received_s": 2.0, "sent_bytes": 3 << 30, "sent_s": 3.0}
    cli.end(cli.submit(), machine="m1", facts=facts)
    answer = cli(*argv)
    assert answer.code == 0
    [row] = [line for line in answer.out.splitlines() if line.split()[:1] == ["m1"]]
    assert row.split()[1] == "g"
    assert row.split()[-11:] == ["ago", "0", "1", "1", "0", "0", "1", "2.0", "MiB/s", "1.0", "GiB/s"]
    assert "\x1b" not in answer.out


def test_machines_as_json_are_one_document(cli: Cli) -> None:
    alive(cli, "m1")
    alive(cli, "m9", group="other")
    cli.end(cli.submit(), machine="m1")
    cli.submit(container_group_id="other")
    [one, other] = cli("machines", "--json").document
    assert (one["machine"], one["container_group_id"], one["completed"], one["failures"]) == ("m1", "g", 1, 0)
    assert (one["heard"][-1], one["received_bytes_s"], one["sent_bytes"]) == ("Z", None, 0)
    assert (other["machine"], other["container_group_id"]) == ("m9", "other")
    assert set(one) == {
        "machine", "container_group_id", "heard", "workers", "jobs", "completed", "failures", "interruptions",
        "others", "streak", "bans", "received_bytes", "received_bytes_s", "sent_bytes", "sent_bytes_s",
    }  # fmt: skip


def test_a_group_without_machines_is_told_with_what_was_meant(cli: Cli) -> None:
    cli.submit(container_group_id="render-farm")
    answer = cli("machines", "render-frm")
    assert (answer.code, answer.out) == (1, "")
    assert "no machine" in answer.err
    assert "did you mean 'render-farm'" in answer.err
    assert cli("machines", "render-frm", "--json").document == []
    assert cli("machines").code == 0


def test_bans_of_a_machine_are_lifted_in_all_groups_in_one_or_for_one_job(cli: Cli) -> None:
    jobs = [fail(cli, "m1") for _ in range(3)]
    assert "1 ban of machine m1 lifted" in cli("machines", "unban", "m1", "--job", jobs[0]).err
    assert cli("machines", "unban", "m1", "--group", "another", "--json").document == {"machine": "m1", "lifted": 0}
    answer = cli("machines", "unban", "m1", "--json")
    assert (answer.code, answer.document) == (0, {"machine": "m1", "lifted": 2})
    assert "'kelpie machines' shows" in cli("machines", "unban", "m1").err


def test_a_job_that_nobody_knows_is_told(cli: Cli) -> None:
    answer = cli("machines", "unban", "m1", "--job", "nope")
    assert answer.code == 2
    assert "no job has the id 'nope'" in answer.err


def test_help_is_there_for_the_group_and_its_commands(cli: Cli) -> None:
    assert "unban" in cli("machines", "--help").out
    assert "--job" in cli("machines", "unban", "--help").out
    assert "last week" in cli("machines", "list", "--help").out
