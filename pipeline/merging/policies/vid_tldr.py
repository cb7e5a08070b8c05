"""vid-TLDR (Choi et al., CVPR 2024), for images: tokens merge as in ToMe, and what attends to everything
alike is background, which is dropped on the way.

Where ours differs: the class token and other prefix tokens take no part (the authors' video ViT has none),
and where all tokens attend equally sharply, none is background. B batch, M tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import match_by
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.merging.rows import take_rows
from pipeline.token_state import Assignment, TokenState

FLAT = 1e-5
"""Entropies, in nats, that differ by less are the same."""


@POLICIES.register("vid_tldr")
class VidTLDR(MergePolicy):
    """Merges the pairs with the most similar tokens, of which a source counts by its saliency: nothing where
    it attends less sharply than the mean patch, all where it is the sharpest."""

    needs = frozenset({"tokens", "mean_entropy"})
    requires = frozenset({"merged_attention"})
    conserves = False
    conserves_size = False
    ranks = True

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        pairs = match_by(state.tokens, state, r)
        salient = saliency(evidence.mean_entropy, state).to(state.size.dtype)
        return replace(pairs, part=take_rows(salient, pairs.source))


def saliency(entropy: Tensor, state: TokenState) -> Tensor:
    """[B, M] in [0, 1]: 0 for background, 1 for the patch with the sharpest attention and for the prefix.

    entropy [B, M]: that of each token's attention. Sharpness is minus entropy, and what counts is how far it
    lies above the mean over the image's patches, padding aside.
    """
    sharp = -entropy[:, state.num_prefix :]
    counts = (state.patch_size > 0).to(sharp.dtype) if state.padded else torch.ones_like(sharp)
    real = counts > 0
    low = sharp.masked_fill(~real, torch.inf).amin(dim=-1, keepdim=True)
    high = sharp.masked_fill(~real, -torch.inf).amax(dim=-1, keepdim=True)
    mean = (sharp * counts).sum(dim=-1, keepdim=True) / counts.sum(dim=-1, keepdim=True).clamp(min=1)
    above = ((sharp - mean) / (high - mean).clamp(min=torch.finfo(sharp.dtype).tiny)).clamp(0, 1)
    above = torch.where(high - low <= FLAT, 1.0, above)
    return F.pad(above, (state.num_prefix, 0), value=1.0)
