"""A few threads that share a long list of work, and stop together.

Limits: what is under way when another thread fails, or Ctrl-C comes, ends with its next bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from kelpie_celery.checkpoints.storage import REQUESTS
from kelpie_celery.errors import KelpieError

T = TypeVar("T")


class Stopped(KelpieError):
    """Another thread failed, or somebody interrupted; this one need not go on."""


def _raise_first(failures: Sequence[BaseException]) -> None:
    """Raise what made the others stop, if anything did."""
    for error in sorted(failures, key=lambda error: isinstance(error, Stopped)):
        raise error


class Crowd:
    """Does pieces of work, `REQUESTS` at once."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def check(self) -> None:
        """Call it now and then within a long piece of work.

        Raises:
            Stopped: It is of no use any more.
        """
        if self._stop.is_set():
            raise Stopped

    def do(self, work: Iterable[T], one: Callable[[T], None], on_stop: Callable[[], None] = lambda: None) -> None:
        """Do all of it, or raise the first error.

        Args:
            work: Taken as threads become free.
            one: Does one piece, in a thread.
            on_stop: Called when the rest is given up; breaks off what is under way.
        """
        feed, taking = iter(work), threading.Lock()

        def some() -> None:
            while True:
                self.check()
                with taking:
                    try:
                        piece = next(feed)
                    except StopIteration:
                        return
                one(piece)

        pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="kelpie-stage")
        try:
            futures = [pool.submit(some) for _ in range(REQUESTS)]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            _raise_first([error for error in (future.exception() for future in done) if error])
        except BaseException:
            self._stop.set()
            on_stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
