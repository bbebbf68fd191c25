"""One exchange with SaladCloud's API: its retries, its rate, and its answers as ours or as errors.

Only 429, 5xx and a network that failed are tried again, with pauses that grow, jitter, and ``Retry-After`` where it is
given (60 s at most). Every try takes a token of a bucket that all threads and all control workers with this key share:
240 calls a minute, by the API's own rule. A body is looked at only where the status says that there is one, and only as
JSON: what an edge proxy says as HTML stays out of messages. Source: the OpenAPI specification 0.9.0-alpha.17 and
SaladCloud's reference/api-usage.

Limits: synchronous; one session for all threads, which keeps no cookies. Redirects are refused, since the key would
follow them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Protocol

import requests
from pydantic import SecretStr
from requests.adapters import HTTPAdapter
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from kelpie_celery.bounded import Bounded, Overdue
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import SaladDenied, SaladError, SaladNotFound, SaladRefused, SaladUnavailable

log = logging.getLogger(__name__)

CALLS_A_MINUTE = 240
BURST = 60
"""So many at once; with what comes in afterwards no minute has more than ``CALLS_A_MINUTE``."""

EACH_S = 60.0 / (CALLS_A_MINUTE - BURST)
MAX_PAUSE_S = 60.0
TRIES = 4

WHOLE_S = 30.0
"""A try takes this long at most, seconds."""
_TIMEOUT_S = (5.0, 15.0)
_CONNECTIONS = 16
_DETAIL_CHARS = 300
_NO_CONTENT = (202, 204)
_TOO_MANY = 429
_SERVER_ERRORS = 500
_KINDS: dict[int, type[SaladError]] = {400: SaladRefused, 401: SaladDenied, 403: SaladDenied, 404: SaladNotFound}


class Tokens(Protocol):
    """The part of the ledger that keeps the rate."""

    def take_token(self, bucket: str, *, each_s: float, holds: int, most_s: float) -> float | None:
        """How long to wait before a call; None when it would be longer than ``most_s``."""


class TooSoon(SaladUnavailable):
    """It may pass, at a moment that the answer named or that a pause leads to; ``after_s`` is 0 where it named none."""

    after_s = 0.0


class Transport:
    """Sends requests; any thread may use it.

    The key is in the session's headers, and in no message, log line or repr.
    """

    def __init__(
        self, base_url: str, key: SecretStr, tokens: Tokens, *, clock: Clock | None = None, tries: int = TRIES
    ) -> None:
        self._base = base_url.rstrip("/")
        self._tokens, self._clock, self._tries = tokens, clock or SystemClock(), tries
        self._bucket = "salad:" + hashlib.sha256(key.get_secret_value().encode()).hexdigest()[:16]
        self._session = requests.Session()
        self._session.headers["Salad-Api-Key"] = key.get_secret_value()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._bounded = Bounded(WHOLE_S, _CONNECTIONS)
        adapter = HTTPAdapter(pool_maxsize=_CONNECTIONS, max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def call(
        self, method: str, path: str, *, patch: dict[str, Any] | None = None, may_act: Callable[[], None] | None = None
    ) -> Any:
        """Make one call; what it answers, parsed, or None where it has no body.

        Args:
            method: The HTTP method.
            path: Below the base URL.
            patch: Body of a merge patch.
            may_act: Called before each try; whatever it raises ends the call.

        Raises:
            SaladUnavailable: It may pass; all tries failed.
            SaladRefused: 400.
            SaladDenied: 401 or 403.
            SaladNotFound: 404.
            SaladError: Any other answer.
        """
        retrying = Retrying(
            retry=retry_if_exception_type(TooSoon),
            wait=_pause_s,
            stop=stop_after_attempt(self._tries),
            sleep=self._clock.sleep,
            before_sleep=_say,
            reraise=True,
        )
        return retrying(self._try, method, path, patch, may_act)

    def _try(self, method: str, path: str, patch: dict[str, Any] | None, may_act: Callable[[], None] | None) -> Any:
        self._wait_for_token(method, path)
        if may_act is not None:
            # After the wait: the right to act may have passed meanwhile.
            may_act()
        headers = {"Content-Type": "application/merge-patch+json"} if patch is not None else {}
        try:
            response = self._bounded.run(
                lambda: self._session.request(
                    method, self._base + path, json=patch, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False
                )
            )
        except Overdue as e:
            raise TooSoon(f"SaladCloud's API {e} ({method} {path}); check the network") from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as e:
            raise TooSoon(
                f"SaladCloud's API cannot be reached ({method} {path}: {type(e).__name__}); check the network, and "
                "KELPIE_SALAD_API_URL"
            ) from None
        except requests.RequestException as e:
            # Its text may hold what was sent.
            raise SaladError(
                f"{method} {path} cannot be sent ({type(e).__name__}); check KELPIE_SALAD_API_URL"
            ) from None
        return _judged(method, path, response)

    def _wait_for_token(self, method: str, path: str) -> None:
        wait_s = self._tokens.take_token(self._bucket, each_s=EACH_S, holds=BURST, most_s=MAX_PAUSE_S)
        if wait_s is None:
            raise SaladUnavailable(
                f"{method} {path} was not sent: {CALLS_A_MINUTE} calls a minute are used up for a minute ahead; scale "
                "fewer groups with one API key, or raise KELPIE_SCALE_INTERVAL_S"
            )
        if wait_s > 0:
            self._clock.sleep(wait_s)


def _judged(method: str, path: str, response: requests.Response) -> Any:
    status = response.status_code
    if status in _NO_CONTENT and method != "GET":
        return None
    if response.ok and not response.is_redirect:
        return _json_of(method, path, response)
    detail = _detail(response)
    said = f"SaladCloud answered {status} to {method} {path}" + (f": {detail}" if detail else "")
    if status == _TOO_MANY or status >= _SERVER_ERRORS:
        error = TooSoon(said, status=status, detail=detail)
        error.after_s = _retry_after_s(response)
        raise error
    raise _KINDS.get(status, SaladError)(f"{said}; {_advice(status)}", status=status, detail=detail)


def _advice(status: int) -> str:
    return {
        400: "it is not possible in the state that the group is in",
        401: "check SALAD_API_KEY",
        403: "check what SALAD_API_KEY may do, and the organization's quotas",
        404: "check the names of organization, project and container group",
    }.get(status, "this is not an answer of its API; check KELPIE_SALAD_API_URL")


def _json_of(method: str, path: str, response: requests.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        # A proxy's page, or an answer that was cut off: the next try may get through.
        raise TooSoon(
            f"SaladCloud answered {response.status_code} to {method} {path} without JSON ({_type(response)})",
            status=response.status_code,
        ) from None


def _type(response: requests.Response) -> str:
    return response.headers.get("Content-Type", "").split(";")[0].strip().lower() or "no content type"


def _detail(response: requests.Response) -> str:
    """What the answer says is wrong, in one line; nothing of a page that is not JSON."""
    if not _type(response).endswith("json"):
        return "" if not response.content else f"a page that is no JSON ({_type(response)})"
    try:
        body = response.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    words = " ".join(str(body.get("detail") or body.get("title") or "").split())
    return words[:_DETAIL_CHARS]


def _retry_after_s(response: requests.Response) -> float:
    """Seconds; a date, which the API never gave, counts as none."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return 0.0
    return min(max(0.0, seconds), MAX_PAUSE_S) if seconds == seconds else 0.0  # noqa: PLR0124 - not a number


_backoff = wait_random_exponential(multiplier=0.5, max=10)


def _pause_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    named_s = error.after_s if isinstance(error, TooSoon) else 0.0
    return min(MAX_PAUSE_S, named_s + float(_backoff(state)))


def _say(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info(
        "SaladCloud's API is tried again",
        extra={"action": "salad_retry", "tries": state.attempt_number, "error": str(error)},
    )
