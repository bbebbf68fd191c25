"""``celery -A kelpie_celery flower``: Flower, closed to strangers, with what a person looks for first.

It listens on loopback unless it is told otherwise, refuses to listen anywhere else without a password or a login, shows
the columns that jobs fill, counts the queue of every container group, and asks for the password on ``/metrics`` too.
Limits: it changes a process of Celery's command line and no other; a Flower that was started for another app than ours
knows nothing of this.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from celery.states import READY_STATES

from kelpie_celery._transport import is_loopback
from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger import keys

log = logging.getLogger(__name__)

COLUMNS = "uuid,args,state,result,worker,received,runtime,retries"
ENVIRONMENT = "FLOWER_"
OPEN_API = f"{ENVIRONMENT}UNAUTHENTICATED_API"


def guard_flower() -> None:
    """Change Flower's command where Celery's command line runs; calling it again changes nothing."""
    command: Any = sys.modules.get("flower.command")
    if command is None or getattr(command.flower.callback, "is_guarded", False):
        return
    original: Callable[..., Any] = command.flower.callback

    def flower(*args: Any, **options: Any) -> Any:
        # Before Flower reads environment, command line and configuration file, each of which outweighs this.
        command.options.address = "127.0.0.1"
        command.options.tasks_columns = COLUMNS
        command.Flower = guarded(command.Flower)
        for reads in ("apply_env_options", "apply_options"):
            setattr(command, reads, _in_words(getattr(command, reads)))
        return original(*args, **options)

    flower.is_guarded = True  # type: ignore[attr-defined]  # marks our own wrapper
    command.flower.callback = flower


def _in_words(read: Callable[..., None]) -> Callable[..., None]:
    """A reader of Flower's options that names what is wrong with them, instead of where Flower's code noticed."""

    def reads(*args: Any) -> None:
        import click  # noqa: PLC0415 - Celery's command line has imported it already
        from tornado.options import Error  # noqa: PLC0415 - an extra that not everybody has

        try:
            read(*args)
        except (Error, ValueError, OSError) as e:
            raise click.UsageError(f"an option of Flower's, or a {ENVIRONMENT}... variable, is refused: {e}") from None

    return reads


def guarded(base: type[Any]) -> type[Any]:
    """Flower's application, with our checks and the queues of our groups."""

    class KelpieFlower(base):  # type: ignore[misc]  # Flower has no types
        """Flower for kelpie's jobs."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            _know_our_queues(self)
            _count_starts_once(self)
            _drop_late_starts(self)

        def start_http_server(self) -> Any:
            import click  # noqa: PLC0415 - Celery's command line has imported it already

            why_not = refusal(self.options, os.environ)
            if why_not:
                raise click.ClickException(why_not)
            if is_protected(self.options):
                _protect_metrics()
            try:
                return super().start_http_server()
            except OSError as e:
                where = self.options.unix_socket or f"{self.options.address or '*'}:{self.options.port}"
                why = e.strerror or str(e)
                raise click.ClickException(
                    f"Flower cannot listen on {where}: {why}; see --address and --port"
                ) from None

    return KelpieFlower


def is_protected(options: Any) -> bool:
    """Whether Flower asks who is there."""
    return bool(options.basic_auth or options.auth)


def refusal(options: Any, environ: Mapping[str, str]) -> str | None:
    """Why Flower must not start with these options; None when it may."""
    for entry in options.basic_auth or ():
        user, _, password = entry.partition(":")
        if not user or not password:
            return (
                "FLOWER_BASIC_AUTH (--basic_auth) must be USER:PASSWORD, or several of them with commas between; one "
                "has no user or no password"
            )
        if not entry.isascii():
            # Flower answers every request with an error 500 then.
            return "FLOWER_BASIC_AUTH (--basic_auth) may hold ASCII only: letters without accents, digits, signs"
    if is_protected(options):
        return None
    if environ.get(OPEN_API, "").strip().lower() not in ("", "0", "false", "no", "off", "n", "f"):
        return (
            f"{OPEN_API} without a password would let every web page in a browser that reaches this Flower submit and "
            f"cancel jobs; unset it, and set FLOWER_BASIC_AUTH=USER:PASSWORD"
        )
    if options.unix_socket or is_loopback(options.address):
        return None
    where = f"on {options.address}" if options.address else "on every address of this machine"
    return (
        f"Flower would listen {where}, and let everybody who reaches it see and cancel all jobs; set "
        "FLOWER_BASIC_AUTH=USER:PASSWORD in its environment (a password: openssl rand -hex 16), or leave --address "
        "out: then it listens on loopback only"
    )


def _protect_metrics() -> None:
    """Flower asks for no password there: whoever may connect would learn the names of machines."""
    from flower.views.monitor import Metrics  # noqa: PLC0415 - an extra that not everybody has
    from tornado.web import authenticated  # noqa: PLC0415

    Metrics.get = authenticated(Metrics.get)


def _know_our_queues(flower: Any) -> None:
    """Flower knows the queues that workers told of; a group without workers is the one whose queue grows."""
    from flower.views import BaseHandler  # noqa: PLC0415

    def queue_names(_handler: Any) -> list[str]:
        names = {keys.CONTROL_QUEUE}
        for info in flower.workers.values():
            names |= {queue["name"] for queue in info.get("active_queues") or ()}
        try:
            names |= {keys.queue_name(group) for group in flower.capp.ledger.groups()}
        except KelpieError as e:
            log.warning("Flower cannot list the container groups", extra={"action": "groups_unknown", "error": str(e)})
        return sorted(names)

    BaseHandler.get_active_queue_names = queue_names


def _count_starts_once(flower: Any) -> None:
    """A start is announced again with each news of its progress; the metrics count it once."""
    metrics = flower.events.state.metrics
    original: Callable[..., None] = metrics.observe_task
    begun: dict[str, float] = {}

    def observe_task(worker: str, event: Mapping[str, Any], task: Any) -> None:
        if event["type"] == "task-started":
            again = begun.get(event["uuid"]) == event.get("started")
            begun[event["uuid"]] = event.get("started") or 0.0
            if again:
                return
        elif event["type"] != "task-received":
            begun.pop(event["uuid"], None)
        original(worker, event, task)

    metrics.observe_task = observe_task


def _drop_late_starts(flower: Any) -> None:
    """A worker that was cut off may say of a job, once it is back, what has long been no longer so.

    Celery keeps the state of a job that has ended, and yet would show the words and the worker of the late event.
    """
    state = flower.events.state
    original: Callable[[Mapping[str, Any]], None] = state.event

    def event(told: Mapping[str, Any]) -> None:
        task = state.tasks.get(told.get("uuid")) if told["type"] == "task-started" else None
        if task is None or not _is_late(told, task):
            original(told)

    state.event = event


def _is_late(told: Mapping[str, Any], task: Any) -> bool:
    """Whether a start is told of that came before what is known: the job's end, or a later attempt's start."""
    if task.state in READY_STATES:
        return True
    # By number and by time: the clocks of two machines differ, and a ledger that was restored counts anew.
    return (told.get("retries") or 0) < (task.retries or 0) and (told.get("started") or 0) < (task.started or 0)
