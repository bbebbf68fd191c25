"""When a control worker is ready, the rules of ``KELPIE_RULES_FILE`` are kept in the ledger.

A file that is refused changes nothing and stops nothing: the rules that are kept already hold, and the log says what
to mend. Limits: once a start; the worker goes on meanwhile, and an outage of Redis is waited out.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from celery import signals

from kelpie_celery.errors import RuleError
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.rules import Rules
from kelpie_celery.patience import until_the_ledger_answers
from kelpie_celery.scaling.rules_file import load_rules

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp

log = logging.getLogger(__name__)


def connect() -> None:
    """Connect the hook; calling it again changes nothing."""
    signals.worker_ready.connect(_on_ready, weak=False, dispatch_uid="kelpie-rules")


def keep_rules(app: KelpieApp) -> None:
    """Read the file, and keep its rules."""
    path = app.settings.rules_file
    if path is None:
        return
    try:
        kept = until_the_ledger_answers(lambda: load_rules(path, Rules(app.ledger.redis), app.ledger.groups()))
    except RuleError as e:
        log.error(  # noqa: TRY400 -- a user's file: the place in it says more than ours in the code
            "the file of scaling rules is refused; the rules that are kept already hold",
            extra={"action": "rules_refused", "file": str(path), "error": str(e)},
        )
        return
    log.info("scaling rules kept", extra={"action": "rules_kept", "file": str(path), "rules": len(kept)})


def _on_ready(sender: Any = None, **_: Any) -> None:
    app = sender.app
    settings = getattr(app, "settings", None)
    # GPU workers load the control tasks too.
    if getattr(settings, "rules_file", None) is None or keys.CONTROL_QUEUE not in app.amqp.queues.consume_from:
        return
    threading.Thread(target=keep_rules, args=(app,), name="kelpie-rules", daemon=True).start()
