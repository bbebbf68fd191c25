"""The plan of a job's transfers, for both forms of storage."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie_celery.definition import parse_definition
from kelpie_celery.transfers import Place, Transfers, directory


def plan(**storage: Any) -> Transfers:
    return parse_definition({"command": "x", "container_group_id": "g", **storage}).transfers()


def block(prefix: str, path: str, direction: str, bucket: str = "data") -> dict[str, str]:
    return {"bucket": bucket, "prefix": prefix, "local_path": path, "direction": direction}


def test_the_six_fields_become_inputs_and_checkpoint_before_checkpoint_and_outputs_during_outputs_after() -> None:
    found = plan(
        input_bucket="in-b",
        input_prefix="in",
        checkpoint_bucket="ck-b",
        checkpoint_prefix="ck",
        output_bucket="out-b",
        output_prefix="out",
    )

    assert [(t.role, t.bucket, t.prefix, t.local_path) for t in found.before] == [
        ("input", "in-b", "in/", "$INPUT_DIR"),
        ("checkpoint", "ck-b", "ck/", "$CHECKPOINT_DIR"),
    ]
    assert [(t.role, t.bucket, t.prefix, t.local_path) for t in found.during] == [
        ("checkpoint", "ck-b", "ck/", "$CHECKPOINT_DIR"),
        ("output", "out-b", "out/", "$OUTPUT_DIR"),
    ]
    assert [(t.role, t.bucket, t.prefix, t.local_path) for t in found.after] == [
        ("output", "out-b", "out/", "$OUTPUT_DIR"),
    ]


def test_no_storage_is_an_empty_plan() -> None:
    assert plan(sync={}) == Transfers()


def test_a_before_block_is_a_checkpoint_when_its_prefix_is_stored_during_the_job() -> None:
    found = plan(
        sync={
            "before": [block("in", "a", "download"), block("ck", "b", "download")],
            "during": [block("ck/", "c", "upload")],
        }
    )

    assert [t.role for t in found.before] == ["input", "checkpoint"]


def test_a_before_block_is_a_checkpoint_when_its_directory_is_stored_during_the_job() -> None:
    found = plan(sync={"before": [block("seed", "./state/", "download")], "during": [block("ck", "state", "upload")]})

    assert found.before[0].role == "checkpoint"


def test_the_same_prefix_of_another_bucket_is_an_input() -> None:
    found = plan(
        sync={
            "before": [block("ck", "a", "download", bucket="other")],
            "during": [block("ck", "b", "upload")],
        }
    )

    assert found.before[0].role == "input"


def test_an_after_block_alone_makes_no_checkpoint() -> None:
    found = plan(sync={"before": [block("x", "d", "download")], "after": [block("x", "d", "upload")]})

    assert (found.before[0].role, found.after[0].role) == ("input", "output")


def test_stage_index_and_pattern_are_those_of_the_definition() -> None:
    blocks = [block("a", "a", "upload"), block("b", "b", "upload") | {"pattern": "x$"}]
    found = plan(sync={"during": blocks})

    assert [(t.stage, t.index, t.pattern) for t in found.during] == [("during", 0, None), ("during", 1, "x$")]


def test_commit_plain_and_read_only_are_those_of_the_definition() -> None:
    found = plan(
        sync={
            "before": [block("in", "in", "download") | {"read_only": True}],
            "during": [block("a", "a", "upload") | {"commit": "report", "plain": "never"}],
        }
    )

    assert found.before[0].read_only is True
    assert (found.during[0].commit, found.during[0].plain) == ("report", "never")


def test_the_older_fields_mean_the_defaults() -> None:
    names = [f"{name}_{part}" for name in ("input", "checkpoint", "output") for part in ("bucket", "prefix")]
    found = plan(**dict.fromkeys(names, "data"))

    blocks = (*found.before, *found.during, *found.after)
    assert {(t.commit, t.plain, t.read_only) for t in blocks} == {("quiet", "interval", False)}


@pytest.mark.parametrize(
    ("written", "means"), [("a", "a"), ("./a/", "a"), ("a//b/.", "a/b"), ("/a/b", "/a/b"), ("//a", "/a")]
)
def test_a_directory_is_known_however_it_is_written(written: str, means: str) -> None:
    assert directory(Place("bucket", "p/", written)) == means
