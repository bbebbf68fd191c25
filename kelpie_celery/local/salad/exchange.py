"""One HTTP exchange with the API or IMDS: the way from a request to its answer, the same for all operations.

In this order: parse the body; a fault that was ordered; who asks (``Gate``); the operation itself; the answer, which
is recorded.
An operation is a plain function of the world and the call; it runs at once, under a lock.

Limits: bodies of up to 1 MiB.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from kelpie_celery.clock import Clock
from kelpie_celery.local.salad import views
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.faults import Fault, Faults
from kelpie_celery.local.salad.recording import NOT_JSON, Recording
from kelpie_celery.local.salad.world import World

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
MERGE_PATCH: Final = "application/merge-patch+json"
HTML: Final = "text/html"
PAGE: Final = "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>Bad gateway</body></html>\n"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What an operation gets of a request.

    Attributes:
        names: The parts of the path that vary.
        body: The parsed JSON; ``None`` when there was none.
        media_type: Of the body; empty when none was said.
        headers: All headers; looked up whatever their case.
    """

    names: Mapping[str, str]
    body: Any
    media_type: str
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its body (``None``: empty) as JSON or as text, and more headers."""

    status: int
    body: Any = None
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


Act = Callable[[World, Call], Answer]
Gate = Callable[[Call], None]


class Exchanges:
    """What all exchanges of one service share.

    Attributes:
        service: ``api`` or ``imds``.
    """

    def __init__(
        self,
        service: str,
        *,
        run: Callable[[Callable[[World], Answer]], Answer],
        gate: Gate,
        faults: Faults,
        recording: Recording,
        clock: Clock,
    ) -> None:
        """The exchanges of one service.

        Args:
            service: ``api`` or ``imds``.
            run: Calls a function with the world, under the lock, with everything done that was due.
            gate: Raises a ``Refusal`` for a call that may not go on.
            faults: What is ordered.
            recording: Where to write.
            clock: What the times in it are taken from.
        """
        self.service = service
        self._run, self._gate, self._faults, self._recording = run, gate, faults, recording
        self._clock = clock

    def handler(self, operation: str, act: Act) -> Callable[[web.Request], Any]:
        """The aiohttp handler of one operation.

        Args:
            operation: Its id in the specification.
            act: Carries it out.
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            call, fault = await _call_of(request), self._faults.strike(self.service, operation)
            if fault is not None and fault.kind == "drop":
                return _hang_up(request)
            answer = self._answer(act, call, fault)
            if fault is not None and fault.kind == "lost":
                return _hang_up(request)
            if fault is not None and fault.kind == "slow":
                await asyncio.sleep(fault.delay_s)
            self._note(request, call, answer)
            return _response(answer)

        return handle

    def _answer(self, act: Act, call: Call, fault: Fault | None) -> Answer:
        try:
            ordered = _ordered(fault)
            if ordered is not None:
                return ordered
            self._gate(call)
            _check_json(call)
            return self._run(lambda world: act(world, call))
        except Refusal as refusal:
            return self._problem(refusal, fault)
        except Exception:
            log.exception("a request failed", extra={"action": "salad_sim_failed"})
            return self._problem(Refusal(500, "The simulator failed; its log says why."), None)

    def _problem(self, refusal: Refusal, fault: Fault | None) -> Answer:
        imds = self.service == "imds"
        wait_s = fault.retry_after_s if fault is not None else None
        headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
        return Answer(refusal.status, views.problem(refusal, imds=imds), PROBLEM if imds else JSON, headers)

    def _note(self, request: web.Request, call: Call, answer: Answer) -> None:
        self._recording.note(
            self.service, method=request.method, url=str(request.url), headers=call.headers, body=call.body,
            status=answer.status, response=answer.body, at=views.timestamp(self._clock.now()),
        )  # fmt: skip


def _ordered(fault: Fault | None) -> Answer | None:
    """The answer that a fault gives in place of the operation; None when the operation is to be carried out."""
    match fault:
        case None | Fault(kind="slow" | "lost"):
            return None
        case Fault(kind="html"):
            return Answer(502, PAGE, HTML)
        case Fault(kind="quota"):
            raise Refusal(403, "The quota of replicas is used up (a fault that was ordered).")
    raise Refusal(int(fault.kind), _phrase(int(fault.kind)))


def _check_json(call: Call) -> None:
    if call.body == NOT_JSON:
        raise Refusal(400, "The request body is not valid JSON.", code="invalid-request")


def _phrase(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "Too many requests; try again later (a fault that was ordered)."
    return "A fault that was ordered."


async def _call_of(request: web.Request) -> Call:
    raw = await request.read()
    body: Any = None
    if raw.strip():
        try:
            body = json.loads(raw)
        except ValueError:
            body = NOT_JSON
    media_type = request.headers.get("Content-Type", "").split(";")[0].strip().lower()
    return Call(dict(request.match_info), body, media_type, request.headers)


def _hang_up(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # goes nowhere


def _response(answer: Answer) -> web.StreamResponse:
    if answer.body is None:
        return web.Response(status=answer.status, headers=answer.headers)
    text = answer.body if answer.media_type == HTML else json.dumps(answer.body)
    return web.Response(status=answer.status, text=text, content_type=answer.media_type, headers=answer.headers)
