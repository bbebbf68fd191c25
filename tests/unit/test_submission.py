from __future__ import annotations

import json
from typing import Any

import pytest

from kelpie_celery.celery import create_app
from kelpie_celery.definition import JobDefinition, from_json, parse_definition
from kelpie_celery.messages import Envelope, decode
from kelpie_celery.settings import load_settings
from kelpie_celery.submission import description, job_name, new_job, plain_job

SECRET = "s3cr3t-value"
ENVELOPE = Envelope([["id"], {}, {}], {"id": "id"}, "kelpie.g", {})


def definition(**fields: Any) -> JobDefinition:
    base = {"command": "/opt/bin/train", "arguments": ["--key", SECRET], "container_group_id": "g", "sync": {}}
    return parse_definition({**base, "environment": {"TOKEN": SECRET}, **fields})


@pytest.mark.parametrize(("tags", "name"), [({}, "train"), ({"name": "run 7"}, "run 7"), ({"other": "x"}, "train")])
def test_a_job_is_called_by_its_tag_or_its_program(tags: dict[str, str], name: str) -> None:
    assert job_name(definition(tags=tags)) == name


def test_what_flower_shows_holds_neither_arguments_nor_environment() -> None:
    assert description(definition()) == "command 'train', group 'g'"
    assert description(definition(tags={"name": "run 7"})) == "name 'run 7', command 'train', group 'g'"
    for command in (f"train --key {SECRET}", f"curl https://user:{SECRET}@host/x?k={SECRET}"):
        assert SECRET not in description(definition(command=command))


def test_a_record_holds_what_the_definition_says() -> None:
    told = definition(priority=2, heartbeat_interval=7, max_failures=9, idempotency_key="k")
    job = new_job("id", told, ENVELOPE, parents=[{"a": "ä"}], delay_s=1.5, drafts=["d"])
    assert (job.group, job.priority, job.heartbeat_s, job.max_failures) == ("g", 2, 7, 9)
    assert (job.idempotency_key, job.digest, job.delay_s, job.drafts) == ("k", told.digest(), 1.5, ("d",))
    assert json.loads(job.parents) == [{"a": "ä"}]
    assert from_json(job.definition) == told
    assert decode(job.message)[1]["priority"] == 2


def test_the_definition_of_a_draft_is_not_written_again() -> None:
    assert new_job("id", definition(), ENVELOPE, stored=True).definition == ""


@pytest.mark.parametrize(("asked", "level"), [(None, 5), (0, 0), (-3, 0), (12, 9), (7, 7)])
def test_a_priority_of_the_call_overrides_the_definitions_within_bounds(asked: int | None, level: int) -> None:
    job = new_job("id", definition(), ENVELOPE, priority=asked)
    assert job.priority == level
    assert decode(job.message)[1]["priority"] == level


def test_each_submission_can_be_told_from_another_one() -> None:
    first, second = (new_job("id", definition(), ENVELOPE) for _ in range(2))
    assert first.submission != second.submission


def test_a_plain_job_looks_to_celery_like_one_from_delay_and_tells_nothing_secret() -> None:
    app = create_app(load_settings({"KELPIE_REDIS_URL": "redis://127.0.0.1:1/0"}))
    job = plain_job(app, definition())
    headers, properties, (args, kwargs, _) = decode(job.message)
    assert (headers["task"], headers["id"], headers["root_id"]) == ("kelpie.run_job", job.job_id, job.job_id)
    assert (args, kwargs) == ([job.job_id], {})
    assert properties["delivery_info"]["routing_key"] == "kelpie.g"
    assert SECRET not in job.message
