"""The client against a Redis in memory that runs the ledger's own Lua; time stands still unless a test moves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest
from redis import exceptions as redis_errors

import kelpie_celery
from kelpie_celery import app as app_module
from kelpie_celery import batches
from kelpie_celery.client import Kelpie
from kelpie_celery.clock import ManualClock
from kelpie_celery.definition import parse_definition
from kelpie_celery.errors import (
    DefinitionError,
    IdempotencyConflict,
    JobCanceled,
    JobFailed,
    JobNotFound,
    LedgerUnavailable,
    SettingsError,
    WaitTimeout,
)
from kelpie_celery.ledger.types import Ending, Granted
from kelpie_celery.lifecycle import Outcome, Phase, Reason, Status

URL = "rediss://:the-password@redis.example:6379/0"


def definition(**more: Any) -> dict[str, Any]:
    return {"command": "true", "container_group_id": "g", "sync": {}, **more}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def kelpie(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> Iterator[Kelpie]:
    server = fakeredis.FakeServer()
    monkeypatch.setattr(
        app_module, "connect", lambda *_: fakeredis.FakeRedis(server=server, decode_responses=True, version=(7,))
    )
    with Kelpie(URL, clock=clock) as client:
        yield client


def claim(kelpie: Kelpie, job_id: str, machine: str = "m") -> Granted:
    granted = kelpie.app.ledger.claim(job_id, f"nonce-{machine}", machine, "worker@m", None, may_run=True)
    assert isinstance(granted, Granted)
    return granted


def end(kelpie: Kelpie, job_id: str, outcome: Outcome = Outcome.COMPLETED, *, final: bool = True) -> None:
    reason = Reason.DONE if outcome is Outcome.COMPLETED else Reason.EXIT_CODE
    ending = Ending(outcome, reason, "exit code 1", final=final)
    kelpie.app.ledger.end_attempt(claim(kelpie, job_id).token, ending)


class Flaky:
    """Stands for a method of the ledger that fails a number of times, before or after it has had its effect."""

    def __init__(self, method: Callable[..., Any], errors: list[Exception], *, after: bool = False) -> None:
        self._method, self._errors, self._after = method, errors, after
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        error = self._errors.pop(0) if self._errors else None
        if error and not self._after:
            raise error
        answer = self._method(*args, **kwargs)
        if error:
            raise error
        return answer


def away() -> Exception:
    return redis_errors.ConnectionError("Error 111 connecting to redis.example:6379. Connection refused.")


# -- submit ------------------------------------------------------------------------------------------------------


def test_a_submitted_job_is_pending_and_carries_its_definition(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition(arguments=["a"], tags={"name": "first"}))
    record = job.get()
    assert (job.created, job.status, record.name) == (True, Status.PENDING, "first")
    assert record.definition["arguments"] == ["a"]
    assert str(job) == job.id


@pytest.mark.parametrize("form", [dict, json.dumps, parse_definition], ids=["mapping", "json", "model"])
def test_a_definition_is_taken_in_every_form(kelpie: Kelpie, form: Callable[[Any], Any]) -> None:
    assert kelpie.submit(form(definition())).created


def test_the_same_idempotency_key_gives_the_same_job(kelpie: Kelpie) -> None:
    first = kelpie.submit(definition(idempotency_key="k"))
    second = kelpie.submit(definition(idempotency_key="k"))
    assert second.id == first.id
    assert not second.created


def test_an_idempotency_key_of_another_definition_names_its_holder(kelpie: Kelpie) -> None:
    first = kelpie.submit(definition(idempotency_key="k"))
    with pytest.raises(IdempotencyConflict, match=first.id):
        kelpie.submit(definition(idempotency_key="k", arguments=["other"]))


def test_nothing_is_submitted_when_one_definition_of_many_is_wrong(kelpie: Kelpie) -> None:
    with pytest.raises(DefinitionError) as caught:
        kelpie.submit_many([definition(), definition(comand="x"), {"command": 3}])
    fields = [field for field, _, _ in caught.value.problems]
    assert "[1].comand" in fields
    assert "[2].command" in fields
    assert kelpie.list() == []


def test_two_definitions_of_one_batch_with_one_key_are_told_before_anything_is_submitted(kelpie: Kelpie) -> None:
    with pytest.raises(DefinitionError, match=r"\[1\].idempotency_key: must be another one: \[0\] has the same key"):
        kelpie.submit_many([definition(idempotency_key="k"), definition(idempotency_key="k", arguments=["b"])])
    assert kelpie.list() == []


def test_a_long_list_of_faults_is_cut_short(kelpie: Kelpie) -> None:
    with pytest.raises(DefinitionError) as caught:
        kelpie.submit_many([{}] * 500)
    assert len(caught.value.problems) == batches.MAX_PROBLEMS + 1


@pytest.mark.parametrize("one", [definition(), "{}", parse_definition(definition())], ids=["mapping", "json", "model"])
def test_one_definition_in_place_of_a_list_is_a_type_error(kelpie: Kelpie, one: Any) -> None:
    with pytest.raises(TypeError, match="list of definitions"):
        kelpie.submit_many(one)


def test_many_jobs_keep_the_order_of_their_definitions_over_batches(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", 4)
    told: list[tuple[int, int]] = []
    jobs = kelpie.submit_many(
        (definition(tags={"name": str(n)}) for n in range(10)), lambda done, total: told.append((done, total))
    )
    assert [record.name for record in kelpie.get_many(jobs)] == [str(n) for n in range(10)]
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_no_definitions_are_no_jobs(kelpie: Kelpie) -> None:
    assert kelpie.submit_many([]) == []


def test_a_batch_whose_answer_was_lost_is_sent_again_and_creates_nothing_twice(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky(kelpie.app.ledger.submit_many, [away()], after=True)
    monkeypatch.setattr(kelpie.app.ledger, "submit_many", flaky)
    jobs = kelpie.submit_many([definition()] * 3)
    assert flaky.calls == 2
    assert [job.created for job in jobs] == [True] * 3
    assert kelpie.counts("g").pending == 3


def test_a_submit_whose_answer_was_lost_is_sent_again_and_creates_nothing_twice(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kelpie.app.ledger, "submit", Flaky(kelpie.app.ledger.submit, [away(), away()], after=True))
    assert kelpie.submit(definition()).created
    assert kelpie.counts("g").pending == 1


def test_an_outage_between_batches_tells_what_was_submitted_and_what_is_not_known(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", 2)
    real, calls = kelpie.app.ledger.submit_many, []

    def second_fails(jobs: Any, batch: int) -> Any:
        calls.append([job.job_id for job in jobs])
        if len(calls) > 1:
            raise away()
        return real(jobs, batch)

    monkeypatch.setattr(kelpie.app.ledger, "submit_many", second_fails)
    with pytest.raises(batches.NotAllSubmitted, match="2 of 5 jobs were submitted; of the next 2 it is not known") as e:
        kelpie.submit_many([definition()] * 5)
    assert [job is not None for job in e.value.jobs] == [True, True, False, False, False]
    assert e.value.uncertain == calls[1]
    assert isinstance(e.value.__cause__, LedgerUnavailable)


def test_keys_that_are_taken_are_told_and_the_other_jobs_are_submitted(kelpie: Kelpie) -> None:
    holder = kelpie.submit(definition(idempotency_key="k"))
    with pytest.raises(batches.NotAllSubmitted, match=holder.id) as caught:
        kelpie.submit_many([definition(), definition(idempotency_key="k", arguments=["other"])])
    assert caught.value.conflicts == {1: holder.id}
    assert caught.value.jobs[0] is not None
    assert caught.value.jobs[1] is None


# -- Redis away --------------------------------------------------------------------------------------------------


def test_an_unreachable_redis_is_named_without_its_password_and_nothing_was_submitted(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    began = clock.boottime()
    monkeypatch.setattr(kelpie.app.ledger, "server_time", Flaky(float, [away() for _ in range(100)]))
    with pytest.raises(LedgerUnavailable) as caught:
        kelpie.submit(definition())
    text = str(caught.value)
    assert "rediss://redis.example:6379/0 cannot be reached" in text
    assert text.endswith("nothing was submitted")
    assert "the-password" not in text
    assert 3 < clock.boottime() - began <= 5


def test_a_job_whose_submission_was_never_answered_is_named(kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kelpie.app.ledger, "submit", Flaky(kelpie.app.ledger.submit, [away() for _ in range(99)]))
    with pytest.raises(LedgerUnavailable, match=r"whether job \S{36} was taken is not known"):
        kelpie.submit(definition())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (redis_errors.AuthenticationError("invalid username-password pair"), "refuses the user or the password"),
        (redis_errors.NoPermissionError("no permissions"), "does not allow it to this user"),
        (redis_errors.OutOfMemoryError("command not allowed"), "answers with an error"),
    ],
)
def test_what_waiting_cannot_mend_is_told_at_once(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    flaky = Flaky(kelpie.app.ledger.counts, [error])
    monkeypatch.setattr(kelpie.app.ledger, "counts", flaky)
    with pytest.raises(LedgerUnavailable, match=words):
        kelpie.counts("g")
    assert flaky.calls == 1


def test_a_redis_that_is_loading_is_waited_for(kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch) -> None:
    loading: list[Exception] = [redis_errors.BusyLoadingError("loading")] * 3
    monkeypatch.setattr(kelpie.app.ledger, "groups", Flaky(kelpie.app.ledger.groups, loading))
    assert kelpie.groups() == []


def test_settings_and_url_together_are_a_type_error(kelpie: Kelpie) -> None:
    with pytest.raises(TypeError, match="not both"):
        Kelpie(URL, settings=kelpie.settings)


def test_no_redis_at_all_is_a_settings_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KELPIE_REDIS_URL", raising=False)
    with pytest.raises(SettingsError, match="KELPIE_REDIS_URL"):
        Kelpie()


@pytest.mark.parametrize("option", ["socket_timeout=soon", "colour=red"])
def test_a_wrong_option_in_the_url_is_a_settings_error(option: str) -> None:
    with pytest.raises(SettingsError, match="after the '\\?'"):
        Kelpie(f"redis://127.0.0.1:1/0?{option}")


# -- look --------------------------------------------------------------------------------------------------------


def test_an_unknown_id_is_not_found(kelpie: Kelpie) -> None:
    for call in (kelpie.get, kelpie.cancel, kelpie.wait):
        with pytest.raises(JobNotFound, match="nonesuch"):
            call("nonesuch")


def test_an_id_that_utf8_cannot_hold_is_not_found(kelpie: Kelpie) -> None:
    with pytest.raises(JobNotFound):
        kelpie.get("\udcff")


def test_jobs_are_listed_the_newest_first_over_all_groups(kelpie: Kelpie) -> None:
    jobs = [kelpie.submit(definition(container_group_id=group)) for group in ("a", "b", "a", "b")]
    ids = [job.id for job in jobs]
    assert [record.id for record in kelpie.list()] == ids[::-1]
    assert [record.id for record in kelpie.list(newest_first=False)] == ids
    assert [record.id for record in kelpie.list(limit=3)] == ids[:0:-1]
    assert [record.id for record in kelpie.list("a")] == [ids[2], ids[0]]
    assert kelpie.list("none") == []
    assert kelpie.list(limit=0) == []


def test_pending_jobs_are_listed_by_age_whatever_their_priority(kelpie: Kelpie) -> None:
    ids = [kelpie.submit(definition(priority=priority)).id for priority in (9, 0, 5, 0)]
    assert [record.id for record in kelpie.list(status="pending")] == ids[::-1]
    assert [record.id for record in kelpie.list(status="pending", newest_first=False, limit=2)] == ids[:2]


def test_jobs_are_listed_by_status(kelpie: Kelpie) -> None:
    running, completed, failed, canceled, pending, retried = (kelpie.submit(definition()) for _ in range(6))
    claim(kelpie, running.id)
    end(kelpie, completed.id)
    end(kelpie, failed.id, Outcome.FAILURE)
    canceled.cancel()
    kelpie.app.ledger.end_attempt(
        claim(kelpie, retried.id, "other").token, Ending(Outcome.FAILURE, Reason.EXIT_CODE, delay_s=60)
    )
    expected = {
        "running": [running.id],
        "completed": [completed.id],
        "failed": [failed.id],
        "canceled": [canceled.id],
        "pending": [retried.id, pending.id],
    }
    for status, ids in expected.items():
        assert [record.id for record in kelpie.list("g", status)] == ids, status
    assert kelpie.list(status="pending")[0].not_before is not None


def test_the_few_failed_jobs_are_found_behind_many_completed_ones(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_celery.bulk.PAGE", 2)
    jobs = kelpie.submit_many([definition()] * 9)
    for n, job in enumerate(jobs):
        end(kelpie, job.id, Outcome.FAILURE if n in (0, 4) else Outcome.COMPLETED)
    assert [record.id for record in kelpie.list(status="failed")] == [jobs[4].id, jobs[0].id]


def test_a_misspelt_status_is_told_with_the_one_that_was_meant(kelpie: Kelpie) -> None:
    with pytest.raises(ValueError, match="did you mean 'completed'"):
        kelpie.list(status="complete")


# -- wait --------------------------------------------------------------------------------------------------------


class ActingClock(ManualClock):
    """Does something at each sleep: what happens elsewhere while a client waits."""

    def __init__(self, *acts: Callable[[], Any]) -> None:
        super().__init__()
        self._acts = list(acts)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self._acts:
            self._acts.pop(0)()


def waiting(kelpie: Kelpie, *acts: Callable[[], Any]) -> Kelpie:
    """The same client, whose pauses do ``acts`` one by one."""
    return Kelpie(settings=kelpie.settings, clock=ActingClock(*acts))


def test_wait_returns_the_record_of_one_job_with_its_attempts(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition())
    record = waiting(kelpie, lambda: None, lambda: end(kelpie, job.id)).wait(job.id)
    assert record.status is Status.COMPLETED
    assert len(record.attempts) == 1


def test_wait_returns_the_records_of_several_jobs_in_the_order_asked_for(kelpie: Kelpie) -> None:
    jobs = [kelpie.submit(definition()) for _ in range(3)]
    acts = [lambda job=job: end(kelpie, job.id) for job in reversed(jobs)]
    records = waiting(kelpie, *acts).wait([*jobs, jobs[0]])
    assert [record.id for record in records] == [jobs[0].id, jobs[1].id, jobs[2].id, jobs[0].id]


def test_waiting_for_nothing_is_over_at_once(kelpie: Kelpie) -> None:
    assert kelpie.wait([]) == []


def test_a_time_out_names_the_jobs_that_go_on(kelpie: Kelpie, clock: ManualClock) -> None:
    done, open_ = kelpie.submit(definition()), kelpie.submit(definition())
    end(kelpie, done.id)
    began = clock.boottime()
    with pytest.raises(WaitTimeout, match=rf"1 job has not ended within 30 s: {open_.id} \(pending\)"):
        kelpie.wait([done, open_], timeout=30)
    assert clock.boottime() - began == pytest.approx(30)


def test_a_time_out_of_nothing_looks_once(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition())
    with pytest.raises(WaitTimeout):
        job.wait(0)
    end(kelpie, job.id)
    assert job.wait(0).status is Status.COMPLETED


def test_a_failed_job_raises_only_on_request(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition())
    end(kelpie, job.id, Outcome.FAILURE)
    assert job.wait().status is Status.FAILED
    with pytest.raises(JobFailed, match="exit_code") as caught:
        job.wait(raise_on_failure=True)
    assert caught.value.job_id == job.id


def test_a_canceled_job_raises_only_on_request(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition())
    job.cancel()
    assert job.wait().status is Status.CANCELED
    with pytest.raises(JobCanceled, match=job.id):
        kelpie.wait([job], raise_on_failure=True)


def test_an_outage_is_sat_out(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = kelpie.submit(definition())
    client = waiting(kelpie, *[lambda: None] * 50, lambda: end(kelpie, job.id))
    redis = client.app.ledger.redis
    real, asked = redis.pipeline, []

    def pipeline(*args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        if 2 <= len(asked) < 40:
            raise away()
        return real(*args, **kwargs)

    monkeypatch.setattr(redis, "pipeline", pipeline)
    with caplog.at_level("WARNING"):
        assert client.wait(job.id).status is Status.COMPLETED
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert actions == ["ledger_away", "ledger_back"]


def test_a_record_that_goes_while_it_is_waited_for_is_told(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition())
    with pytest.raises(JobNotFound, match="gone while it was waited for"):
        waiting(kelpie, kelpie.app.ledger.redis.flushdb).wait(job)


def test_the_pause_between_two_looks_grows_and_starts_anew_when_a_job_ends(kelpie: Kelpie) -> None:
    first, second = kelpie.submit(definition()), kelpie.submit(definition())
    slept: list[float] = []

    class Recording(ActingClock):
        def sleep(self, seconds: float) -> None:
            slept.append(seconds)
            super().sleep(seconds)

    acts = [*[lambda: None] * 29, lambda: end(kelpie, first.id), lambda: end(kelpie, second.id)]
    Kelpie(settings=kelpie.settings, clock=Recording(*acts)).wait([first, second])
    assert slept[0] == pytest.approx(0.1)
    assert slept[29] == pytest.approx(2.0)
    assert slept[30] == pytest.approx(0.1)


def test_each_look_tells_where_every_job_stands(kelpie: Kelpie) -> None:
    job = kelpie.submit(definition())
    tokens = []

    def run() -> None:
        tokens.append(claim(kelpie, job.id).token)
        kelpie.app.ledger.renew(tokens[0], Phase.EXECUTING, json.dumps({"progress": 0.5, "message": "half"}))

    seen: list[Any] = []
    client = waiting(kelpie, run, lambda: end_token(kelpie, tokens[0]))
    client.wait(job.id, on_look=lambda glances: seen.append(glances[0]))
    assert [glance.status for glance in seen] == [Status.PENDING, Status.RUNNING, Status.COMPLETED]
    assert (seen[1].phase, seen[1].progress, seen[1].message) == (Phase.EXECUTING, 0.5, "half")
    assert (seen[1].attempt, seen[1].machine_id) == (1, "m")


def end_token(kelpie: Kelpie, token: Any) -> None:
    kelpie.app.ledger.end_attempt(token, Ending(Outcome.COMPLETED, Reason.DONE))


@pytest.mark.parametrize("said", ["nonsense", "[]", '{"progress": "x", "message": 3}', '{"progress": true}'])
def test_whatever_a_worker_reports_cannot_end_the_wait(kelpie: Kelpie, said: str) -> None:
    job = kelpie.submit(definition())
    kelpie.app.ledger.renew(claim(kelpie, job.id).token, Phase.EXECUTING, said)
    seen: list[Any] = []
    with pytest.raises(WaitTimeout):
        kelpie.wait(job, 0, on_look=seen.extend)
    assert (seen[0].progress, seen[0].message) == (None, None)


# -- cancel and purge --------------------------------------------------------------------------------------------


def test_cancel_tells_what_became_of_the_job(kelpie: Kelpie) -> None:
    pending, running, done = (kelpie.submit(definition()) for _ in range(3))
    claim(kelpie, running.id)
    end(kelpie, done.id)
    assert [kelpie.cancel(job) for job in (pending, running, done)] == ["canceled", "canceling", "completed"]
    assert running.get().cancel_requested


def test_purge_cancels_what_is_pending_delayed_or_running_in_one_group_only(
    kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_celery.bulk.PAGE", 2)
    jobs = kelpie.submit_many([definition()] * 9)
    other = kelpie.submit(definition(container_group_id="other"))
    for job in jobs[:3]:
        claim(kelpie, job.id, job.id)
    token = claim(kelpie, jobs[3].id).token
    kelpie.app.ledger.end_attempt(token, Ending(Outcome.FAILURE, Reason.EXIT_CODE, delay_s=60))
    end(kelpie, jobs[4].id)
    told: list[Any] = []
    done = kelpie.purge("g", progress=told.append)
    assert (done.canceled, done.canceling) == (5, 3)
    assert told[-1] == done
    assert other.status is Status.PENDING
    assert jobs[4].status is Status.COMPLETED
    assert kelpie.purge("g").canceled == 0


@pytest.mark.parametrize(("status", "expected"), [("pending", (2, 0)), (Status.RUNNING, (0, 1))])
def test_purge_is_limited_to_a_status(kelpie: Kelpie, status: str, expected: tuple[int, int]) -> None:
    jobs = kelpie.submit_many([definition()] * 3)
    claim(kelpie, jobs[0].id)
    done = kelpie.purge("g", status)
    assert (done.canceled, done.canceling) == expected


def test_purge_passes_over_entries_without_a_record(kelpie: Kelpie, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_celery.bulk.PAGE", 2)
    jobs = kelpie.submit_many([definition()] * 5)
    for job in jobs[:3]:
        kelpie.app.ledger.redis.delete(f"kelpie:where:{job.id}")
    assert kelpie.purge("g").canceled == 2


def test_purge_of_ended_jobs_is_refused(kelpie: Kelpie) -> None:
    with pytest.raises(ValueError, match="these have ended"):
        kelpie.purge("g", "completed")


# -- the package -------------------------------------------------------------------------------------------------


def test_every_public_name_can_be_imported() -> None:
    for name in kelpie_celery.__all__:
        assert getattr(kelpie_celery, name) is not None
    assert set(kelpie_celery.__all__) <= set(dir(kelpie_celery))
    assert kelpie_celery.__all__ == sorted(kelpie_celery.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = kelpie_celery.nonesuch
