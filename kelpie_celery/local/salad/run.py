"""``kelpie salad-sim``: the simulator in one terminal, kept running until Ctrl-C.

Every event of every group is printed, and what was billed at the end. Limits: one simulator a directory at a time.
The API key is in the ``env`` file, never on the terminal.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.local import envfile
from kelpie_celery.local.salad.model import Event
from kelpie_celery.local.salad.sim import SaladSim
from kelpie_celery.local.salad.snapshot import GroupView
from kelpie_celery.local.up import alone_in, counted_signals, shown

POLL_S: Final = 0.1
READY_LINE: Final = "kelpie salad-sim is up"
Events = queue.SimpleQueue[tuple[str, Event]]


def run(
    sim_of: Callable[[Callable[[str, Event], None]], SaladSim],
    directory: Path,
    prepare: Callable[[SaladSim], None],
    console: Console,
    clock: Clock | None = None,
) -> int:
    """Run a simulator until a signal comes.

    Args:
        sim_of: Makes it; gets what is to be told of events.
        directory: Where it is kept.
        prepare: Called once it serves, before that is told: makes the groups.
        console: Where to print.
        clock: Where time comes from.

    Returns:
        0, after everything was stopped.

    Raises:
        LocalStackError: It cannot be started, it failed, or another one runs in this directory.
    """
    clock, events = clock or SystemClock(), Events()
    with alone_in(directory, "kelpie salad-sim"), counted_signals() as signals:
        sim = sim_of(lambda group, event: events.put((group, event)))
        try:
            sim.start()
            prepare(sim)
            _announce(sim, console)
            while not signals.count:
                _print_events(events, console)
                sim.check()
                clock.sleep(POLL_S)
            billed = list(sim.groups.values())
        finally:
            sim.stop()
        _print_events(events, console)
        _print_bill(billed, console)
    return 0


def _announce(sim: SaladSim, console: Console) -> None:
    env_file = sim.directory / "env"
    envfile.write(env_file, sim.env())
    lines = [
        f"API      {sim.api_url}  (organization {sim.organization}, project {sim.project}; the key is in the env file)",
        *(f"Group    {group.name}  {group.id}  {group.replicas} replicas" for group in sim.groups.values()),
        f"Files    {shown(sim.directory / 'machines')}, {shown(sim.directory / 'logs')}",
        f"In another shell:  . {shown(env_file)}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"[bold green]{READY_LINE}[/]", highlight=False)


def _print_events(events: Events, console: Console) -> None:
    while not events.empty():
        group, event = events.get()
        at = datetime.fromtimestamp(event.at).astimezone()
        place = f"  instance {event.instance_id[:8]}" if event.instance_id else ""
        place += f" on machine {event.machine_id[:8]}" if event.machine_id else ""
        line = f"[dim]{at:%H:%M:%S}[/]  [cyan]{escape(group)}[/]  {escape(event.name)}[dim]{place}[/]"
        console.print(line, highlight=False, soft_wrap=True)


def _print_bill(groups: Iterable[GroupView], console: Console) -> None:
    for group in groups:
        line = f"{group.name}: {group.gpu_hours:.4f} GPU hours billed, {group.interruptions} interruptions"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
