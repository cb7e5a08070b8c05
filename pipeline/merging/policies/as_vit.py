"""AS-ViT (Liu et al., IJCAI 2023): patches leave whose class attention, weighted by how much each head says
there, is below a threshold that each block learns.

From the paper: the score, the thresholds, training by masks with a straight-through gradient, the masked
attention, the budget of the loss (`pipeline.objectives.budget`). Ours: in inference r patches leave an image,
those of the lowest scores, so that shapes do not depend on images; how many a threshold keeps on average is
measured in training and becomes the schedule (the authors keep the batch's average). Patches leave between
attention and MLP, the authors' behind the MLP of the same block, so what stays is the same. Thresholds are in
parts of 1 / N, so that they hold at every size of image. No gradient of a mask reaches the score, only the
threshold, and what is masked stays masked. B batch, H heads, M tokens, P patches among them, N patches at the
input.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.merging.pruning import mask_out, prune
from pipeline.token_state import Assignment, TokenState


@POLICIES.register("as_vit")
class ASViT(MergePolicy):
    """Prunes the r patches with the least class attention, weighted by the heads' shares in their outputs.

    In training each patch whose score times N is below the block's threshold is masked, whatever r is above
    0. temperature: of the sigmoid whose gradient a mask has, in the unit of thresholds. start: where the
    threshold of a block starts, times the share of the blocks that lie before it. Raises ConfigError.
    """

    needs = frozenset({"class_attention", "head_shares", "keys"})
    requires = frozenset({"class_token", "merged_attention", "one_grid"})
    supports_relaxed = True
    masks = True
    conserves = False
    conserves_size = False
    resizes = False

    def __init__(self, *, temperature: float = 0.02, start: float = 0.8):
        if not (0 < temperature < math.inf and math.isfinite(start)):
            raise ConfigError(
                f"as_vit: temperature is {temperature} and start {start}; give numbers, the first above 0"
            )
        self.temperature, self.start_at = temperature, start

    def threshold_at(self, depth: float) -> float:
        return self.start_at * depth

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        """Those of finding the patches that pruned ones are like."""
        return r * (num_tokens - num_prefix - r) * widths["keys"]

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        score = score_of(evidence)[:, state.num_prefix :]
        if not relaxed:
            return prune(state, score, evidence.keys, r)
        above = score * math.prod(state.grid) - evidence.threshold.to(score.dtype)
        return mask_out(state, score, straight_through(above / self.temperature), evidence.keys, r)


def score_of(evidence: Evidence) -> Tensor:
    """[B, M], without gradient: the attention of the class token, its heads weighted by their shares in the
    output of each token."""
    return (evidence.class_attention * evidence.head_shares).sum(dim=1)


def straight_through(logits: Tensor) -> Tensor:
    """1 where a logit is above 0, else 0, with the gradient of the sigmoid."""
    soft = logits.sigmoid()
    return (logits > 0).to(logits.dtype) + (soft - soft.detach())
