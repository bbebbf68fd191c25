"""``kelpie doctor``: real servers that are well, badly configured, or away."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import redis

from kelpie_celery.checkpoints.names import is_reserved
from kelpie_celery.cli.doctor import checks, masked
from kelpie_celery.clock import ManualClock, SystemClock
from kelpie_celery.doctor.helper_checks import check_helpers
from kelpie_celery.doctor.redis_checks import check_redis
from kelpie_celery.doctor.running import Check, run_all
from kelpie_celery.doctor.storage_checks import FOLDER, check_storage
from kelpie_celery.errors import KelpieError
from kelpie_celery.findings import Finding, ok
from kelpie_celery.local.binaries import script
from kelpie_celery.local.ports import reserve
from kelpie_celery.local.salad.behaviour import Behaviour
from kelpie_celery.local.salad.sim import SaladSim
from kelpie_celery.local.servers import SeaweedServer, ValkeyServer
from kelpie_celery.settings import Settings, load_settings
from kelpie_scaler.doctor import check_salad
from kelpie_worker.doctor import check_machine
from tests.harness.acl import PASSWORD, make_user
from tests.harness.isolation import FOREIGN_PREFIXES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BOUND_S = 90.0
CANARY = "canary-77aa-secret"
NAME = "demo-workers"


def settings(url: str, **more: str) -> Settings:
    return load_settings({"KELPIE_REDIS_URL": url, "KELPIE_REDIS_TIMEOUT_S": "3", **more})


def levels(found: list[Finding]) -> dict[str, str]:
    return {one.check: one.level.value for one in found}


def of(found: list[Finding], check: str) -> Finding:
    return next(one for one in found if one.check == check)


# -- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Redis whose configuration a test may spoil."""
    with ValkeyServer(tmp_path / "redis") as server:
        yield server


def test_a_redis_that_is_as_it_should_be_has_nothing_to_mend(own_redis: ValkeyServer) -> None:
    found = check_redis(settings(own_redis.url), SystemClock())
    assert set(levels(found).values()) == {"ok"}, found
    assert set(levels(found)) == {
        "redis", "redis version", "redis transport", "redis append-only", "redis eviction", "redis memory",
        "redis connections", "redis clock",
    }  # fmt: skip


def test_bad_configurations_of_redis_are_told_with_what_to_set(own_redis: ValkeyServer) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        client.config_set("maxclients", "33")
        client.config_set("maxmemory", str(client.info("memory")["used_memory"] + 1000))
        held = [redis.Redis.from_url(own_redis.url) for _ in range(30)]
        for one in held:
            one.ping()
        found = check_redis(settings(own_redis.url), SystemClock())
        for one in held:
            one.close()
    assert levels(found)["redis eviction"] == "error"
    assert "maxmemory-policy noeviction" in of(found, "redis eviction").mend
    assert levels(found)["redis append-only"] == "error"
    assert "appendonly yes" in of(found, "redis append-only").mend
    assert levels(found)["redis memory"] == "error"
    assert levels(found)["redis connections"] in ("warning", "error")


@pytest.mark.parametrize(("fsync", "level"), [("everysec", "warning"), ("no", "error")])
def test_an_append_only_file_that_is_not_synced_is_told(own_redis: ValkeyServer, fsync: str, level: str) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("appendfsync", fsync)
    found = check_redis(settings(own_redis.url), SystemClock())
    assert levels(found)["redis append-only"] == level


def test_what_a_user_may_not_ask_is_not_known_and_no_error(own_redis: ValkeyServer) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.execute_command("ACL", "SETUSER", "plain", "on", f">{CANARY}", "+ping", "+time", "+info")
    url = own_redis.url.replace("redis://", f"redis://plain:{CANARY}@")
    found = check_redis(settings(url), SystemClock())
    assert levels(found)["redis append-only"] == "info"
    assert "CONFIG GET appendfsync" in of(found, "redis append-only").mend
    assert levels(found)["redis eviction"] == "ok"  # INFO tells it too
    assert CANARY not in str(found)


def test_the_user_of_a_groups_workers_may_look_as_well(own_redis: ValkeyServer) -> None:
    limited = settings(make_user(own_redis.url, "g"))
    found = run_all([
        Check("redis", lambda: check_redis(limited, SystemClock())),
        Check("helpers", lambda: check_helpers(limited, "g", SystemClock())),
    ])  # fmt: skip
    told = levels(found)
    assert "error" not in told.values(), found
    assert told["redis"] == "ok"
    assert told["redis append-only"] == "info"
    assert told["workers"] == "info"
    assert {"control worker", "beat"} <= set(told)
    assert PASSWORD not in str(found)


def test_a_clock_that_is_wrong_is_told(own_redis: ValkeyServer) -> None:
    found = check_redis(settings(own_redis.url), ManualClock())
    assert levels(found)["redis clock"] == "error"


# -- the storage ------------------------------------------------------------------------------------------------------


def storage(s3_server: SeaweedServer, **more: str) -> Settings:
    return settings("redis://127.0.0.1:1/0", **{**s3_server.env(), **more})


def test_a_storage_that_does_all_is_told_so_and_nothing_stays_on_it(
    s3_server: SeaweedServer, s3: S3Client, s3_bucket: str
) -> None:
    found = check_storage(storage(s3_server), s3_bucket, "runs/", SystemClock())
    assert levels(found) == {
        "storage": "ok", "storage list": "ok", "storage clock": "ok", "storage put": "ok", "storage get": "ok",
        "storage multipart": "ok", "storage copy": "ok", "storage expiry": "ok", "storage delete": "ok",
    }, found  # fmt: skip
    assert s3.list_objects_v2(Bucket=s3_bucket, Prefix=f"runs/{FOLDER}")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("bucket", "more", "told"),
    [
        ("no-such-bucket-at-all", {}, "the bucket does not exist"),
        (None, {"AWS_SECRET_ACCESS_KEY": CANARY}, "AWS_SECRET_ACCESS_KEY"),
        (None, {"AWS_ACCESS_KEY_ID": "nobody"}, "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_wrong_bucket_or_key_is_told_with_what_to_mend(
    s3_server: SeaweedServer, s3_bucket: str, bucket: str | None, more: dict[str, str], told: str
) -> None:
    with pytest.raises(KelpieError) as caught:
        check_storage(storage(s3_server, **more), bucket or s3_bucket, "", SystemClock())
    assert told in str(caught.value)
    assert CANARY not in str(caught.value)


# -- SaladCloud -------------------------------------------------------------------------------------------------------


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[SaladSim]:
    behaviour = Behaviour(time_factor=5000, mean_run_s=0, seed=1, requests_per_minute=0)
    with SaladSim(tmp_path / "salad", behaviour, command=["/bin/sleep", "600"]) as one:
        one.create_group(NAME, replicas=1)
        yield one


def salad(sim: SaladSim, **more: str) -> Settings:
    told = {"SALAD_API_KEY": sim.api_key, "KELPIE_SALAD_API_URL": sim.api_url,
            "SALAD_ORGANIZATION_NAME": sim.organization, "SALAD_PROJECT_NAME": sim.project}  # fmt: skip
    return settings("redis://127.0.0.1:1/0", **{**told, **more})


def test_a_key_that_is_taken_and_its_group_are_told(sim: SaladSim) -> None:
    found = check_salad(salad(sim), NAME, SystemClock())
    assert levels(found) == {"saladcloud": "ok", "salad quota": "ok", "salad group": "ok"}, found
    assert sim.api_key not in str(found)


def test_a_wrong_key_organization_or_group_is_told_with_what_to_mend(sim: SaladSim) -> None:
    wrong_key = check_salad(salad(sim, SALAD_API_KEY=CANARY), NAME, SystemClock())
    assert levels(wrong_key) == {"saladcloud": "error"}
    assert "SALAD_API_KEY" in wrong_key[0].mend
    assert CANARY not in str(wrong_key)
    elsewhere = check_salad(salad(sim, SALAD_ORGANIZATION_NAME="nobody"), NAME, SystemClock())
    assert levels(elsewhere) == {"saladcloud": "error"}
    group = check_salad(salad(sim), "no-such-group", SystemClock())
    assert levels(group)["salad group"] == "error"


# -- this machine -----------------------------------------------------------------------------------------------------


def test_this_machine_is_looked_at_whatever_it_has(tmp_path: Path) -> None:
    block = reserve()
    told = {"KELPIE_WORKDIR": str(tmp_path), "SALAD_METADATA_URI": f"http://127.0.0.1:{block[0]}"}
    found = check_machine(settings("redis://127.0.0.1:1/0", **told), SystemClock())
    block.release()
    assert list(levels(found)) == ["programs", "gpu", "disk", "memory", "inotify", "metadata service"]
    assert levels(found)["programs"] == "ok"
    assert levels(found)["metadata service"] == "info"
    gone = check_machine(settings("redis://127.0.0.1:1/0", KELPIE_WORKDIR=str(tmp_path / "no"), **{
        name: value for name, value in told.items() if name != "KELPIE_WORKDIR"}), SystemClock())  # fmt: skip
    assert levels(gone)["disk"] == "error"


# -- all together -----------------------------------------------------------------------------------------------------


def test_what_takes_too_long_or_breaks_spoils_no_other_look() -> None:
    def broken() -> list[Finding]:
        raise ValueError(CANARY)

    def slow() -> list[Finding]:
        SystemClock().sleep(5.0)
        return []

    found = run_all([Check("a", broken), Check("b", slow, limit_s=0.1), Check("c", lambda: [ok("c", "well")])])
    assert levels(found) == {"a": "error", "b": "error", "c": "ok"}
    assert CANARY not in str(found)


def test_servers_that_are_away_are_told_beside_what_is_there(tmp_path: Path) -> None:
    block = reserve()
    away = settings(
        f"redis://:{CANARY}@127.0.0.1:{block[0]}/0", AWS_ENDPOINT_URL=f"http://127.0.0.1:{block[1]}",
        AWS_ACCESS_KEY_ID="someone", AWS_SECRET_ACCESS_KEY=CANARY, KELPIE_WORKDIR=str(tmp_path),
        SALAD_METADATA_URI=f"http://127.0.0.1:{block[2]}",
    )  # fmt: skip
    found = masked(run_all(checks(away, "g", "s3://bucket/runs", SystemClock())), away)
    block.release()
    told = levels(found)
    assert (told["redis"], told["helpers"], told["storage"]) == ("error", "error", "error"), found
    assert told["saladcloud"] == "info"
    assert told["programs"] == "ok"
    assert "cannot be reached" in of(found, "redis").text
    assert CANARY not in str(found)


def test_the_command_tells_all_and_ends_with_1_where_something_is_to_be_mended(own_redis: ValkeyServer) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_PREFIXES)}
    env = {**bare, "KELPIE_REDIS_URL": own_redis.url, "SALAD_METADATA_URI": "http://127.0.0.1:9"}

    def doctor(*argv: str) -> Any:
        command = [str(script("kelpie", "kelpie-celery")), "doctor", "--group", "g", *argv]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=BOUND_S, check=False)

    document = json.loads(doctor("--json").stdout)
    told = {one["check"]: one["level"] for one in document["findings"]}
    assert told["control worker"] == "warning"
    assert told["beat"] == "warning"
    assert told["workers"] == "info"
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    done = doctor()
    assert done.returncode == 1, done
    assert "error    redis eviction: allkeys-lru" in done.stdout
    assert "-> maxmemory-policy noeviction" in done.stdout


def test_no_job_takes_what_is_tried_for_its_files() -> None:
    assert is_reserved(f"{FOLDER}0123/put")


def test_a_redis_that_answers_too_slowly_is_told_so_and_is_not_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    asked = []

    class Slow:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            def answer(*_: Any) -> Any:
                asked.append(name)
                clock.advance(1.5)
                return (int(clock.now()), 0) if name == "time" else {}

            return answer

    monkeypatch.setattr("kelpie_celery.doctor.redis_checks.connect", lambda *_: Slow())
    found = check_redis(settings("redis://127.0.0.1:1/0"), clock)
    assert levels(found)["redis"] == "error"
    assert "1500.0 ms" in found[0].text
    assert asked == ["time", "time", "info"]


def test_what_is_tried_on_a_slow_storage_is_deleted_while_there_is_time(
    s3_server: SeaweedServer, s3: S3Client, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kelpie_celery.doctor.storage_checks.MOST_S", -1.0)
    found = check_storage(storage(s3_server), s3_bucket, "slow/", SystemClock())
    assert levels(found)["storage expiry"] == "info"
    assert levels(found)["storage delete"] == "ok"
    assert s3.list_objects_v2(Bucket=s3_bucket, Prefix="slow/")["KeyCount"] == 0
