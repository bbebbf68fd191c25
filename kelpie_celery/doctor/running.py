"""Runs looks beside each other; each ends in time, and none spoils another.

Limits: what takes too long is left behind in a daemon thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kelpie_celery.bounded import Bounded, Overdue
from kelpie_celery.errors import KelpieError
from kelpie_celery.findings import Finding, error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One look, or a few that go one after the other.

    Attributes:
        name: What it is about.
        look: Looks; a ``KelpieError`` becomes a finding by its words.
        limit_s: How long it may take, seconds.
    """

    name: str
    look: Callable[[], Sequence[Finding]]
    limit_s: float = 20.0


def run_all(checks: Sequence[Check]) -> list[Finding]:
    """Run them all; findings in the order of the checks."""
    with ThreadPoolExecutor(max(1, len(checks)), thread_name_prefix="kelpie-doctor") as pool:
        return [one for found in pool.map(_run, checks) for one in found]


def _run(check: Check) -> Sequence[Finding]:
    try:
        return Bounded(check.limit_s).run(check.look)
    except Overdue:
        text = f"no answer within {check.limit_s:g} s"
        return [
            error(check.name, text, "see whether a firewall drops what is sent, and whether the service is overloaded")
        ]
    except KelpieError as e:
        return [error(check.name, str(e), "mend what it names, then run kelpie doctor again")]
    except Exception as e:
        # Its text may hold an address with a password.
        log.debug("a look failed", exc_info=True, extra={"action": "doctor_failed", "check": check.name})
        return [error(check.name, f"could not be looked at ({type(e).__name__})", "KELPIE_LOG_LEVEL=debug shows more")]
