"""The storage side of an attempt: restore, commits, outputs, and the fence around what they make visible.

Limits: one storage for a worker, as its settings name it.
"""

from kelpie_celery.listings import OutputFile, OutputListing
from kelpie_worker.sync.commit import CommitReport
from kelpie_worker.sync.errors import DiskFull, LocalFileError, LocalPathError
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.journal import Journal
from kelpie_worker.sync.plan import Dirs, Placed
from kelpie_worker.sync.progress import Progress
from kelpie_worker.sync.restore import Restore, RestoreReport
from kelpie_worker.sync.session import SyncSession

__all__ = [
    "CommitReport",
    "Dirs",
    "DiskFull",
    "Fence",
    "Journal",
    "LocalFileError",
    "LocalPathError",
    "OutputFile",
    "OutputListing",
    "Placed",
    "Progress",
    "Restore",
    "RestoreReport",
    "SyncSession",
]
