"""DiffRate (Chen et al., ICCV 2023, arXiv 2305.17997): the least important patches are pruned, and the next
ones merge, at rates of their own in each block.

As in the authors' code: patches are sorted by the attention of the class token, or by the attention that they
receive where there is none; a merged patch goes to the most similar patch that stays, by tokens; a merge is a
plain mean, and its size counts what merged times that similarity.

Where ours differs: the numbers of a block are a reduction and the share of it that is pruned (theirs are
tokens that stay), at most half of the patches leave, patches that stay keep their order, a similarity of 0 or
less counts as a thousandth (theirs makes the size smaller), and sizes count by similarity also where
importance is attention received. How rates are learned: `pipeline.backbone.learned_schedule`.

B batch, M tokens, r patches that leave.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.merging.pruning import divide, least_first, likeness, slots_of
from pipeline.token_state import Assignment, TokenState

IMPORTANCE = {"class": "class_attention", "received": "received"}
"""What makes a patch important -> the evidence of it."""
LEAST = 2**-10
"""Part of a merged patch that counts at least. A power of two, see `plain_weight`."""
ROUNDING = 1e-6
"""Of the share of the blocks before a block."""


@POLICIES.register("diffrate")
class DiffRate(MergePolicy):
    """Of the r least important patches the least important ones are pruned; each of the others merges into
    the most similar patch that stays.

    pruned: the share of r that is pruned, in [0, 1]: one number, or several, which are those of equal parts
    of the blocks from the first one on; so as many as blocks are one for each. importance: `class`, attention
    of the class token, averaged over heads, or `received`, from all tokens. Raises ConfigError.
    """

    conserves = False
    conserves_size = False
    ranks = True
    prunes_first = True

    def __init__(self, *, pruned: float | Sequence[float] = 0.5, importance: str = "class"):
        shares = [pruned] if isinstance(pruned, int | float) else list(pruned)
        if not shares or not all(0 <= share <= 1 for share in shares):
            raise ConfigError(f"diffrate: pruned is {pruned!r}; give shares of what leaves, in [0, 1]")
        if importance not in IMPORTANCE:
            raise ConfigError(f"diffrate: importance is '{importance}'; give one of {', '.join(IMPORTANCE)}")
        self._shares, self._importance = shares, IMPORTANCE[importance]
        self.needs = frozenset({self._importance})
        # dropped patches must not attend for themselves
        self.requires = frozenset({"merged_attention", *(["class_token"] if importance == "class" else [])})
        self.resizes = min(shares) < 1

    def pruned_share(self, depth: float) -> float:
        """The share of r that is pruned in a block. depth: the share of the blocks that lie before it."""
        count = len(self._shares)
        return self._shares[sum(depth * count >= part - ROUNDING for part in range(1, count))]

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        """Those of the similarities of patches that leave and patches that stay."""
        return r * (num_tokens - num_prefix - r) * widths["tokens"]

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        merge, share = self.ranked(evidence, state, r), self.pruned_share(evidence.depth)
        assert merge.part is not None
        place = torch.arange(r, device=merge.part.device)
        if state.quota is None:
            leave = place < round(share * r)
        else:
            leave = place < (share * state.quota[:, None]).round()
        return replace(merge, part=merge.part.masked_fill(leave, 0.0))

    def ranked(self, evidence: Evidence, state: TokenState, r: int) -> Assignment:
        """The r least important patches, the least important first, each merged and none pruned."""
        importance = getattr(evidence, self._importance).mean(dim=1)[:, state.num_prefix :]
        keep, source = divide(state, least_first(state, importance), r)
        scores = likeness(state, state.tokens, keep, source)
        part = scores.amax(dim=-1).clamp(LEAST, 1.0).to(state.size.dtype)
        slot = slots_of(state, keep, scores)
        weight = plain_weight(state, source, part)
        return Assignment(keep, source, slot, state.num_active, keep.shape[1], part=part, weight=weight)


def plain_weight(state: TokenState, source: Tensor, part: Tensor) -> Tensor:
    """[B, M]: weights under which a mean counts each token once, also where a part of it arrives, and padding
    not at all. source, part [B, E]: see Assignment.

    Prefix tokens receive nothing, so their weight is free. It is the largest that there can be, by which all
    are divided: with a power of two, a token that receives nothing stays as it is, to the bit.
    """
    once = (state.size > 0).to(part.dtype)
    once[:, : state.num_prefix].fill_(1 / LEAST)
    flat, rows = once.flatten(), source.flatten()
    return flat.index_copy(0, rows, flat.index_select(0, rows) / part.flatten()).view_as(once)
