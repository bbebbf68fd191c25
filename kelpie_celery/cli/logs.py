"""``kelpie logs``: what jobs wrote."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import say
from kelpie_celery.cli._options import data_options, open_kelpie
from kelpie_celery.cli._text import one_line, size
from kelpie_celery.client import Kelpie
from kelpie_celery.job_logs import LogNews, StoredLog
from kelpie_celery.lifecycle import Status
from kelpie_celery.log_text import printable, shortened

_LINE_BYTES = 65536


@click.command(short_help="Show what a job wrote; follow it; fetch its whole log.")
@click.argument("job_id", metavar="JOB")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, over all of its attempts.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Of this attempt; default: of the last.")
@click.option("--whole", is_flag=True, help="The whole log of an attempt that has ended, from the storage.")
@click.option("-o", "--output", "file", metavar="FILE", help="With --whole: a new file instead of stdout.")
@data_options
def logs(
    job_id: str, follow: bool, attempt: int | None, whole: bool, file: str | None, redis_url: str | None, as_json: bool
) -> None:
    """Show the last lines that JOB wrote to stdout and stderr, also while it runs, wherever that is.

    The worker tells of them every few seconds. Whole logs are stored where the job names log_bucket and log_prefix, or
    its container group has KELPIE_LOG_BUCKET; the storage is found by the same variables as with `kelpie checkpoints`.
    Interrupting -f leaves the job alone.
    """
    _check(follow=follow, attempt=attempt, whole=whole, file=file, as_json=as_json)
    with open_kelpie(redis_url) as kelpie:
        if whole:
            _whole(kelpie, job_id, attempt, file, as_json=as_json)
        elif follow:
            _follow(kelpie, job_id, as_json=as_json)
        else:
            _last_lines(kelpie, job_id, attempt, as_json=as_json)


def _check(*, follow: bool, attempt: int | None, whole: bool, file: str | None, as_json: bool) -> None:
    if follow and (whole or attempt is not None):
        raise click.UsageError("-f follows all attempts as they run; leave --whole and --attempt out")
    if file is not None and not whole:
        raise click.UsageError("-o is for whole logs; add --whole")
    if whole and as_json and file is None:
        raise click.UsageError("with --whole, --json tells of a file; name one with -o")


def _last_lines(kelpie: Kelpie, job_id: str, attempt: int | None, *, as_json: bool) -> None:
    found = kelpie.logs(job_id, attempt)
    if as_json:
        print_document(
            {"id": found.job_id, "status": found.status.value, "attempt": found.attempt or None,
             "first_line": found.first, "lines": list(found.lines)}
        )  # fmt: skip
        return
    if not found.lines:
        say(f"job {found.job_id} ({found.status.value}) has written nothing yet" if not found.status.ended
            else f"job {found.job_id} ({found.status.value}) wrote nothing")  # fmt: skip
    _print(found.lines)


# -- following --------------------------------------------------------------------------------------------------------


def _follow(kelpie: Kelpie, job_id: str, *, as_json: bool) -> None:
    told = (0, "")
    for news in kelpie.follow_logs(job_id):
        now = _standing(news)
        if now != told:
            say(now[1])
            told = now
        if news.missed:
            say(f"{news.missed} lines are left out here: they came faster than a worker tells of them")
        if as_json:
            _print_json(news)
        else:
            _print(news.lines)
        sys.stdout.flush()
        if news.status.ended:
            say(f"job {job_id} has ended: {news.status.value}")


def _standing(news: LogNews) -> tuple[int, str]:
    """What is told before the lines when it changes: which attempt runs, and where; or that none does."""
    if news.status is Status.RUNNING or news.status.ended:
        older = news.lines and news.of_attempt < news.attempt
        lines = f" (the lines are attempt {news.of_attempt}'s)" if older else ""
        where = f" on {one_line(news.machine)}" if news.machine else ""
        return (news.attempt, f"attempt {news.attempt}{where}{lines}" if news.attempt else "it was never started")
    after = f", after attempt {news.attempt}" if news.attempt else ""
    return (news.attempt, f"the job is {news.status.value}{after}; waiting for it to run")


def _print_json(news: LogNews) -> None:
    for number, line in enumerate(news.lines, news.first):
        json.dump({"attempt": news.of_attempt, "line": number, "text": line}, sys.stdout)
        sys.stdout.write("\n")


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(shortened(printable(line)))


# -- whole logs -------------------------------------------------------------------------------------------------------


def _whole(kelpie: Kelpie, job_id: str, attempt: int | None, file: str | None, *, as_json: bool) -> None:
    stored = kelpie.stored_log(job_id, attempt)
    say(f"attempt {stored.attempt} of job {job_id}: {stored.url}, {size(stored.size_bytes)}")
    if file is not None:
        _to_file(kelpie, stored, Path(file))
        if as_json:
            print_document(
                {"id": stored.job_id, "attempt": stored.attempt, "log": stored.url, "bytes": stored.size_bytes,
                 "file": file}
            )  # fmt: skip
    elif sys.stdout.isatty():
        screen = _Screen()
        kelpie.read_log(stored, screen.take)
        screen.close()
    else:
        sys.stdout.flush()
        target: BinaryIO = sys.stdout.buffer
        kelpie.read_log(stored, lambda piece: _write(target, piece))
        target.flush()


def _write(target: BinaryIO, piece: memoryview) -> None:
    target.write(piece)


def _to_file(kelpie: Kelpie, stored: StoredLog, path: Path) -> None:
    """A new file, which is there once all of it is."""
    if path.exists() or path.is_symlink():
        raise click.UsageError(f"{path} exists already; name a new file")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as target:
            kelpie.read_log(stored, lambda piece: _write(target, piece))
        os.link(part, path)
    except FileExistsError:
        raise click.UsageError(f"{path} exists already; name a new file") from None
    except OSError as error:
        raise click.UsageError(f"cannot write {path}: {error.strerror}; name another file") from None
    finally:
        part.unlink(missing_ok=True)


class _Screen:
    """Shows bytes on a terminal, line by line, which nothing in them drives."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, piece: memoryview) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._show(line)
        if len(self._rest) > _LINE_BYTES:
            self._show(self._rest)
            self._rest = b""

    def close(self) -> None:
        if self._rest:
            self._show(self._rest)

    def _show(self, line: bytes) -> None:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        for part in text.split("\r"):
            click.echo(printable(part))
