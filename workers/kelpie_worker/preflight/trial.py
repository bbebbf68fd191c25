"""The order of events: a first attempt until its checkpoint is there, SIGKILL, a resume, SIGTERM, and the end.

Each wait has a bound; what was not seen in time is left out of ``Seen``, and judged as such.

Limits: one job, one attempt at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kelpie_celery.checkpoints.kept import Checkpoint
from kelpie_celery.cli._text import counted, duration, size
from kelpie_celery.clock import Clock
from kelpie_celery.definition import JobDefinition
from kelpie_celery.errors import WaitTimeout
from kelpie_celery.ledger.records import AttemptRecord, JobRecord
from kelpie_celery.lifecycle import Status
from kelpie_celery.transfers import CONTROL_SUFFIX
from kelpie_worker.preflight import folder
from kelpie_worker.preflight.errors import CannotVerify
from kelpie_worker.preflight.listening import Listener
from kelpie_worker.preflight.rig import Rig, prepared, reference_buckets, roots_of
from kelpie_worker.preflight.seen import AttemptSeen, Ended, Seen
from kelpie_worker.sync.open_files import open_for_writing

LOOK_S = 0.1
LAUNCH_S = 120.0
"""How long a resume may take until the command runs, seconds, beside what its restore takes."""
AFTER_COMMIT_S = (3.0, 60.0)
"""How long the next write is awaited after a first checkpoint, seconds: as long as that one took, within these."""
HELD_GAP_S = 1.0
"""How long a file may go unseen that is open all the time, seconds: looks are late on a busy machine."""
_FIRST, _SECOND, _THIRD, _REFERENCE = 1, 2, 3, 9

Tell = Callable[[str], None]


class Trial:
    """One trial; use it once.

    Args:
        rig: What it runs on; started.
        definition: The user's job.
        handshake: Folder in which its command waits for its listener.
        timeout_s: How long a first checkpoint, and the end, may take each.
        clock: Where time comes from.
        tell: Told of each step.
        hopeless: Asked after the resume: whether there is no use in going on.
    """

    def __init__(
        self, rig: Rig, definition: JobDefinition, handshake: Path, timeout_s: float, clock: Clock, tell: Tell,
        hopeless: Callable[[Seen], bool],
    ) -> None:  # fmt: skip
        self._rig, self._definition, self._clock, self._tell = rig, definition, clock, tell
        self._handshake, self._timeout_s, self._hopeless = handshake, timeout_s, hopeless
        self._job = ""
        self._record: JobRecord | None = None
        self._listener: Listener | None = None
        self.seen = Seen()

    # -- the uninterrupted run ----------------------------------------------------------------------------------------

    def run_reference(self) -> None:
        """Run the job without an interruption, and keep what came out of it."""
        self._tell("the uninterrupted run begins, to compare with")
        buckets = reference_buckets(self._definition)
        self._rig.make_buckets(self._definition, list(buckets.values()))
        self._rig.begin_machine(_REFERENCE)
        self._rig.await_machine(_REFERENCE)
        job = self._rig.kelpie.submit(prepared(self._definition, None, buckets).definition)
        try:
            record = job.wait(self._timeout_s)
        except WaitTimeout:
            self.seen.reference_failed = f"the uninterrupted run did not end within {duration(self._timeout_s)}"
        else:
            if record.status is Status.COMPLETED:
                self.seen.reference = self._outputs(buckets)
                self.seen.reference_s = (record.ended or 0.0) - (record.started or 0.0)
            else:
                self.seen.reference_failed = f"the uninterrupted run {record.status.value}: {record.message}"
        self._rig.kill_machine(_REFERENCE)

    # -- the trial ----------------------------------------------------------------------------------------------------

    def run(self) -> Seen:
        """Run it; what was seen."""
        began = self._clock.boottime()
        try:
            self._play()
        finally:
            self._end_listening()
            self.seen.waited_s = self._clock.boottime() - began
            if self._record is not None:
                self.seen.status = self._record.status.value
                self.seen.message = self._record.message or ""
        return self.seen

    def _play(self) -> None:
        self._rig.begin_machine(_FIRST)
        self._rig.await_machine(_FIRST)
        self._job = self._rig.kelpie.submit(prepared(self._definition, self._handshake, {}).definition).id
        if not self._listen_to(_FIRST, _FIRST):
            return
        # Once the job is the first machine's, the second may come up: nobody waits for it then.
        self._rig.begin_machine(_SECOND)
        if not self._until_committed():
            return
        self._tell("SIGKILL to the first machine; another one takes over")
        self.seen.killed = self._clock.now()
        self._rig.kill_machine(_FIRST)
        self._end_listening()
        self._rig.forget_plain_keys(self._definition)
        self._rig.await_machine(_SECOND)
        if not self._listen_to(_SECOND, _SECOND):
            return
        self._rig.begin_machine(_THIRD)
        lives = self._until_resumed()
        self._heard()
        if self._hopeless(self.seen):
            self.seen.given_up = True
            return
        if lives and not self._hand_over():
            return
        self._until_ended()

    def _hand_over(self) -> bool:
        """SIGTERM, and a third attempt, unless the job ends before; whether there is an end to wait for."""
        if self._look().status.ended:
            return True
        self._tell("SIGTERM to the second machine, as SaladCloud may send it; a third one takes over")
        self.seen.termed = self._clock.now()
        self._rig.tell_machine(_SECOND)
        if not self._until_handed_over():
            return True
        self._rig.await_machine(_THIRD)
        return self._listen_to(_THIRD, _THIRD)

    def _until_committed(self) -> bool:
        """Until there is a checkpoint and the next one is being made; whether the job is there to be interrupted."""
        first: Checkpoint | None = None
        launched = self.seen.attempts[0].launched
        for record in self._looks(self._timeout_s):
            if record.status.ended or record.attempt > _FIRST:
                return False
            if first is None and self.seen.checkpoints:
                first = self.seen.checkpoints[0]
                self._tell(f"first checkpoint: {counted(first.files, 'file')}, {size(first.bytes)}")
            if first is not None and self._next_written(first, launched):
                return True
            if first is None:
                self._look_who_holds()
        if not self.seen.checkpoints:
            but = tuple(root.path for root in self._roots(_FIRST))
            self.seen.elsewhere = folder.written_since(self._rig.workdir(_FIRST), launched, but)
        return first is not None

    def _look_who_holds(self) -> None:
        """Note since when files of the checkpoint are open for writing: as long as they are, none is made by itself."""
        if self._listener is None:
            return
        roots = [root.path.resolve() for root in self._listener.roots]
        now = self._clock.now()
        for one in open_for_writing(roots, [self._listener.pid]) or ():
            if one.append:
                continue  # a log: it does not keep a checkpoint from being made
            shown = self._listener.shown(one.path)
            since = self.seen.held.get(shown, (now, now))
            # Between two looks it may be closed and opened again: only what is always found open is held.
            self.seen.held[shown] = (since[0] if now - since[1] < HELD_GAP_S else now, now)

    def _next_written(self, first: Checkpoint, launched: float) -> bool:
        """Whether the program has written on after its first checkpoint, or has not for long enough."""
        if any(write.ended > first.at for write in self._heard().writes):
            return True
        shortest_s, longest_s = AFTER_COMMIT_S
        return self._clock.now() - first.at > min(longest_s, max(shortest_s, 2 * (first.at - launched)))

    def _until_resumed(self) -> bool:
        """Until the resumed command has made a checkpoint of its own; whether it is there to be stopped."""
        first_s = self.seen.checkpoints[0].at - self.seen.attempts[0].launched
        for record in self._looks(min(self._timeout_s, max(20.0, 4 * first_s))):
            if record.status.ended:
                return False
            if self.seen.commits_of(_SECOND):
                return True
        return True

    def _until_handed_over(self) -> bool:
        limit_s = self._definition.grace_period + 60.0
        for record in self._looks(limit_s):
            # The third machine may have it before anybody looked.
            if record.status is not Status.RUNNING or record.attempt > _SECOND:
                return not record.status.ended
        return False

    def _until_ended(self) -> None:
        self._tell(f"waiting for the end, at most {duration(self._timeout_s)}")
        for record in self._looks(self._timeout_s):
            # Nobody listens to what comes after the third attempt, where the command ends with 75 by itself.
            (self._handshake / f"{record.attempt}.go").touch()
            if record.status.ended:
                break
        if self._record is not None and self._record.status is Status.COMPLETED:
            self.seen.outputs = self._outputs({})

    # -- looking ------------------------------------------------------------------------------------------------------

    def _looks(self, limit_s: float) -> Iterator[JobRecord]:
        """The record again and again, as long as time is left; what belongs to it is noted before."""
        deadline = self._clock.boottime() + limit_s
        while True:
            record = self._look()
            yield record
            if self._clock.boottime() > deadline:
                return
            self._clock.sleep(LOOK_S)

    def _look(self) -> JobRecord:
        kelpie = self._rig.kelpie
        record = self._record = kelpie.get(self._job)
        known = {one.id for one in self.seen.checkpoints}
        if record.num_commits > len(known):
            new = [one for one in kelpie.checkpoints(self._job) if one.id not in known]
            self.seen.checkpoints += sorted(new, key=lambda one: one.at)
        for told in record.attempts:
            if (mine := self.seen.attempt(told.n)) is not None and told.ended:
                mine.ended = _ended(told)
        return record

    def _heard(self) -> Any:
        if self._listener is None:
            raise CannotVerify("nobody listens to the command")
        heard = self.seen.attempts[-1].heard = self._listener.heard()
        return heard

    def _listen_to(self, n: int, machine: int) -> bool:
        """Wait for the command of an attempt, and begin to listen before it does anything; whether it came to that."""
        self._end_listening()
        for record in self._looks(LAUNCH_S):
            told = self._told(n)
            if told is not None:
                break
            if record.status.ended or record.attempt > n:
                return False
        else:
            raise CannotVerify(
                f"the command was not started within {duration(LAUNCH_S)}; the end of the worker's log: "
                + " | ".join(self._rig.log(machine)[-5:])
            )
        roots = roots_of(self._definition.transfers().during, Path(told["cwd"]), Path(told["checkpoint_dir"]))
        self._listener = Listener(roots, Path(told["report"]), int(told["pid"]), self._clock)
        try:
            self._listener.start()
        except OSError as error:
            raise CannotVerify(
                f"the kernel does not tell of what the command reads and writes ({error.strerror}); raise "
                "fs.inotify.max_user_instances and fs.inotify.max_user_watches"
            ) from None
        granted = next((one.started for one in self._rig.kelpie.get(self._job).attempts if one.n == n), 0.0)
        self.seen.attempts.append(AttemptSeen(n, granted or self._clock.now(), self._clock.now()))
        (self._handshake / f"{n}.go").touch()
        return True

    def _told(self, n: int) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            told: dict[str, Any] = json.loads((self._handshake / f"{n}.ready").read_text())
            return told
        return None

    def _end_listening(self) -> None:
        if self._listener is not None:
            self.seen.attempts[-1].heard = self._listener.stop()
            self.seen.attempts[-1].over = self._clock.now()
            self._listener = None

    def _roots(self, machine: int) -> Any:
        return roots_of(self._definition.transfers().during, self._rig.workdir(machine), self._rig.workdir(machine))

    # -- outputs ------------------------------------------------------------------------------------------------------

    def _outputs(self, buckets: dict[str, str]) -> dict[str, str]:
        """Digests of the outputs by ``bucket/key``; under the names that the user knows."""
        plan = self._definition.transfers()
        s3 = self._rig.s3.client()
        found: dict[str, str] = {}
        for one in (*plan.during, *plan.after):
            if one.role != "output":
                continue
            bucket = buckets.get(one.bucket, one.bucket)
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=one.prefix):
                for entry in page.get("Contents", ()):
                    if self._is_checkpoints(one.bucket, one.prefix, entry["Key"]):
                        continue
                    digest = hashlib.sha256()
                    for chunk in s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].iter_chunks(1024 * 1024):
                        digest.update(chunk)
                    found[f"{one.bucket}/{entry['Key']}"] = digest.hexdigest()
        return found

    def _is_checkpoints(self, bucket: str, prefix: str, key: str) -> bool:
        """Whether a key below an output's prefix is of a checkpoint that has its place there."""
        if any(part.endswith(CONTROL_SUFFIX) for part in key.split("/")[:-1]):
            return True
        within = [one.prefix for one in self._definition.transfers().during if one.role == "checkpoint"
                  and one.bucket == bucket and one.prefix.startswith(prefix)]  # fmt: skip
        return any(key.startswith(inner) for inner in within if inner != prefix)


def _ended(told: AttemptRecord) -> Ended:
    tail = (told.model_extra or {}).get("output_tail") or ""
    return Ended(
        told.ended or 0.0, told.outcome or "", told.reason or "", told.message or "", told.exit_code, told.signal,
        tail if isinstance(tail, str) else "\n".join(map(str, tail)),
    )  # fmt: skip
