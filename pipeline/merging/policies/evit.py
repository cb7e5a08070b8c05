"""EViT (Liang et al., ICLR 2022): the patches to which the class token attends least are pruned, or fused
into one token.

Where ours differs: the authors add up the fused patches, each times its attention, so that the fused token is
as small as that attention. Here it is their mean with these weights, and its size counts them in proportional
attention. B batch, M tokens, P patches among them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.merging.pruning import least_first, prune
from pipeline.token_state import Assignment, TokenState, rows_of


@POLICIES.register("evit")
class EViT(MergePolicy):
    """Prunes the r patches that receive the least attention of the class token, averaged over heads.

    fuse: the r + 1 such patches become one token instead, their mean weighted by that attention.
    """

    conserves = False

    def __init__(self, *, fuse: bool = False):
        self.fuse = fuse
        self.needs = frozenset({"class_attention"} if fuse else {"class_attention", "keys"})
        self.requires = frozenset({"class_token", "merged_attention"} | ({"one_grid"} if fuse else set()))
        self.conserves_size = self.resizes = fuse
        self.ranks = not fuse

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        """Those of finding the patches that pruned ones are like."""
        return 0 if self.fuse else r * (num_tokens - num_prefix - r) * widths["keys"]

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        importance = evidence.class_attention[:, :, state.num_prefix :].mean(dim=1)
        if self.fuse:
            return _fused(state, importance, r)
        return prune(state, importance, evidence.keys, r)


def _fused(state: TokenState, importance: Tensor, r: int) -> Assignment:
    """The r + 1 least important patches become one token, behind the others. importance [B, P] in [0, 1]."""
    (batch, num_tokens), prefix = state.size.shape, state.num_prefix
    ranked, num_slots = least_first(state, importance), num_tokens - r
    rows = rows_of(batch, num_tokens, ranked.device)
    patches = ranked + rows[:, prefix : prefix + 1]
    kept = patches[:, r + 1 :].sort(dim=-1).values
    last = rows_of(batch, num_slots, rows.device)[:, -1:]
    # all others count 1, so that a token that receives nothing stays as it is, to the bit
    least = ranked[:, : r + 1]
    weight = torch.ones_like(importance).scatter(1, least, importance.gather(1, least))
    weight = torch.cat([weight.new_ones(batch, prefix), weight], dim=1)
    return Assignment(
        torch.cat([rows[:, :prefix], kept, patches[:, r : r + 1]], dim=1),
        patches[:, :r].contiguous(),
        last.expand(-1, r).contiguous(),
        num_tokens,
        num_slots,
        weight=weight,
    )
