"""ALGM (Norouzi et al., CVPR 2024, arXiv 2406.09936): first neighbours merge, within windows of 2 x 2
patches, then any tokens. For dense tasks.

The first block that merges takes the windows whose patches are most alike, by the mean cosine of their pairs,
and merges each into its first patch. Later blocks match tokens as ToMe does.

The paper merges what is above a threshold, a number that differs by image. Ours: r tokens merge in each
image, so that the last window may merge in part; windows at the odd edge of a grid are smaller; those of a
clip are of one time; tokens are compared as the block's attention reads them.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join, positions
from pipeline.merging.matching import match_by
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, Grid, TokenState, widened


@POLICIES.register("algm")
class LocalThenGlobal(MergePolicy):
    """Merges windows of 2 x 2 patches in the first block that merges, and the most similar tokens after
    it."""

    needs = frozenset({"tokens"})
    requires = frozenset({"one_grid"})

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        return super().macs(num_tokens, num_prefix, r, widths, merged=merged) if merged else 0

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        if state.merges:
            return match_by(evidence.tokens, state, r)
        window, first = windows(state.grid, state.size.device)
        own = positions(state)
        alike = window_likeness(evidence.tokens[:, state.num_prefix :], state.grid)
        score = alike.gather(1, window.expand_as(own))
        score = score.masked_fill(own == first, -torch.inf)
        leaving = score.argsort(dim=-1, descending=True, stable=True)[:, :r]
        return join(state, own.scatter(1, leaving, first.expand_as(own).gather(1, leaving)), r)


def windows(grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """[1, n] int64 for each patch of a grid, (h, w) or (t, h, w): its window, and the first patch of that."""
    *times, height, width = grid
    down, across = -(-height // 2), -(-width // 2)
    time = torch.arange(math.prod(times), device=device)[:, None, None]
    y = torch.arange(height, device=device)[:, None] // 2
    x = torch.arange(width, device=device) // 2
    window, first = (time * down + y) * across + x, (time * height + 2 * y) * width + 2 * x
    return window.view(1, -1), first.view(1, -1)


def window_likeness(vectors: Tensor, grid: Grid) -> Tensor:
    """[B, W]: the mean cosine of all pairs of patches in each window, row by row, time by time; 0 in a window
    of one patch. vectors [B, n, F] of the grid's patches."""
    times = math.prod(grid[:-2])
    unit = F.normalize(widened(vectors), dim=-1)
    unit = unit.reshape(unit.shape[0] * times, grid[-2] * grid[-1], unit.shape[-1])
    planes = unit.mT.unflatten(-1, grid[-2:])
    total = _window_sums(planes).square().sum(dim=1)
    alone = _window_sums(planes.square().sum(dim=1, keepdim=True))[:, 0]
    count = _window_sums(torch.ones_like(planes[:1, :1]))[:, 0]
    found = ((total - alone) / (count * (count - 1)).clamp(min=1)).flatten(1)
    return found.reshape(vectors.shape[0], times * found.shape[1])


def _window_sums(planes: Tensor) -> Tensor:
    """[B, F, ceil(h / 2), ceil(w / 2)]: sums over windows of planes [B, F, h, w]."""
    return F.avg_pool2d(planes, 2, ceil_mode=True, divisor_override=1)
