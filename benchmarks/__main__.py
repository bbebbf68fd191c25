"""``python -m benchmarks [NAME...]``: runs the parts, prints a table, writes ``bench.json`` here.

Every server that a part needs it starts itself, on loopback, in a directory that is removed. Exit code 1 when a part
cannot be measured; a target that is missed is said, and is no error.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich.console import Console

from benchmarks import cache, claim, commit, figures, memory, scaling, stage, submit, tick, transfer, worker
from benchmarks.figures import Figure

PARTS: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "submit": submit.measure,
    "claim": claim.measure,
    "memory": memory.measure,
    "tick": tick.measure,
    "worker": worker.measure,
    "transfer": transfer.measure,
    "commit": commit.measure,
    "cache": cache.measure,
    "scaling": scaling.measure,
}
RESULT = "bench.json"
WIDTH = 140  # of the table where there is no terminal to ask


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PARTS)), metavar=f"[{'|'.join(PARTS)}]...")
def main(names: tuple[str, ...]) -> None:
    """Measure all parts, or those that are named."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    found: list[Figure] = []
    for name in names or PARTS:
        took_s = stage.seconds(lambda part=name: found.extend(_run(part)))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        console.print(f"[dim]{name}: {took_s:.0f} s[/dim]")
    console.print(figures.table(found))
    figures.write(found, Path(RESULT))
    missed = figures.missed(found)
    for figure in missed:
        console.print(
            f"[bold red]NOT MET[/]: {figure.name} is {figures.rounded(figure.value)} {figure.unit}, not {figure.target}"
        )
    with_target = [figure for figure in found if figure.target]
    console.print(f"{len(with_target) - len(missed)} of {len(with_target)} targets are met; {RESULT} is written")


def _run(name: str) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix=f"kelpie-bench-{name}-", ignore_cleanup_errors=True) as directory:
        return list(PARTS[name](Path(directory)))


if __name__ == "__main__":
    sys.exit(main())
