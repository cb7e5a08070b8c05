"""GTP-ViT (Xu et al., WACV 2024): the least important patches are pruned, and each is first propagated to its
neighbours in a graph of the image's patches.

Where ours differs: patches that stay keep their order (the authors sort them by importance), attention is
never thinned, and a semantic neighbour is one of the `neighbours` most similar patches, also where several
are equally similar. B batch, N patches at the input, M tokens, K slots.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.merging.pruning import divide, least_first, likeness, slots_of
from pipeline.merging.rows import take_rows, without_autocast
from pipeline.token_state import Assignment, Carried, Grid, TokenState, widened

GRAPH = "gtp.graph"
GRAPHS = ("spatial", "semantic", "mixed")
TIE = 1e-4
"""What likeness adds to the weight of an edge, when unmerging looks for the neighbour of a pruned patch: it
decides among equal edges, and where there is none."""


@POLICIES.register("gtp")
class GTP(MergePolicy):
    """Prunes the r patches with the least attention to themselves times attention received, each the largest
    of the heads, after alpha times each was added to its neighbours that stay.

    graph: which patches are neighbours: `spatial` (the eight around one, of a clip the 26), `semantic` (the
    `neighbours` whose embeddings are most similar) or `mixed` (both). Raises ConfigError.
    """

    needs = frozenset({"received", "own_attention", "keys"})
    requires = frozenset({"one_grid", "added_positions"})
    conserves = False
    conserves_size = False
    takes_means = False
    carries = frozenset({GRAPH})

    def __init__(self, *, graph: str = "mixed", alpha: float = 0.1, neighbours: int = 8):
        if graph not in GRAPHS:
            raise ConfigError(f"gtp: graph is '{graph}'; give one of {', '.join(GRAPHS)}")
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"gtp: alpha is {alpha}; give a number of 0 or more")
        if neighbours < 1:
            raise ConfigError(f"gtp: neighbours is {neighbours}; give a whole number above 0")
        self.graph, self.alpha, self.neighbours = graph, alpha, neighbours

    @torch.no_grad()
    def start(self, state: TokenState) -> TokenState:
        device, prefix = state.tokens.device, state.num_prefix
        near = torch.zeros((), dtype=torch.bool, device=device)
        if self.graph != "semantic":
            near = near | spatial_neighbours(state.grid, device)
        if self.graph != "spatial":
            with without_autocast(device.type):
                near = near | semantic_neighbours(state.patch_tokens, self.neighbours)
        weights = F.pad(normalised(near, state.size.dtype), (prefix, 0, prefix, 0))
        graph = Carried(weights.expand(state.tokens.shape[0], -1, -1), "pairwise")
        return replace(state, carried={**state.carried, GRAPH: graph})

    def start_macs(self, patches: int, width: int) -> int:
        """Those of the similarities of all patches."""
        return 0 if self.graph == "spatial" else patches * patches * width

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        """Those of adding pruned tokens and sizes to others, and of finding what pruned ones are like."""
        kept = num_tokens - r
        return r * (kept * (widths["tokens"] + 1) + (kept - num_prefix) * widths["keys"])

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        prefix, num_tokens = state.num_prefix, state.num_active
        importance = evidence.own_attention.amax(dim=1) * evidence.received.amax(dim=1)
        keep, source = divide(state, least_first(state, importance[:, prefix:]), r)
        column = (source % num_tokens)[:, None].expand(-1, keep.shape[1], -1)
        weights = take_rows(state.carried[GRAPH].values, keep).gather(2, column)
        scores = weights[:, prefix:].mT + TIE * likeness(state, evidence.keys, keep, source)
        slot = slots_of(state, keep, scores)
        return Assignment(keep, source, slot, num_tokens, keep.shape[1], spread=self.alpha * weights)


def spatial_neighbours(grid: Grid, device: torch.device) -> Tensor:
    """[1, N, N] bool: whether two patches of a grid, (h, w) or (t, h, w), touch, also at a corner."""
    every = torch.arange(math.prod(grid), device=device)
    near, rest = every[:, None] != every, every
    for side in reversed(grid):
        place, rest = rest % max(1, side), rest // max(1, side)
        near = near & ((place[:, None] - place).abs() <= 1)
    return near[None]


def semantic_neighbours(patches: Tensor, count: int) -> Tensor:
    """[B, N, N] bool: whether the second patch is among the `count` that are most similar to the first, by
    cosine similarity of patches [B, N, C]. It is not symmetric."""
    unit, num_patches = F.normalize(widened(patches), dim=-1), patches.shape[1]
    itself = torch.eye(num_patches, dtype=torch.bool, device=patches.device)
    scores = (unit @ unit.mT).masked_fill(itself, -torch.inf)
    nearest = scores.topk(min(count, max(0, num_patches - 1)), dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, nearest, True)


def normalised(near: Tensor, dtype: torch.dtype) -> Tensor:
    """D^-1/2 A D^-1/2 of the neighbours A [..., N, N], where D has the number of each row's."""
    adjacent = near.to(dtype)
    scale = adjacent.sum(dim=-1).clamp(min=1).rsqrt()
    return scale[..., None] * adjacent * scale[..., None, :]
