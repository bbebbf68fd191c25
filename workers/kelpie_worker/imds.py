"""The metadata service (IMDS) of a SaladCloud node: what it costs to delete this instance, and how to leave the node.

Calls never leave the node; the base URL is ``SALAD_METADATA_URI``. Where there is none (a laptop) the first call says
so, and none is made for ``ABSENT_S``. Source: SaladCloud's IMDS specification 0.9.0-alpha.3. Whatever answers there, a
call ends within ``WHOLE_S``, in an answer or an ``ImdsError``, and reads 8 KiB at most. Limits: synchronous, one
caller at a time; there is no call that ends an instance.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kelpie_celery.bounded import Bounded, Overdue
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import ImdsAbsent, ImdsError

if TYPE_CHECKING:
    import requests

MAX_COST = 100_000
"""The service takes any 32-bit number; the API shows 0 to this one only."""

ABSENT_S = 600.0
"""So long no call is made after one that found no service, seconds."""

KNOWN_ABSENT_S = 15.0
"""The same where it was there before, and does not listen for a moment."""

WHOLE_S = 10.0
"""A call takes this long at most, seconds: a time-out alone allows a byte now and then for ever."""

_TIMEOUT_S = (1.0, 5.0)
_BODY_BYTES = 8192
_REASON_CHARS = 1000
# Other clouds have a service at the same address, which knows none of these paths, or not us.
_ELSEWHERE = (401, 404, 405)


class Imds:
    """Calls of the metadata service."""

    def __init__(self, base_url: str, clock: Clock | None = None) -> None:
        self._base = base_url.rstrip("/")
        self._clock = clock or SystemClock()
        self._session: requests.Session | None = None
        self._absent_since: float | None = None
        self._known = False
        self._bounded = Bounded(WHOLE_S)

    def deletion_cost(self) -> int:
        """What it costs to delete this instance, as the platform has it.

        Raises:
            ImdsAbsent: There is no service.
            ImdsError: It did not answer as it should.
        """
        answer = self._call("GET", "/v1/deletion-cost")
        cost = answer.get("deletion_cost") if isinstance(answer, dict) else None
        if not isinstance(cost, int) or isinstance(cost, bool):
            raise ImdsError(f"the metadata service at {self._base} gave no deletion cost; is it SaladCloud's?")
        return cost

    def set_deletion_cost(self, cost: int) -> None:
        """Say what it costs to delete this instance: of those that run, the cheapest goes first.

        Raises:
            ImdsAbsent: There is no service.
            ImdsError: It did not take it.
        """
        self._call("PUT", "/v1/deletion-cost", {"deletion_cost": max(0, min(MAX_COST, cost))})

    def reallocate(self, reason: str) -> None:
        """Leave this node for another one; the process is killed at some moment after this.

        Raises:
            ImdsAbsent: There is no service.
            ImdsError: It did not take it.
        """
        self._call("POST", "/v1/reallocate", {"reason": reason[:_REASON_CHARS] or "unknown"})

    def recreate(self) -> None:
        """Begin anew on this node, with a fresh container; the process is killed at some moment after this."""
        self._call("POST", "/v1/recreate")

    def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            self._session.close()

    @property
    def absent(self) -> bool:
        """Whether a call found no service less than ``ABSENT_S`` ago, or ``KNOWN_ABSENT_S`` where there was one."""
        for_s = KNOWN_ABSENT_S if self._known else ABSENT_S
        return self._absent_since is not None and self._clock.boottime() - self._absent_since < for_s

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        import requests  # noqa: PLC0415 - heavy, and not needed where there is no service

        if self.absent:
            raise ImdsAbsent(f"there was no metadata service at {self._base} a moment ago")
        try:
            status, content = self._within_bounds(f"{method} {path}", lambda: self._exchange(method, path, body))
        except ImdsError:
            raise
        except (requests.ConnectionError, requests.Timeout) as e:
            if isinstance(e, requests.ReadTimeout):
                raise ImdsError(f"the metadata service at {self._base} gave no answer to {method} {path}") from e
            self._absent_since = self._clock.boottime()
            raise ImdsAbsent(f"there is no metadata service at {self._base}") from e
        except Exception as e:
            # requests lets errors of what it is built on pass, and there is no telling what answers.
            raise ImdsError(f"{method} {path} at {self._base}: {type(e).__name__}; check SALAD_METADATA_URI") from e
        return self._judged(method, path, status, content)

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        """Status and the beginning of the answer, which is longer than ``_BODY_BYTES`` if it is not to be believed."""
        with self._opened().request(
            method, self._base + path, json=body, timeout=_TIMEOUT_S, allow_redirects=False, stream=True
        ) as response:
            content = b""
            # Byte by byte, out of a buffer: what asks for more waits until that much has come.
            while method == "GET" and len(content) <= _BODY_BYTES and (more := response.raw.read(1)):
                content += more
            return response.status_code, content

    def _within_bounds(self, what: str, call: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
        """Make a call in a thread that is left to itself when it takes too long; there is one such at most."""
        try:
            return self._bounded.run(call)
        except Overdue as error:
            self._session = None
            raise ImdsError(f"the metadata service at {self._base} {error} ({what})") from None

    def _judged(self, method: str, path: str, status: int, content: bytes) -> Any:
        if status in _ELSEWHERE and not self._known:
            self._absent_since = self._clock.boottime()
            raise ImdsAbsent(f"what answers at {self._base} is not SaladCloud's metadata service ({path})")
        if not 200 <= status < 300:  # noqa: PLR2004 - redirects too would lead off the node
            raise ImdsError(f"the metadata service answered {status} to {method} {path}")
        self._absent_since, self._known = None, True
        if method != "GET":
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as e:
            raise ImdsError(f"the metadata service answered no JSON to {method} {path}") from e

    def _opened(self) -> requests.Session:
        import requests  # noqa: PLC0415

        if self._session is None:
            self._session = requests.Session()
            # A proxy would carry the call off the node, and adds headers that the service refuses.
            self._session.trust_env = False
            self._session.headers["Metadata"] = "true"
            self._session.headers["Accept-Encoding"] = "identity"
        return self._session
