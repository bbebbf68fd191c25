"""Keeps what was said to Celery's listeners while the worker had no connection.

With an event loop, Celery's dispatcher gathers events of tasks before it sends them. When the connection is made anew
there is a new dispatcher, which takes over what could not be sent, and not what was gathered: a job whose end fell into
that moment would be shown as one that runs for ever.

Limits: what is said to the old dispatcher after the new one has started is lost (Celery has told its requests by then).
"""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from kelpie_celery.gate import serves_a_group


class KeptEvents(bootsteps.StartStopStep):
    """Hands what the dispatcher of the connection before has gathered to the present one."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._before: Any = None

    def include_if(self, parent: Any) -> bool:
        """Only workers that run jobs have what to say of them."""
        return serves_a_group(parent.app)

    def start(self, parent: Any) -> None:
        """Take over, after each (re)connection."""
        before, now = self._before, parent.event_dispatcher
        self._before = now
        if before is not None and now is not None and before is not now:
            for group, events in list(before._group_buffer.items()):
                gathered = events[:]
                del events[: len(gathered)]
                now._group_buffer[group][:0] = gathered
            # What cannot be sent now either, the dispatcher keeps.
            now.flush()
