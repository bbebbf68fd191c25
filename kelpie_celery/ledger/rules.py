"""The scaling rules, kept in the ledger by container group.

A change of a few fields is a read and a compare-and-set of the whole hash, so that a pause is never undone by somebody
who read the rule before it. Limits: synchronous; redis-py's errors leave this module as ``LedgerUnavailable``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kelpie_celery._suggest import did_you_mean
from kelpie_celery.errors import RuleNotFound
from kelpie_celery.ledger import keys
from kelpie_celery.ledger.calls import mapped_errors
from kelpie_celery.ledger.scripts import text
from kelpie_celery.scaling.rule import ScalingRule, parse_rule, stored_rule

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline

Changes = Mapping[str, Mapping[str, Any]]
"""Fields to be changed, by container group."""


class Rules:
    """Every scaling rule of one Redis."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def get(self, group: str) -> ScalingRule | None:
        """The rule of a container group, or None."""
        with mapped_errors(f"read the scaling rule of {group}"):
            found = self.redis.hget(keys.RULES, group)
        return None if found is None else _read(found)

    def all(self) -> list[ScalingRule]:
        """Every rule, by container group."""
        with mapped_errors("read the scaling rules"):
            found = self.redis.hgetall(keys.RULES)
        return [_read(found[group]) for group in sorted(found, key=text)]

    def put(self, rule: ScalingRule) -> None:
        """Keep a rule, in place of the one that there was."""
        with mapped_errors(f"keep the scaling rule of {rule.container_group_id}"):
            self.redis.hset(keys.RULES, rule.container_group_id, rule.model_dump_json())

    def delete(self, group: str) -> bool:
        """Forget a rule; False when there was none."""
        with mapped_errors(f"delete the scaling rule of {group}"):
            return bool(self.redis.hdel(keys.RULES, group))

    def pause(self, group: str) -> ScalingRule:
        """Have the scaler leave a group as it is.

        Raises:
            RuleNotFound: The group has no rule.
        """
        return self.change(group, {"paused": True})

    def resume(self, group: str) -> ScalingRule:
        """Have the scaler act for a group again.

        Raises:
            RuleNotFound: The group has no rule.
        """
        return self.change(group, {"paused": False})

    def change(self, group: str, changes: Mapping[str, Any]) -> ScalingRule:
        """Change some fields of a rule that there is.

        Raises:
            RuleNotFound: The group has no rule.
            RuleError: The changes do not fit; nothing has changed.
        """
        return self._write({group: changes}, new=False)[0]

    def merge(self, changes: Changes) -> list[ScalingRule]:
        """Change fields of rules, all together or none; where there is no rule, the defaults are changed.

        Raises:
            RuleError: The changes do not fit; nothing has changed.
        """
        return self._write(changes, new=True)

    def require(self, group: str) -> ScalingRule:
        """The rule of a container group.

        Raises:
            RuleNotFound: It has none.
        """
        rule = self.get(group)
        if rule is None:
            raise no_such_rule(group, [rule.container_group_id for rule in self.all()])
        return rule

    def _write(self, changes: Changes, *, new: bool) -> list[ScalingRule]:
        written: list[ScalingRule] = []

        def work(pipe: Pipeline) -> None:
            found = {text(group): value for group, value in pipe.hgetall(keys.RULES).items()}
            written[:] = [_changed(group, found, change, new=new) for group, change in changes.items()]
            pipe.multi()
            for rule in written:
                pipe.hset(keys.RULES, rule.container_group_id, rule.model_dump_json())

        if changes:
            with mapped_errors(f"change the scaling rules of {', '.join(changes)}"):
                self.redis.transaction(work, keys.RULES)
        return written


def no_such_rule(group: str, known: Sequence[str]) -> RuleNotFound:
    """The error for a container group without a rule."""
    hint = (
        did_you_mean(group, known) or "; 'kelpie rules list' shows those that there are, 'kelpie rules set' makes one"
    )
    return RuleNotFound(f"no scaling rule is kept for the container group {group!r}{hint}")


def _changed(group: str, found: Mapping[str, Any], changes: Mapping[str, Any], *, new: bool) -> ScalingRule:
    if group in found:
        return _read(found[group]).changed(**changes)
    if not new:
        raise no_such_rule(group, list(found))
    return parse_rule({"container_group_id": group, **changes})


def _read(value: Any) -> ScalingRule:
    return stored_rule(json.loads(text(value)))
