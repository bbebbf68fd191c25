"""The simulator's own endpoints, below ``/_sim/``: faults, interruptions and a look at everything.

They take the API's key, are never recorded, and no fault strikes them::

    POST   /_sim/faults                        {"kind": "429", "times": 3, "operation": "update_*", "retry_after_s": 2}
    DELETE /_sim/faults
    POST   /_sim/instances/INSTANCE/interrupt
    PUT    /_sim/quota                         {"replicas": 20}
    GET    /_sim/state

The real platform has nothing of the kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad.api import KEY_HEADER
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.faults import Fault

if TYPE_CHECKING:
    from kelpie_celery.local.salad.sim import SaladSim

PREFIX: Final = "/_sim"
_FAULT_FIELDS: Final = {one.name for one in fields(Fault) if one.init}

Handler = Callable[["SaladSim", web.Request, Any], Any]


def routes(sim: SaladSim, application: web.Application) -> None:
    """Add them."""
    for method, path, handler in (
        ("POST", "/faults", _order),
        ("DELETE", "/faults", _clear),
        ("POST", "/instances/{instance}/interrupt", _interrupt),
        ("PUT", "/quota", _quota),
        ("GET", "/state", _state),
    ):
        application.router.add_route(method, PREFIX + path, _guarded(sim, handler))


def _guarded(sim: SaladSim, handler: Handler) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        if request.headers.get(KEY_HEADER) != sim.api_key:
            return _told(401, f"the header {KEY_HEADER} is missing, or its key is not valid")
        raw = await request.read()
        try:
            return web.json_response(handler(sim, request, json.loads(raw) if raw.strip() else {}))
        except Refusal as refusal:
            return _told(refusal.status, refusal.detail)
        except (LocalStackError, ValueError, TypeError) as error:
            return _told(400, str(error))

    return handle


def _told(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)


def _order(sim: SaladSim, _request: web.Request, body: Any) -> Any:
    if not isinstance(body, dict) or not body.keys() <= _FAULT_FIELDS or "kind" not in body:
        raise LocalStackError(f"a fault is an object with 'kind' and any of {', '.join(sorted(_FAULT_FIELDS))}")
    sim.fail(**{**body, "kind": str(body["kind"])})
    return {}


def _clear(sim: SaladSim, _request: web.Request, _body: Any) -> Any:
    sim.clear_faults()
    return {}


def _interrupt(sim: SaladSim, request: web.Request, _body: Any) -> Any:
    sim.interrupt(request.match_info["instance"])
    return {}


def _quota(sim: SaladSim, _request: web.Request, body: Any) -> Any:
    replicas = body.get("replicas") if isinstance(body, dict) else None
    if type(replicas) is not int or replicas < 0:
        raise LocalStackError("a quota is an object with 'replicas', a whole number from 0 on")
    sim.set_quota(replicas)
    return {}


def _state(sim: SaladSim, _request: web.Request, _body: Any) -> Any:
    return {"interruptions": sim.interruptions, "groups": [group.as_dict() for group in sim.groups.values()]}
