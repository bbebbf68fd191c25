"""Whatever a definition holds: it is taken, or refused with `DefinitionError`, and shows no secret."""

from __future__ import annotations

import json
import traceback
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_celery.definition import CheckpointBlock, DownloadBlock, JobDefinition, from_json, parse_definition
from kelpie_celery.errors import DefinitionError

SECRET = "canary-5f1d"

texts = st.one_of(st.text(max_size=20), st.sampled_from(["", "\0", "\ud800", "../x", "a/b", "https://h", "("]))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
secret_values = st.one_of(
    st.just(SECRET),
    texts.map(lambda text: text + SECRET),
    anything.map(lambda value: [SECRET, value]),
    anything.map(lambda value: {"A": {SECRET: value}}),
)
# The names of variables are no secrets; everything else in an environment, of whatever shape, is one.
environments = st.one_of(
    st.dictionaries(texts | st.sampled_from(["A", "B_1"]), secret_values, max_size=4), secret_values
)
block_fields = {**CheckpointBlock.model_fields, **DownloadBlock.model_fields}
words = st.sampled_from(["download", "upload", "abc", "report", "marker:*", "never"])
blocks = st.fixed_dictionaries({}, optional=dict.fromkeys(block_fields, anything | words))
# Blocks that are taken one by one, so that what they may not say together is met as well.
short_paths = st.sampled_from(["a", "a/b", "a//b", "a/b/c", "./a", "/a", "a.kelpie/b"])
downloads = st.fixed_dictionaries(
    {"bucket": st.just("abc"), "prefix": short_paths, "local_path": short_paths, "direction": st.just("download")},
    optional={"read_only": st.booleans()},
)
checkpoints = st.fixed_dictionaries(
    {"bucket": st.just("abc"), "prefix": short_paths, "local_path": short_paths, "direction": st.just("upload")},
    optional={
        "commit": st.sampled_from(["quiet", "report", "marker:**/a"]),
        "plain": st.sampled_from(["end", "never"]),
    },
)
good_syncs = st.fixed_dictionaries(
    {"before": st.lists(downloads, max_size=3), "during": st.lists(checkpoints, max_size=4)}
)
stages = st.one_of(anything, st.lists(blocks | anything, max_size=3))
syncs = st.one_of(anything, st.fixed_dictionaries({}, optional=dict.fromkeys(("before", "during", "after"), stages)))
definitions = st.fixed_dictionaries(
    {"environment": environments},
    optional={
        **{name: anything for name in JobDefinition.model_fields if name != "environment"},
        "command": st.just("python") | anything,
        "container_group_id": st.just("g") | anything,
        "sync": st.just({}) | syncs,
        "unknown": anything,
        "enviroment": secret_values,
    },
)


def check(raw: Any) -> None:
    """Parse; nothing but a DefinitionError may come out, and the secret in no text of it."""
    try:
        job = parse_definition(raw)
    except DefinitionError as error:
        refused = error
    else:
        assert SECRET not in repr(job) + str(job)
        assert from_json(job.to_json()) == job
        assert parse_definition(job.to_json()).digest() == job.digest()
        return
    assert SECRET not in "".join(traceback.format_exception(refused, limit=0))
    assert SECRET not in repr(refused) + repr(refused.problems)
    assert all(len(value) < 200 and len(field) < 400 for field, value, _ in refused.problems)


@settings(max_examples=80, deadline=None)
@given(definitions)
def test_any_object_is_taken_or_refused_without_showing_a_secret(raw: dict[str, Any]) -> None:
    check(raw)


@settings(max_examples=100, deadline=None)
@given(good_syncs)
def test_any_good_blocks_are_taken_together_or_refused(sync: dict[str, Any]) -> None:
    check({"command": "x", "container_group_id": "g", "sync": sync})


@settings(max_examples=50, deadline=None)
@given(definitions)
def test_any_json_is_taken_or_refused_without_showing_a_secret(raw: dict[str, Any]) -> None:
    check(json.dumps(raw))


@settings(max_examples=50, deadline=None)
@given(anything)
def test_anything_else_is_refused(raw: Any) -> None:
    check(raw)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_text_is_refused(raw: Any) -> None:
    check(raw)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers() | st.text(max_size=5) | st.none(), anything, max_size=5))
def test_objects_with_names_that_are_no_strings_are_refused(raw: Any) -> None:
    check(raw)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,9}\Z"), st.text().map(lambda t: t.replace("\0", "")), max_size=5
    ),
    st.lists(st.text(max_size=20).map(lambda t: t.replace("\0", "")), max_size=5),
)
def test_whatever_a_program_can_be_given_survives_the_ledger(env: dict[str, str], arguments: list[str]) -> None:
    raw = {"command": "x", "container_group_id": "g", "sync": {}, "environment": env, "arguments": arguments}

    back = from_json(parse_definition(raw).to_json())

    assert (back.environment, back.arguments) == (env, arguments)
