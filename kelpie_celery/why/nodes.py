"""Why there are no workers, or no more of them: rule, scaler, nodes on their way.

Limits: nodes are known from the scaler's last look at SaladCloud alone, which is told with its age.
"""

from __future__ import annotations

from collections.abc import Iterator

from kelpie_celery.cli._text import counted, duration, one_line
from kelpie_celery.why.facts import DecisionSeen, GroupSeen, JobSeen, RuleSeen
from kelpie_celery.why.words import Because, ago, quoted

STALE_TICKS = 3.0
STALE_MORE_S = 30.0
"""A scaler that has not looked for three of its intervals and this is not heard of any more."""

MAINTAINED_S = 60.0
_DECIDED = "decision"


def nodes(seen: JobSeen) -> Iterator[Because]:
    """What is known of the group's nodes; without workers, the first sentence is why there are none."""
    group = seen.group
    if not group.workers.heard:
        yield from _nobody(seen)
    if group.rule is None:
        return
    decision = group.decision
    if group.rule.paused or decision is None:
        if group.workers.heard and group.rule.paused:
            yield _paused(seen, group.rule)
        return
    yield from _on_their_way(seen, decision)
    yield from _decided(seen, decision, first=False)


def scaler_is_silent(seen: JobSeen) -> bool:
    """Whether a rule is there that should be obeyed, and nobody has looked at its group for long."""
    group = seen.group
    if group.rule is None or group.rule.paused:
        return False
    patience_s = STALE_TICKS * seen.scale_interval_s + STALE_MORE_S
    return group.decision is None or seen.now - group.decision.at > patience_s


# -- nobody is there -----------------------------------------------------------------------------------------------


def _nobody(seen: JobSeen) -> Iterator[Because]:
    group, rule = seen.group, seen.group.rule
    yield _why_nobody(seen)
    if group.workers.last_heard is not None:
        yield Because(
            "last_worker", f"A worker of the group was last heard of {ago(seen.now, group.workers.last_heard)}."
        )
    if rule is not None and not rule.paused and scaler_is_silent(seen):
        yield from _silent_scaler(seen)
    if rule is None and group.nearest:
        yield Because("did_you_mean", f"Did you mean the container group '{one_line(group.nearest)}'? It is served.")


def _why_nobody(seen: JobSeen) -> Because:
    group, rule, decision = seen.group, seen.group.rule, seen.group.decision
    there = _no_worker(group)
    if rule is None and not group.rule_known:
        return Because("no_worker", f"{there}; whether a scaling rule starts nodes this Redis user may not read.")
    if rule is None:
        return Because(
            "no_worker",
            f"{there}, and the group has no scaling rule, so nothing starts nodes for it: start workers with "
            f"CONTAINER_GROUP_ID={one_line(group.group)}, or make a rule with 'kelpie rules set'.",
        )
    if rule.paused:
        return Because("rule_paused", f"{there}, and {_paused_words(seen)}")
    if rule.max_replicas == 0:
        return Because("max_replicas", f"{there}, and the scaling rule allows 0 nodes (max_replicas).")
    if scaler_is_silent(seen):
        return Because("no_scaler", f"{there}, and {_silence(seen)}.")
    if decision is not None and decision.kind != _DECIDED:
        return Because(
            "scaler_error", f"{there}, and the scaler could not act {ago(seen.now, decision.at)}: {_first(decision)}."
        )
    coming = _coming(decision)
    if coming:
        return Because("nodes_coming", f"{there} yet: nodes are on their way.")
    if decision is not None and decision.running:
        return Because(
            "silent_nodes",
            f"{there}, though {counted(decision.running, 'node')} ran at the scaler's last look, "
            f"{ago(seen.now, decision.at)}: the workers there are still starting, or cannot reach Redis.",
        )
    return Because("no_worker", f"{there}; what the scaler does about it follows.")


def _no_worker(group: GroupSeen) -> str:
    lately = "week" if group.workers.last_heard is None else duration(group.workers.alive_s)
    return f"No worker of the container group '{one_line(group.group)}' was heard of in the last {lately}"


# -- the rule and the scaler ---------------------------------------------------------------------------------------


def _paused(seen: JobSeen, _rule: RuleSeen) -> Because:
    words = _paused_words(seen)
    return Because("rule_paused", words[0].upper() + words[1:])


def _paused_words(seen: JobSeen) -> str:
    group = seen.group
    resume = f"'kelpie rules resume {one_line(group.group)}' lets the scaler act again."
    if group.decision is not None and group.decision.kind == "suspended":
        when = ago(seen.now, group.decision.at)
        return f"its scaling rule was paused by the scaler {when}: {_first(group.decision)}. {resume}"
    return f"its scaling rule is paused, so the scaler starts no nodes. {resume}"


def _silence(seen: JobSeen) -> str:
    decision = seen.group.decision
    if decision is None:
        return "no scaler has looked at the group since its rule was made"
    every = duration(seen.scale_interval_s)
    return f"the scaler last looked at the group {ago(seen.now, decision.at)}, though it should every {every}"


def _silent_scaler(seen: JobSeen) -> Iterator[Because]:
    group = seen.group
    beat = {True: "a beat is up", False: "no beat is up", None: "whether a beat is up is not known"}[group.beat]
    control = "never" if group.control is None else ago(seen.now, group.control)
    yield Because(
        "control",
        f"Of what a scaler needs, {beat}, and a control worker last did maintenance here: {control}. Start both, with "
        "SALAD_API_KEY set for the control worker.",
    )


def _coming(decision: DecisionSeen | None) -> int:
    if decision is None:
        return 0
    return (decision.allocating or 0) + (decision.creating or 0)


def _on_their_way(seen: JobSeen, decision: DecisionSeen) -> Iterator[Because]:
    if decision.allocating is None or decision.replicas is None:
        return
    told = ((decision.allocating, "look for a machine"), (decision.creating or 0, "fetch the image"),
            (decision.running or 0, "run"))  # fmt: skip
    parts = ", ".join(f"{count} {words}" for count, words in told if count) or "none is there"
    yield Because(
        "nodes",
        f"Of {counted(decision.replicas, 'node')} that SaladCloud was asked for "
        f"({one_line(decision.status) or 'status not known'}): {parts}; that is from {ago(seen.now, decision.at)}.",
    )


def _decided(seen: JobSeen, decision: DecisionSeen, *, first: bool) -> Iterator[Because]:
    if decision.kind != _DECIDED:
        if not first and seen.group.workers.heard:
            yield Because("scaler_error", f"The scaler could not act {ago(seen.now, decision.at)}: {_first(decision)}.")
        return
    why = "; ".join(quoted(reason) for reason in decision.reasons) or "it gave no reasons"
    yield Because("decision", f"The scaler decided {ago(seen.now, decision.at)}: {_action(decision)}, because {why}.")


def _action(decision: DecisionSeen) -> str:
    wanted = "" if decision.wanted is None else f" {decision.wanted}"
    words = {
        "nothing": "nothing is to change", "start": f"start the group with{wanted} nodes", "stop": "stop the group",
        "set_replicas": f"have{wanted} nodes", "drain": "tell idle workers to take no more jobs",
        "undrain": "let workers that were to go take jobs again",
    }  # fmt: skip
    return words.get(decision.action, one_line(decision.action) or "something that is not known")


def _first(decision: DecisionSeen) -> str:
    return quoted(decision.reasons[0]) if decision.reasons else "it gave no reason"


# -- maintenance ---------------------------------------------------------------------------------------------------


def nobody_maintains(seen: JobSeen) -> Iterator[Because]:
    """Said where a job needs maintenance, and nobody seems to do it."""
    maintained = seen.group.maintained
    if maintained is None:
        yield Because(
            "no_maintenance", "Nobody ever did maintenance of its group: it takes a worker or a control worker."
        )
    elif seen.now - maintained > MAINTAINED_S:
        yield Because(
            "no_maintenance",
            f"Maintenance of its group was last done {ago(seen.now, maintained)}: it takes a worker of the group or a "
            "control worker with a beat.",
        )
