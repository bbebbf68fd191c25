"""What the real Kelpie 0.7.1 did wrong when it was tried: a job whose files come at the wrong moment.

Others of its faults are elsewhere: inputs that are missing, and a storage that fails while they are brought down, in
``test_failures.py`` and ``test_sync_faults.py``; a storage that is gone during the final upload in ``test_outages.py``;
keys with ``..`` and namesakes of a prefix in ``test_restore*.py``; an output directory on a disk of its own in
``test_ends.py``.
"""

from __future__ import annotations

import pytest

from tests.harness.looking import outputs_under, stored_job_fields
from tests.harness.stack import Stack

FILES = 300
EARLY = 3000


@pytest.mark.timeout(120)
def test_a_job_that_exits_right_after_writing_has_everything_stored(stack: Stack, prefix: str) -> None:
    """Kelpie reported ``completed`` with the bucket empty; of 300 files it never uploaded 110."""
    script = f"for i in $(seq {FILES}); do echo $i > $OUTPUT_DIR/$i; echo $i > $CHECKPOINT_DIR/$i; done"
    job_id = stack.submit(stack.shell(script, **stored_job_fields(stack, prefix)))
    record = stack.wait_status(job_id, "completed", timeout_s=60)
    # Not later: what counts is what is there when the job is said to be completed.
    written = {str(i): f"{i}\n".encode() for i in range(1, FILES + 1)}
    assert outputs_under(stack.s3, stack.bucket, f"{prefix}output/") == written
    assert outputs_under(stack.s3, stack.bucket, f"{prefix}checkpoint/") == written
    assert (record.num_failures, record.completions) == (0, 1)


@pytest.mark.timeout(120)
def test_files_of_a_jobs_first_moment_are_in_its_first_checkpoint(stack: Stack, prefix: str) -> None:
    """Kelpie never uploaded what was written before its watcher was ready: 2 s, where there were many files."""
    # One file stays open until all are written: a pause of the machine between two of them is no quiet moment.
    script = f"""
        cd state
        if [ $KELPIE_ATTEMPT = 1 ]; then
            exec 9> first; echo 1 >&9; seq {EARLY} | split -l 1 -a 4 - f; exec 9>&-; exec sleep 60
        fi
        ls | wc -l > ../out/count; cat first >> ../out/count
    """
    state = {"bucket": stack.bucket, "prefix": f"{prefix}state/", "local_path": "state"}
    out = {"bucket": stack.bucket, "prefix": f"{prefix}output/", "local_path": "out", "direction": "upload"}
    sync = {
        "before": [{**state, "direction": "download"}],
        "during": [{**state, "direction": "upload", "plain": "never"}],
        "after": [out],
    }
    job_id = stack.submit(stack.shell(script, sync=sync))
    stack.wait("a checkpoint is stored", lambda: stack.get(job_id).num_commits >= 1)
    stack.kill_worker(stack.worker_of(job_id))
    record = stack.wait_status(job_id, "completed", timeout_s=60)
    assert outputs_under(stack.s3, stack.bucket, f"{prefix}output/") == {"count": f"{EARLY + 1}\n1\n".encode()}
    assert (record.num_failures, record.num_interruptions) == (0, 1)
