"""Run-length tokenization (RLT, Choudhury et al., NeurIPS 2024, arXiv 2411.05222), for clips: a tubelet that
differs little from the same place one tubelet before it belongs to a run, of which only the first one is a
token.

The paper's: what is compared (the last frame of a tubelet with the first frame of the one before it, in
pixels), that the rest of a run is dropped before the first block, and that a token knows its run's length.

Ours: the r tubelets that differ least leave, so that every clip loses as many; the paper drops all below a
threshold, a number that differs by clip. The length is the token's size, which attention counts, so that a
run attends and is attended to as its tubelets would; the paper adds a learned embedding of the length.
Pixels are compared as the backbone reads them, normalised. In later blocks further tubelets may leave, by
the same differences. Unmerging copies the token to all places of its run.

B batch, M tokens, n = M - num_prefix of tubelets, t times of h w places each.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.groups import join, positions
from pipeline.merging.partitions import first_patches
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import CHANGE, Assignment, TokenState


@POLICIES.register("rlt")
class RunLengths(MergePolicy):
    """Drops the r tubelets that differ least from the one before them, each into the run of that one."""

    requires = frozenset({"clips", "one_grid", "added_positions"})
    carries = frozenset({CHANGE})
    conserves = False
    at_entry = True

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        grid, change = state.grid, state.carried[CHANGE].values[:, state.num_prefix :]
        most = change.shape[1] - math.prod(grid[1:])
        if r > most:
            raise ConfigError(
                f"rlt: {r} tubelets are to leave, and {max(0, most)} have one before them; give "
                "merging.reduction less, as the first tubelet of each place stays"
            )
        leaving = change.argsort(dim=-1, stable=True)[:, :r]
        own = positions(state)
        leaves = torch.zeros_like(change, dtype=torch.bool).scatter(1, leaving, True)
        tubelet = first_patches(state) if state.merges else own
        receiver = torch.where(leaves, heads_of_runs(tubelet, ~leaves, grid), own)
        merge = join(state, receiver, r)
        # a token stays what it was: those that leave count in its size alone
        weight = F.pad((~leaves).to(state.size.dtype), (state.num_prefix, 0), value=1.0)
        return replace(merge, weight=weight)


def heads_of_runs(tubelet: Tensor, stays: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[B, n] int64: of each token the last one at its place and no later than it that stays, as a position
    among the tokens.

    tubelet [B, n] int64: the number of each token in the grid (t, h, w). stays [B, n] bool: the first token
    of each place does.
    """
    times, places = grid[0], math.prod(grid[1:])
    everywhere = torch.full((tubelet.shape[0], times * places), -1, device=tubelet.device)
    number = torch.arange(tubelet.shape[1], device=tubelet.device).expand_as(tubelet)
    # tokens are in the order of their tubelets, so the last one that stays has the largest number
    there = everywhere.scatter(1, tubelet, number.where(stays, -1))
    there = there.view(tubelet.shape[0], 1, times, places)
    so_far = torch.ones(times, times, dtype=torch.bool, device=tubelet.device).tril()[..., None]
    heads = there.where(so_far, -1).amax(dim=2)
    return heads.flatten(1).gather(1, tubelet)
