"""A canary in a job's environment is nowhere but in its record's definition."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
from celery import chain, chord

from tests.harness.stack import Stack, StackFactory

CANARY = "c4n4ry-in-a-coal-mine"


class EventTap(threading.Thread):
    """Keeps every Celery event that passes."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.seen: list[dict[str, Any]] = []
        self.connected = threading.Event()
        self._stack = stack
        self._receiver: Any = None

    def run(self) -> None:
        with self._stack.app.connection_for_read() as connection:
            receiver = self._stack.app.events.Receiver(connection, handlers={"*": self.seen.append})
            with receiver.consumer_context():
                self._receiver = receiver
                self.connected.set()
                while not receiver.should_stop:
                    with contextlib.suppress(TimeoutError):
                        receiver.capture(limit=None, timeout=0.5, wakeup=False)

    def stop(self) -> None:
        """End the thread."""
        self._receiver.should_stop = True
        self.join(10)


def everything_in_redis(stack: Stack) -> dict[str, str]:
    """Every key with all that it holds, but for the one field that is the definition's place."""
    redis, found = stack.ledger.redis, {}
    for key in redis.scan_iter(count=1000):
        kind = redis.type(key)
        if kind == "hash":
            value: Any = redis.hgetall(key)
            if ":job:" in key:
                value.pop("definition", None)
        elif kind == "list":
            value = redis.lrange(key, 0, -1)
        elif kind == "zset":
            value = redis.zrange(key, 0, -1)
        elif kind == "set":
            value = redis.smembers(key)
        else:
            value = redis.get(key)
        found[key] = str(value)
    return found


@pytest.mark.timeout(120)
def test_a_canary_is_found_in_no_message_event_log_or_result(make_stack: StackFactory) -> None:
    stack = make_stack(workers=2)
    tap = EventTap(stack)
    tap.start()
    assert tap.connected.wait(20)

    def job(script: str = "true", **fields: Any) -> dict[str, Any]:
        return stack.shell(script, environment={"TOKEN": CANARY}, **fields)

    run = stack.run_job
    gathered = chord(
        [run.s(job()), run.s(job("[ $KELPIE_ATTEMPT -gt 1 ]"))], run.s(job('test "$TOKEN" = ' + '"$(printenv TOKEN)"'))
    ).apply_async()
    chained = chain(run.s(job()), run.si(job()), run.si(job("exit 3", max_failures=1))).apply_async()
    printed = run.delay(job('echo "the token is $TOKEN"; echo $TOKEN >&2'))
    waiting = run.apply_async((job(),), countdown=600)
    during = everything_in_redis(stack)
    assert gathered.get(timeout=60)["exit_code"] == 0
    printed.get(timeout=60)
    with pytest.raises(Exception, match="exit_code") as failed:
        chained.get(timeout=60)
    stack.wait("the failure has been announced", lambda: any(e["type"] == "task-failed" for e in tap.seen))
    tap.stop()

    assert CANARY not in str(failed.value)
    assert {e["type"] for e in tap.seen} >= {"task-received", "task-started", "task-succeeded", "task-retried"}
    for place, text in {**during, **everything_in_redis(stack), "events": str(tap.seen)}.items():
        assert CANARY not in text, place
    for name, process in stack.local.processes.items():
        assert CANARY not in process.log.read_text(), name
    # The test can fail: the canary is in the definition, which only the ledger holds.
    assert CANARY in str(stack.get(waiting.id).definition)
    assert "definition" not in repr(stack.get(waiting.id))
