"""The instance metadata service: one base URL an instance, as if it were inside of its container.

Every call needs ``Metadata: true`` and no ``X-Forwarded-...`` header, or is refused with 403. There is no stop: a
worker cannot end its own billing. Limits: no probe runs, so a running container is ready and started. Tokens have the
shape and the claims of real ones and live as long, but their signature does not verify: there is no key behind it.
"""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from collections.abc import Iterator
from typing import Any, Final

from kelpie_celery.local.salad.bodies import DeletionCost, ReallocateReason, parsed
from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.exchange import JSON, Act, Answer, Call
from kelpie_celery.local.salad.model import Group, Instance
from kelpie_celery.local.salad.world import World

PREFIX: Final = "/imds"
_BASE: Final = PREFIX + "/{instance}/v1"
_FORWARDED: Final = ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto")
INVALID: Final = "invalid-request"
TOKEN_LIFE_S: Final = 300
TOKEN_KEPT_S: Final = 120  # calls within minutes get the same one, with less time left


def gate(call: Call) -> None:
    """Let a call from inside of a container pass.

    Raises:
        Refusal: 403.
    """
    if call.headers.get("Metadata") != "true":
        raise Refusal(403, "The header 'Metadata: true' is missing.", code="forbidden")
    for name in _FORWARDED:
        if name in call.headers:
            raise Refusal(403, f"The header {name} is not allowed: the request came through a proxy.", code="forbidden")


class Imds:
    """The operations, and the tokens that were given out."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[int, str]] = {}

    def operations(self) -> Iterator[tuple[str, str, str, Act]]:
        """Every operation: method, path, id, and what carries it out."""
        yield "GET", _BASE + "/status", "get_status", status
        yield "GET", _BASE + "/token", "get_token", self.token
        yield "GET", _BASE + "/deletion-cost", "get_deletion_cost", get_deletion_cost
        yield "PUT", _BASE + "/deletion-cost", "replace_deletion_cost", replace_deletion_cost
        yield "POST", _BASE + "/reallocate", "reallocate", reallocate
        yield "POST", _BASE + "/recreate", "recreate", recreate
        yield "POST", _BASE + "/restart", "restart", restart

    def token(self, world: World, call: Call) -> Answer:
        """``GET /v1/token``."""
        group, instance = _container(world, call)
        now = int(world.agenda.wall_s)
        issued, jwt = self._tokens.get(instance.id, (0, ""))
        if now - issued > TOKEN_KEPT_S:
            jwt = new_token(group, instance, now)
            self._tokens = {i: t for i, t in self._tokens.items() if now - t[0] <= TOKEN_KEPT_S}
            self._tokens[instance.id] = (now, jwt)
        return Answer(200, {"jwt": jwt})


def status(world: World, call: Call) -> Answer:
    """``GET /v1/status``."""
    _container(world, call)
    return Answer(200, {"ready": True, "started": True})


def get_deletion_cost(world: World, call: Call) -> Answer:
    """``GET /v1/deletion-cost``."""
    return Answer(200, {"deletion_cost": _container(world, call)[1].deletion_cost})


def replace_deletion_cost(world: World, call: Call) -> Answer:
    """``PUT /v1/deletion-cost``."""
    _, instance = _container(world, call)
    _check_type(call)
    instance.deletion_cost = parsed(DeletionCost, call.body, INVALID).deletion_cost
    return Answer(204)


def reallocate(world: World, call: Call) -> Answer:
    """``POST /v1/reallocate``."""
    group, instance = _container(world, call)
    _check_type(call)
    parsed(ReallocateReason, call.body, INVALID)
    world.reallocate(group, instance, by_imds=True)
    return Answer(204)


def recreate(world: World, call: Call) -> Answer:
    """``POST /v1/recreate``."""
    world.start_over(*_container(world, call), keep=False, by_imds=True)
    return Answer(204)


def restart(world: World, call: Call) -> Answer:
    """``POST /v1/restart``."""
    world.start_over(*_container(world, call), keep=True, by_imds=True)
    return Answer(204)


def _container(world: World, call: Call) -> tuple[Group, Instance]:
    return world.container(call.names["instance"])


def _check_type(call: Call) -> None:
    if call.media_type != JSON:
        raise Refusal(400, f"The content type must be {JSON}.", code=INVALID)


def new_token(group: Group, instance: Instance, issued: int) -> str:
    """A token of an instance, in the shape of an ES256 JWT.

    Args:
        group: Its group.
        instance: It.
        issued: Seconds since the epoch.
    """
    organization_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, group.organization))
    header = {"alg": "ES256", "kid": f"salad-workload-{issued}", "typ": "JWT"}
    claims = {
        "sub": instance.machine_id,
        "salad_machine_id": instance.machine_id,
        "salad_workload_id": group.id,
        "salad_workload_name": group.name,
        "salad_organization_id": organization_id,
        "salad_organization_name": group.organization,
        "aud": organization_id,
        "iss": "https://matrix-api.salad.io",
        "jti": str(uuid.uuid4()),
        "iat": issued,
        "nbf": issued,
        "exp": issued + TOKEN_LIFE_S,
    }
    parts = [_segment(header), _segment(claims), _encoded(secrets.token_bytes(64))]
    return ".".join(parts)


def _segment(value: dict[str, Any]) -> str:
    return _encoded(json.dumps(value, separators=(",", ":")).encode())


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
