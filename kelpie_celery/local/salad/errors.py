"""The error of the simulated SaladCloud.

KelpieError
+-- LocalStackError
    +-- Refusal              the simulated API answers with an error (status, detail)
"""

from __future__ import annotations

from http import HTTPStatus

from kelpie_celery.local.errors import LocalStackError


class Refusal(LocalStackError):
    """The simulated API refuses; over HTTP it becomes a problem document.

    Attributes:
        status: The HTTP status.
        detail: Why, in words.
        code: IMDS names its errors by a code.
        fields: By field of the body: what is wrong with it; IMDS tells that apart.
    """

    def __init__(self, status: int, detail: str, *, code: str = "", fields: dict[str, list[str]] | None = None) -> None:
        self.status, self.detail, self.code, self.fields = status, detail, code, fields or {}
        super().__init__(f"{status} {HTTPStatus(status).phrase}: {detail}")
