from __future__ import annotations

import json
from typing import Any

import pytest
from celery import chain, chord, group

from kelpie_celery.canvas import Detacher
from kelpie_celery.celery import create_app
from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import DefinitionError, JobExists
from kelpie_celery.settings import load_settings

SECRET = "s3cr3t-value"


class Drafts:
    """The ledger, as far as drafts go."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.workflows: set[str] = set()
        self.taken = False

    def draft(self, job_id: str, group: str, definition: str, workflow: str) -> bool:
        self.kept[job_id] = definition
        self.workflows.add(workflow)
        return not self.taken

    def group_of(self, job_id: str) -> str | None:
        return "g" if job_id in self.kept else None


@pytest.fixture(scope="module")
def job() -> Any:
    app = create_app(load_settings({"KELPIE_REDIS_URL": "redis://127.0.0.1:1/0"}))

    @app.task(name="plain")
    def plain() -> None:
        """An ordinary task."""

    return app.tasks["kelpie.run_job"]


@pytest.fixture
def drafts() -> Drafts:
    return Drafts()


def definition(**fields: Any) -> dict[str, Any]:
    base = {"command": "train", "container_group_id": "g", "sync": {}, "environment": {"TOKEN": SECRET}}
    return {**base, **fields}


def detacher(drafts: Drafts) -> Detacher:
    return Detacher(drafts, "w1")  # type: ignore[arg-type]  # a double


def test_a_job_becomes_its_id_and_its_definition_a_draft(job: Any, drafts: Drafts) -> None:
    original = job.s(definition())
    detached = detacher(drafts).signature(original)
    job_id = detached["options"]["task_id"]
    assert detached["args"] == [job_id]
    assert json.loads(drafts.kept[job_id])["environment"] == {"TOKEN": SECRET}
    assert drafts.workflows == {"w1"}
    assert original.args == (definition(),), "the caller's signature stays as it was"
    assert "task_id" not in original.options


def test_results_that_are_known_already_stay_in_front(job: Any, drafts: Drafts) -> None:
    detached = detacher(drafts).signature(job.s(7, definition()))
    assert detached["args"] == [7, detached["options"]["task_id"]]


def test_an_id_that_celery_froze_is_kept_and_a_detached_job_stays_as_it_is(job: Any, drafts: Drafts) -> None:
    signature = job.s(definition())
    frozen = signature.freeze().id
    once = detacher(drafts).signature(signature)
    kept = dict(drafts.kept)
    again = Detacher(drafts, "w2")  # type: ignore[arg-type]
    twice = again.signature(once)
    assert twice["options"]["task_id"] == frozen
    assert twice["args"] == [frozen]
    assert drafts.kept == kept
    assert again.drafts == [f"kelpie:g:g:job:{frozen}"], "it is still held by what refers to it"


def test_ordinary_tasks_get_an_id_that_a_second_publish_has_too(job: Any, drafts: Drafts) -> None:
    detached = detacher(drafts).signature(job.app.tasks["plain"].s())
    assert detached["options"]["task_id"]


def test_nothing_of_a_definition_is_left_anywhere_in_a_nested_workflow(job: Any, drafts: Drafts) -> None:
    def new() -> Any:
        return job.s(definition())

    linked = new()
    linked.link(new())
    linked.link_error(new())
    inner = chord([new(), chain(new(), group(new(), new()))], new())
    canvas = chain(linked, inner, group(new(), chain(new(), new())), new())
    d = detacher(drafts)
    options = d.options({"link": new(), "link_error": [new()], "chain": [canvas], "chord": new(), "shadow": "x"})
    text = json.dumps(options)
    assert SECRET not in text
    assert '"command"' not in text
    assert options["shadow"] == "x"
    assert len(drafts.kept) == 15
    assert len(set(d.drafts)) == 15


def test_a_fault_in_any_step_is_refused_with_its_field(job: Any, drafts: Drafts) -> None:
    canvas = chain(job.s(definition()), job.s(definition(command="")))
    with pytest.raises(DefinitionError, match="command"):
        detacher(drafts).options({"chain": [canvas]})


def test_a_step_of_another_workflow_is_refused(job: Any, drafts: Drafts) -> None:
    drafts.taken = True
    with pytest.raises(JobExists, match="clone"):
        detacher(drafts).signature(job.s(definition()))


def test_an_idempotency_key_on_a_later_step_is_refused(job: Any, drafts: Drafts) -> None:
    with pytest.raises(DefinitionError, match="idempotency_key"):
        detacher(drafts).signature(job.s(definition(idempotency_key="once")))


def test_a_validated_definition_is_taken_as_well(job: Any, drafts: Drafts) -> None:
    detached = detacher(drafts).signature(job.s(parse_definition(definition())))
    assert detached["args"] == [detached["options"]["task_id"]]
