"""``kelpie checkpoints`` against a real S3 server and a real Redis."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kelpie_celery.checkpoints import content
from kelpie_celery.cli import run
from kelpie_celery.client import Kelpie
from kelpie_celery.ledger import keys
from kelpie_celery.lifecycle import Status
from kelpie_celery.local.binaries import script
from kelpie_celery.local.ports import reserve
from kelpie_celery.settings import load_settings
from tests.harness.commits import MODE, MTIME_NS, Attempt, during
from tests.harness.isolation import FOREIGN_PREFIXES
from tests.unit.cli_harness import Answer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BOUND_S = 60.0
COMMAND = str(script("kelpie", "kelpie-celery"))
PREFIX = "runs/a/"


class Cli:
    """Runs ``kelpie checkpoints`` in this process: a process of its own takes a second of CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *argv: str, code: int = 0, **env: str) -> Answer:
        with self._monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            self._capsys.readouterr()
            answer = Answer(run(["checkpoints", *argv]), *self._capsys.readouterr())
        assert answer.code == code, answer
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in answer.out + answer.err
        return answer


@pytest.fixture
def cli(
    redis_url: str, s3_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    monkeypatch.setenv("KELPIE_REDIS_URL", redis_url)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Cli(monkeypatch, capsys)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def kelpie(redis_url: str, s3_env: dict[str, str]) -> Iterator[Kelpie]:
    with Kelpie(settings=load_settings({"KELPIE_REDIS_URL": redis_url, **s3_env})) as client:
        yield client


def attempt(kelpie: Kelpie, s3: S3Client, bucket: str, *prefixes: str) -> Attempt:
    return Attempt.of(kelpie, s3, during(*(prefixes or (PREFIX,)), bucket=bucket))


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def everything(s3: S3Client, bucket: str) -> set[tuple[str, str]]:
    """Every version of every object, and every marker."""
    answer = s3.list_object_versions(Bucket=bucket)
    found = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
    return {(one["Key"], one["VersionId"]) for one in found}


def test_a_checkpoint_comes_down_as_it_was(
    cli: Cli, kelpie: Kelpie, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    made = attempt(kelpie, s3, s3_bucket)
    files = {
        "big": os.urandom(content.WINDOW_BYTES + 5), "packs/well": b"0123456789" * 300_000, "empty": b"",
        "odd näme\n": b"x",
    }  # fmt: skip
    older = made.commit({"a": b"older"}, why="report")
    made.commit(files, links={"packs/l": "well"}, folders=["packs", "bare"])
    listed = cli("list", made.job_id, "--json").document
    assert [(one["id"] == older, one["head"]) for one in listed] == [(False, True), (True, False)]
    out = tmp_path / "out"
    assert "4 files" in cli("get", made.job_id, "-o", str(out)).out
    assert tree(out) == files
    status = (out / "big").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (MODE, MTIME_NS)
    assert str((out / "packs" / "l").readlink()) == "well"
    assert (out / "bare").is_dir()
    cli("get", made.job_id, older, "-o", str(tmp_path / "older"))
    assert tree(tmp_path / "older") == {"a": b"older"}
    assert "is not empty" in cli("get", made.job_id, "-o", str(out), code=2).err


def test_a_job_goes_back_and_on_from_there(
    cli: Cli, kelpie: Kelpie, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    made = attempt(kelpie, s3, s3_bucket, "runs/a/", "runs/b/")
    older = made.commit({"x": b"1"}, {"y": b"1"})
    made.commit({"x": b"2"}, {"y": b"2"})
    said = cli("rollback", made.job_id, older, "--yes", "--json").document
    assert said["status"] == "pending"
    newest = cli("list", made.job_id, "--json").document[0]
    assert (newest["id"], newest["head"], newest["why"]) == (said["checkpoint"], True, "rollback")
    cli("get", made.job_id, "-o", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == {"runs/a/x": b"1", "runs/b/y": b"1"}
    # It is pending until the lease of the attempt that was stopped is over; the next one goes on from there.
    assert kelpie.get(made.job_id).status is Status.PENDING
    kelpie.cancel(made.job_id)
    following = attempt(kelpie, s3, s3_bucket, "runs/a/", "runs/b/")
    assert cli("list", following.job_id, "--json").document[0]["id"] == said["checkpoint"]
    following.commit({"x": b"3"}, {"y": b"3"})


@pytest.mark.parametrize("versioned", [False, True])
def test_what_an_ended_job_leaves_is_collected_and_room_is_freed(
    cli: Cli, kelpie: Kelpie, s3: S3Client, s3_bucket: str, tmp_path: Path, versioned: bool
) -> None:
    if versioned:
        s3.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=s3_bucket, Key=f"{PREFIX}plain", Body=b"keep")
    made = attempt(kelpie, s3, s3_bucket)
    for n in range(4):
        made.commit({"changes": b"%d" % n, "stays": b"same"})
    place = f"s3://{s3_bucket}/{PREFIX}"
    assert made.job_id in cli("gc", place, "--older-than", "0", code=2).err
    made.end()
    before = everything(s3, s3_bucket)
    assert "nothing was deleted" in cli("gc", place, "--older-than", "0").err
    assert everything(s3, s3_bucket) == before
    assert "--yes" in cli("gc", place, "--older-than", "0", "--delete", code=2).err
    said = cli("gc", place, "--older-than", "0", "--delete", "--yes", "--json").document
    assert (said["deleted"], said["versions"], len(said["kept"])) == (4, True, 2)
    after = everything(s3, s3_bucket)
    # Gone for ever: no marker came in the place of what went.
    assert after < before
    assert len(before - after) == 4
    cli("get", made.job_id, "-o", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == {"changes": b"3", "stays": b"same"}
    assert cli("gc", place, "--older-than", "0", "--json").document["garbage_objects"] == 0


def test_of_a_forgotten_prefix_the_newest_checkpoint_stays(
    cli: Cli, kelpie: Kelpie, s3: S3Client, s3_bucket: str
) -> None:
    made = attempt(kelpie, s3, s3_bucket)
    for n in range(3):
        made.commit({"changes": b"%d" % n})
    made.end()
    line = made.lines[0]
    kelpie.app.ledger.redis.delete(keys.line(keys.line_digest(line.endpoint, line.bucket, line.prefix)))
    place = f"{s3_bucket}/{PREFIX}"
    assert "--forgotten" in cli("gc", place, "--older-than", "0", code=2).err
    cli("gc", place, "--older-than", "0", "--forgotten", "--delete", "--yes")
    assert {key for key, _ in everything(s3, s3_bucket)} == made.manifests[line].refers_to()


def test_what_is_wrong_with_the_storage_is_one_line_that_says_what_to_do(
    cli: Cli, kelpie: Kelpie, s3: S3Client, s3_bucket: str, tmp_path: Path
) -> None:
    made = attempt(kelpie, s3, s3_bucket)
    made.commit({"a": b"1"})
    get = ("get", made.job_id, "-o", str(tmp_path / "out"))
    none = attempt(kelpie, s3, s3_bucket, "runs/none/")
    cases = [
        (cli(*get, code=2, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""), "set AWS_ACCESS_KEY_ID"),
        (cli(*get, code=2, AWS_SECRET_ACCESS_KEY="wrong"), "check AWS_SECRET_ACCESS_KEY"),
        (cli(*get, code=2, AWS_ACCESS_KEY_ID="nonesuch"), "check AWS_ACCESS_KEY_ID"),
        (cli("gc", "s3://no-such-bucket-at-all/p", code=2), "the bucket does not exist"),
        (cli("get", none.job_id, "-o", str(tmp_path / "out"), code=2), "has stored no checkpoint yet"),
        (cli("get", "nonesuch", "-o", str(tmp_path / "out"), code=2), "no job has the id"),
        (cli("rollback", made.job_id, "0000000009-1-xx", "--yes", code=2), "choose one of those that are kept"),
    ]
    for done, words in cases:
        assert done.err.startswith("kelpie: error: "), done.err
        assert words in done.err
        assert done.err.count("\n") == 1
        assert done.out == ""
    assert not (tmp_path / "out").exists()


def test_a_storage_that_is_away_has_its_own_exit_code(cli: Cli) -> None:
    block = reserve()
    try:
        answer = cli("gc", "s3://bucket/prefix", code=69, AWS_ENDPOINT_URL=f"http://127.0.0.1:{block[0]}")
    finally:
        block.release()
    assert "check that it is up and that AWS_ENDPOINT_URL points to it" in answer.err


def test_in_a_process_of_its_own_it_is_the_same(
    kelpie: Kelpie, redis_url: str, s3: S3Client, s3_bucket: str, s3_env: dict[str, str], tmp_path: Path
) -> None:
    made = attempt(kelpie, s3, s3_bucket)
    id_ = made.commit({"a": b"1"})
    bare = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
    env = bare | s3_env | {"KELPIE_REDIS_URL": redis_url}
    argv = [COMMAND, "checkpoints", "get", made.job_id, "-o", str(tmp_path / "out")]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=BOUND_S, check=True)
    assert done.stdout == f"checkpoint {id_}: 1 file, 1 B, in {tmp_path / 'out'}\n"
    assert done.stderr == ""
    assert tree(tmp_path / "out") == {"a": b"1"}
