"""The bar of a transfer, on a terminal.

Limits: elsewhere nothing is shown while it goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from kelpie_celery.checkpoints.download import OnBytes
from kelpie_celery.cli._view import console


@contextmanager
def transfer_bar(doing: str) -> Iterator[OnBytes | None]:
    """A bar on stderr, once it is known how much there is to move; gone at the end."""
    err = console(sys.stderr)
    if not err.is_terminal:
        yield None
        return
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
