"""Patch averaging: neighbours on the grid merge, whatever they show. The control of what a choice by content
is worth.

A coarser grid for any r, by one rule. Patches merge in pairs along the rows, then the pairs along the
columns, to cells of 2 x 2 (of a clip then in time, to cells of 2 x 2 x 2), then these along the rows, and so
on. So a quarter of the patches left is average pooling by 2 x 2, with a border of smaller cells on odd grids.
The pairs of a round merge in an order that spreads any number of them over the whole grid: by the fractional
part of their number times the golden section.
"""

import math
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join
from pipeline.merging.made_once import MadeOnce
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, Grid, TokenState

GOLDEN = (5**0.5 - 1) / 2

_MADE = MadeOnce()


@POLICIES.register("grid_average")
class GridAverage(MergePolicy):
    """Averages neighbouring patches, the same ones in all images."""

    requires = frozenset({"one_grid"})
    control = True

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        num = state.num_active - state.num_prefix
        (receiver,) = receivers(state.grid, num, r, state.size.device)
        return join(state, receiver.expand(state.size.shape[0], -1), r)


@torch.compiler.assume_constant_result
def receivers(grid: Grid, num: int, r: int, device: torch.device) -> tuple[Tensor, ...]:
    """[1, num] int64: whom each of the `num` cells joins, which a grid has by then, where r of them go. Cells
    are in the order of their first patches."""

    def make() -> tuple[Tensor, ...]:
        return (torch.tensor([joined(grid, num, r)], device=device).view(1, num),)

    return _MADE.get((grid, num, r, device), make)


def joined(grid: Grid, num: int, r: int) -> list[int]:
    """For each of the `num` cells the place of the one that it joins, or its own."""
    merges, patches = all_merges(grid), math.prod(grid)
    past = patches - num
    assert 0 <= past and past + r <= len(merges), f"{num} cells of a grid {grid} cannot lose {r}"
    gone = {source for source, _ in merges[:past]}
    cells = [patch for patch in range(patches) if patch not in gone]
    goes_to = dict(merges[past : past + r])
    place = {patch: index for index, patch in enumerate(cells)}

    def end(patch: int) -> int:
        while patch in goes_to:
            patch = goes_to[patch]
        return patch

    return [place[end(patch)] for patch in cells]


@lru_cache(maxsize=64)
def all_merges(grid: Grid) -> tuple[tuple[int, int], ...]:
    """All merges of a grid, from single patches to one cell, in order: the first patch of the cell that goes,
    and that of the cell which it joins. Cells double along their shortest side, of equal ones the last."""
    merges: list[tuple[int, int]] = []
    steps = [math.prod(grid[dim + 1 :]) for dim in range(len(grid))]
    cell = [1] * len(grid)
    while any(own < side for own, side in zip(cell, grid, strict=True)):
        growing = (dim for dim in reversed(range(len(grid))) if cell[dim] < grid[dim])
        along = min(growing, key=lambda dim: cell[dim])
        apart, last = cell[along] * steps[along], grid[along] - cell[along]
        cell[along] *= 2
        corners = product(*(range(0, side, own) for side, own in zip(grid, cell, strict=True)))
        firsts = [
            sum(place * step for place, step in zip(corner, steps, strict=True))
            for corner in corners
            if corner[along] < last
        ]
        pairs = [(first + apart, first) for first in firsts]
        merges += [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: i * GOLDEN % 1)]
    return tuple(merges)
