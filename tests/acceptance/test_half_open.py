"""Connections to Redis that are dead without a word: noticed, replaced, and nothing is lost or doubled.

Time is scaled: the time-outs are a fifth of production's (``KELPIE_REDIS_TIMEOUT_S`` 1 instead of 5), the lease is a
tenth (3 s instead of 30 s): who is cut off for 18 s here is cut off for three minutes there, six leases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.harness.blackhole import Blackhole
from tests.harness.looking import log_lines
from tests.harness.stack import Stack, StackFactory

TIMEOUT_S, LEASE_S, LEASES = 1.0, 3.0, 6
# kelpie_celery.sockets: 1 + 4 x TIMEOUT_S for the consumer; the rest is for a busy machine.
CONSUMER_BOUND_S = 1 + 4 * TIMEOUT_S + 10.0


@pytest.fixture
def cut_off(make_stack: StackFactory) -> Iterator[Callable[..., tuple[Stack, Blackhole]]]:
    """A stack whose first worker reaches Redis by way of a proxy that can go dark."""
    proxies: list[Blackhole] = []

    def make(workers: int) -> tuple[Stack, Blackhole]:
        fast = {"KELPIE_REDIS_TIMEOUT_S": str(TIMEOUT_S), "KELPIE_MIN_LEASE_S": str(LEASE_S)}
        stack = make_stack(0, slots=1, control=True, beat=False, flower=False, appendfsync="no", start=True, **fast)
        assert stack.local.redis is not None
        proxies.append(Blackhole(stack.local.redis.url).__enter__())
        stack.start_worker(1, KELPIE_REDIS_URL=proxies[0].url)
        for number in range(2, workers + 1):
            # It is not cut off; a busy machine may be slow to answer it.
            stack.start_worker(number, KELPIE_REDIS_TIMEOUT_S="5")
        return stack, proxies[0]

    yield make
    for proxy in proxies:
        proxy.__exit__()


@pytest.mark.timeout(150)
def test_every_half_open_connection_of_a_worker_is_replaced_while_its_job_runs_on(
    cut_off: Callable[..., tuple[Stack, Blackhole]], record_property: Callable[[str, object], None]
) -> None:
    """All connections at once: ledger, consumer, remote control, events, results."""
    stack, proxy = cut_off(1)
    running = stack.submit(stack.shell("sleep 6; echo done"))
    stack.wait_executing(running)
    assert proxy.swallow(new_ones=False) >= 3
    stack.wait_status(running, "completed", timeout_s=60)
    record = stack.get(running)
    assert (record.attempt, record.completions, record.num_interruptions, record.num_failures) == (1, 1, 0, 0)
    began = time.monotonic()
    follower = stack.submit(stack.shell("true"))
    stack.wait_status(follower, "completed", timeout_s=60)
    heard_s = time.monotonic() - began
    record_property("heard_again_s", heard_s)
    print(f"a job that was submitted while the consumer's connection was dead had ended {heard_s:.1f} s later")
    assert heard_s < CONSUMER_BOUND_S
    assert "action=deaf" not in stack.local.worker(1).log.read_text(), "the connections' own bounds were enough"


@pytest.mark.timeout(150)
def test_a_worker_that_is_cut_off_for_six_leases_loses_its_job_once_and_changes_nothing(
    cut_off: Callable[..., tuple[Stack, Blackhole]],
) -> None:
    stack, proxy = cut_off(2)
    # The first worker takes the first job, the other one waits for what is to come.
    stack.local.worker(2).pause()
    job = stack.submit(stack.shell("[ $KELPIE_ATTEMPT -gt 1 ] || sleep 100"))
    stack.wait_executing(job)
    stack.local.worker(2).resume()
    assert stack.worker_of(job) == 1
    proxy.swallow(new_ones=True)
    began = time.monotonic()
    record = stack.wait_status(job, "completed", timeout_s=60)
    assert [(a.machine, a.outcome, a.reason) for a in stack.get(job).attempts] == [
        ("local-machine-1", "interruption", "lease_expired"),
        ("local-machine-2", "completed", "done"),
    ]
    assert (record.completions, record.num_interruptions, record.num_failures) == (1, 1, 0)
    others = [stack.submit(stack.shell("true")) for _ in range(5)]
    for other in others:
        stack.wait_status(other, "completed")
    while time.monotonic() - began < LEASES * LEASE_S:
        assert stack.local.worker(1).running
        time.sleep(0.5)
    proxy.let_new_ones_pass()
    log = stack.local.worker(1).log
    stack.wait("the worker hears that it lost its job", lambda: log_lines(log, "lease_lost", job), timeout_s=45)
    # It is of use again: the other one ends, and it takes what comes.
    stack.kill_worker(2)
    last = stack.submit(stack.shell("true"))
    assert stack.wait_status(last, "completed", timeout_s=60).machine_id == "local-machine-1"
    final = stack.get(job)
    assert (final.status, final.completions, final.attempt) == ("completed", 1, 2)
