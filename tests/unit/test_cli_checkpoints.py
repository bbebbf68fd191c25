"""``kelpie checkpoints list``, ``get``, ``rollback`` and ``gc``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.checkpoints import client as client_module
from kelpie_celery.checkpoints.storage import open_storage
from kelpie_celery.cli import Commands
from kelpie_celery.cli.checkpoints import CheckpointCommands
from kelpie_celery.clock import SystemClock
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.lifecycle import Status
from tests.harness.commits import Attempt, during
from tests.unit.cli_harness import URL, Cli, cli
from tests.unit.fake_s3 import FakeS3, refused

__all__ = ["cli"]  # a fixture

CANARY = "canary-the-secret"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "sleep", lambda _self, _seconds: None)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> FakeS3:
    """The storage of the commands; reached like AWS, as the harness's client has no endpoint."""
    made = FakeS3(now=cli.kelpie.now())
    monkeypatch.setattr(client_module, "open_storage", lambda _settings: made.storage)
    return made


def attempt(cli: Cli, s3: FakeS3, *prefixes: str) -> Attempt:
    return Attempt.of(cli.kelpie, s3, during(*(prefixes or ("runs/a/",))))


def rows(out: str) -> list[list[str]]:
    """The rows of a table, split at white space, without its head."""
    lines = [line.split() for line in out.splitlines()]
    return [line for line in lines[3:] if line]


# -- list --------------------------------------------------------------------------------------------------------


def test_list_shows_the_checkpoints_of_a_job_the_newest_first(cli: Cli, s3: FakeS3) -> None:
    made = attempt(cli, s3)
    ids = [made.commit({"a": b"x" * 2048}, why=why) for why in ("report", "quiet")]
    s3.before = lambda operation, key: pytest.fail(f"{operation} {key}: the storage was asked")
    answer = cli("checkpoints", "list", made.job_id)
    assert answer.code == 0
    newest, older = rows(answer.out)
    assert (newest[0], older[0]) == tuple(ids[::-1])
    assert newest[-8:] == ["1", "quiet", "1", "2.0", "KiB", "100", "B", "newest"]
    assert "newest" not in older
    assert answer.err == f"kelpie: job {made.job_id} keeps checkpoints below s3://bkt/runs/a/\n"


def test_list_json_has_the_documented_fields(cli: Cli, s3: FakeS3) -> None:
    made = attempt(cli, s3, "runs/a/", "runs/b/")
    id_ = made.commit({"a": b"1"}, {"b": b"22"})
    (document,) = cli("checkpoints", "list", made.job_id, "--json").document
    assert document.pop("time").endswith("Z")
    urls = ["s3://bkt/runs/a/", "s3://bkt/runs/b/"]
    assert document == {
        "id": id_, "job_id": made.job_id, "attempt": 1, "why": "quiet", "files": 2, "bytes": 3, "sent_bytes": 100,
        "head": True, "prefixes": urls, "head_of": urls,
    }  # fmt: skip


def test_list_tells_where_lines_differ_and_whose_a_checkpoint_is(cli: Cli, s3: FakeS3) -> None:
    first = attempt(cli, s3, "runs/a/")
    first.commit({"a": b"1"})
    first.end()
    second = attempt(cli, s3, "runs/a/", "runs/b/")
    second.commit({"a": b"2"}, {"b": b"2"})
    answer = cli("checkpoints", "list", second.job_id)
    assert "only below s3://bkt/runs/a/" in answer.out
    assert first.job_id in answer.out


def test_list_of_a_job_without_checkpoints_says_why(cli: Cli, s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = cli.submit()
    for options in ([], ["--json"]):
        answer = cli("checkpoints", "list", job_id, *options)
        assert answer.code == 0
        assert answer.err == f"kelpie: job {job_id} keeps no checkpoints: its definition has no block for them\n"
        assert answer.out == ("[]\n" if options else "")
    made = attempt(cli, s3)
    assert "has stored no checkpoint yet below s3://bkt/runs/a/" in cli("checkpoints", "list", made.job_id).err
    made.commit({})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9000")
    assert "set AWS_ENDPOINT_URL to what its workers have" in cli("checkpoints", "list", made.job_id).err


def test_an_unknown_job_is_a_users_error(cli: Cli, tmp_path: Path) -> None:
    for argv in (
        ["list", "nonesuch"],
        ["get", "nonesuch", "-o", str(tmp_path)],
        ["rollback", "nonesuch", "x", "--yes"],
    ):
        answer = cli("checkpoints", *argv)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == "kelpie: error: no job has the id 'nonesuch'; 'kelpie list' shows the ids that exist\n"


# -- get ---------------------------------------------------------------------------------------------------------


def test_get_brings_the_newest_down_and_says_what(cli: Cli, s3: FakeS3, tmp_path: Path) -> None:
    made = attempt(cli, s3)
    id_ = made.commit({"a": b"1", "b/c": b"22"}, links={"out": "../x"})
    out = tmp_path / "out"
    answer = cli("checkpoints", "get", made.job_id, "-o", str(out))
    assert answer.code == 0
    assert answer.out == f"checkpoint {id_}: 2 files, 3 B, in {out}\n"
    assert answer.err == "kelpie: links that lead out of the directory were left out: out\n"
    assert (out / "b" / "c").read_bytes() == b"22"


def test_get_json_says_what_came_from_where(cli: Cli, s3: FakeS3, tmp_path: Path) -> None:
    made = attempt(cli, s3, "runs/a/", "runs/b/")
    id_ = made.commit({"a": b"1"}, {"b": b"22"})
    answer = cli("checkpoints", "get", made.job_id, id_, "-o", str(tmp_path), "--json")
    assert answer.document == {
        "job_id": made.job_id, "directory": str(tmp_path), "files": 2, "bytes": 3,
        "parts": [
            {"prefix": f"s3://bkt/runs/{name}/", "checkpoint": id_, "folder": f"runs/{name}"} for name in ("a", "b")
        ],
        "without": [], "refused_links": [],
    }  # fmt: skip


def test_get_needs_a_directory_that_is_new_or_empty(cli: Cli, s3: FakeS3, tmp_path: Path) -> None:
    made = attempt(cli, s3)
    made.commit({"a": b"1"})
    assert "'--output'" in cli("checkpoints", "get", made.job_id).err
    (tmp_path / "mine").touch()
    answer = cli("checkpoints", "get", made.job_id, "-o", str(tmp_path))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"kelpie: error: {tmp_path} is not empty; name a new or an empty directory\n"


# -- errors of the storage -----------------------------------------------------------------------------------------


def test_without_credentials_it_is_said_which_variables_are_missing(
    cli: Cli, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt(cli, s3)
    made.commit({"a": b"1"})
    monkeypatch.setattr(client_module, "open_storage", open_storage)
    answer = cli("checkpoints", "get", made.job_id, "-o", str(tmp_path / "out"))
    assert answer.code == 2
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in answer.err


@pytest.mark.parametrize(("code", "status", "exit_code"), [("AccessDenied", 403, 2), ("SlowDown", 503, 69)])
def test_errors_of_the_storage_are_one_line_with_the_right_exit_code(
    cli: Cli, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int, exit_code: int
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    made = attempt(cli, s3)
    id_ = made.commit({"a": b"1"})

    def refuse(_operation: str, _key: str) -> None:
        raise refused(code, status)

    s3.before = refuse
    for argv in (
        ["get", made.job_id, "-o", str(tmp_path / "out")],
        ["rollback", made.job_id, id_, "--yes"],
        ["gc", "s3://bkt/elsewhere"],
    ):
        answer = cli("checkpoints", *argv)
        assert (answer.code, answer.out) == (exit_code, "")
        assert answer.err.startswith("kelpie: error: s3://bkt/")
        assert answer.err.count("\n") == 1
        assert CANARY not in answer.err


# -- rollback ------------------------------------------------------------------------------------------------------


def test_rollback_of_a_running_job_says_what_happens(cli: Cli, s3: FakeS3) -> None:
    made = attempt(cli, s3)
    older = made.commit({"a": b"1"})
    made.commit({"a": b"2"})
    answer = cli("checkpoints", "rollback", made.job_id, older, "--yes")
    head = made.line().head
    assert head is not None
    assert answer.code == 0
    assert answer.out == f"job {made.job_id} has the new checkpoint {head.id} with the content of {older}\n"
    assert "Its running attempt 1 is stopped, and the job goes on from there once" in answer.err
    assert cli.kelpie.get(made.job_id).status is Status.PENDING
    document = cli("checkpoints", "rollback", made.job_id, head.id, "--yes", "--json").document
    newest = made.line().head
    assert newest is not None
    assert document == {"id": made.job_id, "checkpoint": newest.id, "of": head.id, "status": "pending"}


def test_rollback_of_other_jobs_says_what_happens(cli: Cli, s3: FakeS3) -> None:
    made = attempt(cli, s3)
    older = made.commit({"a": b"1"}, why="report")
    made.commit({"a": b"2"})
    cli.kelpie.cancel(made.job_id)
    answer = cli("checkpoints", "rollback", made.job_id, older, "--yes")
    assert "is being canceled; the next job with its prefix goes on from there" in answer.err
    made.end_canceled()
    head = made.line().head
    assert head is not None
    answer = cli("checkpoints", "rollback", made.job_id, head.id, "--yes")
    assert "has ended (canceled); the next job with its prefix goes on from there" in answer.err


@pytest.mark.parametrize(("reply", "code"), [("y", 0), ("n", 1)])
def test_rollback_asks_on_a_terminal(
    cli: Cli, s3: FakeS3, monkeypatch: pytest.MonkeyPatch, reply: str, code: int
) -> None:
    made = attempt(cli, s3)
    older = made.commit({"a": b"1"})
    made.commit({"a": b"2"})
    made.end()
    asked: list[str] = []
    monkeypatch.setattr("kelpie_celery.cli._asking._is_terminal", lambda: True)

    def answer(question: str) -> str:
        asked.append(question)
        return reply

    monkeypatch.setattr("click.termui.visible_prompt_func", answer)
    assert cli("checkpoints", "rollback", made.job_id, older).code == code
    assert (made.line().generation == 3) is (reply == "y")
    # What click hands over is the end of the question at least; the whole of it is on stderr.
    assert asked


def test_rollback_asks_nobody_who_is_not_there_and_nothing_about_what_is_not_kept(
    cli: Cli, s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt(cli, s3)
    older = made.commit({"a": b"1"})
    assert "--yes" in cli("checkpoints", "rollback", made.job_id, older).err
    monkeypatch.setattr("kelpie_celery.cli._asking._is_terminal", lambda: True)
    answer = cli("checkpoints", "rollback", made.job_id, "0000000009-1-xx")
    assert answer.code == 2
    assert "keeps no checkpoint 0000000009-1-xx below s3://bkt/runs/a/; choose one" in answer.err
    assert made.line().generation == 1


def test_rollback_with_redis_away_says_what_is_not_known(cli: Cli, s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    made = attempt(cli, s3)
    older = made.commit({"a": b"1"})

    def away(*_args: Any) -> Any:
        raise LedgerUnavailable("away")

    monkeypatch.setattr("kelpie_celery.ledger.ledger.Ledger.rollback", away)
    answer = cli("checkpoints", "rollback", made.job_id, older, "--yes")
    assert answer.code == 69
    assert "is not known" in answer.err


# -- gc ------------------------------------------------------------------------------------------------------------


def garbage(cli: Cli, s3: FakeS3) -> Attempt:
    made = attempt(cli, s3)
    for n in range(4):
        made.commit({"a": b"%d" % n})
    made.end()
    return made


@pytest.mark.parametrize("place", ["s3://bkt/runs/a", "bkt/runs/a/"])
def test_gc_shows_what_may_go_and_deletes_nothing(cli: Cli, s3: FakeS3, place: str) -> None:
    garbage(cli, s3)
    before = s3.listed()
    answer = cli("checkpoints", "gc", place, "--older-than", "0")
    assert answer.code == 0
    assert [row[0] for row in rows(answer.out)] == ["content", "manifests", "all"]
    assert rows(answer.out)[0] == ["content", "4", "4", "B", "2", "2", "B"]
    assert "s3://bkt/runs/a/: what 2 checkpoints refer to stays" in answer.err
    assert "nothing was deleted; --delete does it" in answer.err
    assert s3.listed() == before


def test_gc_deletes_on_request(cli: Cli, s3: FakeS3) -> None:
    garbage(cli, s3)
    document = cli("checkpoints", "gc", "bkt/runs/a", "--older-than", "0", "--delete", "--yes", "--json").document
    assert document.pop("kinds")["content"] == {
        "objects": 4, "bytes": 4, "garbage_objects": 2, "garbage_bytes": 2
    }  # fmt: skip
    assert document.pop("garbage_bytes") > 2
    assert len(document.pop("kept")) == 2
    assert document == {
        "bucket": "bkt", "prefix": "runs/a/", "forgotten": False, "versions": True, "garbage_objects": 4, "deleted": 4
    }  # fmt: skip
    assert len(s3.listed()) == 4
    assert cli("checkpoints", "gc", "bkt/runs/a", "--older-than", "0", "--delete", "--yes").code == 0


def test_gc_leaves_what_is_younger_than_a_day(cli: Cli, s3: FakeS3) -> None:
    garbage(cli, s3)
    assert cli("checkpoints", "gc", "bkt/runs/a", "--json").document["garbage_objects"] == 0


def test_gc_asks_before_it_deletes(cli: Cli, s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    garbage(cli, s3)
    before = s3.listed()
    argv = ["checkpoints", "gc", "bkt/runs/a", "--older-than", "0", "--delete"]
    assert "--yes" in cli(*argv).err
    monkeypatch.setattr("kelpie_celery.cli._asking._is_terminal", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _question: "n")
    answer = cli(*argv)
    assert answer.code == 1
    assert "nothing was deleted" in answer.err
    assert s3.listed() == before
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _question: "y")
    answer = cli(*argv)
    assert answer.out.splitlines()[-1].startswith("4 objects deleted, ")
    assert len(s3.listed()) == 4


def test_gc_names_the_job_that_lives(cli: Cli, s3: FakeS3) -> None:
    made = attempt(cli, s3)
    made.commit({"a": b"1"})
    answer = cli("checkpoints", "gc", "bkt/runs/a")
    assert (answer.code, answer.out) == (2, "")
    assert f"job {made.job_id} is pending or running" in answer.err


def test_gc_says_when_there_is_nothing(cli: Cli, s3: FakeS3) -> None:
    answer = cli("checkpoints", "gc", "bkt/runs/none")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == "kelpie: nothing of kelpie's lies beside s3://bkt/runs/none/\n"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3://bkt", "must name a folder inside the bucket"),
        ("bkt/a/../b", "'.' or '..'"),
        ("s3:///x", "no checkpoint prefix such as"),
        ("bkt/runs/a.kelpie/", "name the checkpoint prefix itself"),
        ("", "no checkpoint prefix such as"),
    ],
)
def test_gc_needs_a_bucket_and_a_prefix(cli: Cli, place: str, words: str) -> None:
    answer = cli("checkpoints", "gc", place)
    assert answer.code == 2
    assert words in answer.err


# -- the group -----------------------------------------------------------------------------------------------------


def test_the_group_lists_its_commands_with_their_own_words(cli: Cli) -> None:
    answer = cli("checkpoints", "--help")
    assert answer.code == 0
    group = CheckpointCommands("checkpoints")
    for name, (_, words) in CheckpointCommands.table.items():
        command = group.get_command(None, name)  # type: ignore[arg-type]  # it takes no notice of the context
        assert command is not None
        assert (command.name, command.get_short_help_str(100)) == (name, words)
        assert name in answer.out
        assert cli("checkpoints", name, "--help").out.startswith(f"Usage: kelpie checkpoints {name}")
    assert cli("checkpoints").out == answer.out
    assert "did you mean 'rollback'" in cli("checkpoints", "rolback").err
    assert Commands("x").table is not CheckpointCommands.table


def test_the_storage_is_not_loaded_for_a_list(cli: Cli) -> None:
    code = (
        "import sys, kelpie_celery.cli.checkpoints, kelpie_celery.cli.gc\n"
        "loaded = {'boto3', 'botocore'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_nothing_of_a_url_or_a_worker_drives_the_terminal(cli: Cli, s3: FakeS3) -> None:
    made = attempt(cli, s3)
    made.commit({"a": b"1"}, why="quiet\x1b[31m")
    answer = cli("checkpoints", "list", made.job_id)
    assert "\x1b" not in answer.out + answer.err
    assert json.dumps(URL) not in answer.err
