"""When to commit, as settings and definition say it; and the times at which the watch looks because of that.

Limits: plain values; the clock is that of whoever asks.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from kelpie_celery.globs import Glob

POLL_S = 0.5
WATCH_GIVE_UP_S = 60.0
"""How long a checkpoint is tried beside the command before a newer one takes its place, seconds."""
LONGEST_POLL_S = 60.0
_LOOK_EVERY_S = 30.0
_SHARE_OF_A_CORE = 0.01
_LONGEST_BACKOFF_S = 30.0
_RESTLESS_QUIETS = 4.0
_READING_SHARE = 10.0
"""At least so many times as long as reading took passes before the next commit: a file that grows is read whole."""


@dataclass(frozen=True)
class Rules:
    """When to commit.

    Attributes:
        quiet_s: After so long without a write, seconds.
        min_interval_s: At least so long from the start of one commit to the next that a quiet moment makes.
        marker: When a file that matches was written; None: not by a marker.
        on_request_only: Only when the job says so.
        poll_s: How often is looked where the kernel does not tell of changes, at most.
        give_up_s: How long a storage that gives no sign of life is waited for beside the command.
    """

    quiet_s: float = 2.0
    min_interval_s: float = 15.0
    marker: Glob | None = None
    on_request_only: bool = False
    poll_s: float = POLL_S
    give_up_s: float = WATCH_GIVE_UP_S

    @property
    def by_quiet(self) -> bool:
        """Whether quiet moments count."""
        return self.marker is None and not self.on_request_only


@dataclass
class Times:
    """When what was, in seconds of the loop's clock, and when it is time for the next.

    Attributes:
        rules: When to commit.
        last_look_s: When the directories were looked at.
        last_event_s: When something in them changed.
        reading_s: Tells how long the last commit read.
        last_began_s: When the last commit was begun; None before the first.
        proven_s: The last moment that was seen to be quiet.
        look_cpu_s: How much CPU time a look takes.
        not_before_s: Nothing before that.
    """

    rules: Rules
    last_look_s: float
    last_event_s: float
    reading_s: Callable[[], float]
    last_began_s: float | None = None
    proven_s: float = float("-inf")
    look_cpu_s: float = 0.0
    not_before_s: float = 0.0

    def back_off(self, now_s: float, failures: int) -> None:
        """Wait after so many failures in a row."""
        longest_s = min(_LONGEST_BACKOFF_S, self.rules.poll_s * 2.0**failures)
        self.not_before_s = now_s + longest_s * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter

    def rest(self, now_s: float) -> None:
        """Reading was in vain, and may have taken long: it is not begun again at once."""
        self.not_before_s = max(self.not_before_s, now_s + min(LONGEST_POLL_S, _READING_SHARE * self.reading_s()))

    @property
    def is_proven(self) -> bool:
        """Whether nothing has changed since a moment that was seen to be quiet."""
        return self.proven_s > self.last_event_s

    @property
    def rested_s(self) -> float:
        """When the next commit may begin that a quiet moment makes."""
        if self.last_began_s is None:
            return 0.0
        return self.last_began_s + max(self.rules.min_interval_s, _READING_SHARE * self.reading_s())

    @property
    def blind_due_s(self) -> float:
        """When to look where the kernel does not tell of changes."""
        return self.last_look_s + min(LONGEST_POLL_S, max(self.rules.poll_s, self._share_s))

    @property
    def idle_due_s(self) -> float:
        """When to look where nothing is known to have changed."""
        return self.last_look_s + max(_LOOK_EVERY_S, self._share_s)

    def restless_due_s(self, *, by_quiet: bool, outputs_wait: bool) -> float:
        """When to look where something has changed.

        Args:
            by_quiet: Whether a quiet moment makes a commit.
            outputs_wait: Whether there are outputs to be sent.
        """
        # Events that never cease are looked into all the same: what writes may be a stream, which is no burst.
        restless_s = self.last_look_s + max(_RESTLESS_QUIETS * self.rules.quiet_s, self._share_s)
        # Not again at once where a look found that it is not quiet for another reason.
        due_s = max(min(self.last_event_s, restless_s), self.last_look_s) + self.rules.quiet_s
        return due_s if outputs_wait else max(due_s, self._wanted_s(by_quiet=by_quiet))

    def _wanted_s(self, *, by_quiet: bool) -> float:
        """When a look is of use while a commit is not due: soon, as long as it is not known that there is quiet."""
        if self.is_proven or not by_quiet:
            return self.rested_s
        return min(self.rested_s, self.last_look_s + self._share_s)

    @property
    def _share_s(self) -> float:
        return min(LONGEST_POLL_S, self.look_cpu_s / _SHARE_OF_A_CORE)
