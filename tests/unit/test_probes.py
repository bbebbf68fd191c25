"""Probes see by a file's age whether control worker and beat do their rounds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from redbeat.schedulers import RedBeatScheduler

from kelpie_celery.errors import LedgerRefused, LedgerUnavailable
from kelpie_celery.probes import touch
from kelpie_scaler import tasks
from kelpie_scaler.beat import Scheduler


class App:
    """As much of an app as counts here."""

    def __init__(self, file: Path | None, away: bool = False) -> None:
        self.settings = SimpleNamespace(ready_file=file)
        self.ledger = SimpleNamespace(groups=self._groups)
        self._away = away

    def _groups(self) -> list[str]:
        if self._away:
            raise LedgerUnavailable("Redis is away")
        return []


@pytest.mark.parametrize("away", [True, False])
def test_a_round_of_maintenance_is_shown_when_it_was_done(
    tmp_path: Path, away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(tmp_path / "ready", away)
    monkeypatch.setattr(tasks, "_maintainer", lambda _: None)
    tasks.maintain_all(app)  # type: ignore[arg-type]  # as much of one as it takes
    assert (tmp_path / "ready").exists() is not away


@pytest.mark.parametrize(("spoilt", "shown"), [({"b"}, True), ({"a", "b", "c"}, False)])
def test_a_group_whose_keys_are_spoilt_does_not_stop_the_maintenance_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: set[str], shown: bool
) -> None:
    app, ticked = App(tmp_path / "ready"), []
    app.ledger.groups = lambda: ["a", "b", "c"]

    def tick(group: str, *, limit: int) -> None:
        ticked.append((group, limit))
        if group in spoilt:
            raise LedgerRefused("no sorted set")

    monkeypatch.setattr(tasks, "_maintainer", lambda _: SimpleNamespace(tick=tick))
    tasks.maintain_all(app)  # type: ignore[arg-type]  # as much of one as it takes
    assert [group for group, _ in ticked] == ["a", "b", "c"]
    assert (tmp_path / "ready").exists() is shown


def test_beat_shows_its_rounds_and_keeps_their_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RedBeatScheduler, "tick", lambda *_, **__: 2.5)
    beat = Scheduler.__new__(Scheduler)
    beat.app = App(tmp_path / "ready")
    assert beat.tick() == 2.5
    assert (tmp_path / "ready").exists()


def test_without_a_file_nobody_is_told() -> None:
    touch(None)


def test_a_file_that_cannot_be_written_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "missing" / "ready")
    assert [record.__dict__["action"] for record in caplog.records] == ["ready_file_unwritable"]
