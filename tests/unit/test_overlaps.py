"""What the blocks of a job may say together, and what is refused at submit: "Overlaps" in docs/job-definition.md."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import DefinitionError
from kelpie_celery.transfers import Transfers


def down(prefix: str, path: str, **more: Any) -> dict[str, Any]:
    return {"bucket": "data", "prefix": prefix, "local_path": path, "direction": "download", **more}


def up(prefix: str, path: str, **more: Any) -> dict[str, Any]:
    return {"bucket": "data", "prefix": prefix, "local_path": path, "direction": "upload", **more}


def taken(**storage: Any) -> Transfers:
    return parse_definition({"command": "x", "container_group_id": "g", **storage}).transfers()


def only_fault(**storage: Any) -> tuple[str, str, str]:
    with pytest.raises(DefinitionError) as caught:
        taken(**storage)
    (found,) = caught.value.problems
    return found


def six(**prefixes: str) -> dict[str, str]:
    names = ("input", "checkpoint", "output")
    return {f"{name}_bucket": "data" for name in names} | {f"{name}_prefix": prefixes[name] for name in names}


# -- one commit for all checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_of_one_job_are_taken_at_the_same_moments() -> None:
    blocks = [up("a", "a", commit="marker:DONE"), up("b", "b", commit="marker:DONE")]

    assert [block.commit for block in taken(sync={"during": blocks}).during] == ["marker:DONE"] * 2


@pytest.mark.parametrize(("one", "other"), [("quiet", "report"), ("report", "marker:a"), ("marker:a", "marker:b")])
def test_different_ways_to_commit_in_one_job_are_refused_naming_both(one: str, other: str) -> None:
    blocks = [up("a", "a", commit=one), up("b", "b", commit=one), up("c", "c", commit=other)]

    assert only_fault(sync={"during": blocks}) == (
        "sync.during[2].commit",
        repr(other),
        f"must be that of sync.during[0] ({one!r}): one commit covers all checkpoints",
    )


def test_a_block_that_says_nothing_of_commit_says_quiet() -> None:
    field, value, rule = only_fault(sync={"during": [up("a", "a", commit="report"), up("b", "b")]})

    assert (field, value) == ("sync.during[1].commit", "'quiet'")
    assert "sync.during[0] ('report')" in rule


# -- checkpoints beside checkpoints ---------------------------------------------------------------------------------


def test_one_directory_may_be_stored_under_one_prefix_by_several_patterns() -> None:
    blocks = [up("a", "state", pattern=r"\.ckpt$"), up("a/", "./state/", pattern=r"\.json$")]

    assert len(taken(sync={"during": blocks}).during) == 2


def test_one_prefix_of_two_directories_is_refused_naming_both() -> None:
    field, value, rule = only_fault(sync={"during": [up("a", "x", pattern="1"), up("a", "y", pattern="2")]})

    assert (field, value) == ("sync.during[1].prefix", "'a/'")
    assert rule.startswith("is also that of sync.during[0] ('a/'), from another directory")


def test_blocks_of_one_prefix_agree_on_their_plain_keys() -> None:
    blocks = [up("a", "x", pattern="1"), up("a", "x", pattern="2", plain="never")]

    assert only_fault(sync={"during": blocks}) == (
        "sync.during[1].plain",
        "'never'",
        "must be that of sync.during[0] ('interval'), which has the same prefix",
    )


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        (("a", "x"), ("a/b", "y"), "lies within"),
        (("a/b", "y"), ("a", "x"), "holds"),
        (("a", "x"), ("a/b", "x"), "lies within"),
        (("a", "x"), ("a/b", "x/c"), "lies within"),
        (("a", "x"), ("a//b", "x/b"), "lies within"),
        (("a", "x"), ("a//", "x"), "lies within"),
    ],
)
def test_nested_prefixes_whose_keys_could_be_two_files_are_refused_naming_both(
    first: tuple[str, str], second: tuple[str, str], how: str
) -> None:
    field, _, rule = only_fault(sync={"during": [up(*first), up(*second)]})

    assert field == "sync.during[1].prefix"
    assert rule.startswith(f"{how} that of sync.during[0] ('{first[0]}/')")


@pytest.mark.parametrize("second", [("a/b", "x/b"), ("a/b/c/", "./x//b/c/")])
def test_nested_prefixes_of_directories_that_are_nested_likewise_are_taken(second: tuple[str, str]) -> None:
    assert taken(sync={"during": [up("a", "x"), up(*second)]})
    assert taken(sync={"during": [up(*second), up("a", "x")]})


def test_a_directory_within_another_may_have_a_prefix_of_its_own() -> None:
    assert taken(sync={"during": [up("a", "x"), up("b", "x/y")]})
    assert taken(sync={"during": [up("a", "x"), up("a-b", "x")]})


def test_the_same_prefix_of_two_buckets_is_taken() -> None:
    assert taken(sync={"during": [up("a", "x"), up("a", "y", bucket="other")]})


def test_each_block_is_named_once_however_many_it_clashes_with() -> None:
    with pytest.raises(DefinitionError) as caught:
        taken(sync={"during": [up("a", f"x{index}") for index in range(4)]})

    assert [field for field, _, _ in caught.value.problems] == [f"sync.during[{index}].prefix" for index in (1, 2, 3)]


# -- outputs and inputs beside checkpoints --------------------------------------------------------------------------


@pytest.mark.parametrize(("during", "after"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a", "a.kelpie-not/b")])
@pytest.mark.parametrize("path", ["x", "y", "x/y"])
def test_outputs_may_share_the_prefix_of_a_checkpoint(during: str, after: str, path: str) -> None:
    assert taken(sync={"during": [up(during, "x")], "after": [up(after, path)]})


@pytest.mark.parametrize(
    ("checkpoint", "output"), [("a", "a"), ("a", "a/out"), ("a/state", "a"), ("runs/1", "runs/1/")]
)
def test_the_older_fields_may_share_prefixes_as_in_kelpie(checkpoint: str, output: str) -> None:
    assert taken(**six(input="a", checkpoint=checkpoint, output=output))


def test_inputs_may_lie_under_a_checkpoints_prefix_and_the_other_way_round() -> None:
    assert taken(sync={"before": [down("a/in", "in")], "during": [up("a", "x")]})
    assert taken(sync={"before": [down("a", "in")], "during": [up("a/state", "x")]})


# -- our own records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["a.kelpie", "a.kelpie/commits/x"])
@pytest.mark.parametrize("stage", ["during", "after"])
def test_nothing_is_stored_among_the_records_about_another_prefix(prefix: str, stage: str) -> None:
    sync: dict[str, Any] = {"during": [up("a", "x")]}
    sync[stage] = [*sync.get(stage, []), up(prefix, "y")]
    index = len(sync[stage]) - 1

    assert only_fault(sync=sync) == (
        f"sync.{stage}[{index}].prefix",
        repr(f"{prefix}/"),
        "must not lie below 'a.kelpie/', where the records about sync.during[0] are kept",
    )


def test_the_older_fields_are_named_as_they_are() -> None:
    assert only_fault(**six(input="i", checkpoint="a", output="a.kelpie/x")) == (
        "output_prefix",
        "'a.kelpie/x/'",
        "must not lie below 'a.kelpie/', where the records about checkpoint_prefix are kept",
    )


def test_a_prefix_that_only_looks_like_records_is_taken() -> None:
    assert taken(sync={"during": [up("a.kelpie", "x")], "after": [up("b", "y")]})
    assert taken(sync={"during": [up("a", "x")], "after": [up("a.kelpie", "y", bucket="other")]})


# -- read_only ------------------------------------------------------------------------------------------------------


def test_inputs_may_be_read_only() -> None:
    found = taken(sync={"before": [down("in", "in", read_only=True), down("b", "b")], "during": [up("a", "x")]})

    assert [block.read_only for block in found.before] == [True, False]


@pytest.mark.parametrize("block", [down("a", "elsewhere", read_only=True), down("seed", "./x/", read_only=True)])
def test_a_checkpoint_that_is_said_to_be_read_only_is_refused(block: dict[str, Any]) -> None:
    field, _, rule = only_fault(sync={"before": [block], "during": [up("b", "y"), up("a", "x")]})

    assert field == "sync.before[0].read_only"
    assert rule == "must be false: the block brings down the checkpoint of sync.during[1], which the job writes to"
