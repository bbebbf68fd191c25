"""What is to be brought down: objects, and the files that they become.

Limits: names alone; what the disk makes of them is seen when they are put in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kelpie_celery.checkpoints.names import conflict
from kelpie_celery.errors import UnsafeKey
from kelpie_celery.staging.scratch import NAME


@dataclass(frozen=True)
class Wanted:
    """One object, and the file that it becomes.

    Attributes:
        bucket: Where it lies.
        key: Likewise.
        relative: The path of the file.
        size_bytes: Of the object.
        etag: Of the object, or empty.
        sha256: Of the object (hex), where somebody noted it; then it decides.
        unpack: It is gzipped.
    """

    bucket: str
    key: str
    relative: str
    size_bytes: int
    etag: str = ""
    sha256: str = ""
    unpack: bool = False

    @property
    def url(self) -> str:
        """For messages."""
        return f"s3://{self.bucket}/{self.key}"


def check_clash(wanted: Sequence[Wanted]) -> None:
    """Refuse what would be one file, or a folder where the other is a file, or in a folder of ours.

    Raises:
        UnsafeKey: Names the objects.
    """
    by_name: dict[str, Wanted] = {}
    for one in wanted:
        if one.relative.partition("/")[0] == NAME:
            text = f"{one.url} would be {one.relative!r}, which is a folder of kelpie's own; rename or delete it"
            raise UnsafeKey(text, bucket=one.bucket, key=one.key)
        other = by_name.setdefault(one.relative, one)
        if other is not one:
            raise clash(other, one, f"both become {one.relative!r}")
    two = conflict(by_name)
    if two:
        raise clash(by_name[two[0]], by_name[two[1]], "one is a file where the other needs a folder")


def clash(first: Wanted, second: Wanted, why: str) -> UnsafeKey:
    """The error that tells of two objects that cannot both be brought down."""
    text = f"{first.url} and {second.url} cannot both be brought down: {why}; rename or delete one"
    return UnsafeKey(text, bucket=first.bucket, key=first.key)
