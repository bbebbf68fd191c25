"""Storing the log of an attempt: one object, sent as outputs are, fenced and verified.

Limits: it is tried for as long as the caller lets it; nothing of what fails becomes visible. Logs are not packed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.retry import Patience
from kelpie_worker.sync.stable_read import capture
from kelpie_worker.sync.threads import in_thread
from kelpie_worker.sync.upload import Uploader

_FOR_EVER_S = 86_400.0


async def composed(compose: Callable[[Path, Callable[[], bool]], None], path: Path) -> None:
    """Have a file written in a thread; a cancelled wait ends once the thread has let go of it, which is soon."""
    stopped = threading.Event()

    def stop() -> bool:
        stopped.set()
        return True

    await in_thread(partial(compose, path, stopped.is_set), stop=stop)


async def send_log(store: ObjectStore, fence: Fence, path: Path, bucket: str, key: str) -> int:
    """Send a file; its size in bytes.

    Raises:
        StorageSetupError: The storage refuses for good.
        LocalFileError: It cannot be read.
        LeaseLost: The fence says so.
    """
    captured = await capture(path)
    try:
        uploader = Uploader(store, fence, lambda _: None)
        stored = await uploader.upload(captured, bucket, key, Patience(_FOR_EVER_S, "log_waits"))
    finally:
        captured.close()
    return stored.object.size_bytes
