from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.backends.redis import RedisBackend

from kelpie_celery.backend import Backend, BookkeepingFailed
from kelpie_celery.celery import create_app
from kelpie_celery.errors import JobFailed, LedgerUnavailable
from kelpie_celery.settings import load_settings

JOB = SimpleNamespace(task="kelpie.run_job")
PLAIN = SimpleNamespace(task="plain")
PASSWORD = "s3cr3t-password"


@pytest.fixture
def app() -> Any:
    return create_app(load_settings({"KELPIE_REDIS_URL": f"redis://user:{PASSWORD}@127.0.0.1:1/3"}))


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What Celery's own backend was asked to do."""
    calls: list[tuple[str, str]] = []
    for name in ("mark_as_failure", "chord_error_from_stack"):
        monkeypatch.setattr(RedisBackend, name, lambda self, what, *_, n=name, **__: calls.append((n, what)))
    return calls


def test_the_app_uses_it_with_the_urls_database(app: Any) -> None:
    assert isinstance(app.backend, Backend)
    connection = vars(app.backend)["connparams"]
    assert (connection["db"], connection["password"]) == (3, PASSWORD)


def test_a_failure_that_the_ledger_knows_of_is_stored(app: Any, stored: list[Any]) -> None:
    app.backend.mark_as_failure("id", JobFailed("id", "exit_code", "exit 1"), request=JOB)
    assert stored == [("mark_as_failure", "id")]


@pytest.mark.parametrize("error", [ConnectionError("away"), TypeError("ours"), LedgerUnavailable("away")])
def test_an_error_of_the_bookkeeping_is_no_failure_of_the_job(app: Any, stored: list[Any], error: Exception) -> None:
    with pytest.raises(BookkeepingFailed):
        app.backend.mark_as_failure("id", error, request=JOB)
    assert stored == []


@pytest.mark.parametrize("request_", [PLAIN, None])
def test_other_tasks_fail_as_they_do_in_celery(app: Any, stored: list[Any], request_: Any) -> None:
    app.backend.mark_as_failure("id", ValueError("theirs"), request=request_)
    assert stored == [("mark_as_failure", "id")]


def test_a_chord_is_not_given_up_because_redis_is_away(app: Any, stored: list[Any]) -> None:
    def publish_or_give_up() -> None:
        try:
            raise LedgerUnavailable("away")  # noqa: TRY301 - Celery's code around it, in short
        except LedgerUnavailable as e:
            app.backend.chord_error_from_stack("body", e)

    with pytest.raises(LedgerUnavailable):
        publish_or_give_up()
    assert stored == []


def test_a_chord_whose_part_failed_is_given_up(app: Any, stored: list[Any]) -> None:
    def join() -> None:
        raise JobFailed("id")

    try:
        join()
    except JobFailed as e:
        app.backend.chord_error_from_stack("body", e)
    assert stored == [("chord_error_from_stack", "body")]


def test_a_chord_whose_worker_died_waits_for_a_short_claim_only(app: Any) -> None:
    assert app.backend._chord_publish_claim_expires(6, SimpleNamespace(options={})) == 6


def test_what_a_worker_tells_of_its_configuration_holds_no_password(app: Any) -> None:
    assert PASSWORD not in str(app.conf.table(with_defaults=True, censored=True))
    assert PASSWORD not in app.backend.as_uri()


@pytest.mark.parametrize(("given", "broker"), [
    ("redis://127.0.0.1:1/3", "redis://127.0.0.1:1/3"),
    ("rediss://h:1/0?ssl_cert_reqs=required", "rediss://h:1/0"),
    ("unix:///run/redis.sock?db=2", "redis+socket:///run/redis.sock?virtual_host=2"),
])  # fmt: skip
def test_every_kind_of_url_reaches_broker_and_backend(given: str, broker: str) -> None:
    app = create_app(load_settings({"KELPIE_REDIS_URL": given}))
    assert app.conf.broker_url == broker
    backend: Any = app.backend
    connection, scheme = backend.connparams, given.partition(":")[0]
    assert int(connection["db"]) == {"redis": 3, "rediss": 0, "unix": 2}[scheme]
    assert connection.get("path") == ("/run/redis.sock" if given.startswith("unix") else None)


def test_a_second_beat_can_tell_that_the_first_one_is_dead() -> None:
    app = create_app(load_settings({"KELPIE_REDIS_URL": "redis://127.0.0.1:1/3"}))
    assert app.conf.redbeat_lock_timeout > 2 * app.conf.beat_max_loop_interval
