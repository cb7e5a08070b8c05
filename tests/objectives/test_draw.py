"""The draw of merge_cost."""

from collections import Counter

import pytest

from pipeline.objectives.draw import drawn_blocks

MANY = [i / 1000 for i in range(1000)]


@pytest.mark.parametrize(
    ("schedule", "read", "prefix_alone", "merging", "priced"),
    [
        ((2, 2, 2, 2), 4, False, [0, 1, 2, 3], 4),
        ((2, 2, 2, 2), 4, True, [0, 1, 2], 3),
        ((2, 2, 2, 2), 2, False, [0, 1], 2),
        ((2, 0, 2, 0), 4, False, [0, 2], 4),
        ((2, 0, 2, 0), 4, True, [0, 2], 3),
        ((0, 0, 0, 2), 4, True, [0, 1, 2], 3),
        ((0, 0, 0, 0), 4, False, [0, 1, 2, 3], 4),
        ((3,), 1, True, [0], 1),
    ],
)
def test_blocks_that_merge_and_have_a_price_are_drawn_evenly_and_what_is_behind_them_is_priced(
    schedule, read, prefix_alone, merging, priced
):
    drawn = [drawn_blocks(schedule, draw, read=read, prefix_alone=prefix_alone) for draw in MANY]
    times = Counter(blocks[0] for blocks in drawn)
    assert sorted(times) == merging and max(times.values()) - min(times.values()) <= 1
    assert all(blocks == range(blocks[0], priced) for blocks in drawn)
