"""The HTTP side: API, IMDS and control on one port of loopback, in a thread with a loop of its own.

Limits: no TLS; HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import web

from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad import api
from kelpie_celery.local.salad.exchange import Act, Exchanges

Operations = Iterable[tuple[str, str, str, Act]]
SHUTDOWN_S: Final = 0.5
READY_S: Final = 30.0
ANYTHING: Final = "/{tail:.*}"


class Server:
    """The server; ``start`` and ``stop`` may be called from any thread.

    Attributes:
        host: Where it listens.
        port: The port; known once it was started.
    """

    def __init__(
        self,
        host: str,
        port: int,
        services: Iterable[tuple[str, Exchanges, Operations]],
        more: Callable[[web.Application], None] = lambda _application: None,
    ) -> None:
        """A server that is not started yet.

        Args:
            host: Where to listen.
            port: 0 for a free one.
            services: For each its prefix, what its exchanges share, and its operations.
            more: Adds more routes.
        """
        self.host, self.port = host, port
        self._services, self._more = list(services), more
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._error: OSError | None = None

    def start(self) -> None:
        """Start and wait until it serves.

        Raises:
            LocalStackError: The port is taken.
        """
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="salad-sim-http", daemon=True)
        self._thread.start()
        if not self._started.wait(READY_S):
            raise LocalStackError(f"the simulator's server did not start within {READY_S:g} s")
        if self._error is not None:
            reason = self._error.strerror or self._error
            raise LocalStackError(
                f"the simulator cannot listen on {self.host}:{self.port}: {reason}; choose another port, or 0"
            )

    def stop(self) -> None:
        """Stop; open connections are cut. Harmless when it does not run."""
        loop, stop, thread = self._loop, self._stop, self._thread
        if loop is None or stop is None or thread is None:
            return
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        self._loop = self._stop = self._thread = None

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, self.host, self.port)
            await site.start()
            self.port = runner.addresses[0][1]
        except OSError as error:
            self._error = error
            self._stop.set()
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application()
        for prefix, exchanges, operations in self._services:
            for method, path, name, act in operations:
                application.router.add_route(method, path, exchanges.handler(name, act))
            nothing = exchanges.handler("none", api.nothing_here)
            application.router.add_route("*", prefix + ANYTHING, nothing)
        self._more(application)
        return application
