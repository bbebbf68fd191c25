"""What a real worker tells its platform while it runs a job, and while it drains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kelpie_celery.local.servers import SeaweedServer
from tests.harness.salad_stub import ImdsStub
from tests.harness.stack import GROUP, Stack, StackFactory


@pytest.fixture
def node() -> Iterator[ImdsStub]:
    with ImdsStub() as node:
        yield node


@pytest.mark.timeout(180)
def test_an_instance_gets_dearer_with_its_work_and_may_go_when_it_drains(
    make_stack: StackFactory, node: ImdsStub, s3_server: SeaweedServer
) -> None:
    """With ``sync`` blocks too: Kelpie's defect 11 was that only the older fields guarded an upload."""
    stack = make_stack(workers=1, control=False, beat=False, SALAD_METADATA_URI=node.url)
    stack.wait("the idle worker costs 1", lambda: node.costs[-1:] == [1])
    after = {"bucket": stack.bucket, "prefix": "out/", "local_path": "out", "direction": "upload"}
    script = "mkdir -p out; echo result > out/file; until [ -e go ]; do sleep 0.1; done"
    job = stack.submit(stack.shell(script, sync={"after": [after]}))
    stack.wait("a running job raises it with its heartbeats", lambda: len(set(running_costs(node))) >= 3)
    costs = running_costs(node)
    assert costs == sorted(costs)
    assert costs[0] < 10, "it begins low; the first ones may be passed over, as only the newest is told"
    uploading(stack, node, s3_server)
    stack.wait_status(job, "completed", timeout_s=60)
    stack.wait("the idle worker costs 1 again", lambda: node.costs[-1] == 1)
    drains(stack, node)


def running_costs(node: ImdsStub) -> list[int]:
    return [cost for cost in node.costs if cost > 1]


def uploading(stack: Stack, node: ImdsStub, s3_server: SeaweedServer) -> None:
    """Have the job end while the storage stands still."""
    s3_server.pause()
    try:
        (machine,) = stack.local.machines.values()
        (machine.directory / "work" / "go").touch()
        stack.wait("an upload makes it dearest", lambda: node.costs[-1] == 100_000)
    finally:
        s3_server.resume()


def drains(stack: Stack, node: ImdsStub) -> None:
    """The worker is told to drain; it takes nothing until that is taken back."""
    # Not before its process has said that it has no attempt left.
    stack.wait("the idle worker is chosen", lambda: stack.ledger.drain(GROUP, 1).chosen == 1)
    stack.wait("the drained worker costs nothing", lambda: node.costs[-1] == 0)
    stack.wait("the scaler hears of it", lambda: stack.ledger.workers(GROUP).facts.draining_idle == 1)
    job = stack.submit(stack.shell("true"))
    assert stack.get(job).attempt == 0
    assert stack.ledger.workers(GROUP).facts.busy == 0
    stack.ledger.drain(GROUP, 0)
    stack.wait_status(job, "completed")
    stack.wait("the idle worker costs 1 again", lambda: node.costs[-1] == 1)
