"""One verification from start to end: look at the definition, bring the inputs, try the job, judge.

Limits: everything private lies in a temporary directory, which goes at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kelpie_celery.checkpoints.storage import Storage, open_storage
from kelpie_celery.cli._text import duration
from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.definition import JobDefinition
from kelpie_celery.findings import Finding, any_bad
from kelpie_celery.local.machine import made
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.redaction import Redactor
from kelpie_celery.settings import Settings, load_settings
from kelpie_worker.preflight import folder, staging
from kelpie_worker.preflight.errors import CannotVerify
from kelpie_worker.preflight.judging import hopeless, judge, resumes
from kelpie_worker.preflight.rig import Rig, check_links, full_paths, shares_prefix
from kelpie_worker.preflight.seen import Asked, Seen
from kelpie_worker.preflight.trial import Trial

_NOWHERE = "redis://127.0.0.1:1/0"


@dataclass(frozen=True)
class Request:
    """What is to be verified.

    Attributes:
        definition: The job.
        directory: The working directory of its command.
        inputs: Folders that stand for inputs, by ``bucket/prefix/``.
        timeout_s: How long a first checkpoint, and the end, may take each.
        reference: Whether an uninterrupted run is made to compare with.
        environ: The user's environment.
    """

    definition: JobDefinition
    directory: Path
    inputs: Mapping[str, Path]
    timeout_s: float
    reference: bool
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """What came of it; ``resumes`` means that it was seen, and that nothing is wrong."""

    resumes: bool
    findings: Sequence[Finding]
    seconds: float


def verify(
    request: Request, tell: Callable[[str], None], *, s3: SeaweedServer | None = None, clock: Clock | None = None
) -> Verdict:
    """Verify a job.

    Args:
        request: What, and how.
        tell: Told of each step.
        s3: A private S3 server that runs already; by default one is started.
        clock: Where time comes from.

    Raises:
        CannotVerify: It cannot be tried here.
        DirectoryError: The working directory cannot be copied.
        LocalStackError: A server or a worker does not come up.
        SettingsError: A setting of the environment is wrong.
    """
    clock = clock or SystemClock()
    began = clock.boottime()
    settings = load_settings({**request.environ, "KELPIE_REDIS_URL": _NOWHERE})
    asked = asked_of(request, settings)
    findings = judge(Seen(), asked) if not asked.directories else _tried(request, asked, settings, tell, s3, clock)
    redactor = Redactor([*request.definition.environment.values(), *settings.secrets()])
    shown = [replace(one, text=redactor.mask(one.text), mend=redactor.mask(one.mend)) for one in findings]
    return Verdict(resumes(findings) and not any_bad(findings), shown, clock.boottime() - began)


def asked_of(request: Request, settings: Settings) -> Asked:
    """What the definition says of checkpoints and outputs."""
    plan = request.definition.transfers()
    checkpoints = [one for one in plan.during if one.role == "checkpoint"]
    return Asked(
        directories=list(dict.fromkeys(one.local_path for one in checkpoints)),
        commit=checkpoints[0].commit if checkpoints else "quiet",
        quiet_s=settings.settle_s,
        grace_s=request.definition.grace_period,
        timeout_s=request.timeout_s,
        has_outputs=any(one.role == "output" for one in (*plan.during, *plan.after)),
        reads_tell=not shares_prefix(request.definition),
    )


def _tried(
    request: Request, asked: Asked, settings: Settings, tell: Callable[[str], None], s3: SeaweedServer | None,
    clock: Clock,
) -> list[Finding]:  # fmt: skip
    source = request.directory.resolve()
    folder.check(source)
    check_links(request.definition, source)
    check_command(request.definition, source, request.environ)
    own_paths = [path for path in full_paths(request.definition) if not path.exists()]
    wanted = staging.inputs_of(request.definition.transfers().before)
    staging.check(wanted, request.inputs, has_storage=_storage(settings) is not None)
    directory = Path(tempfile.mkdtemp(prefix="kelpie-verify-"))
    rig: Rig | None = None
    try:
        rig = Rig(directory, source, clock, env={}, s3=s3)
        tell(f"a private Redis and S3 server come up; {source} is copied for each machine")
        rig.start()
        rig.make_buckets(request.definition)
        staging.stage(wanted, request.inputs, _storage(settings), rig.s3.client(), tell)
        handshake = made(directory / "handshake")
        trial = Trial(
            rig, request.definition, handshake, request.timeout_s, clock, tell, lambda seen: hopeless(seen, asked)
        )
        if request.reference:
            trial.run_reference()
        seen = trial.run()
        tell(f"tried for {duration(seen.waited_s)}; stopping everything")
        return judge(seen, asked)
    finally:
        if rig is not None:
            rig.close()
        shutil.rmtree(directory, ignore_errors=True)
        for path in own_paths:
            _remove_empty(path)


def check_command(definition: JobDefinition, source: Path, environ: Mapping[str, str]) -> None:
    """Make sure that there is a command.

    Raises:
        CannotVerify: There is none on this machine.
    """
    path = definition.environment.get("PATH", environ.get("PATH", os.defpath))
    command = definition.command
    if "/" in command:
        there = source / command
        if os.access(there, os.X_OK) and there.is_file():
            return
    elif shutil.which(command, path=path):
        return
    raise CannotVerify(
        f"the command {command!r} is not to be found on this machine, or cannot be executed; install it, give the "
        "directory that it is in by --directory, or run kelpie verify in the job's image"
    )


def _storage(settings: Settings) -> Storage | None:
    return open_storage(settings) if settings.aws_access_key_id and settings.aws_secret_access_key else None


def _remove_empty(path: Path) -> None:
    """What the worker made, and leaves empty."""
    try:
        path.rmdir()
    except OSError:
        return
