from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_worker.sync.calm import Calm
from kelpie_worker.sync.open_files import OpenFile
from kelpie_worker.sync.snapshot import Snapshot, Stamp

HERE, THERE = Path("/data"), Path("/other")
QUIET_S = 2.0
STREAM_S = 300.0


@dataclass
class Disk:
    """A directory that a test changes, and who has what open; looks are taken of it at times that the test says."""

    path: Path = HERE
    calm: Calm = field(default_factory=lambda: Calm(QUIET_S, STREAM_S))
    files: dict[str, Stamp] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    opened: dict[str, OpenFile] = field(default_factory=dict)
    knows: bool = True
    ticks: int = 0

    def write(self, name: str, size: int, *, replaced: bool = False) -> None:
        self.ticks += 1
        old = self.files.get(name)
        inode = old.inode if old and not replaced else self.ticks
        self.files[name] = Stamp(1, inode, size, self.ticks, self.ticks)

    def touch_ctime(self, name: str) -> None:
        self.ticks += 1
        self.files[name] = self.files[name]._replace(ctime_ns=self.ticks)

    def grow(self, name: str, by: int = 1) -> None:
        self.write(name, self.files[name].size_bytes + by if name in self.files else by)

    def open(self, name: str, *, append: bool = False, mapped: bool = False) -> None:
        self.opened[name] = OpenFile(self.path / name, append, mapped)

    def close(self, name: str) -> None:
        self.opened.pop(name, None)

    def delete(self, name: str) -> None:
        self.files.pop(name, None)
        self.close(name)

    def look(self, now_s: float, *, event_s: float | None = None) -> None:
        snapshot = Snapshot(dict(self.files), links=dict(self.links), folders=self.folders, modes=dict(self.modes))
        self.calm.observe(
            {self.path: snapshot},
            now_s,
            last_events_s={} if event_s is None else {self.path: event_s},
            open_files=list(self.opened.values()) if self.knows else None,
        )

    def quiet_s(self, now_s: float) -> float:
        return self.calm.quiet_for_s([self.path], now_s)

    def streams(self) -> set[str]:
        return {str(path.relative_to(self.path)) for path in self.calm.streams()}


@pytest.fixture
def disk() -> Disk:
    return Disk()


# -- quiet ------------------------------------------------------------------------------------------------------------


def test_quiet_is_counted_from_the_look_that_saw_the_last_change(disk: Disk) -> None:
    disk.write("a", 1)
    disk.look(0.0)
    disk.look(1.0)
    disk.write("b", 1)
    disk.look(2.0)
    disk.look(3.0)
    assert disk.quiet_s(4.0) == 2.0


def test_without_directories_and_for_unknown_ones_nothing_is_quiet(disk: Disk) -> None:
    disk.look(0.0)
    assert disk.calm.quiet_for_s([], 10.0) == 0.0
    assert disk.calm.quiet_for_s([HERE, THERE], 10.0) == 0.0


def test_several_directories_are_as_quiet_as_the_busiest() -> None:
    calm = Calm(QUIET_S)
    calm.observe({HERE: Snapshot({}), THERE: Snapshot({})}, 0.0)
    calm.observe({HERE: Snapshot({}), THERE: Snapshot({"a": Stamp(1, 1, 1, 1, 1)})}, 3.0)
    assert calm.quiet_for_s([HERE], 5.0) == 5.0
    assert calm.quiet_for_s([HERE, THERE], 5.0) == 2.0


@pytest.mark.parametrize(
    "change",
    [
        lambda disk: disk.delete("a"),
        lambda disk: disk.write("a", 1),
        lambda disk: disk.write("a", 5, replaced=True),
        lambda disk: disk.write("new", 0),
        lambda disk: disk.touch_ctime("a"),
        lambda disk: disk.links.update(link="a"),
        lambda disk: disk.modes.update(a=0o600),
        lambda disk: setattr(disk, "folders", frozenset({"empty"})),
    ],
    ids=["deleted", "rewritten", "replaced", "new", "ctime", "link", "mode", "folder"],
)  # fmt: skip
def test_whatever_changes_disturbs(disk: Disk, change: object) -> None:
    disk.write("a", 1)
    disk.modes["a"] = 0o644
    disk.look(0.0)
    assert callable(change)
    change(disk)
    disk.look(5.0)
    assert disk.quiet_s(5.0) == 0.0
    disk.look(8.0)
    assert disk.quiet_s(8.0) == 3.0


def test_an_event_disturbs_although_the_looks_are_the_same(disk: Disk) -> None:
    disk.look(0.0)
    disk.look(5.0, event_s=4.5)
    assert disk.quiet_s(5.0) == 0.5
    disk.look(6.0, event_s=4.5)
    assert disk.quiet_s(6.0) == 1.5


def test_an_event_elsewhere_does_not_disturb(disk: Disk) -> None:
    disk.look(0.0)
    disk.calm.observe({HERE: Snapshot({})}, 5.0, last_events_s={THERE: 5.0})
    assert disk.quiet_s(5.0) == 5.0


def test_a_burst_with_pauses_is_one_burst_while_one_of_its_files_is_open(disk: Disk) -> None:
    disk.open("index")
    disk.write("index", 1)
    disk.look(0.0)
    for now_s in range(1, 100):
        if now_s % 10 == 0:
            disk.write(f"part-{now_s}", 5)
        disk.look(float(now_s))
        assert disk.quiet_s(now_s + 0.9) == 0.0
    disk.close("index")
    disk.look(100.0)
    assert disk.quiet_s(100.0) == 1.0
    disk.look(101.0)
    assert disk.quiet_s(101.0) == QUIET_S


def test_a_file_that_is_open_and_not_seen_by_the_walk_disturbs(disk: Disk) -> None:
    disk.look(0.0)
    disk.open("just-created")
    disk.look(5.0)
    assert disk.quiet_s(5.0) == 0.0


@pytest.mark.parametrize("name", [".kelpie-tmp-x", "a.kelpie/x"])
def test_what_is_never_stored_does_not_disturb(disk: Disk, name: str) -> None:
    disk.look(0.0)
    disk.open(name)
    disk.look(5.0)
    assert disk.quiet_s(5.0) == 5.0


def test_an_open_file_elsewhere_does_not_disturb(disk: Disk) -> None:
    disk.look(0.0)
    disk.opened["x"] = OpenFile(Path("/database/x"), False, False)
    disk.look(5.0)
    assert disk.quiet_s(5.0) == 5.0


def test_where_nobody_can_tell_what_is_open_only_changes_count(disk: Disk) -> None:
    disk.knows = False
    disk.open("a")
    disk.write("a", 1)
    disk.look(0.0)
    disk.look(5.0)
    assert disk.quiet_s(5.0) == 5.0


def test_a_lock_does_not_disturb_for_ever_but_what_is_written_to_it_does(disk: Disk) -> None:
    disk.write("lock", 0)
    disk.open("lock")
    disk.look(0.0)
    disk.look(299.0)
    assert disk.quiet_s(299.0) == 0.0
    disk.look(300.0)
    disk.look(303.0)
    assert disk.quiet_s(303.0) == 4.0
    disk.grow("lock")
    disk.look(304.0)
    disk.look(700.0)
    assert disk.quiet_s(700.0) == 0.0


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_file_that_can_only_be_appended_to_is_a_stream_at_once(disk: Disk) -> None:
    disk.write("log", 1)
    disk.open("log", append=True)
    disk.look(0.0)
    assert disk.streams() == {"log"}
    for now_s in range(1, 10):
        disk.grow("log")
        disk.look(float(now_s))
    assert disk.quiet_s(10.0) == 10.0


def test_a_new_log_disturbs_once(disk: Disk) -> None:
    disk.look(0.0)
    disk.write("log", 1)
    disk.open("log", append=True)
    disk.look(5.0)
    disk.grow("log")
    disk.look(6.0)
    assert disk.quiet_s(7.0) == 2.0


def test_a_log_stays_a_stream_between_its_writers(disk: Disk) -> None:
    disk.write("log", 1)
    disk.open("log", append=True)
    disk.look(0.0)
    disk.close("log")
    disk.grow("log")
    disk.look(5.0)
    assert disk.streams() == {"log"}
    assert disk.quiet_s(5.0) == 5.0


def test_a_trajectory_is_a_stream_once_it_has_grown_for_minutes(disk: Disk) -> None:
    disk.write("trajectory", 1)
    disk.open("trajectory")
    disk.look(0.0)
    for now_s in range(10, 320, 10):
        disk.grow("trajectory")
        disk.look(float(now_s))
        assert disk.streams() == ({"trajectory"} if now_s >= 310 else set())
        assert disk.quiet_s(now_s) == (10.0 if now_s >= 310 else 0.0)


def test_two_looks_that_saw_growth_prove_nothing(disk: Disk) -> None:
    disk.write("file", 1)
    disk.open("file")
    disk.look(0.0)
    for now_s in (1.0, 2.0):
        disk.grow("file")
        disk.look(now_s)
    disk.look(1000.0)
    assert disk.streams() == set()
    disk.grow("file")
    disk.look(1001.0)
    assert disk.streams() == {"file"}


def grown_for_long(disk: Disk, name: str = "file", *, append: bool = False) -> None:
    disk.write(name, 10)
    disk.open(name, append=append)
    disk.look(0.0)
    for now_s in (1.0, 100.0, 200.0, 302.0):
        disk.grow(name)
        disk.look(now_s)
    assert disk.streams() == {name}


@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda disk: disk.write("file", 1),
        lambda disk: disk.write("file", disk.files["file"].size_bytes),
    ],
    ids=["shrinks", "rewritten"],
)  # fmt: skip
def test_a_stream_that_does_anything_but_grow_is_none(disk: Disk, change: object, append: bool) -> None:
    grown_for_long(disk, append=append)
    assert callable(change)
    change(disk)
    disk.look(310.0)
    assert disk.streams() == set()
    disk.grow("file")
    disk.look(320.0)
    assert disk.quiet_s(330.0) == 0.0, "it is open for writing, and no stream"


@pytest.mark.parametrize("append", [True, False])
def test_a_file_in_the_place_of_a_stream_has_to_prove_itself(disk: Disk, append: bool) -> None:
    grown_for_long(disk, append=append)
    disk.write("file", 100, replaced=True)
    disk.open("file")
    disk.look(310.0)
    assert disk.streams() == set()
    assert disk.quiet_s(310.0) == 0.0


def test_a_log_that_was_rotated_disturbs_once(disk: Disk) -> None:
    grown_for_long(disk, append=True)
    disk.write("file", 0, replaced=True)
    disk.look(310.0)
    assert disk.streams() == {"file"}
    assert disk.quiet_s(311.0) == 1.0


def test_a_change_of_mode_ends_no_stream(disk: Disk) -> None:
    grown_for_long(disk)
    disk.touch_ctime("file")
    disk.look(310.0)
    assert disk.streams() == {"file"}


def test_a_file_that_is_closed_between_its_writes_is_no_trajectory(disk: Disk) -> None:
    """A checkpoint that is rewritten a little larger each time looks like this."""
    disk.write("checkpoint", 1)
    for now_s in range(0, 1000, 50):
        disk.open("checkpoint")
        disk.look(float(now_s))
        disk.grow("checkpoint")
        disk.close("checkpoint")
        disk.look(now_s + 1.0)
        assert disk.streams() == set()


def test_what_is_mapped_is_no_stream(disk: Disk) -> None:
    grown_for_long(disk)
    disk.open("file", mapped=True)
    disk.look(310.0)
    assert disk.streams() == set()
    assert disk.quiet_s(310.0) == 0.0


def test_one_descriptor_that_can_write_anywhere_makes_a_log_no_stream(disk: Disk) -> None:
    disk.write("log", 1)
    disk.open("log", append=True)
    disk.look(0.0)
    disk.open("log", append=False)
    disk.look(1.0)
    assert disk.streams() == set()


def test_a_deleted_stream_is_forgotten(disk: Disk) -> None:
    grown_for_long(disk)
    disk.delete("file")
    disk.look(310.0)
    assert disk.streams() == set()


def test_where_nobody_can_tell_what_is_open_a_stream_shows_by_its_stamps(disk: Disk) -> None:
    disk.knows = False
    grown_for_long(disk)
    disk.grow("file")
    disk.look(320.0)
    assert disk.quiet_s(320.0) == 120.0, "since it grew before it was known to be one"


# -- what is told -----------------------------------------------------------------------------------------------------


def test_open_files_are_named_first_and_at_most_three(disk: Disk) -> None:
    disk.write("old", 1)
    disk.look(0.0)
    disk.write("changed", 1)
    disk.open("open")
    disk.open("log", append=True)
    disk.look(5.0)
    assert disk.calm.disturbed_by() == ["/data/open", "/data/changed"]
    for name in "abc":
        disk.open(name)
    disk.look(6.0)
    assert disk.calm.disturbed_by() == ["/data/a", "/data/b", "/data/c"]
    assert disk.calm.disturbed_by([THERE]) == []


def test_what_has_rested_disturbs_nobody(disk: Disk) -> None:
    disk.look(0.0)
    disk.write("a", 1)
    disk.look(5.0)
    disk.look(7.0)
    assert disk.calm.disturbed_by([HERE]) == []


def test_a_file_settles_by_itself(disk: Disk) -> None:
    disk.write("a", 1)
    disk.write("b", 1)
    disk.look(0.0)
    disk.write("b", 2)
    disk.look(5.0)
    assert disk.calm.settled_s(HERE / "a", 6.0) == 6.0
    assert disk.calm.settled_s(HERE / "b", 6.0) == 1.0
    assert disk.calm.settled_s(HERE / "never-seen", 6.0) == 0.0
    assert disk.calm.settled_s(THERE / "a", 6.0) == 0.0


def test_a_file_settles_after_it_was_closed(disk: Disk) -> None:
    disk.write("a", 1)
    disk.open("a")
    disk.look(0.0)
    disk.look(10.0)
    assert disk.calm.settled_s(HERE / "a", 10.0) == 0.0
    disk.close("a")
    disk.look(11.0)
    assert disk.calm.settled_s(HERE / "a", 13.0) == 3.0


def test_a_file_below_two_directories_is_as_settled_as_the_later_look_says() -> None:
    calm, inner = Calm(QUIET_S), HERE / "inner"
    stamp = Stamp(1, 1, 1, 1, 1)
    calm.observe({HERE: Snapshot({"inner/a": stamp})}, 0.0)
    calm.observe({inner: Snapshot({"a": stamp})}, 5.0)
    assert calm.settled_s(inner / "a", 6.0) == 1.0


# -- any history ------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["grow", "rewrite", "shrink", "replace", "delete", "open", "append", "map", "close", "wait"]),
        st.sampled_from(["a", "b"]),
        st.floats(0.1, 200.0),
        st.booleans(),
    ),
    max_size=40,
)


def apply(disk: Disk, step: str, name: str) -> None:
    if step in {"open", "append", "map"}:
        if name not in disk.files:
            disk.write(name, 1)
        disk.open(name, append=step == "append", mapped=step == "map")
    elif step == "close":
        disk.close(name)
    elif step == "delete":
        disk.delete(name)
    elif step != "wait" and name in disk.files:
        size = disk.files[name].size_bytes
        sizes = {"grow": size + 1, "rewrite": size, "shrink": max(1, size - 1), "replace": size}
        disk.write(name, sizes[step], replaced=step == "replace")
    elif step != "wait":
        disk.write(name, 1)


def run(steps: Sequence[tuple[str, str, float, bool]], disk: Disk) -> float:
    now_s = 0.0
    disk.look(now_s)
    for step, name, pause_s, looks in steps:
        apply(disk, step, name)
        now_s += pause_s
        if looks:
            disk.look(now_s)
            check(disk, now_s)
    disk.look(now_s)
    check(disk, now_s)
    return now_s


def check(disk: Disk, now_s: float) -> None:
    streams = disk.streams()
    if disk.knows:
        assert not any(file.mapped for name, file in disk.opened.items() if name in streams)
        if disk.opened.keys() - streams:
            assert disk.quiet_s(now_s + 1000.0) == 0.0
            assert disk.calm.disturbed_by()
    assert 0.0 <= disk.quiet_s(now_s) <= now_s


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_nothing_is_quiet_while_a_file_that_is_no_stream_is_open(steps: list[tuple[str, str, float, bool]]) -> None:
    run(steps, Disk())


@given(STEPS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_all_is_quiet_in_the_end_when_nothing_changes(steps: list[tuple[str, str, float, bool]], knows: bool) -> None:
    disk = Disk(knows=knows)
    end_s = run(steps, disk)
    disk.opened = {name: file for name, file in disk.opened.items() if name in disk.streams()}
    disk.look(end_s + 1.0)
    disk.look(end_s + 1.0 + QUIET_S)
    assert disk.quiet_s(end_s + 1.0 + QUIET_S) >= QUIET_S
    assert disk.calm.disturbed_by() == []


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_the_growth_of_streams_disturbs_nobody(steps: list[tuple[str, str, float, bool]]) -> None:
    disk = Disk()
    now_s = run(steps, disk)
    disk.opened = {name: file for name, file in disk.opened.items() if name in disk.streams()}
    disk.look(now_s + 1.0)
    quiet_s = disk.quiet_s(now_s + 1.0)
    for step_s in range(2, 12):
        for name in disk.streams():
            if name in disk.files:
                disk.grow(name)
        disk.look(now_s + step_s)
    assert disk.quiet_s(now_s + 11.0) == pytest.approx(quiet_s + 10.0)
