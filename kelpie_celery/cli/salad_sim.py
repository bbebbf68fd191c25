"""``kelpie salad-sim``.

Limits: imports aiohttp, which only the extra ``local`` brings; without it, the error says so.
"""

from __future__ import annotations

import os
import re
import signal
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad.behaviour import HOUR_S, MAX_TIME_FACTOR, Behaviour, Timings, tiny_image
from kelpie_celery.local.salad.faults import Fault
from kelpie_celery.settings import load_settings

if TYPE_CHECKING:
    from kelpie_celery.local.salad.sim import SaladSim

REDIS: Final = "KELPIE_REDIS_URL"
KEY: Final = "SALAD_API_KEY"
_GROUP: Final = re.compile(r"(?P<name>[a-z][a-z0-9-]{0,61}[a-z0-9])(=(?P<replicas>\d{1,3}))?")
_SIGNALS: Final = ("TERM", "INT", "QUIT", "HUP")
_MAX_SLOTS: Final = 64


def _groups(_ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for value in values:
        parts = _GROUP.fullmatch(value)
        if parts is None:
            raise click.BadParameter(
                f"{value!r}: write NAME or NAME=REPLICAS; a name has 2 to 63 lower-case letters, digits and '-'"
            )
        found[parts["name"]] = int(parts["replicas"] or 0)
    return found


def _faults(_ctx: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> list[Fault]:
    try:
        return [Fault.parse(value) for value in values]
    except LocalStackError as error:
        raise click.BadParameter(str(error)) from None


def _signal(_ctx: click.Context, _option: click.Parameter, value: str | None) -> signal.Signals | None:
    return signal.Signals[f"SIG{value}"] if value else None


@click.command(short_help="Simulate SaladCloud on this machine.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".kelpie/salad"),
    show_default=True,
    help="Where to keep files and logs of the instances, and the env file.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where to listen on loopback; default: any free."
)
@click.option(
    "--group", "groups", multiple=True, callback=_groups, metavar="NAME[=REPLICAS]",
    help="A container group to begin with, stopped; as often as needed.",
)  # fmt: skip
@click.option("--organization", default="local", show_default=True, help="The name of its organization.")
@click.option("--project", default="default", show_default=True, help="The name of its project.")
@click.option(
    "--time-factor", type=click.FloatRange(1, MAX_TIME_FACTOR), default=1.0, show_default=True,
    help="So many times faster than the real platform.",
)  # fmt: skip
@click.option("--tiny-image", is_flag=True, help="Instances run after 50 to 70 s, not after 10 minutes or an hour.")
@click.option("--lenient", is_flag=True, help="Take what the real API may take; by default, refuse what it may refuse.")
@click.option("--seed", type=int, help="Repeat what is left to chance; default: new each time.")
@click.option(
    "--mean-run", type=click.FloatRange(0), default=60.0, show_default=True, metavar="HOURS",
    help="How long a node stays on average; 0: none is lost by chance.",
)  # fmt: skip
@click.option(
    "--interrupt-every", type=click.FloatRange(0), default=0.0, metavar="SECONDS",
    help="Besides, lose a running instance this often, in real time.",
)  # fmt: skip
@click.option(
    "--stop-signal", type=click.Choice(_SIGNALS), callback=_signal, help="Sent before the kill; default: none."
)
@click.option("--stop-grace", type=click.FloatRange(0), default=10.0, show_default=True, help="From signal to kill, s.")
@click.option(
    "--quota", type=click.IntRange(0), default=100, show_default=True, help="Replicas of all groups together."
)
@click.option("--slots", type=click.IntRange(1, _MAX_SLOTS), default=1, show_default=True, help="KELPIE_SLOTS of each.")
@click.option("--bad-image", "bad_images", multiple=True, metavar="IMAGE", help="Its preparation fails.")
@click.option(
    "--fault", "faults", multiple=True, callback=_faults, metavar="FAULT",
    help="Order a fault, such as 429*3@update_*,retry-after=2, html, slow,delay=5 (docs/salad-sim.md).",
)  # fmt: skip
@click.option(
    "--record", type=click.Path(dir_okay=False, path_type=Path), help="Append every exchange to this file, as JSONL."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def salad_sim(directory: Path, groups: dict[str, int], command: tuple[str, ...], **options: Any) -> int:
    """Simulate SaladCloud's API and its nodes in this terminal, until Ctrl-C.

    Each running instance is a kelpie-worker (or the COMMAND, after "--") of this machine, with the environment that it
    would have on SaladCloud; nodes are slow to come and vanish without notice, as there.

    \b
        . .kelpie/env
        kelpie salad-sim --group demo --time-factor 60
    """  # noqa: D301 -- click's mark for "do not wrap" is the character itself
    redis = {} if command else _redis()
    try:
        from kelpie_celery.local.salad import run, sim  # noqa: PLC0415 -- they need aiohttp
    except ImportError as error:
        raise LocalStackError(f"{error.name} is missing: pip install 'kelpie-celery[local]' brings it") from None
    from rich.console import Console  # noqa: PLC0415 -- only a terminal needs it

    make = partial(
        sim.SaladSim, directory, _behaviour(options), command=command, env=redis, slots=options["slots"],
        organization=options["organization"], project=options["project"], port=options["port"],
        record=options["record"], faults=options["faults"], api_key=os.environ.get(KEY) or None,
    )  # fmt: skip
    return run.run(
        lambda on_event: make(on_event=on_event), directory.resolve(), partial(_make_groups, groups), Console()
    )


def _redis() -> dict[str, str]:
    """Where the workers find their jobs: it is told at once when they cannot, or every instance would tell."""
    load_settings()
    return {REDIS: os.environ[REDIS]}


def _behaviour(options: dict[str, Any]) -> Behaviour:
    return Behaviour(
        strict=not options["lenient"],
        time_factor=options["time_factor"],
        timings=tiny_image() if options["tiny_image"] else Timings(),
        seed=options["seed"],
        mean_run_s=options["mean_run"] * HOUR_S,
        interrupt_every_s=options["interrupt_every"],
        stop_signal=options["stop_signal"],
        stop_grace_s=options["stop_grace"],
        replicas_quota=options["quota"],
        bad_images=options["bad_images"],
    )


def _make_groups(groups: dict[str, int], sim: SaladSim) -> None:
    for name, replicas in groups.items():
        # The same id each time: job definitions and scaling rules name the group by it.
        place = f"{name}.{sim.project}.{sim.organization}"
        sim.create_group(name, group_id=str(uuid.uuid5(uuid.NAMESPACE_DNS, place)), replicas=replicas)
