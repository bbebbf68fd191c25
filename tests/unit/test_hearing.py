"""What is counted of a worker's loop and its consumer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from kelpie_celery.hearing import Hearing


class Empty(Exception):
    """No message within a second."""


class Connected:
    """A hub and a channel, as kombu has them."""

    def __init__(self) -> None:
        self.timers: list[Callable[[], None]] = []
        self.next: Any = True
        self.channel = SimpleNamespace(
            handlers={"BRPOP": self._read}, connection_errors=(OSError, RedisConnectionError), active_queues={"q"}
        )
        self.hub = SimpleNamespace(call_repeatedly=lambda _s, fun: self.timers.append(fun))

    def _read(self, **_: Any) -> Any:
        if isinstance(self.next, Exception):
            raise self.next
        return self.next

    def read(self) -> Any:
        return self.channel.handlers["BRPOP"]()


@pytest.fixture
def connected() -> Connected:
    return Connected()


def test_messages_and_empty_answers_are_answers_and_a_broken_connection_is_none(connected: Connected) -> None:
    hearing = Hearing()
    hearing.attach(connected.hub, connected.channel)
    assert connected.read() is True
    connected.next = Empty()
    with pytest.raises(Empty):
        connected.read()
    assert hearing.answers == 2
    for error in (OSError("gone"), RedisConnectionError("gone")):
        connected.next = error
        with pytest.raises(type(error)):
            connected.read()
    assert hearing.answers == 2


def test_the_loop_counts_its_beats_and_breaks_the_connection_once_when_it_is_asked_to(connected: Connected) -> None:
    hearing = Hearing()
    hearing.attach(connected.hub, connected.channel)
    [beat] = connected.timers
    beat()
    hearing.reconnect()
    with pytest.raises(RedisConnectionError):
        beat()
    beat()
    assert hearing.beats == 3


def test_without_a_loop_or_a_queue_there_is_nothing_to_listen_to(connected: Connected) -> None:
    hearing = Hearing()
    assert (hearing.has_loop, hearing.listens) == (False, False)
    hearing.attach(connected.hub, connected.channel)
    assert (hearing.has_loop, hearing.listens) == (True, True)
    connected.channel.active_queues.clear()
    assert not hearing.listens
