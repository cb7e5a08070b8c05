"""Random pairs: the baseline that any metric has to beat."""

import torch
from torch import Tensor

from pipeline.merging.matching import Matching, Split, merge_hard
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import mergeable
from pipeline.token_state import TokenState


@POLICIES.register("random")
class RandomMerging:
    """Pairs are drawn from the global generator of the device in training, and from `seed` in inference, so
    that evaluation repeats."""

    metric_source = "none"
    merges = True
    relaxed = False
    exact_attention = False

    def __init__(self, seed: int = 0):
        self.seed = seed

    def metric_dim(self, dim: int, head_dim: int) -> int:
        return 0

    def merge(
        self, state: TokenState, metric: Tensor | None, r: int, *, training: bool = False
    ) -> TokenState:
        r = min(r, mergeable(state.num_active, state.num_prefix))
        if r <= 0:
            return state
        split = Split.by_parity(state.num_active, state.num_prefix)
        batch, device = state.tokens.shape[0], state.tokens.device
        num_sources = len(range(state.num_active)[split.sources])
        num_destinations = len(range(state.num_active)[split.destinations])
        if training:
            noise = torch.rand(batch, num_sources, device=device)
            target = torch.randint(num_destinations, (batch, r), device=device)
        else:
            rows = _repeated_draw(self.seed * 1_000_003 + state.num_active, num_sources, num_destinations, r)
            noise, target = (row.to(device).expand(batch, -1) for row in rows)
        order = noise.argsort(dim=-1)
        return merge_hard(
            state, Matching(kept=order[:, r:].sort(dim=-1).values, merged=order[:, :r], target=target), split
        )


@torch.compiler.assume_constant_result
def _repeated_draw(seed: int, num_sources: int, num_destinations: int, r: int) -> tuple[Tensor, Tensor]:
    """[1, Na], [1, r]: one row per layer for the whole batch, so that an image's result does not depend on
    its neighbours."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, num_sources, generator=generator), torch.randint(
        num_destinations, (1, r), generator=generator
    )
