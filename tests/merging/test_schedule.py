"""From what a user writes to the tokens each block removes."""

import pytest

from pipeline.errors import ConfigError
from pipeline.merging.schedule import (
    check_schedule,
    mergeable,
    reduction_for_merged,
    resolve_schedule,
    tokens_per_block,
)


@pytest.mark.parametrize(
    ("spec", "schedule"),
    [
        (0, (0,) * 12),
        (8, (8,) * 12),
        ([5, 0, 3], (5, 0, 3) + (0,) * 9),
        ((8, 0), (8,) * 12),
        ((8, -1), (16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0)),
        ((8, 1), (0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16)),
        (1.0, (0,) * 12),
    ],
)
def test_each_form_of_a_reduction(spec, schedule):
    assert resolve_schedule(spec, 12, 197, 1) == schedule


def test_r_16_leaves_11_of_197_tokens():
    schedule = resolve_schedule(16, 12, 197, 1)
    assert tokens_per_block(schedule, 197) == (181, 165, 149, 133, 117, 101, 85, 69, 53, 37, 21, 11)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("patches", [64, 196, 1024])
def test_a_keep_rate_keeps_its_share_in_every_block(rate, patches):
    schedule = resolve_schedule(rate, 4, patches + 1, 1)
    left = [patches, *(count - 1 for count in tokens_per_block(schedule, patches + 1))]
    for before, after in zip(left, left[1:], strict=False):
        assert abs(after - rate * before) <= 0.5


@pytest.mark.parametrize("num_prefix", [0, 1, 5])
def test_no_block_removes_more_than_half_of_its_patches(num_prefix):
    schedule = resolve_schedule(1000, 8, 65 + num_prefix, num_prefix)
    left = [65 + num_prefix, *tokens_per_block(schedule, 65 + num_prefix)]
    assert schedule == tuple(mergeable(count, num_prefix) for count in left[:-1])
    assert left[-1] == num_prefix + 1


@pytest.mark.parametrize(
    "spec",
    [True, "8", None, -1, [8] * 13, [8, -1], [1.5], [True], (8, 2), (8.5, 0), 0.0, 1.5, -0.5, {"r": 8}]
    + [(float("nan"), 0), (float("inf"), 0), (8, "x"), (8, None)],
    ids=repr,
)
def test_what_is_not_a_reduction_is_refused(spec):
    with pytest.raises(ConfigError):
        resolve_schedule(spec, 12, 197, 1)


def test_more_than_the_input_has_is_refused_with_the_largest_that_fits():
    check_schedule(16, 12, 197, 1)
    with pytest.raises(
        ConfigError, match="removes 204 tokens over 12 blocks, but the input has 196 patches; .* 16 per block"
    ):
        check_schedule(17, 12, 197, 1)


@pytest.mark.parametrize("depth", [3, 6, 12])
@pytest.mark.parametrize("grid", [(14, 14), (9, 13), (32, 64), (5, 1)], ids=str)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7])
def test_a_share_of_the_patches_is_merged_exactly_and_evenly(depth, grid, share):
    patches = grid[0] * grid[1]
    schedule = reduction_for_merged(depth, share, grid)
    left = tokens_per_block(schedule, patches)
    assert left[-1] == round((1 - share) * patches)
    assert resolve_schedule(schedule, depth, patches + 1, 1) == tuple(schedule)  # nothing is capped
    rate = (1 - share) ** (1 / depth)
    assert all(abs(after - before * rate) <= 1 for before, after in zip((patches, *left), left, strict=False))


@pytest.mark.parametrize(("within", "merging"), [(0.5, 6), (0.25, 3), (0.01, 1), (1, 12)])
def test_a_share_may_be_merged_early(within, merging):
    schedule = reduction_for_merged(12, 0.4, (15, 20), within=within)
    assert sum(schedule) == 120 and all(schedule[:merging]) and not any(schedule[merging:])
    with pytest.raises(ConfigError, match="give a number in"):
        reduction_for_merged(12, 0.4, (15, 20), within=0.0)


@pytest.mark.parametrize("share", [0, 1, 1.5, 0.9])
def test_a_share_that_cannot_be_merged_is_refused(share):
    with pytest.raises(ConfigError, match="give a number|at most 88% can"):
        reduction_for_merged(3, share, (8, 8))
