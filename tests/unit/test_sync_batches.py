"""Which files go together, and what becomes of a batch in which one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.batches import SMALL_BYTES, Done, divided, in_batches
from kelpie_worker.sync.pace import LOOK_S, Pace
from kelpie_worker.sync.threads import in_thread

SIZES = st.lists(st.one_of(st.none(), st.integers(0, 2 * SMALL_BYTES)), max_size=300)


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, streams=st.integers(1, 16))
def test_each_file_is_in_one_batch_and_what_is_not_small_goes_alone_and_first(
    sizes: list[int | None], streams: int
) -> None:
    items = list(enumerate(sizes))
    batches = list(divided(items, lambda item: item[1], streams))
    assert sorted(index for batch in batches for index, _ in batch) == list(range(len(sizes)))
    alone = [size is None or size > SMALL_BYTES for batch in batches for _, size in batch]
    assert alone == sorted(alone, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= 64
        if any(size is None or size > SMALL_BYTES for _, size in batch):
            assert len(batch) == 1
        assert len(batch) == 1 or sum(size or 0 for _, size in batch) <= 4 * SMALL_BYTES


def test_the_last_batches_are_short_so_that_all_streams_end_together() -> None:
    sizes = [len(batch) for batch in divided(range(2000), lambda _: 10, 16)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 40
    assert sizes[-16:] == [1] * 16


@pytest.mark.parametrize("failing", [set[int](), {0}, {5}, {9}, {3, 4}, set(range(10))])
async def test_what_fails_in_a_batch_goes_alone_and_the_rest_together_again(failing: set[int]) -> None:
    together_of, alone_of = list[int](), list[int]()

    async def together(batch: Sequence[int], done: Done) -> None:
        with done:
            for item in batch:
                if item in failing:
                    raise StorageUnavailable("away", bucket="b")
                together_of.append(item)
                done.count += 1

    async def alone(item: int) -> None:
        alone_of.append(item)

    await in_batches([range(10)], together, alone, 4)
    assert sorted(together_of + alone_of) == list(range(10))
    assert failing <= set(alone_of)
    assert len(alone_of) <= len(failing) + 1  # the last one of a batch has nobody to go with


async def test_without_a_way_to_send_batches_each_goes_alone() -> None:
    alone_of = list[int]()

    async def alone(item: int) -> None:
        alone_of.append(item)

    await in_batches([range(3), range(3, 4)], None, alone, 1)
    assert alone_of == [0, 1, 2, 3]


def test_a_batch_hides_no_mistake_of_ours() -> None:
    with pytest.raises(ZeroDivisionError), Done(Pace()):
        raise ZeroDivisionError


STREAMS, BATCHES = 8, 64


async def crowd(work: Callable[[], None]) -> int:
    """How many threads at once came to do some work, at most."""
    at_work = most = 0

    def one(done: Done) -> None:
        with done:
            work()
            done.count = 2

    async def together(_: Sequence[int], done: Done) -> None:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await in_thread(partial(one, done))
        at_work -= 1

    async def alone(_: int) -> None:
        raise AssertionError

    await in_batches([range(2)] * BATCHES, together, alone, STREAMS)
    return most


async def test_threads_that_wait_for_the_network_become_many() -> None:
    assert await crowd(partial(time.sleep, 0.05)) == STREAMS


class Used(Pace):
    """As if the threads used this share of a core together."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    @property
    def used_s(self) -> float:
        return asyncio.get_running_loop().time() * self._share


@pytest.mark.parametrize(("share", "numbers"), [(0.9, [1]), (0.5, [1, 2, 4]), (0.3, [1, 2, 4, 8, 10])])
async def test_there_are_more_threads_as_long_as_they_leave_the_interpreter_time(
    share: float, numbers: list[int]
) -> None:
    over, seen = asyncio.Event(), list[int]()
    asyncio.get_running_loop().call_later(20 * LOOK_S, over.set)
    async for number in Used(share).numbers(10, over):
        seen.append(number)
    assert seen == numbers


def test_the_time_of_threads_at_work_and_of_those_that_ended_counts() -> None:
    pace = Pace()
    with Done(pace):
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        at_work = pace.used_s
    assert 0.01 <= at_work <= pace.used_s


async def test_an_error_ends_all_streams() -> None:
    async def alone(item: int) -> None:
        await asyncio.sleep(0)
        if item == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await in_batches([[item] for item in range(1000)], None, alone, 4)
