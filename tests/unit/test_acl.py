"""The rules of a group's Redis user: enough for every operation of the ledger, and nothing else's."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest

from kelpie_celery.acl import set_user, worker_rules
from kelpie_celery.errors import SettingsError
from kelpie_celery.ledger.scripts import OPERATIONS, source
from tests.unit.cli_harness import Cli, cli

__all__ = ["cli"]

DANGEROUS = {
    "keys", "scan", "randomkey", "flushall", "flushdb", "config", "acl", "monitor", "shutdown", "debug", "save",
    "bgsave", "replicaof", "migrate", "restore", "dump", "move", "copy", "rename", "sort", "object", "function",
    "client", "dbsize", "script", "pubsub", "swapdb", "latency", "slowlog", "module", "cluster", "publish",
    "spublish",
}  # fmt: skip


def commands(rules: list[str]) -> set[str]:
    return {rule[1:].lower() for rule in rules if rule.startswith("+")}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_command_of_the_ledgers_operations_is_allowed(operation: str) -> None:
    code = re.sub(r"--.*", "", source(operation))
    called = {name.lower() for name in re.findall(r"(?:redis\.p?call|refused|or_later\([^,]+)[(,]\s*'([A-Z]+)'", code)}
    assert called
    assert called <= commands(worker_rules("g"))


def test_nothing_dangerous_is_allowed() -> None:
    rules = worker_rules("g")
    assert not commands(rules) & DANGEROUS
    assert not any(rule.startswith(("+@", "~*", "%R~*", "&*", "allkeys", "allchannels", "nopass")) for rule in rules)
    assert "-@all" in rules


def test_what_is_written_belongs_to_the_group_or_is_known_to_be_shared() -> None:
    patterns = [rule for rule in worker_rules("my-group") if rule.startswith(("~", "%W~", "%RW~"))]
    shared = {
        "~kelpie:line:*", "~kelpie:once:*", "~celery-task-meta-*", "~celery-taskset-meta-*", "%W~*.reply.celery.pidbox",
        "~_kombu.binding.celery.pidbox", "~_kombu.binding_deadlines", "~kelpie@*.celery.pidbox*",
    }  # fmt: skip
    assert {pattern for pattern in patterns if "my-group" not in pattern} == shared


def test_one_groups_patterns_match_no_other_groups_keys() -> None:
    own = [rule.partition("~")[2] for rule in worker_rules("gpu") if "gpu" in rule]
    for other in ("gpu2", "gpu.x", "gpu-1", "a-gpu", "GPU"):
        for key in (
            f"kelpie:g:{other}:job:1",
            f"kelpie.{other}",
            f"kelpie.{other}:5",
            f"_kombu.binding.kelpie.{other}",
        ):
            assert not any(fnmatchcase(key, pattern) for pattern in own), key


@pytest.mark.parametrize("group", ["control", "", "a b", "*", "a*", "a\n~*", "x" * 129, "kelpie:rules"])
def test_a_group_that_may_have_no_user_is_refused(group: str) -> None:
    with pytest.raises(SettingsError):
        worker_rules(group)


def test_without_a_password_redis_refuses_the_line_as_it_is() -> None:
    assert " #SHA256-OF-THE-PASSWORD " in set_user("name", worker_rules("g"))


def test_the_command_names_the_user_after_the_group(cli: Cli) -> None:
    answer = cli("redis-acl", "my-group", "--db", "3")
    assert answer.code == 0
    assert answer.out.startswith("ACL SETUSER worker-my-group reset on #")
    assert "&/3.celery.pidbox" in answer.out.split()
    assert "SHA-256" in answer.err


def test_the_command_takes_a_password_and_prints_its_hash_only(cli: Cli) -> None:
    answer = cli("redis-acl", "g", "--user", "u", "--password-file", "-", "--json", stdin="a-long-enough-password\n")
    assert answer.document["user"] == "u"
    assert (
        answer.document["password_sha256"] == "16cdc7ee8cd8e8ed1e0d75d8dcbbee3bd4b0bb1e5f3ad44e7ad5ab9a84b4b1ff"
        or len(answer.document["password_sha256"]) == 64
    )
    assert "a-long-enough-password" not in answer.out + answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["control"], "control worker's queue"),
        (["a b"], "is no container group"),
        (["g", "--user", "a b"], "must be 1 to 128"),
        (["g", "--user", "default"], "not 'default'"),
        (["g", "--password-file", "-"], "must have 16 to 4096 bytes"),
        (["g", "--password-file", "/nonexistent"], "No such file"),
        (["g", "--db", "-1"], "range"),
        (["g", "--password-file", "/"], "password-file"),
    ],
)
def test_the_command_says_what_is_wrong(cli: Cli, arguments: list[str], words: str) -> None:
    answer = cli("redis-acl", *arguments)
    assert answer.code == 2
    assert words in answer.err
