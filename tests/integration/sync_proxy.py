"""A proxy before the S3 server that fails, cuts, stalls or swallows chosen requests.

Signatures stay valid, since the ``Host`` that was signed is passed on.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

Fault = Literal["500", "503", "cut", "drop", "stall", "swallow"]
"""``cut``: half of the answer, then the connection breaks; ``drop``: it breaks at once; ``stall``: no answer;
``swallow``: the request is carried out, but its answer is lost."""


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
    """

    upstream: str
    url: str = ""
    rules: list[Rule] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    down: bool = False
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
        if request.headers.get("Expect") and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault in {"500", "503"}:
            await request.read()
            return web.Response(status=int(fault), text="<Error><Code>InternalError</Code></Error>")
        if fault == "stall":
            self.stalled.set()
            await asyncio.sleep(3600)
        if fault == "drop":
            return self._break(request)
        return await self._forward(request, fault)

    async def _forward(self, request: web.BaseRequest, fault: str | None) -> web.StreamResponse:
        url = URL(self.upstream + request.raw_path, encoded=True)
        headers = {name: value for name, value in request.headers.items() if name != "Expect"}
        data = request.content if request.body_exists else None
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=data, allow_redirects=False) as answer,
        ):
            body = await answer.read()
            if fault == "swallow":
                return self._break(request)
            response = web.StreamResponse(status=answer.status, headers=answer.headers)
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
