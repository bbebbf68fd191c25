"""Which storage is staged to, and where on it.

Limits: names and settings only; nothing is asked.
"""

from __future__ import annotations

import os

from pydantic import TypeAdapter, ValidationError

from kelpie_celery import _fields
from kelpie_celery.checkpoints.names import is_reserved
from kelpie_celery.errors import StorageSetupError
from kelpie_celery.settings import Settings, load_settings

_SCHEME = "s3://"


def split_url(url: str) -> tuple[str, str]:
    """``s3://bucket/prefix`` as a bucket and a prefix, checked; the scheme may be missing.

    Raises:
        StorageSetupError: It is no such place.
    """
    bucket, _, prefix = url.removeprefix(_SCHEME).partition("/")
    return checked(bucket, prefix)


def checked(bucket: str, prefix: str) -> tuple[str, str]:
    """A bucket and a prefix as a job definition may have them; the prefix ends with ``/``.

    Raises:
        StorageSetupError: It may not.
    """
    try:
        bucket = TypeAdapter(_fields.Bucket).validate_python(bucket)
        prefix = TypeAdapter(_fields.Prefix).validate_python(prefix)
    except ValidationError as error:
        rule = error.errors()[0]["msg"]
    else:
        if not is_reserved(prefix):
            return bucket, prefix
        rule = "what lies in folders that end in .kelpie is kelpie's own"
    text = f"{_SCHEME}{bucket}/{prefix} is no place for files, such as {_SCHEME}bucket/prefix: {rule}"
    raise StorageSetupError(text, bucket=bucket, key=prefix)


def storage_settings(settings: Settings | None = None) -> Settings:
    """The settings of the storage, by default from the environment.

    Raises:
        SettingsError: One is wrong.
    """
    if settings is not None:
        return settings
    # Everybody else must name a Redis; here none is asked.
    given = {name: text for name, text in os.environ.items() if text.strip()}
    return load_settings({"KELPIE_REDIS_URL": "redis://localhost", **given})
