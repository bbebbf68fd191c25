from __future__ import annotations

from pathlib import Path

from kelpie_worker.sync.known import LocalFile
from kelpie_worker.sync.plan import Placed
from kelpie_worker.sync.settling import Settling
from kelpie_worker.sync.snapshot import Snapshot, Stamp

HERE = Path("/data")
BLOCK = Placed("during", "checkpoint", "bkt", "p/", HERE)


def stamp(size: int) -> Stamp:
    return Stamp(1, 1, size, size, size)


def look(**sizes: int) -> dict[Path, Snapshot]:
    return {HERE: Snapshot({name: stamp(size) for name, size in sizes.items()})}


def local(name: str, size: int) -> LocalFile:
    return LocalFile(BLOCK, name, HERE / name, stamp(size), f"p/{name}")


def test_quiet_is_counted_from_the_last_change_of_any_file() -> None:
    settling = Settling()
    for now_s, sizes in ((0.0, {"a": 1}), (1.0, {"a": 1}), (2.0, {"a": 1, "b": 1}), (3.0, {"a": 1, "b": 1})):
        settling.observe(look(**sizes), now_s)
    assert settling.quiet_s([BLOCK], 4.0) == 2.0


def test_a_deletion_is_a_change() -> None:
    settling = Settling()
    settling.observe(look(a=1), 0.0)
    settling.observe(look(), 5.0)
    assert settling.quiet_s([BLOCK], 5.0) == 0.0


def test_a_file_settles_by_itself() -> None:
    settling = Settling()
    settling.observe(look(a=1, b=1), 0.0)
    settling.observe(look(a=1, b=2), 5.0)
    assert settling.settled_s(local("a", 1), 6.0) == 6.0
    assert settling.settled_s(local("b", 2), 6.0) == 1.0
    assert settling.settled_s(local("never-seen", 1), 6.0) == 0.0


def test_without_blocks_nothing_is_quiet() -> None:
    assert Settling().quiet_s([], 10.0) == 0.0
