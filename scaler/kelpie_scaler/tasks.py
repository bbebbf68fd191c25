"""Control tasks, started by beat and run by the control worker on queue ``kelpie.control``.

Limits: each run is bounded; a run that comes late is dropped (``expires``), and two at once do no harm.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from celery import current_app, shared_task

from kelpie_celery.errors import LedgerRefused, LedgerUnavailable
from kelpie_celery.maintenance import Maintainer
from kelpie_celery.probes import touch
from kelpie_scaler import rules_at_start
from kelpie_scaler.webhooks.courier import Courier

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp
    from kelpie_scaler.scale import Scaler

log = logging.getLogger(__name__)

ENTRIES_A_TICK = 100
QUIET: dict[str, Any] = {"ignore_result": True, "send_events": False}
"""Without events: 86,000 rounds a day would bury the jobs in Flower, which keeps 100,000 tasks."""

rules_at_start.connect()


@cache
def _maintainer(app: KelpieApp) -> Maintainer:
    # One for the process: it remembers outages and clock jumps between runs.
    return Maintainer(app, "kelpie-control")


@cache
def _scaler(app: KelpieApp) -> Scaler:
    # One for the process: it has the connections, and knows which looks are under way.
    # Imported here: every worker loads these tasks, and only the control worker scales.
    from kelpie_scaler.scale import Scaler  # noqa: PLC0415

    return Scaler(app)


@cache
def _courier(app: KelpieApp) -> Courier:
    # One for the process, so that slow receivers hold one of its threads and no more.
    return Courier(app.ledger, app.settings)


def _app() -> KelpieApp:
    proxy: Any = current_app
    return cast("KelpieApp", proxy._get_current_object())


_scaling = threading.Lock()


def tick_alone(scaler: Scaler) -> None:
    """Tick, unless the tick before is still at it: a second one would only hold another thread of the worker."""
    if not _scaling.acquire(blocking=False):
        return
    try:
        scaler.tick()
    except LedgerUnavailable as e:
        log.warning("scaling waits for Redis", extra={"action": "scale_away", "error": str(e)})
    finally:
        _scaling.release()


@shared_task(name="kelpie.scale", **QUIET)
def scale() -> None:
    """Look at every container group that has a rule."""
    tick_alone(_scaler(_app()))


@shared_task(name="kelpie.maintain", **QUIET)
def maintain() -> None:
    """Reap, promote, reconcile, expire and replay, for every container group."""
    maintain_all(_app())


def maintain_all(app: KelpieApp) -> None:
    """What the task does."""
    maintainer = _maintainer(app)
    try:
        groups = app.ledger.groups()
        refused = sum(not _maintained(maintainer, group) for group in groups)
    except LedgerUnavailable as e:
        log.warning("maintenance is waiting for Redis", extra={"action": "maintain_away", "error": str(e)})
        return
    if not groups or refused < len(groups):
        touch(app.settings.ready_file)


def _maintained(maintainer: Maintainer, group: str) -> bool:
    try:
        maintainer.tick(group, limit=ENTRIES_A_TICK)
    except LedgerRefused as e:
        # A group's workers may write its keys: what they spoil must not stop the maintenance of others.
        log.warning(
            "a group cannot be maintained",
            extra={"action": "maintain_refused", "container_group": group, "error": str(e)},
        )
        return False
    return True


@shared_task(name="kelpie.webhooks", **QUIET)
def webhooks() -> None:
    """Send the webhooks that are due; see ``kelpie_scaler.webhooks.courier``."""
    try:
        _courier(_app()).round()
    except LedgerUnavailable as e:
        log.warning("webhooks are waiting for Redis", extra={"action": "webhooks_away", "error": str(e)})
