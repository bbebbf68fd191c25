"""What a webhook says, and its signature, which the Standard Webhooks library verifies."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from kelpie_celery.errors import SettingsError
from kelpie_celery.ledger.webhooks import Told, Webhook
from kelpie_celery.lifecycle import Status
from kelpie_celery.settings import load_settings
from kelpie_scaler.webhooks.message import body, headers

KEY = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HOOK = Webhook(
    "5f1c-id", "group-1", Status.FAILED, "https://u:p@hooks.example/secret",
    Told(state="waiting", at=1.0, attempt=3, machine="m-1", reason="exit_code", tries=2, error="secret words"),
)  # fmt: skip
NOW_S = datetime.now(UTC).timestamp()


def test_the_body_is_kelpies_with_attempt_and_reason() -> None:
    assert json.loads(body(HOOK)) == {
        "status": "failed", "job_id": "5f1c-id", "machine_id": "m-1", "container_group_id": "group-1",
        "attempt": 3, "reason": "exit_code",
    }  # fmt: skip


def test_what_is_not_known_is_null() -> None:
    pending = Webhook("id", "g", Status.CANCELED, "https://h", Told(state="waiting", at=1.0))
    told = json.loads(body(pending))
    assert (told["machine_id"], told["attempt"], told["reason"]) == (None, 0, None)


@pytest.mark.parametrize("secret", [KEY, f"whsec_{KEY}"])
def test_the_signature_is_the_one_of_standard_webhooks(secret: str) -> None:
    content = body(HOOK)
    found = headers(HOOK, content, SecretStr(secret), NOW_S)
    assert Verifier(KEY).verify(content, found) == json.loads(content)
    with pytest.raises(WebhookVerificationError):
        Verifier(KEY).verify(content.replace(b"failed", b"fake"), found)
    with pytest.raises(WebhookVerificationError):
        Verifier("AAAA" + KEY[4:]).verify(content, found)


def test_the_signature_of_the_standards_own_example() -> None:
    # The values that the libraries of Standard Webhooks are tested with.
    moment = datetime.fromtimestamp(1614265330, UTC)
    signed = Verifier(KEY).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", moment, '{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_without_a_secret_there_is_no_signature() -> None:
    assert "webhook-signature" not in headers(HOOK, body(HOOK), None, NOW_S)


def test_the_id_is_the_same_for_each_try_and_separates_nothing() -> None:
    first, second = (headers(HOOK, body(HOOK), None, now)["webhook-id"] for now in (NOW_S, NOW_S + 100))
    assert first == second == "kelpie_5f1c-id_failed"
    dotted = Webhook("a.b", "g", Status.RUNNING, "https://h", HOOK.told)
    assert "." not in headers(dotted, b"", None, NOW_S)["webhook-id"]


def test_no_api_key_and_no_secret_of_ours_is_sent() -> None:
    env = {
        "KELPIE_REDIS_URL": "rediss://:redis-canary@h",
        "KELPIE_WEBHOOK_SECRET": KEY,
        "AWS_SECRET_ACCESS_KEY": "aws-canary",
    }
    settings = load_settings(env)
    found = headers(HOOK, body(HOOK), settings.webhook_secret, NOW_S)
    assert {name.lower() for name in found} == {
        "content-type", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature",
    }  # fmt: skip
    sent = str(found) + body(HOOK).decode()
    for word in (KEY, "canary", "secret"):
        assert word not in sent
    assert {KEY, "redis-canary"} <= set(settings.secrets())
    assert KEY not in repr(settings)


@pytest.mark.parametrize("secret", ["x", "whsec_", "not base64!", "AAAA", "A" * 400, f"whsec_whsec_{KEY}"])
def test_a_secret_that_is_none_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(SettingsError, match=r"KELPIE_WEBHOOK_SECRET: must be 24 to 128 bytes in base64") as refused:
        load_settings({"KELPIE_REDIS_URL": "rediss://h", "KELPIE_WEBHOOK_SECRET": secret})
    assert f"'{secret}'" not in str(refused.value)
