"""What a webhook says, and how it proves who says it.

The body is Kelpie's (``status``, ``job_id``, ``machine_id``, ``container_group_id``) with ``attempt`` and ``reason``.
Kelpie sent the API key of whoever submitted the job along; nothing of the kind is sent here: a signature by Standard
Webhooks takes its place. Limits: statuses and ids only, nothing of the definition and nothing that a command said.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from pydantic import SecretStr

from kelpie_celery.ledger.webhooks import Webhook

USER_AGENT = "kelpie-celery"


def message_id(hook: Webhook) -> str:
    """The same for each try, so that a receiver can tell a repeat; without a dot, which the signature separates by."""
    return f"kelpie_{hook.job_id}_{hook.status.value}".replace(".", "-")


def body(hook: Webhook) -> bytes:
    """The same for each try."""
    fields = {
        "status": hook.status.value,
        "job_id": hook.job_id,
        "machine_id": hook.told.machine,
        "container_group_id": hook.group,
        "attempt": hook.told.attempt,
        "reason": hook.told.reason or None,
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def headers(hook: Webhook, content: bytes, secret: SecretStr | None, now_s: float) -> dict[str, str]:
    """The request's headers; ``now_s`` is the time of this try, in epoch seconds."""
    found = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "webhook-id": message_id(hook),
        "webhook-timestamp": str(int(now_s)),
    }
    if secret is not None:
        moment = datetime.fromtimestamp(int(now_s), UTC)
        # Every worker knows the names of the control tasks, and most are installed without what these need.
        from standardwebhooks.webhooks import Webhook as Signer  # noqa: PLC0415

        signer = Signer(secret.get_secret_value())
        found["webhook-signature"] = signer.sign(found["webhook-id"], moment, content.decode())
    return found
