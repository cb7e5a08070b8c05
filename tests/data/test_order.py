"""Laws of the sample order."""

import pytest

from pipeline.data.order import SampleOrder

COUNTS = [7, 1, 12, 5, 3]


def epoch(order: SampleOrder, number: int) -> list[tuple[int, int]]:
    positions = range(number * order.num_samples, (number + 1) * order.num_samples)
    return [(order[position].shard, order[position].sample) for position in positions]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_sample_comes_exactly_once_an_epoch(seed, width):
    order = SampleOrder(COUNTS, seed, width)
    everything = [(shard, sample) for shard, count in enumerate(COUNTS) for sample in range(count)]
    for number in (0, 1, 5):
        assert sorted(epoch(order, number)) == everything
        assert {order[number * 28 + i].epoch for i in range(28)} == {number}


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    order = SampleOrder(COUNTS, 3, 2)
    later = [order[position] for position in (200, 3, 90, 27, 28, 0)]
    assert later == [SampleOrder(COUNTS, 3, 2)[position] for position in (200, 3, 90, 27, 28, 0)]
    assert (
        len({tuple(epoch(SampleOrder(COUNTS, seed, 2), number)) for seed in (3, 4) for number in (0, 1)}) == 4
    )


def test_without_a_seed_samples_come_as_they_lie():
    assert epoch(SampleOrder(COUNTS, None, 2), 1) == [
        (shard, sample) for shard, count in enumerate(COUNTS) for sample in range(count)
    ]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_window_of_shards_is_open_at_a_time(width):
    order = SampleOrder(COUNTS, 0, width)
    seen: list[int] = []
    for shard, _ in epoch(order, 0):
        if shard not in seen:
            seen.append(shard)
    left = [shard for shard, _ in epoch(order, 0)]
    for first in range(0, len(seen), width):
        window = seen[first : first + width]
        size = sum(COUNTS[shard] for shard in window)
        assert set(left[:size]) == set(window)
        left = left[size:]


def test_upcoming_names_the_window_of_the_position_and_the_next_one_also_over_the_end_of_an_epoch():
    order = SampleOrder(COUNTS, 0, 2)
    for position in range(1, 3 * 28):
        assert order[position].shard in order.upcoming(position)
        assert order[position].shard in order.upcoming(position - 1)
        assert len(order.upcoming(position)) <= 2 * 2


def test_a_large_set_is_entered_anywhere_at_once():
    order = SampleOrder([10_000] * 1_000, 0, 8)
    assert order[123_456_789_012].epoch == 12345
