"""Which lines of commits a job has: one for each of its checkpoint prefixes.

Limits: a storage is told from others by the address that it is reached by; under another name it is another storage.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from kelpie_celery.ledger.types import LineAddress
from kelpie_celery.transfers import Transfers


def endpoint_of(url: str | None) -> str:
    """How a storage is told from others in the ledger: its host and port, without credentials; empty for AWS."""
    return urlsplit(url).netloc.rpartition("@")[2].lower() if url else ""


def lines_of(transfers: Transfers, endpoint: str) -> list[LineAddress]:
    """The lines that a job commits to, in the order of its definition.

    Args:
        transfers: The job's.
        endpoint: See `endpoint_of`.
    """
    checkpoints = [block for block in transfers.during if block.role == "checkpoint"]
    return list(dict.fromkeys(LineAddress(endpoint, block.bucket, block.prefix) for block in checkpoints))
