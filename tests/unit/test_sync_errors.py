from __future__ import annotations

import ssl

import aiohttp
import pytest
from botocore import exceptions as boto

from kelpie_celery.errors import StorageError, StorageSetupError, StorageUnavailable
from kelpie_worker.sync.object_store import ObjectChanged, UploadGone
from kelpie_worker.sync.s3_errors import Doing, LateRequest, code_and_message, from_answer, from_exception

DOING = Doing("download", "bkt", "a/key", "storage.example:9000")


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (403, "AccessDenied", "Access Denied.", StorageSetupError),
        (403, "", "", StorageSetupError),
        (403, "InvalidAccessKeyId", "", StorageSetupError),
        (403, "SignatureDoesNotMatch", "", StorageSetupError),
        (400, "ExpiredToken", "The provided token has expired.", StorageSetupError),
        (404, "NoSuchBucket", "", StorageSetupError),
        (404, "NoSuchKey", "", StorageSetupError),
        (404, "404", "", StorageSetupError),
        (301, "PermanentRedirect", "", StorageSetupError),
        (400, "AuthorizationHeaderMalformed", "", StorageSetupError),
        (400, "InvalidBucketName", "", StorageSetupError),
        (501, "NotImplemented", "", StorageSetupError),
        (403, "AccessDenied", "Request has expired", LateRequest),
        (403, "ExpiredRequest", "", LateRequest),
        (403, "RequestTimeTooSkewed", "", LateRequest),
        (404, "NoSuchUpload", "", UploadGone),
        (412, "PreconditionFailed", "", ObjectChanged),
        (500, "InternalError", "", StorageUnavailable),
        (503, "SlowDown", "", StorageUnavailable),
        (502, "", "", StorageUnavailable),
        (429, "TooManyRequests", "", StorageUnavailable),
        (400, "BadDigest", "", StorageUnavailable),
        (400, "RequestTimeout", "", StorageUnavailable),
        (400, "IncompleteBody", "", StorageUnavailable),
        (409, "OperationAborted", "", StorageUnavailable),
        (200, "InternalError", "", StorageUnavailable),
    ],
)
def test_each_answer_has_one_meaning_and_names_bucket_and_key(
    status: int, code: str, message: str, kind: type[StorageError]
) -> None:
    error = from_answer(DOING, status, code, message)
    assert type(error) is kind
    assert (error.bucket, error.key) == ("bkt", "a/key")
    assert "'bkt'" in str(error)
    assert "'a/key'" in str(error)


def test_a_mistake_says_what_to_do() -> None:
    assert "AWS_SECRET_ACCESS_KEY" in str(from_answer(DOING, 403, "SignatureDoesNotMatch", ""))
    assert "create it" in str(from_answer(DOING, 404, "NoSuchBucket", ""))
    assert "permissions" in str(from_answer(DOING, 403, "AccessDenied", ""))


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(104, "Connection reset by peer"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError("Response payload is not completed"),
        boto.EndpointConnectionError(endpoint_url="http://storage.example"),
        boto.ReadTimeoutError(endpoint_url="http://storage.example"),
        boto.ConnectTimeoutError(endpoint_url="http://storage.example"),
        boto.ConnectionClosedError(endpoint_url="http://storage.example"),
        boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ],
)
def test_what_happens_to_connections_may_pass(error: Exception) -> None:
    mapped = from_exception(DOING, error)
    assert isinstance(mapped, StorageUnavailable)
    assert "storage.example:9000" in str(mapped)


def test_a_certificate_that_is_not_trusted_is_a_mistake() -> None:
    error = aiohttp.ClientError()
    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    assert isinstance(from_exception(DOING, error), StorageSetupError)


def test_a_presigned_url_never_gets_into_a_message() -> None:
    url = "https://storage.example/bkt/key?X-Amz-Signature=secret"
    error = aiohttp.ClientOSError(32, f"Can not write request body for {url}")
    assert "X-Amz" not in str(from_exception(DOING, error))


def test_the_document_of_an_error_is_read() -> None:
    assert code_and_message(b"<Error><Code>SlowDown</Code><Message>Please</Message></Error>") == ("SlowDown", "Please")
    assert code_and_message(b"<html>bad gateway</html>") == ("", "")
    assert code_and_message(b"\xff\xfe") == ("", "")
