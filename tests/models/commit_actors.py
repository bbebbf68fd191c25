"""Who acts in the commit model: attempts of jobs, users who roll back, calls that arrive once more.

Each is a generator that yields before every request. What it asks for is decided before the yield, and happens after
it: a freeze may sit in between. Limits: storage and ledger never fail here; they are only late, and forgetful.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.models.commit_cleaning import due, orphans, read
from tests.models.commit_world import LEASE, PREFIXES, CommitId, Extent, Manifest, New, Token, World

Actor = Generator[None, None, None]
Step = Generator[None, None, bool]
Files = dict[str, Extent]
PATHS = "xyz"


@dataclass
class Attempt:
    """One attempt of a job, from its claim to its end."""

    w: World
    token: Token
    spawn: Callable[[Actor], None]
    most_commits: int
    until: int = 0
    base: dict[str, CommitId | None] = field(default_factory=dict)
    last: dict[str, CommitId | None] = field(default_factory=dict)
    files: dict[str, Files] = field(default_factory=dict)
    seen: dict[tuple[str, str], Extent] = field(default_factory=dict)
    early: dict[str, Files] = field(default_factory=dict)
    generation: int = 0
    counter: int = 0
    deletions: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The claim was granted just now."""
        self.until = self.w.now + LEASE
        self.w.trusts(self.token, self.until)

    @property
    def prefixes(self) -> tuple[str, ...]:
        return PREFIXES[self.token.job]

    def run(self) -> Actor:
        yield
        self.restore()
        for _ in range(self.w.rng.randint(1, self.most_commits)):
            if not (yield from self.commit()):
                return
            if self.w.rng.random() < 0.3:  # a look at the ledger between two commits
                yield
                yield from self.clean()
            if self.w.rng.random() < 0.5:  # otherwise they go on behind the next commit
                yield from self.delete()
        yield
        yield from self.clean()
        yield from self.delete()
        if self.w.rng.random() < 0.6:
            yield from self.complete()

    def restore(self) -> None:
        known = [0]
        for prefix in self.prefixes:
            line = self.w.lines[prefix]
            self.base[prefix] = self.last[prefix] = line.head.id if line.head else None
            self.files[prefix] = dict(self.w.manifests[prefix, line.head.id].files) if line.head else {}
            known.append(line.generation)
            for commit in self.w.listed(prefix):
                known.append(commit.generation)
                self.note(prefix, dict(self.w.manifests[prefix, commit].files))
        self.generation = max(known)

    def note(self, prefix: str, files: Files) -> None:
        self.seen |= {(prefix, extent.digest): extent for extent in files.values()}

    def trusted(self) -> Step:
        """Whether the trust window is open, if need be after a renewal; False once the job is lost."""
        if self.w.now >= self.until:
            asked = self.w.now
            yield
            if not self.w.renew(self.token):
                return False
            self.until = asked + LEASE
            self.w.trusts(self.token, self.until)
        return True

    def visible(self, write: Callable[[], None]) -> Step:
        """A request that is signed until the trust window ends, however late it is sent; again when it was refused."""
        while True:
            if not (yield from self.trusted()):
                return False
            signed_until = self.until
            yield
            if self.w.now < signed_until or not self.w.rules.storage_fence:
                write()
                return True

    # -- a commit ----------------------------------------------------------------------------------------------------

    def commit(self) -> Step:
        self.generation += 1
        commit = CommitId(self.generation, self.token.attempt, self.token.nonce)
        why = self.w.rng.choice(["quiet", "quiet", "report"])
        new: dict[str, Files] = {}
        for prefix in self.prefixes:
            new[prefix] = yield from self.upload(prefix)
        for prefix in self.prefixes:
            if not (yield from self.visible(partial(self.write_manifest, prefix, commit, new[prefix]))):
                return False
        if not self.w.rules.plain_after and not (yield from self.place(new)):
            return False
        asked = [New(prefix, commit, why, self.base[prefix]) for prefix in self.prefixes]
        for part in [asked] if self.w.rules.together else [[one] for one in asked]:
            yield
            if not self.w.commit(self.token, part):
                self.w.say(f"{self.token} is refused")
                return False
        if self.w.rng.random() < 0.2:
            self.spawn(late(self.w, self.token, asked))
        for prefix in self.prefixes:
            self.files[prefix], self.last[prefix] = new[prefix], commit
        yield from self.clean()
        return not self.w.rules.plain_after or (yield from self.place(new))

    def upload(self, prefix: str) -> Generator[None, None, Files]:
        """Some files changed: each into a segment of its own, or all into one; a closed file is sent ahead of time."""
        w, files = self.w, dict(self.files[prefix])
        files |= self.early.pop(prefix, {})
        dirty = []
        for path in w.rng.sample(PATHS, w.rng.randint(1, 2)):
            if w.rng.random() < 0.15:
                files.pop(path, None)
                continue
            digest = f"{path}{w.rng.randint(0, 2)}"  # few, so that contents come back
            if path in files and files[path].digest == digest:
                continue
            if not w.rules.base_only and (prefix, digest) in self.seen:
                files[path] = self.seen[prefix, digest]
            else:
                dirty.append((path, digest))
        for segment in [dirty] if w.rng.random() < 0.5 and dirty else [[one] for one in dirty]:
            files |= yield from self.put(prefix, segment)
        if w.rng.random() < 0.2:
            self.early[prefix] = yield from self.put(prefix, [("x", "x9")])
        self.note(prefix, files)
        return files

    def put(self, prefix: str, segment: list[tuple[str, str]]) -> Generator[None, None, Files]:
        w = self.w
        self.counter += 1
        key = (prefix, *self.token, self.counter if w.rules.fresh_keys else 1 + self.counter % 2)
        yield
        w.objects[key] = tuple(digest for _, digest in segment)
        w.written[key] = w.now
        w.changed = True
        return {path: Extent(key, at, digest) for at, (path, digest) in enumerate(segment)}

    def write_manifest(self, prefix: str, commit: CommitId, files: Files) -> None:
        self.w.manifests[prefix, commit] = Manifest(files, self.last[prefix])
        self.w.written[prefix, commit] = self.w.now

    def place(self, new: dict[str, Files]) -> Step:
        """The plain keys become those of a commit, one by one."""
        for prefix, files in new.items():
            for path in PATHS:
                want = files[path].digest if path in files else None
                if self.w.plain[prefix].get(path) == want:
                    continue
                if not (yield from self.visible(partial(self.write_plain, prefix, path, want))):
                    return False
        return True

    def write_plain(self, prefix: str, path: str, digest: str | None) -> None:
        if digest is None:
            self.w.plain[prefix].pop(path, None)
        else:
            self.w.plain[prefix][path] = digest

    def complete(self) -> Actor:
        if any(self.last[prefix] is None for prefix in self.prefixes) or not (yield from self.place(self.files)):
            return
        yield
        self.w.end(self.token)

    # -- what is not needed any more ---------------------------------------------------------------------------------

    def clean(self) -> Actor:
        """Reads the lines, lists the storage some time later, and decides what to delete; it is sent whenever."""
        w = self.w
        for reading in [read(w, prefix, self.token) for prefix in self.prefixes]:
            yield
            prefix = reading.prefix
            objects, commits = due(w, reading)
            orphan_objects, orphan_commits = orphans(w, reading)
            for key in [*objects, *orphan_objects]:
                self.deletions.append(partial(self.forget, w.objects, key))
            for commit in [*commits, *orphan_commits]:
                self.deletions.append(partial(self.forget, w.manifests, (prefix, commit)))
            if commits:
                self.deletions.append(partial(w.collected, prefix, commits))

    def forget(self, where: MutableMapping[Any, Any], key: Any) -> None:
        if where.pop(key, None) is not None:
            self.w.changed = True
            self.w.say(f"{self.token} deletes {key}")

    def delete(self) -> Actor:
        while self.deletions:
            now = self.deletions.pop(0)
            yield
            now()


def late(w: World, token: Token, commits: list[New]) -> Actor:
    """The network delivers a commit's call a second time."""
    for _ in range(w.rng.randint(1, 12)):
        yield
    if w.commit(token, commits):
        w.say(f"{token}: a call for {tuple(commits[0].id)} arrived once more")


def rollback(w: World, job: str) -> Actor:
    """A user goes back to an older commit: reads, writes new manifests, and asks the ledger."""
    yield
    prefixes = PREFIXES[job]
    lines = [w.lines[prefix] for prefix in prefixes]
    if w.rules.rollback_to_kept:
        choice = [entry.id for entry in lines[0].kept if all(line.has(entry.id) for line in lines)]
    else:
        choice = [c for c in w.listed(prefixes[0]) if all((prefix, c) in w.manifests for prefix in prefixes)]
    if not choice:
        return
    of = w.rng.choice(choice)
    generation = 1 + max(c.generation for prefix in prefixes for c in w.listed(prefix))
    commit = CommitId(generation, 0, w.nonce())
    for prefix in prefixes:
        manifest = w.manifests.get((prefix, of))
        if manifest is None:
            return
        yield
        w.manifests[prefix, commit] = Manifest(manifest.files, of)
        w.written[prefix, commit] = w.now
    yield
    if w.rollback(job, of, [New(prefix, commit, "rollback", None) for prefix in prefixes]):
        w.say(f"{job} is rolled back to {tuple(of)}")
