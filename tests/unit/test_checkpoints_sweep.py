"""What may be deleted, and what an object beside a prefix is."""

from __future__ import annotations

import pytest

from kelpie_celery.checkpoints import layout, sweep
from kelpie_celery.checkpoints.sweep import DroppedCommit

DROPPED = [DroppedCommit("old", 100.0), DroppedCommit("young", 950.0)]


def test_a_commit_is_either_live_or_due() -> None:
    live = sweep.live(["kept"], DROPPED, now=1000.0, grace_s=60.0)
    assert live == {"kept", "young"}
    assert sweep.due(DROPPED, now=1000.0, grace_s=60.0) == ["old"]
    # At the very moment it is due, it is live no more.
    assert sweep.live([], DROPPED, now=1010.0, grace_s=60.0) == set()
    assert sweep.due(DROPPED, now=1010.0, grace_s=60.0) == ["old", "young"]


def test_what_a_live_commit_refers_to_is_no_garbage() -> None:
    refers_to = {"old": {"a", "b"}, "kept": {"b"}}
    assert sweep.garbage(["old", "gone before"], ["kept"], refers_to) == {"a"}
    with pytest.raises(KeyError):
        sweep.garbage(["old"], ["unknown"], refers_to)


@pytest.mark.parametrize(
    ("key", "modified", "orphan"),
    [("x", 900.0, True), ("x", 940.1, False), ("x", 940.0, True), ("x", 0.0, False), ("referred", 900.0, False)],
)
def test_an_orphan_is_old_and_nothing_refers_to_it(key: str, modified: float, orphan: bool) -> None:
    assert sweep.is_orphan(key, modified, {"referred"}, 1000.0, 60.0) is orphan


def test_the_newest_whole_commit_is_found_without_asking_of_older_ones() -> None:
    asked: list[str] = []

    def is_whole(id_: str) -> bool:
        asked.append(id_)
        return id_ != "0000000003-1-aa"

    ids = [layout.commit_id(n, 1, "aa") for n in (2, 3, 1)]
    assert sweep.newest(ids, is_whole) == "0000000002-1-aa"
    assert asked == ["0000000003-1-aa", "0000000002-1-aa"]
    assert sweep.newest(ids, lambda _: False) is None


def test_each_kind_of_object_is_known_by_its_key() -> None:
    prefix = "runs/a/"
    segment = layout.segments_of(prefix, "job", 3, "0123456789abcdef") + "17"
    kinds = {
        segment: "content",
        layout.manifest_key(prefix, layout.commit_id(7, 3, "0123")): "manifest",
        "runs/a.kelpie/jobs/job/completed.json": "record",
        "runs/a.kelpie/commits/notes.txt": "other",
        "runs/a.kelpie/commits/x/0000000007-3-0123.json.zst": "other",
        "runs/a.kelpie/data/job/readme": "other",
        "runs/a.kelpie/data/job/3-01234567/x/y": "other",
        "runs/a.kelpie/mine": "other",
    }
    assert {key: layout.kind_of(prefix, key) for key in kinds} == kinds
    assert layout.job_of_segment(prefix, segment) == "job"
    assert layout.job_of_segment(prefix, "runs/a.kelpie/jobs/job/completed.json") is None
