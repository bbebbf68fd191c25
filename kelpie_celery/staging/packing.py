"""Objects of jobs with ``compression``: their keys end in ``.gz``, and they are unpacked when they are fetched.

Limits: plain gzip.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from kelpie_celery.errors import StorageSetupError
from kelpie_celery.staging.content import MIB, Check, go_on, reading, writing

_ENDING = ".gz"


def is_packed(name: str) -> bool:
    """Whether an object of a job with ``compression`` is unpacked; one that is called ``.gz`` alone is not."""
    return name.endswith(_ENDING) and not name.endswith(f"/{_ENDING}") and name != _ENDING


def unpacked(name: str) -> str:
    """The name of the file that such an object becomes."""
    return name.removesuffix(_ENDING)


def unpack(packed: Path, url: str, bucket: str, key: str, check: Check = go_on) -> Path:
    """Unpack a file into one beside it, and remove it; ``check`` may end that by raising.

    Raises:
        DirectoryError: The disk refuses.
        StorageSetupError: It is not gzipped, or cut off.
    """
    target = packed.with_name(f"{packed.name}-unpacked")
    try:
        with writing(target), gzip.open(packed, "rb") as source, target.open("wb") as sink:
            try:
                while data := source.read(MIB):
                    check()
                    sink.write(data)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise _Bad from error
        packed.unlink()
    except _Bad:
        raise StorageSetupError(
            f"{url} is not gzipped, or cut off, although the job has `compression` and the name ends in {_ENDING}",
            bucket=bucket, key=key,
        ) from None  # fmt: skip
    return target


class _Bad(Exception):
    """What was fetched cannot be unpacked."""


def same_content(first: Path, second: Path) -> bool:
    """Whether two files hold the same bytes.

    Raises:
        DirectoryError: One cannot be read.
    """
    with reading(second), first.open("rb") as one, second.open("rb") as other:
        if first.stat().st_size != second.stat().st_size:
            return False
        while data := one.read(MIB):
            if data != other.read(MIB):
                return False
        return True
