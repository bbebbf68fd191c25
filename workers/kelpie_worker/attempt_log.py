"""The whole log of one attempt: kept on the node's disk while the command runs, stored at its end.

It is a convenience, and never more: it neither delays the report of an attempt's end by more than `STORE_S`, nor
changes what that end is. Secrets are masked in it as in the worker's own log. Limits: a node that dies takes its log
along.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from kelpie_celery.definition import JobDefinition
from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger.types import FencingToken
from kelpie_celery.log_place import LogPlace, log_place, why_not
from kelpie_celery.redaction import Redactor
from kelpie_celery.settings import Settings
from kelpie_worker.command.log_file import LogFile
from kelpie_worker.stopping import StopWatch, cancel_and_wait

log = logging.getLogger(__name__)

STORE_S = 30.0
"""How long the storing of a log may hold up the report of an attempt's end, seconds."""

STOPPING_S = 8.0
"""The same once the attempt was told to end."""

_UTF8_BYTES = 4


class LogStore(Protocol):
    """Where it is stored; the attempt's ``SyncSession``."""

    async def store_log(self, bucket: str, key: str, compose: Callable[[Path, Callable[[], bool]], None]) -> int:
        """Store what ``compose`` writes into a file; the size in bytes."""


class AttemptLog:
    """The log of one attempt, which may be none at all.

    Args:
        settings: The worker's.
        definition: The job's.
        token: Of the attempt.
        folder: The attempt's own scratch folder.

    Attributes:
        started: Whether the command was.
    """

    def __init__(self, settings: Settings, definition: JobDefinition, token: FencingToken, folder: Path) -> None:
        self.started = False
        self._definition, self._token, self._max_bytes = definition, token, settings.log_bytes
        self._place: LogPlace | None = log_place(definition, settings) if settings.log_bytes else None
        self._file = LogFile(folder, settings.log_bytes) if self._place else None

    @property
    def is_wanted(self) -> bool:
        """Whether it is to be stored anywhere: a command that was not started has none."""
        return self._file is not None and self.started

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def pen(self) -> Callable[[bytes], None]:
        """What takes all output of one of the command's streams."""
        return self._file.pen() if self._file else lambda _: None

    async def store(
        self, to: LogStore, stop: StopWatch, redactor: Redactor, fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Store it, within the bounds of the module.

        Returns:
            Facts for the attempt's history: where it is, or why it is not.
        """
        file, place = self._file, self._place
        if file is None or place is None:
            return {}
        key = place.key(self._token)
        where = f"s3://{place.bucket}/{key}"
        why, size_bytes = why_not(self._definition, place.bucket, key), 0
        if not why:
            try:
                size_bytes = await _within_bounds(self._send(to, file, place.bucket, key, redactor), stop)
            except (KelpieError, OSError) as error:
                why = str(error)
            except Exception as error:
                # Whatever it is: a job that completed must not fail for its log.
                log.exception("storing a job's log failed in the worker", extra={"action": "worker_error", **fields})
                why = f"it failed in the worker: {type(error).__name__}; see its log"
        if why:
            log.warning(
                "a job's log is not stored", extra={"action": "log_not_stored", "log": where, "why": why, **fields}
            )
            return {"log_failed": why if key in why else f"{where}: {why}"}
        left_out = file.left_out_bytes + file.lost_bytes
        facts = {"log": where, "log_bytes": size_bytes} | ({"log_left_out_bytes": left_out} if left_out else {})
        log.info("log stored", extra={"action": "log_stored", **facts, **fields})
        return facts

    async def _send(self, to: LogStore, file: LogFile, bucket: str, key: str, redactor: Redactor) -> int:
        def compose(path: Path, stopped: Callable[[], bool]) -> None:
            with path.open("wb") as target:
                for piece in whole_log(file, redactor, self._max_bytes):
                    if stopped():
                        return
                    target.write(piece)

        await file.finish()
        return await to.store_log(bucket, key, compose)


async def _within_bounds(sending: Coroutine[Any, Any, int], stop: StopWatch) -> int:
    """Wait until it is sent, but not for long; shorter once the attempt was told to end."""
    told, work = stop.why is not None, asyncio.ensure_future(sending)
    asked = asyncio.ensure_future(stop.asked())
    try:
        await asyncio.wait({work} if told else {work, asked}, timeout=STOPPING_S if told else STORE_S,
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        if not work.done() and not told and asked.done():
            await asyncio.wait({work}, timeout=STOPPING_S)
        if not work.done():
            raise OutOfTime(f"it was not stored within {STOPPING_S if asked.done() else STORE_S:g} s")
        return work.result()
    finally:
        await cancel_and_wait(work, asked)


class OutOfTime(KelpieError):
    """The log was not stored within the time that there is for it."""


def whole_log(file: LogFile, redactor: Redactor, max_bytes: int) -> Iterator[bytes]:
    """What is stored of a log, in pieces: secrets masked, with a line where something is left out; blocking."""
    if file.left_out_bytes:
        first, last = file.halves()
        margin = redactor.longest_chars * _UTF8_BYTES
        left_out = file.left_out_bytes + sum(half.cut_bytes + margin * half.is_torn for half in (first, last))
        yield from masked(first.pieces, redactor, cut_end=first.is_torn)
        bound = f"a log keeps {max_bytes} (KELPIE_LOG_BYTES)"
        yield f"\nkelpie: {left_out} bytes of output are left out here: {bound}\n".encode()
        yield from masked(last.pieces, redactor, cut_start=last.is_torn)
    else:
        yield from masked(file.pieces(), redactor)
    if file.error:
        yield f"\nkelpie: the last output is missing: the node's disk took no more: {file.error}\n".encode()


def masked(
    pieces: Iterable[bytes], redactor: Redactor, *, cut_start: bool = False, cut_end: bool = False
) -> Iterator[bytes]:
    """Bytes with every secret replaced, also one that lies in two pieces; what is not UTF-8 stays as it is.

    Args:
        pieces: Of the bytes.
        redactor: Knows the secrets.
        cut_start: Leave out as much of the beginning as the end of a torn secret may be.
        cut_end: Likewise of the end.
    """
    held_back = redactor.longest_chars * _UTF8_BYTES
    to_cut = held_back if cut_start else 0
    rest = b""
    for piece in pieces:
        text = (rest + piece).decode("utf-8", "surrogateescape")
        # More than the longest secret has: a character that lies in two pieces looks like up to three.
        done, left = redactor.mask_beginning(text, held_back)
        data, rest = done.encode("utf-8", "surrogateescape"), left.encode("utf-8", "surrogateescape")
        yield data[to_cut:]
        to_cut = max(0, to_cut - len(data))
    if not cut_end:
        last = redactor.mask(rest.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        yield last[to_cut:]
