"""Which files go together, and what becomes of a batch in which one fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie_celery.errors import StorageUnavailable
from kelpie_worker.sync.batches import SMALL_BYTES, Done, divided, in_batches

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

    async def together(batch: Sequence[int]) -> int:
        done = Done()
        with done:
            for item in batch:
                if item in failing:
                    raise StorageUnavailable("away", bucket="b")
                together_of.append(item)
                done.count += 1
        return done.count

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
    with pytest.raises(ZeroDivisionError), Done():
        raise ZeroDivisionError
