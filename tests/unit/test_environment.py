"""What a job's command sees of its environment."""

from __future__ import annotations

from pathlib import Path

from kelpie_celery.definition import parse_definition
from kelpie_celery.ledger.types import FencingToken, Granted
from kelpie_celery.settings import load_settings
from kelpie_worker.environment import JobFiles, job_environment

GRANTED = Granted(FencingToken("the-job", 4, "nonce"), 60.0, 0.0, "", "[]", 0, 0.0, 0.0, "", 0)


def build(environ: dict[str, str], gpus: str | None = None, **environment: str) -> dict[str, str]:
    definition = parse_definition(
        {"command": "true", "container_group_id": "g", "sync": {}, "environment": environment}
    )
    settings = load_settings({"KELPIE_REDIS_URL": "redis://:hunter2@localhost/0"})
    files = JobFiles(Path("/scratch"))
    return job_environment(settings, environ, definition, GRANTED, files, {"INPUT_DIR": Path("/in")}, gpus)


def test_kelpies_own_secrets_are_left_out_and_the_storage_keys_stay() -> None:
    environ = {"KELPIE_REDIS_URL": "redis://:hunter2@localhost/0", "AWS_SECRET_ACCESS_KEY": "theirs", "PATH": "/bin"}
    seen = build(environ)
    assert "hunter2" not in str(seen)
    assert seen["AWS_SECRET_ACCESS_KEY"] == "theirs"
    assert seen["PATH"] == "/bin"


def test_the_definition_wins_over_the_container() -> None:
    assert build({"LEVEL": "container"}, LEVEL="definition")["LEVEL"] == "definition"


def test_a_job_is_told_who_it_is_and_where_its_files_are() -> None:
    seen = build({}, KELPIE_JOB_ID="spoofed")
    assert seen["KELPIE_JOB_ID"] == "the-job"
    assert seen["KELPIE_ATTEMPT"] == "4"
    assert seen["KELPIE_REPORT"] == "/scratch/report.jsonl"
    assert seen["INPUT_DIR"] == "/in"


def test_the_slot_chooses_the_gpu_unless_the_definition_does() -> None:
    assert build({"CUDA_VISIBLE_DEVICES": "0,1"}, gpus="1")["CUDA_VISIBLE_DEVICES"] == "1"
    assert build({}, gpus="1", CUDA_VISIBLE_DEVICES="0")["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in build({})
