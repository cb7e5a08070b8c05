"""What is kept of a schedule, from tables of seconds: a merge stays where it saves more than it costs."""

import random

import pytest

from pipeline.merging.paying import BlockTimes, paying_schedule, seconds_under

N = 65


def times(per_token: float, merge: float, whole: float | None = None) -> BlockTimes:
    """Blocks whose time is in proportion to their length, and a merge that always costs the same."""
    plain = [(length, per_token * length) for length in (17, 33, N)]
    merged = [(length, seconds + merge) for length, seconds in plain]
    return BlockTimes(plain, merged, per_token * N if whole is None else whole)


@pytest.mark.parametrize("cost", [0.5, 8.5, 16.5, 24.5, 36.5])
def test_a_merge_stays_where_the_later_blocks_save_more_than_it_costs(cost):
    """r tokens less cost r a block less, here; so the merge of block i saves r times the blocks behind it."""
    depth, r = 6, 8
    kept = [r if r * (depth - 1 - i) > cost else 0 for i in range(depth)]
    assert paying_schedule([r] * depth, times(1.0, cost), N) == kept


def test_nothing_merges_where_the_whole_takes_longer_than_no_merging():
    """Attention without sizes may have a faster kernel, in a model that never merges."""
    assert any(paying_schedule([8] * 4, times(1.0, 1.0), N))
    assert paying_schedule([8] * 4, times(1.0, 1.0, whole=30.0), N) == [0] * 4
    assert paying_schedule([0] * 4, times(1.0, 1.0), N) == [0] * 4


@pytest.mark.parametrize("seed", range(20))
def test_it_is_never_slower_than_the_wish_or_no_merging_and_no_merge_less_is_faster(seed):
    draw = random.Random(seed)
    wished = [draw.choice([0, 2, 5, 9]) for _ in range(8)]
    lengths = [draw.randrange(10, N) for _ in range(6)]
    plain = [(length, draw.uniform(0.5, 1.5) * length) for length in lengths]
    merged = [(length, seconds + draw.uniform(0, 40)) for length, seconds in plain]
    found = BlockTimes(plain, merged, draw.uniform(30, 90))
    schedule, seconds = paying_schedule(wished, found, N), seconds_under(found, N)
    assert all(r in (0, own) for r, own in zip(schedule, wished, strict=True))
    assert seconds(schedule) <= min(seconds(wished), seconds([0] * 8))
    if any(schedule):
        fewer = [[*schedule[:i], 0, *schedule[i + 1 :]] for i in range(8)]
        assert all(seconds(schedule) <= seconds(one) for one in fewer)
