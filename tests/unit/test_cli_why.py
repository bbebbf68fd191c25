"""``kelpie why``, ``kelpie watch`` and the time line of ``kelpie get``, against a Redis in memory."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError  # noqa: A004 -- redis-py's own
from rich.console import Console

from kelpie_celery.cli._timeline import timeline
from kelpie_celery.cli._watch_view import Paces, left_words, picture, short_machine
from kelpie_celery.client import Kelpie
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.records import AttemptRecord, JobRecord, Progress, Transfer
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from kelpie_celery.scaling.rule import ScalingRule
from kelpie_celery.why import client as client_module
from kelpie_celery.why.overview import Overview, Sight
from tests.unit.cli_harness import Cli, cli
from tests.unit.test_cli_scaler import keep

__all__ = ["cli"]  # a fixture

CANARY = "canary-secret-value"
NOW = 1_700_000_000.0


def drawn(what: Any, width: int) -> str:
    """What stands on a terminal of this width, without its trailing blanks."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)
    console.print(what)
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO from above
    return "\n".join(line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).splitlines())


# -- why -------------------------------------------------------------------------------------------------------------


def test_why_tells_the_deciding_sentence_first(cli: Cli) -> None:
    job_id = cli.submit()
    answer = cli("why", job_id)
    assert answer.code == 0
    head, first, *_ = answer.out.splitlines()
    assert head.startswith(f"{job_id} pending, true, group g")
    assert first.strip().startswith("No worker of the container group 'g' was heard of")


def test_why_as_json_has_the_sentences_and_the_facts(cli: Cli) -> None:
    cli.kelpie.set_scaling_rule(ScalingRule(container_group_id="g"))
    keep(cli, "start")
    job_id = cli.submit(priority=3)
    document = cli("why", job_id, "--json").document
    assert set(document) == {"id", "container_group_id", "status", "at", "because", "job", "group"}
    assert [set(one) for one in document["because"]] == [{"code", "text"}] * len(document["because"])
    assert document["job"]["ahead"] == 0
    assert document["group"]["counts"]["pending"] == 1
    assert document["group"]["rule"] == {"paused": False, "min_replicas": 0, "max_replicas": 10}
    assert document["group"]["decision"]["reasons"] == ["2 jobs wait", "and so on"]
    for moment in (document["at"], document["job"]["pending_since"], document["group"]["decision"]["at"]):
        assert moment.endswith("Z")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_why_holds_no_secret_of_the_definition(cli: Cli, options: list[str]) -> None:
    hook = f"https://u:{CANARY}@h.example/{CANARY}?t={CANARY}"
    job_id = cli.submit(environment={"TOKEN": CANARY}, webhook=hook)
    answers = [cli("why", job_id, *options)]
    cli.end(job_id, Outcome.FAILURE, final=False)
    answers.append(cli("why", job_id, *options))
    cli.claim(job_id, "m2")
    answers.append(cli("why", job_id, *options))
    assert all(answer.code == 0 for answer in answers)
    assert CANARY not in "".join(answer.out + answer.err for answer in answers)


def test_why_of_an_id_that_nobody_has_is_one_line(cli: Cli) -> None:
    answer = cli("why", "nobody")
    assert (answer.code, answer.out) == (2, "")
    assert "no job has the id 'nobody'" in answer.err


def test_why_from_python_is_typed_and_prints_its_sentences(cli: Cli) -> None:
    job = cli.kelpie.submit({"command": "true", "container_group_id": "g", "sync": {}})
    found = cli.kelpie.why(job)
    assert (found.job_id, found.status, found.because[0].code) == (job.id, Status.PENDING, "no_worker")
    assert str(found).splitlines()[0] == found.because[0].text
    assert CANARY not in repr(found)


# -- watch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pending_since", "x"), ("pending_since", "nan"), ("bounces", "many"), ("created", "-1e300"),
        ("started", "inf"), ("ended_at", "1e20"), ("heartbeat_at", "nan"), ("definition", '{"sync": 5}'),
        ("ban:m", "1e300"), ("transfer", '{"total_bytes": 1, "left_s": 1e999, "rate_bytes_s": 1e999}'),
        ("name", "\x1b[2J\x9b31m"), ("progress", '{"progress": 1e999}'), ("machine", "\x1b[2J"),
    ],
)  # fmt: skip
def test_a_record_that_its_groups_workers_spoilt_breaks_no_command_and_drives_no_terminal(
    cli: Cli, name: str, value: str
) -> None:
    pending, runs = cli.submit(), cli.submit()
    cli.claim(runs)
    for job_id in (pending, runs):
        cli.kelpie.app.ledger.redis.hset(keys.job("g", job_id), name, value)
    commands = [["watch", "--once"], ["why", pending], ["why", runs], ["get", pending], ["get", runs]]
    for argv in commands:
        answer = cli(*argv)
        assert "unexpected" not in answer.err, (argv, answer)
        assert not {"\x1b", "\x9b"} & set(answer.out + answer.err)


@pytest.mark.parametrize("score", ["inf", "-inf", "1e300"])
def test_a_due_time_that_is_none_breaks_no_command(cli: Cli, score: str) -> None:
    job_id = cli.submit()
    cli.kelpie.app.ledger.redis.zadd(keys.index("g", "delayed"), {job_id: float(score)})
    for argv in (("watch", "--once"), ("why", job_id), ("get", job_id)):
        assert cli(*argv).code == 0


def test_a_rule_and_a_decision_that_are_none_are_told_of_their_group_alone(cli: Cli) -> None:
    job_id = cli.submit()
    cli.submit(container_group_id="fine")
    redis = cli.kelpie.app.ledger.redis
    bad = '{"kind": "decision", "until_at": 1, "fleet": {"replicas": 1e999}}'
    for number in range(2):
        if number == 0:
            redis.lpush(keys.decisions("g"), bad)
        else:
            redis.delete(keys.decisions("g"))
            redis.hset(keys.RULES, "g", "{")
        shown = cli("watch", "--once").out
        assert re.search(r"g .*its keys hold what they should not", shown), shown
        assert re.search(r"fine .* no rule", shown), shown
        assert "is not known" in cli("why", job_id).out


def test_watch_once_shows_groups_and_their_jobs(cli: Cli) -> None:
    running, ended, waiting = cli.submit(), cli.submit(), cli.submit()
    cli.end(ended, Outcome.FAILURE, message="exit code 9")
    token = cli.claim(running, "m2")
    cli.kelpie.app.ledger.renew(token, Phase.EXECUTING, json.dumps({"progress": 0.42, "message": "epoch 3"}))
    cli.kelpie.set_scaling_rule(ScalingRule(container_group_id="g"))
    keep(cli, "start")
    answer = cli("watch", "--once")
    assert answer.code == 0
    lines = answer.out.splitlines()
    rows = {job_id: next(line for line in lines if job_id in line) for job_id in (running, ended, waiting)}
    assert [lines.index(rows[job_id]) for job_id in (running, waiting, ended)] == sorted(
        map(lines.index, rows.values())
    )
    for words in ("executing", "42 %", "epoch 3", "m2"):
        assert words in rows[running]
    assert "exit_code: exit code 9" in rows[ended]
    assert "start 3: 2 jobs wait" in answer.out


def test_watch_of_one_group_shows_no_other_and_a_misspelt_one_is_told(cli: Cli) -> None:
    mine, other = cli.submit(), cli.submit(container_group_id="other")
    answer = cli("watch", "--once", "--group", "g")
    assert mine in answer.out
    assert other not in answer.out
    assert "did you mean 'other'?" in cli("watch", "--once", "--group", "othr").err
    assert cli("watch", "--once").code == 0


def test_an_empty_redis_is_told(cli: Cli) -> None:
    assert "no container group had a job yet" in cli("watch", "--once").out


@pytest.mark.parametrize("every", ["0", "-1", "soon", "2d"])
def test_a_wrong_interval_is_refused(cli: Cli, every: str) -> None:
    assert cli("watch", "--every", every).code == 2


def test_without_a_terminal_each_look_is_a_block_and_ctrl_c_ends_with_130(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.submit()

    def looks(kelpie: Kelpie, group: str | None, every_s: float) -> Iterator[Sight]:
        seen = kelpie.overview(group)
        yield Sight(seen)
        yield Sight(seen, age_s=every_s, away=True, redis="redis.example")
        yield Sight(seen)
        raise KeyboardInterrupt

    monkeypatch.setattr(Kelpie, "watch", looks)
    answer = cli("watch", "--every", "7")
    assert answer.code == 130
    assert answer.out.count("no rule") == 3
    assert "Redis at redis.example is away; what follows is 7.0 s old" in answer.out


def test_an_outage_is_sat_out_once_the_first_look_succeeded(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.submit()
    answers: list[Any] = [cli.kelpie.overview(), LedgerUnavailable("away"), cli.kelpie.overview()]
    answers[1].__cause__ = ConnectionError("refused")

    def look(*_: object) -> Overview:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        found: Overview = answer
        return found

    monkeypatch.setattr(client_module, "overview", look)
    sights = cli.kelpie.watch(every_s=0.001)
    assert [next(sights).away for _ in range(3)] == [False, True, False]


def record(status: Status = Status.RUNNING, **more: Any) -> JobRecord:
    facts = {"id": "f" * 36, "container_group_id": "g", "created": NOW - 900, "name": "sim", "attempt": 1, **more}
    return JobRecord(status=status, **facts)


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80, 100, 120, 150, 200])
def test_ids_are_whole_on_every_terminal(width: int) -> None:
    jobs = [record(phase=Phase.EXECUTING, progress=Progress(progress=0.5, message="m" * 300), machine_id="x" * 36)]
    shown = drawn(picture(Sight(Overview(NOW, running=jobs)), width, bars=True), width)
    assert "f" * 36 in shown
    assert max(map(len, shown.splitlines())) <= width


def test_what_a_job_says_drives_no_terminal() -> None:
    jobs = [record(phase=Phase.EXECUTING, progress=Progress(progress=0.5, message="\x1b[2Jhi"), name="\x1b[31m")]
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(picture(Sight(Overview(NOW, running=jobs)), 200, bars=True))
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_time_left_is_the_pace_since_the_job_is_watched_and_never_a_guess() -> None:
    paces = Paces()

    def look(after_s: float, share: float | None, attempt: int = 1) -> float | None:
        said = Progress(progress=share)
        one = record(phase=Phase.EXECUTING, progress=said, attempt=attempt)
        paces.note(Overview(NOW + after_s, running=[one]))
        return paces.left_s(one, NOW + after_s)

    assert look(0, 0.2) is None
    assert look(5, 0.25) is None
    assert look(20, 0.4) == pytest.approx(60.0)
    assert look(30, 0.4) == pytest.approx(50.0)
    assert look(40, 0.1, attempt=2) is None
    assert look(60, None, attempt=2) is None
    assert look(80, 7.0, attempt=2) is None


def test_the_time_left_of_a_transfer_counts_only_where_the_job_waits_for_it() -> None:
    moving = Transfer(stage="restore", left_s=42.0)
    assert left_words(record(phase=Phase.RESTORING, transfer=moving), NOW, None) == "42 s"
    assert left_words(record(phase=Phase.EXECUTING, transfer=moving), NOW, None) == ""
    assert left_words(record(phase=Phase.EXECUTING, transfer=moving), NOW, 90.0) == "~1 min 30 s"
    assert left_words(record(Status.PENDING, not_before=NOW + 5), NOW, None) == "due in 5.0 s"


def test_machines_are_shown_short_where_they_have_an_id() -> None:
    assert short_machine("51d2aa3e-97b4-5c56-8f0e-2b64c1d09a11") == "51d2aa3e"
    assert short_machine("local-machine-1") == "local-machine-1"


# -- the time line of get ----------------------------------------------------------------------------------------------


def tries(*lengths: tuple[float, float | None, str | None]) -> JobRecord:
    """Attempts in a row: how long, when the last checkpoint came, and the outcome."""
    begin, made = NOW - 1000, []
    for n, (length, stored, outcome) in enumerate(lengths, 1):
        over = {"ended": begin + length, "outcome": outcome, "commits": 1 if stored else 0} if outcome else {}
        kept = {"committed": begin + stored} if stored and outcome else {}
        made.append(AttemptRecord(n=n, machine="51d2aa3e-97b4-5c56-8f0e-2b64c1d09a11", started=begin, **over, **kept))
        begin += length
    return record(attempts=made, attempt=len(made))


def test_bars_stand_side_by_side_on_one_scale() -> None:
    seen = tries((500, 250, "interruption"), (500, None, "completed"))
    shown = drawn(timeline(seen, NOW, 120, bars=True), 120).splitlines()
    first, second = (next(line for line in shown if line.lstrip().startswith(f"{n} ")) for n in (1, 2))
    assert first.rstrip().endswith("█████░░░░░")
    assert second.rstrip().endswith(" ██████████")
    assert second.index("█") == first.rindex("░") + 1
    assert "time in attempts 16 min 40 s: 12 min 30 s kept, 4 min 10 s lost (25 %)" in "\n".join(shown)


@pytest.mark.parametrize("width", [50, 80, 100, 140, 200])
def test_a_time_line_fits_the_terminal_and_leaves_out_no_message(width: int) -> None:
    seen = tries((500, None, "failure"), (100, None, None))
    told = seen.attempts[0].model_copy(update={"message": "exit code 7: " + "words " * 30, "reason": "exit_code"})
    seen = seen.model_copy(update={"attempts": [told, seen.attempts[1]]})
    shown = drawn(timeline(seen, NOW, width, bars=True), width)
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("words") == 30


def test_an_attempt_of_which_nothing_is_recorded_is_called_neither_kept_nor_lost() -> None:
    old = AttemptRecord(n=1, machine="m", started=NOW - 100, ended=NOW, outcome="interruption")
    shown = drawn(timeline(record(attempts=[old]), NOW, 200, bars=False), 200)
    assert "0.0 s kept, 1 min 40 s of which that is not recorded, 0.0 s lost" in shown


def test_many_attempts_tell_that_older_ones_are_gone() -> None:
    seen = tries(*[(1.0, None, "interruption")] * 3).model_copy(update={"attempt": 90})
    assert "of the last 3 attempts" in drawn(timeline(seen, NOW, 120, bars=True), 120)


def test_get_shows_the_time_line_without_bars_where_there_is_no_terminal(cli: Cli) -> None:
    job_id = cli.submit()
    facts = {"exit_code": 3, "received_bytes": 3 << 20, "sent_bytes": 5 << 20}
    cli.end(job_id, Outcome.FAILURE, "machine-1", final=False, reason=Reason.EXIT_CODE, message="it broke", facts=facts)
    cli.claim(job_id, "machine-2")
    out = cli("get", job_id).out
    for words in (
        "machine-1",
        "machine-2",
        "failure",
        "running",
        "exit_code",
        "it broke",
        "3.0 MiB",
        "5.0 MiB",
        "lost",
    ):
        assert words in out, words
    assert "█" not in out
    attempt = cli("get", job_id, "--json").document["attempts"][0]
    assert (attempt["commits"], attempt["committed"]) == (0, None)
