"""Machines that are short of something: a memory cgroup with a limit, a small disk. Both need rights that not all have.

Limits: Linux; a cgroup of version 2 only where its parent passes ``memory`` on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kelpie_worker.memory import MemoryGroup, own_group
from tests.harness.waiting import eventually

_LIMITS = {
    1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    2: ("memory.max", "memory.swap.max"),
}
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def left_out(arguments: Sequence[str]) -> list[str]:
    """What the acceptance tests cannot cause on this machine, for pytest's header.

    Args:
        arguments: Of pytest.
    """
    if not any("acceptance" in argument for argument in arguments):
        return []
    missing = {"OOM KILLS": why_no_memory_group(), "FULL DISKS": why_no_small_disk()}
    return [f"LEFT OUT: {what} CAUSED FOR REAL, since {why}" for what, why in missing.items() if why]


# -- memory -----------------------------------------------------------------------------------------------------------


class LimitedMemory:
    """A memory cgroup for some processes.

    Attributes:
        folder: Its folder.
        limit_bytes: Its limit.
    """

    def __init__(self, parent: MemoryGroup, limit_bytes: int) -> None:
        self.folder = parent.folder / f"kelpie-test-{os.getpid()}-{secrets.token_hex(4)}"
        self.limit_bytes = limit_bytes
        self.folder.mkdir()
        limit, with_swap = _LIMITS[parent.version]
        (self.folder / limit).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):  # a kernel that does not count swap
            (self.folder / with_swap).write_text(str(limit_bytes if parent.version == 1 else 0))

    def add(self, pid: int) -> None:
        """Put a process and its future children in."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Remove it, once its processes are gone; nothing may be left below it."""
        eventually("nothing is left in the cgroup", lambda: not (self.folder / "cgroup.procs").read_text())
        left = [entry.name for entry in self.folder.iterdir() if entry.is_dir()]
        for name in left:
            (self.folder / name).rmdir()
        self.folder.rmdir()
        assert not left, f"a worker left cgroups behind: {left}"


def _parent() -> MemoryGroup | None:
    group = own_group()
    while group is not None and not group.takes_children():
        if group.folder == group.top:
            return None
        group = MemoryGroup(group.folder.parent, group.top, group.version)
    return group


def why_no_memory_group() -> str:
    """Why no memory cgroup can be made here; empty where one can."""
    parent = _parent()
    if parent is None:
        return "no memory cgroup is to be seen here that can have others below it"
    try:
        LimitedMemory(parent, 1 << 30).close()
    except OSError as error:
        return f"no memory cgroup can be made here ({error})"
    return ""


@contextmanager
def limited_memory(limit_bytes: int) -> Iterator[LimitedMemory]:
    """A memory cgroup; its processes must be gone at the end."""
    parent = _parent()
    assert parent is not None
    memory = LimitedMemory(parent, limit_bytes)
    try:
        yield memory
    finally:
        memory.close()


# -- disks ------------------------------------------------------------------------------------------------------------


def _mount(directory: Path, size_bytes: int) -> None:
    options = f"size={size_bytes},mode=700".encode()
    if _libc.mount(b"tmpfs", os.fsencode(directory), b"tmpfs", 0, options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))


def _unmount(directory: Path) -> None:
    _libc.umount2(os.fsencode(directory), _MNT_DETACH)


def why_no_small_disk() -> str:
    """Why no file system can be mounted here; empty where one can."""
    directory = Path(f"/tmp/kelpie-test-mount-{os.getpid()}")
    directory.mkdir(exist_ok=True)
    try:
        _mount(directory, 1 << 20)
    except OSError as error:
        return f"no file system can be mounted here ({error.strerror})"
    else:
        _unmount(directory)
        return ""
    finally:
        directory.rmdir()


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size at ``directory``, which is made."""
    directory.mkdir(parents=True, exist_ok=True)
    _mount(directory, size_bytes)
    try:
        yield directory
    finally:
        _unmount(directory)
