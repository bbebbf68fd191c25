"""What ``kelpie doctor`` says of control worker, beat and workers that live."""

from __future__ import annotations

from kelpie_celery.clock import SystemClock
from kelpie_celery.doctor.helper_checks import check_helpers
from kelpie_celery.findings import Level
from kelpie_celery.settings import load_settings
from tests.harness.stack import StackFactory
from tests.harness.waiting import eventually


def test_control_worker_beat_and_workers_that_live_are_seen(make_stack: StackFactory) -> None:
    stack = make_stack(workers=1)
    settings = load_settings(stack.env())

    def look() -> bool:
        found = check_helpers(settings, stack.group, SystemClock())
        assert [(one.check, one.level) for one in found] == [
            ("control worker", Level.OK),
            ("beat", Level.OK),
            ("workers", Level.OK),
        ], found
        return True

    # Beat takes its lock a moment after it was started.
    eventually("all of them are seen", look, 60.0, stack.dump)
