"""``python -m kelpie_celery.demo``: the last line begins with ``DEMO OK``, or with ``DEMO FAILED`` and exit code 1.

Ctrl-C and SIGTERM stop everything; nothing is left running. Limits: Linux; a minute and a half on two cores.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from kelpie_celery.clock import SystemClock
from kelpie_celery.demo.driver import Demo, Outcome, why
from kelpie_celery.demo.table import Display

LIMIT_S = 240.0
EXIT_INTERRUPTED = 130
CANNOT_KEEP = "it exists and is not an empty directory"


@click.command()
@click.option(
    "--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep data and logs here; a new directory."
)
@click.option(
    "--limit", "limit_s", default=LIMIT_S, show_default=True, help="Give the jobs of an act up after so many seconds."
)
def main(keep: Path | None, limit_s: float) -> None:
    """Run jobs on a local stack, kill their machines, and compare what comes out with uninterrupted runs.

    Then run more on a simulated SaladCloud, whose nodes the scaler starts and stops.
    """
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise click.BadParameter(CANNOT_KEEP, param_hint="--keep")
    console = Console(soft_wrap=True)
    directory = keep or Path(tempfile.mkdtemp(prefix="kelpie-demo-"))
    outcome = _run(directory, console, limit_s)
    if outcome is None:
        _remove(directory, keep)
        console.print("DEMO STOPPED")
        sys.exit(EXIT_INTERRUPTED)
    if outcome.problems:
        console.print(f"logs and data are in {directory}", highlight=False)
        for problem in outcome.problems:
            console.print(f"  - {problem}", highlight=False, markup=False)
        console.print(f"DEMO FAILED: {len(outcome.problems)} problems, the first: {outcome.problems[0]}", markup=False)
        sys.exit(1)
    _remove(directory, keep)
    console.print(f"DEMO OK: {outcome.summary}", highlight=False)


def _run(directory: Path, console: Console, limit_s: float) -> Outcome | None:
    """What came of it; None when the user stopped it."""
    clock = SystemClock()
    demo = Demo(directory, Display(console, clock), limit_s, clock)
    try:
        with _sigterm_as_ctrl_c():
            return demo.run()
    except KeyboardInterrupt:
        return None
    except Exception as error:
        return Outcome([why(error)], "")
    finally:
        demo.close()


def _remove(directory: Path, keep: Path | None) -> None:
    if keep is None:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def stop(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
