"""Guesses at misspelt names."""

from __future__ import annotations

import pytest

from kelpie_celery._suggest import closest, did_you_mean

KNOWN = ["command", "max_failures", "container_group_id", "grace_period"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("comand", "command"),
        ("maxFailures", "max_failures"),
        ("max-failures", "max_failures"),
        ("MAX_FAILURES", "max_failures"),
        ("graceperiod", "grace_period"),
        ("ContainerGroupID", "container_group_id"),
    ],
)
def test_a_slip_is_understood(typed: str, meant: str) -> None:
    assert closest(typed, KNOWN) == meant


@pytest.mark.parametrize("typed", ["", "zzz", "x" * 100_000])
def test_nothing_is_guessed_when_nothing_is_near(typed: str) -> None:
    assert closest(typed, KNOWN) is None
    assert did_you_mean(typed, KNOWN) == ""


def test_the_half_sentence_can_follow_a_message() -> None:
    assert did_you_mean("comand", KNOWN) == "; did you mean 'command'?"


def test_no_known_names_means_no_guess() -> None:
    assert closest("x", []) is None
