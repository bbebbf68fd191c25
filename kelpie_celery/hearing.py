"""What a worker's event loop and its consumer did last, for whoever watches over them from another thread.

The loop counts its own beats, once a second; each answer to the consumer's BRPOP is counted, also an empty one: Redis
answers each after a second at the latest. Counters, and not times: a process that was frozen has not been deaf.

Limits: Celery's event loop and kombu's Redis transport (`asynloop`); without a loop nothing is counted, nor watched.
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps
from redis.exceptions import ConnectionError as RedisConnectionError

from kelpie_celery.gate import serves_a_group, wake

BEAT_S = 1.0


class Hearing:
    """Counters that the loop's thread writes, and any thread reads."""

    def __init__(self) -> None:
        self.beats = 0
        """Of the event loop."""
        self.answers = 0
        """Of Redis to the consumer, empty ones included."""
        self._channel: Any = None
        self._reconnect = False

    @property
    def listens(self) -> bool:
        """Whether there is a queue to listen to: ``celery control cancel_consumer`` leaves none."""
        return self._channel is not None and bool(self._channel.active_queues)

    @property
    def has_loop(self) -> bool:
        """Whether there is anything to watch."""
        return self._channel is not None

    def attach(self, hub: Any, channel: Any) -> None:
        """Begin to count on a new connection."""
        self._channel, self._reconnect = channel, False
        original = channel.handlers["BRPOP"]

        def read(**options: Any) -> Any:
            try:
                return original(**options)
            except channel.connection_errors:
                self.answers -= 1  # that was none
                raise
            finally:
                self.answers += 1

        channel.handlers["BRPOP"] = read
        hub.call_repeatedly(BEAT_S, self._beat)

    def reconnect(self) -> None:
        """Have the loop begin anew with a fresh connection; running jobs go on. Any thread."""
        self._reconnect = True
        wake()

    def _beat(self) -> None:
        self.beats += 1
        if self._reconnect:
            self._reconnect = False
            # What Celery's consumer takes for a lost connection, whatever it is that keeps it from hearing.
            raise RedisConnectionError("no answer from the broker; the connection is made anew")


class Ears(bootsteps.StartStopStep):
    """Attaches the app's ``Hearing`` after each (re)connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def include_if(self, parent: Any) -> bool:
        """Only workers that run jobs are watched."""
        return serves_a_group(parent.app)

    def start(self, parent: Any) -> None:
        """Count from now on."""
        if parent.hub:
            parent.app.hearing.attach(parent.hub, parent.task_consumer.channel)
