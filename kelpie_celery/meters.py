"""What a worker counts while it works; without metrics nobody does.

Limits: a seam. This class does nothing and costs nothing; ``kelpie_celery.metrics.process`` counts for Prometheus.
"""

from __future__ import annotations

from typing import Literal

Stage = Literal["restore", "commit", "outputs"]
Renewed = Literal["ok", "failed", "lost"]


class Meters:
    """Counts nothing. Any thread."""

    def transfer(self, stage: Stage, count_bytes: int, seconds: float) -> None:
        """A transfer that moved something has ended."""

    def commit(self, seconds: float, sent_bytes: int) -> None:
        """A checkpoint is durable: how long it took, and what of it was new."""

    def renewal(self, result: Renewed, seconds: float) -> None:
        """A lease was renewed, or Redis did not answer, or the lease is lost; and how long the answer took."""
