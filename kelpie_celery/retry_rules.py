"""Retry rules: what becomes of a failure that the user knows better about.

A rule names failures by exit code, by reason, or by both, and says whether such a one is retried as usual (``retry``),
ends the job (``fail``), or is retried without counting to ``max_failures`` (``free``). The first that matches counts.

Limits: failures only; interruptions never count and are always retried. ``free`` ends in a row without a new checkpoint
count again from the 21st on (``ledger.types.Timings.max_free``), so that no job goes round for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from kelpie_celery._fields import Described, rule
from kelpie_celery._suggest import did_you_mean
from kelpie_celery.ledger.types import Ending
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.reasons import REASONS, RULED
from kelpie_celery.sync_blocks import CONFIG

MAX_RULES = 50
RUN_ME_AGAIN = 75
_MAX_CODE = 255
_SIGNALED = 128
"""What shells add to the number of the signal that ended a program."""
_BY_EXIT = frozenset({Reason.EXIT_CODE, Reason.SIGNAL, Reason.OOM, Reason.DISK_FULL})


def _exit_code(value: int) -> int:
    if value == 0:
        raise rule("must be from 1 to 255; 0 is success, which is not retried")
    if value == RUN_ME_AGAIN:
        raise rule("must not be 75, which means 'checkpointed, run me again' whatever the rules say")
    if not 0 < value <= _MAX_CODE:
        raise rule("must be from 1 to 255; a command that a signal ended has 128 and the signal's number")
    return value


def _reason(value: str) -> str:
    if value in RULED:
        return value
    meaning = REASONS.get(Reason(value)) if value in set(Reason) else None
    if meaning is not None and meaning.outcome is Outcome.INTERRUPTION:
        raise rule("names an interruption, and those never count and are always retried; rules are about failures")
    if meaning is not None:
        raise rule("names an end that no rule can change; rules are about: " + ", ".join(RULED))
    raise rule(f"must be one of: {', '.join(RULED)}{did_you_mean(value, RULED)}")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


ExitCode = Annotated[int, AfterValidator(_exit_code), Described(minimum=1, maximum=_MAX_CODE)]
ReasonName = Annotated[str, AfterValidator(_reason), Described(enum=list(RULED))]


class RetryRule(BaseModel):
    """One rule; with both ``on_exit_code`` and ``on_reason`` it is about failures that both name."""

    model_config = CONFIG

    on_exit_code: list[ExitCode] = Field(
        default_factory=list,
        max_length=_MAX_CODE,
        description="Exit codes of the command; one that a signal ended has 128 and the signal's number, as in shells.",
    )
    on_reason: Annotated[list[ReasonName], BeforeValidator(_listed)] = Field(
        default_factory=list,
        max_length=len(RULED),
        description="Reasons of failures; a single one needs no list.",
    )
    action: Literal["retry", "fail", "free"] = Field(
        description="`retry`: as without a rule. `fail`: the job ends. `free`: retried, not counted to `max_failures`."
    )

    @model_validator(mode="after")
    def _is_about_something(self) -> Self:
        if not self.on_exit_code and not self.on_reason:
            raise rule("must say what it is about: `on_exit_code`, `on_reason` or both")
        return self

    def matches(self, reason: Reason, exit_code: int | None) -> bool:
        """Whether it is about a failure; ``exit_code`` is None where the command did not end by itself."""
        by_code = not self.on_exit_code or exit_code in self.on_exit_code
        return by_code and (not self.on_reason or reason in self.on_reason)


def ruled(rules: Sequence[RetryRule], ending: Ending) -> Ending:
    """An ending as the first rule that matches it will have it; as it is where none does, or it is no failure."""
    if ending.outcome is not Outcome.FAILURE or not REASONS[ending.reason].ruled:
        return ending
    code = _code_of(ending)
    for number, one in enumerate(rules):
        if one.matches(ending.reason, code):
            return _acted(one, number, ending)
    return ending


def _code_of(ending: Ending) -> int | None:
    """The code of a command that ended by itself: what we stop at a limit has no code of its own."""
    if ending.reason not in _BY_EXIT:
        return None
    code, signal = ending.facts.get("exit_code"), ending.facts.get("signal")
    return _SIGNALED + signal if isinstance(signal, int) else code


def _acted(one: RetryRule, number: int, ending: Ending) -> Ending:
    facts = {**ending.facts, "retry_rule": number}
    if one.action == "fail":
        return replace(ending, facts=facts, final=True, message=f"{ending.message}; retry[{number}] ends the job")
    if one.action == "free":
        return replace(ending, facts=facts, outcome=Outcome.FREE)
    return replace(ending, facts=facts)
