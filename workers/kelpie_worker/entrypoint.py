"""``kelpie-worker``: the entrypoint of a GPU worker's container; ``kelpie-worker health`` is for its probes.

It does what ``celery -A kelpie_celery worker`` does, with the queue of the container group, a name by machine, and
settings that are checked before anything connects. Limits: one container group a worker. Nothing heavy is imported
before it is known what is wanted: a probe takes a tenth of a second.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kelpie_celery.clock import SystemClock
from kelpie_celery.health import path_of, verdict

if TYPE_CHECKING:
    from kelpie_celery.settings import Settings

EX_USAGE, EX_CONFIG = 64, 78
USAGE = """usage: kelpie-worker [health]

Without an argument: run a worker of the container group SALAD_CONTAINER_GROUP_ID until it is told to end.
health: say in one line how the worker of this container is; exit 0 when it is well, 1 when it should be restarted.

It is told everything by its environment; docs/settings.md lists the variables.
"""


def worker_options(settings: Settings) -> dict[str, Any]:
    """The options of Celery's worker."""
    from kelpie_celery.errors import SettingsError  # noqa: PLC0415 - see the module
    from kelpie_celery.ledger import keys  # noqa: PLC0415

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


def main(argv: Sequence[str] | None = None) -> None:
    """Run a worker until it is told to end, or say how it is."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
    elif args == ["health"]:
        sys.exit(_health())
    elif args:
        sys.stderr.write(f"kelpie-worker: {' '.join(args)!r} is no command; there is 'health', and none\n\n{USAGE}")
        sys.exit(EX_USAGE)
    else:
        sys.exit(_work())


def _health() -> int:
    well, why = verdict(path_of(os.environ), SystemClock().boottime())
    sys.stdout.write(f"{'ok' if well else 'not well'}: {why}\n")
    return 0 if well else 1


def _work() -> int:
    from kelpie_celery.celery import app  # noqa: PLC0415
    from kelpie_celery.errors import SettingsError  # noqa: PLC0415
    from kelpie_celery.settings import load_settings  # noqa: PLC0415

    try:
        options = worker_options(load_settings())
    except SettingsError as e:
        sys.stderr.write(f"kelpie-worker: {e}\n")
        return EX_CONFIG
    # Not through Celery's command line: that one alone loads 12 MB, Flower included.
    worker = app.Worker(**options)
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    main()
