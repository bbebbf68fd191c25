"""Free ports that stay ours: blocks of TCP ports on loopback, reserved against every other local stack.

A port that was merely found free is taken by somebody else sooner or later: by another test process that
looked at the same moment, or by an outgoing connection while the server is down for a restart. So the blocks
lie below the range that systems use for outgoing connections, and a block is held by a lock on a file for as
long as the reservation lives.

SeaweedFS takes it for granted in places that a server's gRPC port is its HTTP port + 10000, whatever its
options say; so each port of a block comes with its twin.

Limits: only processes of one user that use this module respect the locks; others are noticed by trying to
bind.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

from kelpie_celery.local.errors import LocalStackError

FIRST_PORT = 10_000
LAST_PORT = 20_000
TWIN = 10_000  # so the highest is 30000; Linux takes ports for outgoing connections from 32768 on
BLOCK = 5  # what the largest server needs
LOOPBACK = "127.0.0.1"


class PortBlock:
    """``BLOCK`` consecutive ports and their twins, ours until ``release``.

    Attributes:
        base: The first port.
    """

    def __init__(self, base: int, lock_fd: int) -> None:
        self.base, self._lock_fd = base, lock_fd

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < BLOCK:
            raise IndexError(index)
        return self.base + index

    def release(self) -> None:
        """Give the ports back; harmless when done twice."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


def reserve(preferred: int = 0) -> PortBlock:
    """Reserve a free block.

    Args:
        preferred: The first port of a block to take if it is free, such as the one of the last run; 0 for
        none.

    Raises:
        LocalStackError: No block is free.
    """
    bases = list(range(FIRST_PORT, LAST_PORT, BLOCK))
    random.shuffle(bases)
    if preferred in bases:
        bases.insert(0, preferred)
    for base in bases:
        block = _try_block(base)
        if block is not None:
            return block
    raise LocalStackError(f"no {BLOCK} consecutive ports are free on {LOOPBACK} between {FIRST_PORT} and {LAST_PORT}")


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose old connections linger in TIME_WAIT is free to listen on.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _try_block(base: int) -> PortBlock | None:
    fd = os.open(_lock_directory() / str(base), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    if all(is_free(port) and is_free(port + TWIN) for port in range(base, base + BLOCK)):
        return PortBlock(base, fd)
    os.close(fd)
    return None


def _lock_directory() -> Path:
    directory = Path(tempfile.gettempdir()) / f"kelpie-ports-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
