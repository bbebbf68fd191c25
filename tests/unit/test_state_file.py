"""``KELPIE_STATE_FILE``: what a job may read of what its worker does for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_worker.state_file import JOBS_KEPT, StateFile
from kelpie_worker.sync.traffic import MOST_NAMED, Traffic


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateFile:
    made = StateFile(tmp_path / "state.json", ManualClock())
    monkeypatch.setattr(made, "changed", lambda: None)  # the thread: here everything is written when the test says so
    return made


def written(file: StateFile) -> Any:
    file.save()
    return json.loads(file.path.read_text())


def test_it_tells_of_a_job_what_kelpie_tells(file: StateFile, tmp_path: Path) -> None:
    state = file.begin("j1")
    [job] = written(file)["jobs"]
    assert job == {
        "id": "j1", "status": "running", "start": "2023-11-14T22:13:20.000Z", "activeUploads": [],
        "activeDownloads": [],
    }  # fmt: skip
    with state.traffic.uploading([tmp_path / "b", tmp_path / "a"]), state.traffic.downloading([tmp_path / "in"]):
        [job] = written(file)["jobs"]
        assert job["activeUploads"] == [str(tmp_path / "a"), str(tmp_path / "b")]
        assert job["activeDownloads"] == [str(tmp_path / "in")]
    state.exited(3)
    file.end(state, Ending(Outcome.FAILURE, Reason.EXIT_CODE))
    [job] = written(file)["jobs"]
    assert (job["status"], job["exitCode"], job["activeUploads"]) == ("failed", 3, [])
    assert job["exitTime"] == job["end"] == "2023-11-14T22:13:20.000Z"
    assert written(file)["start"] == "2023-11-14T22:13:20.000Z"


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (Ending(Outcome.COMPLETED, Reason.DONE), "completed"),
        (Ending(Outcome.CANCELED, Reason.CANCELED), "canceled"),
        (Ending(Outcome.INTERRUPTION, Reason.WORKER_SHUTDOWN), "interrupted"),
        (None, "interrupted"),
    ],
)
def test_how_an_attempt_ended_is_its_status(file: StateFile, ending: Ending | None, status: str) -> None:
    file.end(file.begin("j1"), ending)
    assert written(file)["jobs"][0]["status"] == status


def test_the_last_jobs_are_kept(file: StateFile) -> None:
    for number in range(JOBS_KEPT + 5):
        file.begin(f"j{number}")
    ids = [job["id"] for job in written(file)["jobs"]]
    assert (len(ids), ids[0], ids[-1]) == (JOBS_KEPT, "j5", f"j{JOBS_KEPT + 4}")


def test_it_is_not_written_into_a_directory_that_is_stored_while_the_job_runs(file: StateFile, tmp_path: Path) -> None:
    state = file.begin("j1")
    with file.unless_within(state, [tmp_path]):
        file.save()
        assert not file.path.exists()
    file.save()
    assert file.path.exists()


def test_a_command_finds_itself_in_it(file: StateFile, tmp_path: Path) -> None:
    with file.unless_within(file.begin("j1"), [tmp_path / "elsewhere"]):
        assert json.loads(file.path.read_text())["jobs"][0]["id"] == "j1"


def test_a_place_that_cannot_be_written_to_is_told_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    file = StateFile(Path("/proc/none/state.json"), ManualClock())
    for _ in range(3):
        file.save()
    assert [r.__dict__["action"] for r in caplog.records] == ["state_file_failed"]


def test_news_are_written_without_anybody_waiting(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state.json", ManualClock())
    file.begin("j1")
    assert file._thread is not None
    for _ in range(200):
        if file.path.exists():
            break
        file._thread.join(0.05)
    assert json.loads(file.path.read_text())["jobs"][0]["id"] == "j1"


# -- traffic ------------------------------------------------------------------------------------------------------


def test_a_file_that_two_transfers_move_is_told_until_both_are_over() -> None:
    changes: list[int] = []
    traffic = Traffic(lambda: changes.append(1))
    with traffic.uploading() as one:
        one.add([Path("a")])
        with traffic.uploading([Path("a"), Path("b")]):
            assert traffic.uploads == ["a", "b"]
        assert traffic.uploads == ["a"]
    assert traffic.uploads == []
    assert len(changes) == 4
    with traffic.uploading():
        pass
    assert len(changes) == 4, "a commit of nothing is no news"


def test_a_transfer_that_fails_is_over_too() -> None:
    traffic = Traffic()
    with pytest.raises(OSError, match="away"), traffic.downloading([Path("a")]):
        raise OSError("away")
    assert traffic.downloads == []


def test_of_very_many_files_a_part_is_named() -> None:
    traffic = Traffic()
    with traffic.uploading(Path(f"f{n:05}") for n in range(5000)):
        assert len(traffic.uploads) == MOST_NAMED
