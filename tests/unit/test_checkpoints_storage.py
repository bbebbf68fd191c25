"""The storage of a person's commands, and what boto3's errors become."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import exceptions as boto

from kelpie_celery.checkpoints.storage import Found, open_storage
from kelpie_celery.checkpoints.storage_errors import mapped
from kelpie_celery.errors import StorageSetupError, StorageUnavailable
from kelpie_celery.settings import load_settings
from tests.unit.fake_s3 import FakeS3, refused

CANARY = "canary-secret"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (refused("NoSuchBucket", 404), StorageSetupError, "the bucket does not exist"),
        (refused("404", 404), StorageSetupError, "the object does not exist"),
        (refused("AccessDenied", 403), StorageSetupError, "access is denied"),
        (refused("403", 403), StorageSetupError, "access is denied"),
        (refused("InvalidAccessKeyId", 403), StorageSetupError, "AWS_ACCESS_KEY_ID"),
        (refused("SignatureDoesNotMatch", 403), StorageSetupError, "AWS_SECRET_ACCESS_KEY"),
        (refused("NotImplemented", 501), StorageSetupError, "the storage refused: no"),
        (refused("SlowDown", 503), StorageUnavailable, "try again later"),
        (refused("TooManyRequests", 429), StorageUnavailable, "try again later"),
        (boto.NoCredentialsError(), StorageSetupError, "AWS_ACCESS_KEY_ID"),
        (boto.EndpointConnectionError(endpoint_url=f"http://{CANARY}"), StorageUnavailable, "check that it is up"),
        (boto.ReadTimeoutError(endpoint_url=f"http://{CANARY}"), StorageUnavailable, "ReadTimeoutError"),
        (boto.SSLError(endpoint_url=f"http://{CANARY}", error=ValueError()), StorageSetupError, "certificate"),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), StorageUnavailable, "cannot be reached"),
        (ConnectionResetError(CANARY), StorageUnavailable, "cannot be reached"),
    ],
)
def test_an_error_says_what_which_and_what_to_do(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught, mapped("reading", "the-bucket", "the/key"):
        raise error
    assert type(caught.value) is kind
    assert "the-bucket" in str(caught.value)
    assert words in str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert CANARY not in str(chain)
        chain = chain.__cause__


def test_without_credentials_nothing_is_sent() -> None:
    storage = open_storage(load_settings({"KELPIE_REDIS_URL": "rediss://h", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}))
    with pytest.raises(StorageSetupError, match="AWS_ACCESS_KEY_ID"):
        storage.read("b", "k", 10)


def test_the_settings_alone_say_where_the_storage_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example")
    monkeypatch.setenv("AWS_PROFILE", "nonesuch")
    environment = {
        "KELPIE_REDIS_URL": "rediss://h", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_ENDPOINT_URL": "https://here.example:1",
    }  # fmt: skip
    made: Any = open_storage(load_settings(environment))._s3()
    assert made.meta.endpoint_url == "https://here.example:1"
    del environment["AWS_ENDPOINT_URL"]
    made = open_storage(load_settings(environment))._s3()
    assert made.meta.endpoint_url.endswith(".amazonaws.com")
    assert CANARY not in repr(open_storage(load_settings(environment)))


def test_a_listing_has_all_pages() -> None:
    s3 = FakeS3(now=5.0)
    for n in range(7):
        s3.put_object(Bucket="b", Key=f"p/{n}", Body=b"x" * n)
    s3.put_object(Bucket="b", Key="q", Body=b"")
    assert list(s3.storage.list("b", "p/")) == [Found(f"p/{n}", n, 5.0) for n in range(7)]


def test_versions_are_told_with_what_hides_them() -> None:
    s3 = FakeS3(now=5.0, versioned=True)
    s3.put_object(Bucket="b", Key="p", Body=b"x")
    s3.delete_object(Bucket="b", Key="p")
    content, marker = sorted(s3.storage.versions("b", "p"), key=lambda found: found.is_marker)
    assert content == Found("p", 1, 5.0, "v1", is_current=False)
    assert marker == Found("p", 0, 5.0, "v2", is_marker=True, is_current=False)
    s3.storage.delete("b", "p", "v1")
    s3.storage.delete("b", "p", "v2")
    assert list(s3.storage.versions("b", "p")) == []


def test_a_small_object_is_read_whole_or_not_at_all() -> None:
    s3 = FakeS3()
    s3.put_object(Bucket="b", Key="k", Body=b"12345")
    assert s3.storage.read("b", "k", 5) == b"12345"
    assert s3.storage.read("b", "nonesuch", 5) is None
    with pytest.raises(StorageSetupError, match="5 bytes"):
        s3.storage.read("b", "k", 4)


def test_a_range_that_breaks_off_is_an_outage() -> None:
    s3 = FakeS3(body=lambda _key, data: data[:4])
    s3.put_object(Bucket="b", Key="k", Body=b"1234567")
    came: list[bytes] = []
    with pytest.raises(StorageUnavailable):
        s3.storage.fetch("b", "k", 2, 5, lambda data: came.append(bytes(data)))
    assert b"".join(came) in (b"", b"34")


def test_putting_tells_the_version() -> None:
    assert FakeS3().storage.put("b", "k", b"x") == ""
    assert FakeS3(versioned=True).storage.put("b", "k", b"x") == "v1"
