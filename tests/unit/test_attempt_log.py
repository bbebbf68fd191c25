"""Storing an attempt's log: within its bounds, told in the history whatever becomes of it, and no attempt's end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.clock import Instant, SystemClock
from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import LeaseLost, StorageSetupError
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.redaction import Redactor
from kelpie_celery.running import RunningJob, Stop
from kelpie_celery.settings import load_settings
from kelpie_worker import attempt_log
from kelpie_worker.attempt_log import AttemptLog
from kelpie_worker.stopping import StopWatch

TOKEN = FencingToken("job-1", 2, "0123456789")
WHERE = "s3://runs/logs/job-1/2-01234567.log"


class Shelf:
    """A storage that takes a log, fails, or never answers."""

    def __init__(self, folder: Path, error: Exception | None = None, *, stuck: bool = False) -> None:
        self._file, self._error, self._stuck = folder / "stored", error, stuck
        self.asked = asyncio.Event()
        self.was_cancelled = False

    async def store_log(self, bucket: str, key: str, compose: Callable[[Path, Callable[[], bool]], None]) -> int:
        self.asked.set()
        if self._error:
            raise self._error
        if self._stuck:
            try:
                await asyncio.Event().wait()
            finally:
                self.was_cancelled = True
        assert (bucket, key) == ("runs", "logs/job-1/2-01234567.log")
        compose(self._file, lambda: False)
        return self._file.stat().st_size

    @property
    def content(self) -> str:
        return self._file.read_text()


def make(folder: Path, **more: Any) -> AttemptLog:
    settings = load_settings({"KELPIE_REDIS_URL": "redis://localhost", "KELPIE_LOG_BYTES": "100"})
    base = {"command": "x", "container_group_id": "g", "sync": {}, "log_bucket": "runs", "log_prefix": "logs"}
    made = AttemptLog(settings, parse_definition(base | more), TOKEN, folder)
    made.started = True
    return made


def watch() -> tuple[StopWatch, RunningJob]:
    job = RunningJob(TOKEN, Instant.now(SystemClock()), lambda: None)
    return StopWatch(job), job


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def stored(log: AttemptLog, shelf: Shelf, *secrets: str) -> dict[str, Any]:
    try:
        return await log.store(shelf, watch()[0], Redactor(secrets), {})
    finally:
        log.close()


async def test_the_history_says_where_the_log_is(tmp_path: Path) -> None:
    log, shelf = make(tmp_path), Shelf(tmp_path)
    log.pen()(b"the token is hunter2\n")
    assert await stored(log, shelf, "hunter2") == {"log": WHERE, "log_bytes": 17}
    assert shelf.content == "the token is ***\n"


async def test_what_was_left_out_is_counted(tmp_path: Path) -> None:
    log, shelf = make(tmp_path), Shelf(tmp_path)
    log.pen()(b"0123456\n" * 100)
    assert (await stored(log, shelf))["log_left_out_bytes"] == 700
    assert "left out here: a log keeps 100 (KELPIE_LOG_BYTES)" in shelf.content


@pytest.mark.parametrize("error", [StorageSetupError("access denied", bucket="runs"), LeaseLost("lost"), OSError("no")])
async def test_whatever_fails_is_told_and_raises_nothing(tmp_path: Path, error: Exception) -> None:
    assert await stored(make(tmp_path), Shelf(tmp_path, error)) == {"log_failed": f"{WHERE}: {error}"}


async def test_an_error_that_nobody_foresaw_fails_no_job_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = ValueError("a secret place")
    assert await stored(make(tmp_path), Shelf(tmp_path, error)) == {
        "log_failed": f"{WHERE}: it failed in the worker: ValueError; see its log"
    }
    assert "worker_error" in [getattr(record, "action", "") for record in caplog.records]


async def test_a_storage_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt_log, "STORE_S", 0.05)
    shelf = Shelf(tmp_path, stuck=True)
    async with asyncio.timeout(10):
        facts = await stored(make(tmp_path), shelf)
    assert facts == {"log_failed": f"{WHERE}: it was not stored within 0.05 s"}
    assert shelf.was_cancelled


@pytest.mark.parametrize("why", list(Stop))
async def test_once_the_attempt_is_told_to_stop_it_is_given_up_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: Stop
) -> None:
    monkeypatch.setattr(attempt_log, "STORE_S", 3600.0)
    monkeypatch.setattr(attempt_log, "STOPPING_S", 0.05)
    shelf, (stop, job), log = Shelf(tmp_path, stuck=True), watch(), make(tmp_path)
    async with asyncio.timeout(10):
        storing = asyncio.create_task(log.store(shelf, stop, Redactor(), {}))
        await shelf.asked.wait()
        job.ask_to_stop(why)
        assert "not stored within 0.05 s" in (await storing)["log_failed"]
        # Told before, it does not wait longer either.
        assert "not stored within 0.05 s" in (await log.store(shelf, stop, Redactor(), {}))["log_failed"]
    log.close()


async def test_a_log_that_would_lie_among_the_jobs_files_is_not_stored(tmp_path: Path) -> None:
    block = {"bucket": "runs", "prefix": "logs/job-1", "local_path": "in", "direction": "download"}
    shelf = Shelf(tmp_path)
    facts = await stored(make(tmp_path, sync={"before": [block]}), shelf)
    assert facts == {"log_failed": f"{WHERE}: it would lie among what belongs to before[0] (logs/job-1/)"}
    assert not shelf.asked.is_set()


async def test_without_a_place_nothing_is_kept_or_stored(tmp_path: Path) -> None:
    log = make(tmp_path, log_bucket=None, log_prefix=None)
    log.pen()(b"a line\n")
    assert not log.is_wanted
    assert await stored(log, Shelf(tmp_path)) == {}
    assert names_in(tmp_path) == []
