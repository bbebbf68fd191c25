"""What may be deleted beside a line: objects of dropped commits, and orphans that no commit refers to.

Both decide from one reading of the ledger, and are safe however late the deletes are sent. Why, for orphans: the
sweeper has a commit on this line that is too old to be lost. So it holds the line whatever the ledger forgets, and
every earlier attempt of its job is fenced for good. Another job can commit only after this one's end, and only on the
head that it restored; the objects that it has in hand are spared as long as it lives, and so is its manifest: its
generation is above that of all commits that are too old to be lost. The same holds for a rollback under way.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.models.commit_world import GRACE, CommitId, Entry, Line, Token, World

Key = tuple[object, ...]
Found = tuple[list[Key], list[CommitId]]


@dataclass(frozen=True)
class Reading:
    """A line as the ledger told it, when, and whether the reader owned its job then."""

    prefix: str
    line: Line
    at: int
    reader: Token
    owner: bool

    @property
    def kept(self) -> list[Entry]:
        return list(self.line.kept)

    @property
    def recent(self) -> list[Entry]:
        """What was dropped so lately that the ledger may yet forget it."""
        return [entry for entry, at in self.line.dropped if self.at - at < GRACE]

    @property
    def known(self) -> list[Entry]:
        return [*self.line.kept, *(entry for entry, _ in self.line.dropped)]

    @property
    def settled(self) -> list[Entry]:
        """Commits that are too old to be lost."""
        return [entry for entry in self.known if entry.at <= self.at - GRACE]


def read(w: World, prefix: str, reader: Token) -> Reading:
    return Reading(prefix, w.lines[prefix], w.now, reader, w.owns(reader))


def refs(w: World, prefix: str, entries: list[Entry]) -> set[Key] | None:
    """The objects that commits refer to; None when a manifest is not there any more."""
    found = [w.manifests.get((prefix, entry.id)) for entry in entries]
    if None in found and w.rules.refs_known:
        return None
    return {extent.key for manifest in found if manifest for extent in manifest.files.values()}


def due(w: World, reading: Reading) -> Found:
    """Objects and manifests of dropped commits whose time has come."""
    live = refs(w, reading.prefix, [*reading.kept, *(reading.recent if w.rules.grace_refs else [])])
    if live is None:
        return [], []
    wait = GRACE if w.rules.grace else 0
    gone = [entry for entry, at in reading.line.dropped if reading.at - at >= wait]
    there = [entry for entry in gone if (reading.prefix, entry.id) in w.manifests]
    return sorted((refs(w, reading.prefix, there) or set()) - live), [entry.id for entry in gone]


def orphans(w: World, reading: Reading) -> Found:
    """Objects and manifests of nobody."""
    rules, me, prefix = w.rules, reading.reader, reading.prefix
    if rules.sweep_by_owner and not reading.owner:
        return [], []
    if rules.sweep_settled and not any(entry.token == me for entry in reading.settled):
        return [], []
    if reading.line.head is None or reading.line.head.token != me:
        return [], []
    spared = [*reading.kept, *(reading.recent if rules.sweep_recent else [])]
    live = refs(w, prefix, spared)
    if live is None:
        return [], []
    old = (reading.at if rules.sweep_age else w.now) - GRACE
    objects = [
        key for key in w.objects
        if key[0] == prefix and key not in live and w.written[key] <= old and _nobodys(w, key, me)
    ]  # fmt: skip
    below = max((entry.id.generation for entry in reading.settled), default=0)
    ids = {entry.id for entry in spared}
    commits = [
        commit for commit in w.listed(prefix)
        if commit not in ids and w.written[prefix, commit] <= old
        and (commit.generation <= below or not rules.sweep_generations)
    ]  # fmt: skip
    return objects, commits


def _nobodys(w: World, key: Key, me: Token) -> bool:
    job = str(key[1])
    if job == me.job:
        return key[1:4] != tuple(me) or not w.rules.sweep_spares_own
    if w.jobs[job].lives:
        return not w.rules.sweep_spares_live
    return w.jobs[job].ended <= w.now - GRACE or not w.rules.sweep_spares_late
