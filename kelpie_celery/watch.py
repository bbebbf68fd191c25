"""A worker watches over itself: is it alive, and yet deaf?

A thread of its own looks at the event loop, the consumer and the pulse (see `kelpie_celery.deafness`). What it does
when one of them has been silent for ``KELPIE_DEAF_S`` although Redis answers:

1. The consumer alone: the connection is made anew, once.
2. Else, or should that not help: no job is fetched any more, those at work are finished, and the process ends with
   ``EX_DEAF`` for its container to be restarted. Where slots lie idle meanwhile, jobs that still run after
   ``KELPIE_BLIND_S`` are asked to checkpoint, and are handed over.
3. Whoever hears again before that works on.

It also says how the worker is (see `kelpie_celery.health`), for ``kelpie-worker health``.

Limits: what a thread cannot see (the whole process frozen) the health file shows by its age.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.deafness import Deafness, Organ, Seen
from kelpie_celery.errors import KelpieError
from kelpie_celery.gate import at_rest, may_fetch, wake
from kelpie_celery.health import Health, HealthFile, default_path

if TYPE_CHECKING:
    from kelpie_celery.app import KelpieApp
    from kelpie_celery.settings import Settings

log = logging.getLogger(__name__)

DEAF = "deaf"
"""Why a worker fetches nothing: it does not hear, and is about to end."""

EX_DEAF = 70
"""The exit code of a worker that was deaf: EX_SOFTWARE."""

LONGEST_LOOK_S = 5.0
_LOOKS = 6
_REST_S = 10.0
_STOP_PATIENCE_S = 900.0

_WORDS = {
    Organ.LOOP: "its event loop is stuck",
    Organ.CONSUMER: "the broker does not answer its consumer",
    Organ.PULSE: "its pulse is stuck",
}


class Watch(threading.Thread):
    """Looks until ``stop`` is called, or ends the process."""

    def __init__(
        self, app: KelpieApp, pulses: Callable[[], int], goodbye: Callable[[], None], file: HealthFile, *,
        clock: Clock | None = None, leave: Callable[[int], None] = os._exit,
    ) -> None:  # fmt: skip
        super().__init__(name="kelpie-watch", daemon=True)
        self._app, self._pulses, self._goodbye, self._file = app, pulses, goodbye, file
        self._clock, self._leave = clock or SystemClock(), leave
        # A pulse that is slow on purpose is not stuck.
        self._deaf_s = max(app.settings.deaf_s, 5 * app.settings.pulse_s)
        self.every_s = min(LONGEST_LOOK_S, self._deaf_s / _LOOKS)
        self._deafness = Deafness(self.every_s)
        self._stopped = threading.Event()
        self._reconnected = False
        self._leaving_since: float | None = None
        self._verdict: tuple[Organ, ...] = ()
        self._idle_since: float | None = None
        self._asked_to_stop_at: float | None = None
        self._untold = False

    def begin(self) -> None:
        """Start; a probe that asks at once is answered."""
        self._write(ok=True, why="it begins to take jobs")
        self.start()

    def stop(self) -> None:
        """End the thread: the worker ends in good order."""
        self._stopped.set()

    def run(self) -> None:
        """Look, every few seconds."""
        while not self._stopped.is_set():
            try:
                self.look()
            except Exception:
                log.exception("the watch failed", extra={"action": "watch_failed"})
            self._stopped.wait(self.every_s)
        self._file.close()

    # -- a look ---------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look once, and do what follows."""
        if self._app.running.shutting_down and self._asked_to_stop_at is None:
            # The worker ends in good order, and its loop with it, while the last uploads go on.
            self._write(ok=True, why="it ends")
            return
        seen = self._see()
        silent_s = self._deafness.look(seen)
        deaf = [organ for organ in Organ if silent_s[organ] >= self._deaf_s]
        if self._leaving_since is not None:
            self._go_on_leaving(seen, deaf)
        elif deaf:
            self._heed(deaf, silent_s)
        elif seen.may_fetch and silent_s[Organ.CONSUMER] == 0:
            self._reconnected = False
        if not self._stopped.is_set():
            self._tell(seen, silent_s)

    def _see(self) -> Seen:
        hearing = self._app.hearing
        return Seen(
            at=self._clock.boottime(), beats=hearing.beats, answers=hearing.answers, pulses=self._pulses(),
            may_fetch=may_fetch(self._app) and hearing.listens, reachable=hearing.has_loop and self._reachable(),
        )  # fmt: skip

    def _reachable(self) -> bool:
        try:
            self._app.ledger.server_time()
        except KelpieError:
            return False
        return True

    def _heed(self, deaf: Sequence[Organ], silent_s: dict[Organ, float]) -> None:
        words = " and ".join(_WORDS[organ] for organ in deaf)
        if deaf == [Organ.CONSUMER] and not self._reconnected:
            log.warning(
                "the worker does not hear; it connects anew",
                extra={"action": "deaf_reconnects", "why": words, "silent_s": round(silent_s[Organ.CONSUMER], 1)},
            )
            self._reconnected = True
            self._deafness.forget()
            self._app.hearing.reconnect()
            return
        log.error(
            "the worker is deaf; it finishes its jobs and ends for its container to be restarted",
            extra={"action": "deaf", "why": words, "jobs": len(self._app.running.all())},
        )
        self._leaving_since, self._verdict = self._clock.boottime(), tuple(deaf)
        self._app.running.hold_back(DEAF, on=True)

    # -- leaving --------------------------------------------------------------------------------------------------

    def _go_on_leaving(self, seen: Seen, deaf: Sequence[Organ]) -> None:
        # A consumer that heard nothing on a fresh connection either is not asked again: the gate is closed.
        may_recover = Organ.CONSUMER not in self._verdict and self._asked_to_stop_at is None
        if not deaf and seen.reachable and may_recover:
            log.warning("the worker hears again", extra={"action": "deaf_no_more"})
            self._leaving_since = self._idle_since = None
            if self._app.running.hold_back(DEAF, on=False):
                wake()
            return
        if self._nothing_left(seen.at):
            self._end()
            return
        jobs, slots = len(self._app.running.all()), self._app.runner.slots
        if jobs >= slots:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = seen.at
        if self._idle_since is not None and seen.at - self._idle_since >= self._app.settings.blind_s:
            self._ask_to_stop(seen.at, jobs)

    def _nothing_left(self, now: float) -> bool:
        if self._asked_to_stop_at is not None and now - self._asked_to_stop_at >= _STOP_PATIENCE_S:
            return True  # their leases bring them back
        if self._app.running.all():
            return False
        # Celery's bookkeeping of the last job; with a loop that is stuck it may never come to its end.
        since = self._leaving_since if self._leaving_since is not None else now
        return at_rest() or now - since >= _REST_S

    def _ask_to_stop(self, now: float, jobs: int) -> None:
        if self._asked_to_stop_at is None:
            log.warning("jobs of a deaf worker are handed over", extra={"action": "deaf_hands_over", "jobs": jobs})
            self._asked_to_stop_at = now
            self._app.running.shut_down()

    def _end(self) -> None:
        log.error("the deaf worker ends", extra={"action": "deaf_ends", "exit_code": EX_DEAF})
        self._goodbye()
        self.stop()
        self._file.close()
        logging.shutdown()
        # The loop, which would end the process in good order, is what may be stuck.
        self._leave(EX_DEAF)

    # -- health ---------------------------------------------------------------------------------------------------

    def _tell(self, seen: Seen, silent_s: dict[Organ, float]) -> None:
        ok, why = self._how(seen, silent_s)
        self._write(ok=ok, why=why)

    def _write(self, *, ok: bool, why: str) -> None:
        jobs = len(self._app.running.all())
        fresh_s = 3 * self.every_s + 10.0
        try:
            self._file.write(Health(os.getpid(), self._clock.boottime(), fresh_s, ok, why, jobs))
        except OSError as e:
            if not self._untold:
                self._untold = True
                log.warning(
                    "nobody can be told how the worker is",
                    extra={"action": "health_untold", "path": str(self._file.path), "error": str(e)},
                )

    def _how(self, seen: Seen, silent_s: dict[Organ, float]) -> tuple[bool, str]:
        if self._leaving_since is not None:
            # While jobs are at work, a restart from outside would only interrupt them.
            return bool(self._app.running.all()), "deaf: it finishes its jobs and ends"
        if not seen.reachable:
            return True, "Redis is away; jobs compute on"
        silent = [f"{_WORDS[organ]} for {s:.0f} s" for organ, s in silent_s.items() if s >= self._deaf_s / 2]
        return True, " and ".join(silent) or self._takes(seen)

    def _takes(self, seen: Seen) -> str:
        if self._app.running.drained_by_hand:
            return "takes no more jobs: it was drained by hand"
        return "takes jobs" if seen.may_fetch else "takes no job for now"


def health_path(settings: Settings) -> Path:
    """Where a worker with these settings says how it is."""
    return settings.health_file or default_path(
        settings.redis_url.get_secret_value(), settings.container_group_id or "", settings.machine_id,
        settings.instance_id or "",
    )  # fmt: skip
