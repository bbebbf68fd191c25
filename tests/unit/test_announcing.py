from __future__ import annotations

import pytest

from kelpie_celery.announcing import AGAIN_S, MAX_CHARS, NEWS_S, Announcer, end_text, progress_text
from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import JobFailed, JobInterrupted
from kelpie_celery.lifecycle import Phase, Reason


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sent() -> list[tuple[float, str]]:
    return []


@pytest.fixture
def announcer(clock: ManualClock, sent: list[tuple[float, str]]) -> Announcer:
    return Announcer(lambda started, words: sent.append((started, words)), 2, clock)


@pytest.mark.parametrize(
    ("progress", "message", "text"),
    [
        (0.421, "epoch 3", "42 %: epoch 3"),
        (None, "epoch\n\x1b[31m 3", "epoch [31m 3"),
        (1.0, None, "100 %"),
        (7.5, "", "7.5"),
        (None, None, ""),
    ],
)
def test_progress_is_one_line_of_printable_text(progress: float | None, message: str | None, text: str) -> None:
    assert progress_text(progress, message) == text


def test_the_start_is_told_at_once_and_each_news_with_its_time(
    announcer: Announcer, clock: ManualClock, sent: list[tuple[float, str]]
) -> None:
    started = clock.now()
    announcer.tell()
    clock.advance(NEWS_S)
    announcer.note(Phase.RESTORING)
    announcer.say(0.5, "from before")
    announcer.tell()
    clock.advance(NEWS_S)
    announcer.note(Phase.EXECUTING)
    announcer.say(None, "epoch 3")
    announcer.tell()
    assert sent == [
        (started, "attempt 2, starting"),
        (started, "attempt 2, restoring"),
        (started, "attempt 2, executing: 50 %: epoch 3"),
    ]


def test_a_talkative_job_is_told_of_now_and_then_and_a_silent_one_rarely(
    announcer: Announcer, clock: ManualClock, sent: list[tuple[float, str]]
) -> None:
    announcer.note(Phase.EXECUTING)
    for step in range(100):
        announcer.say(step / 100, None)
        announcer.tell()
        clock.advance(NEWS_S / 10)
    assert len(sent) == 10
    for _ in range(int(2 * AGAIN_S)):
        announcer.tell()
        clock.advance(1)
    assert [words for _, words in sent[10:]] == ["attempt 2, executing: 99 %"] * 2


def test_after_the_end_nothing_is_told(announcer: Announcer, clock: ManualClock, sent: list[tuple[float, str]]) -> None:
    announcer.tell()
    announcer.close()
    announcer.note(Phase.UPLOADING)
    clock.advance(10 * AGAIN_S)
    announcer.tell()
    assert len(sent) == 1


def test_long_words_are_cut(announcer: Announcer, sent: list[tuple[float, str]]) -> None:
    announcer.note(Phase.EXECUTING)
    announcer.say(None, "x" * 10 * MAX_CHARS)
    announcer.tell()
    assert len(sent[0][1]) == MAX_CHARS


def test_an_end_is_told_in_words() -> None:
    assert end_text(JobFailed("id", Reason.EXIT_CODE, "exit code 3")) == "JobFailed: exit_code: exit code 3"
    assert end_text(JobInterrupted("lease_expired: gone")) == "JobInterrupted: lease_expired: gone"
