"""A copy of the user's working directory for each pretended machine, so that nothing of the user's is written to.

A container starts from its image: what a program leaves in its working directory is not there on the next machine. So
each machine gets a fresh copy. Caches and version control are left out, virtual environments are linked to.

Limits: regular files, folders and links; at most ``MAX_BYTES`` and ``MAX_FILES``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kelpie_celery.errors import DirectoryError

MAX_BYTES = 512 * 1024 * 1024
MAX_FILES = 50_000

_LEFT_OUT = frozenset({".git", ".hg", ".svn", "__pycache__", ".kelpie", ".mypy_cache", ".pytest_cache", ".ruff_cache"})
_LINKED = frozenset({".venv", "venv", "node_modules"})


def check(source: Path) -> None:
    """Make sure that a directory can be copied a few times.

    Raises:
        DirectoryError: It is no directory, cannot be read, or is too large; says what is large in it.
    """
    if not is_folder(source):
        raise DirectoryError(f"{source}: is no directory; give the one that the job's command runs in by --directory")
    with _readable(source):
        _check_size(source)


def _check_size(source: Path) -> None:
    sizes: dict[str, int] = {}
    whole = 0
    for files, path in enumerate(_files(source), 1):
        top = path.relative_to(source).parts[0]
        size = path.lstat().st_size
        sizes[top], whole = sizes.get(top, 0) + size, whole + size
        if whole > MAX_BYTES or files > MAX_FILES:
            largest = max(sizes, key=lambda name: sizes[name])
            raise DirectoryError(
                f"{source}: has more than {MAX_BYTES // 1024**2} MiB or {MAX_FILES:,} files, most of it in "
                f"{largest!r} as far as that was looked at, and a copy is made for each pretended machine; give a "
                "folder with the program alone by --directory, and its data by --input"
            )


def is_folder(path: Path) -> bool:
    """Whether a directory is there; what cannot be one is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def copy(source: Path, target: Path) -> None:
    """Copy it.

    Raises:
        DirectoryError: Something cannot be read.
    """
    with _readable(source):
        _copy(source, target, (source.resolve(), target))


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, shutil.Error) as error:
        detail = error.strerror if isinstance(error, OSError) and error.strerror else "see its permissions"
        name = getattr(error, "filename", None) or source
        raise DirectoryError(f"{name}: cannot be copied ({detail})") from error


def is_linked(source: Path, relative: Path) -> bool:
    """Whether a directory of the copy would be one of the user's, reached by a link."""
    at = source
    for part in relative.parts:
        at /= part
        if part in _LINKED or at.is_symlink():
            return True
    return False


def _copy(source: Path, target: Path, tops: tuple[Path, Path]) -> None:
    target.mkdir(parents=True)
    with os.scandir(source) as entries:
        for entry in entries:
            path, there = Path(entry.path), target / entry.name
            if entry.name in _LEFT_OUT:
                continue
            if entry.name in _LINKED:
                there.symlink_to(path.resolve())
            elif entry.is_symlink():
                there.symlink_to(_leads_to(path, tops))
            elif entry.is_dir():
                _copy(path, there, tops)
            elif entry.is_file():
                shutil.copy2(path, there)


def _leads_to(link: Path, tops: tuple[Path, Path]) -> Path:
    """Where a link of the copy has to lead: into the copy, where the original leads into what is copied."""
    source, target = tops
    try:
        leads = link.resolve()
    except (OSError, RuntimeError):  # it leads to itself, and may do so in the copy
        return link.readlink()
    return target / leads.relative_to(source) if leads.is_relative_to(source) else leads


def _files(source: Path) -> Iterator[Path]:
    pending = [source]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.name in _LEFT_OUT or entry.name in _LINKED or entry.is_symlink():
                    continue
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif entry.is_file():
                    yield Path(entry.path)


def written_since(folder: Path, moment: float, but: tuple[Path, ...] = ()) -> list[str]:
    """Files of a folder that were written after a moment (seconds since the epoch), outside of some directories."""
    found = []
    for path in _files(folder):
        if any(path.is_relative_to(one) for one in but):
            continue
        try:
            if path.lstat().st_mtime > moment:
                found.append(str(path.relative_to(folder)))
        except OSError:
            continue
    return sorted(found)
