"""Which variables of a worker's environment are kelpie-celery's own secrets, not for jobs.

Limits: it goes by name; a secret under a name of the user's own choice is the user's.
"""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = frozenset({"KELPIE_REDIS_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "SALAD_API_KEY"})
_WORDS = ("SECRET", "PASSWORD", "TOKEN", "KEY")


def without_secrets_env(environ: Mapping[str, str]) -> dict[str, str]:
    """The container's environment as a job may see it.

    Left out are the broker's URL under its usual names and under any other, ``SALAD_API_KEY``, and every
    ``KELPIE_...`` whose name says that it is a secret, a password, a token or a key. ``AWS_...`` stays: jobs
    use it for their own access to the storage, as they could in Kelpie.
    """
    url = environ.get("KELPIE_REDIS_URL", "").strip()
    return {
        name: text for name, text in environ.items() if not _is_own_secret(name) and not (url and text.strip() == url)
    }


def _is_own_secret(name: str) -> bool:
    words = name.removeprefix("KELPIE_")
    return name in _NAMES or (words != name and any(word in words for word in _WORDS))
