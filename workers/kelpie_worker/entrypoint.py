"""``kelpie-worker``: the entrypoint of a GPU worker's container.

It is ``celery -A kelpie_celery worker`` with the queue of the container group, a name by machine, and settings that are
checked before anything connects. Limits: one container group a worker.
"""

from __future__ import annotations

import sys

from kelpie_celery.celery import app
from kelpie_celery.errors import SettingsError
from kelpie_celery.ledger import keys
from kelpie_celery.settings import Settings, load_settings

EX_CONFIG = 78


def worker_arguments(settings: Settings) -> list[str]:
    """The arguments of Celery's worker command."""
    if settings.container_group_id is None:
        raise SettingsError(
            "SALAD_CONTAINER_GROUP_ID is not set: it names the container group whose jobs this worker runs; SaladCloud "
            "sets it in its containers, elsewhere set it to the container_group_id of your job definitions"
        )
    return [
        "worker",
        "--queues", keys.queue_name(settings.container_group_id),
        "--hostname", f"kelpie@{settings.machine_id}",
        "--loglevel", settings.log_level,
        "--without-gossip", "--without-mingle",
    ]  # fmt: skip


def main() -> None:
    """Run a worker until it is told to end."""
    try:
        settings = load_settings()
        arguments = worker_arguments(settings)
    except SettingsError as e:
        sys.stderr.write(f"kelpie-worker: {e}\n")
        sys.exit(EX_CONFIG)
    app.worker_main(arguments)


if __name__ == "__main__":
    main()
