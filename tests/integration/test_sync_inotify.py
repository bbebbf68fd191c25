"""What the kernel tells of real directories, while real processes change them."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kelpie_worker.sync import inotify_calls as calls
from kelpie_worker.sync.inotify import Inotify
from kelpie_worker.sync.snapshot import take


class Ear:
    """An owner that drains whenever it is woken, and remembers."""

    def __init__(self, *roots: Path) -> None:
        self.closed: set[Path] = set()
        self.created: set[Path] = set()
        self.overflowed = self.changed = False
        self.wakes = 0
        self._woken = threading.Event()
        self.inotify = Inotify(roots, self._wake, now=time.monotonic)

    def _wake(self) -> None:
        self.wakes += 1
        self._woken.set()

    @property
    def heard(self) -> set[Path]:
        return self.closed | self.created

    def drain(self) -> None:
        events = self.inotify.drain()
        self.closed |= set(events.closed)
        self.created |= set(events.created)
        self.overflowed = self.overflowed or events.overflowed
        self.changed = self.changed or events.changed

    def until(self, what: str, look: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not look():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            if self._woken.wait(0.05):
                self._woken.clear()
            self.drain()

    def hears(self, *paths: Path) -> None:
        self.until(f"{paths} are heard of", lambda: set(paths) <= self.heard)

    def forget(self) -> None:
        self.drain()
        self.closed, self.created = set(), set()
        self.overflowed = self.changed = False


@contextmanager
def listening(*roots: Path) -> Iterator[Ear]:
    """An owner whose inotify has found the roots that there are."""
    ear = Ear(*roots)
    ear.inotify.start()
    try:
        there = {root for root in ear.inotify._roots if root.is_dir()}
        ear.until("all roots are watched", lambda: there <= ear.inotify._watched.keys())
        ear.forget()
        yield ear
    finally:
        ear.inotify.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path.resolve() / "root"
    directory.mkdir()
    return directory


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code, *map(str, arguments)])


def files_of(root: Path) -> set[Path]:
    return {root / relative for relative in take(root).files}


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# -- nothing is lost --------------------------------------------------------------------------------------------------

FRESH_FOLDERS = """
import os, sys
for n in range(900):
    folder = f"{sys.argv[1]}/folder-{n}"
    os.mkdir(folder)
    with open(folder + "/file", "w") as f:
        f.write("content")
"""


def test_each_file_in_a_folder_that_was_just_made_is_heard_of(root: Path) -> None:
    with listening(root) as ear, python(FRESH_FOLDERS, root) as writer:
        assert writer.wait(60) == 0
        ear.hears(*(root / f"folder-{n}" / "file" for n in range(900)))
        assert not ear.overflowed


MANY = """
import os, sys
for n in range(100_000):
    os.close(os.open(f"{sys.argv[1]}/{n}", os.O_CREAT | os.O_WRONLY))
"""


def test_of_100_000_files_none_is_lost_without_a_word(root: Path) -> None:
    with listening(root) as ear, python(MANY, root) as writer:
        ear.until("all are written", lambda: writer.poll() is not None, timeout_s=120)
        assert writer.returncode == 0
        (root / "last").touch()
        ear.until("the last one, or that some are lost", lambda: ear.overflowed or root / "last" in ear.heard)
        assert ear.overflowed or len(ear.heard) == 100_001
        assert len(take(root).files) == 100_001


def test_when_the_kernel_drops_events_all_is_watched_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(root) as ear:
        held, go_on = threading.Event(), threading.Event()
        read = calls.Watches.read

        def read_late(watches: calls.Watches, spoken: int = -1) -> tuple[list[calls.RawEvent], bool]:
            held.set()
            assert go_on.wait(30)
            return read(watches, spoken)

        monkeypatch.setattr(calls.Watches, "read", read_late)
        (root / "first").touch()
        assert held.wait(10)
        for n in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) // 2 + 1):
            (root / str(n)).touch()
        (root / "unheard" / "of").mkdir(parents=True)
        go_on.set()
        ear.until("it owns up", lambda: ear.overflowed)
        # That may have been said before the new folders were watched: it is said again after it.
        ear.until("files in folders that it missed are heard of", lambda: touched_and_heard(ear, root / "unheard/of"))


def touched_and_heard(ear: Ear, folder: Path) -> bool:
    (folder / "file").touch()
    ear.drain()
    return folder / "file" in ear.heard


def test_what_was_there_before_is_found(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "file").touch()
    ear = Ear(root)
    ear.inotify.start()
    try:
        ear.hears(root / "deep" / "er" / "file")
        assert ear.created == {root / "deep" / "er" / "file"}
        assert ear.changed
    finally:
        ear.inotify.close()


def test_a_deep_tree_is_watched_to_its_end(root: Path) -> None:
    with listening(root) as ear:
        folder = root
        for n in range(200):
            folder = folder / f"level-{n}"
        folder.mkdir(parents=True)
        (folder / "file").touch()
        ear.hears(folder / "file")
        (folder / "another").touch()
        ear.hears(folder / "another")


@pytest.mark.parametrize(
    "name", [b"with space", b"new\nline", b"\xff\xfe", b"\xc3\xbc", b"-rf", b"x" * 255, b"x (deleted)"]
)
def test_odd_names_are_told_as_they_are(root: Path, name: bytes) -> None:
    folder = root / os.fsdecode(name)
    with listening(root) as ear:
        folder.mkdir()
        (folder / folder.name).touch()
        ear.hears(folder / folder.name)
        assert files_of(folder) == {folder / folder.name}


# -- what is told -----------------------------------------------------------------------------------------------------


def test_a_file_is_closed_only_once_its_writer_has_closed_it(root: Path) -> None:
    with listening(root) as ear:
        with (root / "file").open("w") as f:
            f.write("half")
            f.flush()
            ear.hears(root / "file")
            assert ear.closed == set()
            f.write("whole")
        ear.until("it is closed", lambda: root / "file" in ear.closed)


def test_a_renamed_file_is_told_at_its_new_place_and_never_at_the_old(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    with listening(root) as ear:
        outside.rename(root / "moved-in")
        ear.hears(root / "moved-in")
        ear.forget()
        (root / "moved-in").rename(root / "renamed")
        ear.hears(root / "renamed")
        assert ear.closed == {root / "renamed"}
        ear.forget()
        (root / "renamed").rename(tmp_path / "out")
        ear.until("its leaving is a change", lambda: ear.changed)
        assert ear.heard == set()


def test_a_deletion_and_a_hard_link_are_changes(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").touch()
    with listening(root) as ear:
        os.link(tmp_path / "outside", root / "link")
        ear.hears(root / "link")
        assert ear.created == {root / "link"}
        ear.forget()
        (root / "link").unlink()
        ear.until("the deletion is a change", lambda: ear.changed)


def test_a_folder_is_heard_at_the_place_that_it_was_moved_to(root: Path, tmp_path: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside" / "c").mkdir(parents=True)
    (tmp_path / "outside" / "c" / "brought").touch()
    with listening(root) as ear:
        (root / "a").rename(root / "z")
        (tmp_path / "outside").rename(root / "z" / "inside")
        ear.hears(root / "z" / "inside" / "c" / "brought")
        (root / "z" / "b" / "file").touch()
        (root / "z" / "inside" / "c" / "file").touch()
        ear.hears(root / "z" / "b" / "file", root / "z" / "inside" / "c" / "file")


def test_a_folder_that_was_moved_out_is_not_heard_any_more(root: Path, tmp_path: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    with listening(root) as ear:
        (root / "a").rename(tmp_path / "gone")
        ear.until("its leaving is a change", lambda: ear.changed)
        (tmp_path / "gone" / "b" / "unheard").touch()
        (root / "heard").touch()
        ear.hears(root / "heard")
        assert ear.heard == {root / "heard"}


def test_a_folder_that_was_made_again_is_watched_again(root: Path) -> None:
    with listening(root) as ear:
        for n in range(50):
            shutil.rmtree(root / "folder", ignore_errors=True)
            (root / "folder" / "below").mkdir(parents=True)
            (root / "folder" / "below" / str(n)).touch()
        ear.hears(root / "folder" / "below" / "49")
        (root / "folder" / "below" / "later").touch()
        ear.hears(root / "folder" / "below" / "later")


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with listening(root) as ear:
        (root / "link").symlink_to(tmp_path / "elsewhere")
        ear.hears(root / "link")
        (tmp_path / "elsewhere" / "unheard").touch()
        (root / "heard").touch()
        ear.hears(root / "heard")
        assert ear.heard == {root / "link", root / "heard"}


def test_what_is_our_own_is_not_told(root: Path) -> None:
    with listening(root) as ear:
        (root / ".kelpie-tmp-1").touch()
        (root / "x.kelpie").mkdir()
        (root / "x.kelpie" / "record").touch()
        (root / ".kelpie-tmp-1").rename(root / "restored")
        ear.hears(root / "restored")
        assert ear.heard == {root / "restored"}


def test_writes_to_an_exempt_file_wake_nobody(root: Path) -> None:
    with listening(root) as ear, (root / "log").open("a") as log:
        ear.hears(root / "log")
        ear.inotify.exempt([root / "log"])
        ear.forget()
        before, last_s = ear.wakes, ear.inotify.drain().last_event_s
        print("line", file=log, flush=True)
        ear.until("the write is a change", lambda: ear.changed)
        assert ear.wakes == before
        assert ear.inotify.drain().last_event_s == last_s
        (root / "other").touch()
        ear.hears(root / "other")
        assert ear.inotify.drain().last_event_s > last_s


def test_events_of_one_root_are_not_those_of_another(tmp_path: Path) -> None:
    top = tmp_path.resolve()
    outer, inner, other = top / "outer", top / "outer" / "inner", top / "other"
    inner.mkdir(parents=True)
    other.mkdir()
    with listening(outer, inner, other) as ear:
        before = dict(ear.inotify.drain().last_events_s)
        (inner / "file").touch()
        # Its last event: one that came after this would be taken for the next file's.
        ear.until("the file is heard to be closed", lambda: inner / "file" in ear.closed)
        after = ear.inotify.drain().last_events_s
        assert after[outer] > before.get(outer, 0.0)
        assert after[inner] > before.get(inner, 0.0)
        assert after[other] == before[other]
        (outer / "file").touch()
        ear.hears(outer / "file")
        assert ear.inotify.drain().last_events_s[inner] == after[inner]


def test_a_root_below_a_reserved_folder_of_another_is_watched_by_itself(root: Path) -> None:
    inner = root / "x.kelpie" / "inner"
    inner.mkdir(parents=True)
    with listening(root, inner) as ear:
        (inner / "heard").touch()
        ear.hears(inner / "heard")
        assert ear.inotify.drain().last_events_s.keys() >= {inner}


# -- roots ------------------------------------------------------------------------------------------------------------


def test_a_root_that_appears_later_is_watched(tmp_path: Path) -> None:
    late = tmp_path.resolve() / "above" / "late"
    with listening(late) as ear:
        late.mkdir(parents=True)
        (late / "first").touch()
        ear.inotify.rearm()
        ear.hears(late / "first")
        (late / "second").touch()
        ear.until("it is closed", lambda: late / "second" in ear.closed)


@pytest.mark.parametrize("how", ["renamed", "deleted", "above renamed"])
def test_a_root_that_was_replaced_is_watched_again_without_being_asked(tmp_path: Path, how: str) -> None:
    root = tmp_path.resolve() / "above" / "root"
    root.mkdir(parents=True)
    with listening(root) as ear:
        if how == "renamed":
            root.rename(tmp_path / "old")
        elif how == "deleted":
            shutil.rmtree(root)
        else:
            root.parent.rename(tmp_path / "old-above")
        ear.until("its going is a change", lambda: ear.changed)
        root.mkdir(parents=True)
        (root / "first").touch()
        ear.hears(root / "first")
        (root / "second").touch()
        ear.hears(root / "second")


def test_a_link_in_the_place_of_a_root_is_not_followed(root: Path, tmp_path: Path) -> None:
    with listening(root) as ear:
        root.rename(tmp_path / "old")
        root.symlink_to(tmp_path / "old")
        ear.until("its going is a change", lambda: ear.changed)
        ear.inotify.rearm()
        (tmp_path / "old" / "unheard").touch()
        root.unlink()
        root.mkdir()
        (root / "heard").touch()
        ear.hears(root / "heard")
        assert ear.heard == {root / "heard"}


# -- limits -----------------------------------------------------------------------------------------------------------


def limited(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "action", "") == "watch_limited"]


def test_running_out_of_watches_is_told_once_and_ends_when_there_are_some(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add, left = calls.Watches.add, [0]

    def add_some(watches: calls.Watches, folder: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return add(watches, folder)

    with listening(root) as ear:
        monkeypatch.setattr(calls.Watches, "add", add_some)
        for name in ("unheard", "of"):
            (root / name).mkdir()
        ear.until("it is blind", lambda: ear.inotify.drain().blind)
        (root / "heard").touch()
        ear.hears(root / "heard")
        assert len(limited(caplog)) == 1
        assert "fs.inotify.max_user_watches" in limited(caplog)[0].getMessage()
        left[0] = 100
        ear.inotify.rearm()
        ear.until("it sees again", lambda: not ear.inotify.drain().blind)
        (root / "of" / "file").touch()
        ear.hears(root / "of" / "file")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EMFILE])
def test_without_inotify_its_owner_is_told_to_look_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refuse(watches: calls.Watches) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(calls.Watches, "__init__", refuse)
    ear = Ear(root)
    ear.inotify.start()
    assert ear.inotify.drain().blind
    assert len(limited(caplog)) == 1
    ear.inotify.rearm()
    ear.inotify.close()


def test_a_program_that_writes_byte_by_byte_does_not_keep_us_busy(root: Path) -> None:
    with listening(root) as ear, (root / "a").open("wb", 0) as a, (root / "b").open("wb", 0) as b:
        before, began = ear.wakes, time.monotonic()
        for _ in range(50_000):
            a.write(b"x")
            b.write(b"x")
        took_s = time.monotonic() - began
        ear.hears(root / "a", root / "b")
        assert ear.wakes - before <= 2
        assert took_s < 60


def test_closing_is_prompt_and_leaves_nothing_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_worker.sync.inotify._LOOK_S", 60.0)  # the thread does not wake up by itself
    fds = descriptors()
    ear = Ear(root)
    ear.inotify.start()
    ear.until("it has begun", lambda: ear.changed)
    began = time.monotonic()
    ear.inotify.close()
    assert time.monotonic() - began < 4
    assert descriptors() == fds
    assert not any(thread.name == "kelpie-inotify" for thread in threading.enumerate())
    ear.inotify.rearm()
    ear.inotify.close()
    assert not ear.inotify.drain().blind


def test_closing_does_not_wait_for_a_long_look(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    add, looking, go_on = calls.Watches.add, threading.Event(), threading.Event()
    added: list[bytes] = []

    def add_late(watches: calls.Watches, folder: bytes) -> int:
        added.append(folder)
        if folder.endswith(b"/a"):
            looking.set()
            assert go_on.wait(10)
        return add(watches, folder)

    monkeypatch.setattr(calls.Watches, "add", add_late)
    ear = Ear(root)
    ear.inotify.start()
    assert looking.wait(10)
    closing = threading.Thread(target=ear.inotify.close)
    closing.start()
    while not ear.inotify._closing:
        time.sleep(0.001)
    go_on.set()
    closing.join(5)
    assert not closing.is_alive()
    assert os.fsencode(root / "a" / "b") not in added


# -- any history ------------------------------------------------------------------------------------------------------

SHUFFLE = """
import os, random, shutil, sys
top, outside, rng = sys.argv[1], sys.argv[2], random.Random(int(sys.argv[3]))

def folders():
    return [path for place in (top, outside) for path, _, _ in os.walk(place)]

for n in range(300):
    among = folders()
    source, target = rng.choice(among), rng.choice(among)
    try:
        if len(among) < 40 and rng.random() < 0.5:
            os.makedirs(f"{target}/{rng.randrange(4)}/{rng.randrange(4)}")
        elif source in (top, outside):
            continue
        elif rng.random() < 0.2:
            shutil.rmtree(source)
        else:
            os.rename(source, f"{target}/{rng.randrange(4)}")
    except OSError:
        pass
"""


@pytest.mark.parametrize("seed", range(6))
def test_however_folders_come_move_and_go_each_that_is_left_is_heard(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    outside = tmp_path.resolve() / "outside"
    outside.mkdir()
    if seed % 2:  # events that are long out of date when they are read
        read = calls.Watches.read

        def read_late(watches: calls.Watches, spoken: int = -1) -> tuple[list[calls.RawEvent], bool]:
            time.sleep(0.03)
            return read(watches, spoken)

        monkeypatch.setattr(calls.Watches, "read", read_late)
    with listening(root) as ear:
        with python(SHUFFLE, root, outside, seed) as shuffler:
            assert shuffler.wait(60) == 0
        # What was moved is found, which says that the last event has been taken care of.
        (root / "end").mkdir()
        (root / "end" / "found").touch()
        ear.hears(root / "end" / "found")
        ear.forget()
        expected = {Path(path) / "last" for path, _, _ in os.walk(root)}
        for path in expected:
            path.touch()
        for folder, _, _ in os.walk(outside):
            (Path(folder) / "unheard").touch()
        ear.hears(*expected)
        assert ear.heard - {root / "end" / "found"} == expected, "neither too little nor too much"
        assert not ear.overflowed
