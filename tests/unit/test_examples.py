"""The examples, as far as they can be looked at without a stack; ``tests/acceptance/test_examples.py`` runs them."""

from __future__ import annotations

import argparse
import importlib.util
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kelpie_celery import parse_definition

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ARGS = argparse.Namespace(
    bucket="kelpie", group="g", python="python3", program="/app/train.py", programs="/app", epochs=3, batches=3
)  # fmt: skip


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"example_{Path(path).parent.name}_{Path(path).stem}", EXAMPLES / path
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The PyTorch training with a stand-in for torch, which keeps what it is given."""
    torch: Any = ModuleType("torch")
    torch.save = pickle.dump
    torch.load = lambda path, map_location, weights_only: pickle.loads(path.read_bytes())
    monkeypatch.setitem(sys.modules, "torch", torch)
    return load("pytorch/train.py")


def test_the_pytorch_checkpoint_is_replaced_as_a_whole_or_not_at_all(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    assert train.load(path) is None
    train.save({"epoch": 1}, path)
    assert train.load(path) == {"epoch": 1}

    def dies(state: object, file: Any) -> None:
        file.write(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["torch"], "save", dies)
    with pytest.raises(KeyboardInterrupt):
        train.save({"epoch": 2}, path)
    assert train.load(path) == {"epoch": 1}


def test_the_montecarlo_block_goes_on_with_the_same_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block = load("montecarlo/block.py")
    monkeypatch.setattr(block, "POINTS_A_BATCH", 10)
    block.main(1, 6)
    whole = (tmp_path / "out/block.json").read_bytes()
    (tmp_path / "state/block.json").unlink()
    block.main(1, 3)
    (tmp_path / "out/block.json").unlink()
    block.main(1, 6)
    assert (tmp_path / "out/block.json").read_bytes() == whole


def test_one_block_has_no_error_to_tell_and_is_refused_before_anything_is_submitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--blocks", "1"])
    with pytest.raises(SystemExit):
        load("montecarlo/run.py").main()
    assert "at least 2" in capsys.readouterr().err


def test_all_definitions_are_valid() -> None:
    montecarlo, pipeline = load("montecarlo/run.py"), load("pipeline/run.py").Pipeline(ARGS, "p")
    definitions = [
        load("pytorch/run.py").definition(ARGS, "p"), montecarlo.block(ARGS, "p", 1), montecarlo.gather(ARGS, "p"),
        pipeline.preprocess(), pipeline.train(), pipeline.evaluate(),
        json.loads((EXAMPLES / "shell/job.json").read_text()),
    ]  # fmt: skip
    for definition in definitions:
        parse_definition(definition)


def test_the_page_about_the_examples_names_each_of_them() -> None:
    page = (ROOT / "docs/examples.md").read_text()
    for folder in sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()):
        assert f"examples/{folder}" in page
