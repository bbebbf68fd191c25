"""Beat's scheduler: celery-redbeat on the app's own Redis, one at a time by a lock.

Limits: schedules of ``celery_config`` only are kept by us; others that users add to RedBeat are left alone.
"""

from __future__ import annotations

from typing import Any

from redbeat.schedulers import RedBeatScheduler

from kelpie_celery.probes import touch


class Scheduler(RedBeatScheduler):  # type: ignore[misc]  # no stubs are published
    """RedBeat, told its URL in the beat process alone.

    Celery masks the password of the URLs that it knows when ``celery inspect conf`` or Flower asks a worker for its
    configuration; it does not know RedBeat's.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        app.conf.redbeat_redis_url = app.settings.redis_url.get_secret_value()
        super().__init__(app, **options)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; a beat that waits for another one to end does not come here.

        Returns:
            Seconds until the next round.
        """
        next_s: float = super().tick(*args, **kwargs)
        touch(self.app.settings.ready_file)
        return next_s
