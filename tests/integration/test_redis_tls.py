"""Everything runs over ``rediss://`` with the certificate verified, and nothing over one that is not good."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from kelpie_celery.client import Kelpie
from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.local.servers import ValkeyServer
from kelpie_celery.local.stack import LocalStack
from tests.harness.stack import FAST
from tests.harness.tls import TlsProxy
from tests.harness.waiting import eventually

JOB = {"command": "true", "container_group_id": "local", "sync": {}, "heartbeat_interval": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path_factory.mktemp("tls-redis"), appendfsync="no") as server:
        yield server


def url_of(proxy: TlsProxy, host: str = "localhost", ca: bool = True) -> str:
    return f"rediss://{host}:{proxy.port}/0" + (f"?ssl_ca_certs={proxy.ca_file}" if ca else "")


@pytest.mark.timeout(120)
def test_worker_control_worker_beat_and_client_work_over_tls(server: ValkeyServer, tmp_path: Path) -> None:
    with TlsProxy(tmp_path, server.port, "localhost") as proxy:
        url = url_of(proxy)
        stack = LocalStack(tmp_path / "stack", workers=1, redis_url=url, s3=False, env=FAST)
        try:
            stack.start()
            with Kelpie(url) as kelpie:
                assert kelpie.submit(JOB).wait(60).status == "completed"
                with Redis.from_url(server.url) as plain:
                    eventually("beat has its lock", lambda: bool(plain.exists("kelpie:beat::lock")))
                    eventually("the control worker does maintenance", lambda: ticked(plain))
        finally:
            stack.kill()


def ticked(redis: Redis) -> bool:
    """The control worker's ticks have a turn of their own."""
    return bool(redis.hexists("kelpie:g:local:tick", "last:100"))


@pytest.mark.parametrize("case", ["another name", "an unknown authority"])
def test_a_certificate_that_is_not_good_is_refused_and_told(server: ValkeyServer, tmp_path: Path, case: str) -> None:
    names = ["elsewhere.example"] if case == "another name" else ["localhost"]
    with Redis.from_url(server.url) as plain:
        plain.flushdb()
    with TlsProxy(tmp_path, server.port, *names) as proxy:
        url = url_of(proxy, ca=case == "another name")
        with (
            Kelpie(url, retry_s=0.0) as kelpie,
            pytest.raises(LedgerUnavailable, match=r"cannot be trusted .*ssl_ca_certs=FILE"),
        ):
            kelpie.submit(JOB)
        with Redis.from_url(server.url) as plain:
            assert plain.keys("kelpie:where:*") == []
        broker = kelpie.app.connection_for_write(connect_timeout=2)
        with pytest.raises(Exception, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            broker.ensure_connection(max_retries=1, interval_start=0, timeout=2)
        broker.release()


def test_a_worker_does_not_start_on_a_connection_in_the_clear() -> None:
    env = {"KELPIE_REDIS_URL": "redis://:hunter2@redis.internal/0", "SALAD_CONTAINER_GROUP_ID": "g", "PATH": ""}
    worker = subprocess.run(
        [sys.executable, "-m", "kelpie_worker.entrypoint"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert worker.returncode == 78
    assert "use rediss:// (TLS)" in worker.stderr
    assert "KELPIE_ALLOW_INSECURE=1" in worker.stderr
    assert "hunter2" not in worker.stderr + worker.stdout
    assert "Traceback" not in worker.stderr
