from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import botocore.auth
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kelpie_celery.clock import ManualClock
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.signing import Presigner, StorageClock

CONFIG = StorageConfig("http://s3", access_key="AK", secret_key="SK", session_token="TOKEN")


def http_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def clock_at(wall: float) -> tuple[ManualClock, StorageClock]:
    machine = ManualClock(wall)
    return machine, StorageClock(machine)


def signed_window(url: str) -> tuple[float, int]:
    query = parse_qs(urlsplit(url).query)
    begin = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return begin.timestamp(), int(query["X-Amz-Expires"][0])


def test_the_machines_clock_counts_until_the_storage_has_answered() -> None:
    _, storage = clock_at(1_000_000.0)
    assert storage.now() == 1_000_000.0
    storage.learn(None)
    storage.learn("no date")
    assert storage.now() == 1_000_000.0


@pytest.mark.parametrize("ahead_s", [-7200.0, -0.3, 0.0, 0.3, 7200.0])
def test_the_storages_time_is_known_within_a_second_and_never_late(ahead_s: float) -> None:
    machine, storage = clock_at(1_000_000.7)
    truth = 1_000_000.7 + ahead_s
    for step in range(10):
        storage.learn(http_date(truth + step * 1.1))
        assert truth + step * 1.1 - 1.0 < storage.now() <= truth + step * 1.1 + 1e-6
        machine.advance(1.1)


@pytest.mark.parametrize("valid_s", [1.0, 2.9, 24.9, 600.0])
@pytest.mark.parametrize("wall", [1_000_000.0, 1_000_000.999])
def test_a_url_ends_with_the_trust_and_not_later(valid_s: float, wall: float) -> None:
    _, storage = clock_at(wall)
    begin, expires_s = signed_window(Presigner(CONFIG, storage).url("PUT", "http://s3/b", "k", valid_s=valid_s))
    assert begin <= wall
    assert wall + valid_s - 1.0 < begin + expires_s <= wall + valid_s


@pytest.mark.parametrize("base_url", ["http://s3/b", "https://b.s3.eu-west-1.amazonaws.com", "https://s3:9000/b"])
@pytest.mark.parametrize("key", ["k", "a b/ü+%~", "dir/name=1&2;'*(x)!"])
@pytest.mark.parametrize("token", [None, "TOKEN/+="])
def test_a_url_is_the_one_that_botocore_makes(
    base_url: str, key: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters come in another order, which does not matter to anybody."""
    query = {"uploadId": "a+b/c=", "partNumber": "7"}
    headers = {"x-amz-copy-source": "/b/a%20b", "Content-MD5": "x+/=="}
    _, storage = clock_at(1_000_000.0)
    ours = Presigner(replace(CONFIG, session_token=token), storage).url(
        "PUT", base_url, key, valid_s=60, query=query, headers=headers
    )
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: datetime.fromtimestamp(1_000_000, UTC))
    url = f"{base_url}/{quote(key, safe='/~')}"
    request: Any = AWSRequest(method="PUT", url=url, params=query, headers=headers)
    S3SigV4QueryAuth(Credentials("AK", "SK", token), "s3", CONFIG.region, expires=60).add_auth(request)
    assert urlsplit(ours)[:3] == urlsplit(request.url)[:3]
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(request.url).query)


def test_keys_parameters_and_headers_are_signed() -> None:
    _, storage = clock_at(1_000_000.0)
    url = Presigner(CONFIG, storage).url(
        "PUT", "http://s3/b", "a b/ü+%", valid_s=60, query={"partNumber": "1"}, headers={"Content-MD5": "x=="}
    )
    parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
    assert parts.path == "/b/a%20b/%C3%BC%2B%25"
    assert query["X-Amz-SignedHeaders"] == ["content-md5;host"]
    assert query["partNumber"] == ["1"]
    assert query["X-Amz-Security-Token"] == ["TOKEN"]
    assert "SK" not in url
