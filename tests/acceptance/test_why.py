"""``kelpie why``, ``watch`` and ``get`` on a real stack: what they say is what happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from kelpie_celery.lifecycle import Status
from kelpie_celery.why.explain import explain
from tests.harness.stack import Stack, StackFactory

BOUND_S = 120.0
# A checkpoint at its start, then nothing new: whoever comes next ends at once.
SCRIPT = """
    [ -e $CHECKPOINT_DIR/step ] && exit 0
    echo step > $CHECKPOINT_DIR/step
    printf '{"progress": 0.25, "message": "first half"}\\n' >> $KELPIE_REPORT
    sleep 600
"""


class Asked:
    """The command line, in processes of its own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._env = {**os.environ, **stack.env()}

    def __call__(self, *argv: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "kelpie_celery", *argv], env=self._env, capture_output=True, text=True,
            timeout=BOUND_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self._stack.dump()
        return done.stdout

    def wait_why(self, job_id: str, code: str) -> str:
        """Wait until this is the deciding sentence; all of them. Asked in this process, as it is asked often."""

        def look() -> str | None:
            found = explain(self._stack.ledger.look_at(job_id))
            return str(found) if found.because[0].code == code else None

        return self._stack.wait(f"{code} is why job {job_id} is where it is", look, BOUND_S)

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kelpie_celery", *argv], env=self._env, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.mark.timeout(600)
def test_a_jobs_life_is_told_as_it_goes(make_stack: StackFactory) -> None:
    stack = make_stack(workers=0, control=False, beat=False, KELPIE_MIN_LEASE_S="12")
    ask = Asked(stack)
    places = {f"{role}_{what}": value for role in ("input", "checkpoint", "output")
              for what, value in (("bucket", stack.bucket), ("prefix", f"{role}/"))}  # fmt: skip
    stack.s3.put_object(Bucket=stack.bucket, Key="input/a", Body=b"a")
    first = stack.submit(stack.shell(SCRIPT, **places))
    ask.wait_why(first, "no_worker")

    number = stack.start_worker()
    stack.wait_executing(first)
    stack.wait("a checkpoint is stored", lambda: stack.get(first).num_commits or None)
    second = stack.submit(stack.shell("true"))
    told = ask.wait_why(second, "busy")
    assert "1 busy" in told
    assert "It is the first in its queue" in told
    ask.wait_why(first, "executing")
    # What it reports goes along with a heartbeat, perhaps after its checkpoint.
    wanted = ("Its last checkpoint was stored", "25 %: first half", f"machine {stack.get(first).machine_id}")

    def all_is_told() -> bool:
        said = ask("why", first)
        return all(words in said for words in wanted)

    stack.wait("all of it is told", all_is_told)

    with ask.start("watch", "--every", "0.5", "--group", stack.group) as watching:
        assert watching.stdout is not None
        seen = next(line for line in watching.stdout if first in line)
        assert "executing" in seen
        assert "first half" in seen
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=BOUND_S)
    assert watching.returncode == 130
    assert "Traceback" not in said

    stack.kill_worker(number)
    told = ask.wait_why(first, "lease_lapsed")
    assert "When last heard of, its command runs" in told
    stack.start_worker()
    stack.wait_status(first, Status.COMPLETED, timeout_s=BOUND_S)
    stack.wait_status(second, Status.COMPLETED, timeout_s=BOUND_S)
    assert "exited with 0" in ask.wait_why(first, "completed")
    shown = ask("get", first)
    for words in ("lease_expired", "completed", " kept, ", " lost ("):
        assert words in shown
    lost, ended = json.loads(ask("get", first, "--json"))["attempts"]
    assert lost["started"] < lost["committed"] < lost["ended"]
    assert lost["commits"] >= 1
    assert ended["outcome"] == "completed"
