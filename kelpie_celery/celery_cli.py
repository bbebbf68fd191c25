"""What Celery's own command line gets, in its process alone.

- ``celery -A kelpie_celery control revoke ID --terminate``: its ``control`` takes positional arguments only. With this
  option, ``revoke`` becomes what Celery calls ``control terminate SIGTERM ID``.
- ``celery -A kelpie_celery control cancel_job ID``: the cancel is written to the ledger from here, before any worker is
  asked: it must not depend on one that is online, and a wrong id is told once instead of by every worker.
- What a user can mend, such as a setting, is told in words and without Python's traceback.

Limits: it changes a process of Celery's command line and no other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    import click

    from kelpie_celery.app import KelpieApp

    ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]

SIGNAL = "SIGTERM"
CANCEL, DRAIN = "cancel_job", "drain"
_OK, _USER_ERROR, _UNAVAILABLE = 0, 2, 69
_TELL_THEMSELVES = frozenset({"worker", "beat", "kelpie"})


def extend_celery() -> None:
    """Add to Celery's command line where that runs; calling it again changes nothing."""
    module = sys.modules.get("celery.bin.control")
    if module is None:
        return
    command: click.Command = module.control
    if any(parameter.name == "terminate" for parameter in command.params):
        return
    import click  # noqa: PLC0415 - Celery's command line has imported it already

    # Which commands there are its process asks the same registry as a worker's.
    import kelpie_celery.remote_control  # noqa: F401, PLC0415 - heavy, and of no use to a client

    sys.excepthook = _in_words(sys.excepthook)
    words = "With revoke: end a task that runs, too."
    command.params.append(click.Option(["--terminate"], is_flag=True, help=words))
    command.callback = _extended(command.callback)


def _in_words(original: ExceptHook) -> ExceptHook:
    """Tell of what a user can mend in one line, of everything else as before."""
    from kelpie_celery.errors import KelpieError  # noqa: PLC0415 - as above

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, KelpieError):
            sys.stderr.write(f"kelpie: {error}\n")
        else:
            original(kind, error, trace)

    return tell


def subcommand() -> str | None:
    """The command of Celery's that runs in this process, such as ``inspect``; None where none does."""
    if "celery.bin.celery" not in sys.modules:
        return None
    import click  # noqa: PLC0415 - as above

    context = click.get_current_context(silent=True)
    return context.find_root().invoked_subcommand if context is not None else None


def tells_settings() -> bool:
    """Whether this is a command of Celery's that does not say by itself which settings are misspelt."""
    name = subcommand()
    return name is not None and name not in _TELL_THEMSELVES


def _extended(original: Callable[..., Any] | None) -> Callable[..., Any]:
    import click  # noqa: PLC0415 - as above

    def control(*args: Any, terminate: bool, **options: Any) -> Any:
        context = click.get_current_context()
        if terminate and options.get("command") != "revoke":
            raise click.UsageError("--terminate goes with revoke")
        if terminate:
            options["command"] = "terminate"
            context.args.insert(0, SIGNAL)
        if options.get("command") == DRAIN and context.args:
            # Celery would drop the word, and drain all.
            raise click.UsageError(f"drain takes no words; -d {context.args[0]} drains that worker alone")
        if original is None:  # as click has it for groups
            return None
        if options.get("command") == CANCEL and hasattr(context.obj.app, "ledger"):
            return _cancel(context, lambda: original(*args, **options), as_json=bool(options.get("json")))
        return original(*args, **options)

    return control


def _cancel(context: click.Context, ask_workers: Callable[[], Any], *, as_json: bool) -> None:
    """Cancel in the ledger, then have the workers say what they know of it."""
    from celery.exceptions import CeleryCommandException  # noqa: PLC0415 - as above

    known, faults, code = cancel_all(context.obj.app, context.args)
    for job_id, status in known:
        if not as_json:
            context.obj.echo(f"{job_id}: {status}")
    if known:
        context.args[:] = [job_id for job_id, _ in known]
        try:
            ask_workers()
        except CeleryCommandException as error:
            # It is in the ledger: whoever runs the job, or comes up, reads it there.
            context.obj.error(f"No worker was told at once ({error.message}); the cancel is recorded.")
            if as_json:
                context.obj.echo("[]")
    if faults:
        raise CeleryCommandException(message="; ".join(faults), exit_code=code)


def cancel_all(app: KelpieApp, job_ids: Sequence[str]) -> tuple[list[tuple[str, str]], list[str], int]:
    """Cancel jobs in the ledger: (id and status of each that is known, what went wrong, exit code)."""
    from kelpie_celery.errors import JobNotFound, LedgerUnavailable  # noqa: PLC0415 - as above

    if not job_ids:
        return [], ["cancel_job takes the ids of jobs; 'kelpie list' shows them"], _USER_ERROR
    known, faults, code = [], [], _OK
    for job_id in dict.fromkeys(job_ids):
        try:
            known.append((job_id, app.ledger.cancel(job_id, "canceled through Celery")))
        except JobNotFound as error:
            faults.append(str(error))
            code = max(code, _USER_ERROR)
        except LedgerUnavailable as error:
            faults.append(str(error))
            code = _UNAVAILABLE
    return known, faults, code
