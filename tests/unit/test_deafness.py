"""When a worker that is alive counts as deaf."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kelpie_celery.deafness import Deafness, Organ, Seen

START = Seen(at=100.0, beats=0, answers=0, pulses=0, may_fetch=True, reachable=True)


class Looking:
    """Looks every two seconds; what is named stands still."""

    def __init__(self) -> None:
        self.deafness = Deafness(interval_s=2.0)
        self.seen = START
        self.deafness.look(START)

    def look(self, *still: str, after_s: float = 2.0, **more: bool) -> dict[Organ, float]:
        moved = {name: getattr(self.seen, name) + 1 for name in ("beats", "answers", "pulses") if name not in still}
        self.seen = replace(self.seen, at=self.seen.at + after_s, **moved, **more)
        return dict(self.deafness.look(self.seen))


@pytest.mark.parametrize(
    ("still", "organ"), [("beats", Organ.LOOP), ("answers", Organ.CONSUMER), ("pulses", Organ.PULSE)]
)
def test_what_stands_still_is_silent_until_it_moves(still: str, organ: Organ) -> None:
    looking = Looking()
    for number in range(1, 6):
        silent_s = looking.look(still)
        assert silent_s.pop(organ) == 2.0 * number
        assert set(silent_s.values()) == {0.0}
    assert looking.look()[organ] == 0.0


def test_a_consumer_that_may_not_fetch_is_not_deaf() -> None:
    looking = Looking()
    looking.look("answers")
    assert looking.look("answers", may_fetch=False)[Organ.CONSUMER] == 0.0
    assert looking.look("answers", may_fetch=True)[Organ.CONSUMER] == 2.0


def test_a_process_that_was_frozen_was_not_deaf_for_so_long() -> None:
    looking = Looking()
    assert looking.look("beats", "answers", "pulses", after_s=3600)[Organ.LOOP] == 4.0


def test_while_redis_is_away_nobody_is_deaf() -> None:
    looking = Looking()
    for _ in range(300):
        assert set(looking.look("beats", "answers", "pulses", reachable=False).values()) == {0.0}
    assert looking.look("beats", reachable=True)[Organ.LOOP] == 2.0, "and it counts from when it is back"
