"""``celery -A kelpie_celery control revoke ID --terminate``: the option that Celery's command line has no more.

Celery's ``control`` takes positional arguments only. Here it gets ``--terminate`` for ``revoke``, which then is what
Celery calls ``control terminate SIGTERM ID``. Limits: it changes a process of Celery's command line and no other.
"""

from __future__ import annotations

import sys
from typing import Any

SIGNAL = "SIGTERM"


def add_terminate_option() -> None:
    """Add the option where Celery's command line runs; calling it again changes nothing."""
    module = sys.modules.get("celery.bin.control")
    if module is None:
        return
    import click  # noqa: PLC0415 - Celery's command line has imported it already

    command: click.Command = module.control
    if any(parameter.name == "terminate" for parameter in command.params):
        return
    words = "With revoke: end a task that runs, too."
    command.params.append(click.Option(["--terminate"], is_flag=True, help=words))
    original: Any = command.callback

    def control(*args: Any, terminate: bool, **options: Any) -> Any:
        if terminate and options.get("command") != "revoke":
            raise click.UsageError("--terminate goes with revoke")
        if terminate:
            options["command"] = "terminate"
            click.get_current_context().args.insert(0, SIGNAL)
        return original(*args, **options)

    command.callback = control
