"""Settings that Kelpie's users have in their container groups, on a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.harness.salad_stub import ImdsStub
from tests.harness.stack import Stack, StackFactory


@pytest.fixture
def node() -> Iterator[ImdsStub]:
    with ImdsStub() as node:
        yield node


@pytest.fixture
def stack(make_stack: StackFactory, node: ImdsStub) -> Stack:
    return make_stack(
        workers=1, control=False, beat=False, SALAD_METADATA_URI=node.url, KELPIE_CANCEL_SIGNAL="INT",
        KELPIE_RECREATE_BETWEEN_JOBS="true",
    )  # fmt: skip


INTERRUPTED = "trap 'echo INT > got; exit 0' INT; trap 'echo TERM > got; exit 0' TERM; "
STUBBORN = "trap 'echo INT > got' INT; trap 'echo TERM >> got; exit 0' TERM; "
LOOP = """echo '{"message": "up"}' >> $KELPIE_REPORT; while :; do sleep 0.1; done"""


def up(stack: Stack, script: str, **fields: object) -> str:
    job = stack.submit(stack.shell(script + LOOP, **fields))
    stack.wait("the job is up", lambda: (p := stack.get(job).progress) is not None and p.message == "up")
    return job


@pytest.mark.timeout(150)
def test_cancel_by_sigint_a_fresh_container_after_each_job_and_the_state_file(stack: Stack, node: ImdsStub) -> None:
    (machine,) = stack.local.machines.values()
    work = machine.directory / "work"

    # The state file: the job finds itself in it, and its checkpoint while that is on its way.
    script = """
        cp $KELPIE_STATE_FILE found; mv found found.json; until [ -e go ]; do sleep 0.02; done
        head -c 300000 /dev/urandom > $CHECKPOINT_DIR/model
        until cp $KELPIE_STATE_FILE copy && grep -q 'model"' copy; do sleep 0.02; done; mv copy uploading.json
        while grep -q 'model"' $KELPIE_STATE_FILE; do sleep 0.02; done
    """
    places = {f"{role}_bucket": stack.bucket for role in ("input", "checkpoint", "output")}
    places |= {f"{role}_prefix": f"{role}/" for role in ("input", "checkpoint", "output")}
    stack.s3.put_object(Bucket=stack.bucket, Key="input/i", Body=b"i")
    job = stack.submit(stack.shell(script, **places))
    stack.wait("the job has found itself", (work / "found.json").exists)
    # The storage stands still until the upload was seen: it may be over before the file tells of it.
    assert stack.local.s3 is not None
    stack.local.s3.pause()
    try:
        (work / "go").touch()
        stack.wait("the upload is told", (work / "uploading.json").exists)
    finally:
        stack.local.s3.resume()
    record = stack.wait_status(job, "completed", timeout_s=60)
    found = json.loads((work / "found.json").read_text())
    assert [(one["id"], one["status"]) for one in found["jobs"]] == [(job, "running")]
    uploading = json.loads((work / "uploading.json").read_text())["jobs"][0]["activeUploads"]
    assert [name.rpartition("/")[2] for name in uploading] == ["model"]
    state = machine.directory / "kelpie-state.json"
    stack.wait("it is told to have ended", lambda: json.loads(state.read_text())["jobs"][0]["status"] == "completed")
    [attempt] = record.attempts
    facts = attempt.model_dump()
    assert facts["sent_bytes"] >= 300_000
    assert facts["received_bytes"] >= 1
    assert facts["sent_s"] > 0
    stack.wait("the machine's rates are told", lambda: stack.ledger.machines(stack.group)[0].sent_bytes_s)

    # A fresh container after it: the worker fetches nothing until it is ended; a stub does not end it, so it goes on.
    stack.wait("a fresh container was asked for", lambda: "POST /v1/recreate" in node.calls())
    assert node.calls().count("POST /v1/recreate") == 1
    waits = stack.submit(stack.shell("true"))
    assert stack.get(waits).attempt == 0
    stack.kill_worker(1)  # as the platform does
    stack.start_worker(1)
    stack.wait_status(waits, "completed", timeout_s=30)
    stack.wait("another one was asked for", lambda: node.calls().count("POST /v1/recreate") == 2)
    stack.kill_worker(1)
    stack.start_worker(1, KELPIE_RECREATE_BETWEEN_JOBS="false")

    # SIGINT comes first, and SIGTERM to who goes on; a shutdown is told by SIGTERM alone.
    # Each has half of the time: the first job needs no more of it than it takes, the second one waits for its half.
    for script, grace_period, signals in ((INTERRUPTED, 20, "INT\n"), (STUBBORN, 6, "INT\nTERM\n")):
        job = up(stack, script, grace_period=grace_period)
        stack.ledger.cancel(job)
        assert stack.wait_status(job, "canceled", timeout_s=30).num_failures == 0
        assert (work / "got").read_text() == signals
