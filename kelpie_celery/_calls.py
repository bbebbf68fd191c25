"""A client's calls to Redis: repeated for a moment when Redis is away, then told in the words of a user.

Limits: only for calls that may be made twice. A user waits at the other end, so the patience is short;
workers, who cannot give up, use ``kelpie_celery.patience``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from redis import exceptions as redis_errors

from kelpie_celery.clock import Clock
from kelpie_celery.errors import LedgerUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0
_MAX_TEXT_CHARS = 300

TROUBLE = (LedgerUnavailable, redis_errors.RedisError)
"""What a call to Redis may raise, through the ledger or directly."""

# Subclasses of ConnectionError in redis-py, and yet nothing that waiting would mend.
_REFUSED = (redis_errors.AuthenticationError, redis_errors.AuthorizationError)
_AWAY = (redis_errors.ConnectionError, redis_errors.TimeoutError)
_MEND_URL = "check KELPIE_REDIS_URL (or --redis-url)"
_TRUST = "use the name that its certificate is for, and name the file of your own authority by ?ssl_ca_certs=FILE"
_CHECK_UP = "check that it is up and that KELPIE_REDIS_URL (or --redis-url) points to it"


class Calls:
    """Makes calls to one Redis.

    Attributes:
        where: The server as it may be shown.
        retry_s: How long a call is repeated while Redis is away, in seconds.
    """

    def __init__(self, url: str, clock: Clock, retry_s: float) -> None:
        self.where, self.retry_s = shown_url(url), retry_s
        self._clock = clock

    def make(self, doing: str, call: Callable[[], T]) -> T:
        """Call until Redis answers or ``retry_s`` is over.

        Args:
            doing: What the call is for, to go on with "could not ...".
            call: May be made more than once.

        Raises:
            LedgerUnavailable: Redis stayed away, or answers with an error.
        """
        began, pause_s = self._clock.boottime(), FIRST_PAUSE_S
        while True:
            try:
                return call()
            except TROUBLE as error:
                waited_s = self._clock.boottime() - began
                if not may_pass(error) or waited_s + pause_s > self.retry_s:
                    raise self.unavailable(doing, error) from error
                if pause_s == FIRST_PAUSE_S:
                    self._say_away(error)
            self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _say_away(self, error: Exception) -> None:
        log.warning(
            "Redis is away; trying again",
            extra={"action": "ledger_away", "redis": self.where, "for_s": self.retry_s, "error": _words(error)},
        )

    def unavailable(self, doing: str, error: Exception) -> LedgerUnavailable:
        """What to tell the user: what could not be done, which Redis, why, and what to do."""
        what, advice = _explained(_cause(error))
        return LedgerUnavailable(f"could not {doing}: Redis at {self.where} {what}; {advice}")


def may_pass(error: Exception) -> bool:
    """Whether waiting may mend it: Redis is away, or still loading its data."""
    cause = _cause(error)
    return isinstance(cause, _AWAY) and not isinstance(cause, _REFUSED)


def shown_url(url: str) -> str:
    """A Redis URL without user, password and options."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _cause(error: Exception) -> BaseException:
    """redis-py's own error below ours."""
    return error.__cause__ if isinstance(error, LedgerUnavailable) and error.__cause__ else error


def _words(error: Exception) -> str:
    # redis-py's texts name host and port, never the password.
    return " ".join(str(_cause(error)).split()).rstrip(".")[:_MAX_TEXT_CHARS]


def _explained(cause: BaseException) -> tuple[str, str]:
    words = _words(cause) if isinstance(cause, Exception) else ""
    match cause:
        case redis_errors.AuthenticationError() | redis_errors.AuthorizationError():
            return f"refuses the user or the password ({words})", _MEND_URL
        case redis_errors.NoPermissionError():
            return f"does not allow it to this user ({words})", f"use another user: {_MEND_URL}"
        case redis_errors.BusyLoadingError():
            return "is still loading its data", "try again in a moment"
        case redis_errors.ConnectionError() if "CERTIFICATE_VERIFY_FAILED" in words:
            return f"cannot be trusted ({words})", _TRUST
        case redis_errors.ConnectionError() | redis_errors.TimeoutError():
            return f"cannot be reached ({words})", _CHECK_UP
    return f"answers with an error ({words})", "see the server's log"
