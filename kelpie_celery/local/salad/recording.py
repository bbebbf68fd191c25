"""Every exchange with the API and IMDS, one JSON object a line.

A line has ``service`` (``api`` or ``imds``), ``method``, ``url``, ``headers``, ``body``, ``status`` and ``response``
(bodies parsed; ``null`` where there was none; the text of a page that is no JSON), and ``at``, the time of the answer.

Secrets are masked: the API key and other credentials in headers, every value of ``environment_variables``, of
``registry_authentication`` and ``logging``, and tokens. Limits: an exchange whose connection was dropped on purpose
has no answer and is not recorded. A request's body that is no JSON is recorded as a mark, not as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Final

from kelpie_celery.local.errors import LocalStackError

MASK: Final = "***"
NOT_JSON: Final = "(not JSON)"
_SECRET_HEADERS: Final = frozenset({"salad-api-key", "authorization", "proxy-authorization", "cookie", "x-api-key"})
_SECRET_FIELDS: Final = frozenset({"environment_variables", "registry_authentication", "logging", "jwt"})


class Recording:
    """The file; each line is written as a whole, at once."""

    def __init__(self, path: Path | None) -> None:
        """A recording.

        Args:
            path: The file, which is appended to; ``None`` to record nothing.

        Raises:
            LocalStackError: It cannot be written.
        """
        self._file = None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("ab", buffering=0)
            except OSError as error:
                raise LocalStackError(f"the recording {path} cannot be written: {error.strerror}") from error

    def note(
        self,
        service: str,
        *,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: object,
        status: int,
        response: object,
        at: str,
    ) -> None:
        """Record one exchange."""
        if self._file is None:
            return
        record = {
            "service": service,
            "method": method,
            "url": url,
            "headers": masked_headers(headers),
            "body": masked(body),
            "status": status,
            "response": masked(response),
            "at": at,
        }
        self._append(self._file, json.dumps(record).encode() + b"\n")

    @staticmethod
    def _append(file: FileIO, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            if taken := len(line) - len(left):  # a full disk may take a part
                file.truncate(file.seek(0, os.SEEK_END) - taken)
            raise

    def close(self) -> None:
        """Close the file; harmless when done twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


def masked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers without credentials; an empty one stays empty, which is a fault that a reader may look for."""
    return {name: MASK if value and name.lower() in _SECRET_HEADERS else value for name, value in headers.items()}


def masked(value: object, secret: bool = False) -> Any:
    """A JSON value without what may be secret."""
    match value:
        case dict():
            return {name: masked(one, secret or name in _SECRET_FIELDS) for name, one in value.items()}
        case list():
            return [masked(one, secret) for one in value]
        case str() if secret and value:
            return MASK
    return value
