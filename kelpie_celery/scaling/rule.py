"""The scaling rule of one container group: how many nodes it may have, and how patiently it gives them back.

The first three limits are Kelpie's. Whatever is wrong is refused when the rule is made, all faults at once, each
with its field, its value and what it has to be.

Limits: one rule at a time; whether the container group exists shows when the scaler looks it up at SaladCloud.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails

from kelpie_celery._faults import Problem, describe, problem
from kelpie_celery._fields import GroupId
from kelpie_celery._suggest import did_you_mean
from kelpie_celery.errors import RuleError

MAX_REPLICAS = 500
"""Of a container group, by SaladCloud's API."""

_NAME = r"^([a-z][a-z0-9-]{0,61}[a-z0-9])?$"
_NAME_RULE = "must be a name on SaladCloud: 2 to 63 lower-case letters, digits or '-', a letter first; or empty"
_MAX_COOLDOWN_S = 86_400

Replicas = Annotated[int, Field(ge=0, le=MAX_REPLICAS)]
Name = Annotated[str, Field(pattern=_NAME)]


class ScalingRule(BaseModel):
    """A validated scaling rule; build it by keyword, or with `parse_rule`.

    Raises:
        RuleError: For whatever is wrong, also when it is built by keyword.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    container_group_id: GroupId = Field(description="The container group: its id on SaladCloud, and the queue's name.")
    organization: Name = Field(default="", description="Organization of the group on SaladCloud.")
    project: Name = Field(default="", description="Project of the group on SaladCloud.")
    group_name: Name = Field(default="", description="Name of the group there; looked up by its id when empty.")
    min_replicas: Replicas = Field(default=0, description="Never fewer nodes than this, also without work.")
    max_replicas: Replicas = Field(default=10, description="Never more nodes than this.")
    idle_threshold_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = Field(
        default=300.0, description="How long there has to be no work before the group goes to its minimum."
    )
    jobs_per_replica: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="Jobs that one node is there for; default: the slots that its worker reports."
    )
    scale_in_cooldown_s: Annotated[float, Field(ge=0, le=_MAX_COOLDOWN_S, allow_inf_nan=False)] = Field(
        default=300.0, description="How long nodes have to be too many before some are given back, seconds."
    )
    max_step_up: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] | None = Field(
        default=None, description="Nodes that one decision may add at most; default: as many as are needed."
    )
    paused: bool = Field(default=False, description="Leave the group as it is.")

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_all_at_once(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise our error, outside of the ``except`` block: pydantic's holds the input and must not be chained."""
        if isinstance(data, cls):
            return data
        problems: list[Problem] = []
        try:
            rule = handler(data)
        except ValidationError as error:
            problems = [_problem(detail) for detail in error.errors(include_url=False)]
        else:
            problems = _between_fields(rule)
        if problems:
            raise RuleError(problems)
        return rule

    def changed(self, **changes: Any) -> ScalingRule:
        """The same rule with other values, validated.

        Raises:
            RuleError: The changes do not fit.
        """
        return parse_rule({**self.model_dump(), **changes})


def parse_rule(raw: Mapping[str, Any] | ScalingRule) -> ScalingRule:
    """Validate a rule.

    Raises:
        RuleError: Names every fault.
    """
    if isinstance(raw, ScalingRule):
        return raw
    if not isinstance(raw, Mapping):
        raise RuleError([("rule", describe(raw), "must be an object with the fields of a scaling rule")])
    return ScalingRule.model_validate(dict(raw))


def stored_rule(data: Mapping[str, Any]) -> ScalingRule:
    """A rule from the ledger; fields that this version does not know are left out, so that versions may mix."""
    return parse_rule({name: value for name, value in data.items() if name in ScalingRule.model_fields})


def _between_fields(rule: ScalingRule) -> list[Problem]:
    if rule.min_replicas <= rule.max_replicas:
        return []
    return [("min_replicas", str(rule.min_replicas), f"must be at most max_replicas, which is {rule.max_replicas}")]


def _problem(detail: ErrorDetails) -> Problem:
    where, value, text = problem(detail, lambda _: ())
    if detail["type"] == "extra_forbidden":
        text = "is not a field of a scaling rule" + did_you_mean(str(detail["loc"][-1]), ScalingRule.model_fields)
    elif detail.get("ctx", {}).get("pattern") == _NAME:
        text = _NAME_RULE
    return where, value, text
