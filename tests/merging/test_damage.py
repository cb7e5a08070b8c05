"""The plan of a schedule: the cheapest of all paths, by damage that passes through what was measured."""

from itertools import combinations_with_replacement, pairwise

import pytest
import torch

from pipeline.merging.damage import (
    MOST_LEVELS,
    cheapest_path,
    costs_by_block,
    costs_by_rest,
    damage_curve,
    levels_of,
    planned_schedule,
    step_macs,
)

PATCHES, BLOCKS = 12, 3


@pytest.fixture(params=[costs_by_block, costs_by_rest])
def tables(request):
    """Damage that differs by block, and MACs that fall with the patches that are left."""
    weights = torch.rand(BLOCKS, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    curves = [damage_curve([(2, float(w)), (6, float(9 * w))], PATCHES) for w in weights]
    macs = step_macs(lambda block, patches, r: 10 * patches + 30 * (patches - r), BLOCKS, PATCHES)
    return request.param(curves, PATCHES), macs


def paths():
    """Every path of levels, in which a block goes on by at most half of its patches."""
    for path in combinations_with_replacement(range(PATCHES), BLOCKS):
        if all(2 * (later - gone) <= PATCHES - gone for gone, later in pairwise((0, *path))):
            yield path


def total(path, table):
    return sum(float(table[block, i, j]) for block, (i, j) in enumerate(pairwise((0, *path))))


def test_a_curve_passes_through_what_was_measured_and_never_falls():
    singles = [(8, 0.1), (16, 0.5), (32, 0.4)]
    curve = damage_curve(singles, 64)
    assert curve(0) == 0 and curve(8) == pytest.approx(0.1) and curve(16) == pytest.approx(0.5)
    assert curve(32) == pytest.approx(0.5), "a later measurement that is smaller counts as no more damage"
    values = [curve(gone) for gone in range(64)]
    assert all(later >= value for value, later in pairwise(values))
    assert curve(63) > curve(32), "beyond what was measured it goes on"


@pytest.mark.parametrize("singles", [[(4, 0.0), (8, 0.0)], [(4, -1e-9)]])
def test_a_block_that_does_no_damage_has_none_anywhere(singles):
    assert {damage_curve(singles, 16)(gone) for gone in range(16)} == {0.0}


@pytest.mark.parametrize("price", [1e-4, 1e-2, 0.1, 1.0, 1e3])
def test_no_path_is_cheaper_at_the_same_price(tables, price):
    costs, macs = tables
    found = cheapest_path(costs, macs, price)
    least = min(total(path, costs) + price * total(path, macs) for path in paths())
    assert total(found, costs) + price * total(found, macs) == pytest.approx(least)


@pytest.mark.parametrize("goal", [560, 800, 1000, 1200, 1400])
def test_a_plan_meets_its_goal_and_none_with_as_few_macs_does_less_damage(tables, goal):
    costs, macs = tables
    schedule = planned_schedule(costs, macs, goal, PATCHES)
    path = [sum(schedule[: block + 1]) for block in range(BLOCKS)]
    spent = total(path, macs)
    assert spent <= goal
    rivals = [total(other, costs) for other in paths() if total(other, macs) <= spent]
    assert total(path, costs) == pytest.approx(min(rivals))


def test_where_no_plan_meets_the_goal_all_that_can_be_merges(tables):
    schedule = planned_schedule(*tables, 1.0, PATCHES)
    assert schedule == [6, 3, 1]


@pytest.mark.parametrize("patches", [1, 2, 63, 64, 65, 1000, 4096])
def test_levels_are_few_and_leave_a_patch(patches):
    levels = levels_of(patches)
    assert levels[0] == 0 and levels[-1] < patches and len(levels) <= MOST_LEVELS
