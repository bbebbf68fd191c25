"""The one place where errors of boto3 become errors of kelpie-celery, for commands that look at the storage themselves.

What a user must mend is a ``StorageSetupError``, what may pass a ``StorageUnavailable``.

Limits: texts of exceptions are not passed on, as they may quote a URL; what the storage itself says is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from kelpie_celery.errors import StorageError, StorageSetupError, StorageUnavailable

_PASSING = frozenset({
    "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown",
    "Throttling", "ThrottlingException", "TooManyRequests",
})  # fmt: skip
_NO_PERMISSION = "access is denied; check what the storage credentials may do with this bucket and prefix"
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist; check its name, and that AWS_ENDPOINT_URL is that of its storage",
    "InvalidBucketName": "the bucket's name is not valid here",
    "NoSuchKey": "the object does not exist",
    "AccessDenied": _NO_PERMISSION,
    "InvalidAccessKeyId": "the access key is unknown; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "SignatureDoesNotMatch": "the secret is wrong; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the temporary credentials have expired; set new ones",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "AuthorizationHeaderMalformed": "the region is wrong; check AWS_REGION",
    "PermanentRedirect": "the bucket is in another region or at another endpoint; check AWS_REGION",
}
# A HEAD has no body that would name the error.
_BY_STATUS = {301: "PermanentRedirect", 401: "AccessDenied", 403: "AccessDenied", 404: "NoSuchKey"}


@contextmanager
def mapped(doing: str, bucket: str, key: str = "") -> Iterator[None]:
    """Boto3's errors as ours.

    Args:
        doing: Goes on with "failed": ``reading``, ``listing``, ``writing``, ``deleting``.
        bucket: Of the request.
        key: Of the request; a prefix for a listing.

    Raises:
        StorageError: See the module.
    """
    # Takes a moment to import; whoever is here has loaded it.
    from botocore import exceptions as boto  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except boto.ClientError as error:
        told = _answered(doing, bucket, key, error)
        raise told from error
    except (boto.BotoCoreError, HTTPError, OSError) as error:
        # Without the exception itself behind it: its text, and that of its causes, may hold a URL.
        told = _failed(doing, bucket, key, error)
    else:
        return
    raise told


def _where(doing: str, bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}: {doing} failed"


def _answered(doing: str, bucket: str, key: str, error: object) -> StorageError:
    answer = getattr(error, "response", {})
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    detail = answer.get("Error", {})
    code = str(detail.get("Code", ""))
    code = code if code and not code.isdigit() else _BY_STATUS.get(status, code)
    said = f"{status} {code}".strip()
    server_failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED
    if server_failed or status == HTTPStatus.TOO_MANY_REQUESTS or code in _PASSING:
        text = f"{_where(doing, bucket, key)}: the storage answered {said}; try again later"
        return StorageUnavailable(text, bucket=bucket, key=key)
    message = str(detail.get("Message", ""))[:200]
    advice = _ADVICE.get(code, f"the storage refused: {message}" if message else "the storage refused")
    return StorageSetupError(f"{_where(doing, bucket, key)}: {advice} ({said})", bucket=bucket, key=key)


def _failed(doing: str, bucket: str, key: str, error: Exception) -> StorageError:
    from botocore import exceptions as boto  # noqa: PLC0415 -- as above

    where = _where(doing, bucket, key)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return no_credentials(bucket)
    if isinstance(error, boto.ParamValidationError | boto.InvalidRegionError | boto.UnknownEndpointError):
        text = f"{where}: not possible with these settings ({type(error).__name__}); check bucket and AWS_REGION"
        return StorageSetupError(text, bucket=bucket, key=key)
    if isinstance(error, boto.SSLError):
        text = f"{where}: the storage's TLS certificate is not trusted; check AWS_ENDPOINT_URL and AWS_CA_BUNDLE"
        return StorageSetupError(text, bucket=bucket, key=key)
    text = (
        f"{where}: the storage cannot be reached ({type(error).__name__}); check that it is up and that"
        " AWS_ENDPOINT_URL points to it"
    )
    return StorageUnavailable(text, bucket=bucket, key=key)


def no_credentials(bucket: str) -> StorageSetupError:
    """What to say where there are none."""
    return StorageSetupError(
        f"bucket {bucket!r} cannot be looked into without credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
        " and AWS_ENDPOINT_URL for a storage other than AWS", bucket=bucket,
    )  # fmt: skip
