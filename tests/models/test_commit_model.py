"""The rules of commits hold in random histories, and each of them is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

import pytest

from tests.models.commit_model import History, Scenario, history
from tests.models.commit_world import LOSES, Rules
from tests.models.test_commit_stories import TOLD

MANY_JOBS = Scenario()
NOTHING_IS_LOST = Scenario(loses=0)
ONE_LINE = Scenario(jobs=("two",), freeze=0.08, crash=0.05)
LONG_PAUSES = Scenario(pause=0.06, most_commits=9)
TWO_JOBS = Scenario(jobs=("two", "three"), loses=0, freeze=0.05, pause=0.06, roll_back=0.0)
FROZEN = Scenario(jobs=("one",), loses=0, freeze=0.02, pause=0.0, roll_back=0.0, most_commits=2)
LATE_CLEANERS = Scenario(jobs=("two",), freeze=0.08, pause=0.06, roll_back=0.03, most_commits=9)
CANCELS = Scenario(
    jobs=("two", "three"), freeze=0.06, pause=0.03, crash=0.06, roll_back=0.0, most_commits=7, cancel=0.02
)
SCENARIOS = {
    "many jobs": MANY_JOBS, "nothing is lost": NOTHING_IS_LOST, "one line": ONE_LINE, "long pauses": LONG_PAUSES,
    "two jobs": TWO_JOBS, "frozen": FROZEN, "late cleaners": LATE_CLEANERS, "cancels": CANCELS,
}  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_every_kept_commit_can_be_restored_whole_and_no_line_goes_back(scenario: Scenario) -> None:
    for seed in range(150):
        broken = history(seed, Rules(), scenario)
        assert broken is None, str(broken)


@dataclass(frozen=True)
class Needed:
    """What a history shows, and where, when a rule is not kept."""

    rule: str
    scenario: Scenario
    breaks: str


NEEDED = [
    Needed("fresh_keys", MANY_JOBS, "lacks"),
    Needed("base_only", MANY_JOBS, "lacks"),
    Needed("base_checked", NOTHING_IS_LOST, "undoes"),
    Needed("rising", NOTHING_IS_LOST, "went back"),
    Needed("together", NOTHING_IS_LOST, "would mix"),
    Needed("grace", MANY_JOBS, "is gone|lacks"),
    Needed("grace_refs", MANY_JOBS, "lacks"),
    Needed("rollback_to_kept", NOTHING_IS_LOST, "lacks"),
    Needed("rollback_waits", NOTHING_IS_LOST, "trusts its lease"),
    Needed("plain_after", NOTHING_IS_LOST, "plain keys"),
    Needed("storage_fence", FROZEN, "plain keys"),
    Needed("sweep_by_owner", TWO_JOBS, "lacks"),
    Needed("sweep_age", TWO_JOBS, "lacks"),
    Needed("sweep_spares_own", LONG_PAUSES, "lacks"),
    Needed("sweep_spares_live", TWO_JOBS, "lacks"),
    Needed("sweep_recent", ONE_LINE, "is gone|lacks"),
    Needed("sweep_generations", MANY_JOBS, "is gone"),
]


@pytest.mark.parametrize("needed", NEEDED, ids=lambda needed: needed.rule)
def test_without_any_one_rule_something_breaks(needed: Needed) -> None:
    without = replace(Rules(), **{needed.rule: False})
    for seed in range(1000):
        broken = history(seed, without, needed.scenario)
        if broken and re.search(needed.breaks, broken.what):
            return
    pytest.fail(f"nothing needs the rule {needed.rule}")


def test_no_rule_is_left_out() -> None:
    assert {needed.rule for needed in NEEDED} | TOLD == {rule.name for rule in fields(Rules)}


def test_the_histories_are_about_what_they_claim() -> None:
    """A model in which nothing happens breaks nothing either."""
    told = "\n".join(line for seed in range(20) for s in (MANY_JOBS, ONE_LINE) for line in _trace(seed, s))
    happens = ("(quiet)", "(rollback)", "is reaped", "is refused", "arrived once more", "deletes", "completes")
    for words in happens:
        assert told.count(words) >= 5, words
    for lost in range(1, LOSES):
        assert f"the ledger lost {lost} writes" in told


def _trace(seed: int, scenario: Scenario) -> list[str]:
    one = History(seed, Rules(), scenario)
    one.play()
    return one.w.trace
