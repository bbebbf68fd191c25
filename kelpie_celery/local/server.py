"""What the local servers share: a directory, ports that stay the same, and one process.

Limits: one server a directory; nothing here keeps two from being started in the same one
(``kelpie up`` does).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.ports import BLOCK, TWIN, PortBlock, is_free, reserve
from kelpie_celery.local.processes import ManagedProcess


class Server:
    """A server that is one process with a directory of its own; subclasses say which.

    Attributes:
        directory: Where its data, its log and the port of the last run are kept.
        ready_s: Seconds that the last ``start`` took.
    """

    name = "server"
    ready_timeout_s = 20.0
    stop_timeout_s = 10.0

    def __init__(self, directory: Path, port: int = 0, *, clock: Clock | None = None) -> None:
        """A server that is not started yet.

        Args:
            directory: Where to keep everything; made when it is missing.
            port: Where to listen; 0 for a free port, the one of the last run in this directory if possible.
            clock: Where time comes from.
        """
        self.directory, self.ready_s = directory.resolve(), 0.0
        self._fixed_port = port
        self._clock = clock or SystemClock()
        self._process: ManagedProcess | None = None
        self._block: PortBlock | None = None

    def start(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start and wait until it serves.

        Args:
            cancelled: Answers whether to give up waiting.

        Raises:
            LocalStackError: It runs already; no program, no port, or not ready in time (no process is left).
        """
        if self.running:
            raise LocalStackError(f"{self.name} runs already (pid {self.pid})")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._reserve_ports()
        process = self._process = self._make_process()
        process.start()
        try:
            self.ready_s = process.wait_ready(self.ready_timeout_s, self._answers, cancelled)
            self._prepare()
        except BaseException:
            process.kill()
            raise

    def _make_process(self) -> ManagedProcess:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _prepare(self) -> None:
        """What is to be done once it serves."""

    def _reserve_ports(self) -> None:
        note = self.directory / "port"
        if self._block is None:
            self._block = reserve(preferred=_read_port(note))
        if self._fixed_port and not self.running and not is_free(self._fixed_port):
            raise LocalStackError(f"{self.name}: port {self._fixed_port} is taken; choose another, or 0 for a free one")
        note.write_text(str(self._block.base))

    @property
    def port(self) -> int:
        """The port that clients connect to.

        Raises:
            LocalStackError: It was never started, so no port is chosen.
        """
        if self._fixed_port:
            return self._fixed_port
        return self.port_at(0)

    def port_at(self, index: int) -> int:
        """One port of its block; 0 is the one that clients connect to."""
        if self._block is None:
            raise LocalStackError(f"{self.name} has no port before its first start")
        return self._block[index]

    @property
    def ports(self) -> list[int]:
        """Every port that it may listen on; none before its first start."""
        if self._block is None:
            return []
        block = [self._block[index] for index in range(BLOCK)]
        return [self.port, *block, *(port + TWIN for port in block)]

    @property
    def log(self) -> Path:
        """The file that gets its output."""
        return self.directory / f"{self.name}.log"

    @property
    def process(self) -> ManagedProcess:
        """The process.

        Raises:
            LocalStackError: It was never started.
        """
        if self._process is None:
            raise LocalStackError(f"{self.name} was not started")
        return self._process

    @property
    def running(self) -> bool:
        """Whether its process exists."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        return self.process.pid

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it takes too long; the ports stay reserved."""
        if self._process is not None:
            self._process.stop(self.stop_timeout_s)

    def kill(self) -> None:
        """SIGKILL; the ports stay reserved."""
        self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing is answered."""
        self.process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.process.resume()

    def restart(self) -> None:
        """Stop and start, with the same port and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop, and give the ports back."""
        self.stop()
        if self._block is not None:
            self._block.release()
            self._block = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_port(note: Path) -> int:
    try:
        return int(note.read_text())
    except (FileNotFoundError, ValueError):
        return 0
