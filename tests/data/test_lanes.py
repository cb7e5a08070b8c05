"""Laws of lanes: how positions are dealt to lanes, and the positions of a step to ranks."""

import pytest

from pipeline.data.lanes import MOST_LANES, SAMPLES_OF_LANE, Lanes, Share, lanes_of


def parts(size: int, ranks: int, start: int = 0) -> list[Share]:
    cuts = [size * rank // ranks for rank in range(ranks + 1)]
    return [Share(start, size, range(low, high)) for low, high in zip(cuts, cuts[1:], strict=False)]


def lane_of(lanes: Lanes, position: int) -> int:
    return int(lanes.order[position % lanes.num_samples % lanes.num])


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("num_samples", [12, 13, 31])
def test_lanes_are_equal_but_for_a_sample_and_hold_the_whole_line(num, num_samples):
    lanes = Lanes(num_samples, num)
    sizes = [stop - start for start, stop in zip(lanes.starts, lanes.starts[1:], strict=False)]
    assert sum(sizes) == num_samples and max(sizes) - min(sizes) <= 1
    dealt = [lane_of(lanes, position) for position in range(num_samples)]
    assert [dealt.count(lane) for lane in range(num)] == sizes


@pytest.mark.parametrize("num", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("size", [1, 2, 5, 12, 31, 70])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 9])
def test_ranks_share_out_a_step_by_lane_whatever_their_number(num, size, ranks):
    """Also over the end of an epoch of 31 samples."""
    lanes = Lanes(31, num)
    for start in (0, 1, 29, 31 * 4 + 17):
        (whole,) = (lanes.positions(share) for share in parts(size, 1, start))
        assert sorted(whole) == list(range(start, start + size))
        where = [(lane_of(lanes, position), position) for position in whole]
        assert where == sorted(where)
        shares = [lanes.positions(share) for share in parts(size, ranks, start) if share.part]
        assert sum(shares, []) == whole


@pytest.mark.parametrize("num", [1, 3, 7])
def test_what_follows_is_the_next_of_the_lane_also_in_the_next_epoch(num):
    lanes = Lanes(31, num)
    for lane in range(num):
        own = [position for position in range(3 * 31) if lane_of(lanes, position) == lane]
        assert [lanes.following(position) for position in own[:-1]] == own[1:]


@pytest.mark.parametrize("ranks", [3, 7, 8, 24, 64, 100])
@pytest.mark.parametrize("num", [64, 360, 1000, 4096])
def test_a_rank_keeps_to_its_own_lanes_where_no_number_divides_another(num, ranks):
    lanes = Lanes(10_000_019, num)
    size = 32 * ranks
    for rank in (0, ranks // 2, ranks - 1):
        share = parts(size, ranks)[rank]
        steps = [lanes.positions(share.later(step)) for step in range(max(20, 3 * num // size))]
        own = {lane_of(lanes, position) for step in steps for position in step}
        assert len(own) <= lanes.of_reader(ranks)
        assert max(own) - min(own) < len(own) + lanes.of_reader(ranks) // 4 + 2, "neighbours on the line"


def test_lanes_grow_with_the_samples_of_a_step_and_keep_a_shard_each():
    assert [lanes_of(count, 1024) for count in (1, 31, 32, 1_281, 100_000)] == [1, 1, 16, 16, 16]
    assert [lanes_of(10_000, step) for step in (1, 127, 128, 1 << 14, 1 << 20)] == [1, 1, 2, 256, MOST_LANES]
    for count in range(32, 20_000, 997):
        for step in (1, 100, 1_000, 54_321, 10**7):
            lanes = lanes_of(count, step)
            assert lanes & (lanes - 1) == 0 and lanes <= min(count, max(1, step // SAMPLES_OF_LANE))


@pytest.mark.parametrize("step", [1 << power for power in range(8, 21, 3)])
def test_the_lanes_of_a_step_are_four_or_more_a_machine(step):
    """Of eight ranks with batches of 32 to 128 samples. More lanes than that keep more shards open."""
    for batch in (32, 64, 128):
        machines = max(1, step // (8 * batch))
        assert 4 * machines <= lanes_of(100_000, step) <= 16 * machines or step >= 64 * MOST_LANES
