"""The cache of inputs on a real storage, and shared by processes that are killed at any moment."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kelpie_celery.definition import parse_definition
from kelpie_celery.settings import load_settings
from kelpie_worker.sync import Dirs, SyncSession, cache_folder
from kelpie_worker.sync.cache import CacheAddress, InputCache
from kelpie_worker.sync.cache_folder import OVERHEAD_BYTES
from tests.contract.fake_journal import MemoryLedger
from tests.contract.fakes_s3 import HandFence
from tests.integration.sync_proxy import proxy_before

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SIZE = 100_000
KEYS = 12
LIMIT = 8 * (SIZE + OVERHEAD_BYTES)
PROCESSES = 3
WRITER = """
import random, sys
from pathlib import Path
from kelpie_worker.sync import cache_folder
from kelpie_worker.sync.cache import InputCache
from tests.integration.test_sync_cache import LIMIT, work

cache_folder._FREE_BYTES = cache_folder._FREE_SHARE = 0
cache = InputCache(Path(sys.argv[1]), LIMIT)
work(cache, Path(sys.argv[2]), random.Random(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def _any_disk_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "_FREE_BYTES", 0)
    monkeypatch.setattr(cache_folder, "_FREE_SHARE", 0.0)


@pytest.mark.parametrize("read_only", [False, True])
async def test_the_second_attempt_on_a_machine_fetches_no_input(
    tmp_path: Path, s3: S3Client, s3_env: dict[str, str], s3_bucket: str, read_only: bool
) -> None:
    data = {"in/model.bin": os.urandom(3_000_000), "in/deep/a.csv": b"1,2", "state/step": b"7"}
    for key, body in data.items():
        s3.put_object(Bucket=s3_bucket, Key=key, Body=body)
    where = {"bucket": s3_bucket, "direction": "download"}
    sync = {
        "before": [
            {**where, "prefix": "in", "local_path": "in", "read_only": read_only},
            {**where, "prefix": "state", "local_path": "state"},
        ],
        "during": [{"bucket": s3_bucket, "prefix": "state", "local_path": "state", "direction": "upload"}],
    }
    definition = parse_definition({"command": "true", "container_group_id": "g", "sync": sync})
    work, scratch = tmp_path / "work", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    dirs = Dirs(work, work / "input", work / "output", work / "checkpoint")
    async with proxy_before(s3_env["AWS_ENDPOINT_URL"]) as proxy:
        settings = load_settings(
            {
                **s3_env, "AWS_ENDPOINT_URL": proxy.url, "KELPIE_REDIS_URL": "redis://127.0.0.1:1/0",
                "KELPIE_CACHE_BYTES": "1G", "KELPIE_CACHE_DIR": str(tmp_path / "cache"), "KELPIE_WORKDIR": str(work),
            }
        )  # fmt: skip
        ledger = MemoryLedger()
        for attempt in (1, 2):
            proxy.seen.clear()
            token = ledger.claim("job", attempt)
            async with SyncSession.open(
                settings, definition, token=token, journal=ledger.journal(token), fence=HandFence(), dirs=dirs,
                scratch=scratch,
            ) as session:  # fmt: skip
                report = await session.restore()
                assert report.bytes == sum(map(len, data.values()))
                assert {key: (work / key).read_bytes() for key in data} == data
                # A checkpoint is fetched each time, an input once.
                assert proxy.count("GET", "/state/step") == 1
                assert (proxy.count("GET", "/in/") > 0) is (attempt == 1)
                await session.end_watch()
                session.clean()


def content(key: int) -> bytes:
    return random.Random(key).randbytes(SIZE)


def at(key: int) -> CacheAddress:
    return CacheAddress("http://s3", "bucket", str(key), "etag", SIZE)


def work(cache: InputCache, folder: Path, dice: random.Random, rounds: int) -> None:
    """What restores do: look, bring down what is not there, keep it; every file must be the right one."""
    for turn in range(rounds):
        key, read_only = dice.randrange(KEYS), dice.random() < 0.5
        file = folder / str(turn)
        if not cache.place(at(key), file, read_only=read_only):
            file.write_bytes(content(key))
            cache.add(at(key), file, read_only=read_only)
        assert hashlib.md5(file.read_bytes()).digest() == hashlib.md5(content(key)).digest(), f"{key} is damaged"
        file.unlink()


def test_processes_that_share_a_cache_and_are_killed_leave_it_whole_and_bounded(tmp_path: Path) -> None:
    home = tmp_path / "cache"
    home.mkdir()
    dice = random.Random(1)
    cache = InputCache(home, LIMIT)

    def start(number: int, rounds: int) -> subprocess.Popen[bytes]:
        folder = tmp_path / f"job-{number}"
        folder.mkdir()
        command = [sys.executable, "-c", WRITER, str(home), str(folder), str(rounds)]
        return subprocess.Popen(command, cwd=Path(__file__).parents[2])

    writers = [start(number, 1_000_000) for number in range(PROCESSES)]
    try:
        while len(list((home / "objects").rglob("*-*"))) < LIMIT // (SIZE + OVERHEAD_BYTES) // 2:
            assert all(writer.poll() is None for writer in writers)
            time.sleep(0.05)
        for number in range(PROCESSES, PROCESSES + 6):
            time.sleep(dice.uniform(0.1, 0.3))
            victim = writers.pop(0)
            assert victim.poll() is None, "a writer met a damaged file"
            victim.send_signal(signal.SIGKILL)
            victim.wait(10)
            writers.append(start(number, 1_000_000))
    finally:
        for writer in writers:
            writer.kill()
        for writer in writers:
            writer.wait(10)
    last = start(99, 50)
    assert last.wait(60) == 0

    assert list((home / "tmp").iterdir()) == []
    kept = [path for path in (home / "objects").rglob("*") if path.is_file()]
    assert 1 <= len(kept) <= LIMIT // (SIZE + OVERHEAD_BYTES)
    found = [key for key in range(KEYS) if cache.place(at(key), tmp_path / f"found-{key}")]
    assert len(found) == len(kept)
    assert all((tmp_path / f"found-{key}").read_bytes() == content(key) for key in found)
