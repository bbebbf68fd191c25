"""The tree of errors: as drawn, and fit to travel between processes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from kelpie_celery import errors
from kelpie_celery.errors import (
    CommandError,
    DefinitionError,
    JobFailed,
    KelpieError,
    LineMoved,
    PrefixHeld,
    RuleError,
    StorageError,
    WaitTimeout,
)

CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, KelpieError) and kind.__module__ == errors.__name__
}
PROBLEMS = [("priority", "10", "must be at most 9"), ("command", "nothing", "is required")]


def sample(kind: type[KelpieError]) -> KelpieError:
    """An error of this class, with its attributes set."""
    if issubclass(kind, DefinitionError):
        return kind(PROBLEMS)
    if issubclass(kind, RuleError):
        return kind(PROBLEMS, "rules.toml")
    if issubclass(kind, JobFailed):
        return kind("job-1", "exit_code", "exit code 3")
    if issubclass(kind, PrefixHeld | LineMoved):
        return kind("job-1", "b", "k")
    if issubclass(kind, StorageError):
        return kind("it failed", bucket="b", key="k")
    if issubclass(kind, CommandError):
        return kind("no such program", reason="not_found")
    return kind("job-1")


def drawn_tree() -> dict[str, str]:
    """Each error of the docstring's drawing with the one that it hangs on."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"((?:[|] {3}| {4})*)(?:\+-- )?([A-Z]\w+)(?: {2,}|$)", line)
        if match is None or (not path and match[2] != "KelpieError"):
            continue
        depth = 0 if match[2] == "KelpieError" else len(match[1]) // 4 + 1
        path[depth:] = [match[2]]
        if depth:
            parents[match[2]] = path[depth - 1]
    return parents


def test_the_drawn_tree_is_the_tree_of_the_classes() -> None:
    assert drawn_tree() == {name: kind.__mro__[1].__name__ for name, kind in CLASSES.items() if kind is not KelpieError}


@pytest.mark.parametrize("kind", CLASSES.values())
def test_an_error_keeps_type_message_and_attributes_through_pickle(kind: type[KelpieError]) -> None:
    error = sample(kind)

    back = pickle.loads(pickle.dumps(error))

    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_a_failed_job_can_be_rebuilt_from_its_arguments_as_celerys_json_results_do() -> None:
    error = JobFailed("job-1", "exit_code", "exit code 3")

    back = JobFailed(*error.args)

    assert (back.job_id, back.reason, back.message) == ("job-1", "exit_code", "exit code 3")
    assert str(back) == "job job-1 failed (exit_code): exit code 3"


def test_a_definition_error_says_every_fault() -> None:
    assert str(DefinitionError(PROBLEMS)) == (
        "the job definition is refused: priority: must be at most 9 (got 10); command: is required (got nothing)"
    )


@pytest.mark.parametrize("kind", [PrefixHeld, LineMoved])
def test_a_prefix_that_two_jobs_commit_to_is_told_with_the_other_job(kind: type[PrefixHeld] | type[LineMoved]) -> None:
    error = kind("job-1", "bucket", "runs/7/")

    assert (error.holder, error.bucket, error.key) == ("job-1", "bucket", "runs/7/")
    for words in ("job-1", "s3://bucket/runs/7/", "a checkpoint prefix of its own"):
        assert words in str(error)


def test_a_wait_that_takes_too_long_is_also_pythons_own_timeout() -> None:
    assert issubclass(WaitTimeout, TimeoutError)
