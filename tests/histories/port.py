"""The storage and the ledger as one attempt of a history reaches them: each request may fail in every way that it can.

Requests are counted from the attempt's start. One that is to fail may fail before it is carried out or after; or the
attempt dies there, or is frozen there, until somebody thaws it. What makes something visible was signed when the fence
said so, and is refused by the storage when that time is over.

Limits: parts of an upload are not fenced, here as there: nobody sees them.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from kelpie_celery.errors import LedgerUnavailable, StorageSetupError, StorageUnavailable
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.ledger.types import FencingToken, Line, LineAddress, NewCommit, NewOutput, Renewal
from kelpie_celery.lifecycle import Phase
from kelpie_worker.journal import LedgerJournal
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.object_store import Body, Sink, StoredObject, UploadGone
from kelpie_worker.sync.s3_errors import LateRequest
from tests.contract.fakes_s3 import Kept, MemoryStore
from tests.histories.virtual_time import HistoryClock

T = TypeVar("T")

FAULTS = ("fail", "lost", "cut", "stall", "late", "die", "die after", "freeze", "freeze after", "disturb")
"""``fail``: not carried out; ``lost``: carried out, unanswered; ``cut``: half of the body, then not carried out;
``stall``: unanswered for long, not carried out; ``late``: carried out after as long; the others as they say."""
STALL_S = 20.0


class HistoryStore(MemoryStore):
    """A storage in memory that dates objects by the history's clock."""

    def __init__(self, clock: HistoryClock, *buckets: str) -> None:
        super().__init__(*buckets)
        self._clock = clock

    def seed(self, bucket: str, key: str, data: bytes, etag: str = "") -> None:
        super().seed(bucket, key, data, etag)
        kept = self.objects[bucket][key]
        self.objects[bucket][key] = Kept(kept.data, kept.etag, self._clock.now())


class Host(Protocol):
    """What a port needs of its attempt, which is its process."""

    token: FencingToken
    dead: bool

    def note(self, text: str) -> None:
        """For the trace."""

    def die(self) -> None:
        """SIGKILL."""

    async def freeze(self) -> None:
        """SIGSTOP; returns after SIGCONT."""

    def disturb(self) -> None:
        """The job writes to its files at this very moment."""

    def before_write(self, bucket: str, key: str, data: bytes) -> None:
        """The storage is about to carry this out."""

    def before_delete(self, bucket: str, key: str) -> None:
        """Likewise."""

    def before_ledger_write(self) -> None:
        """The ledger is about to carry something out."""

    def accepted(self, commits: Sequence[NewCommit]) -> None:
        """The ledger has accepted a commit; nobody knows yet."""

    def answered(self, lines: Sequence[Line]) -> None:
        """The attempt knows."""


@dataclass
class _Signed:
    """A presigned request: valid until then, by the storage's clock."""

    until: float


class Port:
    """See ``kelpie_worker.sync.object_store.ObjectStore``."""

    def __init__(self, store: HistoryStore, clock: HistoryClock, host: Host) -> None:
        self.store, self._clock, self._host = store, clock, host
        self.requests = 0
        self.plan: dict[int, str] = {}

    # -- requests -----------------------------------------------------------------------------------------------------

    def next_fault(self, what: str, key: str) -> str:
        """Count a request; what is to become of it."""
        self.requests += 1
        fault = self.plan.pop(self.requests, "")
        self._host.note(f"  request {self.requests}: {what} {key}{' -> ' + fault if fault else ''}")
        return fault

    async def before(self, fault: str) -> None:
        """What may happen before a request is carried out."""
        if fault == "die":
            self._host.die()
        elif fault == "freeze":
            await self._host.freeze()
        elif fault == "disturb":
            self._host.disturb()
        elif fault in {"stall", "late"}:
            await asyncio.sleep(STALL_S)
        await self._unless_dead()

    async def after(self, fault: str) -> None:
        """What may happen before the attempt hears of it."""
        if fault == "die after":
            self._host.die()
        elif fault == "freeze after":
            await self._host.freeze()
        await self._unless_dead()

    async def _unless_dead(self) -> None:
        if self._host.dead:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)

    async def _ask(self, what: str, bucket: str, key: str, carry_out: Callable[[], T], fault: str | None = None) -> T:
        if fault is None:
            fault = self.next_fault(what, key)
            await self.before(fault)
        if fault in {"fail", "cut", "stall"}:
            raise StorageUnavailable(f"{what} {key}: {fault}", bucket=bucket, key=key)
        result = carry_out()
        await self.after(fault)
        if fault == "lost":
            raise StorageUnavailable(f"{what} {key}: no answer", bucket=bucket, key=key)
        return result

    async def _sign(self, fence: Fence) -> _Signed:
        return _Signed(self._clock.now() + await fence.trusted())

    def _in_time(self, signed: _Signed, bucket: str, key: str) -> None:
        if self._clock.now() >= signed.until:
            raise LateRequest(f"{key}: sent too late", bucket=bucket, key=key)

    # -- what is never refused for being late -------------------------------------------------------------------------

    async def list(self, bucket: str, prefix: str) -> AsyncIterator[StoredObject]:
        def carry_out() -> list[StoredObject]:
            there = self.store.objects[bucket]
            return [
                StoredObject(key, len(there[key].data), there[key].etag, there[key].modified)
                for key in sorted(there)
                if key.startswith(prefix)
            ]

        for found in await self._ask("list", bucket, prefix, carry_out):
            yield found

    async def head(self, bucket: str, key: str) -> StoredObject | None:
        def carry_out() -> StoredObject | None:
            found = self.store.objects[bucket].get(key)
            return StoredObject(key, len(found.data), found.etag, found.modified) if found else None

        return await self._ask("head", bucket, key, carry_out)

    async def fetch(self, bucket: str, key: str, sink: Sink, *, etag: str, start_byte: int, length_bytes: int) -> None:
        fault = self.next_fault("fetch", f"{key} {start_byte}+{length_bytes}")
        await self.before(fault)
        if fault == "cut":
            await self.store.fetch(
                bucket, key, sink, etag=etag, start_byte=start_byte, length_bytes=max(1, length_bytes // 2)
            )  # fmt: skip
        await self._ask("fetch", bucket, key, lambda: None, fault)
        # The MemoryStore's own, which knows what is wrong with it.
        await self.store.fetch(bucket, key, sink, etag=etag, start_byte=start_byte, length_bytes=length_bytes)

    async def begin(self, bucket: str, key: str) -> str:
        def carry_out() -> str:
            self.store.calls["begin"] += 1
            upload_id = f"upload-{self.store.calls['begin']}"
            self.store.uploads[upload_id] = {}
            return upload_id

        return await self._ask("begin", bucket, key, carry_out)

    async def put_part(self, bucket: str, key: str, upload_id: str, number: int, body: Body) -> str:
        fault = self.next_fault("put_part", f"{key} {number}")
        await self.before(fault)
        data, announced = b"".join(body.chunks()), body.crc32()
        assert zlib.crc32(data) == announced
        return await self._ask(
            "put_part", bucket, key, partial(self._part, bucket, key, upload_id, number, data), fault
        )

    async def copy_part(
        self, bucket: str, key: str, upload_id: str, number: int, source_key: str, start_byte: int, length_bytes: int
    ) -> str:
        def carry_out() -> str:
            source = self._source(bucket, source_key)
            return self._part(bucket, key, upload_id, number, source[start_byte : start_byte + length_bytes])

        return await self._ask("copy_part", bucket, f"{source_key} -> {key} {number}", carry_out)

    def _source(self, bucket: str, key: str) -> bytes:
        found = self.store.objects[bucket].get(key)
        if found is None:
            raise StorageSetupError(f"object {key!r} does not exist", bucket=bucket, key=key)
        return found.data

    def _part(self, bucket: str, key: str, upload_id: str, number: int, data: bytes) -> str:
        self._parts(bucket, key, upload_id)[number] = data
        return hashlib.md5(data).hexdigest()

    def _parts(self, bucket: str, key: str, upload_id: str) -> dict[int, bytes]:
        if upload_id not in self.store.uploads:
            raise UploadGone(f"{key}: the upload is gone", bucket=bucket, key=key)
        return self.store.uploads[upload_id]

    async def abort(self, bucket: str, key: str, upload_id: str) -> None:
        await self._ask("abort", bucket, key, lambda: self.store.uploads.pop(upload_id, None))

    # -- what makes something visible ---------------------------------------------------------------------------------

    async def put(self, bucket: str, key: str, body: Body, fence: Fence) -> StoredObject:
        signed = await self._sign(fence)
        fault = self.next_fault("put", key)
        announced, pieces = body.crc32(), body.chunks()
        data = bytearray(next(pieces, b""))
        await self.before(fault)
        for piece in pieces if fault != "cut" else ():
            data += piece
        if fence.remaining_s() <= 0:  # as the wire does: what is half sent when trust ends is never sent whole
            raise StorageUnavailable("muted while sending", bucket=bucket, key=key)
        return await self._ask("put", bucket, key, partial(self._put, signed, bucket, key, data, announced), fault)

    def _put(
        self, signed: _Signed, bucket: str, key: str, data: bytes | bytearray, announced: int, etag: str = ""
    ) -> StoredObject:
        self._in_time(signed, bucket, key)
        assert zlib.crc32(data) == announced
        self._host.before_write(bucket, key, bytes(data))
        self.store.seed(bucket, key, bytes(data), etag)
        kept = self.store.objects[bucket][key]
        return StoredObject(key, len(data), kept.etag, kept.modified)

    async def copy(self, bucket: str, key: str, source_key: str, fence: Fence) -> StoredObject:
        signed = await self._sign(fence)
        fault = self.next_fault("copy", f"{source_key} -> {key}")
        await self.before(fault)
        data = self._source(bucket, source_key)
        carry_out = partial(self._put, signed, bucket, key, data, zlib.crc32(data))
        return await self._ask("copy", bucket, key, carry_out, fault)

    async def delete(self, bucket: str, key: str, fence: Fence, *, forever: bool = False) -> None:
        signed = await self._sign(fence)
        fault = self.next_fault("delete", key)
        await self.before(fault)

        def carry_out() -> None:
            self._in_time(signed, bucket, key)
            self._host.before_delete(bucket, key)
            there, versions = self.store.objects[bucket], self.store.versions[bucket]
            gone = there.pop(key, None)
            older = versions.get(key, [])
            if gone and bucket in self.store.versioned and not forever:
                versions.setdefault(key, []).append(gone)
            elif forever and older:
                there[key] = older.pop()

        await self._ask("delete", bucket, key, carry_out, fault)

    async def complete(
        self, bucket: str, key: str, upload_id: str, part_etags: Sequence[str], fence: Fence, *, size_bytes: int
    ) -> StoredObject:
        signed = await self._sign(fence)
        fault = self.next_fault("complete", key)
        await self.before(fault)

        def carry_out() -> StoredObject:
            parts = self._parts(bucket, key, upload_id)
            self._in_time(signed, bucket, key)
            data = b"".join(parts[number] for number in sorted(parts))
            assert len(data) == size_bytes
            assert [hashlib.md5(parts[number]).hexdigest() for number in sorted(parts)] == list(part_etags)
            etag = hashlib.md5(b"".join(bytes.fromhex(tag) for tag in part_etags)).hexdigest()
            stored = self._put(signed, bucket, key, data, zlib.crc32(data), f"{etag}-{len(part_etags)}")
            del self.store.uploads[upload_id]
            return stored

        return await self._ask("complete", bucket, key, carry_out, fault)


class PortLedger:
    """The ledger's operations as one attempt calls them."""

    def __init__(self, ledger: Ledger, host: Host) -> None:
        self._ledger, self._host = ledger, host
        self.fault = ""

    def _call(self, operation: Callable[[], T], *, writes: bool) -> T:
        if self._host.dead:
            raise LedgerUnavailable("dead")
        fault, self.fault = self.fault, ""
        if fault in {"fail", "cut", "stall"}:
            raise LedgerUnavailable(fault)
        if writes:
            self._host.before_ledger_write()
        result = operation()
        if fault == "lost":
            raise LedgerUnavailable("no answer")
        return result

    def renew(
        self, token: FencingToken, phase: Phase, progress: str = "", *, count: bool = True, transfer: str = "",
        output: NewOutput | None = None,
    ) -> Renewal:  # fmt: skip
        if self._host.dead:
            raise LedgerUnavailable("dead")
        return self._ledger.renew(token, phase, progress, count=count, transfer=transfer, output=output)

    def lines(self, addresses: Sequence[LineAddress]) -> list[Line]:
        return self._call(lambda: self._ledger.lines(addresses), writes=False)

    def commit(self, token: FencingToken, commits: Sequence[NewCommit], facts: dict[str, Any]) -> list[Line]:
        def accept() -> list[Line]:
            lines = self._ledger.commit(token, commits, facts)
            self._host.accepted(commits)
            return lines

        return self._call(accept, writes=True)

    def server_time(self) -> float:
        return self._ledger.server_time()

    def get_many(self, job_ids: Sequence[str]) -> list[JobRecord]:
        return self._call(lambda: self._ledger.get_many(job_ids), writes=False)

    def collected(self, line: LineAddress, ids: Sequence[str]) -> None:
        self._call(lambda: self._ledger.collected(line, ids), writes=True)


class PortJournal:
    """The attempt's own journal, whose calls are requests like those to the storage."""

    def __init__(self, ledger: PortLedger, port: Port, host: Host) -> None:
        self._ledger, self._port, self._host = ledger, port, host
        self._inner = LedgerJournal(ledger, host.token)  # type: ignore[arg-type]  # a part of a ledger

    async def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        fault = self._port.next_fault("ledger", what)
        await self._port.before(fault)
        self._ledger.fault = fault
        try:
            result = await call()
        finally:
            self._ledger.fault = ""
        await self._port.after(fault)
        return result

    async def lines(self, addresses: Sequence[LineAddress]) -> list[Line]:
        found: list[Line] = await self._ask("lines", partial(self._inner.lines, addresses))
        return found

    async def commit(self, commits: Sequence[NewCommit], facts: dict[str, Any]) -> list[Line]:
        lines: list[Line] = await self._ask(f"commit {commits[0].id}", partial(self._inner.commit, commits, facts))
        self._host.answered(lines)
        return lines

    async def spared(self, job_ids: Collection[str], grace_s: float) -> set[str]:
        found: set[str] = await self._ask("spared", partial(self._inner.spared, job_ids, grace_s))
        return found

    async def collected(self, address: LineAddress, ids: Sequence[str]) -> None:
        await self._ask(f"collected {len(ids)}", partial(self._inner.collected, address, ids))
