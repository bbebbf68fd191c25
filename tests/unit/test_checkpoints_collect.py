"""What is left over below a prefix, and that nothing else goes."""

from __future__ import annotations

import dataclasses
from typing import NoReturn

import pytest

from kelpie_celery.checkpoints import layout
from kelpie_celery.checkpoints.collect import Garbage, Tally
from kelpie_celery.checkpoints.manifests import Manifests
from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_celery.ledger import keys
from tests.harness.commits import Attempt
from tests.unit.checkpoint_harness import Bench, bench
from tests.unit.fake_s3 import refused

__all__ = ["bench"]  # a fixture

DAY_S = 86_400.0
RECORD, FOREIGN, PLAIN = "runs/a.kelpie/jobs/j/completed.json", "runs/a.kelpie/mine/data/x", "runs/a/plain"


def look(bench: Bench, older_than_s: float = 0.0, *, forgotten: bool = False, prefix: str = "runs/a/") -> Garbage:
    return bench.kelpie.find_garbage("bkt", prefix, older_than_s=older_than_s, forgotten=forgotten)


def collect(bench: Bench, older_than_s: float = 0.0, *, forgotten: bool = False) -> int:
    return bench.kelpie.delete_garbage(look(bench, older_than_s, forgotten=forgotten))


def ended_job(bench: Bench, commits: int = 4) -> Attempt:
    """A job that has ended, with commits of which the last two are kept, and things that are not of any commit."""
    bench.s3.now -= 10 * DAY_S
    for key in (RECORD, FOREIGN, PLAIN):
        bench.s3.put_object(Bucket="bkt", Key=key, Body=b"keep")
    attempt = bench.attempt()
    for n in range(commits):
        attempt.commit({"changes": b"%d" % n, "stays": b"same"})
    attempt.end()
    bench.s3.now += 10 * DAY_S
    return attempt


def forget(bench: Bench, attempt: Attempt) -> None:
    """Redis forgets the line."""
    for line in attempt.lines:
        bench.kelpie.app.ledger.redis.delete(keys.line(keys.line_digest(line.endpoint, line.bucket, line.prefix)))


def restorable(bench: Bench, attempt: Attempt) -> None:
    """All that the ledger keeps can be read still."""
    for entry in attempt.line().kept:
        manifests = Manifests(bench.s3.storage)
        manifest = manifests.load("bkt", entry.manifest)
        assert manifest is not None
        assert manifests.is_whole("bkt", "runs/a/", manifest)


def test_what_dropped_commits_alone_refer_to_goes(bench: Bench) -> None:
    attempt = ended_job(bench)
    garbage = look(bench)
    assert len(garbage.due) == 2
    # Of each dropped commit its manifest and the one segment that no other refers to.
    assert garbage.tallies["content"] == Tally(5, 8, 2, 2)
    assert (garbage.tallies["manifest"].objects, garbage.tallies["manifest"].garbage_objects) == (4, 2)
    assert (garbage.tallies["record"].objects, garbage.tallies["other"].objects) == (1, 1)
    assert bench.kelpie.delete_garbage(garbage) == 4
    assert {RECORD, FOREIGN, PLAIN} <= set(bench.s3.listed())
    assert len(bench.s3.listed()) == 3 + 3 + 2
    restorable(bench, attempt)
    assert attempt.line().dropped == ()
    assert look(bench).found == ()


def test_looking_deletes_nothing(bench: Bench) -> None:
    ended_job(bench)
    before = bench.s3.listed()
    assert look(bench).found
    assert bench.s3.listed() == before


def test_what_was_dropped_or_stored_a_moment_ago_stays(bench: Bench) -> None:
    attempt = ended_job(bench)
    # The commits were dropped just now; what nothing refers to at all is ten days old.
    orphan = layout.segments_of("runs/a/", "gone", 1, "aa") + "1"
    young = layout.segments_of("runs/a/", "gone", 1, "aa") + "2"
    bench.s3.put_object(Bucket="bkt", Key=young, Body=b"x")
    bench.s3.now -= 10 * DAY_S
    bench.s3.put_object(Bucket="bkt", Key=orphan, Body=b"x")
    assert [found.key for found in look(bench, DAY_S).found] == [orphan]
    assert collect(bench, DAY_S) == 1
    assert young in bench.s3.listed()
    assert len(attempt.line().dropped) == 2
    restorable(bench, attempt)


def test_manifests_that_a_kept_delta_is_based_on_stay(bench: Bench) -> None:
    attempt = bench.attempt()
    many = {f"{n:04}": b"same" for n in range(300)}
    for n in range(5):
        attempt.commit(many | {"x": b"%d" % n})
    attempt.end()
    assert collect(bench) == 3
    restorable(bench, attempt)


def test_a_live_job_that_holds_the_prefix_is_named_and_nothing_is_listed(bench: Bench) -> None:
    attempt = bench.attempt()
    attempt.commit({"a": b"1"})
    asked: list[str] = []
    bench.s3.before = lambda operation, _key: asked.append(operation)
    with pytest.raises(StorageSetupError, match=f"job {attempt.job_id} is pending or running"):
        look(bench)
    assert asked == []


def test_a_live_job_that_has_not_committed_yet_is_named_too(bench: Bench) -> None:
    ended_job(bench)
    attempt = bench.attempt()
    attempt.commit({"a": b"under way"}, accept=False)
    with pytest.raises(StorageSetupError, match=f"job {attempt.job_id} is pending or running"):
        look(bench)
    attempt.end()
    assert collect(bench) == 6


def test_a_job_that_begins_between_looking_and_deleting_stops_it(bench: Bench) -> None:
    ended_job(bench)
    garbage = look(bench)
    attempt = bench.attempt()
    before = bench.s3.listed()
    attempt._bases = dict.fromkeys(attempt.lines, attempt.line().kept[-1].id)
    attempt.commit({"a": b"1"})
    with pytest.raises(StorageSetupError, match=attempt.job_id):
        bench.kelpie.delete_garbage(garbage)
    attempt.end()
    with pytest.raises(StorageSetupError, match="look again"):
        bench.kelpie.delete_garbage(garbage)
    assert set(before) < set(bench.s3.listed())


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_nothing_goes_while_it_cannot_be_told_what_a_kept_commit_needs(bench: Bench, damage: str) -> None:
    attempt = ended_job(bench)
    key = attempt.line().kept[0].manifest
    if damage == "gone":
        bench.s3.delete_object(Bucket="bkt", Key=key)
    else:
        bench.s3.put_object(Bucket="bkt", Key=key, Body=b"x")
    with pytest.raises(StorageSetupError, match="nothing below s3://bkt/runs/a/ may be deleted"):
        look(bench)


def test_a_prefix_that_the_ledger_has_forgotten_needs_a_word(bench: Bench) -> None:
    forget(bench, ended_job(bench))
    with pytest.raises(StorageSetupError, match=r"on s3\.example:9000.*--forgotten"):
        look(bench)


def test_of_a_forgotten_prefix_the_newest_whole_checkpoint_stays(bench: Bench) -> None:
    attempt = ended_job(bench)
    newest = attempt.manifests[attempt.lines[0]]
    forget(bench, attempt)
    garbage = look(bench, forgotten=True)
    assert (garbage.forgotten, garbage.kept) == (True, (newest.header.id,))
    bench.kelpie.delete_garbage(garbage)
    assert set(bench.s3.listed()) == newest.refers_to() | {RECORD, FOREIGN, PLAIN}


def test_of_a_forgotten_prefix_a_broken_newest_is_passed_over(bench: Bench) -> None:
    attempt = ended_job(bench)
    *_, older, newest = attempt.line().kept
    broken = attempt.manifests[attempt.lines[0]]
    lost = next(extent.segment for extent in broken.files["changes"].extents)
    bench.s3.delete_object(Bucket="bkt", Key=lost)
    forget(bench, attempt)
    garbage = look(bench, forgotten=True)
    assert garbage.kept == (older.id,)
    assert newest.manifest in {found.key for found in garbage.found}


def test_a_checkpoint_of_several_prefixes_is_whole_with_all_of_them(bench: Bench) -> None:
    attempt = bench.attempt("runs/a/", "runs/b/")
    older = attempt.commit({"x": b"1"}, {"x": b"1"})
    attempt.commit({"x": b"2"}, {"x": b"2"})
    attempt.end()
    lost = attempt.manifests[attempt.lines[1]].files["x"].extents[0].segment
    bench.s3.delete_object(Bucket="bkt", Key=lost)
    forget(bench, attempt)
    assert look(bench, forgotten=True).kept == (older,)


def test_of_a_forgotten_prefix_nothing_goes_where_nothing_is_whole(bench: Bench) -> None:
    attempt = ended_job(bench, commits=1)
    for key in bench.s3.listed():
        if "/data/" in key and key != FOREIGN:
            bench.s3.delete_object(Bucket="bkt", Key=key)
    forget(bench, attempt)
    with pytest.raises(StorageSetupError, match="none of the 1 checkpoints"):
        look(bench, forgotten=True)


def test_of_a_forgotten_prefix_nothing_goes_where_something_newer_cannot_be_read(bench: Bench) -> None:
    attempt = ended_job(bench)
    forget(bench, attempt)
    bench.s3.put_object(Bucket="bkt", Key=layout.manifest_key("runs/a/", "0000000099-1-aa"), Body=b"of a later version")
    with pytest.raises(StorageSetupError, match="something cannot be read"):
        look(bench, forgotten=True)


def test_a_prefix_without_anything_of_ours_needs_no_word(bench: Bench) -> None:
    assert look(bench).found == ()
    bench.s3.put_object(Bucket="bkt", Key=RECORD, Body=b"keep")
    garbage = look(bench)
    assert (garbage.found, garbage.tallies["record"]) == ((), Tally(1, 4, 0, 0))


def test_the_neighbours_of_a_prefix_are_nobodys_business(bench: Bench) -> None:
    ended_job(bench)
    assert look(bench, prefix="runs/").found == ()
    assert look(bench, prefix="runs/a/b/").found == ()


def test_on_a_bucket_with_versions_the_versions_go(bench: Bench) -> None:
    bench.s3.versioned = True
    attempt = ended_job(bench)
    # A worker hid a segment without deleting its version; and somebody hid one that is needed.
    hidden = layout.segments_of("runs/a/", "gone", 1, "aa") + "1"
    needed = attempt.manifests[attempt.lines[0]].files["stays"].extents[0].segment
    bench.s3.put_object(Bucket="bkt", Key=hidden, Body=b"12345")
    for key in (hidden, needed):
        bench.s3.delete_object(Bucket="bkt", Key=key)
    garbage = look(bench)
    assert garbage.versions
    assert garbage.tallies["hidden"] == Tally(4, 9, 2, 5)
    assert bench.kelpie.delete_garbage(garbage) == 6
    assert hidden not in {key for (_, key), versions in bench.s3.objects.items() if versions}
    assert len(bench.s3.objects["bkt", needed]) == 2
    assert all(version.data is not None for key in bench.s3.listed() for version in bench.s3.objects["bkt", key])


def test_where_versions_are_listed_nothing_is_listed_twice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two listings of millions of objects need twice the memory."""
    bench.s3.versioned = True
    ended_job(bench)

    def twice(*_: object) -> NoReturn:
        raise AssertionError("listed again")

    monkeypatch.setattr("kelpie_celery.checkpoints.storage.Storage.list", twice)
    assert look(bench).versions


def test_a_marker_goes_after_what_it_hides(bench: Bench) -> None:
    bench.s3.versioned = True
    ended_job(bench)
    hidden = layout.segments_of("runs/a/", "gone", 1, "aa") + "1"
    bench.s3.put_object(Bucket="bkt", Key=hidden, Body=b"1")
    bench.s3.delete_object(Bucket="bkt", Key=hidden)
    garbage = look(bench)
    shown: list[bool] = []
    bench.s3.before = lambda operation, _key: (
        shown.append(hidden in bench.s3.listed()) if operation == "delete" else None
    )
    bench.kelpie.delete_garbage(garbage)
    assert not any(shown)


@pytest.mark.parametrize("answer", ["refuses", "takes no notice"])
def test_a_storage_without_versions_is_listed_plainly(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    ended_job(bench)
    bench.s3.knows_versions = False
    if answer == "takes no notice":
        monkeypatch.setattr("kelpie_celery.checkpoints.storage.Storage.versions", lambda *_: iter(()))
    garbage = look(bench)
    assert not garbage.versions
    assert bench.kelpie.delete_garbage(garbage) == 4


def test_a_storage_that_fails_in_the_middle_says_how_far_it_came(bench: Bench) -> None:
    attempt = ended_job(bench)
    garbage = look(bench)
    content = next(found.key for found in garbage.found if "/data/" in found.key)

    def fail(operation: str, key: str) -> None:
        if operation == "delete" and key == content:
            raise refused("SlowDown", 503)

    bench.s3.before = fail
    with pytest.raises(StorageUnavailable, match="about 2 of 4 objects"):
        bench.kelpie.delete_garbage(garbage)
    assert len(attempt.line().dropped) == 2
    bench.s3.before = lambda _operation, _key: None
    assert 1 <= collect(bench) <= 2
    restorable(bench, attempt)


def test_a_bucket_that_does_not_exist_is_named(bench: Bench) -> None:
    with pytest.raises(StorageSetupError, match="s3://nonesuch/"):
        bench.kelpie.find_garbage("nonesuch", "p/")


def test_what_was_found_says_how_much_room_it_takes(bench: Bench) -> None:
    ended_job(bench)
    garbage = look(bench)
    assert garbage.bytes == sum(found.size_bytes for found in garbage.found)
    assert dataclasses.replace(garbage, found=()).bytes == 0
