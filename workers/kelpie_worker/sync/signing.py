"""Presigned requests that expire with the trust window, by the storage's own clock.

The signer is botocore's. Its time is the storage's, learnt from the ``Date`` of its answers: a machine whose clock is
wrong would else sign requests that live too long, or are refused for ever.

Limits: ``Date`` counts whole seconds, so the estimate is up to a second (and a round trip) early, never late: a request
expires too soon rather than too late.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from kelpie_celery.clock import Clock
from kelpie_worker.sync.config import StorageConfig

_SAMPLES = 32
_ASKED = 64
_DERIVED = 16
"""Keys that are remembered: four a day."""


class StorageClock:
    """The storage's time, as far as it is known here; from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Against the clock that is never set: a sample must not go wrong when the wall clock is put right.
        self._samples_s: deque[float] = deque(maxlen=_SAMPLES)
        self._ahead_s: float | None = None
        self._lock = threading.Lock()
        self._last = ""

    def learn(self, date_header: str | None) -> None:
        """Take note of the ``Date`` of an answer that has just arrived."""
        # The first answer of a second says more than the others of that second.
        if not date_header or date_header == self._last:
            return
        self._last = date_header
        try:
            sent = parsedate_to_datetime(date_header).timestamp()
        except ValueError:
            return
        # The answer was sent at this second or later, so every sample is a lower bound.
        ahead_s = sent - self._clock.boottime()
        with self._lock:
            self._samples_s.append(ahead_s)
            self._ahead_s = max(self._samples_s)

    def now(self) -> float:
        """Seconds since the epoch, by the storage's clock, or a little less."""
        ahead_s = self._ahead_s
        return self._clock.now() if ahead_s is None else self._clock.boottime() + ahead_s


@functools.lru_cache
def address(base_url: str) -> tuple[str, str]:
    """Of a URL: everything before the path, and what the ``Host`` header says."""
    parts = urlsplit(base_url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    if parts.port is not None and parts.port != {"http": 80, "https": 443}.get(parts.scheme):
        host = f"{host}:{parts.port}"
    return f"{parts.scheme}://{parts.netloc}", host


class _Request(NamedTuple):
    """A request, as far as botocore's signer looks at it once its text is there."""

    context: dict[str, str]


@functools.cache
def _signer_class() -> Any:
    """The signer of botocore, which remembers the keys that it derives: they are the same for a day."""
    from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 -- takes long to import

    class Signer(S3SigV4QueryAuth):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._derived: dict[tuple[bytes, str], bytes] = {}

        def _sign(self, key: bytes, msg: str, hex: bool = False) -> bytes | str:  # noqa: A002 -- botocore's name
            if hex:
                return str(super()._sign(key, msg, hex=True))  # type: ignore[misc]  # private: its stubs leave it out
            derived = self._derived.get((key, msg))
            if derived is None:
                if len(self._derived) >= _DERIVED:
                    self._derived.clear()
                derived = self._derived[key, msg] = super()._sign(key, msg)  # type: ignore[misc]  # likewise
            return derived

    return Signer


class Presigner:
    """Makes presigned URLs; from any thread.

    What is signed is put together here, since most of it is the same every time: botocore takes ten times as long, and
    a small object little longer than that. Keys, scope and signature are botocore's.
    """

    def __init__(self, config: StorageConfig, clock: StorageClock) -> None:
        from botocore.credentials import Credentials  # noqa: PLC0415 -- takes long to import

        credentials = Credentials(config.access_key, config.secret_key, config.session_token)
        self._signer = _signer_class()(credentials, "s3", config.region)
        self._token, self._clock = config.session_token, clock
        # Most of the parameters are the same in all requests of a second.
        self._asked = functools.lru_cache(_ASKED)(self._ask)

    def url(
        self, method: str, base_url: str, key: str, *, valid_s: float,
        query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None, now: float | None = None,
    ) -> str:  # fmt: skip
        """A URL that the storage accepts for ``valid_s`` seconds from now, rounded down.

        Args:
            method: HTTP method.
            base_url: The bucket's, without a trailing ``/``.
            key: The object.
            valid_s: At least 1.
            query: More parameters.
            headers: What must be sent exactly so.
            now: The storage's time from which they count, where it was read before ``valid_s`` was measured.
        """
        now = self._clock.now() if now is None else now
        origin, host = address(base_url)
        signed = {"host": host}
        for name, value in (headers or {}).items():
            signed[name.lower()] = value.strip()
        ordered = sorted(signed.items())
        names = ";".join([name for name, _ in ordered])
        # The fraction that the stamp loses is given back here: the end is what must not be late.
        expires_s = max(1, int(now % 1 + valid_s))
        timestamp, asked = self._asked(int(now), expires_s, names, tuple(query.items()) if query else ())
        url = f"{base_url}/{quote(key, safe='/~')}"
        lines = "\n".join([f"{name}:{value}" for name, value in ordered])
        text = f"{method}\n{url[len(origin) :]}\n{asked}\n{lines}\n\n{names}\nUNSIGNED-PAYLOAD"
        request = _Request({"timestamp": timestamp})
        signature = self._signer.signature(self._signer.string_to_sign(request, text), request)
        return f"{url}?{asked}&X-Amz-Signature={signature}"

    def _ask(self, now: int, expires_s: int, names: str, query: tuple[tuple[str, str], ...]) -> tuple[str, str]:
        """The timestamp, and all parameters but the signature."""
        timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        parameters = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": self._signer.scope(_Request({"timestamp": timestamp})),
            "X-Amz-Date": timestamp,
            "X-Amz-Expires": str(expires_s),
            "X-Amz-SignedHeaders": names,
            **dict(query),
        }
        if self._token:
            parameters["X-Amz-Security-Token"] = self._token
        return timestamp, "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in sorted(parameters.items()))
