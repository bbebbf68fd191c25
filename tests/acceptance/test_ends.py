"""Every way in which a job can end, caused for real on real workers: status, reason, counts, message and facts.

All jobs of the table run at once, on three workers beside the three of the shared stack: one with many slots, one in a
memory cgroup of its own, one whose working directory does not exist.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from kelpie_celery.cli import run
from kelpie_celery.ledger.records import JobRecord
from kelpie_celery.lifecycle import Outcome, Reason
from kelpie_celery.local.machine import made
from kelpie_celery.reasons import REASONS
from tests.harness.looking import processes_of, put_objects
from tests.harness.short_of import limited_memory, small_disk, why_no_memory_group, why_no_small_disk
from tests.harness.stack import Stack

MIB = 1 << 20
MANY, SMALL, NOWHERE = "many-slots", "little-memory", "no-workdir"
MEMORY_BYTES = 400 * MIB
DISK_BYTES = 8 * MIB
EATS_MEMORY = f"x = bytearray({2 * MEMORY_BYTES}); x[::4096] = b'x' * len(x[::4096])"
FLOOD_BYTES = 1_000_000_000


@dataclass(frozen=True)
class End:
    """One row: a job, and how it must end.

    Attributes:
        name: What it is called.
        job: Its definition.
        reason: Of the job; empty for one that completes.
        words: Parts of its message.
        facts: Of its last attempt.
        failures: Its count; the others are as the reason says.
        check: More that must hold.
    """

    name: str
    job: dict[str, Any]
    reason: str = ""
    words: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    failures: int = 1
    check: Callable[[JobRecord], None] = lambda _: None

    def faults(self, record: JobRecord) -> Iterator[str]:
        """What is not as it must be."""
        last = record.attempts[-1]
        status = "failed" if self.reason else "completed"
        wanted = (status, self.reason or None, self.failures if self.reason else 0, 0, 0)
        got = (record.status, record.reason, record.num_failures, record.num_interruptions, record.num_free)
        if got != wanted:
            yield f"is {got}, not {wanted} ({record.message})"
        message = record.message or ""
        yield from (f"does not say {word!r}: {message}" for word in self.words if word not in message)
        if self.reason and (last.reason, last.message, last.outcome) != (self.reason, record.message, "failure"):
            yield f"its last attempt says {last.reason}: {last.message}"
        facts = last.model_dump()
        yield from (f"{n} is {facts.get(n)!r}, not {v!r}" for n, v in self.facts.items() if facts.get(n) != v)
        try:
            self.check(record)
        except AssertionError as error:
            yield f"fails its check: {error}"


def tail_ends_with(line: str) -> Callable[[JobRecord], None]:
    def check(record: JobRecord) -> None:
        facts = record.attempts[-1].model_dump()
        assert facts["output_tail"][-1:] == [line], facts["output_tail"]

    return check


def ended_with_all_that_it_started(record: JobRecord) -> None:
    assert processes_of(record.id) == []
    took_at_most(20)(record)


def stored(stack: Stack, key: str, body: bytes) -> None:
    assert stack.s3.get_object(Bucket=stack.bucket, Key=key)["Body"].read() == body


def took_at_most(seconds: float) -> Callable[[JobRecord], None]:
    def check(record: JobRecord) -> None:
        last = record.attempts[-1]
        assert (last.ended or 0) - last.started < seconds, f"took {(last.ended or 0) - last.started:.1f} s"

    return check


def flooded(record: JobRecord) -> None:
    facts = record.attempts[-1].model_dump()
    assert facts["output_left_out_bytes"] > 0.9 * FLOOD_BYTES
    tail_ends_with("the end")(record)
    took_at_most(60)(record)


def commands(stack: Stack, tmp_path: Path) -> list[End]:
    """Commands that end badly by themselves, or cannot even begin."""
    plain = tmp_path / "run-me"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(0o644)

    def sh(script: str, **more: Any) -> dict[str, Any]:
        return stack.shell(script, **{"container_group_id": MANY, "max_failures": 1, **more})

    def program(command: str, *arguments: str, **more: Any) -> dict[str, Any]:
        return stack.definition(command, *arguments, **{"container_group_id": MANY, "max_failures": 1, **more})

    segfault = program(sys.executable, "-c", "import ctypes; ctypes.string_at(0)")
    no_room = "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**29, 2**29)); bytearray(2**30)"
    endless = "import time\nwhile True: time.sleep(1)"
    binary = "head -c 300000 /dev/urandom; head -c 1000 /dev/zero; printf '\\n\\377\\033[2J\\n'"
    no_pipe = "exec >&- 2>&-; sleep 0.1; exit"
    return [
        End("exit code, twice", sh("echo so; exit 3", max_failures=2), "exit_code", ("code 3",), {"exit_code": 3}, 2,
            tail_ends_with("so")),
        End("segmentation fault", segfault, "signal", ("SIGSEGV",), {"signal": 11, "exit_code": None}),
        End("kill -9", sh("kill -9 $$"), "signal", ("SIGKILL",), {"signal": 9}),
        End("a limit of address space", program(sys.executable, "-c", no_room), "exit_code", ("code 1",)),
        End("stalled", program(sys.executable, "-c", endless, stall_timeout=1), "stalled", ("stall_timeout of 1 s",),
            {"signal": 15}),
        End("timeout", sh("while :; do echo still; sleep 0.2; done", timeout=1), "timeout", ("timeout of 1 s",)),
        End("total timeout", sh("exec sleep 60", total_timeout=1, max_failures=9), "total_timeout", ("all attempts",)),
        End("a grandchild that holds the pipe open", sh("setsid sleep 300 & exit 0"),
            check=ended_with_all_that_it_started),
        End("a failure whose grandchild holds the pipe open", sh("setsid sleep 300 & echo last; exit 6"), "exit_code",
            ("code 6",), {"exit_code": 6}, 1, tail_ends_with("last")),
        End("a flood of output", sh(f"yes | head -c {FLOOD_BYTES}; echo the end; exit 4"), "exit_code", ("code 4",),
            {"exit_code": 4}, 1, flooded),
        End("a flood without a line", sh(f"head -c {FLOOD_BYTES} /dev/zero"), check=took_at_most(60)),
        End("binary output", sh(f"{binary}; exit 5"), "exit_code", ("code 5",), {"exit_code": 5}, 1,
            tail_ends_with("\ufffd\x1b[2J")),
        End("closed output, success", sh(f"{no_pipe} 0")),
        End("closed output, failure", sh(f"{no_pipe} 9"), "exit_code", ("code 9",), {"output_tail": None}),
        End("command not found", program("no-such-command", max_failures=2), "setup",
            ("'no-such-command'", "not found", "PATH"), {"cause": "not_found"}, 2),
        End("not executable", program(str(plain)), "setup", ("run-me", "chmod +x"), {"cause": "not_executable"}),
        End("missing working directory", program("true", container_group_id=NOWHERE), "setup",
            ("not-there", "working directory", "KELPIE_WORKDIR"), {"cause": "no_workdir"}),
        End("exit 75 without a checkpoint", sh("exit 75"), "no_progress", ("without a new checkpoint",)),
        End("a rule that ends it", sh("exit 7", max_failures=9, retry=[{"on_exit_code": [7], "action": "fail"}]),
            "exit_code", ("code 7", "retry[0] ends the job"), {"retry_rule": 0}),
        End("a device without room", sh("head -c 9 /dev/zero > /dev/full"), "disk_full",
            ("code", "No space left on device", "free now"), check=lambda r: tail_says(r, "No space")),
    ]  # fmt: skip


def tail_says(record: JobRecord, words: str) -> None:
    assert any(words in line for line in record.attempts[-1].model_dump()["output_tail"])


def storage(stack: Stack, prefix: str, disk: Path | None) -> list[End]:
    """Set-ups that are wrong, and disks that are too small."""
    put_objects(stack.s3, stack.bucket, f"{prefix}in/", {"a": b"x" * 5 * MIB, "b": b"x" * 5 * MIB})

    def block(name: str, where: str | Path, direction: str, **more: Any) -> dict[str, Any]:
        return {
            "bucket": stack.bucket,
            "prefix": prefix + name,
            "local_path": str(where),
            "direction": direction,
            **more,
        }

    def sh(script: str, **sync: Any) -> dict[str, Any]:
        return stack.shell(script, container_group_id=MANY, max_failures=1, sync=sync)

    missing = sh("true", before=[block("nothing/", "nothing", "download")])
    rows = [
        End("missing input", missing, "setup", (stack.bucket, f"{prefix}nothing/"),
            {"bucket": stack.bucket, "key": f"{prefix}nothing/"}),
    ]  # fmt: skip
    if disk is None:
        return rows
    fills = f"dd if=/dev/zero of={disk}/full/x bs=64k count=1000; exit 8"
    makes = f"mkdir -p {disk.parent}/large; head -c 20000000 /dev/urandom > {disk.parent}/large/x"
    packed = stack.shell(
        makes, container_group_id=SMALL, max_failures=1, compression=True,
        sync={"after": [block("large/", disk.parent / "large", "upload")]},
    )  # fmt: skip
    apart = [
        block("in/", disk / "one", "download", pattern="a$"),
        block("in/", disk / "two", "download", pattern="b$"),
    ]
    own_disk = block("out/", disk.with_name("own-disk"), "upload")
    return [
        *rows,
        End("a disk that the command fills", sh(fills, after=[block("o/", disk / "full", "upload")]), "disk_full",
            ("code 8", f"the disk of {disk}/full is full", "free"), {"path": f"{disk}/full", "exit_code": 8}),
        End("an input that the disk has no room for", sh("true", before=[block("in/", disk / "all", "download")]),
            "disk_full", (f"{disk}/all", f"{10 * MIB} bytes", "free"), {"needed_bytes": 10 * MIB, "exit_code": None}),
        End("inputs that fit alone but not together", sh("true", before=apart), "disk_full",
            (f"{disk}/one", f"{disk}/two", f"{10 * MIB} bytes"), {"needed_bytes": 10 * MIB, "exit_code": None}),
        End("outputs that the worker has no room to pack", packed, "disk_full",
            (str(small_temporary(stack)), "free", "larger disk"), {"exit_code": 0}),
        End("an output directory on a disk of its own", sh(f"echo done > {own_disk['local_path']}/x", after=[own_disk]),
            check=lambda _: stored(stack, f"{prefix}out/x", b"done\n")),
    ]  # fmt: skip


def memory(stack: Stack) -> list[End]:
    """Commands that the kernel kills for want of memory, and one that somebody else kills."""

    def program(command: str, *arguments: str) -> dict[str, Any]:
        return stack.definition(command, *arguments, container_group_id=SMALL, max_failures=1)

    eats = [sys.executable, "-c", EATS_MEMORY]
    child = f"import subprocess, sys; p = subprocess.run({eats!r}); sys.exit(2 if p.returncode == -9 else 0)"
    limit = {"memory_limit_bytes": MEMORY_BYTES}
    said = ("want of memory", "the limit is 400.0 MiB")
    return [
        End("out of memory", program(*eats), "oom", said, {"signal": 9, **limit}),
        End("out of memory within a shell", program("sh", "-c", '"$@"; exit $?', "sh", *eats), "oom",
            (*said, "code 137"), {"exit_code": 137, **limit}),
        End("a child out of memory", program(sys.executable, "-c", child), "oom", (*said, "code 2"), {"exit_code": 2}),
        End("kill -9 where memory is watched", program("sh", "-c", "kill -9 $$"), "signal",
            ("SIGKILL", "no kill for want of memory"), {"signal": 9}),
    ]  # fmt: skip


def small_temporary(stack: Stack) -> Path:
    """The temporary directory of one worker, on a small disk where one can be mounted."""
    return stack.local.directory / "little-room"


@pytest.fixture
def workers(stack: Stack) -> Iterator[dict[str, int]]:
    """The three workers; the second one in its cgroup, where one can be made."""
    start = stack.local.start_worker
    settings = {
        MANY: {"KELPIE_SLOTS": "8"},
        SMALL: {"KELPIE_SLOTS": "1", "TMPDIR": str(made(small_temporary(stack)))},
        NOWHERE: {"KELPIE_WORKDIR": str(stack.local.directory / "not-there")},
    }
    with contextlib.ExitStack() as machine:
        if not why_no_small_disk():
            machine.enter_context(small_disk(small_temporary(stack), DISK_BYTES))
        numbers = {group: start(env={"SALAD_CONTAINER_GROUP_ID": group, **env}) for group, env in settings.items()}
        stack.local.wait_ready()
        if not why_no_memory_group():
            limited = machine.enter_context(limited_memory(MEMORY_BYTES))
            limited.add(stack.local.worker(numbers[SMALL]).pid)
        if not why_no_small_disk():
            place = stack.local.machines[numbers[MANY]].directory
            machine.enter_context(small_disk(place / "disk", DISK_BYTES))
            machine.enter_context(small_disk(place / "own-disk", DISK_BYTES))
        try:
            yield numbers
        finally:
            for number in numbers.values():
                stack.kill_worker(number)


def most_memory_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


@pytest.mark.timeout(180)
def test_every_end_has_its_status_reason_counts_and_message(
    stack: Stack, workers: dict[str, int], prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    began = time.monotonic()
    number = workers[MANY]
    disk = None if why_no_small_disk() else stack.local.machines[number].directory / "disk"
    # The flood first: it takes longest. The disks last, one after the other: they share one.
    rows = sorted(commands(stack, tmp_path), key=lambda row: "flood" not in row.name) + storage(stack, prefix, disk)
    rows += [] if why_no_memory_group() else memory(stack)
    before_bytes = most_memory_bytes(stack.local.worker(number).pid)
    jobs = [(row, stack.submit(row.job)) for row in rows]
    wrong = []
    for row, job_id in jobs:
        stack.wait(f"{row.name} ends", partial(has_ended, stack, job_id), timeout_s=120)
        record = stack.get(job_id)
        wrong += [f"{row.name}: {fault}" for fault in row.faults(record)]
        wrong += [
            f"{row.name}: {a.outcome} is not {a.reason}'s" for a in record.attempts if not fits(a.outcome, a.reason)
        ]
    seconds = time.monotonic() - began
    grown_mib = (most_memory_bytes(stack.local.worker(number).pid) - before_bytes) / MIB
    log_mib = stack.local.worker(number).log.stat().st_size / MIB
    record_property("seconds", seconds)
    print(f"{len(rows)} ends in {seconds:.1f} s; the worker grew by {grown_mib:.0f} MiB, its log has {log_mib:.0f} MiB")
    assert not wrong, "\n".join(wrong)
    assert grown_mib < 150
    assert log_mib < 100

    monkeypatch.setenv("KELPIE_REDIS_URL", stack.env()["KELPIE_REDIS_URL"])
    for row, job_id in jobs:
        assert run(["get", job_id]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert not row.reason or f"{row.reason}: " in shown, shown
        assert "\x1b" not in shown


def has_ended(stack: Stack, job_id: str) -> bool:
    return stack.get(job_id).status.ended


def fits(outcome: str | None, reason: str | None) -> bool:
    """Whether an attempt's end is of the kind that the documented list says."""
    return outcome == REASONS[Reason(reason or "")].outcome


@pytest.mark.skipif(bool(why := why_no_memory_group()), reason=why)
def test_memory_is_short_for_real() -> None:
    """Says in the report whether the table above had its rows about memory."""


@pytest.mark.skipif(bool(why := why_no_small_disk()), reason=why)
def test_disks_are_full_for_real() -> None:
    """The same of disks."""


@pytest.mark.timeout(120)
def test_a_machine_that_stops_interrupts_and_fails_nothing(stack: Stack, tmp_path: Path) -> None:
    """Given a machine that signals all of its processes, the command before the worker."""
    # So that a busy machine has time for the second signal.
    stack.local.start_worker(env={"SALAD_CONTAINER_GROUP_ID": MANY, "TEST_PREEMPTION_S": "20"})
    number = max(stack.local.machines)
    stack.local.wait_ready()
    script = f"[ $KELPIE_ATTEMPT -gt 1 ] || {{ touch {tmp_path}/began; exec sleep 60; }}"
    job_id = stack.submit(stack.shell(script, container_group_id=MANY, max_failures=1))
    stack.wait("the command runs", (tmp_path / "began").exists)
    for process in processes_of(job_id):
        with contextlib.suppress(psutil.NoSuchProcess):  # the touch ends by itself
            process.send_signal(signal.SIGTERM)
    worker = psutil.Process(stack.local.worker(number).pid)
    while worker.children():
        time.sleep(0.01)
    stack.kill_worker(number, signal.SIGTERM)
    stack.wait("the attempt is over", lambda: stack.get(job_id).attempts[0].outcome)
    stack.start_worker(SALAD_CONTAINER_GROUP_ID=MANY)
    record = stack.wait_status(job_id, "completed", timeout_s=60)
    first = record.attempts[0]
    assert (first.outcome, first.reason) == (Outcome.INTERRUPTION, Reason.PREEMPTED)
    assert (record.num_failures, record.num_interruptions, record.completions) == (0, 1, 1)
