"""A proxy before the S3 server that fails, cuts, stalls or swallows chosen requests.

Signatures stay valid, since the ``Host`` that was signed is passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

Fault = Literal["500", "503", "cut", "drop", "stall", "swallow", "damage", "short"]
"""``cut``: half of the answer, then the connection breaks; ``drop``: it breaks at once; ``stall``: no answer;
``swallow``: the request is carried out, but its answer is lost; ``damage``: one bit of what is sent is turned over;
``short``: half of what is sent reaches the storage, then both connections break."""
Before = Callable[[int], Awaitable[Fault | None]]
After = Callable[[int], Awaitable[None]]


CHECKSUM = "x-amz-checksum"


@dataclass
class Rule:
    """Which requests meet which fault: the first ``times`` of those whose method and target match."""

    method: str
    target: str
    fault: Fault
    times: int = 1
    met: int = 0

    def takes(self, method: str, target: str) -> bool:
        if self.met >= self.times or method != self.method or not re.search(self.target, target):
            return False
        self.met += 1
        return True


@dataclass
class Proxy:
    """The proxy; its rules may be changed at any time.

    Attributes:
        url: Where it listens.
        rules: Looked through in order.
        seen: Method and target of each request.
        down: While set, every connection is dropped.
        hides: While set, no answer tells a checksum.
        refuses: While set, requests with a checksum are refused.
        before: Told the number of each request, from 1, when all of it has come; may hold it, and says what it meets.
        after: Told of it when the storage has answered, before the answer is passed on.
        slow_bytes_s: So fast bodies of requests are passed on, bytes a second each; 0 for as fast as they come.
    """

    upstream: str
    url: str = ""
    rules: list[Rule] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    down: bool = False
    hides: bool = False
    refuses: bool = False
    before: Before | None = None
    after: After | None = None
    slow_bytes_s: float = 0.0
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, method: str, target: str, fault: Fault, times: int = 1) -> Rule:
        rule = Rule(method, target, fault, times)
        self.rules.append(rule)
        return rule

    def count(self, method: str, target: str = "") -> int:
        return sum(seen == method and bool(re.search(target, path)) for seen, path in self.seen)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((request.method, request.raw_path))
        rule = next((rule for rule in self.rules if rule.takes(request.method, request.raw_path)), None)
        fault = "drop" if self.down else rule.fault if rule else None
        number, whole = len(self.seen), None
        if request.headers.get("Expect") and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.before:
            whole = await _read(request)
            fault = await self.before(number) or fault
        elif fault == "short":
            whole = await _read(request)
        if self.refuses and any(name.lower().startswith(CHECKSUM) for name in request.headers):
            await _read(request)
            text = "<Error><Code>NotImplemented</Code><Message>A header is not implemented</Message></Error>"
            return web.Response(status=501, text=text)
        if fault in {"500", "503"}:
            if whole is None:
                await _read(request)
            return web.Response(status=int(fault), text="<Error><Code>InternalError</Code></Error>")
        if fault == "stall":
            self.stalled.set()
            await asyncio.sleep(3600)
        if fault == "drop":
            return self._break(request)
        return await self._forward(request, fault, number, whole)

    async def _forward(
        self, request: web.BaseRequest, fault: str | None, number: int, whole: bytes | None
    ) -> web.StreamResponse:
        url = URL(self.upstream + request.raw_path, encoded=True)
        headers = {name: value for name, value in request.headers.items() if name != "Expect"}
        data: bytes | aiohttp.StreamReader | AsyncIterator[bytes] | None = whole or None
        if fault == "short":
            with contextlib.suppress(aiohttp.ClientError, _CutOff):
                async with (
                    aiohttp.ClientSession() as session,
                    session.request(request.method, url, headers=headers, data=_half(whole or b"")),
                ):
                    pass
            return self._break(request)
        if request.body_exists and whole is None:
            data = _slowly(request, lambda: self.slow_bytes_s) if self.slow_bytes_s else request.content
        if fault == "damage":
            body = await _read(request)
            data = bytes([body[0] ^ 1]) + body[1:]
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=data, allow_redirects=False) as answer,
        ):
            body = await answer.read()
            if self.after:
                await self.after(number)
            if fault == "swallow":
                return self._break(request)
            shown = {n: v for n, v in answer.headers.items() if not (self.hides and n.lower().startswith(CHECKSUM))}
            response = web.StreamResponse(status=answer.status, headers=shown)
            await response.prepare(request)
            if fault == "cut":
                await response.write(body[: len(body) // 2])
                return self._break(request)
            await response.write(body)
            return response

    @staticmethod
    def _break(request: web.BaseRequest) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


async def _read(request: web.BaseRequest) -> bytes:
    """The whole body; ``request.read()`` has a limit."""
    return b"".join([chunk async for chunk in request.content.iter_any()])


class _CutOff(Exception):
    """Nothing more is sent."""


async def _half(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    raise _CutOff


async def _slowly(request: web.BaseRequest, bytes_s: Callable[[], float]) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_chunked(256 * 1024):
        yield chunk
        if speed := bytes_s():
            await asyncio.sleep(len(chunk) / speed)


@asynccontextmanager
async def proxy_before(upstream: str, certificate: Path | None = None) -> AsyncIterator[Proxy]:
    """A running proxy; with a certificate (and key) it speaks TLS."""
    proxy = Proxy(upstream)
    runner = web.ServerRunner(web.Server(proxy.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    proxy.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield proxy
    finally:
        await runner.cleanup()
