"""``kelpie up``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from kelpie_celery._fields import GROUP_ID
from kelpie_celery.local.stack import run_up
from kelpie_celery.settings import load_settings

_MAX_WORKERS = 64
_MAX_SLOTS = 64


def _group(_ctx: click.Context, _option: click.Parameter, value: str) -> str:
    if not re.fullmatch(GROUP_ID, value):
        raise click.BadParameter("must be 1 to 128 letters, digits, '.', '_' or '-'")
    return value


@click.command(short_help="Run Redis, S3 and workers on this machine.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".kelpie"),
    show_default=True,
    help="Where to keep data, logs and the env file.",
)
@click.option("--workers", type=click.IntRange(0, _MAX_WORKERS), default=1, show_default=True, help="How many workers.")
@click.option(
    "--slots", type=click.IntRange(1, _MAX_SLOTS), default=1, show_default=True, help="Commands at once, each."
)
@click.option("--group", default="local", show_default=True, callback=_group, help="Container group of the workers.")
@click.option("--no-s3", is_flag=True, help="Start no S3 server; jobs use the storage that the environment names.")
@click.option("--flower", is_flag=True, help="Start Flower too.")
@click.option("--redis-url", metavar="URL", help="Use this Redis instead of starting one.")
def up(directory: Path, workers: int, slots: int, group: str, no_s3: bool, flower: bool, redis_url: str | None) -> int:
    """Run Redis, an S3 server, a control worker, beat and workers in this terminal, until Ctrl-C.

    Prints where they are and writes a file "env" into the directory, for other shells to source:

    \b
        . .kelpie/env
        kelpie submit job.json --wait
    """  # noqa: D301 -- click's mark for "do not wrap" is the character itself
    if redis_url is not None:
        load_settings({"KELPIE_REDIS_URL": redis_url})  # a wrong URL is told before anything is started
    return run_up(
        directory=directory,
        workers=workers,
        group=group,
        slots=slots,
        s3=not no_s3,
        redis_url=redis_url,
        flower=flower,
    )
