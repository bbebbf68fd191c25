"""The error of ``kelpie verify``.

KelpieError
+-- CannotVerify             the job cannot be tried on this machine as it is
"""

from __future__ import annotations

from kelpie_celery.errors import KelpieError


class CannotVerify(KelpieError):
    """The job cannot be tried here; the message says why, and what to do."""
