"""Whether SaladCloud's API lets the scaler do its work: key, organization, project, container group, quota.

Nothing is changed. Limits: three calls; whether the key may change a group is seen only when it does.
"""

from __future__ import annotations

from kelpie_celery.clock import Clock
from kelpie_celery.errors import SaladDenied, SaladError, SaladNotFound
from kelpie_celery.findings import Finding, error, info, ok, warning
from kelpie_celery.settings import Settings
from kelpie_scaler.salad.client import Place, SaladClient
from kelpie_scaler.salad.model import Group
from kelpie_scaler.salad.transport import CALLS_A_MINUTE, Transport

SLOW_S = 5.0
_TRIES = 2


class _NoRate:
    """Three calls need no rate, and no Redis to keep it in."""

    def take_token(self, bucket: str, *, each_s: float, holds: int, most_s: float) -> float | None:  # noqa: ARG002
        """At once."""
        return 0.0


def check_salad(settings: Settings, group: str | None, clock: Clock) -> list[Finding]:
    """All about SaladCloud."""
    if settings.salad_api_key is None:
        return [info("saladcloud", "not looked at: no SALAD_API_KEY is set, and without one nothing is scaled")]
    transport = Transport(settings.salad_api_url, settings.salad_api_key, _NoRate(), clock=clock, tries=_TRIES)
    try:
        return _looks(SaladClient(transport), settings, group, clock)
    finally:
        transport.close()


def _looks(client: SaladClient, settings: Settings, group: str | None, clock: Clock) -> list[Finding]:
    organization, project = settings.organization, settings.project
    if organization is None:
        mend = "set SALAD_ORGANIZATION_NAME, and SALAD_PROJECT_NAME; a scaling rule may name others"
        return [warning("saladcloud", "a key is set, and no organization to try it on", mend)]
    began = clock.boottime()
    try:
        quotas = client.quotas(organization)
    except SaladError as e:
        return [error("saladcloud", str(e), _mend(e))]
    took_s = clock.boottime() - began
    text = (
        f"the key is taken in organization {organization!r}; an answer takes {took_s:.2f} s, {CALLS_A_MINUTE} a minute"
    )
    facts = {"latency_s": round(took_s, 3)}
    found = [
        ok("saladcloud", text, **facts) if took_s < SLOW_S
        else warning("saladcloud", text, "see the network of this machine; the scaler waits for each", **facts)
    ]  # fmt: skip
    left = quotas.replicas - quotas.used
    counts = f"{quotas.used} of {quotas.replicas} replicas of the organization are in use"
    if left <= 0:
        mend = "ask SaladCloud for a higher quota, or stop what is not needed: no node can be added"
        found.append(warning("salad quota", counts, mend, replicas=quotas.replicas, used=quotas.used))
    else:
        found.append(ok("salad quota", counts, replicas=quotas.replicas, used=quotas.used))
    return [*found, _group(client, organization, project, group)]


def _group(client: SaladClient, organization: str, project: str | None, group: str | None) -> Finding:
    if project is None or group is None:
        mend = "set SALAD_PROJECT_NAME, and name a container group by --group"
        return info("salad group", "not looked at: no project or no container group is named", mend)
    try:
        found = client.find_group(Place(organization, project), group)
        running = sum(1 for one in client.instances(Place(organization, project, found.name)) if one.state == "running")
    except SaladError as e:
        return error("salad group", str(e), _mend(e))
    return _of_group(found, running)


def _of_group(found: Group, running: int) -> Finding:
    facts = found.facts
    text = f"{found.name} is {facts.status.value}, with {facts.replicas} replicas, {running} of them running"
    if facts.autoscaled_by:
        mend = "turn that off in SaladCloud's portal: two that scale one group undo each other's work"
        return warning("salad group", f"{text}; it is scaled by SaladCloud too: {', '.join(facts.autoscaled_by)}", mend)
    return ok("salad group", text, replicas=facts.replicas, running=running)


def _mend(e: SaladError) -> str:
    if isinstance(e, SaladDenied):
        return "make a new key in SaladCloud's portal, and set SALAD_API_KEY where the control worker runs"
    if isinstance(e, SaladNotFound):
        return "SALAD_ORGANIZATION_NAME and SALAD_PROJECT_NAME are the names in the portal's address, not display names"
    return "try again in a moment; if it stays so, see SaladCloud's status page and KELPIE_SALAD_API_URL"
