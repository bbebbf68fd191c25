import shlex

import pytest

from kelpie_celery.local import envfile
from kelpie_celery.local.machine import inherited
from kelpie_celery.local.processes import describe_exit
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
