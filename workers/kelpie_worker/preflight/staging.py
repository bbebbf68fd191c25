"""The inputs of a job on the private storage: from folders of this machine, or from the user's own storage.

Limits: objects are copied one by one through this machine, ``MAX_BYTES`` in all at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from kelpie_celery.checkpoints.storage import Storage
from kelpie_celery.errors import StorageError
from kelpie_celery.transfers import Transfer
from kelpie_worker.preflight.errors import CannotVerify
from kelpie_worker.preflight.folder import is_folder

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_BYTES = 20 * 1024**3
_PIECE_BYTES = 8 * 1024 * 1024


def inputs_of(before: Sequence[Transfer]) -> dict[str, Transfer]:
    """What has to be there before a command starts, by ``bucket/prefix/``."""
    return {f"{one.bucket}/{one.prefix}": one for one in before if one.role == "input"}


def parse_inputs(given: Sequence[str]) -> dict[str, Path]:
    """Folders by ``bucket/prefix/``, of options ``bucket/prefix=DIR``.

    Raises:
        CannotVerify: One of them cannot be read as that, or names no folder.
    """
    found = {}
    for text in given:
        place, equals, folder = text.partition("=")
        bucket, slash, prefix = place.removeprefix("s3://").partition("/")
        if not (equals and slash and bucket and prefix.strip("/") and folder):
            raise CannotVerify(f"--input {text!r}: must be BUCKET/PREFIX=DIR")
        if not is_folder(Path(folder)):
            raise CannotVerify(f"--input {text!r}: {folder} is no directory")
        found[f"{bucket}/{prefix.rstrip('/')}/"] = Path(folder)
    return found


def check(wanted: Mapping[str, Transfer], folders: Mapping[str, Path], *, has_storage: bool) -> None:
    """Make sure that each input comes from somewhere, before anything is started.

    Raises:
        CannotVerify: One of them is nowhere, or a folder is for no input of the job.
    """
    unknown = sorted(set(folders) - set(wanted))
    if unknown:
        known = ", ".join(sorted(wanted)) or "none"
        raise CannotVerify(f"--input {unknown[0]}: is no input of the job; its inputs are: {known}")
    for place in sorted(set(wanted) - set(folders)):
        if not has_storage:
            raise CannotVerify(
                f"the input s3://{place} is needed before the command starts, and no credentials are set; give a "
                f"folder that stands for it by --input {place.rstrip('/')}=DIR, or set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for a storage other than AWS"
            )


def stage(
    wanted: Mapping[str, Transfer], folders: Mapping[str, Path], own: Storage | None, s3: S3Client,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Bring every input to the private storage, whose buckets exist.

    Args:
        wanted: The inputs, by place.
        folders: Folders that stand for some of them, by place.
        own: The user's storage; None where it is not known.
        s3: The private one.
        tell: Told of each input.

    Raises:
        CannotVerify: One of them is not where it should be, or too large.
    """
    for place, transfer in wanted.items():
        folder = folders.get(place)
        if folder is not None:
            tell(f"input s3://{place}: {_from_folder(folder, transfer, s3)} files of {folder}")
        elif own is not None:
            tell(f"input s3://{place}: {_from_storage(own, transfer, s3)} objects of your storage")


def _from_folder(folder: Path, transfer: Transfer, s3: S3Client) -> int:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise CannotVerify(f"{folder}: holds no file, and a job does not start without its inputs")
    for path in files:
        with path.open("rb") as file:
            s3.upload_fileobj(file, transfer.bucket, transfer.prefix + path.relative_to(folder).as_posix())
    return len(files)


def _from_storage(own: Storage, transfer: Transfer, s3: S3Client) -> int:
    try:
        found = list(own.list(transfer.bucket, transfer.prefix))
        size = sum(one.size_bytes for one in found)
        if size > MAX_BYTES:
            raise CannotVerify(
                f"the input s3://{transfer.bucket}/{transfer.prefix} has {size / 1024**3:.0f} GiB, too much to bring "
                f"here; give a smaller folder that stands for it by --input {transfer.bucket}/{transfer.prefix}=DIR"
            )
        for one in found:
            # Through a file: an object may be larger than the memory.
            with TemporaryFile() as file:

                def into(piece: memoryview, file: IO[bytes] = file) -> None:
                    file.write(piece)

                for at in range(0, one.size_bytes, _PIECE_BYTES):
                    own.fetch(transfer.bucket, one.key, at, min(_PIECE_BYTES, one.size_bytes - at), into)
                file.seek(0)
                s3.upload_fileobj(file, transfer.bucket, one.key)
    except StorageError as error:
        raise CannotVerify(
            f"the input s3://{transfer.bucket}/{transfer.prefix} cannot be brought here: {error}; or give a folder "
            f"that stands for it by --input {transfer.bucket}/{transfer.prefix}=DIR"
        ) from None
    if not found:
        raise CannotVerify(
            f"the input s3://{transfer.bucket}/{transfer.prefix} is empty: a job does not start without its inputs; "
            f"upload them, or give a folder by --input {transfer.bucket}/{transfer.prefix}=DIR"
        )
    return len(found)
