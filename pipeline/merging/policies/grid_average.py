"""Patch averaging: neighbours on the grid merge, whatever they show. The control of what a choice by content
is worth.

A coarser grid for any r, by one rule. Patches merge in pairs along the rows, then the pairs along the
columns, to cells of 2 x 2, then these along the rows, and so on. So a quarter of the patches left is average
pooling by 2 x 2, with a border of smaller cells on odd grids. The pairs of a round merge in an order that
spreads any number of them over the whole grid: by the fractional part of their number times the golden
section.
"""

from functools import lru_cache

import torch
from torch import Tensor

from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join
from pipeline.merging.made_once import MadeOnce
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState

GOLDEN = (5**0.5 - 1) / 2

_MADE = MadeOnce()


@POLICIES.register("grid_average")
class GridAverage(MergePolicy):
    """Averages neighbouring patches, the same ones in all images."""

    requires = frozenset({"one_grid"})
    control = True

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        num = state.num_active - state.num_prefix
        (receiver,) = receivers(*state.grid, num, r, state.size.device)
        return join(state, receiver.expand(state.size.shape[0], -1), r)


@torch.compiler.assume_constant_result
def receivers(height: int, width: int, num: int, r: int, device: torch.device) -> tuple[Tensor, ...]:
    """[1, num] int64: whom each of the `num` cells joins, which a grid has by then, where r of them go. Cells
    are in the order of their first patches."""

    def make() -> tuple[Tensor, ...]:
        return (torch.tensor([joined(height, width, num, r)], device=device).view(1, num),)

    return _MADE.get((height, width, num, r, device), make)


def joined(height: int, width: int, num: int, r: int) -> list[int]:
    """For each of the `num` cells the place of the one that it joins, or its own."""
    merges = all_merges(height, width)
    past = height * width - num
    assert 0 <= past and past + r <= len(merges), f"{num} cells of {height} x {width} patches cannot lose {r}"
    gone = {source for source, _ in merges[:past]}
    cells = [patch for patch in range(height * width) if patch not in gone]
    goes_to = dict(merges[past : past + r])
    place = {patch: index for index, patch in enumerate(cells)}

    def end(patch: int) -> int:
        while patch in goes_to:
            patch = goes_to[patch]
        return patch

    return [place[end(patch)] for patch in cells]


@lru_cache(maxsize=64)
def all_merges(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """All merges of a grid, from single patches to one cell, in order: the first patch of the cell that goes,
    and that of the cell which it joins."""
    merges: list[tuple[int, int]] = []
    tall, wide = 1, 1
    while tall < height or wide < width:
        along_rows = wide < width and (wide <= tall or tall >= height)
        down, right = (0, wide) if along_rows else (tall, 0)
        tall, wide = (tall, 2 * wide) if along_rows else (2 * tall, wide)
        pairs = [
            ((y + down) * width + x + right, y * width + x)
            for y in range(0, height, tall)
            for x in range(0, width, wide)
            if y + down < height and x + right < width
        ]
        merges += [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: i * GOLDEN % 1)]
    return tuple(merges)
