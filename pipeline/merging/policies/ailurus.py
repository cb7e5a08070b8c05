"""AiluRus-style (Li et al., NeurIPS 2023, arXiv 2311.01197): tokens are clustered by density peaks, with
their places on the grid. For dense tasks.

A token's density is high where its nearest tokens are near; it is a peak where no denser token is near. The n
- r highest products of both are the centres, and every other token joins the nearest centre. The paper
clusters once, so give r to one block: `reduction=[0, 0, 98]`. Heads that read a grid get it back by
unmerging.

The paper's code is not public. Density peaks are those of TCFormer, with the logarithm of the product, so
that far tokens do not come to 0, and with ties going to the first token, so that nothing is drawn. Ours: the
distance on the grid is added to that of the tokens, times `spatial`; attention weighs tokens by size, as
always here; a block merges at most half of its patches, so a quarter of them is reached in two blocks.
"""

import math

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.apply import replay
from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState, widened

ROUNDING = 32
"""Squares of distances below so many roundings of the tokens' own squares are 0: equal tokens."""


@POLICIES.register("ailurus")
class AiluRus(MergePolicy):
    """Merges tokens into the nearest of those that are peaks of density.

    neighbours: how many nearest tokens, itself among them, make the density. spatial: how much the distance
    on the grid counts, over its diagonal. Raises ConfigError.
    """

    needs = frozenset({"tokens"})
    compares_all = True
    requires = frozenset({"one_grid"})

    def __init__(self, *, neighbours: int = 5, spatial: float = 0.5):
        if neighbours < 1:
            raise ConfigError(f"ailurus: neighbours is {neighbours}; give 1 or more")
        if not 0 <= spatial < math.inf:
            raise ConfigError(f"ailurus: spatial is {spatial}; give 0 or more")
        self.neighbours, self.spatial = neighbours, spatial

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        apart = distances(evidence.tokens[:, state.num_prefix :])
        if self.spatial:
            apart = apart + self.spatial * grid_distances(state).to(apart.dtype)
        score = peaks(apart, densities(apart, self.neighbours))
        centres = score.argsort(dim=-1, descending=True, stable=True)[:, : score.shape[1] - r]
        to_centres = apart.gather(2, centres[:, None].expand(-1, apart.shape[1], -1))
        nearest = centres.gather(1, to_centres.argmin(dim=-1))
        return join(state, nearest.scatter(1, centres, centres), r)


def distances(vectors: Tensor) -> Tensor:
    """[B, n, n]: Euclidean distances of vectors [B, n, F], over the root of F; float32 or wider."""
    centred = widened(vectors)
    centred = centred - centred.mean(dim=1, keepdim=True)
    squares = centred.square().sum(dim=-1)
    both = squares[:, :, None] + squares[:, None]
    apart = both - 2 * (centred @ centred.mT)
    equal = apart <= ROUNDING * torch.finfo(apart.dtype).eps * both
    return (apart.masked_fill(equal, 0) / vectors.shape[-1]).sqrt()


def grid_distances(state: TokenState) -> Tensor:
    """[B or 1, n, n]: distances of the patches on the grid, over its diagonal, from 0 to 1. A token lies at
    the mean of its patches. A step in time is as far as one to a neighbour."""
    sides = [torch.arange(side, device=state.size.device) for side in state.grid]
    where = torch.cartesian_prod(*sides).to(state.size.dtype)[None]
    if state.merges:
        head = where.new_zeros(1, state.num_prefix, len(state.grid))
        every = torch.cat([head, where], dim=1).expand(state.size.shape[0], -1, -1)
        where = replay(every, state.merges)[:, state.num_prefix :]
    diagonal = max(1.0, math.hypot(*[side - 1 for side in state.grid]))
    return torch.cdist(where, where, compute_mode="donot_use_mm_for_euclid_dist") / diagonal


def densities(apart: Tensor, neighbours: int) -> Tensor:
    """[B, n]: the logarithm of each token's density, minus the mean square of its distances [B, n, n] to the
    nearest, itself among them."""
    nearest = apart.topk(min(neighbours, apart.shape[-1]), dim=-1, largest=False).values
    return -nearest.square().mean(dim=-1)


def peaks(apart: Tensor, density: Tensor) -> Tensor:
    """[B, n]: the logarithm of density times the distance to the nearest denser token. The densest token has
    the largest of all distances [B, n, n]; of equal ones the first counts as denser. density [B, n]: its
    logarithm."""
    order = density.argsort(dim=-1, descending=True, stable=True)
    place = order.argsort(dim=-1)
    denser = place[:, None] < place[..., None]
    to_denser = apart.masked_fill(~denser, torch.inf).amin(dim=-1)
    to_denser = to_denser.where(place > 0, apart.flatten(1).amax(dim=1, keepdim=True))
    return density + to_denser.log()
