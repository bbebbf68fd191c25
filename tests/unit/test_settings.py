"""Settings: what is read, what is refused, and what of it is kept from logs and jobs."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.client import Kelpie
from kelpie_celery.errors import SettingsError
from kelpie_celery.own_secrets import without_secrets_env
from kelpie_celery.settings import Settings, load_settings, tell_unknown_settings, variables

URL = "rediss://:hunter2-canary@redis.example:6380/1"
ENV = {"KELPIE_REDIS_URL": URL}


def refusal(**more: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(ENV | more)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None  # pydantic's error, which holds the values, is not chained
    return str(caught.value)


def test_defaults_are_the_documented_ones() -> None:
    settings = load_settings(ENV)

    assert settings.redis_url.get_secret_value() == URL
    assert (settings.machine_id, settings.workdir) == (socket.gethostname(), Path.cwd())
    assert (settings.input_dir, settings.output_dir, settings.checkpoint_dir) == (
        Path("/input"),
        Path("/output"),
        Path("/checkpoint"),
    )
    assert (settings.min_lease_s, settings.blind_s, settings.pulse_s, settings.maintain_s) == (30, 900, 1, 2)
    assert (settings.slots, settings.container_group_id, settings.log_level) == (None, None, "info")
    assert (settings.cache_bytes, settings.cache_dir) == (0, None)
    assert (settings.gc_grace_s, settings.plain_interval_s, settings.stream_after_s) == (3600, 600, 300)
    assert (settings.scale_interval_s, settings.node_silent_s, settings.max_job_failures) == (60, 900, 3)
    assert (settings.salad_api_key, settings.organization, settings.project) == (None, None, None)
    assert settings.salad_api_url == "https://api.salad.com/api/public"
    assert settings.metadata_uri == "http://169.254.169.254"


def test_every_setting_has_a_variable_and_a_meaning() -> None:
    assert set(variables()) == set(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())
    assert all(name.isupper() for names in variables().values() for name in names)


def test_values_are_read_from_their_variables() -> None:
    settings = load_settings(
        ENV
        | {
            "SALAD_CONTAINER_GROUP_ID": "group-1",
            "SALAD_MACHINE_ID": "m-1",
            "KELPIE_SLOTS": "2",
            "KELPIE_BLIND_S": "0",
            "KELPIE_QUIET_S": "0.5",
            "OUTPUT_DIR": "out",
            "KELPIE_LOG_LEVEL": "WARN",
            "AWS_SECRET_ACCESS_KEY": "s3-canary",
        }
    )

    assert (settings.container_group_id, settings.machine_id, settings.slots) == ("group-1", "m-1", 2)
    assert (settings.blind_s, settings.quiet_s, settings.output_dir) == (0.0, 0.5, Path("out"))
    assert settings.log_level == "warning"
    assert settings.aws_secret_access_key is not None
    assert settings.aws_secret_access_key.get_secret_value() == "s3-canary"


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1000", 1000), ("1K", 1024), ("512M", 512 << 20), ("50G", 50 << 30), ("2T", 2 << 40), ("3g", 3 << 30)],
)
def test_sizes_are_bytes_or_have_a_binary_unit(text: str, size: int) -> None:
    assert load_settings(ENV | {"KELPIE_CACHE_BYTES": text}).cache_bytes == size


def test_checkpoint_and_cache_settings_are_read_from_their_variables() -> None:
    settings = load_settings(
        ENV
        | {
            "KELPIE_CACHE_DIR": "/cache",
            "KELPIE_GC_GRACE_S": "0.5",
            "KELPIE_PLAIN_INTERVAL_S": "0",
            "KELPIE_STREAM_AFTER_S": "0",
        }
    )

    assert settings.cache_dir == Path("/cache")
    assert (settings.gc_grace_s, settings.plain_interval_s, settings.stream_after_s) == (0.5, 0, 0)


def test_the_more_special_of_two_variables_counts() -> None:
    both = {
        "AWS_REGION": "a",
        "AWS_DEFAULT_REGION": "b",
        "AWS_ENDPOINT_URL": "https://all",
        "AWS_ENDPOINT_URL_S3": "https://s3",
    }

    settings = load_settings(ENV | both)

    assert (settings.aws_region, settings.aws_endpoint_url) == ("a", "https://s3")
    assert load_settings(ENV | {"AWS_DEFAULT_REGION": "b"}).aws_region == "b"


def test_empty_counts_as_not_set_and_line_ends_are_dropped() -> None:
    settings = load_settings({"KELPIE_REDIS_URL": f" {URL}\n", "KELPIE_SLOTS": "", "KELPIE_BLIND_S": "  "})

    assert settings.redis_url.get_secret_value() == URL
    assert (settings.slots, settings.blind_s) == (None, 900)


def test_the_process_environment_is_read_by_default_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KELPIE_REDIS_URL", "unix:///run/redis.sock")
    monkeypatch.setenv("KELPIE_SLOTS", "7")

    assert load_settings().slots == 7
    assert load_settings(ENV).slots is None
    assert Settings.model_validate({"KELPIE_REDIS_URL": URL}).slots is None


def test_importing_reads_nothing_from_the_environment() -> None:
    code = (
        "import os\n"
        "before = dict(os.environ)\n"
        "class Watched(dict):\n"
        "    def __getitem__(self, name): assert not name.startswith(('KELPIE', 'SALAD', 'AWS')); return before[name]\n"
        "    def get(self, name, default=None): return self[name] if name in before else default\n"
        "os.environ = Watched(before)\n"
        "import kelpie_celery.settings\n"
    )
    env = os.environ | {"KELPIE_SLOTS": "wrong", "KELPIE_REDIS_URL": "wrong"}

    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=30)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings(ENV).slots = 3  # type: ignore[misc]  # what is tested


# -- what is refused ----------------------------------------------------------------------------------------


def test_a_missing_redis_is_told_with_what_to_do() -> None:
    assert "KELPIE_REDIS_URL: is not set; give redis://host:port/db" in refusal(KELPIE_REDIS_URL="")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://user:hunter2@host", "must begin with redis://, rediss:// or unix:// (got amqp://***@host)"),
        ("redis://:hunter2@", "must name a host"),
        ("redis://user:hunter2@host:99999/0", "its port is no number up to 65535"),
        ("redis://user:hunter2@host:port/0", "its port is no number up to 65535"),
        ("redis://user:hunter2@host/hunter2", "must end in the number of a database"),
        ("redis://[hunter2", "is not a URL"),
        ("unix://", "must name a socket"),
        ("hunter2", "(got ***)"),
    ],
)
def test_a_wrong_redis_url_is_refused_without_showing_its_password(url: str, words: str) -> None:
    assert words in refusal(KELPIE_REDIS_URL=url)


@pytest.mark.parametrize(
    "url", ["redis://localhost", "rediss://u:p@h:1/0", "unix:///run/r.sock?db=1", "redis://[::1]:6379/0"]
)
def test_the_usual_redis_urls_are_taken(url: str) -> None:
    assert load_settings({"KELPIE_REDIS_URL": url}).redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("KELPIE_SLOTS", "0", "must be at least 1 (got '0')"),
        ("KELPIE_SLOTS", "two", "must be a whole number (got 'two')"),
        ("KELPIE_QUIET_S", "0", "must be more than 0"),
        ("KELPIE_QUIET_S", "nan", "must be a finite number"),
        ("KELPIE_RETRY_BASE_S", "-1", "must be more than 0"),
        ("KELPIE_RETRY_MAX_S", "1", "KELPIE_RETRY_MAX_S must be at least KELPIE_RETRY_BASE_S"),
        ("KELPIE_LOG_LEVEL", "loud", "must be 'debug', 'info'"),
        ("SALAD_CONTAINER_GROUP_ID", "a b", "must be 1 to 128 letters, digits, '.', '_' or '-'"),
        ("SALAD_MACHINE_ID", "a/b", "must be 1 to 128 letters"),
        ("INPUT_DIR", "/", "must not be the root or the working directory"),
        ("OUTPUT_DIR", ".", "must not be the root or the working directory"),
        ("INPUT_DIR", "/output/../output", "must be three directories"),
        ("AWS_ENDPOINT_URL", "s3.example", "must be a URL that begins with http:// or https://"),
        ("FILE_WATCHER_DEBOUNCE_MS", "1.5", "must be a whole number"),
        ("KELPIE_CACHE_BYTES", "-1", "must be a whole number of bytes, or one with K, M, G or T behind it"),
        ("KELPIE_CACHE_BYTES", "1.5G", "must be a whole number of bytes, or one with K, M, G or T behind it"),
        ("KELPIE_CACHE_BYTES", "10GB", "must be a whole number of bytes, or one with K, M, G or T behind it"),
        ("KELPIE_CACHE_BYTES", "G", "must be a whole number of bytes, or one with K, M, G or T behind it"),
        ("KELPIE_CACHE_BYTES", "2000000T", "must be at most 1152921504606846976"),
        ("KELPIE_CACHE_DIR", "/input/cache", "must not overlap with INPUT_DIR, OUTPUT_DIR or CHECKPOINT_DIR"),
        ("KELPIE_CACHE_DIR", "/output", "must not overlap with INPUT_DIR, OUTPUT_DIR or CHECKPOINT_DIR"),
        ("KELPIE_CACHE_DIR", "/", "must not overlap with INPUT_DIR, OUTPUT_DIR or CHECKPOINT_DIR"),
        ("KELPIE_GC_GRACE_S", "0", "must be more than 0"),
        ("KELPIE_PLAIN_INTERVAL_S", "-1", "must be at least 0"),
        ("KELPIE_STREAM_AFTER_S", "-1", "must be at least 0"),
    ],
)
def test_a_wrong_value_is_refused_naming_its_variable_and_its_rule(name: str, value: str, words: str) -> None:
    message = refusal(**{name: value})

    assert words in message
    assert name in message or "directories" in message


def test_all_faults_are_named_at_once() -> None:
    message = refusal(KELPIE_SLOTS="0", KELPIE_QUIET_S="x", KELPIE_LOGLEVEL="info")

    assert all(name in message for name in ("KELPIE_SLOTS", "KELPIE_QUIET_S", "KELPIE_LOGLEVEL"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("KELPIE_SLOT", "KELPIE_SLOTS"),
        ("KELPIE_MIN_LEASE", "KELPIE_MIN_LEASE_S"),
        ("KELPIE_REDIS_URI", "KELPIE_REDIS_URL"),
        ("KELPIE_MAX_RETRIES", "MAX_RETRIES"),
        ("KELPIE_SALAD_API_KEY", "SALAD_API_KEY"),
    ],
)
def test_a_near_miss_is_warned_of_with_the_name_that_was_meant(
    caplog: pytest.LogCaptureFixture, name: str, meant: str
) -> None:
    environ = ENV | {name: "hunter2"}

    assert load_settings(environ).slots is None
    assert not caplog.records  # whoever starts a process says when it is told
    tell_unknown_settings(environ)

    (record,) = caplog.records
    assert record.getMessage() == f"{name} is not a setting, and is ignored; did you mean '{meant}'?"
    assert (record.levelname, vars(record)["action"]) == ("WARNING", "unknown_setting")
    assert (vars(record)["setting"], vars(record)["did_you_mean"]) == (name, meant)
    assert "hunter2" not in str(vars(record))


def test_a_misspelt_name_is_told_beside_what_is_missing() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"KELPIE_REDIS_URLL": URL})

    assert "KELPIE_REDIS_URL: is not set" in str(caught.value)
    assert "KELPIE_REDIS_URLL: is not a setting; did you mean 'KELPIE_REDIS_URL'?" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_other_unknown_names_are_told_quietly_and_without_their_value(caplog: pytest.LogCaptureFixture) -> None:
    # The last is what Kubernetes sets for a service named kelpie-redis.
    with caplog.at_level(logging.INFO):
        tell_unknown_settings(ENV | {"KELPIE_API_KEY": "hunter2", "KELPIE_REDIS_PORT": "tcp://hunter2"})

    assert [vars(record)["setting"] for record in caplog.records] == ["KELPIE_API_KEY", "KELPIE_REDIS_PORT"]
    assert {record.levelname for record in caplog.records} == {"INFO"}
    assert all(vars(record)["action"] == "unknown_setting" for record in caplog.records)
    assert not any("hunter2" in str(vars(record)) for record in caplog.records)


def test_what_a_job_is_given_and_what_the_local_stack_reads_is_nothing_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = {"KELPIE_JOB_ID": "1", "KELPIE_ATTEMPT": "1", "KELPIE_REPORT": "/r", "KELPIE_PARENTS": "/p"}
    with caplog.at_level(logging.INFO):
        tell_unknown_settings(ENV | ours | {"KELPIE_STATE_FILE": "s", "KELPIE_REDIS_SERVER": "/r", "KELPIE_WEED": "/w"})

    assert not caplog.records


def test_the_settings_that_are_marked_as_kelpies_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    table = page.partition("## Kelpie's variables")[2].partition("\n\nKelpie sends")[0]
    theirs = set(
        re.findall(r"`([A-Z0-9_]{5,})`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    marked = {field for field, info in Settings.model_fields.items() if (info.json_schema_extra or {})["kelpies"]}  # type: ignore[index]  # a mapping, see `setting`

    assert marked == {field for field, names in variables().items() if theirs & set(names)}
    assert theirs - {name for names in variables().values() for name in names} == {"KELPIE_API_URL", "KELPIE_API_KEY"}


# -- what follows from them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "lease_s"), [(1, 30), (15, 30), (16, 32), (3600, 7200)])
def test_a_lease_lasts_two_heartbeats_and_at_least_its_minimum(interval: int, lease_s: float) -> None:
    assert load_settings(ENV).lease_s(interval) == lease_s


@pytest.mark.parametrize(("lease_s", "margin_s"), [(6, 1), (30, 5), (600, 5)])
def test_the_margin_is_a_sixth_of_the_lease_and_at_most_5_seconds(lease_s: float, margin_s: float) -> None:
    assert Settings.margin_s(lease_s) == margin_s


def test_kelpies_watcher_settings_can_only_lengthen_the_quiet_time() -> None:
    watcher = {"FILE_WATCHER_DEBOUNCE_MS": "5000", "FILE_WATCHER_STABILITY_CHECK_MS": "50"}

    assert load_settings(ENV).settle_s == 2
    assert load_settings(ENV | watcher).settle_s == 5
    assert load_settings(ENV | {"FILE_WATCHER_DEBOUNCE_MS": "100"}).settle_s == 2


# -- secrets ------------------------------------------------------------------------------------------------


def test_repr_shows_no_secret() -> None:
    env: dict[str, Any] = {
        "AWS_ACCESS_KEY_ID": "canary-1",
        "AWS_SECRET_ACCESS_KEY": "canary-2",
        "AWS_SESSION_TOKEN": "canary-3",
    }
    settings = load_settings(ENV | env)

    assert "canary" not in repr(settings) + str(settings)
    assert set(settings.secrets()) == {"hunter2-canary", "canary-1", "canary-2", "canary-3"}


def test_a_password_is_known_as_it_is_and_as_the_url_spells_it() -> None:
    assert set(load_settings({"KELPIE_REDIS_URL": "rediss://:p%40ss@h"}).secrets()) == {"p%40ss", "p@ss"}


def test_a_job_sees_the_environment_without_our_own_secrets() -> None:
    environ = ENV | {
        "PATH": "/bin",
        "AWS_SECRET_ACCESS_KEY": "kept, jobs may rely on it",
        "KELPIE_STATE_FILE": "kept",
        "API_TOKEN": "kept, it is the user's",
        "CELERY_BROKER_URL": URL,
        "CELERY_RESULT_BACKEND": URL,
        "ANOTHER_NAME_FOR_THE_SAME": URL,
        "KELPIE_API_KEY": "gone",
        "KELPIE_WEBHOOK_SECRET": "gone",
        "SALAD_API_KEY": "gone",
    }

    kept = {"PATH", "AWS_SECRET_ACCESS_KEY", "KELPIE_STATE_FILE", "API_TOKEN"}
    assert set(without_secrets_env(environ)) == kept
    assert set(load_settings(ENV).without_secrets_env(environ)) == kept


def test_the_key_of_saladcloud_is_secret_wherever_it_is_shown() -> None:
    settings = load_settings(ENV | {"SALAD_API_KEY": "salad-canary"})
    assert settings.salad_api_key is not None
    assert settings.salad_api_key.get_secret_value() == "salad-canary"
    assert "salad-canary" not in repr(settings)
    assert "salad-canary" in settings.secrets()


@pytest.mark.parametrize("key", ["hunter2 two words", "hunter2\r\nX-Header: 1", "hunter2-\u00e9"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_and_not_shown(key: str) -> None:
    assert "SALAD_API_KEY: must be printable ASCII without spaces (got ***)" in refusal(SALAD_API_KEY=key)


def test_organization_and_project_are_read_under_old_and_new_names() -> None:
    old = load_settings(ENV | {"SALAD_ORGANIZATION": "old-org", "SALAD_PROJECT": "old-project"})
    assert (old.organization, old.project) == ("old-org", "old-project")
    both = load_settings(ENV | {"SALAD_ORGANIZATION": "old-org", "SALAD_ORGANIZATION_NAME": "new-org"})
    assert both.organization == "new-org"
    assert "SALAD_PROJECT_NAME" in refusal(SALAD_PROJECT_NAME="Not A Name")


def test_the_environment_of_a_container_that_runs_kelpie_is_taken_as_it_is() -> None:
    """Every variable of Kelpie's readme; where one has no meaning here, it is no error."""
    settings = load_settings(
        ENV
        | {
            "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "r", "AWS_DEFAULT_REGION": "r",
            "AWS_ENDPOINT_URL": "https://s3", "CHECKPOINT_DIR": "/ck", "FILE_WATCHER_DEBOUNCE_MS": "0",
            "FILE_WATCHER_MAX_WAIT_MS": "5000", "FILE_WATCHER_STABILITY_CHECK_MS": "50", "INPUT_DIR": "/in",
            "KELPIE_API_KEY": "k", "KELPIE_API_URL": "http://kelpie", "KELPIE_LOG_LEVEL": "info",
            "KELPIE_RECREATE_BETWEEN_JOBS": "true", "KELPIE_STATE_FILE": "./kelpie-state.json",
            "MAX_JOB_FAILURES": "5", "MAX_RETRIES": "4", "MAX_TIME_WITH_NO_WORK_S": "0", "OUTPUT_DIR": "/out",
            "SALAD_API_KEY": "k", "SALAD_CONTAINER_GROUP_ID": "g", "SALAD_MACHINE_ID": "m",
            "SALAD_ORGANIZATION": "org", "SALAD_PROJECT": "project",
        }
    )  # fmt: skip

    assert (settings.recreate_between_jobs, settings.max_retries, settings.max_job_failures) == (True, 4, 5)
    assert (settings.max_time_with_no_work_s, settings.cancel_signal) == (0, "TERM")
    assert (settings.input_dir, settings.checkpoint_dir, settings.output_dir) == (
        Path("/in"),
        Path("/ck"),
        Path("/out"),
    )


@pytest.mark.parametrize(("text", "signal"), [("INT", "INT"), ("SIGINT", "INT"), ("term", "TERM")])
def test_the_first_signal_of_a_cancel_is_one_of_two(text: str, signal: str) -> None:
    assert load_settings(ENV | {"KELPIE_CANCEL_SIGNAL": text}).cancel_signal == signal
    with pytest.raises(SettingsError, match=r"KELPIE_CANCEL_SIGNAL.*KILL"):
        load_settings(ENV | {"KELPIE_CANCEL_SIGNAL": "KILL"})


def test_a_program_with_many_clients_is_told_once_what_is_misspelt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kelpie_celery.client._told", set())
    monkeypatch.setenv("KELPIE_SLOT", "hunter2")
    for _ in range(3):
        Kelpie("redis://127.0.0.1:1/0").close()
    assert [record.getMessage() for record in caplog.records if "KELPIE_SLOT" in record.getMessage()] == [
        "KELPIE_SLOT is not a setting, and is ignored; did you mean 'KELPIE_SLOTS'?"
    ]
