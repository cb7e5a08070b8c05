"""Patch averaging: which patches a cell has, for any number of merges and any grid."""

import pytest
import torch
from tiny import merged

from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.grid_average import all_merges, receivers
from pipeline.merging.unmerge import slots
from pipeline.token_state import TokenState

GRIDS = [(4, 4), (3, 5), (7, 5), (1, 9), (9, 1), (2, 2), (1, 1)]


def after(grid, *reductions, prefix=1):
    tokens = torch.randn(2, grid[0] * grid[1] + prefix, 3, dtype=torch.float64)
    state = TokenState.start(tokens, grid, prefix)
    for r in reductions:
        state = merged(POLICIES.build("grid_average"), state, state.tokens, r)
    return tokens[:, prefix:], state


@pytest.mark.parametrize("grid", [(4, 4), (8, 4), (6, 10)])
def test_a_quarter_of_the_patches_is_average_pooling(grid):
    patches = grid[0] * grid[1]
    tokens, state = after(grid, patches // 2, patches // 4)
    pooled = torch.nn.functional.avg_pool2d(tokens.mT.unflatten(-1, grid), 2)
    torch.testing.assert_close(state.patch_tokens, pooled.flatten(2).mT)


@pytest.mark.parametrize("grid", GRIDS)
def test_cells_are_rectangles_after_any_number_of_merges(grid):
    patches = grid[0] * grid[1]
    merges = all_merges(grid)
    assert len(merges) == patches - 1 and len({source for source, _ in merges}) == patches - 1
    cell = list(range(patches))
    for source, into in merges:
        assert source in cell and into in cell
        cell = [into if one == source else one for one in cell]
        members = [divmod(patch, grid[1]) for patch, one in enumerate(cell) if one == into]
        rows, columns = {y for y, _ in members}, {x for _, x in members}
        assert len(members) == len(rows) * len(columns) and min(members) == divmod(into, grid[1])
        assert max(rows) - min(rows) < len(rows) and max(columns) - min(columns) < len(columns)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid[0] * grid[1] > 4])
def test_cells_do_not_depend_on_how_merges_are_shared_out_over_blocks(grid):
    half = grid[0] * grid[1] // 2
    at_once, step_by_step = after(grid, half)[1], after(grid, 1, half - 2, 1)[1]
    assert torch.equal(slots(at_once), slots(step_by_step))


def test_a_few_merges_are_spread_over_the_grid():
    """Four of the eight pairs of a grid of 4 x 4: one in each row."""
    assert sorted(into // 4 for _, into in all_merges((4, 4))[:4]) == [0, 1, 2, 3]


def test_the_same_cells_are_made_once():
    with torch.inference_mode():
        (first,) = receivers((4, 4), 16, 3, torch.device("cpu"))
    assert receivers((4, 4), 16, 3, torch.device("cpu"))[0] is first and not first.is_inference()
