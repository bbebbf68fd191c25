"""Job definitions: what is taken, what is refused, and with which words."""

from __future__ import annotations

import json
import pickle
import re
from types import MappingProxyType
from typing import Any

import pytest

from kelpie_celery.definition import (
    MAX_DEFINITION_BYTES,
    CheckpointBlock,
    DownloadBlock,
    JobDefinition,
    Sync,
    SyncBlock,
    UploadBlock,
    from_json,
    json_schema,
    parse_definition,
)
from kelpie_celery.errors import DefinitionError

MINIMAL: dict[str, Any] = {"command": "python", "container_group_id": "group-1", "sync": {}}
DOWN: dict[str, Any] = {"bucket": "data", "prefix": "in", "local_path": "in", "direction": "download"}
UP: dict[str, Any] = {"bucket": "data", "prefix": "out/", "local_path": "out", "direction": "upload"}
SIX = {
    f"{what}_{part}": f"{what}-{part}" for what in ("input", "checkpoint", "output") for part in ("bucket", "prefix")
}
FULL: dict[str, Any] = {
    **MINIMAL,
    "arguments": ["train.py", "--steps", "1000"],
    "environment": {"TOKEN": "hunter2-canary", "A": ""},
    "sync": {"before": [DOWN | {"pattern": r"\.npz$"}], "during": [UP | {"prefix": "state"}], "after": [UP]},
    "max_failures": 5,
    "heartbeat_interval": 10,
    "webhook": "https://user:hunter2-canary@hooks.example:8443/hunter2-canary?x=hunter2-canary",
    "compression": True,
    "priority": 0,
    "timeout": 60,
    "total_timeout": 3600.5,
    "stall_timeout": 30,
    "grace_period": 0,
    "idempotency_key": "run-1",
    "tags": {"owner": "me"},
}


def faults(**fields: Any) -> list[tuple[str, str, str]]:
    """The faults of the minimal definition with ``fields`` set, or taken out where they are ``...``."""
    raw = {name: value for name, value in (MINIMAL | fields).items() if value is not ...}
    with pytest.raises(DefinitionError) as caught:
        parse_definition(raw)
    return caught.value.problems


def only_fault(**fields: Any) -> tuple[str, str, str]:
    found = faults(**fields)
    assert len(found) == 1, found
    return found[0]


# -- what is taken ------------------------------------------------------------------------------------------


def test_defaults_are_those_of_kelpie_and_of_the_documentation() -> None:
    job = parse_definition(MINIMAL)

    assert (job.max_failures, job.heartbeat_interval, job.compression) == (3, 30, False)
    assert (job.priority, job.grace_period, job.arguments, job.environment, job.tags) == (5, 30.0, [], {}, {})
    assert (job.timeout, job.total_timeout, job.stall_timeout, job.webhook, job.idempotency_key) == (None,) * 5


@pytest.mark.parametrize("raw", [json.dumps(FULL), json.dumps(FULL).encode(), MappingProxyType(FULL)])
def test_text_bytes_and_any_mapping_say_the_same(raw: Any) -> None:
    assert parse_definition(raw) == parse_definition(FULL)


def test_a_validated_definition_is_taken_as_it_is() -> None:
    job = parse_definition(FULL)

    assert parse_definition(job) is job


def test_python_users_may_build_it_by_keyword_with_plain_blocks() -> None:
    block = SyncBlock(bucket="data", prefix="out", local_path="out", direction="upload")

    job = JobDefinition(command="python", container_group_id="g", sync=Sync(after=[block]))

    assert job.transfers().after[0].prefix == "out/"


def test_python_users_may_write_any_kind_of_block_where_what_it_says_fits() -> None:
    where = {"bucket": "data", "prefix": "p", "local_path": "d"}
    plain = SyncBlock(**where, direction="upload")
    upload = UploadBlock(**where, direction="upload")
    checkpoint = CheckpointBlock(**where, direction="upload", commit="report")
    source = DownloadBlock(**where, direction="download", read_only=True)

    assert Sync(during=[plain]).during == Sync(during=[upload]).during
    assert Sync(during=[checkpoint], before=[source]).during[0].commit == "report"
    assert Sync(after=[CheckpointBlock(**where, direction="upload")]).after == [upload]
    for wrong in ({"after": [checkpoint]}, {"during": [source]}):
        with pytest.raises(DefinitionError, match="belongs to the blocks of"):
            parse_definition(MINIMAL | {"sync": wrong})


@pytest.mark.parametrize("commit", ["quiet", "report", "marker:DONE", "marker:**/step-*/[a-z]?", "marker:" + "x" * 200])
@pytest.mark.parametrize("plain", ["interval", "end", "never"])
def test_a_during_block_says_when_a_checkpoint_is_taken_and_when_the_plain_keys_follow(commit: str, plain: str) -> None:
    job = parse_definition(MINIMAL | {"sync": {"during": [UP | {"commit": commit, "plain": plain}]}})

    back = from_json(job.to_json())

    assert back == job
    assert (back.transfers().during[0].commit, back.transfers().during[0].plain) == (commit, plain)


def test_defaults_of_blocks_that_are_written_out_change_neither_ledger_nor_digest() -> None:
    short = {"before": [DOWN], "during": [UP | {"prefix": "state", "local_path": "state"}], "after": [UP]}
    full = short | {
        "before": [DOWN | {"read_only": False}],
        "during": [short["during"][0] | {"commit": "quiet", "plain": "interval"}],
    }

    jobs = [parse_definition(MINIMAL | {"sync": sync}) for sync in (short, full)]

    assert jobs[0].to_json() == jobs[1].to_json()
    assert jobs[0].digest() == jobs[1].digest()
    assert not any(name in jobs[0].to_json() for name in ("commit", "plain", "read_only"))


def test_a_missing_last_slash_of_a_prefix_is_added() -> None:
    job = parse_definition(MINIMAL | {"sync": {"before": [DOWN], "after": [UP]}})

    assert [block.prefix for block in (*job.sync.before, *job.sync.after)] == ["in/", "out/"]  # type: ignore[union-attr]  # sync was given


def test_null_counts_as_not_given() -> None:
    nothing = dict.fromkeys(["webhook", "timeout", "idempotency_key", "input_bucket"])

    assert parse_definition(MINIMAL | nothing) == parse_definition(MINIMAL)


@pytest.mark.parametrize(
    "prefix", ["a", "a/b/", "a//b", "runs/.hidden/x", "a b/ü", "x" * 799, "a..b", "...", "Year=2024/x"]
)
def test_ordinary_prefixes_are_taken(prefix: str) -> None:
    assert parse_definition(MINIMAL | {"sync": {"after": [UP | {"prefix": prefix}]}})


@pytest.mark.parametrize("path", ["/data", "data", "./data", "/a/b/", "a/.b", "a b", "/tmp/x..y"])
def test_ordinary_local_paths_are_taken_as_they_are(path: str) -> None:
    job = parse_definition(MINIMAL | {"sync": {"after": [UP | {"local_path": path}]}})

    assert job.transfers().after[0].local_path == path


# -- what is refused ----------------------------------------------------------------------------------------


def test_all_faults_are_named_at_once() -> None:
    found = faults(
        command="",
        priority=10,
        environment={"A": 1},
        sync={"before": [DOWN | {"direction": "upload", "pattern": "("}]},
        input_bucket="data",
        extra=1,
    )

    assert {field for field, _, _ in found} == {
        "command",
        "priority",
        "environment.A",
        "sync.before[0].direction",
        "sync.before[0].pattern",
        "input_bucket",
        "extra",
    }


def test_a_message_names_field_value_and_rule() -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_definition(MINIMAL | {"priority": 10})

    assert str(caught.value) == "the job definition is refused: priority: must be at most 9 (got 10)"


@pytest.mark.parametrize(
    ("field", "meant"),
    [("comand", "command"), ("maxFailures", "max_failures"), ("Container-Group-Id", "container_group_id")],
)
def test_a_misspelt_field_is_answered_with_the_one_that_was_meant(field: str, meant: str) -> None:
    assert only_fault(**{field: "x"})[2] == f"is not a field of a job definition; did you mean '{meant}'?"


def test_a_misspelt_field_inside_a_block_is_found_among_the_blocks_fields() -> None:
    assert only_fault(sync={"before": [DOWN | {"patern": "x"}]}) == (
        "sync.before[0].patern",
        "a string",
        "is not a field of a job definition; did you mean 'pattern'?",
    )


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("command", ..., "is required"),
        ("command", "", "must have at least 1 character(s)"),
        ("command", "  ", "must name a program"),
        ("command", "a\0b", "must not contain a NUL character"),
        ("command", 3, "must be a string"),
        ("command", "\ud800", "must be valid Unicode text, without lone surrogates"),
        ("container_group_id", ..., "is required"),
        ("container_group_id", "a:b", "must be 1 to 128 letters, digits, '.', '_' or '-'"),
        ("container_group_id", "a\n", "must be 1 to 128 letters, digits, '.', '_' or '-'"),
        ("arguments", "x", "must be a list"),
        ("max_failures", 0, "must be at least 1"),
        ("max_failures", "3", "must be a whole number"),
        ("max_failures", True, "must be a whole number"),
        ("heartbeat_interval", 0, "must be at least 1"),
        ("heartbeat_interval", 3601, "must be at most 3600"),
        ("heartbeat_interval", 1.5, "must be a whole number"),
        ("compression", 1, "must be true or false"),
        ("priority", -1, "must be at least 0"),
        ("timeout", 0, "must be more than 0"),
        ("timeout", float("inf"), "must be a finite number"),
        ("total_timeout", float("nan"), "must be a finite number"),
        ("stall_timeout", True, "must be a number"),
        ("grace_period", -1, "must be at least 0"),
        ("grace_period", 3601, "must be at most 3600"),
        ("idempotency_key", "", "must have at least 1 character(s)"),
        ("idempotency_key", "x" * 257, "must have at most 256 characters"),
        ("idempotency_key", "a\nb", "must not contain control characters"),
        ("webhook", "ftp://host", "must be a URL that begins with http:// or https:// and names a host"),
        ("webhook", "https://", "must be a URL that begins with http:// or https:// and names a host"),
        ("webhook", "https://h:99999", "must be a URL that begins with http:// or https:// and names a host"),
        ("sync", [], "must be an object"),
    ],
)
def test_a_wrong_value_is_refused_with_its_rule(field: str, value: Any, rule: str) -> None:
    name, _, found = only_fault(**{field: value})

    assert (name, found) == (field, rule)


@pytest.mark.parametrize("arguments", [[1], [None], ["a\0"], ["x" * 131_072], ["ok", ["nested"]]])
def test_an_argument_that_no_program_could_be_given_is_refused_by_its_position(arguments: list[Any]) -> None:
    assert only_fault(arguments=arguments)[0] == f"arguments[{len(arguments) - 1}]"


@pytest.mark.parametrize(
    "prefix", ["", "/", "/a", "../a", "a/../b", "a/..", "./a", "a/.kelpie/b", "a\0", "a\n", "x" * 801]
)
def test_a_prefix_that_is_no_folder_in_the_bucket_is_refused(prefix: str) -> None:
    assert only_fault(sync={"after": [UP | {"prefix": prefix}]})[0] == "sync.after[0].prefix"


@pytest.mark.parametrize(
    "path", ["", "/", "//", ".", "./", "..", "../x", "/a/../..", "$OUTPUT_DIR", "~/x", "a\0", "x" * 5000]
)
def test_a_local_path_that_is_no_directory_of_the_job_is_refused(path: str) -> None:
    assert only_fault(sync={"after": [UP | {"local_path": path}]})[0] == "sync.after[0].local_path"


@pytest.mark.parametrize("bucket", ["", "ab", "s3://bucket", "a/b", "-ab", "ab-", "a" * 256, "a b c"])
def test_a_bucket_that_no_storage_could_have_is_refused(bucket: str) -> None:
    assert only_fault(sync={"after": [UP | {"bucket": bucket}]})[0] == "sync.after[0].bucket"


@pytest.mark.parametrize(
    ("stage", "block", "rule"),
    [("before", UP, "'download'"), ("during", DOWN, "'upload'"), ("after", DOWN, "'upload'")],
)
def test_each_stage_has_its_direction(stage: str, block: dict[str, Any], rule: str) -> None:
    field, _, found = only_fault(sync={stage: [block]})

    assert (field, found) == (f"sync.{stage}[0].direction", f"must be {rule}")


def test_a_pattern_that_could_hang_or_cannot_be_matched_in_bounded_time_is_refused_at_submit() -> None:
    field, value, rule = only_fault(sync={"before": [DOWN | {"pattern": r"(a)\1"}]})

    assert (field, value) == ("sync.before[0].pattern", r"'(a)\\1'")
    assert "back-reference" in rule


@pytest.mark.parametrize(
    ("commit", "rule"),
    [
        ("", "must be 'quiet', 'report' or 'marker:' and a glob, as in 'marker:step-*/DONE'"),
        ("Quiet", "must be 'quiet', 'report' or 'marker:' and a glob, as in 'marker:step-*/DONE'"),
        ("marker", "must be 'quiet', 'report' or 'marker:' and a glob, as in 'marker:step-*/DONE'"),
        ("marker:", "its glob must not be empty"),
        ("marker:/DONE", "its glob must not begin with '/': it is relative to local_path"),
        ("marker:../DONE", "its glob must not contain '..' as a segment"),
        ("marker:" + "x" * 201, "its glob must have at most 200 characters, not 201"),
        ("marker:[", "its glob has a '[' without its ']'; write '[[]' for a plain one"),
        (None, "must be a string"),
        (1, "must be a string"),
    ],
)
def test_a_wrong_commit_is_refused_with_its_rule(commit: Any, rule: str) -> None:
    field, _, found = only_fault(sync={"during": [UP | {"commit": commit}]})

    assert (field, found) == ("sync.during[0].commit", rule)


@pytest.mark.parametrize("plain", ["", "always", None, True])
def test_a_wrong_plain_is_refused_with_its_rule(plain: Any) -> None:
    field, _, rule = only_fault(sync={"during": [UP | {"plain": plain}]})

    assert (field, rule) == ("sync.during[0].plain", "must be 'interval', 'end' or 'never'")


@pytest.mark.parametrize("read_only", ["yes", 1, None])
def test_read_only_is_true_or_false(read_only: Any) -> None:
    field, _, rule = only_fault(sync={"before": [DOWN | {"read_only": read_only}]})

    assert (field, rule) == ("sync.before[0].read_only", "must be true or false")


@pytest.mark.parametrize(
    ("stage", "block", "field", "home"),
    [
        ("after", UP, {"commit": "report"}, "during"),
        ("after", UP, {"plain": "end"}, "during"),
        ("before", DOWN, {"commit": "quiet"}, "during"),
        ("before", DOWN, {"plain": "never"}, "during"),
        ("during", UP, {"read_only": True}, "before"),
        ("after", UP, {"read_only": False}, "before"),
    ],
)
def test_a_field_of_another_stages_blocks_is_refused_with_where_it_belongs(
    stage: str, block: dict[str, Any], field: dict[str, Any], home: str
) -> None:
    name, _, rule = only_fault(sync={stage: [block | field]})

    assert name == f"sync.{stage}[0].{next(iter(field))}"
    assert rule == f"belongs to the blocks of `{home}`, not to those of `{stage}`"


def test_a_misspelt_field_of_one_stage_is_found_among_that_stages_fields() -> None:
    assert only_fault(sync={"during": [UP | {"comit": "quiet"}]})[2].endswith("did you mean 'commit'?")
    assert only_fault(sync={"before": [DOWN | {"readonly": True}]})[2].endswith("did you mean 'read_only'?")
    assert "did you mean" not in only_fault(sync={"after": [UP | {"comit": "quiet"}]})[2]


@pytest.mark.parametrize("name", ["", "1A", "A=B", "A B", "é", "A\0"])
def test_a_name_that_is_no_variables_name_is_refused_by_its_place_alone(name: str) -> None:
    field, value, rule = only_fault(environment={"OK": "", name: "x"})

    assert (field, value) == ("environment", "***")
    assert rule.startswith("name 2 is no variable's name")


def test_a_large_environment_is_refused() -> None:
    assert "at most 65536 bytes" in only_fault(environment={f"V{i}": "x" * 700 for i in range(100)})[2]


def test_tags_are_bounded_in_number_and_length() -> None:
    assert only_fault(tags={str(i): "" for i in range(51)})[2] == "must have at most 50 entries"
    assert only_fault(tags={"a": "x" * 257})[0] == "tags.a"
    assert only_fault(tags={"x" * 129: ""})[2] == "must have at most 128 characters"


def test_a_definition_over_256_kib_is_refused_whole_and_as_text() -> None:
    large = MINIMAL | {"arguments": ["x" * 100_000] * 3}

    assert only_fault(**large)[2].startswith(f"must have at most {MAX_DEFINITION_BYTES} bytes as JSON")
    with pytest.raises(DefinitionError, match="must have at most"):
        parse_definition(" " * (4 * MAX_DEFINITION_BYTES + 1))


def test_thousands_of_faults_are_cut_short() -> None:
    found = faults(arguments=[1] * 5000)

    assert len(found) == 51
    assert found[-1][1] == "4950 more faults"


# -- the two forms of storage -------------------------------------------------------------------------------


def test_neither_form_is_refused_with_what_to_add_for_none() -> None:
    field, _, rule = only_fault(sync=...)

    assert field == "sync"
    assert '"sync": {}' in rule


def test_both_forms_are_refused() -> None:
    found = faults(**SIX)

    assert [field for field, _, _ in found] == list(SIX)
    assert all("not be given together with `sync`" in rule for _, _, rule in found)


def test_some_of_the_six_fields_are_refused_naming_the_others() -> None:
    found = faults(sync=..., input_bucket="data", input_prefix="x")

    assert [field for field, _, _ in found] == list(SIX)[2:]


# -- text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "command": ,\n}', "is not valid JSON: Expecting value (got line 2, column 14)"),
        ("[]", "must be an object with the fields of a job (got a list)"),
        ("null", "must be an object with the fields of a job (got null)"),
        ('{"command": "a", "command": "b"}', "command: must be given once"),
        ("[" * 100_000, "must not be nested that deeply"),
        ("1" * 5000, "must not hold a number of thousands of digits"),
        (b"\xff", "must be JSON in UTF-8 (got byte 0)"),
        ("", "is not valid JSON: Expecting value (got line 1, column 1)"),
    ],
)
def test_broken_json_is_told_by_its_place(text: str | bytes, message: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_definition(text)

    assert message in str(caught.value)


@pytest.mark.parametrize("raw", [None, 3, [], [("command", "x")]])
def test_what_is_no_object_is_refused(raw: Any) -> None:
    with pytest.raises(DefinitionError, match="must be an object with the fields of a job"):
        parse_definition(raw)


# -- secrets ------------------------------------------------------------------------------------------------


def test_repr_and_str_show_names_of_variables_but_no_value_and_no_secret_of_the_webhook() -> None:
    job = parse_definition(FULL)

    for text in (repr(job), str(job), f"{job}", repr([job])):
        assert "hunter2" not in text
        assert "'TOKEN': '***'" in text
        assert "https://***@hooks.example:8443/***" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"environment": "hunter2"},
        {"environment": ["hunter2"]},
        {"environment": {"A": "hunter2\0"}},
        {"environment": {"A": "hunter2\ud800"}},
        {"environment": {"A": ["hunter2"]}},
        {"environment": {"A=hunter2": ""}},
        {"enviroment": {"A": "hunter2"}},
        {"env": "hunter2"},
        {"sync": {"environment": {"A": "hunter2"}}},
        {"webhook": "ftp://user:hunter2@host/hunter2?hunter2"},
        {"webhook": "user:hunter2@host"},
        {"webhook": ["hunter2"]},
        {"webhook": "https://hunter2:x@[::1/"},
        {"arguments": {"A": "hunter2"}},
    ],
)
def test_an_error_shows_no_secret(fields: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_definition(MINIMAL | fields)

    assert "hunter2" not in str(caught.value) + repr(caught.value) + repr(caught.value.problems)
    assert caught.value.__context__ is None  # pydantic's error, which holds the input, is not chained
    assert caught.value.__cause__ is None


def test_broken_json_text_is_not_carried_along() -> None:
    with pytest.raises(DefinitionError) as caught:
        parse_definition('{"environment": {"A": "hunter2"}')

    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_building_by_keyword_is_refused_with_the_same_error() -> None:
    with pytest.raises(DefinitionError, match="priority: must be at most 9"):
        JobDefinition(command="x", container_group_id="g", sync=Sync(), priority=11)


# -- the ledger's form --------------------------------------------------------------------------------------


def test_the_ledgers_form_leaves_out_defaults_and_comes_back_equal() -> None:
    assert json.loads(parse_definition(MINIMAL).to_json()) == MINIMAL
    for raw in (MINIMAL, FULL, {**MINIMAL, **SIX, "sync": None}):
        job = parse_definition(raw)
        back = from_json(job.to_json())
        assert back == job
        assert back.digest() == job.digest()
        assert back.transfers() == job.transfers()
        assert back.to_json() == job.to_json()
        assert repr(back) == repr(job)


def test_a_record_of_a_newer_version_can_be_read() -> None:
    record = json.loads(parse_definition(FULL).to_json())
    record["new_field"] = 1
    for stage in ("before", "during", "after"):
        record["sync"][stage][0]["new_field"] = 1

    assert from_json(json.dumps(record)) == parse_definition(FULL)


def test_a_definition_can_be_pickled_and_cannot_be_changed() -> None:
    job = parse_definition(FULL)

    assert pickle.loads(pickle.dumps(job)) == job
    with pytest.raises(ValueError, match="frozen"):
        job.priority = 1


# -- digest -------------------------------------------------------------------------------------------------


def test_the_digest_ignores_key_order_written_defaults_and_the_idempotency_key() -> None:
    digest = parse_definition(FULL).digest()

    assert parse_definition(dict(reversed(FULL.items()))).digest() == digest
    assert parse_definition(FULL | {"idempotency_key": "other"}).digest() == digest
    assert parse_definition(FULL | {"environment": {"A": "", "TOKEN": "hunter2-canary"}}).digest() == digest
    assert parse_definition(MINIMAL | {"priority": 5, "timeout": None}).digest() == parse_definition(MINIMAL).digest()


@pytest.mark.parametrize(
    "change", [{"command": "x"}, {"arguments": ["b", "a"]}, {"environment": {}}, {"priority": 1}, {"tags": {}}]
)
def test_the_digest_tells_other_definitions_apart(change: dict[str, Any]) -> None:
    assert parse_definition(FULL | change).digest() != parse_definition(FULL).digest()


def test_the_digest_stays_the_same_from_release_to_release() -> None:
    # It is kept in Redis for as long as the idempotency key is.
    assert parse_definition(MINIMAL).digest() == "087527e80acf6a843e7dbb81623e516c209c9f16d9ae813165613ea2f8530108"


# -- schema -------------------------------------------------------------------------------------------------


def test_the_schema_names_every_field_and_both_forms_of_storage() -> None:
    schema = json_schema()

    assert set(schema["properties"]) == set(JobDefinition.model_fields)
    assert schema["additionalProperties"] is False
    assert [form["required"] for form in schema["oneOf"]] == [["sync"], list(SIX)]
    assert schema["$defs"]["DownloadBlock"]["properties"]["direction"]["const"] == "download"
    checkpoint = schema["$defs"]["CheckpointBlock"]["properties"]
    assert checkpoint["plain"] == {"enum": ["interval", "end", "never"], **checkpoint["plain"]}
    assert re.search(checkpoint["commit"]["pattern"], "marker:a/*")
    assert not re.search(checkpoint["commit"]["pattern"], "always")
    assert set(schema["$defs"]["UploadBlock"]["properties"]) == set(SyncBlock.model_fields)
    assert all("description" in field for field in schema["properties"].values())
    json.dumps(schema)


# -- logs -----------------------------------------------------------------------------------------------------------


def test_logs_go_to_a_bucket_and_a_prefix_which_come_together() -> None:
    base = {"command": "x", "container_group_id": "g", "sync": {}}
    definition = parse_definition({**base, "log_bucket": "runs", "log_prefix": "logs"})
    assert (definition.log_bucket, definition.log_prefix) == ("runs", "logs/")
    assert from_json(definition.to_json()) == definition
    for given, missing in (("log_bucket", "log_prefix"), ("log_prefix", "log_bucket")):
        with pytest.raises(DefinitionError) as caught:
            parse_definition({**base, given: "logs"})
        assert caught.value.problems == [
            (missing, "nothing", f"is required: `{given}` is given, and both come together")
        ]


@pytest.mark.parametrize(
    ("log_prefix", "block"),
    [
        ("state", "sync.during[0]"),
        ("state/logs", "sync.during[0]"),
        ("state.kelpie/logs", "sync.during[0]"),
        ("in/logs", "sync.before[0]"),
        ("out.kelpie/logs", "sync.after[0]"),
    ],
)
def test_logs_that_would_be_taken_for_files_of_the_job_are_refused(log_prefix: str, block: str) -> None:
    def given(prefix: str, direction: str) -> dict[str, str]:
        return {"bucket": "runs", "prefix": prefix, "local_path": prefix, "direction": direction}

    sync = {
        "before": [given("in", "download")],
        "during": [given("state", "upload")],
        "after": [given("out", "upload")],
    }
    base = {"command": "x", "container_group_id": "g", "sync": sync, "log_bucket": "runs"}
    with pytest.raises(DefinitionError) as caught:
        parse_definition({**base, "log_prefix": log_prefix})
    ((field, _, rule),) = caught.value.problems
    assert field == "log_prefix"
    assert f"belongs to {block}" in rule
    for harmless in ("logs", "out/logs", "stat", "state-logs"):
        parse_definition({**base, "log_prefix": harmless})
    parse_definition({**base, "log_bucket": "another", "log_prefix": log_prefix})
