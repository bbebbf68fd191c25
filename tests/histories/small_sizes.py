"""The limits of the product's content, so small that files of some kB span many windows, segments and deltas."""

from __future__ import annotations

import pytest

KIB = 1024


def make_small(patch: pytest.MonkeyPatch, small: int = 256, window: int = KIB, segment: int = 4 * KIB) -> None:
    """Patch them; each must be there, or the tests would quietly test less."""
    for name, value in _limits(small, window, segment).items():
        patch.setattr(name, value)


def _limits(small: int, window: int, segment: int) -> dict[str, object]:
    return {
        "kelpie_celery.checkpoints.content.WINDOW_BYTES": window,
        "kelpie_worker.sync.etags.WINDOW_BYTES": window,
        "kelpie_worker.sync.assembly_plan.PART_SIZES": (segment, window),
        "kelpie_celery.checkpoints.content.SEGMENT_BYTES": segment,
        "kelpie_worker.sync.etags.SEGMENT_BYTES": segment,
        "kelpie_worker.sync.segments.SEGMENT_BYTES": segment,
        "kelpie_celery.checkpoints.content.SMALL_BYTES": small,
        "kelpie_worker.sync.lines.SMALL_BYTES": small,
        "kelpie_worker.sync.doubting.SMALL_BYTES": small,
        "kelpie_worker.sync.plain_keys.SMALL_BYTES": small,
        "kelpie_worker.sync.assembly_plan.SMALL_BYTES": small,
        "kelpie_celery.checkpoints.content._LARGE_FILE_BYTES": 4 * segment,
        "kelpie_worker.sync.capturing._MOST_IN_A_WINDOW": 4,
        "kelpie_celery.checkpoints.manifest._WORTH_A_DELTA": 3,
        "kelpie_celery.checkpoints.manifest._SHARE_OF_A_DELTA": 2,
        "kelpie_celery.checkpoints.manifest._DEEPEST": 3,
        "kelpie_celery.checkpoints.manifests.DEEPEST_CHAIN": 4,
        "kelpie_worker.sync.manifests.DEEPEST_CHAIN": 4,
        "kelpie_celery.checkpoints.pieces._GAP_BYTES": window // 3,
        "kelpie_worker.sync.staging._BATCH_FILES": 2,
        "kelpie_worker.sync.segments._PIECE_BYTES": 3 * window // 4,
    }
