from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery.events.state import State

from kelpie_celery.flower_command import _drop_late_starts, refusal


def options(**given: Any) -> Any:
    return SimpleNamespace(**({"basic_auth": None, "auth": "", "address": "127.0.0.1", "unix_socket": ""} | given))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"address": "localhost"},
        {"address": "::1"},
        {"address": "", "unix_socket": "/run/flower"},
        {"address": "0.0.0.0", "basic_auth": ["user:password"]},
        {"address": "", "basic_auth": ["user:pass:word", "other:password"]},
        {"address": "10.0.0.7", "auth": "me@example.com"},
    ],
)
def test_flower_starts_where_only_this_machine_or_who_is_known_can_reach_it(given: dict[str, Any]) -> None:
    assert refusal(options(**given), {}) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"address": ""}, "on every address"),
        ({"address": "0.0.0.0"}, "on 0.0.0.0"),
        ({"address": "::"}, "on ::"),
        ({"address": "flower.example.com", "basic_auth": []}, "on flower.example.com"),
        ({"basic_auth": [""]}, "USER:PASSWORD"),
        ({"basic_auth": ["user"]}, "USER:PASSWORD"),
        ({"basic_auth": ["user:password", "user:"]}, "USER:PASSWORD"),
        ({"basic_auth": [":password"], "address": "0.0.0.0"}, "USER:PASSWORD"),
        # Flower cannot compare it, and would answer nobody.
        ({"basic_auth": ["user:pässword"], "address": "0.0.0.0"}, "ASCII"),
    ],
)
def test_flower_is_refused_where_strangers_could_come_in(given: dict[str, Any], says: str) -> None:
    why_not = refusal(options(**given), {})
    assert why_not is not None
    assert says in why_not
    assert "user:password" not in why_not


@pytest.mark.parametrize(
    ("value", "refused"), [("true", True), ("1", True), ("x", True), ("", False), ("false", False)]
)
def test_an_open_api_is_refused_unless_a_password_closes_it(value: str, refused: bool) -> None:
    environ = {"FLOWER_UNAUTHENTICATED_API": value}
    assert bool(refusal(options(), environ)) is refused
    assert refusal(options(basic_auth=["user:password"]), environ) is None


def started(worker: str, attempt: int, at: float, words: str) -> dict[str, Any]:
    told = {"started": at, "retries": attempt - 1, "result": words, "clock": 9}
    return {"type": "task-started", "uuid": "job", "hostname": worker, "timestamp": at, "local_received": at, **told}


def test_a_late_start_changes_nothing_of_a_later_attempt_or_of_the_end() -> None:
    # As Flower's own state does, less its metrics, of which a process has one set.
    state: Any = State()
    _drop_late_starts(SimpleNamespace(events=SimpleNamespace(state=state)))

    def shown() -> tuple[str, str, str]:
        task = state.tasks["job"]
        return task.state, task.result, task.worker.hostname

    state.event(started("a", 1, 100.0, "attempt 1"))
    state.event(started("a", 1, 100.0, "attempt 1, executing"))
    state.event(started("b", 2, 200.0, "attempt 2"))
    assert shown() == ("STARTED", "attempt 2", "b")
    state.event(started("a", 1, 100.0, "attempt 1, executing: 42 %"))
    assert shown() == ("STARTED", "attempt 2", "b")
    end = {"type": "task-succeeded", "result": "done", "runtime": 1.0}
    state.event(started("b", 2, 200.0, "") | end)
    for late in (started("a", 1, 100.0, "attempt 1, executing: 43 %"), started("b", 2, 200.0, "attempt 2, executing")):
        state.event(late)
        assert shown() == ("SUCCESS", "done", "b")


def test_a_ledger_that_counts_attempts_anew_is_believed() -> None:
    state: Any = State()
    _drop_late_starts(SimpleNamespace(events=SimpleNamespace(state=state)))
    state.event(started("a", 3, 100.0, "attempt 3"))
    state.event(started("b", 1, 200.0, "attempt 1"))
    assert state.tasks["job"].result == "attempt 1"
