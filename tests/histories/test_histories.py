"""P1 and P3 by brute force: random histories of the real session, committer and ledger; see `World`.

``KELPIE_HISTORIES=10000 pytest tests/histories`` runs as many with fresh random seeds.
"""

# ruff: noqa: F811 - fixtures are imported by name
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from redis import Redis

from kelpie_worker.sync.collecting import Collector
from tests.contract.ledger_fixtures import ledger_valkey, real_redis  # noqa: F401
from tests.histories.attempts import Blind, Told
from tests.histories.disk import FILE_OPS, FileOp
from tests.histories.port import FAULTS
from tests.histories.small_sizes import make_small
from tests.histories.virtual_time import without_threads
from tests.histories.world import COLLECT_EVERY_S, Options, World

MORE = int(os.environ.get("KELPIE_HISTORIES", "0"))
SHARDS = 8
EACH = (MORE or 1040) // SHARDS

Step = tuple[object, ...]

_file_op = st.builds(
    FileOp,
    st.sampled_from(("write", "write", "replace", "append", "patch", *FILE_OPS)),
    st.integers(0, 5),
    st.integers(0, 9),
    st.integers(0, 99_999),
)
_files = st.lists(_file_op, min_size=1, max_size=4)
_faults = st.dictionaries(st.integers(1, 14), st.sampled_from(FAULTS), max_size=2)
_killed_at = st.integers(0, 8)
_steps: dict[str, tuple[int, tuple[st.SearchStrategy[object], ...]]] = {
    "commit": (24, (st.sampled_from(("report", "report", "quiet", "quiet", "quiet", "idle", "idle")), _files,
                    st.integers(0, 1), _faults, st.lists(_file_op, max_size=2))),
    "end": (6, (st.sampled_from(("exit", "exit", "again", "sigterm", "crash")), _files, st.integers(0, 2), _faults)),
    "start": (2, (_faults,)),
    "die": (2, ()),
    "freeze": (2, ()),
    "thaw": (2, (st.integers(0, 3),)),
    "wait": (3, (st.sampled_from((1.0, 80.0, 310.0, 310.0, 700.0, 9000.0)),)),
    "lose": (1, (st.integers(1, 5),)),
    "roll_back": (2, (st.integers(0, 5), _killed_at)),
    "collect": (1, (_killed_at, st.booleans())),
    "forget": (1, ()),
}  # fmt: skip
"""What may happen: how often, and with which arguments."""
_step: st.SearchStrategy[Step] = st.sampled_from(
    [name for name, (weight, _) in _steps.items() for _ in range(weight)]
).flatmap(lambda name: st.tuples(st.just(name), *_steps[name][1]))
_options = st.builds(
    Options,
    st.integers(1, 2),
    st.sampled_from((False, False, False, True)),
    st.booleans(),
    st.sampled_from(("interval", "end", "never")),
)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="kelpie-histories-", dir=shm if os.access(shm, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(root: Path, redis: Redis, options: Options, steps: list[Step]) -> None:
    world = World(root, redis, options)
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        without_threads(patch)
        patch.setattr("kelpie_worker.sync.watching.Inotify", Blind if options.blind else Told)
        collector = partial(Collector, every_s=COLLECT_EVERY_S)
        patch.setattr("kelpie_worker.sync.checkpoints.Collector", collector)
        patch.setattr("kelpie_worker.sync.plan._check", lambda *_: None)  # takes longest of all, and is not the point
        try:
            for step in steps:
                name, *args = step
                world.note(f"{name} {args}")
                getattr(world, str(name))(*args)
                world.check()
            world.finale()
        except Exception as error:
            told = "\n".join(world.trace)
            raise AssertionError(f"{type(error).__name__}: {error}\n\nThe history, {options}:\n{told}") from error
        finally:
            world.close()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_restore_is_always_exactly_one_commit_and_a_stale_attempt_changes_nothing(
    disk: Path, real_redis: Redis, shard: int
) -> None:
    phases = [Phase.generate] if os.environ.get("NOSHRINK") else [Phase.generate, Phase.shrink]
    profile = settings(
        max_examples=EACH, deadline=None, database=None, phases=phases, print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def history(options: Options, steps: list[Step]) -> None:
        root = Path(tempfile.mkdtemp(dir=disk))
        try:
            run(root, real_redis, options, steps)
        finally:
            shutil.rmtree(root, ignore_errors=True)

    test = profile(given(_options, st.lists(_step, min_size=8, max_size=24))(history))
    if not MORE:
        test = seed(20_241_101 + shard)(test)
    test()
