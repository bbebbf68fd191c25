"""Makes a worker deaf when it gets a signal; only in the worker process of a test.

``LOOP``: its event loop stands still. ``CHANNEL``: its consumer asks for nothing any more, on the connection that it
has. ``CONSUMER``: nor on any other. ``PULSE``: its pulse stands still.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from kombu.transport.redis import MultiChannelPoller

from kelpie_celery.pulse import Pulse

LOOP, CHANNEL, CONSUMER, PULSE = (signal.SIGRTMIN + n for n in range(4))


def install() -> None:
    """Wait for the signals."""
    deaf: set[Any] = set()
    for_good, pulse_stands = threading.Event(), threading.Event()
    poller: Any = MultiChannelPoller
    register, beat = poller._register_BRPOP, Pulse.beat

    def register_brpop(self: Any, channel: Any) -> None:
        if channel not in deaf and not for_good.is_set():
            register(self, channel)

    def beat_or_stand_still(self: Any, group: str) -> None:
        if pulse_stands.is_set():
            threading.Event().wait()
        beat(self, group)

    def deafen_channels(*_: Any) -> None:
        from kelpie_celery.celery import app

        deaf.add(app.hearing._channel)

    poller._register_BRPOP = register_brpop
    Pulse.beat = beat_or_stand_still  # type: ignore[method-assign]
    signal.signal(LOOP, lambda *_: time.sleep(3600))
    signal.signal(CHANNEL, deafen_channels)
    signal.signal(CONSUMER, lambda *_: for_good.set())
    signal.signal(PULSE, lambda *_: pulse_stands.set())
