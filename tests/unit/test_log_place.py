"""Where the log of an attempt goes: the job's place, else its group's, and nowhere where it would be in the way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kelpie_celery.definition import JobDefinition, parse_definition
from kelpie_celery.errors import SettingsError
from kelpie_celery.job_logs import LogClient
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.log_place import LogPlace, log_place, why_not
from kelpie_celery.settings import Settings, load_settings


def job(**more: Any) -> JobDefinition:
    return parse_definition({"command": "x", "container_group_id": "g", "sync": {}, **more})


def settings(**env: str) -> Settings:
    return load_settings({"KELPIE_REDIS_URL": "redis://localhost", **env})


def test_the_jobs_own_place_counts_then_that_of_its_group() -> None:
    group = settings(KELPIE_LOG_BUCKET="group-logs")
    own = job(log_bucket="runs", log_prefix="a/b")
    assert log_place(own, group) == log_place(own, settings()) == LogPlace("runs", "a/b/")
    assert log_place(job(), group) == LogPlace("group-logs", "logs/")
    assert log_place(job(), settings(KELPIE_LOG_BUCKET="group-logs", KELPIE_LOG_PREFIX="x")) == LogPlace(
        "group-logs", "x/"
    )
    assert log_place(job(), settings()) is None


def test_a_key_is_of_one_attempt_and_one_nonce() -> None:
    place, token = LogPlace("runs", "logs/"), FencingToken("job-1", 3, "0123456789")
    assert place.key(token) == "logs/job-1/3-01234567.log"
    assert place.key(token).startswith(place.of_attempt("job-1", 3))


def test_a_prefix_needs_a_bucket() -> None:
    with pytest.raises(SettingsError, match="KELPIE_LOG_PREFIX needs KELPIE_LOG_BUCKET"):
        settings(KELPIE_LOG_PREFIX="logs")


def test_what_only_the_key_shows_to_be_in_the_way_is_not_stored() -> None:
    block = {"bucket": "runs", "prefix": "data/step-1", "local_path": "state", "direction": "upload"}
    one = job(sync={"during": [block]}, log_bucket="runs", log_prefix="data")
    assert why_not(one, "runs", "data/another/1-n.log") == ""
    assert "during[0] (data/step-1/)" in why_not(one, "runs", "data/step-1/1-n.log")


class Listed:
    """A storage that lists these keys."""

    def __init__(self, *keys: str) -> None:
        self._keys = keys

    def list(self, bucket: str, start: str) -> list[SimpleNamespace]:
        assert bucket == "runs"
        return [SimpleNamespace(key=k, modified=0.0, size_bytes=1) for k in self._keys if k.startswith(start)]


def test_a_log_of_another_job_whose_id_goes_on_with_a_slash_is_not_taken_for_this_ones() -> None:
    keys = ["logs/a/1-00000000.log", "logs/a/2-b/7-00000000.log", "logs/a/b/9-00000000.log"]
    client: Any = SimpleNamespace(_storage=Listed(*keys))
    for attempt in (None, 1):
        found = LogClient._listed(client, "a", LogPlace("runs", "logs/"), attempt)
        assert found is not None
        assert (found.attempt, found.key) == (1, keys[0])
    assert LogClient._listed(client, "a", LogPlace("runs", "logs/"), 2) is None
