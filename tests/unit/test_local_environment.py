import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from kelpie_celery.local import envfile
from kelpie_celery.local.machine import for_the_scaler, inherited
from kelpie_celery.local.processes import describe_exit
from kelpie_celery.local.stack import LocalStack
from kelpie_celery.local.up import without_password

SURROUNDING = {
    "PATH": "/bin",
    "HOME": "/home/u",
    "KELPIE_LOG_LEVEL": "debug",
    "KELPIE_REDIS_URL": "redis://elsewhere/0",
    "KELPIE_WEED": "/opt/weed",
    "SALAD_MACHINE_ID": "real-machine",
    "CELERY_BROKER_URL": "redis://elsewhere/1",
    "AWS_PROFILE": "work",
}


def test_a_stack_with_its_own_storage_takes_nothing_that_points_elsewhere() -> None:
    assert inherited(SURROUNDING, own_storage=True) == {
        "PATH": "/bin",
        "HOME": "/home/u",
        "KELPIE_LOG_LEVEL": "debug",
    }


def test_a_stack_on_the_users_storage_keeps_the_users_access_to_it() -> None:
    assert inherited(SURROUNDING, own_storage=False)["AWS_PROFILE"] == "work"


def test_the_key_of_saladcloud_is_for_the_control_worker_alone() -> None:
    shell = {**SURROUNDING, "SALAD_API_KEY": "secret", "SALAD_ORGANIZATION_NAME": "mine", "SALAD_PROJECT": "p"}
    assert "secret" not in inherited(shell, own_storage=False).values()
    assert for_the_scaler(shell) == {"SALAD_API_KEY": "secret", "SALAD_ORGANIZATION_NAME": "mine", "SALAD_PROJECT": "p"}


@pytest.mark.parametrize("value", ["plain", "two words", "it's", 'a "b" $HOME `id`', "x\ny", ""])
def test_values_are_quoted_for_the_shell(value: str) -> None:
    line = envfile.render({"NAME": value}).split("\n", 1)[1]
    assert shlex.split(line) == ["export", f"NAME={value}"]


def test_lines_are_in_a_stable_order() -> None:
    assert envfile.render({"B": "2", "A": "1"}).endswith("export A='1'\nexport B='2'\n")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:1234/0", "redis://127.0.0.1:1234/0"),
        ("rediss://user:hunter2@redis.example:6380/3?ssl_cert_reqs=required", "rediss://redis.example:6380/3"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock"),
    ],
)
def test_a_redis_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "still running"),
        (0, "exit code 0"),
        (78, "exit code 78"),
        (-9, "killed by SIGKILL"),
        (-99, "killed by signal 99"),
    ],
)
def test_an_exit_code_is_told_in_words(code: int | None, words: str) -> None:
    assert describe_exit(code) == words


def test_of_a_stack_only_the_control_worker_hears_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALAD_API_KEY", "secret")
    seen: dict[str, dict[str, str]] = {}

    def launch(
        stack: LocalStack, name: str, _argv: list[str], env: Mapping[str, str], *_: object, **__: object
    ) -> None:
        seen[name] = {**stack._process_env(), **env}

    monkeypatch.setattr(LocalStack, "_launch", launch)
    stack = LocalStack(tmp_path, redis_url="redis://127.0.0.1:1/0", s3=False)
    stack.start_helper("control", env={"KELPIE_SALAD_API_URL": "http://127.0.0.1:2"})
    stack.start_helper("beat")
    stack.start_worker()
    assert {name: "secret" in env.values() for name, env in seen.items()} == {
        "control": True,
        "beat": False,
        "worker-1": False,
    }
    assert seen["control"]["KELPIE_SALAD_API_URL"] == "http://127.0.0.1:2"
