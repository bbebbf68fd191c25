"""Whatever a job does, and wherever it dies: the next attempt finds what the last accepted commit saw; P3."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_worker.sync.manifests import Manifests
from tests.contract.desk import Desk, parts
from tests.contract.fakes_s3 import HandFence, MemoryStore
from tests.contract.shelf import Shelf

GRACE_S = 100.0

names = st.sampled_from(["a", "b", "deep/c", "deep/er/d", os.fsdecode(b"\xff")])
content = st.one_of(
    st.binary(max_size=20),
    st.builds(lambda byte, size: bytes([byte]) * size, st.integers(0, 255), st.sampled_from([1_100_000, 8_400_000])),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), names, content),
        st.tuples(st.just("append"), names, content),
        st.tuples(st.just("delete"), names, st.none()),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("link"), names, names),
        st.tuples(st.just("commit"), st.none(), st.booleans()),
        st.tuples(st.just("restart"), st.none(), st.booleans()),
        st.tuples(st.just("forget"), st.none(), st.none()),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(steps, st.booleans(), st.booleans())
def test_the_next_attempt_finds_what_the_last_commit_saw(
    steps: list[tuple[str, Any, Any]], compression: bool, packed: bool
) -> None:
    with tempfile.TemporaryDirectory() as home:
        asyncio.run(_history(Path(home), steps, compression=compression, plain="never" if packed else "end"))


async def _history(home: Path, steps: list[tuple[str, Any, Any]], *, compression: bool, plain: str) -> None:
    memory = MemoryStore("bucket")
    desk = Desk(home / "desk", Shelf(memory, "bucket", HandFence()))
    definition = desk.checkpoint(compression=compression, plain=plain)
    committed: dict[str, Any] = {}
    placed_before: set[str] = set()
    attempts = [steps_ for steps_ in _cut(steps) if steps_] or [[]]
    for number, attempt in enumerate(attempts, 1):
        async with desk.attempt(definition, number) as sync:
            assert _seen(desk.ck) == committed
            for what, one, two in attempt:
                if what == "commit":
                    await sync.commit("test", plain=two)
                    committed = _seen(desk.ck)
                    if two and number < len(attempts):
                        placed_before |= committed.keys()
                elif what == "forget":
                    desk.ledger.now += 3 * GRACE_S
                    await parts(sync)._collector.collect()
                elif what != "restart":
                    _act(desk.ck, what, one, two)
            if number == len(attempts):
                await sync.commit("exit")
                left = _seen(desk.ck)
    files = [name for name, kind in left.items() if isinstance(kind, bytes) and name.isprintable()]
    suffix = ".gz" if compression else ""
    expected = set() if plain == "never" else {f"ck/{name}{suffix}" for name in files}
    found = {key for key in memory.keys("bucket") if ".kelpie/" not in key}
    # What an earlier attempt placed stays where its file went before this one could tell that it is what the file held.
    assert expected <= found <= expected | {f"ck/{name}{suffix}" for name in placed_before if plain != "never"}
    manifests = Manifests(memory, "bucket")
    kept = [await manifests.load(commit.manifest) for commit in desk.kept()]
    assert all(manifest and manifest.refers_to() <= set(memory.keys("bucket")) for manifest in kept)


def _cut(steps: list[tuple[str, Any, Any]]) -> list[list[tuple[str, Any, Any]]]:
    """The steps of each attempt; a restart begins the next one."""
    attempts: list[list[tuple[str, Any, Any]]] = [[]]
    for step in steps:
        if step[0] == "restart":
            attempts.append([])
        attempts[-1].append(step)
    return attempts


def _act(directory: Path, what: str, one: str, two: Any) -> None:
    path = directory / one
    if what in {"write", "append"}:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        with path.open("wb" if what == "write" else "ab") as file:
            file.write(two)
    elif what == "delete" and (path.is_symlink() or path.exists()):
        path.unlink()
        if path.parent != directory and not any(path.parent.iterdir()):
            shutil.rmtree(path.parent)
    elif what == "rename" and path.exists():
        (directory / two).parent.mkdir(parents=True, exist_ok=True)
        path.rename(directory / two)
    elif what == "link" and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(directory / two, path.parent))


def _seen(directory: Path) -> dict[str, Any]:
    """Content of files, targets of links, and folders."""
    found: dict[str, Any] = {}
    for path in directory.rglob("*"):
        relative = os.fspath(path.relative_to(directory))
        if path.is_symlink():
            found[relative] = ("link", os.readlink(path))  # noqa: PTH115 -- the text
        else:
            found[relative] = path.read_bytes() if path.is_file() else "folder"
    return found
