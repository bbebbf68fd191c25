"""All settings, in one frozen object that is read once, at process start, from the environment.

Every setting has the name of an environment variable, a unit and a default; ``docs/settings.md`` lists them.
A wrong value or a misspelt ``KELPIE_...`` name is an error that names it and the rule.

Limits: nothing is read when this module is imported, nothing is read again later; a change needs a restart.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pydantic import AliasChoices, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from kelpie_celery._faults import problem
from kelpie_celery._fields import mask_url, rule
from kelpie_celery._setting_types import (
    Count,
    EndpointUrl,
    GroupId,
    JobDirectory,
    Level,
    LogLevel,
    MachineId,
    Milliseconds,
    RedisUrl,
    Seconds,
    SecondsOrZero,
    Slots,
    setting,
)
from kelpie_celery._suggest import closest
from kelpie_celery.errors import SettingsError
from kelpie_celery.own_secrets import without_secrets_env

logger = logging.getLogger(__name__)

__all__ = ["LogLevel", "Settings", "load_settings", "variables", "without_secrets_env"]

_PREFIX = "KELPIE_"
# Given to jobs, from which jobs may be submitted too; and read by the local stack alone.
_NO_SETTINGS = frozenset(
    {"KELPIE_JOB_ID", "KELPIE_ATTEMPT", "KELPIE_REPORT", "KELPIE_PARENTS", "KELPIE_REDIS_SERVER", "KELPIE_WEED"}
)
_NEAR = 0.75


class Settings(BaseSettings):
    """What a process is told by its environment; `load_settings` makes one."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        case_sensitive=True,
        str_strip_whitespace=True,
        hide_input_in_errors=True,
        populate_by_name=True,
        validate_default=True,
    )

    redis_url: RedisUrl = setting(
        "KELPIE_REDIS_URL",
        "Redis that holds broker, results and ledger: `redis://`, `rediss://` (TLS) or `unix://`.",
    )

    container_group_id: GroupId | None = setting(
        "SALAD_CONTAINER_GROUP_ID", "Container group of this worker: the queue it serves.", default=None
    )
    machine_id: MachineId = setting(
        "SALAD_MACHINE_ID",
        "Node of this worker; default: the host's name.",
        default_factory=socket.gethostname,
    )
    instance_id: MachineId | None = setting(
        "SALAD_INSTANCE_ID", "Container run on that node, for logs and records.", default=None
    )
    slots: Slots | None = setting(
        "KELPIE_SLOTS", "Commands that run at once; default: the number of GPUs, at least 1.", default=None
    )

    workdir: Path = setting(
        "KELPIE_WORKDIR",
        "Where commands run; default: the directory that the worker is started in.",
        default_factory=Path.cwd,
    )
    input_dir: JobDirectory = setting(
        "INPUT_DIR", "Directory of `input_bucket`; cleared between jobs.", default=Path("/input")
    )
    output_dir: JobDirectory = setting(
        "OUTPUT_DIR", "Directory of `output_bucket`; cleared between jobs.", default=Path("/output")
    )
    checkpoint_dir: JobDirectory = setting(
        "CHECKPOINT_DIR",
        "Directory of `checkpoint_bucket`; cleared between jobs.",
        default=Path("/checkpoint"),
    )
    state_file: Path = setting(
        "KELPIE_STATE_FILE",
        "File in which a job may read what the worker is doing for it.",
        default=Path("kelpie-state.json"),
    )

    min_lease_s: Seconds = setting(
        "KELPIE_MIN_LEASE_S",
        "Shortest lease, seconds: after a silent death a job waits this long.",
        default=30.0,
    )
    blind_s: SecondsOrZero = setting(
        "KELPIE_BLIND_S",
        "How long a command computes on while Redis cannot be reached, seconds; 0 stops it with its lease.",
        default=900.0,
    )
    retry_base_s: Seconds = setting(
        "KELPIE_RETRY_BASE_S",
        "Pause after the first failure, seconds; it doubles from failure to failure.",
        default=5.0,
    )
    retry_max_s: Seconds = setting("KELPIE_RETRY_MAX_S", "Longest such pause, seconds.", default=600.0)
    ban_ttl_s: Seconds = setting(
        "KELPIE_BAN_TTL_S",
        "How long a machine that failed a job does not get it again, seconds.",
        default=86_400.0,
    )
    ban_yield_s: Seconds = setting(
        "KELPIE_BAN_YIELD_S", "A job that is pending for longer ignores such bans, seconds.", default=300.0
    )
    poison_deaths: Count = setting(
        "KELPIE_POISON_DEATHS",
        "Silent deaths in a row without progress that end a job as `poisoned`.",
        default=10,
    )
    poison_window_s: Seconds = setting(
        "KELPIE_POISON_WINDOW_S",
        "Only deaths this soon after the command's start count as such, seconds.",
        default=600.0,
    )
    job_retention_s: Seconds = setting(
        "KELPIE_JOB_RETENTION_S", "How long the record of an ended job is kept, seconds.", default=2_592_000.0
    )
    outbox_lease_s: Seconds = setting(
        "KELPIE_OUTBOX_LEASE_S",
        "How long a worker may take to tell Celery of a job's end before another one does, seconds.",
        default=10.0,
    )
    pulse_s: Seconds = setting(
        "KELPIE_PULSE_S", "How often a worker looks for cancels and does maintenance, seconds.", default=1.0
    )
    maintain_s: Seconds = setting("KELPIE_MAINTAIN_S", "How often beat does maintenance, seconds.", default=2.0)

    quiet_s: Seconds = setting(
        "KELPIE_QUIET_S", "A checkpoint is taken this long after the last write to it, seconds.", default=2.0
    )
    commit_interval_s: SecondsOrZero = setting(
        "KELPIE_COMMIT_INTERVAL_S", "At least this long between two checkpoints, seconds.", default=15.0
    )
    storage_retry_s: Seconds = setting(
        "KELPIE_STORAGE_RETRY_S",
        "How long a final upload is tried before the attempt counts as interrupted, seconds.",
        default=3600.0,
    )
    watcher_debounce_ms: Milliseconds | None = setting(
        "FILE_WATCHER_DEBOUNCE_MS",
        "Kelpie's; where it is longer than `KELPIE_QUIET_S`, it counts.",
        default=None,
    )
    watcher_stability_ms: Milliseconds | None = setting(
        "FILE_WATCHER_STABILITY_CHECK_MS",
        "Kelpie's; where it is longer than `KELPIE_QUIET_S`, it counts.",
        default=None,
    )
    watcher_max_wait_ms: Milliseconds | None = setting(
        "FILE_WATCHER_MAX_WAIT_MS",
        "Kelpie's; accepted without effect, as a checkpoint is never forced inside a burst of writes.",
        default=None,
    )

    aws_access_key_id: SecretStr | None = setting("AWS_ACCESS_KEY_ID", "Access key of the storage.", default=None)
    aws_secret_access_key: SecretStr | None = setting("AWS_SECRET_ACCESS_KEY", "Its secret.", default=None)
    aws_session_token: SecretStr | None = setting("AWS_SESSION_TOKEN", "Token of temporary credentials.", default=None)
    aws_region: str | None = setting("AWS_REGION", "Region of the storage.", "AWS_DEFAULT_REGION", default=None)
    aws_endpoint_url: EndpointUrl | None = setting(
        "AWS_ENDPOINT_URL_S3", "Address of a storage other than AWS.", "AWS_ENDPOINT_URL", default=None
    )

    ready_file: Path | None = setting(
        "KELPIE_READY_FILE", "File that a worker touches once it takes jobs, for container probes.", default=None
    )
    log_level: Level = setting("KELPIE_LOG_LEVEL", "`debug`, `info`, `warning`, `error` or `critical`.", default="info")

    @classmethod
    def settings_customise_sources(  # noqa: D102 -- pydantic-settings' hook
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 -- the hook's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # Only what is passed in counts: load_settings alone looks at the environment, and at which one.
        return (init_settings,)

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.retry_max_s < self.retry_base_s:
            raise rule("KELPIE_RETRY_MAX_S must be at least KELPIE_RETRY_BASE_S")
        directories = {(self.workdir / path).resolve() for path in self._job_directories()}
        if len(directories) < len(self._job_directories()):
            raise rule("INPUT_DIR, OUTPUT_DIR and CHECKPOINT_DIR must be three directories")
        return self

    def _job_directories(self) -> tuple[Path, Path, Path]:
        return self.input_dir, self.output_dir, self.checkpoint_dir

    def lease_s(self, heartbeat_interval: float) -> float:
        """How long a lease lasts, in seconds; ``heartbeat_interval`` is the job's, in seconds."""
        return max(2.0 * heartbeat_interval, self.min_lease_s)

    @staticmethod
    def margin_s(lease_s: float) -> float:
        """The last part of a lease, in seconds, in which its holder makes nothing visible any more."""
        return min(5.0, lease_s / 6.0)

    @property
    def settle_s(self) -> float:
        """Seconds without a write after which files count as settled: the longest that a setting asks for."""
        watcher_ms = max(self.watcher_debounce_ms or 0, self.watcher_stability_ms or 0)
        return max(self.quiet_s, watcher_ms / 1000)

    def secrets(self) -> tuple[str, ...]:
        """Every credential in these settings, for the redaction of logs."""
        return tuple(dict.fromkeys(filter(None, self._secrets())))

    def _secrets(self) -> Iterator[str]:
        password = urlsplit(self.redis_url.get_secret_value()).password or ""
        yield from (password, unquote(password), quote(unquote(password), safe=""))
        for secret in (self.aws_access_key_id, self.aws_secret_access_key, self.aws_session_token):
            yield secret.get_secret_value() if secret else ""

    @staticmethod
    def without_secrets_env(environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` as a job may see it; see `kelpie_celery.own_secrets`."""
        return without_secrets_env(environ)


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; call it once, when the process starts.

    Args:
        environ: Where to read; by default the process's environment. An empty value counts as not set.

    Raises:
        SettingsError: Names each variable that is missing, wrong or probably misspelt, and its rule. It is
            not chained to pydantic's error, which holds the values.
    """
    given = {name: text.strip() for name, text in (os.environ if environ is None else environ).items()}
    given = {name: text for name, text in given.items() if text}
    faults = _misspelt(given)
    source = EnvSettingsSource(Settings, case_sensitive=True)
    source.env_vars = given
    settings = None
    try:
        settings = Settings(**source())
    except ValidationError as error:
        faults += [_fault(detail, given) for detail in error.errors(include_url=False)]
    if faults or settings is None:
        raise SettingsError("the settings are refused: " + "; ".join(faults))
    return settings


def variables() -> dict[str, tuple[str, ...]]:
    """Each field of `Settings` with the variables that it is read from, the strongest first."""
    return {
        name: tuple(str(choice) for choice in field.validation_alias.choices)
        for name, field in Settings.model_fields.items()
        if isinstance(field.validation_alias, AliasChoices)
    }


def _misspelt(given: Mapping[str, str]) -> list[str]:
    """Faults for near misses of our own names; other unknown names may be somebody else's: a warning."""
    known = {name for names in variables().values() for name in names if name.startswith(_PREFIX)}
    bare = {name.removeprefix(_PREFIX) for name in known}
    faults = []
    for name in sorted(name for name in given if name.startswith(_PREFIX)):
        if name in known or name in _NO_SETTINGS:
            continue
        # The common prefix would make any two names look alike, so it is left out of the comparison.
        match = closest(name.removeprefix(_PREFIX), bare, cutoff=_NEAR)
        if match:
            faults.append(f"{name}: is not a setting; did you mean '{_PREFIX}{match}'?")
        else:
            logger.warning("unknown setting ignored", extra={"action": "unknown_setting", "setting": name})
    return faults


def _fault(detail: ErrorDetails, given: Mapping[str, str]) -> str:
    """One fault: the variable that was set, the value (masked where it may be secret), the rule."""
    _, value, text = problem({**detail, "loc": ("setting",)}, lambda _: ())
    if not detail["loc"]:
        return text
    where = str(detail["loc"][0])
    field, names = next((f, names) for f, names in variables().items() if where == f or where in names)
    name = next((candidate for candidate in names if candidate in given), names[0])
    if detail["type"] == "missing":
        return f"{name}: is not set; give redis://host:port/db, or source the env file that `kelpie up` writes"
    if "SecretStr" in str(Settings.model_fields[field].annotation) or name.endswith("_URL"):
        value = mask_url(given.get(name, ""))
    return f"{name}: {text} (got {value})"
