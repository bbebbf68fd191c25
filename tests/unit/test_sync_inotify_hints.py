from __future__ import annotations

from pathlib import Path

import pytest

from kelpie_worker.sync.inotify_hints import MOST_PATHS, Hints

A, B = Path("/a"), Path("/b")


class Owner:
    def __init__(self) -> None:
        self.wakes = 0
        self.now_s = 1.0
        self.hints = Hints([A, B], self.wake, lambda: self.now_s)

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def owner() -> Owner:
    return Owner()


def test_a_path_is_told_once_and_as_what_it_is_in_the_end(owner: Owner) -> None:
    hints = owner.hints
    for name in (b"/a/1", b"/a/2", b"/a/3", b"/a/4"):
        hints.created(name, [A])
        hints.written(name, [A])
        hints.closed(name, [A])
    hints.created(b"/a/1", [A])
    hints.written(b"/a/2", [A])
    hints.gone(b"/a/3", [A])
    hints.moved_in(b"/a/4", [A])
    events = hints.drain()
    assert events.closed == (Path("/a/1"), Path("/a/4"))
    assert events.created == (Path("/a/2"),)
    assert events.changed
    assert not hints.drain().changed


def test_names_need_not_be_text(owner: Owner) -> None:
    owner.hints.closed(b"/a/\xff\n", [A])
    assert owner.hints.drain().closed == (Path("/a/\udcff\n"),)


def test_memory_is_bounded_and_what_does_not_fit_is_owned_up_to(owner: Owner) -> None:
    for n in range(MOST_PATHS // 2):
        owner.hints.created(b"/a/created-%d" % n, [A])
        owner.hints.closed(b"/a/closed-%d" % n, [A])
    owner.hints.closed(b"/a/closed-0", [A])
    owner.hints.closed(b"/a/created-0", [A])
    assert not owner.hints.drain().overflowed
    for n in range(MOST_PATHS + 1):
        owner.hints.created(b"/a/%d" % n, [A])
    events = owner.hints.drain()
    assert events.overflowed
    assert len(events.created) == MOST_PATHS
    assert not owner.hints.drain().overflowed


def test_the_owner_is_woken_once_until_it_asks(owner: Owner) -> None:
    owner.hints.tell()
    assert owner.wakes == 0
    for _ in range(3):
        owner.hints.closed(b"/a/1", [A])
        owner.hints.tell()
    assert owner.wakes == 1
    owner.hints.drain()
    owner.hints.tell()
    assert owner.wakes == 1
    owner.hints.touched([A])
    owner.hints.tell()
    assert owner.wakes == 2


def test_each_root_has_the_time_of_its_own_last_event(owner: Owner) -> None:
    assert owner.hints.drain().last_event_s == 0.0
    owner.hints.touched([A])
    owner.now_s = 2.0
    owner.hints.touched([B])
    events = owner.hints.drain()
    assert events.last_events_s == {A: 1.0, B: 2.0}
    assert events.last_event_s == 2.0
    assert owner.hints.drain().last_events_s == {A: 1.0, B: 2.0}, "it does not end with the asking"


def test_what_was_missed_may_have_been_anywhere_and_now(owner: Owner) -> None:
    owner.now_s = 5.0
    owner.hints.missed()
    events = owner.hints.drain()
    assert events.overflowed
    assert events.last_events_s == {A: 5.0, B: 5.0}


def test_writing_to_an_exempt_file_is_no_event_but_its_end_is(owner: Owner) -> None:
    owner.hints.exempt([Path("/a/log")])
    owner.hints.written(b"/a/log", [A])
    owner.hints.closed(b"/a/log", [A])
    owner.hints.tell()
    assert owner.wakes == 0
    events = owner.hints.drain()
    assert events.changed
    assert events.closed == (Path("/a/log"),)
    assert events.last_events_s == {}
    owner.hints.gone(b"/a/log", [A])
    owner.hints.exempt([])
    owner.hints.tell()
    assert owner.wakes == 1
    assert owner.hints.drain().last_events_s == {A: 1.0}
    owner.hints.written(b"/a/log", [A])
    owner.hints.tell()
    assert owner.wakes == 2


def test_going_blind_is_news_and_stays_so(owner: Owner) -> None:
    owner.hints.set_blind(True)
    owner.hints.set_blind(True)
    owner.hints.tell()
    assert owner.wakes == 1
    assert owner.hints.drain().blind
    assert owner.hints.drain().blind
    owner.hints.set_blind(False)
    assert not owner.hints.drain().blind


def test_an_owner_whose_event_loop_is_closed_ends_nothing() -> None:
    def refuse() -> None:
        raise RuntimeError("Event loop is closed")

    hints = Hints([A], refuse, lambda: 1.0)
    hints.touched([A])
    hints.tell()
    assert hints.drain().changed
