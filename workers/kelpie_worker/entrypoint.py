"""``kelpie-worker``: the entrypoint of a GPU worker's container.

It does what ``celery -A kelpie_celery worker`` does, with the queue of the container group, a name by machine, and
settings that are checked before anything connects. Limits: one container group a worker.
"""

from __future__ import annotations

import sys
from typing import Any

from kelpie_celery.celery import app
from kelpie_celery.errors import SettingsError
from kelpie_celery.ledger import keys
from kelpie_celery.settings import Settings, load_settings

EX_CONFIG = 78


def worker_options(settings: Settings) -> dict[str, Any]:
    """The options of Celery's worker."""
    if settings.container_group_id is None:
        raise SettingsError(
            "SALAD_CONTAINER_GROUP_ID is not set: it names the container group whose jobs this worker runs; SaladCloud "
            "sets it in its containers, elsewhere set it to the container_group_id of your job definitions"
        )
    return {
        "queues": [keys.queue_name(settings.container_group_id)],
        "hostname": f"kelpie@{settings.machine_id}",
        "loglevel": settings.log_level.upper(),
        "without_gossip": True,
        "without_mingle": True,
        "quiet": True,
    }


def main() -> None:
    """Run a worker until it is told to end."""
    try:
        options = worker_options(load_settings())
    except SettingsError as e:
        sys.stderr.write(f"kelpie-worker: {e}\n")
        sys.exit(EX_CONFIG)
    # Not through Celery's command line: that one alone loads 12 MB, Flower included.
    worker = app.Worker(**options)
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
