"""Bringing checkpoints down; P3, P10."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kelpie_celery.checkpoints import content
from kelpie_celery.errors import CommitGone, DirectoryError, NoCheckpoint, StorageSetupError, StorageUnavailable
from tests.harness.commits import MODE, MTIME_NS
from tests.unit.checkpoint_harness import Bench, bench
from tests.unit.fake_s3 import refused

__all__ = ["bench"]  # a fixture

FILES = {"a": b"one", "deep/er/b": b"two" * 100_000, "empty": b""}


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_the_newest_is_brought_down_with_modes_times_links_and_folders(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    attempt.commit({"a": b"older"})
    newest = attempt.commit(FILES, links={"deep/l": "../a"}, folders=["deep", "none/here"])
    told: list[tuple[int, int]] = []
    done = bench.kelpie.download_checkpoint(
        attempt.job_id, tmp_path / "new" / "out", progress=lambda came, total: told.append((came, total))
    )
    out = tmp_path / "new" / "out"
    assert tree(out) == FILES
    assert (done.files, done.bytes) == (3, sum(map(len, FILES.values())))
    assert [(part.prefix, part.commit, part.folder) for part in done.parts] == [("s3://bkt/runs/a/", newest, "")]
    status = (out / "a").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (MODE, MTIME_NS)
    assert str((out / "deep" / "l").readlink()) == "../a"
    assert (out / "none" / "here").is_dir()
    assert told[-1][0] == told[-1][1] > 0


def test_an_older_one_is_brought_down_by_its_id_also_a_delta(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    many = {f"{n:04}": b"same" for n in range(300)}
    older = attempt.commit(many, why="report")
    delta = attempt.commit(many | {"new": b"1"}, why="report")
    assert attempt.manifests[attempt.lines[0]].chain
    attempt.commit({})
    bench.kelpie.download_checkpoint(attempt.job_id, tmp_path / "delta", delta)
    assert tree(tmp_path / "delta") == many | {"new": b"1"}
    with pytest.raises(CommitGone, match=f"kelpie checkpoints list {attempt.job_id}"):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path / "older", older)
    assert not (tmp_path / "older").exists()


def test_several_prefixes_go_to_folders_by_name(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt("runs/a/", "runs/b/")
    attempt.commit({"x": b"1"}, {"x": b"2"})
    bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)
    assert tree(tmp_path) == {"runs/a/x": b"1", "runs/b/x": b"2"}


def test_where_a_line_does_not_keep_the_checkpoint_it_is_told(bench: Bench, tmp_path: Path) -> None:
    first = bench.attempt("runs/a/")
    alone = first.commit({"x": b"1"})
    first.end()
    second = bench.attempt("runs/a/", "runs/b/")
    second.commit({"x": b"2"}, {"x": b"2"})
    done = bench.kelpie.download_checkpoint(second.job_id, tmp_path, alone)
    assert tree(tmp_path) == {"runs/a/x": b"1"}
    assert done.without == ("s3://bkt/runs/b/",)


def test_a_directory_that_holds_something_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    attempt.commit(FILES)
    (tmp_path / "mine").write_text("x")
    for directory in (tmp_path, tmp_path / "mine"):
        with pytest.raises(DirectoryError, match="name a new or an empty"):
            bench.kelpie.download_checkpoint(attempt.job_id, directory)
    assert tree(tmp_path) == {"mine": b"x"}


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = bench.attempt()
    attempt.commit(FILES)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with pytest.raises(DirectoryError, match="room for 10 bytes"):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [False, True])
def test_damaged_content_leaves_the_directory_as_it_was(bench: Bench, tmp_path: Path, kept: bool) -> None:
    attempt = bench.attempt()
    attempt.commit(FILES)
    out = tmp_path / "deep" / "out"
    if kept:
        out.mkdir(parents=True)
    bench.s3.body = lambda key, data: data if "commits" in key else data[::-1]
    with pytest.raises(StorageSetupError, match="choose another checkpoint"):
        bench.kelpie.download_checkpoint(attempt.job_id, out)
    assert list(tmp_path.rglob("*")) == ([tmp_path / "deep", out] if kept else [])


def test_damage_on_the_way_is_fetched_again(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    attempt.commit(FILES)
    damaged: set[str] = set()

    def once(key: str, data: bytes) -> bytes:
        if "commits" in key or key in damaged:
            return data
        damaged.add(key)
        return data[: len(data) // 2] if len(damaged) % 2 else data[::-1]

    bench.s3.body = once
    bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)
    assert tree(tmp_path) == FILES
    assert len(damaged) == 2


def test_a_storage_that_goes_away_is_given_up_after_some_tries(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    attempt.commit({"a": b"one"})
    asked: list[str] = []

    def away(operation: str, key: str) -> None:
        if operation == "get" and "/data/" in key:
            asked.append(key)
            raise refused("SlowDown", 503)

    bench.s3.before = away
    began = bench.clock.now()
    with pytest.raises(StorageUnavailable):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)
    assert len(asked) == 4
    assert bench.clock.now() - began == 0.5 + 1 + 2
    assert list(tmp_path.iterdir()) == []


def test_content_that_is_gone_is_named(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    attempt.commit({"a": b"one"})
    key = next(key for key in bench.s3.listed() if "/data/" in key)
    bench.s3.delete_object(Bucket="bkt", Key=key)
    with pytest.raises(StorageSetupError, match=key):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)


def test_content_that_is_shorter_than_it_was_is_damaged(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    attempt.commit({"a": b"one"})
    key = next(key for key in bench.s3.listed() if "/data/" in key)
    bench.s3.put_object(Bucket="bkt", Key=key, Body=b"o")
    with pytest.raises(StorageSetupError, match=f"{key}.* is shorter than its manifest says; choose another"):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_manifest_that_cannot_be_had_is_named(bench: Bench, tmp_path: Path, damage: str) -> None:
    attempt = bench.attempt()
    attempt.commit({"a": b"one"})
    key = attempt.manifests[attempt.lines[0]].key
    if damage == "gone":
        bench.s3.delete_object(Bucket="bkt", Key=key)
    else:
        bench.s3.put_object(Bucket="bkt", Key=key, Body=b"x")
    with pytest.raises(StorageSetupError, match=key):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)


def test_links_that_lead_out_by_way_of_others_are_left_out(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    # By its text `out` stays inside; through `deep/up`, which is the directory itself, it does not.
    links = {"deep/up": "..", "out": "deep/up/../x", "further": "out", "good": "a", "loop": "loop"}
    attempt.commit({"a": b"one"}, links=links, folders=["deep"])
    done = bench.kelpie.download_checkpoint(attempt.job_id, tmp_path / "inner")
    assert set(done.refused_links) == {"out", "further"}
    assert sorted(path.name for path in (tmp_path / "inner").iterdir()) == ["a", "deep", "good", "loop"]


def test_no_program_of_a_strangers_runs_as_somebody_else(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.harness.commits.MODE", 0o6755)
    attempt = bench.attempt()
    attempt.commit({"a": b"one"})
    bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("time_ns", [10**40, -(10**40)])
def test_a_time_that_no_disk_can_hold_is_refused_before_anything_is_written(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_ns: int
) -> None:
    monkeypatch.setattr("tests.harness.commits.MTIME_NS", time_ns)
    attempt = bench.attempt()
    attempt.commit({"a": b"one"})
    with pytest.raises(StorageSetupError, match="no file can have"):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_large_file_of_several_windows_is_the_same(bench: Bench, tmp_path: Path) -> None:
    data = os.urandom(content.WINDOW_BYTES) + b"z" * content.MIB
    attempt = bench.attempt()
    attempt.commit({"big": data})
    bench.kelpie.download_checkpoint(attempt.job_id, tmp_path)
    assert (tmp_path / "big").read_bytes() == data


def test_interrupting_leaves_nothing_behind(bench: Bench, tmp_path: Path) -> None:
    attempt = bench.attempt()
    attempt.commit(FILES)

    def interrupt(_came: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.kelpie.download_checkpoint(attempt.job_id, tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_job_without_checkpoints_says_why(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = bench.kelpie.submit({"command": "true", "container_group_id": "g", "sync": {}})
    fresh = bench.attempt()
    for job_id, words in (
        (without.id, "no block for them"),
        (fresh.job_id, "no checkpoint yet below s3://bkt/runs/a/"),
    ):
        with pytest.raises(NoCheckpoint, match=words):
            bench.kelpie.download_checkpoint(job_id, tmp_path)
    fresh.commit(FILES)
    settings = bench.kelpie.settings.model_copy(update={"aws_endpoint_url": "http://elsewhere.example"})
    monkeypatch.setattr(bench.kelpie, "settings", settings)
    with pytest.raises(NoCheckpoint, match=r"knows none below s3://bkt/runs/a/ on elsewhere\.example"):
        bench.kelpie.download_checkpoint(fresh.job_id, tmp_path)
