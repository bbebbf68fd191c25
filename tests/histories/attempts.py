"""One attempt of a history: its machine, its process and the product's session, on a loop of its own.

Limits: what runs when the process is told to is decided by the history; nothing runs by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kelpie_celery.clock import Instant
from kelpie_celery.errors import KelpieError
from kelpie_celery.ledger.types import Granted, Line, NewCommit
from kelpie_worker.lease import Lease
from kelpie_worker.sync import Dirs, SyncSession
from kelpie_worker.sync.inotify import Inotify
from kelpie_worker.sync.object_store import ObjectStore
from tests.histories.disk import UTF8_NAMES, FileOp, Job, scan
from tests.histories.port import Port, PortJournal, PortLedger
from tests.histories.truth import Moment
from tests.histories.virtual_time import VirtualLoop

if TYPE_CHECKING:
    from tests.histories.world import World

LIMIT_S = 3600.0
MARGIN_S = 5.0
How = Literal["done", "frozen", "died", "over"]


class Told(Inotify):
    """Hears what the history tells, without a thread."""

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def rearm(self) -> None:
        pass

    def tell(self, written: Sequence[Path]) -> None:
        """Files were closed after writing; perhaps something else happened, too."""
        for path in written:
            roots = [root for root in self._all_roots if path.is_relative_to(root)]
            self._hints.closed(os.fsencode(path), roots)
        self._hints.touched(self._all_roots)
        self._hints.tell()


class Blind(Told):
    """Hears nothing, and says so: directories are looked at regularly."""

    def start(self) -> None:
        self._hints.set_blind(True)

    def tell(self, written: Sequence[Path]) -> None:
        pass


class HistoryAttempt:
    """See the module; also the `Host` of its port."""

    def __init__(self, world: World, granted: Granted) -> None:
        self.world, self.token = world, granted.token
        self.home = world.root / f"machine-{world.next_number()}"
        for name in ("work", "scratch"):
            (self.home / name).mkdir(parents=True)
        self.loop = VirtualLoop(world.clock)
        self.loop.set_exception_handler(self._loop_complains)
        self.port = Port(world.store, world.clock, self)
        self.dead = self.frozen = self.buried = False
        self._thawed = asyncio.Event()
        self._main: asyncio.Task[Any] | None = None
        self._background: list[asyncio.Task[Any]] = []
        work = self.home / "work"
        self.jobs = [Job(work / name) for name in world.line_names]
        self.out = Job(work / "out", UTF8_NAMES)
        self.moments: list[Moment] = []
        """What the directories held, now and since the commit under way began."""
        self.held: list[Moment] = []
        """What was restored, and what the ledger accepted since."""
        self.disturbances: list[FileOp] = []
        ledger = PortLedger(world.ledger, self)
        self.lease = Lease(
            self.token, ledger, lease_s=granted.lease_s, margin_s=MARGIN_S, blind_s=900.0,
            heartbeat_s=granted.lease_s / 2, granted=Instant.now(world.clock), clock=world.clock,
            on_cancel=lambda: None,
        )  # fmt: skip
        self.journal = PortJournal(ledger, self.port, self)
        self.session = SyncSession.open(
            world.settings, world.definition, token=self.token, fence=self.lease, journal=self.journal,
            dirs=Dirs(work, work / "in", work / "out", work / "ck"), scratch=self.home / "scratch",
            clock=world.clock, store=self._store,
        )  # fmt: skip

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[ObjectStore]:
        yield self.port

    # -- running ------------------------------------------------------------------------------------------------------

    def begin(self) -> How:
        """Start the process: heartbeats, and the session."""
        self._background.append(self.loop.create_task(self.lease.keep()))
        self._background[0].add_done_callback(lambda _: self.loop.stop())
        return self.run(self.session.__aenter__())

    def run(self, work: Coroutine[Any, Any, Any], limit_s: float = LIMIT_S) -> How:
        """Let the process do something to its end, or as far as it comes.

        Raises:
            Exception: What it failed with.
        """
        if not self._busy:
            del self.moments[:-1]
        self._main = self.loop.create_task(work)
        self._main.add_done_callback(lambda _: self.loop.stop())
        return self._go_on(limit_s)

    @property
    def _busy(self) -> bool:
        """Whether a commit that began before is under way."""
        checkpoints = self.session._checkpoints
        return checkpoints is not None and checkpoints._watch.busy.locked()

    def _go_on(self, limit_s: float) -> How:
        assert self._main is not None
        end_s = self.loop.time() + limit_s
        over = self.loop.call_later(limit_s, self.loop.stop)
        while not (self._main.done() or self.dead or self.frozen or self.loop.time() >= end_s - 0.01):
            self.loop.run_forever()
            if any(task.done() and not task.cancelled() and task.exception() for task in self._background):
                break
        over.cancel()
        if self.dead:
            self.bury()
            return "died"
        if self.frozen:
            return "frozen"
        for task in self._background:
            if task.done() and not task.cancelled() and (error := task.exception()):
                self._cancel_main()
                raise error
        if not self._main.done():
            self._cancel_main()
            return "over"
        self._main.result()
        return "done"

    def _cancel_main(self) -> None:
        assert self._main is not None
        self._main.cancel()
        self._turn(self._main)

    def _turn(self, *tasks: asyncio.Task[Any]) -> None:
        """Let cancelled tasks come to their end, within bounds."""
        over = self.loop.call_later(LIMIT_S, self.loop.stop)
        gathered = asyncio.gather(*tasks, return_exceptions=True)
        gathered.add_done_callback(lambda _: self.loop.stop())
        self.loop.run_forever()
        over.cancel()

    def thaw(self) -> How:
        """SIGCONT.

        Raises:
            Exception: What it failed with then.
        """
        self.frozen = False
        self._thawed.set()
        return self._go_on(600.0)

    def watch(self) -> None:
        """Look after the checkpoints from now on."""
        self.moments = [self.now_holds()]
        self._background.append(self.loop.create_task(self.session.watch(list)))
        self._background[-1].add_done_callback(lambda _: self.loop.stop())

    async def end_watch(self) -> None:
        """The command has ended."""
        for task in self._background[1:]:
            task.cancel()
        await asyncio.gather(*self._background[1:], return_exceptions=True)
        del self._background[1:]

    def bury(self) -> None:
        """Nothing of it runs any more, nothing of its disk is left."""
        if self.buried:
            return
        self.buried = self.dead = True
        for _ in range(10):
            tasks = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self._turn(*tasks)
        for task in self._background:
            if task.done() and not task.cancelled():
                task.exception()
        if self._main and self._main.done() and not self._main.cancelled():
            self._main.exception()
        self.loop.close()
        shutil.rmtree(self.home, ignore_errors=True)

    def leave(self) -> None:
        """End in order, as a process does whose attempt has ended with an error."""
        with contextlib.suppress(KelpieError, TimeoutError):
            self.run(self.session.__aexit__(None, None, None), 120.0)
        self.bury()

    def _loop_complains(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self.dead and not isinstance(error, KelpieError):
            self.world.violation(f"attempt {self.token.attempt}: {context.get('message')}: {error!r}")

    # -- the job ------------------------------------------------------------------------------------------------------

    def now_holds(self) -> Moment:
        """What the directories of the lines hold."""
        return tuple(scan(job.directory) for job in self.jobs)

    def look(self) -> None:
        """Note a moment."""
        self.moments.append(self.now_holds())

    def work(self, op: FileOp, where: int) -> None:
        """The job does something to its files."""
        jobs = [*self.jobs, self.out]
        written = jobs[where % len(jobs)].do(op)
        checkpoints = self.session._checkpoints
        inotify = checkpoints._watch._inotify if checkpoints else None
        if inotify is not None:
            inotify.tell(written)  # type: ignore[attr-defined]  # a `Told`

    # -- the host of the port -----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self.world.note(f"{text}  [attempt {self.token.attempt}]")

    def die(self) -> None:
        self.dead = True
        self.loop.stop()

    async def freeze(self) -> None:
        self.frozen = True
        self._thawed.clear()
        self.loop.stop()
        await self._thawed.wait()

    def disturb(self) -> None:
        if self.disturbances and self.moments:
            op = self.disturbances.pop()
            self.note(f"  disturbed by {op}")
            self.work(op, op.seed % len(self.jobs))
            self.look()

    def before_write(self, bucket: str, key: str, data: bytes) -> None:
        self.world.before_write(self, key, data)

    def before_delete(self, bucket: str, key: str) -> None:
        self.world.before_delete(self, key)

    def before_ledger_write(self) -> None:
        self.world.remember()

    def accepted(self, commits: Sequence[NewCommit]) -> None:
        self.world.accepted(self, commits)

    def answered(self, lines: Sequence[Line]) -> None:
        self.world.answered(lines)
