"""The one place where errors of botocore, sockets and S3 become errors of kelpie-celery.

What a user must mend is a ``StorageSetupError`` (a failure of the job), what may pass a ``StorageUnavailable`` (an
interruption). A wrong guess towards the first fails a job for an outage; towards the second it hides a mistake.

Limits: the texts of aiohttp's errors are never passed on: they quote presigned URLs.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from http import HTTPStatus

from kelpie_celery.errors import StorageError, StorageSetupError, StorageUnavailable
from kelpie_worker.sync.object_store import ObjectChanged, UploadGone

# Answers with a 4xx status that are no fault of the user's: throttling, a request cut or damaged on its way, a race.
_PASSING = frozenset({
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "InvalidPart", "OperationAborted",
    "RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch",
})  # fmt: skip
# What storages say of a presigned request that arrives too late, or from a machine whose clock is wrong.
_LATE = frozenset({"ExpiredRequest", "RequestExpired", "RequestTimeTooSkewed"})

# What storages say of a header that they do not know; Cloudflare R2 and Backblaze B2 name it.
_UNKNOWN = frozenset({"NotImplemented", "InvalidRequest", "InvalidArgument"})
_HEADER = re.compile(r"header|checksum", re.IGNORECASE)

_ADVICE = {
    "NoSuchBucket": "the bucket does not exist; create it, or correct its name in the job definition",
    "InvalidBucketName": "the bucket's name is not valid here; correct it in the job definition",
    "NoSuchKey": "the object does not exist",
    "AccessDenied": "access is denied; check the permissions of the storage credentials for this bucket and prefix",
    "InvalidAccessKeyId": "the access key is unknown; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the temporary credentials have expired; give the workers new ones",
    "AuthorizationHeaderMalformed": "the region is wrong; check AWS_REGION",
    "PermanentRedirect": "the bucket is in another region or at another endpoint; check AWS_REGION",
}
_BY_STATUS = {301: "PermanentRedirect", 401: "AccessDenied", 403: "AccessDenied", 404: "NoSuchKey"}
_PASSING_STATUS = frozenset({
    HTTPStatus.OK, HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
})  # fmt: skip
_TAG = re.compile(r"<(Code|Message)>([^<]*)</\1>")


class LateRequest(StorageUnavailable):
    """The storage refused a presigned request because its time had run out."""


class ChecksumRefused(StorageSetupError):
    """The storage does not know a header, such as that of a checksum."""


class ConnectionBroken(StorageUnavailable):
    """The connection broke without an answer; the storage may have refused before it had the whole body."""


@dataclass(frozen=True)
class Doing:
    """What was being done to which object, for messages."""

    what: str
    bucket: str
    key: str = ""
    endpoint: str = ""

    def __str__(self) -> str:
        name = f"object {self.key!r}" if self.key else "listing"
        where = f"bucket {self.bucket!r}, {name}" if self.bucket else "the storage"
        return f"{where}: {self.what} failed"

    def setup(self, why: str) -> StorageSetupError:
        """An error that a user must mend."""
        return StorageSetupError(f"{self}: {why}", bucket=self.bucket, key=self.key)

    def unavailable(self, why: str) -> StorageUnavailable:
        """An error that may pass."""
        at = f" ({self.endpoint})" if self.endpoint else ""
        return StorageUnavailable(f"{self}: {why}{at}", bucket=self.bucket, key=self.key)


def code_and_message(xml: bytes) -> tuple[str, str]:
    """What an S3 error document says; empty strings when it is none."""
    found = dict(_TAG.findall(xml[:65536].decode(errors="replace")))
    return found.get("Code", ""), found.get("Message", "")


def from_answer(doing: Doing, status: int, code: str, message: str) -> StorageError:
    """The error that an answer of the storage means.

    Args:
        doing: The request.
        status: HTTP status, not 2xx; 200 for an error document in a successful answer.
        code: S3's error code, or a number or nothing where there was no document.
        message: S3's message.
    """
    code = code if code and not code.isdigit() else _BY_STATUS.get(status, code)
    said = f"{status} {code}".strip()
    if status == HTTPStatus.PRECONDITION_FAILED or code == "PreconditionFailed":
        return ObjectChanged(f"{doing}: it was replaced meanwhile", bucket=doing.bucket, key=doing.key)
    if code in _LATE or (code == "AccessDenied" and "expired" in message.lower()):
        return LateRequest(f"{doing}: sent too late ({said})", bucket=doing.bucket, key=doing.key)
    if code == "NoSuchUpload":
        return UploadGone(f"{doing}: the upload is gone ({said})", bucket=doing.bucket, key=doing.key)
    server_failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED
    if server_failed or status in _PASSING_STATUS or code in _PASSING:
        return doing.unavailable(f"the storage answered {said}")
    if code in _UNKNOWN and _HEADER.search(message):
        return ChecksumRefused(
            f"{doing}: the storage refused: {message[:200]} ({said})", bucket=doing.bucket, key=doing.key
        )
    advice = _ADVICE.get(code, f"the storage refused: {message[:200]}" if message else "the storage refused")
    return doing.setup(f"{advice} ({said})")


def from_exception(doing: Doing, error: BaseException) -> StorageError:
    """The error that an exception of botocore's, aiohttp's or a socket's means."""
    from botocore import exceptions as boto  # noqa: PLC0415 -- takes long to import; it is loaded when this is reached

    if isinstance(error, StorageError):
        return error
    if isinstance(error, boto.ClientError):
        answer = error.response
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        detail = answer.get("Error", {})
        return from_answer(doing, status, str(detail.get("Code", "")), str(detail.get("Message", "")))
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return doing.setup("no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, boto.ParamValidationError | boto.InvalidRegionError | boto.UnknownEndpointError):
        return doing.setup(f"not possible with these settings ({type(error).__name__})")
    if _is_certificate(error):
        return doing.setup("the storage's TLS certificate is not trusted; check AWS_ENDPOINT_URL")
    if isinstance(error, TimeoutError):
        return doing.unavailable("no answer in time")
    reason = doing.unavailable(_reason(error))
    return ConnectionBroken(str(reason), bucket=doing.bucket, key=doing.key)


def _is_certificate(error: BaseException) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, ssl.SSLCertVerificationError) or "CertificateError" in type(chain).__name__:
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _reason(error: BaseException) -> str:
    """A short reason without the URL that the exception's own text may quote."""
    if isinstance(error, OSError) and error.strerror and "http" not in error.strerror:
        return f"the connection failed: {error.strerror}"
    return f"the connection failed: {type(error).__name__}"
