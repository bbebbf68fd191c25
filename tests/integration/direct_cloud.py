"""The simulated SaladCloud without a socket: HTTP clients reach its operations through an adapter, in virtual time.

The client's whole way down to the adapter is real, and so are the simulator's exchanges from their faults to their
answers; only aiohttp and TCP are left out. Limits: whoever calls does so one at a time.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from kelpie_celery.clock import Clock
from kelpie_celery.local.salad import api, imds
from kelpie_celery.local.salad.behaviour import Behaviour
from kelpie_celery.local.salad.effects import Effect
from kelpie_celery.local.salad.exchange import Act, Answer, Call, Exchanges, Gate
from kelpie_celery.local.salad.faults import Fault, Faults
from kelpie_celery.local.salad.recording import Recording
from kelpie_celery.local.salad.world import World

HOST = "http://salad.test"
KEY = "key-of-the-direct-cloud"


class DirectCloud(BaseAdapter):
    """A world, and the adapter that leads to it.

    Attributes:
        world: The state machine.
        on_call: Called before and after each call of the API, with what it is.
    """

    def __init__(self, behaviour: Behaviour, clock: Clock, dice: random.Random, faults: list[Fault]) -> None:
        super().__init__()
        self.on_call: Callable[[str], None] = lambda _what: None
        new_id = lambda: f"{dice.getrandbits(32):08x}-0000-4000-8000-{dice.getrandbits(48):012x}"  # noqa: E731
        self.world = World(behaviour, clock, new_id=new_id)
        ordered = Faults(faults, behaviour.seed)
        gates: dict[str, Gate] = {"api": api.ApiGate(KEY, behaviour.requests_per_minute, clock), "imds": imds.gate}
        operations = {"api": api.operations(), "imds": imds.Imds().operations()}
        self._faults = ordered
        self._exchanges = {
            name: Exchanges(name, run=self._run, gate=gate, faults=ordered, recording=Recording(None), clock=clock)
            for name, gate in gates.items()
        }
        self._routes = [(*_pattern(one), name) for name, found in operations.items() for one in found]

    def session(self) -> requests.Session:
        """A session that reaches it."""
        session = requests.Session()
        session.trust_env = False
        session.mount(HOST, self)
        return session

    def effects(self) -> Iterator[Effect]:
        """What is to be done to containers since the last call, by what was due until now."""
        self.world.tick()
        yield from self.world.fleet.drain()

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """requests' hook."""
        method, path = str(request.method), urlsplit(str(request.url)).path
        act, operation, service, names = self._find(method, path)
        call = Call(names, _body(request), _media_type(request), request.headers)
        fault = self._faults.strike(service, operation)
        if service == "api":
            self.on_call(f"before {operation}")
        answer = self._exchanges[service]._answer(act, call, fault)
        if service == "api":
            self.on_call(f"after {operation}")
        if fault is not None and fault.kind == "lost":
            raise requests.ConnectionError("the answer was lost")
        return _response(request, answer)

    def close(self) -> None:
        """requests' hook."""

    def _run(self, act: Callable[[World], Answer]) -> Answer:
        self.world.tick()
        return act(self.world)

    def _find(self, method: str, path: str) -> tuple[Act, str, str, dict[str, str]]:
        for of_method, pattern, operation, act, service in self._routes:
            found = pattern.fullmatch(path)
            if found and of_method == method:
                return act, operation, service, found.groupdict()
        return api.nothing_here, "none", "api", {}


def _pattern(operation: tuple[str, str, str, Act]) -> tuple[str, re.Pattern[str], str, Act]:
    method, path, name, act = operation
    return method, re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path)), name, act


def _body(request: requests.PreparedRequest) -> Any:
    return json.loads(request.body) if request.body else None


def _media_type(request: requests.PreparedRequest) -> str:
    return str(request.headers.get("Content-Type", "")).split(";")[0].strip().lower()


def _response(request: requests.PreparedRequest, answer: Answer) -> requests.Response:
    made = requests.Response()
    made.status_code, made.request, made.url = answer.status, request, str(request.url)
    made.headers.update({"Content-Type": answer.media_type, **answer.headers})
    content = b"" if answer.body is None else json.dumps(answer.body).encode()
    made.raw = HTTPResponse(io.BytesIO(content), status=answer.status, preload_content=False)
    made.encoding = "utf-8"
    return made
