"""What the blocks of a job may not say together, as far as it can be known when the job is submitted.

- One commit covers all checkpoints of a job, so its ``during`` blocks agree on ``commit``; blocks of one prefix are one
  checkpoint, so they agree on ``plain``, too.
- One key below a checkpoint's prefix is one file. ``during`` blocks whose prefixes are equal or nested must have
  directories that are equal or nested in the same way; then a key that both have comes from one file.
- Nothing is stored where our own records about another prefix lie.
- What a job writes to is not ``read_only``.
- Logs are not stored where the next attempt would take them for inputs, or for files of a checkpoint.

Everything else is allowed, and ``docs/job-definition.md`` says what it means. Limits: directories are compared as they
are written: whether a relative and an absolute one are the same depends on the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kelpie_celery._faults import Problem, shown
from kelpie_celery.transfers import Transfer, Transfers, checkpoint_of, control_prefix, directory

Names = Callable[[Transfer, str], str]
"""The name of a transfer's field in the definition; the transfer's own name where the field is empty."""


def overlap_problems(transfers: Transfers, name: Names) -> list[Problem]:
    """All faults between the blocks of a valid definition.

    Args:
        transfers: The job's.
        name: How the definition calls a field of a transfer.
    """
    checkpoints = [block for block in transfers.during if block.role == "checkpoint"]
    return [
        *_written_though_read_only(transfers, name),
        *_different_commits(checkpoints, name),
        *_ambiguous_keys(checkpoints, name),
        *_among_our_records(transfers, name),
    ]


def log_in_the_way(transfers: Transfers, bucket: str, key: str) -> Transfer | None:
    """The block of which a log would be a part if it were stored there; None where it is in nobody's way.

    Args:
        transfers: The job's.
        bucket: Of the log.
        key: Of the log, or the prefix of logs.
    """
    for block in (*transfers.before, *transfers.during, *transfers.after):
        read = block.stage == "before" or block.role == "checkpoint"
        places = [control_prefix(block.prefix), *([block.prefix] if read else [])]
        if block.bucket == bucket and any(key.startswith(place) for place in places):
            return block
    return None


def _written_though_read_only(transfers: Transfers, name: Names) -> Iterator[Problem]:
    for block in transfers.before:
        index = checkpoint_of(block, transfers.during) if block.read_only else None
        if index is not None:
            other = name(transfers.during[index], "")
            rule = f"must be false: the block brings down the checkpoint of {other}, which the job writes to"
            yield name(block, "read_only"), "True", rule


def _different_commits(checkpoints: Sequence[Transfer], name: Names) -> Iterator[Problem]:
    for block in checkpoints[1:]:
        first = checkpoints[0]
        if block.commit != first.commit:
            rule = f"must be that of {name(first, '')} ({_quoted(first.commit)}): one commit covers all checkpoints"
            yield name(block, "commit"), _quoted(block.commit), rule


def _ambiguous_keys(checkpoints: Sequence[Transfer], name: Names) -> Iterator[Problem]:
    for position, block in enumerate(checkpoints):
        for other in checkpoints[:position]:
            problem = _clash(block, other, name)
            if problem:
                yield problem
                break


def _clash(block: Transfer, other: Transfer, name: Names) -> Problem | None:
    if block.bucket != other.bucket:
        return None
    where, theirs = name(block, "prefix"), f"{name(other, '')} ({_quoted(other.prefix)})"
    if block.prefix == other.prefix:
        if directory(block) != directory(other):
            rule = (
                f"is also that of {theirs}, from another directory: one key would be two files; give each its own"
                " prefix (one directory must be written the same way in both)"
            )
            return where, _quoted(block.prefix), rule
        if block.plain != other.plain:
            rule = f"must be that of {name(other, '')} ({_quoted(other.plain)}), which has the same prefix"
            return name(block, "plain"), _quoted(block.plain), rule
        return None
    how = _nesting(block, other)
    if not how:
        return None
    rule = (
        f"{how} that of {theirs}, and the directories are not nested in the same way: one key could be two files; give"
        " each a prefix of its own"
    )
    return where, _quoted(block.prefix), rule


def _nesting(block: Transfer, other: Transfer) -> str:
    """How two different prefixes overlap; empty where they do not, or the directories do so likewise."""
    for inner, outer, how in ((block, other, "lies within"), (other, block, "holds")):
        if inner.prefix.startswith(outer.prefix):
            likewise = f"{directory(outer)}/{inner.prefix[len(outer.prefix) :].removesuffix('/')}"
            return "" if directory(inner) == likewise else how
    return ""


def _among_our_records(transfers: Transfers, name: Names) -> Iterator[Problem]:
    # Of the older fields the output is both a `during` and an `after` transfer, of one name.
    stored = {name(block, ""): block for block in (*transfers.during, *transfers.after)}.values()
    for block in stored:
        for other in stored:
            records = control_prefix(other.prefix)
            if block.bucket == other.bucket and block.prefix.startswith(records):
                rule = f"must not lie below {_quoted(records)}, where the records about {name(other, '')} are kept"
                yield name(block, "prefix"), _quoted(block.prefix), rule
                break


def _quoted(text: str) -> str:
    return shown((), text)
