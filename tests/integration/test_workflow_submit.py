"""What a workflow puts on the broker when it is submitted; nothing is run."""

from __future__ import annotations

import base64
import datetime
import gc
import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain, chord, group

from kelpie_celery.app import KelpieApp
from kelpie_celery.celery import create_app
from kelpie_celery.errors import DefinitionError, JobExists, KelpieError
from kelpie_celery.settings import load_settings

SECRET = "s3cr3t-of-the-user"


@pytest.fixture
def app(redis_url: str) -> Iterator[KelpieApp]:
    made = create_app(load_settings({"KELPIE_REDIS_URL": redis_url}))
    yield made
    # Results that are collected after the server has gone would look for it for 20 s each.
    gc.collect()
    made.close()


def job(**fields: Any) -> dict[str, Any]:
    return {
        "command": "true",
        "container_group_id": "g",
        "sync": {},
        "environment": {"TOKEN": SECRET},
        "priority": 0,
        **fields,
    }


def messages(app: KelpieApp, queue: str = "kelpie.g") -> list[str]:
    found = []
    for raw in app.ledger.redis.lrange(queue, 0, -1):
        message = json.loads(raw)
        found.append(json.dumps(message["headers"]) + base64.b64decode(message["body"]).decode())
    return found


def test_parts_of_a_chord_that_are_chains_share_its_body(app: KelpieApp) -> None:
    run = app.tasks["kelpie.run_job"]
    chord([chain(run.s(job()), run.si(job())), chain(run.s(job()), run.si(job()))], run.s(job())).apply_async()
    assert len(messages(app)) == 2


def test_a_chain_beside_a_job_shares_the_body_too(app: KelpieApp) -> None:
    run = app.tasks["kelpie.run_job"]
    (group([chain(run.s(job()), run.si(job())), run.s(job())]) | run.s(job())).apply_async()
    assert len(messages(app)) == 2


def test_a_canvas_that_is_applied_twice_is_refused(app: KelpieApp) -> None:
    run = app.tasks["kelpie.run_job"]
    canvas = chain(run.s(job()), run.si(job()))
    canvas.clone().apply_async()
    canvas.clone().apply_async()
    canvas.apply_async()
    with pytest.raises(JobExists, match=r"\.clone\(\)"):
        canvas.apply_async()


@pytest.mark.parametrize("as_text", [False, True])
def test_no_definition_of_a_later_step_is_in_a_message(app: KelpieApp, as_text: bool) -> None:
    run = app.tasks["kelpie.run_job"]
    later: Any = json.dumps(job()) if as_text else job()
    chain(run.s(job()), run.si(later)).apply_async()
    run.s(job()).set(link=run.si(later)).apply_async()
    run.s(job()).on_error(run.si(later)).apply_async()
    chord([run.s(job()), run.s(job())], run.s(later)).apply_async()
    sent = messages(app)
    assert len(sent) == 5
    assert SECRET not in "".join(sent)


def test_a_bad_later_step_is_refused_at_submit(app: KelpieApp) -> None:
    run = app.tasks["kelpie.run_job"]
    with pytest.raises(DefinitionError, match="comand"):
        chain(run.s(job()), run.si(job()), run.si(job(comand="x"))).apply_async()
    assert messages(app) == []


def test_jobs_cannot_be_mapped_or_chunked(app: KelpieApp) -> None:
    run = app.tasks["kelpie.run_job"]
    for canvas in (run.map([job()]), run.starmap([(job(),)]), run.chunks([(job(),)], 1)):
        with pytest.raises(KelpieError, match="submit_many"):
            canvas.apply_async()


def test_an_eta_without_a_zone_is_one_of_the_apps_zone(app: KelpieApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    eta = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=100)
    result = app.tasks["kelpie.run_job"].apply_async((job(),), eta=eta)
    due = app.ledger.get(result.id).not_before
    assert due is not None
    assert due - app.ledger.server_time() == pytest.approx(100, abs=20)


def test_eager_mode_is_refused_with_a_reason(app: KelpieApp) -> None:
    app.conf.task_always_eager = True
    with pytest.raises(KelpieError, match="kelpie up"):
        app.tasks["kelpie.run_job"].delay(job())
