"""The error of the local stack.

KelpieError
+-- LocalStackError          a local server or process cannot be found, started or waited for
"""

from __future__ import annotations

from kelpie_celery.errors import KelpieError


class LocalStackError(KelpieError):
    """Something of the local stack cannot be found, started or waited for; the message says what to do."""
