"""How checkpoints, and what is left over of them, look on a terminal and in JSON.

Limits: what a worker says of its commits cannot drive the terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from kelpie_celery.checkpoints.collect import KINDS, Garbage
from kelpie_celery.checkpoints.download import Downloaded
from kelpie_celery.checkpoints.kept import Checkpoint
from kelpie_celery.cli._text import iso_time, local_time, plain, size
from kelpie_celery.cli._view import words

_NAMES = {
    "content": "content",
    "manifest": "manifests",
    "record": "records of jobs",
    "other": "not kelpie's",
    "hidden": "hidden versions",
}


def checkpoint_table(checkpoints: Sequence[Checkpoint], job_id: str) -> Table:
    """Checkpoints, one a row; ids are never cut.

    Args:
        checkpoints: The newest first.
        job_id: The job that was asked for; others are named.
    """
    foreign = any(one.job_id != job_id for one in checkpoints)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("time", no_wrap=True)
    if foreign:
        table.add_column("job", no_wrap=True)
    table.add_column("try", justify="right")
    table.add_column("why", no_wrap=True)
    for name in ("files", "size", "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for one in checkpoints:
        job = [plain(one.job_id)] if foreign else []
        table.add_row(
            plain(one.id), local_time(one.at), *job, str(one.attempt), words(one.why), str(one.files), size(one.bytes),
            size(one.sent_bytes), words(_note(one)),
        )  # fmt: skip
    return table


def _note(one: Checkpoint) -> str:
    """What there is to say of a checkpoint: whether it is the newest, and of which prefixes if not of all."""
    parts = []
    if one.is_head:
        parts.append("newest")
    elif one.head_of:
        parts.append(f"newest of {', '.join(one.head_of)}")
    if not one.is_everywhere:
        parts.append(f"only below {', '.join(one.prefixes)}")
    return "; ".join(parts)


def checkpoint_document(one: Checkpoint) -> dict[str, Any]:
    """One checkpoint for programs."""
    return {
        "id": one.id, "time": iso_time(one.at), "job_id": one.job_id, "attempt": one.attempt, "why": one.why,
        "files": one.files, "bytes": one.bytes, "sent_bytes": one.sent_bytes, "head": one.is_head,
        "prefixes": list(one.prefixes), "head_of": list(one.head_of),
    }  # fmt: skip


def download_document(done: Downloaded, job_id: str, directory: str) -> dict[str, Any]:
    """What was brought down, for programs."""
    return {
        "job_id": job_id, "directory": directory, "files": done.files, "bytes": done.bytes,
        "parts": [{"prefix": p.prefix, "checkpoint": p.commit, "folder": p.folder} for p in done.parts],
        "without": list(done.without), "refused_links": list(done.refused_links),
    }  # fmt: skip


def garbage_table(garbage: Garbage) -> Table:
    """What lies below a prefix, by kind, and what of it may go."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind", no_wrap=True)
    for name in ("objects", "size", "garbage", "its size"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [(_NAMES[kind], garbage.tallies[kind]) for kind in KINDS if garbage.tallies[kind].objects]
    for name, tally in rows:
        table.add_row(
            name, str(tally.objects), size(tally.bytes), str(tally.garbage_objects), size(tally.garbage_bytes)
        )
    total = [sum(tally.objects for _, tally in rows), sum(tally.bytes for _, tally in rows)]
    table.add_row("all", str(total[0]), size(total[1]), str(len(garbage.found)), size(garbage.bytes))
    return table


def garbage_document(garbage: Garbage, deleted: int) -> dict[str, Any]:
    """The same for programs."""
    address = garbage.line.address
    return {
        "bucket": address.bucket, "prefix": address.prefix, "forgotten": garbage.forgotten, "kept": list(garbage.kept),
        "versions": garbage.versions,
        "kinds": {
            kind: {
                "objects": tally.objects, "bytes": tally.bytes, "garbage_objects": tally.garbage_objects,
                "garbage_bytes": tally.garbage_bytes,
            }
            for kind, tally in garbage.tallies.items()
        },
        "garbage_objects": len(garbage.found), "garbage_bytes": garbage.bytes, "deleted": deleted,
    }  # fmt: skip
