"""The thin HTTP client under object bodies: presigned requests over blocking sockets, each in a transfer thread.

A blocking socket costs about a third of the CPU of one that an event loop drives, and lets other threads run while it
waits. What a request is, and how it is kept inside the trust window, is in ``exchange``.

Limits: as many calls at once as the configuration says, of which a batch of tiny objects has a few requests under way;
whoever comes later waits.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

from kelpie_celery.clock import Clock, SystemClock
from kelpie_worker.sync.answers import Answer
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.connections import Connections, Grip
from kelpie_worker.sync.exchange import Exchange
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.request import Request
from kelpie_worker.sync.series import Series
from kelpie_worker.sync.signing import Presigner, StorageClock
from kelpie_worker.sync.threads import in_thread

_TRUST_WANTED_S = 5.0
_SPARE_THREADS = 16
"""For those that are left behind in a look-up of a name when their call is cancelled."""


class Wire:
    """Sends presigned requests. Use it as an async context manager.

    Args:
        config: The storage.
        clock: Learns the storage's time from its answers.
        tls: Whom to trust; by default those whom the system trusts.
        machine_clock: Tells how long a connection has not been used.
    """

    def __init__(
        self, config: StorageConfig, clock: StorageClock, tls: ssl.SSLContext | None = None,
        machine_clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self._config, self._clock = config, clock
        self._presigner = Presigner(config, clock)
        self._free = asyncio.Semaphore(config.requests)
        self._connections = Connections(config.connect_timeout_s, tls, machine_clock or SystemClock())
        self._threads = ThreadPoolExecutor(config.requests + _SPARE_THREADS, thread_name_prefix="kelpie-transfer")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.close()
        # Every call has waited for its thread, or left behind one that touches nothing any more.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, request: Request) -> Answer:
        """Send one request; its answer is short and read whole, unless the request has a sink.

        Raises:
            StorageError: It failed; see ``s3_errors``.
            LeaseLost: The fence says so.
            Exception: What the body or the sink raised.
        """
        async with self._free:
            if request.fence:
                # The turn may have taken long to come, so trust is looked at now, not when the request was queued.
                await request.fence.trusted(_TRUST_WANTED_S)
            exchange = Exchange(request, self._connections, self._presigner, self._clock)
            return await in_thread(exchange.run, self._threads, exchange.stop)

    async def batch(self, work: Callable[[Lane], None], fence: Fence | None) -> None:
        """Run ``work`` in a transfer thread, where it may send requests one after the other.

        Args:
            work: Told how.
            fence: Of whatever makes something visible.

        Raises:
            LeaseLost: The fence says so.
            Exception: What ``work`` raised.
        """
        async with self._free:
            trust_s = await fence.trusted(_TRUST_WANTED_S) if fence else 0.0
            grip = Grip()
            grip.busy(True)
            lane = Lane(self._connections, self._presigner, self._clock, grip, min(_TRUST_WANTED_S, trust_s / 2))
            await in_thread(partial(work, lane), self._threads, grip.stop)


class Lane:
    """What a batch has of the wire: one transfer thread, which sends one request after the other.

    Attributes:
        least_trust_s: With less trust, in seconds, no request is to begin.
    """

    def __init__(
        self, connections: Connections, presigner: Presigner, clock: StorageClock, grip: Grip, least_trust_s: float
    ) -> None:
        self._connections, self._presigner, self._clock, self._grip = connections, presigner, clock, grip
        self.least_trust_s = least_trust_s

    def send(self, request: Request) -> Answer:
        """Send one request; see `Exchange.run`."""
        return Exchange(request, self._connections, self._presigner, self._clock, self._grip).run()

    def bodies(
        self, wanted: Sequence[tuple[Request, str]], arrived: Callable[[int], None]
    ) -> Generator[memoryview, None, None]:
        """The bodies of the answers to some requests; see `Series`."""
        return Series(wanted, self._connections, self._presigner, self._clock, self._grip, arrived).bodies()
