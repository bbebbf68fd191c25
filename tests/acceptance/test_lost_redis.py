"""A Redis that has lost everything: what runs ends, and what is submitted again goes on from its checkpoint."""

from __future__ import annotations

import pytest

from tests.harness.looking import outputs_under, processes_of, worker_log
from tests.harness.stack import StackFactory

# Counts on from its checkpoint; each count is one, and the job waits for a file before it ends.
COUNTS = """
n=$(cat state/n 2>/dev/null || echo 0); echo "starts at $n"; echo $n >> {starts}
while [ $n -lt 5 ] || [ ! -e {go} ]; do
  n=$((n + 1)); echo $n > state/draft; mv state/draft state/n
  echo '{{"commit": true, "message": "'$n'"}}' >> $KELPIE_REPORT; sleep 0.3
done
mkdir -p out; echo $n > out/n
"""


@pytest.mark.timeout(240)
def test_a_job_that_redis_has_forgotten_ends_and_goes_on_when_it_is_submitted_again(
    make_stack: StackFactory,
) -> None:
    stack = make_stack(workers=2)
    directory = stack.local.directory
    go, starts = directory / "go", directory / "starts"
    place = {"bucket": stack.bucket, "prefix": "run/state/", "local_path": "state"}
    definition = stack.shell(
        COUNTS.format(go=go, starts=starts),
        sync={
            "before": [{**place, "direction": "download"}],
            "during": [{**place, "direction": "upload", "commit": "report"}],
            "after": [{"bucket": stack.bucket, "prefix": "run/out/", "local_path": "out", "direction": "upload"}],
        },
    )
    first = stack.submit(definition)
    stack.wait("three checkpoints are stored", lambda: stack.get(first).num_commits >= 3, timeout_s=60)

    stack.ledger.redis.flushall()
    stack.submitted.clear()
    stack.wait("the forgotten command has ended", lambda: not processes_of(first), timeout_s=60)

    go.touch()
    again = stack.submit(definition)
    record = stack.wait_status(again, "completed", timeout_s=90)
    assert record.num_failures == 0
    begun = [int(line) for line in starts.read_text().split()]
    assert begun[0] == 0
    assert begun[-1] >= 3, "it goes on from a checkpoint that was stored before Redis lost it"
    assert int(outputs_under(stack.s3, stack.bucket, "run/out/")["n"]) > begun[-1] - 1
    told = [worker_log(stack, number).read_text().count("action=head_missing") for number in (1, 2)]
    assert sum(told) == 1, stack.dump()
