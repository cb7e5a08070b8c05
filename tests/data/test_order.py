"""Laws of the sample order."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from pipeline.data.lanes import Share
from pipeline.data.look_ahead import LookAhead
from pipeline.data.order import SampleOrder

COUNTS = [7, 1, 12, 5, 3]
OF_OLD = [  # epoch 1 of seed 3 and windows of two shards, as commit 04c7aeb had it
    *[(0, 2), (1, 0), (0, 0), (0, 1), (0, 3), (0, 4), (0, 6), (0, 5), (2, 9), (4, 1), (4, 2), (2, 10)],
    *[(2, 11), (2, 8), (2, 1), (2, 2), (2, 4), (2, 3), (2, 0), (2, 7), (2, 6), (4, 0), (2, 5), (3, 3)],
    *[(3, 4), (3, 1), (3, 2), (3, 0)],
]


def epoch(order: SampleOrder, number: int) -> list[tuple[int, int]]:
    positions = range(number * order.num_samples, (number + 1) * order.num_samples)
    return [(order[position].shard, order[position].sample) for position in positions]


def by_lane(order: SampleOrder, number: int) -> list[list[tuple[int, int]]]:
    """The samples of an epoch, lane by lane along the line."""
    found: list[list[tuple[int, int]]] = [[] for _ in range(order.lanes.num)]
    for offset, sample in enumerate(epoch(order, number)):
        found[order.lanes.order[offset % order.lanes.num]].append(sample)
    return found


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_every_sample_comes_exactly_once_an_epoch(seed, width, lanes):
    order = SampleOrder(COUNTS, seed, width, lanes)
    everything = [(shard, sample) for shard, count in enumerate(COUNTS) for sample in range(count)]
    for number in (0, 1, 5):
        assert sorted(epoch(order, number)) == everything
        assert {order[number * 28 + i].epoch for i in range(28)} == {number}


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_order_is_a_pure_function_of_seed_and_epoch(lanes):
    def orders(seed: int) -> SampleOrder:
        return SampleOrder(COUNTS, seed, 2, lanes)

    order = orders(3)
    later = [order[position] for position in (200, 3, 90, 27, 28, 0)]
    assert later == [orders(3)[position] for position in (200, 3, 90, 27, 28, 0)]
    assert len({tuple(epoch(orders(seed), number)) for seed in (3, 4) for number in (0, 1)}) == 4


def test_one_lane_is_the_order_that_there_was_before_lanes():
    assert epoch(SampleOrder(COUNTS, 3, 2), 1) == OF_OLD


def test_without_a_seed_samples_come_as_they_lie():
    assert epoch(SampleOrder(COUNTS, None, 2), 1) == [
        (shard, sample) for shard, count in enumerate(COUNTS) for sample in range(count)
    ]


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [1, 2, 3, 6])
def test_each_lane_has_a_window_of_shards_open_at_a_time(shuffle, lanes):
    order = SampleOrder(COUNTS, 0, shuffle, lanes)
    assert order.width == max(1, -(-shuffle // lanes))
    for samples in by_lane(order, 0):
        seen = list(dict.fromkeys(shard for shard, _ in samples))
        changes = sum(one[0] != other[0] for one, other in pairwise(samples))
        assert order.width > 1 or changes == len(seen) - 1
        left = [shard for shard, _ in samples]
        for first in range(0, len(seen), order.width):
            window = set(seen[first : first + order.width])
            size = sum(shard in window for shard, _ in samples)
            assert set(left[:size]) == window
            left = left[size:]


@pytest.mark.parametrize("lanes", [2, 3, 5, 8])
def test_two_lanes_that_share_a_shard_read_it_at_the_same_time(lanes):
    """So it is fetched once. Each lane has three shards or more."""
    order = SampleOrder([10] * 29, 0, 1, lanes)
    open_lanes: dict[int, list[tuple[int, int]]] = {}
    for lane, samples in enumerate(by_lane(order, 2)):
        shards = [shard for shard, _ in samples]
        for shard in set(shards):
            open_lanes.setdefault(shard, []).append((lane, shards.index(shard)))
    assert all(len(found) <= 2 for found in open_lanes.values())
    shared = [found for found in open_lanes.values() if len(found) == 2]
    assert len(shared) == lanes - 1, "29 shards have no common cut with these lanes"
    for (lane, begins), (other, also) in shared:
        assert abs(lane - other) == 1 and (begins == also == 0 or min(begins, also) > 10)


@pytest.mark.parametrize("lanes", [1, 3, 5])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("samples", [0, 6, 40])
def test_what_is_read_was_named_so_many_samples_before(samples, every, lanes):
    """By a process that reads every `every`-th share of a rank, over the ends of epochs."""
    counts = COUNTS * 3
    order = SampleOrder(counts, 0, 2, lanes)
    look_ahead = LookAhead(order, samples, wraps=True)
    shares = [Share(0, 8, range(2, 6)).later(number) for number in range(60)]
    needed = [set(order.shards(order.lanes.positions(share))) for share in shares]
    before = -(-samples // 4)
    for _ in range(2):  # it may start anew
        sight: set[int] = set()
        looked = -1
        for number in range(0, 60 - before, every):
            ahead = set().union(*needed[number : number + before + 1])
            shards = look_ahead(shares[number])
            still = set().union(*needed[number : looked + 1]) & sight
            assert len(set(shards)) == len(shards) and set(shards) == ahead - still
            sight, looked = ahead, number + before
            assert set(look_ahead.in_sight()) == sight and len(look_ahead.in_sight()) == len(sight)


def test_shards_are_named_in_the_order_of_need():
    order = SampleOrder([2] * 40, 0, 1, 1)
    shares = [Share(0, 4, range(4)).later(number) for number in range(5)]
    wanted = [order[position].shard for share in shares for position in order.lanes.positions(share)]
    look_ahead = LookAhead(order, 16, wraps=True)
    assert look_ahead(shares[0]) == look_ahead.in_sight() == list(dict.fromkeys(wanted))
    for number in range(1, 40):  # over the end of the epoch, where shards come into sight again
        look_ahead(shares[0].later(number))
        ahead = [shares[0].later(number + steps) for steps in range(5)]
        wanted = [order[position].shard for share in ahead for position in order.lanes.positions(share)]
        assert sorted(look_ahead.in_sight(), key=wanted.index) == look_ahead.in_sight()


def test_looking_ahead_ends_where_the_order_does():
    look_ahead = LookAhead(SampleOrder(COUNTS, None, 1), 100, wraps=False)
    assert look_ahead(Share(16, 8, range(0, 4))) == [2, 3, 4]


def test_a_large_set_is_entered_anywhere_and_its_plan_is_small():
    counts = np.full(100_000, 1_000)
    tracemalloc.start()
    order = SampleOrder(counts, 0, 8, 4096)
    assert order[123_456_789_012].epoch == 1234
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000 * 64, "bytes of columns, not of objects"
