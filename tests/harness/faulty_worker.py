"""``kelpie-worker`` that dies, or stands still, at exact points of its pipeline; see ``faults.py``.

The product knows nothing of this: its functions are wrapped here, in the process that the tests start.

Points, in the order of an attempt's life: ``after_claim``, ``in_restore``, ``running`` (the command printed the line
``here``), ``after_commit`` (a checkpoint is the newest), ``before_upload``, ``in_upload``, ``in_body`` (the first piece
of a large output has been sent), ``after_upload``, ``before_marker``, ``after_marker``, ``before_log``,
``before_report``, ``after_completed``.
With ``TEST_GIVE_UP_S`` in its environment it waits so long for a storage that is away before the command, seconds;
with ``TEST_PREEMPTION_S`` so long, after a command that the machine has ended, for its own SIGTERM.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.types import Granted
from kelpie_worker import execution
from kelpie_worker.entrypoint import main
from kelpie_worker.execution import Execution
from kelpie_worker.sync import checkpoints, session
from kelpie_worker.sync.bodies import FileBody
from kelpie_worker.sync.s3_store import S3Store
from kelpie_worker.sync.session import SyncSession

FOLDER = Path(os.environ["TEST_FAULTS"])
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
LINE = "here"

# An attempt lives in one pool thread and in an asyncio loop that inherits the thread's context.
_job: ContextVar[str] = ContextVar("job", default="")  # the job's tag "name"
_stage: ContextVar[str] = ContextVar("stage", default="")
_requests: ContextVar[Counter[str]] = ContextVar("requests")


def reached(point: str) -> None:
    """Die or stop here if a test armed this point, for all jobs or for this one."""
    if not point:
        return
    for file in (FOLDER / f"{point}.{_job.get()}", FOLDER / point):
        taken = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.rename(taken)  # one worker takes it
        except FileNotFoundError:
            continue
        action = taken.read_text()
        taken.unlink()
        # To this thread, which takes it at once: one to the process may stop it only after a few more steps.
        signal.pthread_kill(threading.get_ident(), SIGNALS[action])


def claim(original: Callable[..., Any]) -> Callable[..., Any]:
    """``after_claim``."""

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        if isinstance(answer, Granted):
            _job.set(json.loads(answer.definition).get("tags", {}).get("name", ""))
            _requests.set(Counter())
            reached("after_claim")
        return answer

    return wrapped


def commit(original: Callable[..., Any]) -> Callable[..., Any]:
    """``after_commit``."""

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        reached("after_commit")
        return answer

    return wrapped


def end_attempt(original: Callable[..., Any]) -> Callable[..., Any]:
    """``before_report`` and ``after_completed``."""

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        reached("before_report")
        answer = original(*args, **kwargs)
        if answer == "completed":
            reached("after_completed")
        return answer

    return wrapped


def staged(name: str, before: str = "", after: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A step of the session: its name while it runs, and points before and after it."""

    def decorate(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            reached(before)
            token = _stage.set(name)
            try:
                answer = await original(*args, **kwargs)
            finally:
                _stage.reset(token)
            reached(after)
            return answer

        return wrapped

    return decorate


def request(original: Callable[..., Any]) -> Callable[..., Any]:
    """``in_STAGE``: before the second request with a body of a step, so after some of it is done."""

    @functools.wraps(original)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        stage = _stage.get()
        if stage:
            seen = _requests.get()
            seen[stage] += 1
            if seen[stage] > 1:
                reached(f"in_{stage}")
        return await original(*args, **kwargs)

    return wrapped


def chunks(original: Callable[..., Iterator[bytes | memoryview]]) -> Callable[..., Iterator[bytes | memoryview]]:
    """``in_body``: the first piece of a body is on its way to the storage, the second is not."""

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Iterator[bytes | memoryview]:
        first = True
        for chunk in original(*args, **kwargs):
            if not first and _stage.get() == "upload":
                reached("in_body")
            first = False
            yield chunk

    return wrapped


def on_line(original: Callable[..., Any]) -> Callable[..., Any]:
    """``running``: in the middle of the command, where it says so."""

    @functools.wraps(original)
    def wrapped(self: Any, stream: str, line: str) -> Any:
        answer = original(self, stream, line)
        if line == LINE:
            reached("running")
        return answer

    return wrapped


Ledger.claim = claim(Ledger.claim)  # type: ignore[method-assign]
Ledger.commit = commit(Ledger.commit)  # type: ignore[method-assign]
Ledger.end_attempt = end_attempt(Ledger.end_attempt)  # type: ignore[method-assign]
SyncSession.restore = staged("restore")(SyncSession.restore)  # type: ignore[method-assign]
SyncSession.upload_outputs = staged("upload", "before_upload", "after_upload")(SyncSession.upload_outputs)  # type: ignore[method-assign]
SyncSession.write_marker = staged("marker", "before_marker", "after_marker")(SyncSession.write_marker)  # type: ignore[method-assign]
SyncSession.store_log = staged("log", "before_log")(SyncSession.store_log)  # type: ignore[method-assign]
S3Store.fetch = request(S3Store.fetch)  # type: ignore[method-assign]
S3Store.put = request(S3Store.put)  # type: ignore[method-assign]
FileBody.chunks = chunks(FileBody.chunks)  # type: ignore[method-assign]
if "TEST_GIVE_UP_S" in os.environ:
    for module in (session, checkpoints):
        vars(module)["GIVE_UP_S"] = float(os.environ["TEST_GIVE_UP_S"])
if "TEST_PREEMPTION_S" in os.environ:
    vars(execution)["PREEMPTION_S"] = float(os.environ["TEST_PREEMPTION_S"])
Execution._on_line = on_line(Execution._on_line)  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
