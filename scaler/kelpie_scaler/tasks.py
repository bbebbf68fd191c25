"""Control tasks, started by beat and run by the control worker on queue ``kelpie.control``.

Limits: each run is bounded; a run that comes late is dropped (``expires``), and two at once do no harm.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from celery import current_app, shared_task

from kelpie_celery.errors import LedgerUnavailable
from kelpie_celery.maintenance import Maintainer

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)

ENTRIES_A_TICK = 100


@cache
def _maintainer(app: KelpieApp) -> Maintainer:
    # One for the process: it remembers outages and clock jumps between runs.
    return Maintainer(app, "kelpie-control")


@shared_task(name="kelpie.maintain", ignore_result=True)
def maintain() -> None:
    """Reap, promote, reconcile, expire and replay, for every container group."""
    proxy: Any = current_app
    app = cast("KelpieApp", proxy._get_current_object())
    maintainer = _maintainer(app)
    try:
        for group in app.ledger.groups():
            maintainer.tick(group, limit=ENTRIES_A_TICK)
    except LedgerUnavailable as e:
        log.warning("maintenance is waiting for Redis", extra={"action": "maintain_away", "error": str(e)})
