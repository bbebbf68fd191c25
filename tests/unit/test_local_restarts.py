from kelpie_celery.clock import ManualClock
from kelpie_celery.local.restarts import FIRST_S, HEALTHY_S, LONGEST_S, Restarts


def test_pauses_double_up_to_the_longest() -> None:
    clock = ManualClock()
    restarts = Restarts(clock)
    pauses = []
    for _ in range(10):
        restarts.started("worker-1")
        pauses.append(restarts.died("worker-1"))
    assert pauses[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert pauses[-1] == LONGEST_S


def test_a_process_that_lived_well_is_started_again_soon() -> None:
    clock = ManualClock()
    restarts = Restarts(clock)
    for _ in range(5):
        restarts.started("beat")
        restarts.died("beat")
    restarts.started("beat")
    clock.advance(HEALTHY_S + 1)
    assert restarts.died("beat") == FIRST_S


def test_a_start_is_due_after_its_pause_and_not_before() -> None:
    clock = ManualClock()
    restarts = Restarts(clock)
    restarts.started("redis")
    assert not restarts.waiting("redis")
    pause_s = restarts.died("redis")
    assert restarts.waiting("redis")
    assert not restarts.due("redis")
    clock.advance(pause_s)
    assert restarts.due("redis")
    restarts.started("redis")
    assert not restarts.waiting("redis")
    assert not restarts.due("redis")


def test_processes_are_counted_apart() -> None:
    restarts = Restarts(ManualClock())
    restarts.died("worker-1")
    assert restarts.died("worker-1") == 2 * FIRST_S
    assert restarts.died("worker-2") == FIRST_S
