"""Deleting what no commit refers to any more, in the background of an attempt.

Three kinds, each deleted only by the attempt that holds the line:
- *discarded*: segments of this attempt's that were filled in vain, so that no manifest names them;
- *due*: what dropped commits refer to, the grace after they were dropped (see `kelpie_celery.checkpoints.sweep`);
- *orphans*: what attempts that died left, found in a listing, once an attempt. Each of its conditions has a history
  without it in which a checkpoint is torn (`tests/models/test_commit_stories.py`).

Limits: what cannot be deleted now is found again later, by this attempt or the next. An attempt that ends before its
first commit is older than the grace sweeps nothing; ``kelpie checkpoints gc`` does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial

from kelpie_celery.checkpoints import layout, sweep
from kelpie_celery.checkpoints.manifest import BadManifest, Manifest
from kelpie_celery.errors import LedgerUnavailable, StorageError
from kelpie_celery.ledger.types import Line
from kelpie_worker.sync.fence import Fence
from kelpie_worker.sync.journal import Journal
from kelpie_worker.sync.lines import LineState
from kelpie_worker.sync.manifests import Manifests
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.threads import idle_threads, in_thread, run_bounded

log = logging.getLogger(__name__)

EVERY_S = 60.0
_DELETES_AT_ONCE = 4
_MOST_DISCARDED = 100_000


class Collector:
    """Collects the garbage of an attempt's lines.

    Args:
        store: The storage.
        journal: The ledger.
        fence: Of the attempt.
        job_id: The job.
        is_own: Whether a key is a segment or a manifest of this attempt's.
        grace_s: How long what no commit refers to stays, seconds.
        every_s: How often it is looked for.
    """

    def __init__(
        self, store: ObjectStore, journal: Journal, fence: Fence, job_id: str, is_own: Callable[[str], bool], *,
        grace_s: float, every_s: float = EVERY_S,
    ) -> None:  # fmt: skip
        self._store, self._journal, self._fence = store, journal, fence
        self._job_id, self._is_own = job_id, is_own
        self._grace_s, self._every_s = grace_s, every_s
        self._lines: dict[tuple[str, str], tuple[LineState, Line]] = {}
        self._refers_to: dict[tuple[str, str], dict[str, frozenset[str]]] = {}
        self._counting: set[asyncio.Task[None]] = set()
        self._discarded: dict[tuple[str, str], None] = {}
        self._swept: set[tuple[str, str]] = set()

    def discard(self, bucket: str, keys: Iterable[str]) -> None:
        """These objects, which may exist, were made in vain."""
        for key in keys:
            if len(self._discarded) < _MOST_DISCARDED:
                self._discarded[bucket, key] = None

    def note(self, accepted: Sequence[tuple[LineState, Line]]) -> None:
        """Take note of a commit that the ledger accepted."""
        for line, state in accepted:
            place = line.address.bucket, line.address.prefix
            self._lines[place] = line, state
            if line.base is not None:
                task = asyncio.create_task(self._remember(place, line.base))
                self._counting.add(task)
                task.add_done_callback(self._counting.discard)

    async def _remember(self, place: tuple[str, str], manifest: Manifest) -> None:
        self._refers_to.setdefault(place, {})[manifest.header.id] = await _references_of(manifest)

    async def run(self) -> None:
        """Collect now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.collect()

    async def collect(self) -> None:
        """Delete what may go now; a storage or ledger that fails is met again the next time.

        Raises:
            LeaseLost: The attempt lost its job.
        """
        await asyncio.gather(*self._counting)
        try:
            await self._delete_discarded()
            for place in list(self._lines):
                await self._collect_due(place)
                if place not in self._swept and await self._sweep(place):
                    self._swept.add(place)
        except (StorageError, LedgerUnavailable, BadManifest) as error:
            log.warning("garbage stays on the storage for now", extra={"action": "collect_failed", "error": str(error)})

    async def _delete_discarded(self) -> None:
        for bucket, key in list(self._discarded):
            await self._store.delete(bucket, key, self._fence, forever=True)
            self._discarded.pop((bucket, key), None)

    async def _collect_due(self, place: tuple[str, str]) -> None:
        line, state = self._lines[place]
        now = await self._now(line, state)
        dropped = [sweep.DroppedCommit(d.commit.id, d.at) for d in now.dropped]
        due = sweep.due(dropped, now.now, self._grace_s)
        if not due:
            return
        live = sweep.live((commit.id for commit in now.kept), dropped, now.now, self._grace_s)
        dead = sweep.garbage(due, live, await self._references(place, now, live))
        # A manifest is what a worker wrote, which may lie: what it names elsewhere was never a commit's.
        await self._delete(place[0], [key for key in dead if layout.is_of_commits(place[1], key)])
        await self._journal.collected(line.address, due)
        for id_ in due:
            self._refers_to[place].pop(id_, None)

    async def _now(self, line: LineState, state: Line) -> Line:
        """The line as it stands; what was dropped since the last commit is nothing, but time has passed."""
        if not state.dropped:
            return state
        return (await self._journal.lines([line.address]))[0]

    async def _references(self, place: tuple[str, str], state: Line, live: Set[str]) -> dict[str, frozenset[str]]:
        """What each commit that the ledger knows refers to.

        Raises:
            BadManifest: That of a live commit cannot be read: then nothing may be deleted.
        """
        cached = self._refers_to.setdefault(place, {})
        commits = {c.id: c for c in (*state.kept, *(dropped.commit for dropped in state.dropped))}
        for commit in commits.values():
            if commit.id in cached:
                continue
            # Each on its own: all manifests of a line together may be larger than the memory.
            manifest = await Manifests(self._store, place[0]).load(commit.manifest)
            if manifest is not None:
                cached[commit.id] = await _references_of(manifest)
            elif commit.id in live:
                raise BadManifest(f"{commit.manifest} is gone, although it must not be yet")
        return {id_: cached[id_] for id_ in commits if id_ in cached}

    async def _sweep(self, place: tuple[str, str]) -> bool:
        """Find what attempts that died have left; whether it was time for that."""
        bucket, prefix = place
        # The answer to a commit of our own: read when this attempt owned its job, and its commit was the head.
        line, state = self._lines[place]
        settled_s = state.now - self._grace_s
        commits = (*state.kept, *(dropped.commit for dropped in state.dropped))
        if not any(commit.at <= settled_s and self._is_own(commit.manifest) for commit in commits):
            return False  # a claim that Redis forgets would give the line back to the attempt before
        listed = [found async for found in self._store.list(bucket, layout.data_prefix(prefix))]
        listed += [found async for found in self._store.list(bucket, layout.commits_prefix(prefix))]
        dropped = [sweep.DroppedCommit(d.commit.id, d.at) for d in state.dropped]
        live = sweep.live((commit.id for commit in state.kept), dropped, state.now, self._grace_s)
        known = await self._references(place, state, live)
        referred = {key for id_ in live for key in known[id_]} | (
            await _references_of(line.base) if line.base else set()
        )
        others = {job for found in listed if (job := layout.job_of_segment(prefix, found.key))} - {self._job_id}
        spared = await self._journal.spared(others, self._grace_s)
        newest = max((commit.generation for commit in commits if commit.at <= settled_s), default=0)
        dead = [
            found.key
            for found in listed
            # Twice: the storage's clock is not Redis's.
            if sweep.is_orphan(found.key, found.modified, referred, state.now, 2 * self._grace_s)
            and not self._is_own(found.key)
            and layout.job_of_segment(prefix, found.key) not in spared
            and _generation(found.key) <= newest
        ]
        if dead:
            extra = {"action": "orphans_deleted", "bucket": bucket, "prefix": prefix, "objects": len(dead)}
            log.info("objects that nothing refers to are deleted", extra=extra)
            await self._delete(bucket, dead)
        return True

    async def _delete(self, bucket: str, keys: Iterable[str]) -> None:
        delete = partial(self._delete_one, bucket)
        await run_bounded(sorted(keys), delete, _DELETES_AT_ONCE)

    async def _delete_one(self, bucket: str, key: str) -> None:
        await self._store.delete(bucket, key, self._fence, forever=True)


async def _references_of(manifest: Manifest) -> frozenset[str]:
    """What a commit refers to; of a million files that takes a second."""
    return await in_thread(lambda: frozenset(manifest.refers_to()), idle_threads())


def _generation(key: str) -> int:
    """That of a manifest, which may be one that somebody is about to make the head; 0 of a segment."""
    name = layout.parse_id(layout.id_of_manifest(key) or "")
    return name.generation if name else 0
