"""The thin HTTP client under object bodies: presigned requests over aiohttp, fenced where they make something visible.

Three things keep what is visible inside the trust window. The request expires with it, by the storage's clock. Before
each piece of the body the fence is asked again, and a muted sender breaks the connection. And nothing waits in buffers:
the process keeps none, and the kernel gives up what is not acknowledged within the window (TCP_USER_TIMEOUT); so a body
that a frozen or cut-off worker began cannot end later.

Limits: a storage that has the whole body may still take its time to show it.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from multidict import CIMultiDictProxy
from yarl import URL

from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, Sink
from kelpie_worker.sync.s3_errors import Doing, code_and_message, from_answer, from_exception
from kelpie_worker.sync.signing import Presigner, StorageClock

UNFENCED_S = 900.0
"""How long requests that make nothing visible stay valid, seconds."""
_TRUST_WANTED_S = 5.0
_READ_BYTES = 256 * 1024


class Muted(Exception):
    """The trust ran out while a body was being sent."""


@dataclass(frozen=True)
class Answer:
    """A successful answer."""

    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def etag(self) -> str:
        """The ETag without its quotes."""
        return self.headers.get("ETag", "").strip('"')


class _SentBody(Payload):
    """Sends a body piece by piece; the deadline moves with each piece, the fence is asked before each."""

    _autoclose = True

    def __init__(self, body: Body, fence: Fence | None, deadline: asyncio.Timeout, patience_s: float) -> None:
        super().__init__(body)
        self._size = body.size_bytes
        self._body, self._fence = body, fence
        self._deadline, self._patience_s = deadline, patience_s
        self.error: Exception | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002 -- aiohttp's signature
        """Not wanted by anybody."""
        raise TypeError("a body that is being sent is no text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send everything."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002
        """Send everything; the length was announced as it is."""
        try:
            await self._write(writer)
        except Exception as error:
            self.error = error
            raise

    async def _write(self, writer: AbstractStreamWriter) -> None:
        transport = getattr(writer, "transport", None)
        self._leave_nothing_in_buffers(transport)
        async for chunk in self._body.chunks():
            if self._fence and self._fence.remaining_s() <= 0:
                raise Muted
            await writer.write(chunk)
            await writer.drain()
            if transport is not None and transport.is_closing():
                raise ConnectionResetError("the storage closed the connection")
            if not self._deadline.expired():
                self._deadline.reschedule(asyncio.get_running_loop().time() + self._patience_s)

    def _leave_nothing_in_buffers(self, transport: Any) -> None:
        if transport is None:
            return
        if self._fence:
            _shrink_buffers(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # Connections are used again: without a fence the system's own limit is put back (0).
            left_ms = max(1000, int(self._fence.remaining_s() * 1000)) if self._fence else 0
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, left_ms)


class Wire:
    """Sends presigned requests. Use it as an async context manager.

    Args:
        config: The storage.
        clock: Learns the storage's time from its answers.
        tls: Whom to trust; by default those whom the system trusts.
    """

    def __init__(self, config: StorageConfig, clock: StorageClock, tls: ssl.SSLContext | None = None) -> None:
        self._config, self._clock, self._tls = config, clock, tls
        self._presigner = Presigner(config, clock)
        self._free = asyncio.Semaphore(config.requests)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._config.requests, keepalive_timeout=15, ssl=self._tls if self._tls else True
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=self._config.connect_timeout_s),
            # An object is what its bytes are, whatever its Content-Encoding says.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
            skip_auto_headers=["Content-Type"],
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(
        self, doing: Doing, method: str, base_url: str, *, body: Body | None = None, fence: Fence | None = None,
        query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None, ask_first: bool = False,
        timeout_s: float | None = None,
    ) -> Answer:  # fmt: skip
        """Send one request and read its whole, short answer.

        Args:
            doing: For messages; names the object.
            method: HTTP method.
            base_url: The bucket's.
            body: What to send.
            fence: Of whatever makes something visible; None for the rest.
            query: Parameters.
            headers: Signed headers.
            ask_first: Wait for the storage's consent before sending the body; a storage that refuses may else close the
                connection so early that its reason is lost.
            timeout_s: For the answer; the configured one by default.

        Raises:
            StorageError: It failed; see ``s3_errors``.
            LeaseLost: The fence says so.
        """
        timeout_s = timeout_s or self._config.read_timeout_s
        async with self._free:
            # The turn may have taken long to come, so trust is looked at now, not when the request was queued.
            valid_s = await fence.trusted(_TRUST_WANTED_S) if fence else UNFENCED_S
            url = self._presigner.url(method, base_url, doing.key, valid_s=valid_s, query=query, headers=headers)
            async with self._failures(doing) as sent, asyncio.timeout(timeout_s) as deadline:
                if body is not None:
                    sent.append(_SentBody(body, fence, deadline, timeout_s))
                async with self._session.request(
                    method, URL(url, encoded=True), data=sent[0] if sent else None, headers=headers,
                    allow_redirects=False, expect100=ask_first and body is not None, proxy=_proxy(base_url),
                ) as response:  # fmt: skip
                    text = await self._text(doing, response)
                    return Answer(response.headers, text)

    async def fetch(
        self, doing: Doing, base_url: str, sink: Sink, *, headers: Mapping[str, str], length_bytes: int
    ) -> None:
        """GET, handing the body to ``sink`` as it arrives.

        Raises:
            StorageError: It failed; also when the body is not ``length_bytes`` long.
        """
        async with self._free:
            url = URL(self._presigner.url("GET", base_url, doing.key, valid_s=UNFENCED_S), encoded=True)
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=self._config.connect_timeout_s, sock_read=self._config.read_timeout_s
            )
            async with (
                self._failures(doing),
                self._session.get(
                    url, headers=headers, allow_redirects=False, timeout=timeout, proxy=_proxy(base_url)
                ) as response,
            ):
                if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
                    await self._text(doing, response)
                self._clock.learn(response.headers.get("Date"))
                await _pour(doing, response, sink, length_bytes)

    async def _text(self, doing: Doing, response: aiohttp.ClientResponse) -> bytes:
        text = await response.read()
        self._clock.learn(response.headers.get("Date"))
        code, message = code_and_message(text)
        # The end of an upload in parts may fail after it has answered 200.
        failed_late = bool(code) and b"<Error>" in text
        if not response.ok or response.status >= HTTPStatus.MULTIPLE_CHOICES or failed_late:
            raise from_answer(doing, response.status, code, message)
        return text

    @asynccontextmanager
    async def _failures(self, doing: Doing) -> AsyncIterator[list[_SentBody]]:
        """Map what goes wrong; errors of aiohttp's are not chained, since they quote the presigned URL."""
        sent: list[_SentBody] = []
        failure: Exception | None = None
        try:
            yield sent
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = _of_the_body(doing, sent) or from_exception(doing, error)
        if failure is not None:
            raise failure from None


def _shrink_buffers(transport: Any) -> None:
    """Let ``drain`` wait until the kernel has everything, with TLS too, which is a layer with a buffer of its own."""
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if inner is None:
        transport.set_write_buffer_limits(high=0)
    else:
        inner.set_write_buffer_limits(high=0)
        # asyncio's TLS pauses at its limit, not above it: 0 would pause for ever.
        transport.set_write_buffer_limits(high=1)


def _of_the_body(doing: Doing, sent: list[_SentBody]) -> Exception | None:
    """What the sender of the body itself stumbled over, if it did; a cut connection is the storage's."""
    error = sent[0].error if sent else None
    if isinstance(error, Muted):
        return doing.unavailable("the lease ran out while it was being sent")
    return None if isinstance(error, OSError | aiohttp.ClientError) else error


async def _pour(doing: Doing, response: aiohttp.ClientResponse, sink: Sink, length_bytes: int) -> None:
    announced = response.content_length
    if announced is not None and announced != length_bytes:
        raise doing.unavailable(f"the storage offered {announced} bytes where {length_bytes} were asked for")
    arrived = 0
    async for chunk in response.content.iter_any():
        arrived += len(chunk)
        if arrived > length_bytes:
            break
        await sink(chunk)
    if arrived != length_bytes:
        raise doing.unavailable(f"{arrived} of {length_bytes} bytes arrived")


@functools.cache
def _proxy(base_url: str) -> str | None:
    """The proxy that the environment names; aiohttp's own look-up would also send what ``~/.netrc`` holds."""
    parts = urlsplit(base_url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)
