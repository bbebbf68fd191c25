r"""From object keys to paths and back, so that nothing is written outside of a directory.

A key is cut at its prefix (which ends in ``/``, so ``a/b/`` never matches ``a/bc/x``) and the rest must be a plain
relative path. Below a directory whose name ends in ``.kelpie`` lie our own records: such keys are no files of a job's.

Limits: POSIX paths; a ``\`` is an ordinary character of a name, but one that hides ``..`` is refused.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from kelpie_celery.errors import UnsafeKey
from kelpie_celery.transfers import CONTROL_SUFFIX

TEMPORARY = ".kelpie-tmp-"
"""How the names of our own temporary files begin; they are never stored."""
_MAX_NAME_BYTES = 255


def is_reserved(relative: str) -> bool:
    """Whether a relative path or key is our own: below ``*.kelpie/``, or a temporary file."""
    *folders, name = relative.split("/")
    return name.startswith(TEMPORARY) or any(folder.endswith(CONTROL_SUFFIX) for folder in folders)


def relative_path(bucket: str, prefix: str, key: str) -> str:
    """The path, relative to ``local_path``, of an object that lies under ``prefix``.

    Returns:
        A relative path; with a trailing ``/`` for a directory marker; empty for the marker of the prefix itself.

    Raises:
        UnsafeKey: The path would leave ``local_path`` or cannot exist; names bucket and key.
    """
    if not key.startswith(prefix):
        raise _unsafe(bucket, key, f"does not begin with {prefix!r}")
    relative = key[len(prefix) :]
    segments = relative.removesuffix("/").split("/") if relative else []
    if any(segment in {"", ".", ".."} for segment in segments):
        raise _unsafe(bucket, key, "has an empty, '.' or '..' segment below its prefix")
    if any(part == ".." for segment in segments for part in segment.split("\\")):
        raise _unsafe(bucket, key, "has '..' between backslashes")
    if "\0" in relative:
        raise _unsafe(bucket, key, "contains a NUL character")
    try:
        longest = max((len(os.fsencode(segment)) for segment in segments), default=0)
    except UnicodeEncodeError:
        raise _unsafe(bucket, key, "has a character that no name of a file can hold") from None
    if longest > _MAX_NAME_BYTES:
        raise _unsafe(bucket, key, f"has a segment of more than {_MAX_NAME_BYTES} bytes, which no file can have")
    return relative


def _unsafe(bucket: str, key: str, rule: str) -> UnsafeKey:
    return UnsafeKey(
        f"bucket {bucket!r}: object {key!r} {rule}, so it has no place in the job's directory;"
        " rename or delete it, or leave it out with a pattern",
        bucket=bucket, key=key,
    )  # fmt: skip


def check_parents(root: Path, relative: str, *, bucket: str, key: str) -> Path:
    """The path to write to, once no symbolic link on the way leads out of ``root``.

    Raises:
        UnsafeKey: A link leads out.
    """
    folder = root
    for segment in relative.split("/")[:-1]:
        folder = folder / segment
        if folder.is_symlink() and not is_below(folder, root):
            raise _unsafe(bucket, key, f"would be written through the link {folder}, out of {root}")
    return root / relative


def is_below(path: Path, root: Path) -> bool:
    """Whether a path, with all links followed, lies below ``root``; links that go in circles lead nowhere."""
    # Not ``Path.resolve``, which raises an error for those.
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def conflict(relatives: Iterable[str]) -> tuple[str, str] | None:
    """Two of the paths that cannot both exist, because one is a file and also a folder of the other; or None."""
    files = set(relatives)
    for relative in files:
        folder = os.path.dirname(relative)  # noqa: PTH120 -- keys are strings, and many
        while folder:
            if folder in files:
                return folder, relative
            folder = os.path.dirname(folder)  # noqa: PTH120
    return None


def leads_inside(relative: str, target: str) -> bool:
    """Whether a link's target is relative and stays, by its text, below the directory that the link is stored with."""
    if target.startswith("/") or "\0" in target:
        return False
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(relative), target))
    return joined != ".." and not joined.startswith("../")
