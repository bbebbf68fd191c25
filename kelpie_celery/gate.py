"""Lets a worker fetch a job only while a slot is free and it does not drain, so that none waits in vain.

Limits: Celery's Redis transport, whose ``qos.can_consume`` decides before each BRPOP. The gate closes for nothing else:
a message that a BRPOP has already popped is delivered whatever the gate says, and who claims for it is refused. The
transport would leave it in the socket until the gate opens: perhaps for hours, on a worker that drains.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, cast

from celery import bootsteps
from celery.worker import state

from kelpie_celery.ledger import keys


class _Waker:
    """A self-pipe in the worker's event loop: a slot that became free is noticed at once, not at the next poll."""

    def __init__(self) -> None:
        self._read_fd = self._write_fd = -1

    def attach(self, hub: Any) -> None:
        if self._read_fd < 0:
            self._read_fd, self._write_fd = os.pipe()
            os.set_blocking(self._read_fd, False)
            os.set_blocking(self._write_fd, False)
        hub.add_reader(self._read_fd, self._drain)

    def _drain(self, *_: Any) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read_fd, 4096)

    def wake(self) -> None:
        if self._write_fd >= 0:
            # A full pipe wakes the loop as well.
            with contextlib.suppress(BlockingIOError):
                os.write(self._write_fd, b"x")


_waker = _Waker()


def wake() -> None:
    """Have the worker look at once whether it may fetch. Any thread may call it."""
    _waker.wake()


def serves_a_group(app: Any) -> bool:
    """Whether this worker consumes the queue of a container group."""
    return bool(served_groups(app))


def served_groups(app: Any) -> list[str]:
    """The container groups whose queues this worker consumes."""
    return [group for queue in app.amqp.queues.consume_from if (group := keys.group_of_queue(str(queue)))]


def busy_slots() -> int:
    """How many received messages hold a slot."""
    return sum(1 for request in tuple(state.reserved_requests) if not getattr(request, "slot_is_free", False))


def may_fetch(app: Any) -> bool:
    """Whether a slot is free, and nothing keeps the worker from fetching."""
    running = app.running
    return not running.shutting_down and not running.held_back and busy_slots() < app.runner.slots


def at_rest() -> bool:
    """Whether this worker has no message in hand, not even one whose bookkeeping is under way."""
    return not state.reserved_requests


class SlotGate(bootsteps.StartStopStep):
    """Replaces ``can_consume`` of the task consumer's channel, after each (re)connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, parent: Any) -> bool:
        """Only workers that run jobs are gated."""
        return serves_a_group(parent.app)

    def start(self, parent: Any) -> None:
        """Put the gate in front of the transport's own."""
        app = parent.app
        channel = parent.task_consumer.channel
        qos, original = channel.qos, channel.qos.can_consume

        def can_consume() -> bool:
            is_asked = bool(getattr(channel, "_in_poll", None))
            return is_asked or (may_fetch(app) and cast("bool", original()))

        qos.can_consume = can_consume
        if parent.hub:
            _waker.attach(parent.hub)
