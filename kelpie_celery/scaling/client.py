"""What a client may do with scaling rules.

Limits: rules are kept here and obeyed elsewhere, by the scaler's task on the control worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kelpie_celery._calls import Calls
from kelpie_celery.ledger.ledger import Ledger
from kelpie_celery.ledger.rules import Rules, no_such_rule
from kelpie_celery.ledger.types import encodable
from kelpie_celery.scaling.rule import ScalingRule, parse_rule


class ScalingClient:
    """The part of a client that is about scaling rules; see `kelpie_celery.client.Kelpie`."""

    _calls: Calls
    _ledger: Ledger

    @property
    def _rules(self) -> Rules:
        return Rules(self._ledger.redis)

    def scaling_rules(self) -> list[ScalingRule]:
        """Every rule, by container group."""
        return self._calls.make("read the scaling rules", self._rules.all)

    def scaling_rule(self, group: str) -> ScalingRule:
        """The rule of a container group.

        Raises:
            RuleNotFound: It has none.
        """
        known = encodable(group)
        return self._calls.make(f"read the scaling rule of {known}", lambda: self._rules.require(known))

    def set_scaling_rule(self, rule: ScalingRule | Mapping[str, Any]) -> ScalingRule:
        """Keep a rule, in place of the one that there was; fields that are not given get their defaults.

        Raises:
            RuleError: It is refused; names every fault.
        """
        valid = parse_rule(rule)
        self._calls.make(f"keep the scaling rule of {valid.container_group_id}", lambda: self._rules.put(valid))
        return valid

    def change_scaling_rule(self, group: str, **changes: Any) -> ScalingRule:
        """Change some fields of a rule; where there is none, of a rule with defaults.

        Raises:
            RuleError: The changes are refused; names every fault.
        """
        known = encodable(group)
        doing = f"change the scaling rule of {known}"
        return self._calls.make(doing, lambda: self._rules.merge({known: changes}))[0]

    def delete_scaling_rule(self, group: str) -> None:
        """Forget a rule; its container group stays as it is.

        Raises:
            RuleNotFound: It has none.
        """
        known = encodable(group)
        if not self._calls.make(f"delete the scaling rule of {known}", lambda: self._rules.delete(known)):
            raise no_such_rule(known, [rule.container_group_id for rule in self.scaling_rules()])

    def pause_scaling(self, group: str) -> ScalingRule:
        """Have the scaler leave a group as it is.

        Raises:
            RuleNotFound: It has no rule.
        """
        known = encodable(group)
        return self._calls.make(f"pause the scaling of {known}", lambda: self._rules.pause(known))

    def resume_scaling(self, group: str) -> ScalingRule:
        """Have the scaler act for a group again.

        Raises:
            RuleNotFound: It has no rule.
        """
        known = encodable(group)
        return self._calls.make(f"resume the scaling of {known}", lambda: self._rules.resume(known))
