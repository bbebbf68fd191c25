"""The rules for names, as the worker's modules know them; see `kelpie_celery.checkpoints.names`.

Limits: names only; they are the library's, since ``kelpie checkpoints get`` goes by the same ones.
"""

from __future__ import annotations

from kelpie_celery.checkpoints.names import (
    TEMPORARY,
    check_parents,
    conflict,
    is_below,
    is_reserved,
    leads_inside,
    relative_path,
)
from kelpie_celery.transfers import CONTROL_SUFFIX, control_prefix

__all__ = [
    "CONTROL_SUFFIX",
    "TEMPORARY",
    "check_parents",
    "conflict",
    "control_prefix",
    "is_below",
    "is_reserved",
    "leads_inside",
    "relative_path",
]
