"""``kelpie verify``.

Limits: the job is run as it is, with this machine's programs, GPU and time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import click

from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK, say
from kelpie_celery.cli._files import MAX_FILE_BYTES, read_definitions
from kelpie_celery.cli._findings_view import show_findings
from kelpie_celery.cli._options import duration, json_option
from kelpie_celery.cli._text import duration as duration_words
from kelpie_celery.cli._view import console
from kelpie_celery.clock import SystemClock
from kelpie_celery.logs import configure_logging
from kelpie_worker.preflight.errors import CannotVerify
from kelpie_worker.preflight.staging import parse_inputs
from kelpie_worker.preflight.verify import Request, Verdict, verify

_TIMEOUT_S = 600.0


@click.command("verify", short_help="Try on this machine whether a job resumes.")
@click.argument("file", type=click.File("rb"))
@click.option("--timeout", type=duration, default=str(int(_TIMEOUT_S)), metavar="TIME",
              help="How long the first checkpoint, and the end, may take each (`90`, `2h`); default: 10m.")  # fmt: skip
@click.option("--directory", type=click.Path(path_type=Path), default=Path(), metavar="DIR",
              help="The command's working directory, which is copied; default: this one.")  # fmt: skip
@click.option("--input", "inputs", multiple=True, metavar="BUCKET/PREFIX=DIR",
              help="A folder that stands for an input; may be given more than once.")  # fmt: skip
@click.option("--reference", is_flag=True, help="Run it without an interruption too, and compare the outputs.")
@json_option
def verify_command(
    file: BinaryIO, timeout: float, directory: Path, inputs: Sequence[str], reference: bool, as_json: bool
) -> int:
    """Run the job in FILE on this machine, kill its worker, and say whether it really resumes.

    Redis, S3 server and workers are private and go at the end; nothing of yours is written to. After its first
    checkpoint the worker gets SIGKILL; another one, with a fresh copy of the directory, goes on; that one gets SIGTERM.

    Exit code 0: it resumes. 1: something is wrong with it, or it was not seen to resume. 2: it cannot be tried.
    """
    definitions = read_definitions(file.read(MAX_FILE_BYTES + 1))
    if len(definitions) != 1:
        raise CannotVerify(f"the file holds {len(definitions)} job definitions; give one at a time")
    configure_logging("error")
    clock = SystemClock()
    began = clock.boottime()
    request = Request(definitions[0], directory, parse_inputs(inputs), timeout, reference, os.environ)
    with _stop_signals_as_ctrl_c():
        verdict = verify(request, lambda text: say(f"{clock.boottime() - began:.1f} s: {text}"))
    show(verdict, as_json=as_json)
    return OK if verdict.resumes else NOT_COMPLETED


@contextmanager
def _stop_signals_as_ctrl_c() -> Iterator[None]:
    """What is private holds copies of the user's files and the job's environment: it goes in any case."""

    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def show(verdict: Verdict, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print_document({
            "resumes": verdict.resumes, "seconds": round(verdict.seconds, 1),
            "findings": [one.document() for one in verdict.findings],
        })  # fmt: skip
        return
    out = console()
    show_findings(out, verdict.findings)
    said = "the job resumes" if verdict.resumes else "the job was not seen to resume as it should"
    out.print(f"{said} (tried for {duration_words(verdict.seconds)})", soft_wrap=True)
