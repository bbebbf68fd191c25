"""The demo's programs end with the same bytes whether or not they were interrupted on the way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kelpie_celery.demo import inputs
from kelpie_celery.demo.jobs import gather, ising, resumable, train
from kelpie_celery.demo.jobs.resumable import RUN_ME_AGAIN, Checkpoint, Pace

MODEL = {"size": 8, "temperatures": [2.0], "seed": 1}
SWEEPS, EPOCHS, RESAMPLES = 300, 6, 8


class Death(Exception):
    """Stands for the node that goes away."""


@pytest.fixture(autouse=True)
def _own_sigterm_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def _checkpoint_after_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(resumable, "REPORT_EVERY_S", 0.0)
    monkeypatch.delenv("KELPIE_REPORT", raising=False)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power fails here


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def after(calls: int, act: Callable[[], None], work: Callable[..., object]) -> Callable[..., object]:
    """``work`` that does something else as well at its n-th call."""
    count = 0

    def counted(*args: object) -> object:
        nonlocal count
        count += 1
        if count == calls:
            act()
        return work(*args)

    return counted


def die() -> None:
    raise Death


def simulate(folder: Path, disturb: Callable[[ising.Simulation], None] = lambda _: None) -> dict[str, bytes]:
    """One life of a block: from its checkpoint, if there is one, to its outputs."""
    output = made(folder / "output") if not (folder / "output").exists() else folder / "output"
    checkpoint, simulation = Checkpoint(folder / "ising.npz"), ising.fresh(MODEL, 0, SWEEPS)
    ising.restore(simulation, checkpoint)
    disturb(simulation)
    ising.run(simulation, SWEEPS, checkpoint)
    ising.write(simulation, 0, output)
    return contents(output)


def learn(folder: Path, disturb: Callable[[train.Training], None] = lambda _: None) -> dict[str, bytes]:
    """One life of a training."""
    output = made(folder / "output") if not (folder / "output").exists() else folder / "output"
    data, test = inputs.spirals(300, 0.2).split()
    checkpoint, training = Checkpoint(folder / "training.npz"), train.fresh(6, seed=2)
    stored = checkpoint.load(training.rng)
    if stored is not None:
        training.take(stored)
    disturb(training)
    train.run(training, data, EPOCHS, checkpoint)
    train.write(training, test, output)
    return contents(output)


def test_a_simulation_that_died_ends_with_the_bytes_of_one_that_did_not(tmp_path: Path) -> None:
    def kill(simulation: ising.Simulation) -> None:
        simulation.advance = after(6, die, simulation.advance)  # type: ignore[method-assign,assignment]  # the test's own

    undisturbed = simulate(tmp_path / "a")
    with pytest.raises(Death):
        simulate(tmp_path / "b", kill)
    with np.load(tmp_path / "b" / "ising.npz") as stored:
        assert 0 < int(stored["sweep"]) < SWEEPS
    assert simulate(tmp_path / "b") == undisturbed


def test_a_training_that_died_ends_with_the_bytes_of_one_that_did_not(tmp_path: Path) -> None:
    def kill(training: train.Training) -> None:
        training.epoch = after(4, die, training.epoch)  # type: ignore[method-assign,assignment]  # the test's own

    undisturbed = learn(tmp_path / "a")
    with pytest.raises(Death):
        learn(tmp_path / "b", kill)
    assert learn(tmp_path / "b") == undisturbed


def test_gathering_that_died_ends_with_the_bytes_of_one_that_did_not(tmp_path: Path) -> None:
    simulate(tmp_path / "blocks" / "block-0")
    blocks = gather.load_blocks(tmp_path / "blocks" / "block-0")

    def life(folder: Path, resamples: int = RESAMPLES) -> dict[str, bytes]:
        rng = np.random.default_rng(3)
        drawn = gather.run(blocks, resamples, Checkpoint(folder / "gather.npz"), rng)
        (folder / "output").mkdir(exist_ok=True)
        gather.write(blocks, drawn, folder / "output")
        return contents(folder / "output")

    undisturbed = life(made(tmp_path / "a"))
    folder = made(tmp_path / "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "resample", after(5, die, gather.resample))
        with pytest.raises(Death):
            life(folder)
    assert life(folder) == undisturbed


def test_a_program_that_is_told_to_end_checkpoints_and_asks_to_be_run_again(tmp_path: Path) -> None:
    def tell(simulation: ising.Simulation) -> None:
        term = after(3, lambda: os.kill(os.getpid(), signal.SIGTERM), simulation.advance)
        simulation.advance = term  # type: ignore[method-assign,assignment]  # the test's own

    undisturbed = simulate(tmp_path / "a")
    with pytest.raises(SystemExit) as ended:
        simulate(tmp_path / "b", tell)
    assert ended.value.code == RUN_ME_AGAIN
    with np.load(tmp_path / "b" / "ising.npz") as stored:
        assert int(stored["sweep"]) == 3 * ising.PIECE
    assert simulate(tmp_path / "b") == undisturbed


def test_a_death_during_a_save_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, rng = Checkpoint(tmp_path / "state.npz"), np.random.default_rng(1)
    checkpoint.save(rng, value=np.array(1))
    monkeypatch.setattr(os, "fsync", lambda _: die())
    with pytest.raises(Death):
        checkpoint.save(rng, value=np.array(2))
    stored = checkpoint.load(rng)
    assert stored is not None
    assert int(stored["value"].item()) == 1


def test_progress_says_how_far_the_job_is_and_where_it_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report.jsonl"
    monkeypatch.setenv("KELPIE_REPORT", str(report))
    pace = Pace("sweeps", 200, 50)
    pace.after(100, lambda: None)
    entries = [json.loads(line) for line in report.read_text().splitlines()]
    assert entries == [
        {"progress": 0.25, "message": "50/200 sweeps, from 50"},
        {"progress": 0.5, "message": "100/200 sweeps, from 50"},
    ]


def test_parents_of_a_chords_body_come_as_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "parents.json"
    path.write_text(json.dumps([[{"exit_code": 0}, {"exit_code": 0}]]))
    monkeypatch.setenv("KELPIE_PARENTS", str(path))
    assert gather.parents_results() == [{"exit_code": 0}, {"exit_code": 0}]


def test_the_ordered_phase_has_onsagers_magnetisation() -> None:
    assert gather.onsager(gather.CRITICAL + 0.01) == 0
    assert gather.onsager(1.0) == pytest.approx(0.99928, abs=1e-5)
