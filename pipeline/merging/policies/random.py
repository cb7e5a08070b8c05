"""Random pairs: the baseline that any metric has to beat."""

from functools import partial

import torch
from torch import Tensor

from pipeline.merging.evidence import Evidence
from pipeline.merging.made_once import MadeOnce
from pipeline.merging.matching import pair_up, parity_split, rank
from pipeline.merging.partitions import PARITY, check_partition, in_partition
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState

LARGEST_SEED = 1 << 62
_DRAWN = MadeOnce()


@POLICIES.register("random")
class RandomMerging(MergePolicy):
    """Merges pairs that are drawn from `seed`. They are the same for all images without padding, so that a
    result repeats and does not depend on the batch. partition: see `pipeline.merging.partitions`, one of the
    grid. Raises ConfigError."""

    control = True
    ranks = True

    def __init__(self, seed: int = 0, *, partition: str = PARITY):
        self.first_seed = seed * 1_000_003 % LARGEST_SEED
        self.partition = check_partition("random", partition, compares=False)

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        return in_partition(self.partition, None, state, partial(self._pairs, r=r))

    def _pairs(self, metric: Tensor | None, state: TokenState, r: int) -> Assignment:
        split, batch = parity_split(state), state.tokens.shape[0]
        pairs = drawn(self.first_seed + state.num_active, *split.counts, r, state.tokens.device)
        order, target = (row.expand(batch, -1) for row in pairs)
        if state.quota is not None:
            scores = -order.argsort(dim=-1).to(state.size.dtype)
            order = rank(state, scores.masked_fill(state.size[:, split.sources] == 0, -torch.inf), split)
            target = target % (state.size[:, split.destinations] > 0).sum(dim=-1, keepdim=True).clamp(min=1)
        return pair_up(state, order, target, split)


@torch.compiler.assume_constant_result
def drawn(
    seed: int, num_sources: int, num_destinations: int, r: int, device: torch.device
) -> tuple[Tensor, ...]:
    """Order of the sources [1, Na], and destinations [1, r]. They differ between blocks, which have different
    numbers of tokens. The host waits for the device at the first such merge alone."""

    def draw() -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(1, num_sources, generator=generator).argsort(dim=-1)
        target = torch.randint(num_destinations, (1, r), generator=generator)
        return order.to(device), target.to(device)

    return _DRAWN.get((seed, num_sources, num_destinations, r, device), draw)
