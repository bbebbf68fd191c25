"""Servers, buckets and stacks for the tests: our own, on ports that nobody else has.

A missing server program fails the tests that need it; nothing is skipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from kelpie_celery.local.servers import SeaweedServer, ValkeyServer
from tests.harness.isolation import leftovers, scrub_environment
from tests.harness.short_of import left_out
from tests.harness.stack import StackFactory

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

scrub_environment()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Of a shell that started the tests in its background; what tests start, and interrupt, would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is left out, lest somebody believes that it ran."""
    chosen = str(config.getoption("-m"))
    known = [
        ("gromacs", "GROMACS", "gmx"),
        ("containers", "the images", "podman"),
        ("browser", "Flower in a browser", "chromium"),
        ("gpu", "a training on a GPU", "nvidia-smi"),
    ]
    apart = [(marker, what, program) for marker, what, program in known if f"not {marker}" in chosen]
    there = {program: "is" if shutil.which(program) else "is not" for _, _, program in apart}
    return left_out(config.args) + [
        f"left out: {what} ({program} {there[program]} on PATH); make test-{marker} runs it"
        for marker, what, program in apart
    ]


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fails the session when a process that a test started outlives it."""
    yield
    left = leftovers()
    if left:
        pytest.fail("processes were left behind (and are killed now):\n" + "\n".join(left))


@pytest.fixture(scope="session")
def servers_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for the servers of this test process; removed at the end, as S3 data takes space."""
    directory = tmp_path_factory.mktemp("servers")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server(servers_directory: Path) -> Iterator[ValkeyServer]:
    """One Redis for this test process; ``everysec``, as no test takes the power away."""
    server = ValkeyServer(servers_directory / "redis", appendfsync="everysec")
    with server:
        yield server


@pytest.fixture
def redis_url(redis_server: ValkeyServer) -> str:
    """URL of an empty database; empty once more for each test."""
    if not redis_server.running:
        redis_server.start()
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    return redis_server.url


@pytest.fixture(scope="session")
def s3_server(servers_directory: Path) -> Iterator[SeaweedServer]:
    """One S3 server for this test process."""
    server = SeaweedServer(servers_directory / "s3")
    server.start()
    yield server
    with contextlib.suppress(Exception):
        server.kill()  # nobody needs its data; an orderly stop takes 2 s
    server.close()


@pytest.fixture
def s3(s3_server: SeaweedServer) -> S3Client:
    """A boto3 client of the S3 server, which runs whatever an earlier test did to it."""
    if not s3_server.running:
        s3_server.start()
    s3_server.resume()
    return s3_server.client()


@pytest.fixture
def s3_bucket(s3: S3Client, request: pytest.FixtureRequest) -> str:
    """A new, empty bucket, named after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    bucket = f"t-{name}-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture
def s3_env(s3_server: SeaweedServer, s3: S3Client, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The ``AWS_*`` variables of the S3 server, set for this test."""
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return {name: os.environ[name] for name in s3_server.env()}


@pytest.fixture
def make_stack(s3_server: SeaweedServer, s3: S3Client, tmp_path: Path) -> Iterator[StackFactory]:
    """Makes stacks of real processes, with fast settings; all are gone when the test ends."""
    factory = StackFactory(tmp_path, s3_server)
    yield factory
    factory.close()
