"""Records, tokens and answers as plain values."""

from __future__ import annotations

import json

import pytest

from kelpie_celery.ledger import keys
from kelpie_celery.ledger.records import AttemptRecord, parse_record
from kelpie_celery.ledger.scripts import text
from kelpie_celery.ledger.types import FencingToken, Granted, Timings, compact, encodable
from kelpie_celery.lifecycle import Phase, Status

PENDING = {"status": "pending", "definition": '{"command":"sim","environment":{"TOKEN":"hunter2"}}', "created": "5.5"}


def test_a_record_of_a_job_that_has_not_run_has_no_machine_and_no_times() -> None:
    record = parse_record("j1", "g", PENDING)
    assert (record.id, record.container_group_id, record.status, record.created) == ("j1", "g", Status.PENDING, 5.5)
    assert (record.started, record.ended, record.machine_id, record.phase, record.progress) == (None,) * 5
    assert (record.attempt, record.num_failures, record.attempts, record.cancel_requested) == (0, 0, [], False)


def test_a_record_never_shows_its_definition_in_its_repr() -> None:
    record = parse_record("j1", "g", PENDING)
    assert record.definition["environment"] == {"TOKEN": "hunter2"}
    assert "hunter2" not in repr(record)


def test_a_grant_never_shows_the_definition_in_its_repr() -> None:
    grant = Granted(FencingToken("j1", 1, "n"), 30, 0, PENDING["definition"], "[]", 0, 0, 0, "", 0)
    assert "hunter2" not in repr(grant)


@pytest.mark.parametrize(
    ("status", "phase", "shown"),
    [("running", "executing", Phase.EXECUTING), ("running", "", None), ("pending", "executing", None),
     ("completed", "uploading", None)],
)  # fmt: skip
def test_a_phase_is_shown_only_while_the_job_runs(status: str, phase: str, shown: Phase | None) -> None:
    assert parse_record("j1", "g", {"status": status, "phase": phase}).phase is shown


@pytest.mark.parametrize(("status", "shown"), [("running", True), ("pending", False), ("completed", False)])
def test_a_transfer_is_shown_only_while_the_job_runs(status: str, shown: bool) -> None:
    record = parse_record("j1", "g", {"status": status, "transfer": '{"stage":"restore","done_bytes":7,"newer":1}'})
    assert (record.transfer is not None) is shown
    if record.transfer:
        assert (record.transfer.stage, record.transfer.done_bytes, record.transfer.left_s) == ("restore", 7, None)


def test_empty_words_in_redis_are_nothing_in_a_record() -> None:
    record = parse_record("j1", "g", {"status": "completed", "reason": "", "message_text": "", "result": "null"})
    assert (record.reason, record.message, record.result) == (None, None, None)


def test_facts_that_a_newer_version_adds_to_an_attempt_are_kept() -> None:
    entry = json.dumps({"n": 2, "machine": "m", "started": 1.0, "nonce": "secret", "bytes_up": 7})
    [attempt] = parse_record("j1", "g", PENDING, [entry]).attempts
    assert attempt == AttemptRecord(n=2, machine="m", started=1.0, nonce="secret", bytes_up=7)
    assert "secret" not in repr(attempt)


def test_json_is_compact_and_keeps_what_is_not_ascii() -> None:
    assert compact({"a": [1, "ä"]}) == '{"a":[1,"ä"]}'


def test_words_that_utf8_cannot_hold_are_made_to_fit() -> None:
    assert encodable("caf\udce9") == "caf?"
    assert compact("caf\udce9") == '"caf?"'
    assert encodable("naïve 🦑") == "naïve 🦑"


@pytest.mark.parametrize("value", [b"x", "x"])
def test_a_reply_is_text_whatever_the_client_decodes(value: bytes | str) -> None:
    assert text(value) == "x"


def test_queues_are_named_after_groups_and_back() -> None:
    assert keys.group_of_queue(keys.queue_name("gpus")) == "gpus"
    assert keys.group_of_queue("celery") is None
    assert keys.group_of_queue(keys.CONTROL_QUEUE) is None
    assert keys.queue_list("gpus", 0) == "kelpie.gpus"
    assert keys.queue_list("gpus", 9) == "kelpie.gpus:9"


def test_the_timings_are_the_documented_ones() -> None:
    t = Timings()
    assert (t.min_lease_s, t.poison_deaths, t.poison_window_s) == (30, 10, 600)
    assert (t.job_retention_s, t.ban_ttl_s, t.ban_yield_s) == (30 * 86400, 86400, 300)
    assert t.line_retention_s == 90 * 86400
