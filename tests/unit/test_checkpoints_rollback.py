"""Going back to an older checkpoint: what is written, what the ledger hears, and what becomes of it when it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.manifests import Manifests
from kelpie_celery.errors import (
    CommitGone,
    JobNotFound,
    LeaseLost,
    LedgerUnavailable,
    LineMoved,
    NoCheckpoint,
    PrefixHeld,
    StorageSetupError,
    StorageUnavailable,
)
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status
from tests.harness.commits import Attempt
from tests.unit.checkpoint_harness import Bench, bench
from tests.unit.fake_s3 import refused

__all__ = ["bench"]  # a fixture


def manifests(bench: Bench) -> list[str]:
    return [key for key in bench.s3.listed() if "/commits/" in f"/{key}"]


def two_commits(bench: Bench, *prefixes: str) -> tuple[Attempt, str, str]:
    attempt = bench.attempt(*prefixes)
    lines = len(attempt.lines)
    older = attempt.commit(*[{"a": b"older", "b": b"same"}] * lines)
    return attempt, older, attempt.commit(*[{"a": b"newer", "b": b"same"}] * lines)


def test_a_running_job_goes_on_from_the_older_checkpoint(bench: Bench) -> None:
    attempt, older, newer = two_commits(bench)
    new = bench.kelpie.rollback(attempt.job_id, older)
    assert re.fullmatch(r"0000000003-0-[0-9a-f]{8}", new)
    line = attempt.line()
    assert line.head is not None
    assert [entry.id for entry in line.kept] == [newer, new]
    assert (line.head.why, line.head.files, line.head.bytes, line.head.sent_bytes) == ("rollback", 2, 9, 0)
    assert bench.kelpie.get(attempt.job_id).status is Status.PENDING
    with pytest.raises(LeaseLost):
        bench.kelpie.app.ledger.renew(attempt.token, Phase.EXECUTING)


def test_the_new_manifest_is_whole_and_refers_to_the_same_content(bench: Bench) -> None:
    attempt = bench.attempt()
    many = {f"{n:04}": b"same" for n in range(300)}
    attempt.commit(many)
    delta = attempt.commit(many | {"x": b"1"})
    old = attempt.manifests[attempt.lines[0]]
    assert old.chain
    new = bench.kelpie.rollback(attempt.job_id, delta)
    loaded = Manifests(bench.s3.storage).load("bkt", layout.manifest_key("runs/a/", new))
    assert loaded is not None
    assert loaded.chain == ()
    assert loaded.refers_to() == old.segments() | {loaded.key}
    assert loaded.files.keys() == many.keys() | {"x"}
    assert (loaded.header.id, loaded.header.generation, loaded.header.attempt) == (new, 3, 0)
    assert (loaded.header.job_id, loaded.header.why) == (attempt.job_id, "rollback")


def test_all_prefixes_of_a_job_go_back_together(bench: Bench) -> None:
    attempt, older, _ = two_commits(bench, "runs/a/", "runs/b/")
    new = bench.kelpie.rollback(attempt.job_id, older)
    heads = [attempt.line(number).head for number in range(2)]
    assert [head.id if head else None for head in heads] == [new, new]
    loaded = Manifests(bench.s3.storage).load("bkt", layout.manifest_key("runs/b/", new))
    assert loaded is not None
    assert loaded.header.lines == (("bkt", "runs/a/"), ("bkt", "runs/b/"))


def test_the_generation_is_above_all_that_the_storage_lists(bench: Bench) -> None:
    attempt, older, _ = two_commits(bench)
    bench.s3.put_object(Bucket="bkt", Key=layout.manifest_key("runs/a/", "0000000041-7-zz"), Body=b"refused once")
    assert bench.kelpie.rollback(attempt.job_id, older).startswith("0000000042-0-")


def test_of_an_ended_job_the_next_one_with_its_prefix_goes_on_from_there(bench: Bench) -> None:
    attempt, older, _ = two_commits(bench)
    attempt.end()
    new = bench.kelpie.rollback(attempt.job_id, older)
    assert bench.kelpie.get(attempt.job_id).status is Status.COMPLETED
    head = bench.attempt().line().head
    assert head is not None
    assert head.id == new


def test_what_is_not_kept_cannot_be_gone_back_to(bench: Bench) -> None:
    attempt, _, _ = two_commits(bench)
    before = bench.s3.listed()
    with pytest.raises(CommitGone, match="0000000009-1-xx"):
        bench.kelpie.rollback(attempt.job_id, "0000000009-1-xx")
    with pytest.raises(JobNotFound):
        bench.kelpie.rollback("nonesuch", "0000000009-1-xx")
    with pytest.raises(NoCheckpoint):
        bench.kelpie.rollback(bench.attempt("runs/none/").job_id, "0000000009-1-xx")
    assert bench.s3.listed() == before


def test_a_prefix_that_another_live_job_holds_stays_its(bench: Bench) -> None:
    attempt, _, newer = two_commits(bench)
    attempt.end()
    other = bench.attempt()
    other.commit({"a": b"other"})
    with pytest.raises(PrefixHeld, match=other.job_id):
        bench.kelpie.rollback(attempt.job_id, newer)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_checkpoint_whose_content_is_not_whole_is_refused(bench: Bench, damage: str) -> None:
    attempt, older, _ = two_commits(bench)
    key = next(key for key in bench.s3.listed() if "/data/" in key)
    if damage == "gone":
        bench.s3.delete_object(Bucket="bkt", Key=key)
    else:
        bench.s3.put_object(Bucket="bkt", Key=key, Body=b"x")
    before = manifests(bench)
    with pytest.raises(StorageSetupError, match=rf"1 of the 2 objects .* '{key}'"):
        bench.kelpie.rollback(attempt.job_id, older)
    assert manifests(bench) == before
    assert bench.kelpie.get(attempt.job_id).status is Status.RUNNING


def test_a_commit_that_comes_in_meanwhile_only_means_another_try(bench: Bench) -> None:
    attempt, older, _ = two_commits(bench)
    came: list[str] = []

    def commit_once(operation: str, key: str) -> None:
        if operation == "put" and "-0-" in key and not came:
            came.append("")
            came[0] = attempt.commit({"a": b"newest"}, why="report")

    bench.s3.before = commit_once
    with pytest.raises(CommitGone):
        # The older one was dropped by the commit that came in: the first try was refused, the second knows.
        bench.kelpie.rollback(attempt.job_id, older)
    assert came
    came.clear()
    new = bench.kelpie.rollback(attempt.job_id, attempt.line().kept[-1].id)
    head = attempt.line().head
    assert head is not None
    assert head.id == new
    assert len([key for key in manifests(bench) if "-0-" in key]) == 1


@pytest.mark.parametrize(
    "error", [CommitGone("j", "c", "u"), PrefixHeld("j", "b", "p"), LineMoved("j", "b", "p"), JobNotFound("j")]
)
@pytest.mark.parametrize("versioned", [False, True])
def test_what_the_ledger_refuses_is_deleted_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, versioned: bool
) -> None:
    bench.s3.versioned = versioned
    attempt, older, _ = two_commits(bench, "runs/a/", "runs/b/")
    before = {key: list(versions) for key, versions in bench.s3.objects.items()}

    def refuse(*_args: Any) -> Any:
        raise error

    monkeypatch.setattr(bench.kelpie.app.ledger, "rollback", refuse)
    with pytest.raises(type(error)):
        bench.kelpie.rollback(attempt.job_id, older)
    assert {key: versions for key, versions in bench.s3.objects.items() if versions} == before


def test_an_answer_that_is_lost_leaves_what_the_ledger_may_have_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, older, _ = two_commits(bench)

    def away(*_args: Any) -> Any:
        raise LedgerUnavailable("away")

    monkeypatch.setattr(bench.kelpie.app.ledger, "rollback", away)
    with pytest.raises(LedgerUnavailable, match="is not known"):
        bench.kelpie.rollback(attempt.job_id, older)
    assert len(manifests(bench)) == 3


def test_a_storage_that_fails_in_the_middle_changes_nothing(bench: Bench) -> None:
    attempt, older, _ = two_commits(bench, "runs/a/", "runs/b/")
    before = bench.s3.listed()

    def fail(operation: str, key: str) -> None:
        if operation == "put" and key.startswith("runs/b"):
            raise refused("SlowDown", 503)

    bench.s3.before = fail
    with pytest.raises(StorageUnavailable):
        bench.kelpie.rollback(attempt.job_id, older)
    assert bench.s3.listed() == before
    assert bench.kelpie.get(attempt.job_id).status is Status.RUNNING


def test_going_back_from_a_going_back_works(bench: Bench) -> None:
    attempt, older, newer = two_commits(bench)
    # A running attempt would keep its lease, and nobody could claim the job before that is over.
    bench.kelpie.app.ledger.end_attempt(attempt.token, Ending(Outcome.INTERRUPTION, Reason.WORKER_SHUTDOWN))
    first = bench.kelpie.rollback(attempt.job_id, older)
    second = bench.kelpie.rollback(attempt.job_id, newer)
    assert [entry.id for entry in attempt.line().kept] == [first, second]
    bench.kelpie.cancel(attempt.job_id)
    following = bench.attempt()
    third = following.commit({"a": b"newest"})
    head = following.line().head
    assert head is not None
    assert head.id == third


def test_a_checkpoint_of_others_content_is_no_aim(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker on a stranger's machine may write it."""
    monkeypatch.setattr("tests.harness.commits.layout.segments_of", lambda *_: "other.kelpie/data/secret/")
    attempt, first, _ = two_commits(bench)
    with pytest.raises(StorageSetupError, match="not where a checkpoint has it"):
        bench.kelpie.rollback(attempt.job_id, first)
