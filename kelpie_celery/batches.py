"""Submitting many jobs: all definitions are validated first, then they go out in pipelined batches.

A batch whose answer was lost is sent again with the same ids and nonces, which the ledger recognises: no job
is created twice. Limits: each job is atomic, the whole is not; what was not submitted is told, job by job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

from kelpie_celery._calls import Calls
from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.errors import DefinitionError, KelpieError, LedgerUnavailable
from kelpie_celery.ledger.types import NewJob, Submitted

if TYPE_CHECKING:
    from kelpie_celery.job import Job
    from kelpie_celery.ledger.ledger import Ledger

BATCH = 500
MAX_PROBLEMS = 50

Definition = Mapping[str, Any] | JobDefinition | str | bytes


class NotAllSubmitted(KelpieError):
    """Some jobs of a batch were submitted, and some were not.

    Raised from ``LedgerUnavailable`` when Redis went away for good in between.

    Attributes:
        jobs: For each definition its job; None where none was submitted.
        conflicts: Position of a definition whose idempotency key is taken -> id of the job that holds it.
        uncertain: Ids of jobs whose submission was not answered; ``Kelpie.get`` tells whether they exist.
    """

    def __init__(
        self, message: str, jobs: Sequence[Job | None], conflicts: Mapping[int, str], uncertain: Sequence[str]
    ) -> None:
        super().__init__(message)
        self.jobs, self.conflicts, self.uncertain = list(jobs), dict(conflicts), list(uncertain)


class Interrupted(Exception):
    """Redis went away for good; holds what was answered, and the ids of what was on its way."""

    def __init__(self, answers: list[Submitted], uncertain: list[str], error: LedgerUnavailable) -> None:
        super().__init__(str(error))
        self.answers, self.uncertain, self.error = answers, uncertain, error


def place(position: int) -> str:
    """How a fault names the definition that it is in."""
    return f"[{position}]."


def validate_all(definitions: Iterable[Definition], where: Callable[[int], str] = place) -> list[JobDefinition]:
    """Validate every definition.

    Args:
        definitions: Mappings, JSON texts or definitions that are validated already.
        where: Names the definition at a position, in front of the field's name.

    Raises:
        DefinitionError: Names every fault of every definition, up to `MAX_PROBLEMS`.
        TypeError: It is one definition, not many.
    """
    if isinstance(definitions, str | bytes | Mapping | JobDefinition):
        raise TypeError("give a list of definitions; submit takes a single one")
    valid: list[JobDefinition] = []
    problems: list[tuple[str, str, str]] = []
    holders: dict[tuple[str, str], tuple[int, str]] = {}
    for position, raw in enumerate(definitions):
        try:
            definition = parse_definition(raw)
        except DefinitionError as error:
            problems += [(where(position) + field, value, rule) for field, value, rule in error.problems]
            continue
        problems += _key_clash(position, definition, holders, where)
        valid.append(definition)
    if problems:
        # Not chained to the last of them: each is in it.
        raise DefinitionError(_at_most(problems)) from None
    return valid


def _key_clash(
    position: int,
    definition: JobDefinition,
    holders: dict[tuple[str, str], tuple[int, str]],
    where: Callable[[int], str],
) -> list[tuple[str, str, str]]:
    """One idempotency key for two different definitions of the same batch."""
    if not definition.idempotency_key:
        return []
    digest = definition.digest()
    key = (definition.container_group_id, definition.idempotency_key)
    first, expected = holders.setdefault(key, (position, digest))
    if digest == expected:
        return []
    rule = f"must be another one: {where(first).rstrip('.: ')} has the same key and differs"
    return [(where(position) + "idempotency_key", repr(definition.idempotency_key), rule)]


def _at_most(problems: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    if len(problems) <= MAX_PROBLEMS:
        return problems
    more = f"{len(problems) - MAX_PROBLEMS} more faults"
    return [*problems[:MAX_PROBLEMS], ("definitions", more, "mend the ones above first")]


def send(
    ledger: Ledger,
    calls: Calls,
    jobs: Iterable[NewJob],
    total: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Submitted]:
    """Submit jobs batch by batch; while one is on its way the next one is built.

    Args:
        ledger: Where to.
        calls: Repeats a batch while Redis is away.
        jobs: Built as they are asked for.
        total: How many there are.
        progress: Told after each batch how many of how many are submitted.

    Raises:
        Interrupted: Redis went away for good.
    """
    answers: list[Submitted] = []
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="kelpie-submit") as sender:
        for batch, answer in _one_ahead(sender, _batched(jobs), lambda b: _send_batch(ledger, calls, b)):
            try:
                answers += answer()
            except LedgerUnavailable as error:
                raise Interrupted(answers, [job.job_id for job in batch], error) from error
            if progress:
                progress(len(answers), total)
    return answers


def _send_batch(ledger: Ledger, calls: Calls, batch: list[NewJob]) -> list[Submitted]:
    return calls.make("submit all jobs", lambda: ledger.submit_many(batch, batch=len(batch)))


def _batched(jobs: Iterable[NewJob]) -> Iterator[list[NewJob]]:
    rest = iter(jobs)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _one_ahead(
    sender: ThreadPoolExecutor,
    batches: Iterator[list[NewJob]],
    work: Callable[[list[NewJob]], list[Submitted]],
) -> Iterator[tuple[list[NewJob], Callable[[], list[Submitted]]]]:
    """Each batch with what waits for its answer; the next batch is built, not sent, before that."""
    following = next(batches, None)
    while following is not None:
        batch = following
        answer = sender.submit(work, batch)
        following = next(batches, None)
        yield batch, answer.result
