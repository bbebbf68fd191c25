"""Settings: what is read, what is refused, and what of it is kept from logs and jobs."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kelpie_celery.errors import SettingsError
from kelpie_celery.own_secrets import without_secrets_env
from kelpie_celery.settings import Settings, load_settings, variables

URL = "redis://:hunter2-canary@redis.example:6380/1"
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


def test_the_more_special_of_two_variables_counts() -> None:
    both = {
        "AWS_REGION": "a",
        "AWS_DEFAULT_REGION": "b",
        "AWS_ENDPOINT_URL": "http://all",
        "AWS_ENDPOINT_URL_S3": "http://s3",
    }

    settings = load_settings(ENV | both)

    assert (settings.aws_region, settings.aws_endpoint_url) == ("a", "http://s3")
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


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/0", "unix:///run/r.sock?db=1", "redis://[::1]:6379/0"])
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
    ],
)
def test_a_near_miss_is_refused_with_the_name_that_was_meant(name: str, meant: str) -> None:
    assert f"{name}: is not a setting; did you mean '{meant}'?" in refusal(**{name: "1"})


def test_other_unknown_names_are_warned_of_without_their_value(caplog: pytest.LogCaptureFixture) -> None:
    # The last is what Kubernetes sets for a service named kelpie-redis.
    with caplog.at_level(logging.WARNING):
        load_settings(ENV | {"KELPIE_API_KEY": "hunter2", "KELPIE_REDIS_PORT": "tcp://hunter2"})

    assert [vars(record)["setting"] for record in caplog.records] == ["KELPIE_API_KEY", "KELPIE_REDIS_PORT"]
    assert all(vars(record)["action"] == "unknown_setting" for record in caplog.records)
    assert not any("hunter2" in str(vars(record)) for record in caplog.records)


def test_what_a_job_is_given_may_be_there_when_a_job_submits_jobs(caplog: pytest.LogCaptureFixture) -> None:
    load_settings(ENV | {"KELPIE_JOB_ID": "1", "KELPIE_ATTEMPT": "1", "KELPIE_REPORT": "/r"})

    assert not caplog.records


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
    assert set(load_settings({"KELPIE_REDIS_URL": "redis://:p%40ss@h"}).secrets()) == {"p%40ss", "p@ss"}


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
