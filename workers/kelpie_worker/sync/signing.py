"""Presigned requests that expire with the trust window, by the storage's own clock.

The signer is botocore's. Its time is the storage's, learnt from the ``Date`` of its answers: a machine whose clock is
wrong would else sign requests that live too long, or are refused for ever.

Limits: ``Date`` counts whole seconds, so the estimate is up to a second (and a round trip) early, never late: a request
expires too soon rather than too late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from kelpie_celery.clock import Clock
from kelpie_worker.sync.config import StorageConfig

_SAMPLES = 32


class StorageClock:
    """The storage's time, as far as it is known here."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Against the clock that is never set: a sample must not go wrong when the wall clock is put right.
        self._ahead_s: deque[float] = deque(maxlen=_SAMPLES)

    def learn(self, date_header: str | None) -> None:
        """Take note of the ``Date`` of an answer that has just arrived."""
        if not date_header:
            return
        try:
            sent = parsedate_to_datetime(date_header).timestamp()
        except ValueError:
            return
        # The answer was sent at this second or later, so every sample is a lower bound.
        self._ahead_s.append(sent - self._clock.boottime())

    def now(self) -> float:
        """Seconds since the epoch, by the storage's clock, or a little less."""
        if not self._ahead_s:
            return self._clock.now()
        return self._clock.boottime() + max(self._ahead_s)


class Presigner:
    """Makes presigned URLs."""

    def __init__(self, config: StorageConfig, clock: StorageClock) -> None:
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 -- takes long to import
        from botocore.credentials import Credentials  # noqa: PLC0415

        class Signer(S3SigV4QueryAuth):
            """botocore's signer with a time of ours."""

            def __init__(self, timestamp: str, expires_s: int) -> None:
                super().__init__(credentials, "s3", config.region, expires=expires_s)
                self._timestamp = timestamp

            def _modify_request_before_signing(self, request: Any) -> None:
                request.context["timestamp"] = self._timestamp
                super()._modify_request_before_signing(request)  # type: ignore[misc]  # the stubs leave it out

        credentials = Credentials(config.access_key, config.secret_key, config.session_token)
        self._signer, self._clock = Signer, clock

    def url(
        self, method: str, base_url: str, key: str, *, valid_s: float,
        query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """A URL that the storage accepts for ``valid_s`` seconds from now, rounded down.

        Args:
            method: HTTP method.
            base_url: The bucket's, without a trailing ``/``.
            key: The object.
            valid_s: At least 1.
            query: More parameters.
            headers: What must be sent exactly so.
        """
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415

        now = self._clock.now()
        stamp = datetime.fromtimestamp(int(now), UTC).strftime("%Y%m%dT%H%M%SZ")
        # The fraction that the stamp loses is given back here: the end is what must not be late.
        expires_s = max(1, int(now % 1 + valid_s))
        url = f"{base_url}/{quote(key, safe='/~')}"
        request = AWSRequest(method=method, url=url, params=dict(query or {}), headers=dict(headers or {}))
        self._signer(stamp, expires_s).add_auth(request)
        return str(request.url)
