"""Which operation is refused in which state of a group, strictly and leniently.

The API's specification has no rule by state and no 409; it lists 400 and 403 only. What is here is assumed, from what
the vendor's own clients do and what the portal allows: strict is the most that the real platform may refuse, lenient
the least. A client that gets along with both gets along with the real one. Limits: no rule speaks of instances but
``world.py``'s, that only a running one can be restarted or recreated.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from kelpie_celery.local.salad.errors import Refusal
from kelpie_celery.local.salad.model import Group
from kelpie_celery.local.salad.states import GroupStatus


class Verdict(StrEnum):
    """What becomes of an operation."""

    DO = "do"
    IGNORE = "ignore"  # accepted, without effect
    REFUSE = "refuse"


_DO, _IGNORE, _REFUSE = Verdict.DO, Verdict.IGNORE, Verdict.REFUSE

# By status: strict, lenient.
START: Mapping[GroupStatus, tuple[Verdict, Verdict]] = {
    GroupStatus.STOPPED: (_DO, _DO),
    GroupStatus.DEPLOYING: (_REFUSE, _IGNORE),
    GroupStatus.RUNNING: (_REFUSE, _IGNORE),
    GroupStatus.PENDING: (_REFUSE, _DO),
    GroupStatus.FAILED: (_REFUSE, _REFUSE),
    GroupStatus.SUCCEEDED: (_REFUSE, _REFUSE),
}
STOP: Mapping[GroupStatus, tuple[Verdict, Verdict]] = {
    GroupStatus.RUNNING: (_DO, _DO),
    GroupStatus.DEPLOYING: (_DO, _DO),
    GroupStatus.PENDING: (_REFUSE, _DO),
    GroupStatus.STOPPED: (_REFUSE, _IGNORE),
    GroupStatus.FAILED: (_REFUSE, _IGNORE),
    GroupStatus.SUCCEEDED: (_REFUSE, _IGNORE),
}
PATCH: Mapping[bool, tuple[Verdict, Verdict]] = {False: (_DO, _DO), True: (_REFUSE, _DO)}


def may_start(group: Group, *, strict: bool) -> bool:
    """Whether a start is to be carried out.

    Raises:
        Refusal: It is refused.
    """
    return _judge("started", group, START[group.status], strict)


def may_stop(group: Group, *, strict: bool) -> bool:
    """Whether a stop is to be carried out.

    Raises:
        Refusal: It is refused.
    """
    return _judge("stopped", group, STOP[group.status], strict)


def check_patch(group: Group, *, strict: bool) -> None:
    """See that the group may be changed.

    Raises:
        Refusal: It is refused.
    """
    _judge("changed", group, PATCH[group.preparing], strict)


def _judge(what: str, group: Group, verdicts: tuple[Verdict, Verdict], strict: bool) -> bool:
    verdict = verdicts[0 if strict else 1]
    if verdict is Verdict.REFUSE:
        why = "its image is being prepared" if group.preparing else f"it is {group.status}"
        raise Refusal(400, f"Container group '{group.name}' cannot be {what}: {why}.")
    return verdict is Verdict.DO
