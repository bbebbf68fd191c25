"""What the worker processes of these tests load: ``celery -A tests.integration.celery_side.worker_app worker``."""

from __future__ import annotations

from redis import Redis

from kelpie_celery.celery import app
from tests.integration.celery_side import deafening
from tests.integration.celery_side.faults import Faults
from tests.integration.celery_side.played import Notes, Player, register

_redis = Redis.from_url(app.settings.redis_url.get_secret_value(), decode_responses=True)
_notes = Notes(_redis)
# Seconds where production has minutes.
app.conf.update(
    redbeat_lock_timeout=8,
    beat_max_loop_interval=1,
    result_backend_transport_options={"retry_policy": {"max_retries": 3, "interval_max": 0.3}},
)
app.__dict__["runner"] = Player(app, _notes)
register(app, _notes)
Faults(app, _redis, _notes).install()
deafening.install()
