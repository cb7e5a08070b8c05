"""Solved schedules: they meet the target, lose to no start, and come near to the best of all."""

from math import log

import pytest
from tiny import ROTARY, VARIANTS, tiny_vit

from pipeline.backbone.macs import counted_vit, reduction_for_macs
from pipeline.backbone.macs_goal import MacsGoal
from pipeline.backbone.rotary import RotaryRule
from pipeline.backbone.solved_schedule import PLANS, SHARES_ALIKE, ScheduleSolver, exchanges
from pipeline.errors import ConfigError
from pipeline.merging.schedule import EARLY, EVEN, mergeable, merged_shares

GRID = (8, 8)
PATCHES, DEPTH = 64, 3
WEIGHTS = {"early is cheap": (1.0, 3.0, 9.0), "late is cheap": (9.0, 3.0, 1.0), "middle": (5.0, 1.0, 5.0)}


def from_left(weights):
    """Damage by how few patches are left behind each block."""

    def measure(schedule):
        total, left = 0.0, PATCHES
        for weight, r in zip(weights, schedule, strict=True):
            total += weight * (log(PATCHES / (left - r)) ** 2 - log(PATCHES / left) ** 2)
            left -= r
        return total

    return measure


def by_tokens(weights):
    """Damage that the plan does not expect: each block's alone, whatever merged before."""
    return lambda schedule: sum(weight * (r / 32) ** 2 for weight, r in zip(weights, schedule, strict=True))


def all_schedules():
    for first in range(mergeable(PATCHES, 0) + 1):
        for second in range(mergeable(PATCHES - first, 0) + 1):
            for third in range(mergeable(PATCHES - first - second, 0) + 1):
                yield [first, second, third]


@pytest.mark.parametrize("variant", [name for name, (policy, _) in VARIANTS.items() if name == policy])
@pytest.mark.parametrize("schedule", [[0, 0, 0], [9, 0, 7], [0, 16, 8]], ids=str)
def test_macs_of_blocks_add_up(variant, schedule):
    known = counted_vit(tiny_vit(variant), GRID)
    own = known.schedule(schedule)
    assert MacsGoal(known, 0.5).macs(own) == known.macs(own).total


def test_macs_of_blocks_add_up_where_attention_stays_as_large():
    rotary = RotaryRule("virtual_unmerging")
    known = counted_vit(tiny_vit("tome", prefix=ROTARY[0], rotary=rotary), GRID)
    assert MacsGoal(known, 0.9).macs([9, 0, 7]) == known.macs([9, 0, 7]).total


@pytest.mark.parametrize("variant", ["tome", "dtem"])
@pytest.mark.parametrize("schedule", [[20, 20, 12], [32, 0, 0], [0, 30, 17]], ids=str)
def test_nothing_can_be_taken_back_from_a_tight_schedule(variant, schedule):
    goal = MacsGoal(counted_vit(tiny_vit(variant), GRID), 0.9)
    found = goal.tight(schedule)
    assert goal.meets(found) and all(own <= r for own, r in zip(found, schedule, strict=True))
    for block, r in enumerate(found):
        fewer = [*found[:block], max(0, r - 1), *found[block + 1 :]]
        assert r == 0 or not goal.meets(fewer)


@pytest.mark.parametrize("damage", [from_left, by_tokens])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("fraction", [0.7])
def test_a_solved_schedule_is_near_the_best_of_all(damage, weights, fraction):
    known, measure = counted_vit(tiny_vit("dtem"), GRID), damage(weights)
    found = ScheduleSolver(known, measure).solve(fraction)
    goal = MacsGoal(known, fraction)
    least = min(measure(schedule) for schedule in all_schedules() if goal.meets(schedule))
    assert found.damage == measure(found.schedule) and found.macs == known.macs(found.schedule).total
    assert goal.meets(found.schedule)
    assert least <= found.damage <= 1.1 * least


@pytest.mark.parametrize("variant", ["random", "dtem"])
@pytest.mark.parametrize("fraction", [0.9, 0.5])
def test_no_start_is_better_and_no_more_is_measured_than_said(variant, fraction):
    """Also where the measure says nothing that a plan could use."""
    known, asked = counted_vit(tiny_vit(variant), GRID), []

    def strange(schedule):
        asked.append(tuple(schedule))
        return hash(tuple(schedule)) % 1000 / 1000

    solver = ScheduleSolver(known, strange)
    most = solver.most_measured(1)
    found = solver.solve(fraction)
    assert found.damage == strange(found.schedule) <= min(damage for _, damage in found.starts.values())
    assert {EVEN} <= found.starts.keys() <= {EVEN, EARLY, *SHARES_ALIKE, *PLANS}
    even = reduction_for_macs(tiny_vit(variant), fraction)
    assert found.starts[EVEN][0] == list(known.schedule(even))
    assert MacsGoal(known, fraction).meets(found.schedule)
    assert len(asked) - 1 <= most and len(set(asked)) == len(asked) - 1, "each is measured once"
    assert ScheduleSolver(known, strange).solve(fraction) == found


def test_single_blocks_are_measured_once_for_all_targets():
    known, told = counted_vit(tiny_vit("tome"), GRID), []
    solver = ScheduleSolver(known, from_left((1.0, 2.0, 4.0)))
    for fraction in (0.9, 0.7):
        solver.solve(fraction, told=lambda: told.append(1))
    assert len(told) <= solver.most_measured(2) < 2 * solver.most_measured(1)


def test_a_target_out_of_reach_and_a_measure_that_is_no_number_are_refused():
    known = counted_vit(tiny_vit("tome"), GRID)
    with pytest.raises(ConfigError, match="cannot be reached: merging all that can be leaves"):
        ScheduleSolver(known, from_left((1.0, 1.0, 1.0))).solve(0.1)
    with pytest.raises(ConfigError, match="nan in place of a divergence"):
        ScheduleSolver(known, lambda schedule: float("nan")).solve(0.8)
    with pytest.raises(ConfigError, match=r"give a fraction in \(0, 1\)"):
        ScheduleSolver(known, from_left((1.0, 1.0, 1.0))).solve(1.5)


@pytest.mark.parametrize("grid", [(6, 6), (12, 10), (16, 16)])
def test_a_schedule_is_fitted_to_another_grid(grid):
    model = tiny_vit("dtem")
    solved = ScheduleSolver(counted_vit(model, GRID), from_left((1.0, 3.0, 9.0))).solve(0.7).schedule
    goal = MacsGoal(counted_vit(model, grid), 0.7)
    found = goal.fitted(merged_shares(solved, PATCHES))
    assert goal.meets(found) and goal.macs(found) > 0.97 * goal.most
    assert all((own > 0) <= (r > 0) for own, r in zip(found, solved, strict=True))


def test_a_schedule_that_cannot_be_fitted_is_refused():
    with pytest.raises(ConfigError, match="by merging in the same blocks alone"):
        MacsGoal(counted_vit(tiny_vit("tome"), GRID), 0.5).fitted([0.0, 0.0, 0.1])


def test_exchanges_go_from_the_dearest_blocks_to_the_cheapest():
    assert list(exchanges([4, 4, 4, 4], [4.0, 3.0, 2.0, 1.0], [9, 9, 9, 9])) == [
        [(0, 3), (1, 2)],
        [(0, 3)],
        [(0, 2)],
        [(1, 3)],
        [(1, 2)],
    ]
    assert list(exchanges([0, 4, 4], [9.0, 1.0, 1.0], [9, 9, 9])) == [], "what merges nothing gives nothing"
    assert list(exchanges([4, 0], [1.0, float("inf")], [9, 9])) == [], (
        "where a merge saves nothing, none goes"
    )
    assert list(exchanges([4, 4, 4], [2.0, 1.0, 0.0], [9, 9, 0])) == [[(0, 1)]], "what is full takes nothing"
