from __future__ import annotations

from pathlib import Path

import pytest

from kelpie_celery.slots import gpus_by_slot, slot_count, visible_gpus


@pytest.mark.parametrize(
    ("environ", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, ["0", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f, GPU-9a"}, ["GPU-8f", "GPU-9a"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-8f,GPU-9a"}, ["0", "1"]),
        ({"NVIDIA_VISIBLE_DEVICES": "3"}, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": "1", "NVIDIA_VISIBLE_DEVICES": "0,1"}, ["1"]),
    ],
)
def test_gpus_are_counted_by_what_the_container_was_given(
    environ: dict[str, str], gpus: list[str], tmp_path: Path
) -> None:
    assert visible_gpus(environ, tmp_path) == gpus


@pytest.mark.parametrize("word", ["all", "none", "void", ""])
def test_without_a_list_the_device_files_count(word: str, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus({"NVIDIA_VISIBLE_DEVICES": word}, tmp_path) == ["0", "1"]


@pytest.mark.parametrize(
    ("gpus", "slots", "shares"),
    [
        ([], 2, [None, None]),
        (["0", "1"], 2, ["0", "1"]),
        (["0", "1", "2", "3"], 2, ["0,2", "1,3"]),
        (["0", "1", "2"], 2, ["0,2", "1"]),
        (["0"], 3, ["0", "0", "0"]),
        (["0", "1"], 3, ["0", "1", "0"]),
    ],
)
def test_every_slot_gets_its_share(gpus: list[str], slots: int, shares: list[str | None]) -> None:
    assert gpus_by_slot(gpus, slots) == shares


def test_there_is_a_slot_for_each_gpu_and_one_without_any() -> None:
    assert slot_count(None, {"CUDA_VISIBLE_DEVICES": "0,1,2"}) == 3
    assert slot_count(None, {"CUDA_VISIBLE_DEVICES": ""}) == 1
    assert slot_count(5, {"CUDA_VISIBLE_DEVICES": "0"}) == 5
