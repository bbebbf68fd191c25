"""A worker's health as one small file, for container probes: written by the worker, read by ``kelpie-worker health``.

Quick: reading it needs nothing but the standard library. It is overwritten in place, so that a full disk does not make
a worker look ill. Times are by CLOCK_BOOTTIME, which a container shares with its probes.

Limits: one worker a file; the default name is made of what tells workers apart, which a probe has in its environment
too. Who started two of the same name sets ``KELPIE_HEALTH_FILE``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SIZE_BYTES = 1024
_WHY_CHARS = 300


@dataclass(frozen=True)
class Health:
    """What a worker says of itself.

    Attributes:
        pid: Its process.
        at: When it said so, seconds since boot.
        fresh_s: After so many seconds without another word it counts as gone.
        ok: Whether it does its work; a restart would not help while this is so.
        why: In words.
        jobs: Attempts in its process.
    """

    pid: int
    at: float
    fresh_s: float
    ok: bool
    why: str
    jobs: int


def path_of(environ: Mapping[str, str]) -> Path:
    """The file of the worker with this environment, without reading the settings as a whole."""
    given = {name: environ.get(name, "").strip() for name in _NAMED_BY}
    if given["KELPIE_HEALTH_FILE"]:
        return Path(given["KELPIE_HEALTH_FILE"])
    return default_path(
        given["KELPIE_REDIS_URL"], given["SALAD_CONTAINER_GROUP_ID"],
        given["SALAD_MACHINE_ID"] or socket.gethostname(), given["SALAD_INSTANCE_ID"],
    )  # fmt: skip


_NAMED_BY = ("KELPIE_HEALTH_FILE", "KELPIE_REDIS_URL", "SALAD_CONTAINER_GROUP_ID", "SALAD_MACHINE_ID",
             "SALAD_INSTANCE_ID")  # fmt: skip


def default_path(redis_url: str, group: str, machine: str, instance: str) -> Path:
    """Where a worker's file is unless ``KELPIE_HEALTH_FILE`` says otherwise."""
    told = "\n".join((str(os.getuid()), redis_url, group, machine, instance))
    # Of the URL, which holds a password, nothing can be found out from the name: it is one of many parts.
    return Path(tempfile.gettempdir()) / f"kelpie-health-{hashlib.sha256(told.encode()).hexdigest()[:20]}"


class HealthFile:
    """Writes one worker's health."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def write(self, health: Health) -> None:
        """Say how it is; an OSError means that nobody was told."""
        if self._fd < 0:
            self._fd = _opened(self.path)
        text = json.dumps(asdict(health) | {"why": health.why[:_WHY_CHARS]})
        os.pwrite(self._fd, text.encode().ljust(SIZE_BYTES)[:SIZE_BYTES], 0)

    def close(self) -> None:
        """The worker ends in good order: the file goes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with contextlib.suppress(OSError):
                self.path.unlink()


def _opened(path: Path) -> int:
    """Open for writing, never through a link: in a shared temporary directory it could be anybody's."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    held = os.fstat(fd)
    if not stat.S_ISREG(held.st_mode) or held.st_uid != os.getuid():
        os.close(fd)
        raise PermissionError(f"{path} is no file of this user's")
    return fd


def verdict(path: Path, now: float) -> tuple[bool, str]:
    """Whether a worker is well, and one line why; ``now`` is in seconds since boot."""
    try:
        health = _read(path)
    except FileNotFoundError:
        return False, f"no worker has said that it takes jobs yet (there is no {path})"
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError) as e:
        return False, f"{path} cannot be read as a worker's health: {type(e).__name__}; set KELPIE_HEALTH_FILE"
    if not _lives(health.pid):
        return False, f"the worker (pid {health.pid}) is gone"
    age_s = now - health.at
    if not -1.0 <= age_s <= health.fresh_s:
        return False, f"the worker (pid {health.pid}) has said nothing for {age_s:.0f} s: it is stuck or frozen"
    return health.ok, f"{health.why}; jobs at work: {health.jobs}"


def _read(path: Path) -> Health:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        told = json.loads(os.pread(fd, SIZE_BYTES, 0))
    finally:
        os.close(fd)
    if not isinstance(told, dict):
        raise TypeError("no object")
    return Health(
        int(told["pid"]), float(told["at"]), float(told["fresh_s"]), told["ok"] is True, str(told["why"]),
        int(told["jobs"]),
    )  # fmt: skip


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid > 0
