"""A whole attempt's storage side on a real S3 server, through the facade that the attempt uses."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kelpie_celery.checkpoints.address import endpoint_of
from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.errors import StorageSetupError
from kelpie_celery.ledger.types import LineAddress
from kelpie_celery.settings import Settings, load_settings
from kelpie_worker.sync import CommitReport, Dirs, LocalPathError, SyncSession
from tests.contract.fake_journal import MemoryLedger
from tests.contract.fakes_s3 import HandFence

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

JOB = "3c6a2a10-7f2b-4f8e-9f43-2f1b7a1f0a11"


@pytest.fixture
def settings(s3_env: dict[str, str], tmp_path: Path) -> Settings:
    return load_settings(
        {
            **s3_env, "KELPIE_REDIS_URL": "redis://127.0.0.1:1/0", "KELPIE_QUIET_S": "0.1",
            "KELPIE_COMMIT_INTERVAL_S": "0", "KELPIE_STORAGE_RETRY_S": "10", "KELPIE_WORKDIR": str(tmp_path / "work"),
        }
    )  # fmt: skip


@pytest.fixture
def definition(s3_bucket: str) -> JobDefinition:
    return with_buckets(s3_bucket)


def with_buckets(bucket: str, **more: Any) -> JobDefinition:
    return parse_definition(
        {
            "command": "true", "container_group_id": "g", "input_bucket": bucket, "input_prefix": "in",
            "checkpoint_bucket": bucket, "checkpoint_prefix": "ckpt", "output_bucket": bucket, "output_prefix": "out",
            **more,
        }
    )  # fmt: skip


class Attempt:
    """What an attempt needs, in directories of its own."""

    def __init__(self, tmp_path: Path, settings: Settings) -> None:
        self.settings = settings
        self.fence, self.ledger = HandFence(), MemoryLedger()
        self.reports: list[CommitReport] = []
        work, scratch = tmp_path / "work", tmp_path / "scratch"
        work.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        self.dirs = Dirs(work, work / "input", work / "output", work / "checkpoint")
        self.scratch = scratch

    async def note(self, report: CommitReport) -> None:
        self.reports.append(report)

    def open(self, definition: JobDefinition, attempt: int = 1) -> SyncSession:
        token = self.ledger.claim(JOB, attempt)
        return SyncSession.open(
            self.settings, definition, token=token, journal=self.ledger.journal(token), fence=self.fence,
            dirs=self.dirs, scratch=self.scratch, on_commit=self.note,
        )  # fmt: skip


@pytest.fixture
def attempt(tmp_path: Path, settings: Settings) -> Attempt:
    return Attempt(tmp_path, settings)


@asynccontextmanager
async def watching(sync: SyncSession) -> AsyncIterator[None]:
    task = asyncio.ensure_future(sync.watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def stored(s3: S3Client, bucket: str) -> dict[str, bytes]:
    listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {entry["Key"]: s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in listed}


async def test_the_life_of_an_attempt(
    attempt: Attempt, definition: JobDefinition, s3: S3Client, s3_env: dict[str, str], s3_bucket: str
) -> None:
    s3.put_object(Bucket=s3_bucket, Key="in/data.txt", Body=b"input")
    dirs = attempt.dirs
    dirs.output.mkdir()
    (dirs.output / "leftover").write_text("an earlier job's")
    async with attempt.open(definition) as sync:
        assert set(sync.local_paths) == {dirs.input, dirs.output, dirs.checkpoint}
        assert await sync.find_marker() is None
        await sync.restore()
        assert (dirs.input / "data.txt").read_bytes() == b"input"
        assert list(dirs.output.iterdir()) == []
        async with watching(sync):
            (dirs.checkpoint / "model").write_bytes(b"step 1")
            (dirs.output / "early").write_bytes(b"early output")
            async with asyncio.timeout(20):
                while not attempt.reports or "out/early" not in stored(s3, s3_bucket):
                    await asyncio.sleep(0.05)
        (dirs.checkpoint / "model").write_bytes(b"step 2")
        (dirs.output / "late").write_bytes(b"late output")
        assert (await sync.commit("exit")).files == 1
        assert sync.commits == 2
        assert sync.move_outputs_aside()
        assert list(dirs.output.iterdir()) == list(dirs.checkpoint.iterdir()) == []
        (dirs.output / "next").write_text("the next job's")
        sent_before = sync.bytes_sent
        listing = await sync.upload_outputs()
        assert sync.bytes_sent - sent_before == len(b"late output")  # what went up before is not sent again
        await sync.write_marker({"exit_code": 0, "outputs": listing.summary()})
        sync.clean()
        sync.clean()
    assert (dirs.output / "next").read_text() == "the next job's"
    assert list(attempt.scratch.iterdir()) == []
    assert sorted(path.name for path in dirs.workdir.iterdir()) == ["checkpoint", "input", "output"]
    objects = stored(s3, s3_bucket)
    records = f"out.kelpie/jobs/{JOB}/"
    line = attempt.ledger.lines[LineAddress(endpoint_of(s3_env["AWS_ENDPOINT_URL"]), s3_bucket, "ckpt/")]
    assert [commit.why for commit in line.kept] == ["quiet", "exit"]
    segments = [key for key in objects if key.startswith(f"ckpt.kelpie/data/{JOB}/1-")]
    assert len(segments) == 2
    assert set(objects) == {
        "in/data.txt", "ckpt/model", "out/early", "out/late", f"{records}completed.json", f"{records}outputs-1.json",
        *segments, *(commit.manifest for commit in line.kept),
    }  # fmt: skip
    assert objects["ckpt/model"] == b"step 2"
    kept = objects[f"{records}outputs-1.json"]
    assert hashlib.sha256(kept).hexdigest() == listing.digest == listing.summary()["sha256"]
    assert {row["key"]: row["sha256"] for row in json.loads(kept)["files"]} == {
        key: hashlib.sha256(objects[key]).hexdigest() for key in ("out/early", "out/late")
    }


async def test_the_next_attempt_finds_the_marker_and_another_definition_does_not(
    attempt: Attempt, definition: JobDefinition, s3: S3Client, s3_bucket: str
) -> None:
    async with attempt.open(definition) as sync:
        await sync.upload_outputs()
        await sync.write_marker({"exit_code": 0})
    async with attempt.open(definition, attempt=2) as sync:
        marker = await sync.find_marker()
        assert marker is not None
        assert (marker["result"], marker["attempt"]) == ({"exit_code": 0}, 1)
    async with attempt.open(with_buckets(s3_bucket, arguments=["other"]), attempt=2) as sync:
        assert await sync.find_marker() is None
    s3.put_object(Bucket=s3_bucket, Key=f"out.kelpie/jobs/{JOB}/completed.json", Body=b"{damaged")
    async with attempt.open(definition, attempt=2) as sync:
        assert await sync.find_marker() is None


async def test_a_checkpoint_goes_from_attempt_to_attempt(
    attempt: Attempt, definition: JobDefinition, s3: S3Client, s3_bucket: str
) -> None:
    s3.put_object(Bucket=s3_bucket, Key="in/data.txt", Body=b"input")
    async with attempt.open(definition) as sync:
        await sync.restore()
        (attempt.dirs.checkpoint / "model").write_bytes(b"step 1")
        await sync.commit("sigterm")
        sync.clean()
    assert not (attempt.dirs.checkpoint / "model").exists()
    async with attempt.open(definition, attempt=2) as sync:
        await sync.restore()
        assert (attempt.dirs.checkpoint / "model").read_bytes() == b"step 1"
        assert (await sync.commit("exit")).files == 0


async def test_compressed_outputs_and_checkpoints_come_back_unpacked(
    attempt: Attempt, s3: S3Client, s3_bucket: str
) -> None:
    definition = with_buckets(s3_bucket, compression=True)
    s3.put_object(Bucket=s3_bucket, Key="in/data.txt.gz", Body=gzip.compress(b"input"))
    async with attempt.open(definition) as sync:
        await sync.restore()
        assert (attempt.dirs.input / "data.txt").read_bytes() == b"input"
        (attempt.dirs.checkpoint / "model").write_bytes(b"step 1")
        (attempt.dirs.output / "result").write_bytes(b"result")
        await sync.commit("exit")
        sync.move_outputs_aside()
        await sync.upload_outputs()
    objects = stored(s3, s3_bucket)
    assert gzip.decompress(objects["ckpt/model.gz"]) == b"step 1"
    assert gzip.decompress(objects["out/result.gz"]) == b"result"
    async with attempt.open(definition, attempt=2) as sync:
        await sync.restore()
        assert (attempt.dirs.checkpoint / "model").read_bytes() == b"step 1"


async def test_a_missing_input_stops_the_attempt_and_names_bucket_and_prefix(
    attempt: Attempt, definition: JobDefinition, s3_bucket: str
) -> None:
    async with attempt.open(definition) as sync:
        with pytest.raises(StorageSetupError, match=f"'{s3_bucket}', prefix 'in/'.*holds no object"):
            await sync.restore()


async def test_sync_blocks_do_the_same_as_the_older_fields(attempt: Attempt, s3: S3Client, s3_bucket: str) -> None:
    s3.put_object(Bucket=s3_bucket, Key="data/a.csv", Body=b"1")
    s3.put_object(Bucket=s3_bucket, Key="data/b.txt", Body=b"2")

    def block(prefix: str, path: str, direction: str, **more: str) -> dict[str, str]:
        return {"bucket": s3_bucket, "prefix": prefix, "local_path": path, "direction": direction, **more}

    definition = parse_definition(
        {
            "command": "true", "container_group_id": "g",
            "sync": {
                "before": [block("data", "in", "download", pattern=r"\.csv$"), block("state", "state", "download")],
                "during": [block("state", "state", "upload")],
                "after": [block("result", str(attempt.dirs.workdir / "res"), "upload", pattern=r"^keep")],
            },
        }
    )  # fmt: skip
    work = attempt.dirs.workdir
    async with attempt.open(definition) as sync:
        await sync.restore()
        assert [path.name for path in (work / "in").iterdir()] == ["a.csv"]
        (work / "state" / "s").write_bytes(b"s")
        (work / "res" / "keep").write_bytes(b"k")
        (work / "res" / "drop").write_bytes(b"d")
        await sync.commit("exit")
        listing = await sync.upload_outputs()
        sync.clean()
    assert [file.key for file in listing.files] == ["result/keep"]
    assert {"state/s", "result/keep"} <= set(stored(s3, s3_bucket))
    assert "result/drop" not in stored(s3, s3_bucket)


async def test_a_job_without_storage_connects_nowhere_and_does_nothing(attempt: Attempt) -> None:
    definition = parse_definition({"command": "true", "container_group_id": "g", "sync": {}})
    async with attempt.open(definition) as sync:
        assert sync.local_paths == []
        assert await sync.find_marker() is None
        await sync.restore()
        sync.request_commit()
        async with watching(sync):
            await asyncio.sleep(0)
        assert (await sync.commit("exit")).files == 0
        assert sync.move_outputs_aside()
        assert (await sync.upload_outputs()).summary()["files"] == 0
        await sync.write_marker({})
        sync.clean()
        assert (sync.commits, sync.bytes_sent) == (0, 0)


def test_a_job_without_storage_never_loads_the_storage_library() -> None:
    code = "import sys, kelpie_worker.sync; sys.exit(any(m in sys.modules for m in ('aiobotocore', 'aiohttp')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


async def test_an_output_directory_that_does_not_exist_counts_as_empty(
    attempt: Attempt, definition: JobDefinition, caplog: pytest.LogCaptureFixture
) -> None:
    async with attempt.open(definition) as sync:
        assert (await sync.upload_outputs()).files == ()
    assert any(getattr(record, "action", "") == "output_missing" for record in caplog.records)


async def test_a_directory_that_is_not_the_jobs_alone_is_refused(attempt: Attempt, s3_bucket: str) -> None:
    definition = parse_definition(
        {
            "command": "true", "container_group_id": "g",
            "sync": {"after": [{"bucket": s3_bucket, "prefix": "o", "local_path": "/etc", "direction": "upload"}]},
        }
    )  # fmt: skip
    with pytest.raises(LocalPathError, match=r"after\[0\].*/etc"):
        attempt.open(definition)


async def test_a_checkpoint_that_is_half_sent_when_the_command_ends_is_not_sent_twice(
    attempt: Attempt, definition: JobDefinition, s3: S3Client, s3_bucket: str
) -> None:
    s3.put_object(Bucket=s3_bucket, Key="in/data.txt", Body=b"input")
    size = 40 * 1024 * 1024
    async with attempt.open(definition) as sync:
        await sync.restore()
        async with watching(sync):
            (attempt.dirs.checkpoint / "model").write_bytes(b"x" * size)
            async with asyncio.timeout(20):
                while sync.bytes_sent == 0:
                    await asyncio.sleep(0.005)
        report = await sync.commit("exit", plain=False)
        assert size <= report.sent_bytes == sync.bytes_sent < size + 10_000
        assert sync.commits == 1
    found = s3.list_objects_v2(Bucket=s3_bucket, Prefix="ckpt.kelpie/data/")["Contents"]
    assert sum(entry["Size"] for entry in found) == size
