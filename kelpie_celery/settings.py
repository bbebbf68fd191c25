"""All settings, in one frozen object that is read once, at process start, from the environment.

Every setting has the name of an environment variable, a unit and a default; ``docs/settings.md`` lists them.
A wrong value is an error that names it and the rule; a misspelt ``KELPIE_...`` name is warned of, with the one that
was probably meant.

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
from kelpie_celery._fields import Bucket, Prefix, mask_url, rule
from kelpie_celery._misspelt import Unknown, unknown_names
from kelpie_celery._setting_types import (
    ApiKey,
    Bytes,
    CancelSignal,
    Count,
    EndpointUrl,
    Flag,
    GroupId,
    IpAddress,
    JobDirectory,
    Level,
    LogLevel,
    MachineId,
    Milliseconds,
    Port,
    RedisUrl,
    SaladName,
    Seconds,
    SecondsOrZero,
    Slots,
    WebhookSecret,
    setting,
)
from kelpie_celery._transport import in_the_clear, unverified
from kelpie_celery.errors import SettingsError
from kelpie_celery.own_secrets import without_secrets_env

logger = logging.getLogger(__name__)

__all__ = ["LogLevel", "Settings", "load_settings", "tell_unknown_settings", "variables", "without_secrets_env"]


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

    redis_timeout_s: Seconds = setting(
        "KELPIE_REDIS_TIMEOUT_S",
        "A call of Redis that gets no answer for so long has failed, seconds; Celery's own calls are given twice that.",
        default=5.0,
    )
    container_group_id: GroupId | None = setting(
        "SALAD_CONTAINER_GROUP_ID", "Container group of this worker: the queue it serves.", kelpies=True, default=None
    )
    machine_id: MachineId = setting(
        "SALAD_MACHINE_ID",
        "Node of this worker; default: the host's name.",
        kelpies=True,
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
        "INPUT_DIR", "Directory of `input_bucket`; cleared between jobs.", kelpies=True, default=Path("/input")
    )
    output_dir: JobDirectory = setting(
        "OUTPUT_DIR", "Directory of `output_bucket`; cleared between jobs.", kelpies=True, default=Path("/output")
    )
    checkpoint_dir: JobDirectory = setting(
        "CHECKPOINT_DIR",
        "Directory of `checkpoint_bucket`; cleared between jobs.",
        kelpies=True,
        default=Path("/checkpoint"),
    )
    state_file: Path = setting(
        "KELPIE_STATE_FILE",
        "File in which a job may read what the worker is doing for it.",
        kelpies=True,
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
    deaf_s: Seconds = setting(
        "KELPIE_DEAF_S",
        "A worker that hears nothing for so long although Redis answers connects anew; then it finishes its jobs and"
        " ends for its container to be restarted, seconds.",
        default=60.0,
    )
    health_file: Path | None = setting(
        "KELPIE_HEALTH_FILE",
        "File in which a worker says how it is, for `kelpie-worker health`; default: one in the temporary directory,"
        " named after group, machine and instance.",
        default=None,
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

    salad_api_key: ApiKey | None = setting(
        "SALAD_API_KEY",
        "Key of SaladCloud's API, for the control worker; without it nothing is scaled.",
        kelpies=True,
        default=None,
    )
    salad_api_url: EndpointUrl = setting(
        "KELPIE_SALAD_API_URL", "Address of SaladCloud's API.", default="https://api.salad.com/api/public"
    )
    organization: SaladName | None = setting(
        "SALAD_ORGANIZATION_NAME",
        "Organization of the container groups that are scaled; a rule may name another.",
        "SALAD_ORGANIZATION",
        kelpies=True,
        default=None,
    )
    project: SaladName | None = setting(
        "SALAD_PROJECT_NAME",
        "Project of those groups; a rule may name another.",
        "SALAD_PROJECT",
        kelpies=True,
        default=None,
    )
    scale_interval_s: Seconds = setting(
        "KELPIE_SCALE_INTERVAL_S", "How often the scaler looks at each container group, seconds.", default=60.0
    )
    node_silent_s: Seconds = setting(
        "KELPIE_NODE_SILENT_S",
        "An instance that runs for so long without a word from its worker is moved to another node, seconds.",
        default=900.0,
    )
    max_job_failures: Count = setting(
        "MAX_JOB_FAILURES",
        "A machine that failed so many jobs in a row that succeeded elsewhere is left for another node.",
        kelpies=True,
        default=3,
    )
    max_retries: Count = setting(
        "MAX_RETRIES",
        "How often a call of the node's metadata service is tried before nobody waits for it; Redis and the storage are"
        " asked for as long as the lease and `KELPIE_STORAGE_RETRY_S` allow.",
        kelpies=True,
        default=3,
    )
    max_time_with_no_work_s: SecondsOrZero = setting(
        "MAX_TIME_WITH_NO_WORK_S",
        "A worker without a job for so long leaves its node for another one, seconds; 0 for never.",
        kelpies=True,
        default=0.0,
    )
    recreate_between_jobs: Flag = setting(
        "KELPIE_RECREATE_BETWEEN_JOBS",
        "Whether the container begins anew after each job, `true` or `false`; it waits until no slot works.",
        kelpies=True,
        default=False,
    )
    cancel_signal: CancelSignal = setting(
        "KELPIE_CANCEL_SIGNAL",
        "What a canceled command gets first, `TERM` or `INT`; with `INT`, as in Kelpie, SIGTERM follows after half of"
        " the job's `grace_period`.",
        default="TERM",
    )
    metadata_uri: EndpointUrl = setting(
        "SALAD_METADATA_URI",
        "Address of the metadata service of SaladCloud's nodes; where there is none nothing is missed.",
        default="http://169.254.169.254",
    )

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
    stream_after_s: SecondsOrZero = setting(
        "KELPIE_STREAM_AFTER_S",
        "How long a file that is open and only grows, such as a log, may hold up a checkpoint before it is stored as"
        " far as it goes, seconds.",
        default=300.0,
    )
    plain_interval_s: SecondsOrZero = setting(
        "KELPIE_PLAIN_INTERVAL_S",
        "At least this long between two times that plain keys follow the checkpoints, seconds.",
        default=600.0,
    )
    gc_grace_s: Seconds = setting(
        "KELPIE_GC_GRACE_S",
        "How long the objects of a checkpoint stay on the storage after it is not kept any more, seconds.",
        default=3600.0,
    )
    cache_bytes: Bytes = setting(
        "KELPIE_CACHE_BYTES",
        "How much a worker's machine keeps of its jobs' inputs, bytes, also as `512M` or `50G`; 0 for no cache.",
        default=0,
    )
    cache_dir: Path | None = setting(
        "KELPIE_CACHE_DIR",
        "Where; default: `/var/cache/kelpie` where that can be written to, else `kelpie-cache` in the temporary"
        " directory.",
        default=None,
    )
    log_bucket: Bucket | None = setting(
        "KELPIE_LOG_BUCKET",
        "Bucket for the logs of jobs that name none (`log_bucket`); without it their logs are not stored.",
        default=None,
    )
    log_prefix: Prefix | None = setting("KELPIE_LOG_PREFIX", "Folder in it; default: `logs/`.", default=None)
    log_bytes: Bytes = setting(
        "KELPIE_LOG_BYTES",
        "How much of what a command writes is kept for its log, bytes, also as `64M`: its first half and its last; on"
        " the node's disk twice that for a moment. 0 stores no logs.",
        default=64 << 20,
    )
    watcher_debounce_ms: Milliseconds | None = setting(
        "FILE_WATCHER_DEBOUNCE_MS",
        "Kelpie's; where it is longer than `KELPIE_QUIET_S`, it counts.",
        kelpies=True,
        default=None,
    )
    watcher_stability_ms: Milliseconds | None = setting(
        "FILE_WATCHER_STABILITY_CHECK_MS",
        "Kelpie's; where it is longer than `KELPIE_QUIET_S`, it counts.",
        kelpies=True,
        default=None,
    )
    watcher_max_wait_ms: Milliseconds | None = setting(
        "FILE_WATCHER_MAX_WAIT_MS",
        "Kelpie's; accepted without effect, as a checkpoint is never forced inside a burst of writes.",
        kelpies=True,
        default=None,
    )

    aws_access_key_id: SecretStr | None = setting(
        "AWS_ACCESS_KEY_ID", "Access key of the storage.", kelpies=True, default=None
    )
    aws_secret_access_key: SecretStr | None = setting(
        "AWS_SECRET_ACCESS_KEY", "Its secret.", kelpies=True, default=None
    )
    aws_session_token: SecretStr | None = setting("AWS_SESSION_TOKEN", "Token of temporary credentials.", default=None)
    aws_region: str | None = setting(
        "AWS_REGION", "Region of the storage.", "AWS_DEFAULT_REGION", kelpies=True, default=None
    )
    aws_endpoint_url: EndpointUrl | None = setting(
        "AWS_ENDPOINT_URL_S3", "Address of a storage other than AWS.", "AWS_ENDPOINT_URL", kelpies=True, default=None
    )

    webhook_secret: WebhookSecret | None = setting(
        "KELPIE_WEBHOOK_SECRET",
        "Signs webhooks as Standard Webhooks has it: 24 to 128 bytes in base64, with or without `whsec_` in front.",
        default=None,
    )
    webhook_allow_private: bool = setting(
        "KELPIE_WEBHOOK_ALLOW_PRIVATE",
        "`1` lets webhooks go to private, loopback and link-local addresses too.",
        default=False,
    )
    webhook_timeout_s: Seconds = setting(
        "KELPIE_WEBHOOK_TIMEOUT_S", "How long one try of a webhook may take in all, seconds.", default=15.0
    )
    webhook_tries: Count = setting(
        "KELPIE_WEBHOOK_TRIES", "After so many tries a webhook is put on the list of dead ones.", default=16
    )
    webhook_retry_base_s: Seconds = setting(
        "KELPIE_WEBHOOK_RETRY_BASE_S",
        "Pause after a webhook's first try, seconds; it doubles from try to try, and half of it is up to chance.",
        default=5.0,
    )
    webhook_retry_max_s: Seconds = setting("KELPIE_WEBHOOK_RETRY_MAX_S", "Longest such pause, seconds.", default=3600.0)

    rules_file: Path | None = setting(
        "KELPIE_RULES_FILE",
        "TOML file of scaling rules that the control worker keeps in Redis when it starts.",
        default=None,
    )

    allow_insecure: bool = setting(
        "KELPIE_ALLOW_INSECURE",
        "`1` allows `redis://` and an `http://` storage on other machines: only for a network that you trust.",
        default=False,
    )
    ready_file: Path | None = setting(
        "KELPIE_READY_FILE",
        "File that a worker touches once it takes jobs, and control worker and beat with each of their rounds, for"
        " container probes.",
        default=None,
    )
    metrics_port: Port | None = setting(
        "KELPIE_METRICS_PORT",
        "Port on which a worker or control worker serves [metrics](metrics.md) for Prometheus; else none.",
        default=None,
    )
    metrics_address: IpAddress = setting(
        "KELPIE_METRICS_ADDRESS",
        "IP address for that; `0.0.0.0` or `::` for all of the machine's. Whoever reaches it needs no password.",
        default="127.0.0.1",
    )
    log_level: Level = setting("KELPIE_LOG_LEVEL", "How much is logged.", kelpies=True, default="info")

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
        if self.webhook_retry_max_s < self.webhook_retry_base_s:
            raise rule("KELPIE_WEBHOOK_RETRY_MAX_S must be at least KELPIE_WEBHOOK_RETRY_BASE_S")
        if self.log_prefix is not None and self.log_bucket is None:
            raise rule("KELPIE_LOG_PREFIX needs KELPIE_LOG_BUCKET, the bucket that it is a folder of")
        self._check_transport()
        directories = {(self.workdir / path).resolve() for path in self._job_directories()}
        if len(directories) < len(self._job_directories()):
            raise rule("INPUT_DIR, OUTPUT_DIR and CHECKPOINT_DIR must be three directories")
        if self.cache_dir is not None:
            cache = (self.workdir / self.cache_dir).resolve()
            if any(cache.is_relative_to(path) or path.is_relative_to(cache) for path in directories):
                raise rule("KELPIE_CACHE_DIR must not overlap with INPUT_DIR, OUTPUT_DIR or CHECKPOINT_DIR")
        return self

    def _check_transport(self) -> None:
        url, endpoint = self.redis_url.get_secret_value(), self.aws_endpoint_url
        if (option := unverified(url)) is not None:
            raise rule(f"KELPIE_REDIS_URL: {option} must not turn the check of the certificate off; leave it out, and "
                       "name the certificate of your own authority by ?ssl_ca_certs=/path/to/ca.pem")  # fmt: skip
        if self.allow_insecure:
            return
        trusted = "or, in a network that you trust, set KELPIE_ALLOW_INSECURE=1"
        if in_the_clear(url):
            raise rule(f"KELPIE_REDIS_URL: {mask_url(url)} would carry passwords and jobs to another machine "
                       f"unencrypted; use rediss:// (TLS), {trusted}")  # fmt: skip
        if endpoint and in_the_clear(endpoint):
            raise rule(f"AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: {mask_url(endpoint)} would carry data to another "
                       f"machine unencrypted; use https://, {trusted}")  # fmt: skip

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
        aws = (self.aws_access_key_id, self.aws_secret_access_key, self.aws_session_token)
        for secret in (*aws, self.salad_api_key):
            yield secret.get_secret_value() if secret else ""
        if self.webhook_secret:
            yield from (
                self.webhook_secret.get_secret_value(),
                self.webhook_secret.get_secret_value().removeprefix("whsec_"),
            )

    @staticmethod
    def without_secrets_env(environ: Mapping[str, str]) -> dict[str, str]:
        """``environ`` as a job may see it; see `kelpie_celery.own_secrets`."""
        return without_secrets_env(environ)


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; call it once, when the process starts.

    Args:
        environ: Where to read; by default the process's environment. An empty value counts as not set.

    Raises:
        SettingsError: Names each variable that is missing or wrong, and its rule, and beside them those that are
            probably misspelt. It is not chained to pydantic's error, which holds the values.
    """
    given = _given(environ)
    faults: list[str] = []
    source = EnvSettingsSource(Settings, case_sensitive=True)
    source.env_vars = given
    settings = None
    try:
        settings = Settings(**source())
    except ValidationError as error:
        faults += [_fault(detail, given) for detail in error.errors(include_url=False)]
    if faults or settings is None:
        # What is missing may be there, misspelt.
        faults += [f"{one.name}: is not a setting{one.hint}" for one in _unknown(given) if one.meant]
        raise SettingsError("the settings are refused: " + "; ".join(faults))
    return settings


def tell_unknown_settings(environ: Mapping[str, str] | None = None, *, told: set[str] | None = None) -> None:
    """Log which ``KELPIE_...`` variables are no settings: whoever starts a process calls it, once logging is set up.

    A near miss is a warning. Any other may be somebody else's, and is told on the level of information.

    Args:
        environ: Where to look; by default the process's environment.
        told: Names that were told before, and are not again; those that are told now are added.
    """
    told = set() if told is None else told
    for one in _unknown(_given(environ)):
        if one.name in told:
            continue
        told.add(one.name)
        # With the name in it, for once: where nobody set logging up, Python shows the message alone.
        logger.log(
            logging.WARNING if one.meant else logging.INFO, "%s is not a setting, and is ignored%s", one.name, one.hint,
            extra={"action": "unknown_setting", "setting": one.name, "did_you_mean": one.meant},
        )  # fmt: skip


def _given(environ: Mapping[str, str] | None) -> dict[str, str]:
    """The variables that are set, without white space around their values."""
    stripped = {name: text.strip() for name, text in (os.environ if environ is None else environ).items()}
    return {name: text for name, text in stripped.items() if text}


def _unknown(given: Mapping[str, str]) -> list[Unknown]:
    return unknown_names(given, (name for names in variables().values() for name in names))


def variables() -> dict[str, tuple[str, ...]]:
    """Each field of `Settings` with the variables that it is read from, the strongest first."""
    return {
        name: tuple(str(choice) for choice in field.validation_alias.choices)
        for name, field in Settings.model_fields.items()
        if isinstance(field.validation_alias, AliasChoices)
    }


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
