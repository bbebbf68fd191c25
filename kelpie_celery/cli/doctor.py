"""``kelpie doctor``.

Limits: what only a deployable knows is named here and imported when it is looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from kelpie_celery._fields import GROUP_ID
from kelpie_celery.cli._documents import print_document
from kelpie_celery.cli._errors import NOT_COMPLETED, OK
from kelpie_celery.cli._findings_view import show_findings
from kelpie_celery.cli._options import data_options
from kelpie_celery.cli._view import console
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.doctor.helper_checks import check_helpers
from kelpie_celery.doctor.redis_checks import check_redis
from kelpie_celery.doctor.running import Check, run_all
from kelpie_celery.doctor.storage_checks import check_storage
from kelpie_celery.findings import Finding, Level, any_bad, info
from kelpie_celery.logs import configure_logging
from kelpie_celery.redaction import Redactor
from kelpie_celery.settings import Settings, load_settings

_MACHINE = ("machine", "kelpie_worker.doctor:check_machine", "worker")
_SALAD = ("saladcloud", "kelpie_scaler.doctor:check_salad", "scaler")
_STORAGE_S, _SALAD_S = 90.0, 90.0


@click.command(short_help="Look for what is wrong with the set-up.")
@click.option("--group", metavar="GROUP", help="The container group to look at; default: SALAD_CONTAINER_GROUP_ID.")
@click.option("--bucket", metavar="[s3://]BUCKET[/PREFIX]", help="Where to try the storage.")
@data_options
def doctor(group: str | None, bucket: str | None, redis_url: str | None, as_json: bool) -> int:
    """Look whether Redis, the storage, SaladCloud and this machine are as they should be, and say what to mend.

    On the storage a few objects below kelpie-doctor-probe.kelpie/ are written and deleted; nothing else is changed.
    Each look ends in time. Exit code 0: nothing has to be mended; 1: something has.
    """
    configure_logging("critical")
    overrides = {"KELPIE_REDIS_URL": redis_url} if redis_url else {}
    settings = load_settings({**os.environ, **overrides})
    clock = SystemClock()
    findings = masked(run_all(checks(settings, _group(group) or settings.container_group_id, bucket, clock)), settings)
    show(findings, as_json=as_json)
    return NOT_COMPLETED if any_bad(findings) else OK


def checks(settings: Settings, group: str | None, bucket: str | None, clock: Clock) -> list[Check]:
    """Every look, in the order in which they are told."""
    return [
        Check("redis", lambda: check_redis(settings, clock), 4 * settings.redis_timeout_s),
        Check("helpers", lambda: check_helpers(settings, group, clock), 6 * settings.redis_timeout_s),
        Check("storage", lambda: _storage(settings, bucket, clock), _STORAGE_S),
        Check("saladcloud", lambda: _deployables(*_SALAD, settings, group, clock), _SALAD_S),
        Check("machine", lambda: _deployables(*_MACHINE, settings, clock), 40.0),
    ]


def _storage(settings: Settings, place: str | None, clock: Clock) -> Sequence[Finding]:
    if place is None:
        return [info("storage", "not looked at: no bucket was named", "name one by --bucket s3://BUCKET/PREFIX")]
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    return check_storage(settings, bucket, prefix.strip("/") + "/" if prefix.strip("/") else "", clock)


def _deployables(name: str, where: str, extra: str, *args: Any) -> Sequence[Finding]:
    module, _, attribute = where.partition(":")
    try:
        look = getattr(import_module(module), attribute)
    except ImportError:
        text = f"not looked at: the extra {extra!r} is not installed here"
        return [info(name, text, f"pip install 'kelpie-celery[{extra}]', or run it where that is installed")]
    found: Sequence[Finding] = look(*args)
    return found


def _group(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(GROUP_ID, value):
        raise click.BadParameter("must be 1 to 128 letters, digits, '.', '_' or '-'", param_hint="--group")
    return value


def masked(findings: Sequence[Finding], settings: Settings) -> list[Finding]:
    """The findings without any credential of the settings, wherever it came from."""
    mask = Redactor(settings.secrets()).mask
    return [Finding(one.level, one.check, mask(one.text), mask(one.mend), one.facts) for one in findings]


def show(findings: Sequence[Finding], *, as_json: bool) -> None:
    """Print them."""
    bad = sum(one.level.bad for one in findings)
    doubtful = sum(one.level is Level.WARNING for one in findings)
    if as_json:
        print_document({"healthy": not bad, "findings": [one.document() for one in findings]})
        return
    out = console()
    show_findings(out, findings)
    out.print(f"{bad} to mend, {doubtful} doubtful" if bad or doubtful else "all is well", soft_wrap=True)
